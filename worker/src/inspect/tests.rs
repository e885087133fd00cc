use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::process::Command;

use camino::{Utf8Path, Utf8PathBuf};
use oast_artifacts::Digest;

use super::diff::{Change, diff};
use super::disk::{Disk, OpenError};
use super::ext4::{Ext4, Kind};
use super::lint::{Report, Severity, Way, azure};
use crate::image::tests::{Fixture, have, options};
use crate::image::{build, make_fixed_vhd};

fn folder() -> (tempfile::TempDir, Utf8PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = Utf8PathBuf::from_path_buf(folder.path().to_owned()).unwrap();
    (folder, path)
}

/// A file system of everything below `tree`, made by mke2fs.
fn made_by_mke2fs(tree: &Utf8Path, image: &Utf8Path, features: &[&str]) {
    File::create(image).unwrap().set_len(64 << 20).unwrap();
    let output = Command::new("/usr/sbin/mke2fs")
        .args(["-q", "-F", "-t", "ext4", "-d", tree.as_str()])
        .args(features)
        .arg(image)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// A generated tree: folders of many entries, files of every size around a block, holes, links, attributes.
fn tree(root: &Utf8Path, seed: u64) {
    let mut random = seed;
    let mut next = |below: u64| {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) % below
    };
    let mut folders = vec![root.to_owned()];
    fs::create_dir_all(root).unwrap();
    for number in 0..300 {
        let at = folders[usize::try_from(next(folders.len() as u64)).unwrap()].clone();
        let path = at.join(format!(
            "n{number}-{}",
            "x".repeat(usize::try_from(next(60)).unwrap())
        ));
        match next(10) {
            0 | 1 => {
                fs::create_dir(&path).unwrap();
                folders.push(path);
            }
            2 => symlink("y".repeat(usize::try_from(1 + next(200)).unwrap()), &path).unwrap(),
            3 => {
                let file = File::create(&path).unwrap();
                file.write_all_at(b"head", next(3) * 100_000).unwrap();
                file.write_all_at(b"tail", 5_000_000 + next(100_000))
                    .unwrap();
            }
            _ => {
                let size =
                    [0, 1, 1023, 1024, 4095, 4096, 4097, 70_000][usize::try_from(next(8)).unwrap()];
                let byte = u8::try_from(next(256)).unwrap();
                fs::write(&path, vec![byte; size]).unwrap();
                fs::set_permissions(
                    &path,
                    fs::Permissions::from_mode(0o400 | u32::try_from(next(0o400)).unwrap()),
                )
                .unwrap();
            }
        }
    }
    let many = root.join("many");
    fs::create_dir(&many).unwrap();
    for number in 0..1500 {
        fs::write(
            many.join(format!(
                "a long name of an entry among very many, number {number}"
            )),
            "",
        )
        .unwrap();
    }
}

