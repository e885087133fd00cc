"""Disks and snapshots: create, read, list, change, access, delete, and what goes wrong."""

from azure.mgmt.compute.models import (
    CreationData,
    Disk,
    DiskSku,
    DiskUpdate,
    GrantAccessData,
    Snapshot,
)
from farm import REGION, Farm, gone, names, opened

farm = Farm("Disks-RG")
disks, snapshots, kw = farm.client.disks, farm.client.snapshots, farm.plain


def empty(gib=4):
    return Disk(
        location="West Europe",
        creation_data=CreationData(create_option="Empty"),
        disk_size_gb=gib,
        sku=DiskSku(name="Premium_LRS"),
        tags={"oast": "1"},
    )


made = farm.done(disks.begin_create_or_update(farm.group, "Data", empty(), **kw))
assert made.provisioning_state == "Succeeded" and made.disk_state == "Unattached", made
assert made.id.endswith("/disks/Data") and made.location == REGION and made.sku.tier == "Premium"
assert made.disk_size_bytes == 4 << 30 and made.time_created and made.unique_id

# Names and paths have no case; the first spelling stays.
again = disks.get(farm.group.upper(), "DATA", **kw)
assert again.id == made.id, again.id

grown = farm.done(disks.begin_update(farm.group, "Data", DiskUpdate(disk_size_gb=8), **kw))
assert grown.disk_size_gb == 8 and grown.tags == {"oast": "1"}, grown
farm.refused(
    "InvalidParameter",
    lambda: disks.begin_update(farm.group, "Data", DiskUpdate(disk_size_gb=2), **kw),
    400,
)

copy = Snapshot(
    location=REGION,
    creation_data=CreationData(create_option="Copy", source_resource_id=made.id),
    incremental=True,
)
snapshot = farm.done(snapshots.begin_create_or_update(farm.group, "snap", copy, **kw))
assert snapshot.disk_size_gb == 8 and snapshot.incremental, snapshot
restored = Disk(
    location=REGION,
    creation_data=CreationData(create_option="Copy", source_resource_id=snapshot.id),
)
farm.done(disks.begin_create_or_update(farm.group, "restored", restored, **kw))
absent = CreationData(create_option="Copy", source_resource_id=made.id + "-not")
farm.refused(
    "ResourceNotFound",
    lambda: disks.begin_create_or_update(
        farm.group, "x", Disk(location=REGION, creation_data=absent), **kw
    ),
    404,
)

# Pages: the client follows absolute links.
farm.control("POST", "settings", {"page": 3})
for number in range(5):
    farm.done(disks.begin_create_or_update(farm.group, f"many{number}", empty(), **kw))
listed = names(disks.list_by_resource_group(farm.group, **kw))
assert listed == ["Data", "many0", "many1", "many2", "many3", "many4", "restored"], listed
assert set(listed) <= set(names(disks.list(**kw)))
assert names(snapshots.list(**kw)) == ["snap"]

# A link to read, and the disk's state with it.
given = farm.done(
    disks.begin_grant_access(
        farm.group, "Data", GrantAccessData(access="Read", duration_in_seconds=3600000), **kw
    )
)
assert given.access_sas.startswith(farm.base), given
assert disks.get(farm.group, "Data", **kw).disk_state == "ActiveSAS"
with opened(given.access_sas, headers={"x-ms-range": "bytes=0-511"}) as answer:
    assert answer.status == 206 and answer.read() == bytes(512)
farm.refused("OperationNotAllowed", lambda: disks.begin_delete(farm.group, "Data", **kw), 409)
farm.done(disks.begin_revoke_access(farm.group, "Data", **kw))
assert disks.get(farm.group, "Data", **kw).disk_state == "Unattached"

# A failure at the end of the operation: the poller raises it, the resource stays and is repaired.
farm.control(
    "POST",
    "faults",
    {
        "method": "PUT",
        "path": "/disks/broken",
        "fail": {"code": "InternalExecutionError", "message": "An internal execution error occurred."},
    },
)
farm.refused(
    "InternalExecutionError",
    lambda: disks.begin_create_or_update(farm.group, "broken", empty(), **kw),
)
assert disks.get(farm.group, "broken", **kw).provisioning_state == "Failed"
mended = farm.done(disks.begin_create_or_update(farm.group, "broken", empty(), **kw))
assert mended.provisioning_state == "Succeeded"

# Throttled: the client waits as it is told and comes through.
farm.control(
    "POST",
    "faults",
    {"method": "GET", "path": "/disks/Data", "times": 2, "answer": {"status": 429, "retryAfter": 1}},
)
assert disks.get(farm.group, "Data", **kw).name == "Data"
struck = [rule["struck"] for rule in farm.control("GET", "faults")["value"]]
assert struck == [1, 2], struck

for name in names(disks.list_by_resource_group(farm.group, **kw)):
    farm.done(disks.begin_delete(farm.group, name, **kw))
farm.done(snapshots.begin_delete(farm.group, "snap", **kw))
farm.done(snapshots.begin_delete(farm.group, "snap", **kw))
assert gone(lambda: disks.get(farm.group, "Data", **kw))
assert gone(lambda: snapshots.get(farm.group, "snap", **kw))
farm.refused("ResourceNotFound", lambda: disks.get(farm.group, "Data", **kw), 404)
farm.refused("ResourceGroupNotFound", lambda: disks.get("nowhere", "Data", **kw), 404)
assert names(disks.list(**kw)) == []
farm.finish()
