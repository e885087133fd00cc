"""What the judge's scripts share: a client of Microsoft's, pointed at the simulator."""

import json
import os
import sys
import time
import urllib.parse
import urllib.request

from azure.core.credentials import AccessToken
from azure.core.exceptions import HttpResponseError, ResourceNotFoundError
from azure.mgmt.compute import ComputeManagementClient

SUBSCRIPTION = "11111111-2222-4333-8444-555555555555"
REGION = "westeurope"


class Credential:
    """A client secret, exchanged at the simulator's own token endpoint."""

    def __init__(self, base):
        self.base = base

    def get_token(self, *scopes, **_):
        form = {
            "grant_type": "client_credentials",
            "client_id": "judge",
            "client_secret": "judged",
            "scope": " ".join(scopes),
        }
        url = f"{self.base}/sim-tenant/oauth2/v2.0/token"
        with opened(url, "POST", urllib.parse.urlencode(form).encode()) as answer:
            given = json.load(answer)
        return AccessToken(given["access_token"], int(time.time()) + 3000)


def opened(url, method="GET", body=None, headers=None):
    import ssl

    context = ssl.create_default_context(cafile=os.environ.get("SIM_CA"))
    request = urllib.request.Request(url, body, headers or {}, method=method)
    return urllib.request.urlopen(request, context=context if url.startswith("https") else None)


class Farm:
    """A client, a resource group, and the simulator's control API."""

    def __init__(self, group):
        self.base = os.environ["SIM_URL"]
        self.group = group
        # An hour of the simulator's is a few seconds of the judge's.
        self.control("POST", "tokens", {"lifeSeconds": 10_000_000})
        self.credential = Credential(self.base)
        plain = {} if self.base.startswith("https") else {"enforce_https": False}
        verify = {"connection_verify": os.environ["SIM_CA"]} if "SIM_CA" in os.environ else {}
        self.client = ComputeManagementClient(
            self.credential,
            SUBSCRIPTION,
            base_url=self.base,
            credential_scopes=[f"{self.base}/.default"],
            polling_interval=0.02,
            **verify,
        )
        self.plain = plain
        self.arm("PUT", f"/resourceGroups/{group}", {"location": REGION})

    def arm(self, method, path, body=None, version="2021-04-01"):
        token = self.credential.get_token(f"{self.base}/.default").token
        url = f"{self.base}/subscriptions/{SUBSCRIPTION}{path}?api-version={version}"
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        data = json.dumps(body).encode() if body is not None else None
        with opened(url, method, data, headers) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    def control(self, method, what, body=None):
        data = json.dumps(body).encode() if body is not None else None
        with opened(f"{self.base}/__sim/{what}", method, data) as answer:
            return json.load(answer)

    def id(self, rest):
        return (
            f"/subscriptions/{SUBSCRIPTION}/resourceGroups/{self.group}"
            f"/providers/Microsoft.Compute/{rest}"
        )

    def done(self, poller):
        """The result of a poller of Microsoft's, which must say that it succeeded."""
        result = poller.result(timeout=60)
        assert poller.status() == "Succeeded", poller.status()
        return result

    def refused(self, code, call, status=None):
        """Expects an error with this code, at once or from the poller."""
        try:
            result = call()
            if hasattr(result, "result"):
                result.result(timeout=60)
        except HttpResponseError as error:
            found = error.error.code if error.error else None
            assert found == code, f"expected {code}, got {found}: {error.message}"
            if status is not None:
                assert error.status_code == status, f"expected {status}, got {error.status_code}"
            return error
        raise AssertionError(f"expected {code}, and nothing failed")

    def finish(self):
        found = self.control("GET", "violations")["value"]
        for one in found:
            print("violation:", one, file=sys.stderr)
        assert not found, f"{len(found)} answers against the contract"


def gone(call):
    try:
        call()
    except ResourceNotFoundError:
        return True
    return False


def names(found):
    return sorted(one.name for one in found)