/// The reader against the file system that the tree came from: mke2fs is what writes it, this kernel what reads the tree.
#[test]
fn a_tree_that_mke2fs_wrote_is_read_back_as_it_is() {
    if !have("mke2fs") {
        return;
    }
    let forms: [&[&str]; 4] = [
        &[],
        &["-b", "1024", "-O", "^64bit"],
        &["-O", "^extents,^metadata_csum,^64bit", "-b", "1024"],
        &["-I", "128", "-O", "^has_journal"],
    ];
    for (seed, features) in (1_u64..).zip(forms) {
        println!("seed {seed}, {features:?}");
        let (_folder, root) = folder();
        let (source, image) = (root.join("tree"), root.join("image"));
        tree(&source, seed);
        made_by_mke2fs(&source, &image, features);
        let len = fs::metadata(&image).unwrap().len();
        let system = Ext4::open(File::open(&image).unwrap(), 0, len).unwrap();
        assert!(system.is_clean());
        let mut found = system.walk().unwrap();
        found.remove("lost+found");
        let mut left: BTreeMap<String, ()> = found.keys().map(|path| (path.clone(), ())).collect();
        let mut folders = vec![source.clone()];
        while let Some(at) = folders.pop() {
            for entry in fs::read_dir(&at).unwrap() {
                let path = Utf8PathBuf::from_path_buf(entry.unwrap().path()).unwrap();
                let name = path.strip_prefix(&source).unwrap().to_string();
                let real = path.symlink_metadata().unwrap();
                let inode = found
                    .get(&name)
                    .unwrap_or_else(|| panic!("{name} is not read"));
                left.remove(&name);
                assert_eq!((inode.uid, inode.gid), (real.uid(), real.gid()), "{name}");
                match inode.kind {
                    Kind::Folder => folders.push(path.clone()),
                    Kind::Link => assert_eq!(
                        system.target(inode).unwrap(),
                        fs::read_link(&path).unwrap().to_str().unwrap()
                    ),
                    Kind::File => {
                        let content = fs::read(&path).unwrap();
                        assert!(system.read(inode, 16 << 20).unwrap() == content, "{name}");
                        assert_eq!(inode.mode, real.mode() & 0o7777, "{name}");
                        let again = system.find(&name).unwrap().unwrap();
                        assert_eq!(again.number, inode.number);
                        assert!(
                            system.read(inode, 3).is_err() || content.len() <= 3,
                            "the limit counts"
                        );
                    }
                    other => panic!("{name} is a {other:?}"),
                }
            }
        }
        assert!(left.is_empty(), "read and not there: {left:?}");
        assert!(system.find("nothing/here").unwrap().is_none());
    }
}

/// Whatever the bytes are, the answer is a value or an error, soon.
#[test]
fn damage_is_an_error_and_never_a_panic() {
    if !have("mke2fs") {
        return;
    }
    let (_folder, root) = folder();
    let (source, image) = (root.join("tree"), root.join("image"));
    for (path, size) in [("a/b/c", 5000), ("a/d", 10), ("e", 300_000)] {
        let path = source.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, vec![7; size]).unwrap();
    }
    symlink("a/b", source.join("l")).unwrap();
    made_by_mke2fs(
        &source,
        &image,
        &["-b", "1024", "-N", "64", "-O", "^has_journal"],
    );
    let len = fs::metadata(&image).unwrap().len();
    let sound = fs::read(&image).unwrap();
    // What decides anything lies at the start.
    let used = 600_000;
    let file = File::options().read(true).write(true).open(&image).unwrap();
    let (mut errors, mut fine) = (0, 0);
    let mut random = 42_u64;
    let mut next = |below: u64| {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) % below
    };
    for _ in 0..1500 {
        // Where the superblock, the groups, the inodes and the folders are; not where contents are.
        let at = match next(3) {
            0 => 1024 + next(300),
            _ => next(used),
        };
        let bytes = [0, 1, 0x7f, 0xff][usize::try_from(next(4)).unwrap()];
        let width = usize::try_from(1 + next(8)).unwrap();
        file.write_all_at(&vec![bytes; width], at).unwrap();
        let looked = Ext4::open(File::open(&image).unwrap(), 0, len).and_then(|system| {
            for (path, inode) in system.walk()? {
                system.find(&path)?;
                match inode.kind {
                    Kind::File => drop(system.hash(&inode)?),
                    Kind::Link => drop(system.target(&inode)?),
                    _ => {}
                }
            }
            Ok(())
        });
        match looked {
            Ok(()) => fine += 1,
            Err(_) => errors += 1,
        }
        let from = usize::try_from(at).unwrap();
        file.write_all_at(&sound[from..from + width], at).unwrap();
    }
    assert!(
        errors > 50 && fine > 50,
        "{errors} errors, {fine} fine: the damage is not where it should be"
    );
}

