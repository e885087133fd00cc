"""Scale sets: create, resize, act on instances, upgrade by hand and rolling, delete, and what goes wrong."""

import time

from azure.mgmt.compute import models as m
from farm import REGION, Farm, gone, names

farm = Farm("sets")
client, kw = farm.client, farm.plain
sets, instances = client.virtual_machine_scale_sets, client.virtual_machine_scale_set_vms
rolling = client.virtual_machine_scale_set_rolling_upgrades


def image(name):
    disk = farm.done(
        client.disks.begin_create_or_update(
            farm.group,
            name,
            m.Disk(
                location=REGION, creation_data=m.CreationData(create_option="Empty"), disk_size_gb=4
            ),
            **kw,
        )
    )
    os_disk = m.ImageOSDisk(
        os_type="Linux", os_state="Generalized", managed_disk=m.SubResource(id=disk.id)
    )
    made = m.Image(location=REGION, storage_profile=m.ImageStorageProfile(os_disk=os_disk))
    return farm.done(client.images.begin_create_or_update(farm.group, name, made, **kw)).id


def model(image_id, mode="Manual", capacity=5, health=True, **more):
    extension = m.VirtualMachineScaleSetExtension(
        name="health",
        publisher="Microsoft.ManagedServices",
        type_properties_type="ApplicationHealthLinux",
        type_handler_version="1.0",
        settings={"protocol": "http", "port": 80, "requestPath": "/"},
    )
    policy = m.RollingUpgradePolicy(
        max_batch_instance_percent=40,
        max_unhealthy_instance_percent=20,
        max_unhealthy_upgraded_instance_percent=20,
        pause_time_between_batches="PT5S",
    )
    return m.VirtualMachineScaleSet(
        location=REGION,
        sku=m.Sku(name="Standard_D2s_v5", capacity=capacity),
        upgrade_policy=m.UpgradePolicy(mode=mode, rolling_upgrade_policy=policy),
        virtual_machine_profile=m.VirtualMachineScaleSetVMProfile(
            storage_profile=m.VirtualMachineScaleSetStorageProfile(
                image_reference=m.ImageReference(id=image_id)
            ),
            os_profile=m.VirtualMachineScaleSetOSProfile(
                computer_name_prefix="web", admin_username="oast", admin_password="Secret-1-Secret"
            ),
            extension_profile=m.VirtualMachineScaleSetExtensionProfile(
                extensions=[extension] if health else []
            ),
            **more,
        ),
    )


one, two, bad = image("one"), image("two"), image("bad")
made = farm.done(sets.begin_create_or_update(farm.group, "web", model(one), **kw))
assert made.provisioning_state == "Succeeded" and made.unique_id and made.etag, made
assert made.sku.capacity == 5


def numbers(name="web"):
    return [int(i.instance_id) for i in instances.list(farm.group, name, **kw)]


first = sorted(numbers())
assert len(first) == 5 and max(first) <= 5, first
view = sets.get_instance_view(farm.group, "web", **kw)
assert [(s.code, s.count) for s in view.virtual_machine.statuses_summary] == [
    ("ProvisioningState/succeeded", 5)
]
farm.control("POST", "clock", {"stepMs": 60000})
single = instances.get_instance_view(farm.group, "web", str(first[0]), **kw)
assert single.vm_health.status.code == "HealthState/healthy", single
assert "PowerState/running" in [s.code for s in single.statuses]

# A changed model reaches the instances that are told to take it.
farm.done(sets.begin_update(farm.group, "web", m.VirtualMachineScaleSetUpdate(
    virtual_machine_profile=m.VirtualMachineScaleSetUpdateVMProfile(
        storage_profile=m.VirtualMachineScaleSetUpdateStorageProfile(
            image_reference=m.ImageReference(id=two)))), **kw))
latest = [i.latest_model_applied for i in instances.list(farm.group, "web", **kw)]
assert latest == [False] * 5, latest
some = m.VirtualMachineScaleSetVMInstanceRequiredIDs(instance_ids=[str(first[0])])
farm.done(sets.begin_update_instances(farm.group, "web", some, **kw))
taken = instances.get(farm.group, "web", str(first[0]), **kw)
assert taken.latest_model_applied and taken.storage_profile.image_reference.id == two, taken

# Protection, deletion of some, growth: numbers are not used twice.
last = str(first[-1])
held = instances.get(farm.group, "web", last, **kw)
held.protection_policy = m.VirtualMachineScaleSetVMProtectionPolicy(protect_from_scale_in=True)
farm.done(instances.begin_update(farm.group, "web", last, held, **kw))
some = m.VirtualMachineScaleSetVMInstanceRequiredIDs(instance_ids=[str(first[1])])
farm.done(sets.begin_delete_instances(farm.group, "web", some, **kw))
assert sets.get(farm.group, "web", **kw).sku.capacity == 4
assert gone(lambda: instances.get(farm.group, "web", str(first[1]), **kw))
farm.refused("InvalidParameter", lambda: sets.begin_delete_instances(farm.group, "web", some, **kw), 400)


