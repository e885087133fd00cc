"""Virtual machines: create, power, run commands, capture, delete, and what goes wrong."""

from azure.mgmt.compute import models as m
from farm import REGION, SUBSCRIPTION, Farm, gone, names

farm = Farm("machines")
client, kw = farm.client, farm.plain
vms = client.virtual_machines

network = {
    "location": REGION,
    "properties": {
        "addressSpace": {"addressPrefixes": ["10.0.0.0/16"]},
        "subnets": [{"name": "default", "properties": {"addressPrefix": "10.0.0.0/24"}}],
    },
}
path = f"/resourceGroups/{farm.group}/providers/Microsoft.Network/virtualNetworks/net"
farm.arm("PUT", path, network, "2023-09-01")
subnet = f"/subscriptions/{SUBSCRIPTION}{path}/subnets/default"


def machine(size="Standard_D2s_v5", image=None, inline=subnet, **more):
    reference = image or m.ImageReference(
        publisher="Debian", offer="debian-12", sku="12-gen2", version="latest"
    )
    address = m.VirtualMachineNetworkInterfaceIPConfiguration(
        name="ip", subnet=m.SubResource(id=inline)
    )
    interface = m.VirtualMachineNetworkInterfaceConfiguration(
        name="nic", primary=True, delete_option="Delete", ip_configurations=[address]
    )
    return m.VirtualMachine(
        location=REGION,
        tags={"oast": "builder"},
        hardware_profile=m.HardwareProfile(vm_size=size),
        storage_profile=m.StorageProfile(
            image_reference=reference,
            os_disk=m.OSDisk(create_option="FromImage", delete_option="Delete"),
        ),
        os_profile=m.OSProfile(
            computer_name="builder", admin_username="oast", admin_password="Secret-Secret-1"
        ),
        network_profile=m.NetworkProfile(
            network_api_version="2020-11-01", network_interface_configurations=[interface]
        ),
        **more,
    )


def power(name):
    view = vms.instance_view(farm.group, name, **kw)
    return [s.code for s in view.statuses if s.code.startswith("PowerState")]


made = farm.done(vms.begin_create_or_update(farm.group, "builder", machine(), **kw))
assert made.provisioning_state == "Succeeded" and made.vm_id and made.etag, made
assert made.os_profile.admin_password is None
disk = made.storage_profile.os_disk
assert disk.managed_disk.id and disk.name.startswith("builder_OsDisk_1_"), disk
assert len(made.network_profile.network_interfaces) == 1
assert power("builder") == ["PowerState/running"]
held = client.disks.get(farm.group, disk.name, **kw)
assert held.disk_state == "Attached" and held.managed_by == made.id, held
farm.refused("OperationNotAllowed", lambda: client.disks.begin_delete(farm.group, disk.name, **kw))

# ETags.
changed = m.VirtualMachineUpdate(tags={"oast": "changed"})
farm.refused(
    "PreconditionFailed",
    lambda: vms.begin_update(farm.group, "builder", changed, if_match='"0"', **kw),
    412,
)
farm.done(vms.begin_update(farm.group, "builder", changed, if_match=made.etag, **kw))
farm.refused(
    "PreconditionFailed",
    lambda: vms.begin_create_or_update(farm.group, "builder", machine(), if_none_match="*", **kw),
    412,
)

# A data disk comes and goes.
data = farm.done(
    client.disks.begin_create_or_update(
        farm.group,
        "data",
        m.Disk(
            location=REGION, creation_data=m.CreationData(create_option="Empty"), disk_size_gb=4
        ),
        **kw,
    )
)
one = m.DataDisk(lun=0, create_option="Attach", managed_disk=m.ManagedDiskParameters(id=data.id))
profile = m.StorageProfile(data_disks=[one])
update = m.VirtualMachineUpdate(storage_profile=profile)
farm.done(vms.begin_update(farm.group, "builder", update, **kw))
assert client.disks.get(farm.group, "data", **kw).disk_state == "Attached"
update = m.VirtualMachineUpdate(storage_profile=m.StorageProfile(data_disks=[]))
farm.done(vms.begin_update(farm.group, "builder", update, **kw))
assert client.disks.get(farm.group, "data", **kw).disk_state == "Unattached"

# Run Command, as an action and managed.
farm.control("POST", "guests", {"contains": "hostname", "stdout": "builder\n"})
farm.control("POST", "guests", {"contains": "false", "exitCode": 3, "stderr": "no\n"})
script = m.RunCommandInput(command_id="RunShellScript", script=["hostname"])
ran = farm.done(vms.begin_run_command(farm.group, "builder", script, **kw))
assert ran.value[0].code == "ProvisioningState/succeeded" and "builder\n" in ran.value[0].message
commands = client.virtual_machine_run_commands


def command(script, **more):
    source = m.VirtualMachineRunCommandScriptSource(script=script)
    return m.VirtualMachineRunCommand(location=REGION, source=source, **more)


step = farm.done(
    commands.begin_create_or_update(farm.group, "builder", "step-1", command("hostname"), **kw)
)
assert step.provisioning_state == "Succeeded"
view = commands.get_by_virtual_machine(
    farm.group, "builder", "step-1", expand="instanceView", **kw
).instance_view
assert (view.execution_state, view.exit_code, view.output) == ("Succeeded", 0, "builder\n"), view
farm.done(commands.begin_create_or_update(farm.group, "builder", "step-2", command("false"), **kw))
view = commands.get_by_virtual_machine(
    farm.group, "builder", "step-2", expand="instanceView", **kw
).instance_view
assert (view.execution_state, view.exit_code, view.error) == ("Failed", 3, "no\n"), view
strict = command("false", treat_failure_as_deployment_failure=True)
farm.refused(
    "VMExtensionProvisioningError",
    lambda: commands.begin_create_or_update(farm.group, "builder", "step-3", strict, **kw),
)
assert names(commands.list_by_virtual_machine(farm.group, "builder", **kw)) == [
    "step-1",
    "step-2",
    "step-3",
]
farm.done(commands.begin_delete(farm.group, "builder", "step-1", **kw))