#[test]
fn other_forms_of_images_are_refused_by_name() {
    let (_folder, root) = folder();
    for (head, form) in [
        (&b"QFI\xfb"[..], "qcow2"),
        (b"vhdxfile", "VHDX"),
        (b"KDMV", "VMDK"),
        (b"conectix", "dynamic VHD"),
    ] {
        let path = root.join("image");
        let mut bytes = head.to_vec();
        bytes.resize(8192, 0);
        fs::write(&path, bytes).unwrap();
        let err = Disk::open(&path).unwrap_err();
        assert!(
            matches!(err, OpenError::Form { .. }) && err.to_string().contains(form),
            "{err}"
        );
        assert!(err.to_string().contains("qemu-img convert"), "{err}");
    }
    let path = root.join("image");
    fs::write(&path, "short").unwrap();
    assert!(matches!(Disk::open(&path), Err(OpenError::Short { .. })));
}

/// A base that Azure could start, as far as files say.
fn good(f: &Fixture) {
    let modules = "base/usr/lib/modules/6.1.0-10";
    f.write(
        &format!("{modules}/modules.builtin"),
        "kernel/fs/ext4/ext4.ko\nkernel/drivers/hv/hv_vmbus.ko\nkernel/drivers/scsi/hv_storvsc.ko\n\
         kernel/drivers/nvme/host/nvme.ko\nkernel/drivers/pci/controller/pci-hyperv.ko\n",
    );
    f.write(
        &format!("{modules}/modules.dep"),
        "kernel/drivers/net/hyperv/hv_netvsc.ko.xz:\nkernel/virtio_blk.ko:\n",
    );
    f.write("base/usr/bin/cloud-init", "");
    f.write(
        "base/etc/cloud/cloud.cfg.d/90.cfg",
        "datasource_list: [ Azure ]\n",
    );
    f.write("base/etc/shadow", "root:*:19000::::::\n");
    // As a base of ours has it, and one that is for containers only.
    let network = "base/etc/systemd/network";
    f.write(
        &format!("{network}/80-dhcp.network"),
        "[Match]\nType=ether\nKind=!*\n\n[Network]\nDHCP=yes\n",
    );
    f.write(
        &format!("{network}/80-container-host0.network"),
        "[Match]\nKind=veth\n[Network]\nDHCP=yes\n",
    );
}

fn rules(report: &Report, severity: Severity) -> Vec<(&'static str, String)> {
    let of = report
        .findings
        .iter()
        .filter(|finding| finding.severity == severity);
    of.map(|finding| (finding.rule, finding.place.clone()))
        .collect()
}

#[test]
fn an_image_that_azure_takes_has_no_finding_as_a_vhd_and_one_as_a_raw_disk() {
    if !have("debugfs") {
        return;
    }
    let f = Fixture::new();
    f.base();
    good(&f);
    let disk = f.root.join("disk.raw");
    build(&[f.layer("base")], &f.tools(), &options(), &disk).unwrap();
    let report = azure(&Disk::open(&disk).unwrap(), Way::AsIs);
    assert_eq!(
        rules(&report, Severity::Error),
        [("vhd-fixed", disk.to_string())]
    );
    assert_eq!(rules(&report, Severity::Warning), []);
    let exported = azure(&Disk::open(&disk).unwrap(), Way::Exported);
    assert_eq!(exported.findings, []);
    make_fixed_vhd(&disk, Digest::of(b"id")).unwrap();
    let report = azure(&Disk::open(&disk).unwrap(), Way::AsIs);
    assert_eq!(report.findings, []);
    let fits = |fits: &[super::lint::Fit]| -> Vec<_> {
        fits.iter()
            .filter(|fit| fit.fits)
            .map(|fit| fit.name)
            .collect()
    };
    assert_eq!(fits(&report.generations), ["V2"]);
    assert_eq!(fits(&report.controllers), ["SCSI", "NVMe"]);
    assert_eq!(fits(&report.os_states), ["Generalized", "Specialized"]);
    // Nobody signed the loader.
    assert_eq!(fits(&report.security_types), ["Standard", "TrustedLaunch"]);
    let trusted = &report.security_types[1];
    assert!(
        trusted.why.contains("secureBootEnabled=false"),
        "{}",
        trusted.why
    );
}

/// A file, its content, and the finding that it makes: none for what is right.
type Fault = (
    &'static str,
    &'static str,
    Option<(&'static str, &'static str)>,
);

