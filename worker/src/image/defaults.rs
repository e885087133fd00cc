//! What a disk has unless a layer says otherwise: the lowest layer of every chain, made by the engine.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;

use camino::Utf8Path;
use oast_artifacts::Digest;

use super::FIXED_TIME;
use crate::bake::layer::{LayerEntry, LayerIndex, Node, UnpackedLayer};

const NETWORK: &str = "[Match]\nType=ether\n\n[Network]\nDHCP=yes\n";
const REPART: &str = "[Partition]\nType=root\n";
const NETWORKD: &str = "/lib/systemd/system/systemd-networkd.service";
const SYSTEM: &str = "etc/systemd/system";
/// Folders that the kernel and systemd mount on.
const MOUNT_POINTS: [(&str, u32); 5] = [
    ("dev", 0o755),
    ("proc", 0o555),
    ("run", 0o755),
    ("sys", 0o555),
    ("tmp", 0o1777),
];
/// mke2fs makes it; declared, so that a layer which has one patches it.
const LOST: &str = "lost+found";

/// Writes the defaults below `root`, an empty folder.
pub fn layer(root: &Utf8Path, root_uuid: &str, hostname: &str) -> io::Result<UnpackedLayer> {
    let fstab =
        format!("UUID={root_uuid} / ext4 defaults,errors=remount-ro,x-systemd.growfs 0 1\n");
    let files = [
        ("etc/fstab", fstab.as_str()),
        ("etc/hostname", &format!("{hostname}\n")),
        ("etc/machine-id", ""),
        ("etc/repart.d/50-root.conf", REPART),
        ("etc/systemd/network/80-dhcp.network", NETWORK),
    ];
    let wants = format!("{SYSTEM}/multi-user.target.wants");
    let links = [(format!("{wants}/systemd-networkd.service"), NETWORKD)];
    let folders = [
        "etc",
        "etc/repart.d",
        "etc/systemd",
        "etc/systemd/network",
        SYSTEM,
        &wants,
    ];

    let entry = |path: &str, node, mode| LayerEntry {
        path: path.to_owned(),
        node,
        mode,
        uid: 0,
        gid: 0,
        mtime: FIXED_TIME,
        mtime_nanos: 0,
        xattrs: Vec::new(),
    };
    let folder = || Node::Folder { opaque: false };
    let mut entries = vec![entry("", folder(), 0o755), entry(LOST, folder(), 0o700)];
    entries.extend(
        MOUNT_POINTS
            .iter()
            .map(|(path, mode)| entry(path, folder(), *mode)),
    );
    entries.extend(folders.iter().map(|path| entry(path, folder(), 0o755)));
    fs::create_dir_all(root.join(&wants))?;
    for (path, content) in files {
        let on_disk = root.join(path);
        if let Some(parent) = on_disk.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(&on_disk, content)?;
        entries.push(entry(
            path,
            Node::File {
                offset: 0,
                size: content.len() as u64,
            },
            0o644,
        ));
    }
    for (path, target) in links {
        symlink(target, root.join(&path))?;
        entries.push(entry(
            &path,
            Node::Symlink {
                target: target.to_owned(),
            },
            0o777,
        ));
    }
    let index = LayerIndex::new(entries);
    let key = Digest::of(&index.encode());
    Ok(UnpackedLayer {
        key,
        content: key,
        index,
        root: root.to_owned(),
        held: None,
    })
}
