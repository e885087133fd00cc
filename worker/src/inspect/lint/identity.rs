//! What must be different on every machine, and what somebody left behind.

use super::Finding;
use crate::inspect::disk::Disk;
use crate::inspect::ext4::{Kind, ReadError};

const MACHINE_ID: &str = "etc/machine-id";
/// systemd makes one at first boot where this stands, too.
const UNINITIALIZED: &str = "uninitialized";
const SSH: &str = "etc/ssh";
const SHADOW: &str = "etc/shadow";
/// Traces of a machine that ran, with what they do to the next one.
const LEFT: [(&str, &str); 8] = [
    (
        "var/lib/cloud/instance",
        "cloud-init takes the machine for one that it has set up already",
    ),
    (
        "var/lib/waagent/provisioned",
        "the agent takes the machine for one that it has set up already",
    ),
    ("var/log/waagent.log", "it is another machine's log"),
    ("root/.bash_history", "it is somebody's history"),
    (
        "var/lib/systemd/random-seed",
        "all machines start with the same random seed",
    ),
    (
        "var/lib/systemd/credential.secret",
        "all machines share one secret for their credentials",
    ),
    (
        "var/lib/dhcp/dhclient.leases",
        "it has another machine's addresses",
    ),
    (
        "etc/udev/rules.d/70-persistent-net.rules",
        "it names the network cards of another machine",
    ),
];

/// Looks at identities and leftovers.
///
/// # Errors
/// The file system is damaged.
pub fn look(disk: &Disk) -> Result<Vec<Finding>, ReadError> {
    let mut found = Vec::new();
    match disk.text(MACHINE_ID)? {
        Some(id) if !matches!(id.trim(), "" | UNINITIALIZED) => found.push(Finding::error(
            "machine-id",
            format!("/{MACHINE_ID}"),
            "every machine of this image would have the same id, and with it the same DHCP identity",
            "truncate -s 0 /etc/machine-id as the last step",
        )),
        Some(_) => {}
        None => found.push(Finding::warning(
            "machine-id",
            format!("/{MACHINE_ID}"),
            "it is not there, so the id of a machine with a read-only /etc is another one at every boot",
            ": > /etc/machine-id as the last step",
        )),
    }
    let dbus = "var/lib/dbus/machine-id";
    if let Ok(root) = &disk.root
        && let Some(inode) = root.find_link(dbus)?
        && inode.kind == Kind::File
        && inode.size > 0
    {
        found.push(Finding::error(
            "machine-id",
            format!("/{dbus}"),
            "it is an id of its own, which every machine of this image would have",
            "ln -sf /etc/machine-id /var/lib/dbus/machine-id",
        ));
    }
    for name in disk.names(SSH)? {
        if name.starts_with("ssh_host_") && name.ends_with("_key") {
            found.push(Finding::error(
                "host-keys",
                format!("/{SSH}/{name}"),
                "every machine of this image would have the same host key, and whoever has the image has it too",
                "rm /etc/ssh/ssh_host_* as the last step; cloud-init and waagent make new ones",
            ));
        }
    }
    for line in disk.text(SHADOW)?.unwrap_or_default().lines() {
        let mut fields = line.split(':');
        let (Some(user), Some(password)) = (fields.next(), fields.next()) else {
            continue;
        };
        if password.starts_with('$') || password.is_empty() {
            let what = if password.is_empty() {
                "no password at all"
            } else {
                "a password that is the same on every machine"
            };
            found.push(Finding::error(
                "passwords",
                format!("/{SHADOW}"),
                format!("{user} has {what}"),
                format!("passwd -l {user} as the last step"),
            ));
        }
    }
    let homes = disk.paths(&["home"])?;
    for home in homes.iter().map(String::as_str).chain(["root"]) {
        let keys = format!("{home}/.ssh/authorized_keys");
        if disk
            .text(&keys)?
            .is_some_and(|keys| !keys.trim().is_empty())
        {
            found.push(Finding::warning(
                "leftovers",
                format!("/{keys}"),
                "whoever has this key comes into every machine of this image",
                "remove it unless that is meant",
            ));
        }
    }
    for (path, what) in LEFT {
        if disk.has(path)? {
            found.push(Finding::warning(
                "leftovers",
                format!("/{path}"),
                what,
                format!("rm -rf /{path} as the last step (waagent -force -deprovision, cloud-init clean)"),
            ));
        }
    }
    Ok(found)
}