/// Faults that are one image together, since disks take their time.
const FAULTS: [&[Fault]; 3] = [
    &[
        (
            "etc/fstab",
            "/dev/sdb1 none swap sw 0 0\n",
            Some(("no-swap", "/etc/fstab:1")),
        ),
        ("swapfile", "swap", Some(("no-swap", "/swapfile"))),
        (
            "etc/systemd/system/a.swap",
            "[Swap]",
            Some(("no-swap", "/etc/systemd/system/a.swap")),
        ),
        (
            "var/lib/dbus/machine-id",
            "0123456789abcdef\n",
            Some(("machine-id", "/var/lib/dbus/machine-id")),
        ),
        (
            "etc/ssh/ssh_host_rsa_key",
            "secret",
            Some(("host-keys", "/etc/ssh/ssh_host_rsa_key")),
        ),
        ("etc/ssh/ssh_host_rsa_key.pub", "public", None),
        (
            "etc/shadow",
            "root:*:1::::::\nadmin:$y$j9T$x:1::::::\n",
            Some(("passwords", "/etc/shadow")),
        ),
        (
            "root/.bash_history",
            "ls\n",
            Some(("leftovers", "/root/.bash_history")),
        ),
        (
            "home/me/.ssh/authorized_keys",
            "ssh-ed25519 AAAA me\n",
            Some(("leftovers", "/home/me/.ssh/authorized_keys")),
        ),
        (
            "var/lib/waagent/provisioned",
            "",
            Some(("leftovers", "/var/lib/waagent/provisioned")),
        ),
        (
            "etc/cloud/cloud.cfg.d/99.cfg",
            "datasource_list: [ NoCloud ]\n",
            Some(("provisioning", "/etc/cloud/cloud.cfg.d/99.cfg")),
        ),
        (
            "usr/lib/modules/6.1.0-10/modules.builtin",
            "kernel/fs/ext4/ext4.ko\nkernel/drivers/scsi/hv_storvsc.ko\n",
            Some(("hyperv-drivers", "kernel 6.1.0-10")),
        ),
        ("usr/bin/growpart", "", None),
    ],
    &[
        (
            "etc/fstab",
            "# root\nUUID=1 / ext4 rw,x-systemd.growfs 0 1\n/dev/vdb /data ext4 rw 0 2\n",
            Some(("root-by-id", "/etc/fstab:3")),
        ),
        (
            "etc/shadow",
            "root::1::::::\n",
            Some(("passwords", "/etc/shadow")),
        ),
        (
            "usr/lib/modules/6.1.0-10/modules.dep",
            "",
            Some(("hyperv-drivers", "kernel 6.1.0-10")),
        ),
        (
            "etc/systemd/network/80-dhcp.network",
            "[Match]\nName=eth0\n[Network]\nAddress=10.0.0.4/24\n",
            Some(("network-dhcp", "/etc")),
        ),
        ("usr/bin/azure-init", "", None),
    ],
    // A partition that repart makes larger needs no option in fstab.
    &[("etc/fstab", "UUID=1 / ext4 rw 0 1\n", None)],
];

#[test]
fn each_fault_of_an_image_is_found_with_its_place() {
    if !have("debugfs") {
        return;
    }
    for faults in FAULTS {
        let f = Fixture::new();
        f.base();
        good(&f);
        for (path, content, _) in faults {
            f.write(&format!("base/{path}"), content);
        }
        if faults
            .iter()
            .any(|(path, ..)| *path == "usr/bin/azure-init")
        {
            // cloud-init would see to the network.
            fs::remove_file(f.root.join("base/usr/bin/cloud-init")).unwrap();
        }
        let disk = f.root.join("disk.raw");
        build(&[f.layer("base")], &f.tools(), &options(), &disk).unwrap();
        let report = azure(&Disk::open(&disk).unwrap(), Way::Exported);
        let mut found: Vec<_> = report
            .findings
            .iter()
            .map(|finding| (finding.rule, finding.place.as_str()))
            .collect();
        let mut wanted: Vec<_> = faults.iter().filter_map(|(.., finding)| *finding).collect();
        found.sort_unstable();
        wanted.sort_unstable();
        assert_eq!(found, wanted);
    }
}