def resize(capacity):
    update = m.VirtualMachineScaleSetUpdate(sku=m.Sku(name="Standard_D2s_v5", capacity=capacity))
    farm.done(sets.begin_update(farm.group, "web", update, **kw))


resize(6)
assert len(numbers()) == 6 and first[1] not in numbers(), numbers()
resize(2)
assert len(numbers()) == 2 and int(last) in numbers(), numbers()
farm.done(instances.begin_power_off(farm.group, "web", last, **kw))
view = instances.get_instance_view(farm.group, "web", last, **kw)
assert "PowerState/stopped" in [s.code for s in view.statuses] and view.vm_health is None
farm.done(instances.begin_start(farm.group, "web", last, **kw))
farm.done(instances.begin_reimage(farm.group, "web", last, **kw))
script = m.RunCommandInput(command_id="RunShellScript", script=["true"])
ran = farm.done(instances.begin_run_command(farm.group, "web", last, script, **kw))
assert ran.value[0].level == "Info"
farm.done(sets.begin_restart(farm.group, "web", **kw))
farm.done(instances.begin_delete(farm.group, "web", last, **kw))
farm.refused(
    "PreconditionFailed",
    lambda: sets.begin_create_or_update(farm.group, "web", model(one), if_none_match="*", **kw),
    412,
)

# Rolling: needs a health source, goes batch by batch, and stops at unhealthy instances.
farm.refused(
    "BadRequest",
    lambda: sets.begin_create_or_update(farm.group, "x", model(one, "Rolling", health=False), **kw),
    400,
)
farm.done(sets.begin_create_or_update(farm.group, "roll", model(one, "Rolling"), **kw))
farm.refused("NotFound", lambda: rolling.get_latest(farm.group, "roll", **kw), 404)
farm.control("POST", "clock", {"stepMs": 120000})


def roll(image_id):
    farm.done(sets.begin_create_or_update(farm.group, "roll", model(image_id, "Rolling"), **kw))
    for _ in range(600):
        latest = rolling.get_latest(farm.group, "roll", **kw)
        if latest.running_status.code != "RollingForward":
            return latest
        time.sleep(0.02)
    raise AssertionError("the rolling upgrade does not end")


ended = roll(two)
assert ended.running_status.code == "Completed", ended
assert ended.progress.successful_instance_count == 5, ended.progress
assert all(i.latest_model_applied for i in instances.list(farm.group, "roll", **kw))
farm.refused("OperationNotAllowed", lambda: rolling.begin_cancel(farm.group, "roll", **kw), 409)
farm.control("POST", "health", {"contains": "/images/bad", "state": "unhealthy"})
ended = roll(bad)
assert ended.running_status.code == "Faulted", ended
assert ended.error.code == "MaxUnhealthyUpgradedInstancePercentExceededInRollingUpgrade", ended
assert ended.progress.failed_instance_count == 2 and ended.progress.pending_instance_count == 3
listed = instances.list(farm.group, "roll", expand="instanceView", **kw)
codes = sorted(i.instance_view.vm_health.status.code for i in listed)
assert codes == ["HealthState/healthy"] * 3 + ["HealthState/unhealthy"] * 2, codes

# Some instances fail: the operation names them, the set stays.
farm.control(
    "POST",
    "faults",
    {
        "method": "PUT",
        "path": "/virtualMachineScaleSets/part",
        "instances": {"count": 2, "code": "AllocationFailed", "message": "Allocation failed."},
    },
)
error = farm.refused(
    "ResourceOperationFailure",
    lambda: sets.begin_create_or_update(farm.group, "part", model(one), **kw),
)
assert [d.code for d in error.error.details] == ["AllocationFailed"] * 2, error
states = sorted(i.provisioning_state for i in instances.list(farm.group, "part", **kw))
assert states == ["Failed"] * 2 + ["Succeeded"] * 3, states
assert sets.get(farm.group, "part", **kw).provisioning_state == "Failed"

# Spot instances are evicted.
spot = model(one, capacity=1, priority="Spot", eviction_policy="Delete")
farm.done(sets.begin_create_or_update(farm.group, "spot", spot, **kw))
number = str(numbers("spot")[0])
instances.simulate_eviction(farm.group, "spot", number, **kw)
farm.control("POST", "clock", {"stepMs": 31000})
assert numbers("spot") == []

for name in names(sets.list(farm.group, **kw)):
    farm.done(sets.begin_delete(farm.group, name, **kw))
assert names(sets.list_all(**kw)) == []
assert gone(lambda: instances.get(farm.group, "roll", "0", **kw))
farm.finish()