# Power.
farm.done(vms.begin_power_off(farm.group, "builder", **kw))
assert power("builder") == ["PowerState/stopped"]
farm.refused(
    "OperationNotAllowed", lambda: vms.begin_run_command(farm.group, "builder", script, **kw)
)
farm.done(vms.begin_start(farm.group, "builder", **kw))
farm.done(vms.begin_restart(farm.group, "builder", **kw))
farm.refused("OperationNotAllowed", lambda: vms.generalize(farm.group, "builder", **kw), 409)
farm.done(vms.begin_deallocate(farm.group, "builder", **kw))
assert power("builder") == ["PowerState/deallocated"]
assert client.disks.get(farm.group, disk.name, **kw).disk_state == "Reserved"

# Capture: generalised, it is a source and cannot start again.
vms.generalize(farm.group, "builder", **kw)
farm.refused("OperationNotAllowed", lambda: vms.begin_start(farm.group, "builder", **kw), 409)
image = farm.done(
    client.images.begin_create_or_update(
        farm.group,
        "captured",
        m.Image(location=REGION, source_virtual_machine=m.SubResource(id=made.id)),
        **kw,
    )
)
assert image.storage_profile.os_disk.os_state == "Generalized", image
fresh = machine(image=m.ImageReference(id=image.id))
farm.done(vms.begin_create_or_update(farm.group, "fresh", fresh, **kw))

# What cannot be had: at once, and at the end of the operation.
tiny = machine(size="Standard_Unheard_Of")
farm.refused(
    "InvalidParameter", lambda: vms.begin_create_or_update(farm.group, "x", tiny, **kw), 400
)
farm.control("POST", "quota", {"region": REGION, "name": "standardDSv5Family", "limit": 3})
error = farm.refused(
    "OperationNotAllowed", lambda: vms.begin_create_or_update(farm.group, "x", machine(), **kw), 409
)
assert "exceeding approved standardDSv5 Family Cores quota" in error.message, error.message
assert "Current Limit: 3, Current Usage: 2, Additional Required: 2" in error.message
usage = {u.name.value: (u.current_value, u.limit) for u in client.usage.list(REGION, **kw)}
assert usage["standardDSv5Family"] == (2, 3), usage
farm.control("POST", "quota", {"region": REGION, "short": "Standard_F2s_v2"})
farm.refused(
    "SkuNotAvailable",
    lambda: vms.begin_create_or_update(farm.group, "x", machine(size="Standard_F2s_v2"), **kw),
    409,
)
restricted = [
    sku.name
    for sku in client.resource_skus.list(filter=f"location eq '{REGION}'", **kw)
    if sku.restrictions
]
assert restricted == ["Standard_F2s_v2"], restricted
farm.control(
    "POST",
    "faults",
    {
        "method": "PUT",
        "path": "/virtualMachines/zonal",
        "fail": {
            "code": "ZonalAllocationFailed",
            "message": "Allocation failed. We do not have sufficient capacity for the requested VM size in this zone.",
        },
    },
)
farm.control("POST", "quota", {"region": REGION, "name": "standardDSv5Family", "limit": 30})
farm.refused(
    "ZonalAllocationFailed",
    lambda: vms.begin_create_or_update(farm.group, "zonal", machine(), **kw),
)
assert vms.get(farm.group, "zonal", **kw).provisioning_state == "Failed"
farm.refused(
    "InvalidResourceReference",
    lambda: vms.begin_create_or_update(farm.group, "x", machine(inline=subnet + "x"), **kw),
    400,
)

# A newer write takes over from an older one, which is slow enough to be caught.
farm.control(
    "POST", "faults", {"method": "PUT", "path": "/virtualMachines/twice", "slowMs": 36000000}
)
slow = vms.begin_create_or_update(farm.group, "twice", machine(), polling=True, **kw)
farm.done(vms.begin_create_or_update(farm.group, "twice", machine(), **kw))
farm.refused("OperationPreempted", lambda: slow)

# Spot: an event, then it is gone or stopped.
spot = machine(priority="Spot", eviction_policy="Delete", billing_profile=m.BillingProfile(max_price=-1))
farm.done(vms.begin_create_or_update(farm.group, "spot", spot, **kw))
farm.refused("OperationNotAllowed", lambda: vms.simulate_eviction(farm.group, "fresh", **kw), 409)
vms.simulate_eviction(farm.group, "spot", **kw)
farm.control("POST", "clock", {"stepMs": 31000})
assert gone(lambda: vms.get(farm.group, "spot", **kw))

for name in names(vms.list(farm.group, **kw)):
    farm.done(vms.begin_delete(farm.group, name, **kw))
assert names(vms.list_all(**kw)) == []
# What has deleteOption Delete went with its machine; the data disk was the farm's own.
assert names(client.disks.list(**kw)) == ["data"], names(client.disks.list(**kw))
farm.done(client.images.begin_delete(farm.group, "captured", **kw))
farm.finish()
