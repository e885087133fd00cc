//! What makes a machine out of the image: an agent, the network, the medium with the answers.

use super::Finding;
use crate::inspect::disk::Disk;
use crate::inspect::ext4::ReadError;

const CLOUD_INIT: [&str; 2] = ["usr/bin/cloud-init", "usr/local/bin/cloud-init"];
const WAAGENT: [&str; 2] = ["usr/sbin/waagent", "usr/bin/waagent"];
const AZURE_INIT: [&str; 3] = [
    "usr/bin/azure-init",
    "usr/sbin/azure-init",
    "usr/local/bin/azure-init",
];
const CLOUD_CFG: &str = "etc/cloud/cloud.cfg";
const CLOUD_FOLDER: &str = "etc/cloud/cloud.cfg.d";
const WAAGENT_CONF: &str = "etc/waagent.conf";
const NETWORKD: [&str; 3] = [
    "etc/systemd/network",
    "usr/lib/systemd/network",
    "usr/local/lib/systemd/network",
];
const IFUPDOWN: &str = "etc/network/interfaces.d";

/// Looks at agent and network; says whether something reports to Azure.
///
/// # Errors
/// The file system is damaged.
pub fn look(disk: &Disk) -> Result<(Vec<Finding>, bool), ReadError> {
    let mut found = Vec::new();
    let any = |paths: &[&str]| -> Result<bool, ReadError> {
        for path in paths {
            if disk.has(path)? {
                return Ok(true);
            }
        }
        Ok(false)
    };
    let cloud_init = any(&CLOUD_INIT)?;
    let waagent = any(&WAAGENT)?;
    let mut reports = any(&AZURE_INIT)?;
    if cloud_init {
        match datasources(disk)? {
            Some((_, list)) if list.iter().any(|source| source == "Azure") => reports = true,
            // It then looks for all of them.
            None => reports = true,
            Some((path, list)) => found.push(Finding::error(
                "provisioning",
                format!("/{path}"),
                format!(
                    "cloud-init looks for {} only, and not for Azure",
                    list.join(", ")
                ),
                "datasource_list: [ Azure ]",
            )),
        }
    }
    if waagent {
        let conf = disk.text(WAAGENT_CONF)?.unwrap_or_default();
        let set = |key: &str| {
            let lines = conf.lines().filter_map(|line| line.split_once('='));
            lines
                .filter(|(name, _)| name.trim() == key)
                .map(|(_, value)| value.trim().to_ascii_lowercase())
                .next_back()
        };
        let off = set("Provisioning.Enabled").as_deref() == Some("n");
        let other = set("Provisioning.Agent")
            .is_some_and(|agent| matches!(agent.as_str(), "cloud-init" | "disabled"));
        reports |= !off && !other;
        if set("ResourceDisk.EnableSwap").as_deref() == Some("y")
            && set("ResourceDisk.Format").as_deref() != Some("y")
        {
            found.push(Finding::warning(
                "no-swap",
                format!("/{WAAGENT_CONF}"),
                "swap is to be on the temporary disk, which nothing formats",
                "ResourceDisk.Format=y, or cloud-init's mounts",
            ));
        }
    }
    // What is there and set wrongly was said above.
    if !reports && found.iter().all(|finding| finding.rule != "provisioning") {
        found.push(Finding::warning(
            "provisioning",
            "/usr",
            "neither cloud-init with Azure's datasource nor waagent nor azure-init: a machine gets no user, key or name, and a generalized image never reports to be ready",
            "install cloud-init or waagent in a step, or use it as a specialized image",
        ));
    }
    if !network(disk)? {
        found.push(Finding::error(
            "network-dhcp",
            "/etc",
            "nothing asks for an address by DHCP (systemd-networkd, ifupdown, netplan, NetworkManager, cloud-init)",
            "/etc/systemd/network/80-dhcp.network with [Match] Type=ether and [Network] DHCP=yes",
        ));
    }
    Ok((found, reports))
}