#[test]
fn what_is_wrong_outside_the_file_systems_is_found_too() {
    if !have("debugfs") {
        return;
    }
    let f = Fixture::new();
    f.base();
    good(&f);
    let disk = f.root.join("disk.vhd");
    let info = build(&[f.layer("base")], &f.tools(), &options(), &disk).unwrap();
    make_fixed_vhd(&disk, Digest::of(b"id")).unwrap();
    let len = info.disk_bytes;
    // The second GPT, the checksum of the footer, its kind, the loader.
    for (at, bytes, rule, severity) in [
        (len - 512, vec![0; 8], "partition-table", Severity::Warning),
        (len + 64, vec![0; 4], "vhd-fixed", Severity::Error),
        (len + 48, vec![0; 8], "vhd-fixed", Severity::Error),
        (1 << 20, vec![0; 4096], "gen2-boot", Severity::Error),
        (512, vec![0; 8], "partition-table", Severity::Error),
    ] {
        let broken = f.root.join("broken.vhd");
        fs::copy(&disk, &broken).unwrap();
        File::options()
            .write(true)
            .open(&broken)
            .unwrap()
            .write_all_at(&bytes, at)
            .unwrap();
        let report = azure(&Disk::open(&broken).unwrap(), Way::AsIs);
        let found = report
            .findings
            .iter()
            .any(|finding| (finding.rule, finding.severity) == (rule, severity));
        assert!(found, "{at}: {:?}", report.findings);
    }
    // One byte more than whole MiB.
    let odd = f.root.join("odd.raw");
    fs::copy(&disk, &odd).unwrap();
    File::options()
        .write(true)
        .open(&odd)
        .unwrap()
        .set_len(len + 1024)
        .unwrap();
    let report = azure(&Disk::open(&odd).unwrap(), Way::Exported);
    assert!(
        report
            .findings
            .iter()
            .any(|finding| finding.rule == "size-aligned"),
        "{:?}",
        report.findings
    );
}

/// A stub with a table of certificates, in which `name` stands.
fn signed_stub(name: &str) -> Vec<u8> {
    let plain = crate::image::tests::fake_stub();
    // Sixteen directories behind the header's fields, and the sections behind them.
    let (optional, old) = (0x98, 0x98 + 112);
    let mut pe = plain.clone();
    pe[0x94] = 240;
    pe[old..old + 168].fill(0);
    pe[old + 128..old + 168].copy_from_slice(&plain[old..old + 40]);
    let row = optional + 112 + 4 * 8;
    pe[row..row + 4].copy_from_slice(&u32::try_from(plain.len()).unwrap().to_le_bytes());
    pe[row + 4..row + 8].copy_from_slice(&u32::try_from(name.len()).unwrap().to_le_bytes());
    pe.extend(name.as_bytes());
    pe
}

/// A certificate of Microsoft's in the loader's table means that Secure Boot takes it.
#[test]
fn a_signed_loader_fits_more_than_an_unsigned_one() {
    if !have("debugfs") {
        return;
    }
    for (name, guest, trusted, confidential) in [
        (
            "CN=Microsoft Corporation UEFI CA 2011",
            true,
            "also with Secure Boot",
            true,
        ),
        (
            "CN=Microsoft Corporation UEFI CA 2011",
            false,
            "also with Secure Boot",
            false,
        ),
        ("CN=my own key", true, "signed by somebody", false),
    ] {
        let f = Fixture::new();
        f.base();
        good(&f);
        if guest {
            let builtin = "base/usr/lib/modules/6.1.0-10/modules.builtin";
            let text = fs::read_to_string(f.root.join(builtin)).unwrap();
            f.write(
                builtin,
                format!("{text}kernel/drivers/virt/coco/sev-guest.ko\n"),
            );
        }
        let tools = f.tools();
        f.write("stub", signed_stub(name));
        let disk = f.root.join("disk.raw");
        build(&[f.layer("base")], &tools, &options(), &disk).unwrap();
        let report = azure(&Disk::open(&disk).unwrap(), Way::Exported);
        assert_eq!(report.findings, [], "{name}");
        let [_, launch, vm] = &report.security_types[..] else {
            panic!("three types")
        };
        assert!(
            launch.fits && launch.why.contains(trusted),
            "{name}: {launch:?}"
        );
        assert_eq!(vm.fits, confidential, "{name}: {vm:?}");
    }
}

