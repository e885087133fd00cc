"""Judges the documents in a folder: `judge.py bills|provenance|keys FOLDER`. Silent when all is well.

Each check uses the reader of somebody else; nothing of what is judged is used to judge it.
"""

import json
import sys
from pathlib import Path


def bills(folder):
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator
    from packageurl import PackageURL
    from spdx_tools.spdx.parser.parse_anything import parse_file
    from spdx_tools.spdx.validation.document_validator import validate_full_spdx_document

    text = (folder / "ours.cdx.json").read_text()
    fault = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    assert fault is None, f"CycloneDX: {fault}"
    ours = json.loads(text)

    def packages(document):
        found = {}
        for part in document["components"]:
            if part.get("purl", "").startswith("pkg:deb/"):
                url = PackageURL.from_string(part["purl"])
                qualifiers = dict(url.qualifiers)
                key = (part["name"], part["version"], qualifiers.get("arch"))
                assert key not in found, f"{key} twice"
                found[key] = (url.namespace, url.name, url.version, qualifiers.get("distro"), qualifiers.get("upstream"))
        return found

    mine, syfts = packages(ours), packages(json.loads((folder / "syft.cdx.json").read_text()))
    assert mine == syfts, "differs from syft: " + "\n".join(
        f"{key}: ours {mine.get(key)}, syft {syfts.get(key)}"
        for key in sorted(mine.keys() | syfts.keys(), key=str)
        if mine.get(key) != syfts.get(key)
    )
    for part in ours["components"]:
        if "purl" in part:
            assert PackageURL.from_string(part["purl"]).to_string() == part["purl"], part["purl"]

    document = parse_file(str(folder / "ours.spdx.json"))
    faults = validate_full_spdx_document(document)
    assert not faults, "SPDX: " + "\n".join(f"{f.context.spdx_id}: {f.validation_message}" for f in faults[:10])
    named = {(p.name, p.version) for p in document.packages if p.spdx_id != "SPDXRef-Image"}
    assert named == {(name, version) for name, version, _ in mine}
    assert [f.name for f in document.files] == ["./srv/www/a page.html"]


def provenance(folder):
    from cryptography.hazmat.primitives.serialization import load_pem_public_key
    from google.protobuf import json_format
    from in_toto_attestation.predicates.provenance.v1 import provenance_pb2
    from in_toto_attestation.v1 import statement_pb2
    from in_toto_attestation.v1.statement import Statement
    from securesystemslib.dsse import Envelope
    from securesystemslib.exceptions import VerificationError
    from securesystemslib.signer import SSlibKey

    public = load_pem_public_key((folder / "key.pem").read_bytes())
    raw = json.loads((folder / "envelope.json").read_text())
    key = SSlibKey.from_crypto(public, keyid=raw["signatures"][0]["keyid"])
    envelope = Envelope.from_dict(json.loads(json.dumps(raw)))
    envelope.verify([key], 1)
    statement = json_format.Parse(envelope.payload, statement_pb2.Statement())
    Statement.copy_from_pb(statement).validate()
    assert statement.predicate_type == "https://slsa.dev/provenance/v1"
    # Unknown or misspelt fields are errors here.
    predicate = json_format.ParseDict(json_format.MessageToDict(statement.predicate), provenance_pb2.Provenance())
    assert predicate.run_details.builder.id == "oast://acme"
    assert len(predicate.build_definition.resolved_dependencies) == 2

    envelope.payload = envelope.payload.replace(b"acme", b"evil")
    try:
        envelope.verify([key], 1)
    except VerificationError:
        return
    raise AssertionError("a changed payload was accepted")


def keys(folder):
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import (
        Encoding, NoEncryption, PrivateFormat, PublicFormat, load_pem_private_key)

    def public(key):
        return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    theirs = Ed25519PrivateKey.generate()
    pem = theirs.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (folder / "theirs.pem").write_bytes(pem)
    (folder / "theirs.pub.pem").write_bytes(public(theirs))
    ours = load_pem_private_key((folder / "ours.pem").read_bytes(), password=None)
    (folder / "ours.pub.pem").write_bytes(public(ours))


{"bills": bills, "provenance": provenance, "keys": keys}[sys.argv[1]](Path(sys.argv[2]))