/// Whether a match is about devices that software makes; `Kind=!*` is about those that it does not.
fn kind_of_its_own(line: &str) -> bool {
    line.strip_prefix("Kind=")
        .is_some_and(|kind| !kind.starts_with('!'))
}

/// The list that counts, with its file: the last one by name.
fn datasources(disk: &Disk) -> Result<Option<(String, Vec<String>)>, ReadError> {
    let mut last = None;
    let folder = disk.paths(&[CLOUD_FOLDER])?;
    let files = folder.iter().filter(|path| path.ends_with(".cfg"));
    for path in [CLOUD_CFG].into_iter().chain(files.map(String::as_str)) {
        let text = disk.text(path)?.unwrap_or_default();
        if let Some(list) = list(&text) {
            last = Some((path.to_owned(), list));
        }
    }
    Ok(last)
}

/// `datasource_list: [ Azure, None ]`, also over several lines.
fn list(text: &str) -> Option<Vec<String>> {
    let mut lines = text
        .lines()
        .map(|line| line.split('#').next().unwrap_or_default());
    let rest = lines.find_map(|line| line.strip_prefix("datasource_list:"))?;
    let mut all = rest.trim().to_owned();
    let open = all.starts_with('[');
    if !all.contains(']') {
        for line in lines {
            let item = line.trim();
            if !open && !item.starts_with("- ") && !item.is_empty() {
                break;
            }
            all.push(' ');
            all.push_str(item.trim_start_matches("- "));
            all.push(',');
            if item.contains(']') {
                break;
            }
        }
    }
    let names = all
        .split(['[', ']', ',', ' '])
        .map(|name| name.trim_matches(['"', '\'']));
    Some(
        names
            .filter(|name| !name.is_empty())
            .map(str::to_owned)
            .collect(),
    )
}

fn network(disk: &Disk) -> Result<bool, ReadError> {
    for path in CLOUD_INIT.into_iter().chain(["usr/sbin/NetworkManager"]) {
        if disk.has(path)? {
            return Ok(true);
        }
    }
    for path in disk.paths(&NETWORKD)? {
        // Those of containers and tunnels say so in their names, and match by kind.
        let text = match path.ends_with(".network") {
            true => disk.text(&path)?.unwrap_or_default(),
            false => continue,
        };
        let asks = text.lines().any(|line| {
            matches!(
                line.trim(),
                "DHCP=yes" | "DHCP=ipv4" | "DHCP=true" | "DHCP=both"
            )
        });
        let other = text
            .lines()
            .any(|line| kind_of_its_own(line.trim()) || line.trim() == "Virtualization=container");
        if asks && !other {
            return Ok(true);
        }
    }
    let mut interfaces = disk.paths(&[IFUPDOWN])?;
    interfaces.push("etc/network/interfaces".to_owned());
    for path in interfaces {
        let text = disk.text(&path)?.unwrap_or_default();
        let dhcp =
            |line: &str| line.trim_start().starts_with("iface ") && line.contains(" inet dhcp");
        if text.lines().any(dhcp) {
            return Ok(true);
        }
    }
    for path in disk.paths(&["etc/netplan"])? {
        if disk
            .text(&path)?
            .is_some_and(|text| text.contains("dhcp4: true") || text.contains("dhcp4: yes"))
        {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_to_write_a_list_of_datasources_is_read() {
        for (text, wanted) in [
            ("datasource_list: [ Azure ]\n", Some(vec!["Azure"])),
            (
                "# x\ndatasource_list: ['NoCloud', \"Azure\"] # both\n",
                Some(vec!["NoCloud", "Azure"]),
            ),
            (
                "datasource_list:\n  - Azure\n  - None\nusers: []\n",
                Some(vec!["Azure", "None"]),
            ),
            (
                "datasource_list: [\n  NoCloud,\n  None ]\n",
                Some(vec!["NoCloud", "None"]),
            ),
            ("# datasource_list: [ Azure ]\n", None),
        ] {
            let wanted =
                wanted.map(|names| names.into_iter().map(str::to_owned).collect::<Vec<_>>());
            assert_eq!(list(text), wanted, "{text}");
        }
    }
}