#[test]
fn two_images_differ_in_what_was_changed_and_in_nothing_else() {
    if !have("debugfs") {
        return;
    }
    let f = Fixture::new();
    let status = |list: &[(&str, &str)]| {
        let stanza = |(name, version): &(&str, &str)| {
            format!(
                "Package: {name}\nStatus: install ok installed\nVersion: {version}\nArchitecture: amd64\n\n"
            )
        };
        list.iter().map(stanza).collect::<String>()
    };
    f.base();
    f.write(
        "base/var/lib/dpkg/status",
        status(&[
            ("nginx", "1.22.1-9"),
            ("gone", "1"),
            ("back", "2.0"),
            ("same", "1"),
        ]),
    );
    f.write("base/srv/mode", "m");
    f.write("base/srv/gone", "gone");
    f.write("base/srv/touched", "t");
    let base = f.layer("base");
    let (one, two) = (f.root.join("one.raw"), f.root.join("two.raw"));
    build(std::slice::from_ref(&base), &f.tools(), &options(), &one).unwrap();
    let same = diff(&Disk::open(&one).unwrap(), &Disk::open(&one).unwrap()).unwrap();
    assert!(!same.has_changes(), "{same:?}");

    f.write(
        "base/var/lib/dpkg/status",
        status(&[
            ("nginx", "1.22.1-10"),
            ("back", "1.9"),
            ("new", "1"),
            ("same", "1"),
        ]),
    );
    f.write("base/srv/www/index.html", "two\n");
    f.write("base/srv/new", "new file");
    fs::remove_file(f.root.join("base/srv/gone")).unwrap();
    fs::remove_file(f.root.join("base/srv/link")).unwrap();
    symlink("/usr/lib/y", f.root.join("base/srv/link")).unwrap();
    fs::set_permissions(
        f.root.join("base/srv/mode"),
        fs::Permissions::from_mode(0o600),
    )
    .unwrap();
    // Another time alone is no change.
    File::options()
        .write(true)
        .open(f.root.join("base/srv/touched"))
        .unwrap()
        .set_modified(std::time::SystemTime::UNIX_EPOCH)
        .unwrap();
    build(&[f.layer("base")], &f.tools(), &options(), &two).unwrap();
    let found = diff(&Disk::open(&one).unwrap(), &Disk::open(&two).unwrap()).unwrap();
    let packages: Vec<_> = found
        .packages
        .iter()
        .map(|p| (p.name.as_str(), p.change))
        .collect();
    assert_eq!(
        packages,
        [
            ("back", Change::Downgraded),
            ("gone", Change::Removed),
            ("new", Change::Added),
            ("nginx", Change::Upgraded)
        ]
    );
    let files: Vec<_> = found
        .files
        .iter()
        .map(|file| (file.path.as_str(), file.change, file.what.join(", ")))
        .collect();
    let changed = |path, what: &str| (path, Change::Changed, what.to_owned());
    assert_eq!(
        files,
        [
            ("/srv/gone", Change::Removed, String::new()),
            changed("/srv/link", "target /usr/lib/x -> /usr/lib/y"),
            changed("/srv/mode", "mode 0644 -> 0600"),
            ("/srv/new", Change::Added, String::new()),
            changed("/srv/www/index.html", "content"),
            changed("/var/lib/dpkg/status", "content"),
        ]
    );
    assert_eq!(found.boot, [], "the boot partition is the same");
    assert!(found.has_changes() && found.from.disk == found.to.disk);
    assert_eq!(found.from.paths, found.to.paths);
}
