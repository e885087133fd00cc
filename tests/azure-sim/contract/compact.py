#!/usr/bin/env python3
"""Makes schema.json and operations.tsv from the published contract; README.md says from where.

    compact.py FOLDER      FOLDER holds types/*.types.json and compute_contract.tsv
"""

import csv
import json
import pathlib
import re
import sys

HERE = pathlib.Path(__file__).parent
FILES = {
    "disks-2024-03-02": ["disks", "snapshots"],
    "galleries-2023-07-03": ["galleries", "galleries/images", "galleries/images/versions"],
    "vm-vmss-2024-07-01": [
        "virtualMachineScaleSets",
        "virtualMachineScaleSets/extensions",
        "virtualMachineScaleSets/virtualMachines",
        "virtualMachineScaleSets/virtualMachines/runCommands",
        "virtualMachineScaleSets/rollingUpgrades",
        "virtualMachines",
        "virtualMachines/extensions",
        "virtualMachines/runCommands",
        "images",
    ],
}
# Bodies that are no resource, by the name of their type.
NAMED = {
    "virtualMachines/instanceView": "VirtualMachineInstanceView",
    "virtualMachineScaleSets/virtualMachines/instanceView": "VirtualMachineScaleSetVMInstanceView",
    "disks/beginGetAccess": "AccessUri",
    "runCommand": "RunCommandResult",
}
PLAIN = {"StringType": "s", "IntegerType": "n", "BooleanType": "b", "AnyType": "any"}


class Compact:
    """Types are renumbered in the order in which the chosen resources reach them."""

    def __init__(self):
        self.types, self.seen, self.resources = [], {}, {}

    def add(self, file, types, number):
        key = (file, number)
        if key in self.seen:
            return self.seen[key]
        at = self.seen[key] = len(self.types)
        self.types.append(None)
        self.types[at] = self.shape(file, types, types[number])
        return at

    def shape(self, file, types, one):
        def follow(reference):
            return self.add(file, types, int(reference["$ref"][2:]))

        kind = one["$type"]
        if kind in PLAIN:
            limits = {k: one[k] for k in ("minValue", "maxValue") if k in one}
            return [PLAIN[kind], limits] if limits else PLAIN[kind]
        if kind == "StringLiteralType":
            return {"l": one["value"]}
        if kind == "ArrayType":
            return {"i": follow(one["itemType"])}
        if kind == "UnionType":
            return {"u": [follow(e) for e in one["elements"]]}
        if kind == "ObjectType":
            fields = {k: [follow(p["type"]), p["flags"]] for k, p in one["properties"].items()}
            made = {"n": one["name"], "p": fields}
            if "additionalProperties" in one:
                made["a"] = follow(one["additionalProperties"])
            return made
        raise SystemExit(f"{file}: a {kind} is not known here")


def schema(folder):
    compact = Compact()
    for file, wanted in FILES.items():
        types = json.loads((folder / "types" / f"{file}.types.json").read_text())
        for one in types:
            if one["$type"] != "ResourceType":
                continue
            name = one["name"].split("@")[0].removeprefix("Microsoft.Compute/")
            if name in wanted:
                number = int(one["body"]["$ref"][2:])
                compact.resources[name.lower()] = compact.add(file, types, number)
        for role, name in NAMED.items():
            for number, one in enumerate(types):
                if one["$type"] == "ObjectType" and one["name"] == name:
                    compact.resources.setdefault(role.lower(), compact.add(file, types, number))
    made = {"resources": compact.resources, "types": compact.types}
    lines = ['{"resources":' + json.dumps(made["resources"], separators=(",", ":")) + ',"types":[']
    rows = [json.dumps(t, separators=(",", ":")) for t in made["types"]]
    lines.append(",\n".join(rows) + "]}")
    (HERE / "schema.json").write_text("\n".join(lines) + "\n")


def operations(folder):
    rows = []
    for row in csv.DictReader((folder / "compute_contract.tsv").open(), delimiter="\t"):
        if not row["path"].startswith("/"):
            continue
        path = re.sub(r"\{[^}]*\}", "{}", row["path"])
        # The source runs the parameters of this one into its path.
        path = re.sub(r"(/Microsoft\.Compute/skus)\w.*", r"\1", path)
        mode = "location" if "location" in row["lro_options"] else "lro" if row["lro_options"] else ""
        rows.append("\t".join([row["method"], path, row["accepted_status"].replace(" ", ""), mode]))
    (HERE / "operations.tsv").write_text("\n".join(sorted(set(rows))) + "\n")


if __name__ == "__main__":
    schema(pathlib.Path(sys.argv[1]))
    operations(pathlib.Path(sys.argv[1]))
