"""Galleries, definitions and versions: replication by region, guards, and use by a machine."""

from azure.mgmt.compute import models as m
from farm import REGION, Farm, gone, names

farm = Farm("galleries")
client, kw = farm.client, farm.plain
versions = client.gallery_image_versions

gallery = farm.done(
    client.galleries.begin_create_or_update(
        farm.group, "farm", m.Gallery(location=REGION, description="images"), **kw
    )
)
assert gallery.identifier.unique_name.endswith("-FARM"), gallery.identifier
farm.done(
    client.galleries.begin_update(farm.group, "farm", m.GalleryUpdate(tags={"a": "b"}), **kw)
)


def definition(sku):
    return m.GalleryImage(
        location=REGION,
        os_type="Linux",
        os_state="Generalized",
        hyper_v_generation="V2",
        identifier=m.GalleryImageIdentifier(publisher="oast", offer="web", sku=sku),
    )


images = client.gallery_images
made = farm.done(images.begin_create_or_update(farm.group, "farm", "web", definition("a"), **kw))
assert made.provisioning_state == "Succeeded" and made.hyper_v_generation == "V2"
farm.refused(
    "Conflict",
    lambda: images.begin_create_or_update(farm.group, "farm", "again", definition("a"), **kw),
    409,
)
farm.refused(
    "ParentResourceNotFound",
    lambda: images.begin_create_or_update(farm.group, "none", "web", definition("z"), **kw),
    404,
)

disk = farm.done(
    client.disks.begin_create_or_update(
        farm.group,
        "baked",
        m.Disk(
            location=REGION, creation_data=m.CreationData(create_option="Empty"), disk_size_gb=8
        ),
        **kw,
    )
)


def version(*regions, allow=True):
    return m.GalleryImageVersion(
        location=REGION,
        publishing_profile=m.GalleryImageVersionPublishingProfile(
            target_regions=[m.TargetRegion(name=r, regional_replica_count=1) for r in regions]
        ),
        storage_profile=m.GalleryImageVersionStorageProfile(
            os_disk_image=m.GalleryOSDiskImage(source=m.GalleryDiskImageSource(id=disk.id))
        ),
        safety_profile=m.GalleryImageVersionSafetyProfile(
            allow_deletion_of_replicated_locations=allow
        ),
    )


def states(name):
    found = versions.get(farm.group, "farm", "web", name, expand="ReplicationStatus", **kw)
    return {one.region: one.state for one in found.replication_status.summary}


first = farm.done(
    versions.begin_create_or_update(
        farm.group, "farm", "web", "1.0.0", version("West Europe", "eastus2"), **kw
    )
)
assert first.storage_profile.os_disk_image.size_in_gb == 8, first
assert first.replication_status is None
assert states("1.0.0") == {"westeurope": "Completed", "eastus2": "Completed"}
farm.refused(
    "InvalidParameter",
    lambda: versions.begin_create_or_update(
        farm.group, "farm", "web", "1.0", version(REGION), **kw
    ),
    400,
)

# Succeeded, and yet not usable in a region.
farm.control(
    "POST",
    "faults",
    {
        "method": "PUT",
        "path": "/versions/1.1.0",
        "region": {"name": "eastus2", "laterMs": 36000000},
    },
)
farm.done(
    versions.begin_create_or_update(
        farm.group, "farm", "web", "1.1.0", version(REGION, "eastus2"), **kw
    )
)
assert states("1.1.0") == {"westeurope": "Completed", "eastus2": "Replicating"}
farm.control("POST", "clock", {"stepMs": 40000000})
assert states("1.1.0")["eastus2"] == "Completed"
farm.control(
    "POST",
    "faults",
    {"method": "PUT", "path": "/versions/1.2.0", "region": {"name": "eastus2", "failed": True}},
)
farm.done(
    versions.begin_create_or_update(
        farm.group, "farm", "web", "1.2.0", version(REGION, "eastus2"), **kw
    )
)
farm.control("POST", "clock", {"stepMs": 1000000})
assert states("1.2.0")["eastus2"] == "Failed"

# A region is added, then the version is guarded.
farm.done(
    versions.begin_update(
        farm.group,
        "farm",
        "web",
        "1.0.0",
        m.GalleryImageVersionUpdate(
            publishing_profile=m.GalleryImageVersionPublishingProfile(
                target_regions=[
                    m.TargetRegion(name=r) for r in ("westeurope", "eastus2", "northeurope")
                ]
            ),
            safety_profile=m.GalleryImageVersionSafetyProfile(
                allow_deletion_of_replicated_locations=False
            ),
        ),
        **kw,
    )
)
assert set(states("1.0.0")) == {"westeurope", "eastus2", "northeurope"}
farm.refused(
    "OperationNotAllowed",
    lambda: versions.begin_delete(farm.group, "farm", "web", "1.0.0", **kw),
    409,
)
listed = names(versions.list_by_gallery_image(farm.group, "farm", "web", **kw))
assert listed == ["1.0.0", "1.1.0", "1.2.0"], listed
farm.refused(
    "CannotDeleteResource", lambda: images.begin_delete(farm.group, "farm", "web", **kw), 409
)
farm.refused(
    "CannotDeleteResource", lambda: client.galleries.begin_delete(farm.group, "farm", **kw), 409
)
farm.done(
    versions.begin_create_or_update(
        farm.group,
        "farm",
        "web",
        "1.0.0",
        version("westeurope", "eastus2", "northeurope", allow=True),
        **kw,
    )
)
for name in listed:
    farm.done(versions.begin_delete(farm.group, "farm", "web", name, **kw))
farm.done(images.begin_delete(farm.group, "farm", "web", **kw))
assert names(client.galleries.list(**kw)) == ["farm"]
farm.done(client.galleries.begin_delete(farm.group, "farm", **kw))
assert gone(lambda: client.galleries.get(farm.group, "farm", **kw))
farm.finish()
