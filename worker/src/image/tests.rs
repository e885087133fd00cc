use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::process::Command;

use camino::{Utf8Path, Utf8PathBuf};
use oast_artifacts::{ArtifactStore, Digest};
use rustix::fs::{CWD, FileType, Mode, XattrFlags, lsetxattr, mknodat};

use super::*;
use crate::bake::layer::{PackOptions, UnpackedLayer, pack};

pub(crate) struct Fixture {
    _folder: tempfile::TempDir,
    pub root: Utf8PathBuf,
    store: ArtifactStore,
}

impl Fixture {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let root = Utf8PathBuf::from_path_buf(folder.path().to_owned()).unwrap();
        let store = ArtifactStore::open(&root.join("artifacts")).unwrap();
        Self {
            _folder: folder,
            root,
            store,
        }
    }

    pub fn layer(&self, name: &str) -> UnpackedLayer {
        let folder = self.root.join(name);
        let options = PackOptions {
            key: Digest::of(name.as_bytes()),
            parent: None,
            host_base: rustix::process::geteuid().as_raw(),
            clamp_mtime: Some(FIXED_TIME),
        };
        let (record, index) = pack(&self.store, &folder, &options).unwrap();
        UnpackedLayer {
            key: record.key,
            content: record.content(),
            index,
            root: folder,
            held: None,
        }
    }

    pub fn write(&self, path: &str, content: impl AsRef<[u8]>) -> Utf8PathBuf {
        let path = self.root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        path
    }

    /// A root tree with a kernel in name only.
    pub fn base(&self) -> UnpackedLayer {
        self.write("base/boot/vmlinuz-6.1.0-9", b"old kernel");
        self.write("base/boot/vmlinuz-6.1.0-10", vec![7; 5000]);
        let modules = "base/usr/lib/modules/6.1.0-10";
        self.write(
            &format!("{modules}/modules.builtin"),
            "kernel/fs/ext4/ext4.ko\n",
        );
        self.write(&format!("{modules}/modules.dep"), "kernel/virtio_blk.ko:\n");
        self.write(&format!("{modules}/kernel/virtio_blk.ko"), "module");
        self.write("base/etc/hostname", "base\n");
        self.write("base/etc/fstab", "# UNCONFIGURED\n");
        self.write("base/etc/machine-id", "0123456789abcdef0123456789abcdef\n");
        self.write("base/srv/www/index.html", "one\n");
        self.write("base/srv/www/old/deep/page", "old\n");
        self.write("base/srv/kept", vec![b'k'; 70_000]);
        self.write("base/srv/name with \"quotes\" and blanks", "q\n");
        self.write("base/srv/<12>", "not an inode\n");
        self.write(
            "base/var/lib/dpkg/status",
            "Package: nginx\nStatus: install ok installed\nVersion: 1\nArchitecture: amd64\n",
        );
        let first = self.write("base/srv/first", "linked\n");
        fs::hard_link(&first, self.root.join("base/srv/second")).unwrap();
        symlink("/usr/lib/x", self.root.join("base/srv/link")).unwrap();
        fs::set_permissions(&first, fs::Permissions::from_mode(0o4711)).unwrap();
        lsetxattr(
            self.root.join("base/srv/kept").as_std_path(),
            "user.note",
            b"a\0b",
            XattrFlags::empty(),
        )
        .unwrap();
        mknodat(
            CWD,
            self.root.join("base/srv/fifo").as_std_path(),
            FileType::Fifo,
            Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        self.layer("base")
    }

    pub fn tools(&self) -> Tools {
        Tools {
            stub: self.write("stub", fake_stub()),
            busybox: self.write("busybox", b"#!/bin/false"),
        }
    }
}

/// The smallest PE32+ header that has room for sections.
pub(crate) fn fake_stub() -> Vec<u8> {
    let mut pe = vec![0; 0x600];
    pe[..2].copy_from_slice(b"MZ");
    pe[0x3c] = 0x80;
    pe[0x80..0x84].copy_from_slice(b"PE\0\0");
    pe[0x84..0x86].copy_from_slice(&0x8664_u16.to_le_bytes());
    pe[0x86] = 1;
    pe[0x94] = 112;
    pe[0x98..0x9a].copy_from_slice(&0x20b_u16.to_le_bytes());
    let mut put = |at: usize, value: u32| pe[at..at + 4].copy_from_slice(&value.to_le_bytes());
    put(0x98 + 32, 0x1000);
    put(0x98 + 36, 0x200);
    put(0x98 + 60, 0x400);
    let row = 0x98 + 112;
    put(row + 8, 0x123);
    put(row + 12, 0x1000);
    put(row + 16, 0x200);
    put(row + 20, 0x400);
    pe[row..row + 5].copy_from_slice(b".text");
    pe
}

pub(crate) fn options() -> DiskOptions {
    DiskOptions {
        root_bytes: 96 << 20,
        ..DiskOptions::default()
    }
}

/// `false`, loudly, where the host lacks a tool.
pub(crate) fn have(tool: &str) -> bool {
    let found = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"]
        .iter()
        .any(|folder| Utf8Path::new(folder).join(tool).exists());
    if !found {
        eprintln!("SKIPPED: {tool} is not installed");
    }
    found
}

/// What debugfs says about a disk's root file system.
fn ask(disk: &Utf8Path, request: &str) -> String {
    let checked = check(disk).unwrap();
    let device = format!("{disk}?offset={}", checked.root_start);
    let output = Command::new("/usr/sbin/debugfs")
        .args(["-R", request, &device])
        .output()
        .unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn a_disk_has_every_file_of_its_layer_and_the_engine_s_defaults() {
    if !have("debugfs") {
        return;
    }
    let f = Fixture::new();
    let disk = f.root.join("disk.raw");
    let info = build(&[f.base()], &f.tools(), &options(), &disk).unwrap();
    assert_eq!((info.kernel.as_str(), info.packages.len()), ("6.1.0-10", 1));
    let checked = check(&disk).unwrap();
    assert_eq!((checked.disk_bytes, checked.vhd), (info.disk_bytes, false));

    assert_eq!(ask(&disk, "cat /srv/www/index.html"), "one\n");
    assert_eq!(
        ask(&disk, "cat \"/srv/name with \"\"quotes\"\" and blanks\""),
        "q\n"
    );
    assert_eq!(ask(&disk, "cat \"/srv/./<12>\""), "not an inode\n");
    assert_eq!(ask(&disk, "cat /srv/kept").len(), 70_000);
    assert_eq!(ask(&disk, "cat /etc/hostname"), "base\n");
    assert_eq!(
        ask(&disk, "cat /etc/machine-id"),
        "",
        "an instance makes its own at first boot"
    );
    assert!(ask(&disk, "cat /etc/fstab").contains(&info.root_uuid));
    let stat = ask(&disk, "stat /srv/second");
    assert!(
        stat.contains("Mode:  04711") && stat.contains("Links: 2"),
        "{stat}"
    );
    assert!(stat.contains("User:     0"), "{stat}");
    assert!(ask(&disk, "stat /srv/link").contains("/usr/lib/x"));
    assert!(ask(&disk, "stat /srv/fifo").contains("FIFO"));
    assert!(ask(&disk, "ea_list /srv/kept").contains("user.note"));
    assert!(ask(&disk, "stat /tmp").contains("01777"));
    assert!(ask(&disk, "stat /srv/www").contains(&format!("{FIXED_TIME:#x}")));
}

#[test]
fn a_patched_disk_is_the_disk_of_its_chain() {
    if !have("debugfs") {
        return;
    }
    let f = Fixture::new();
    let (base, tools) = (f.base(), f.tools());
    f.write("app/srv/www/index.html", "two\n");
    f.write("app/srv/www/new/page", "new\n");
    f.write("app/srv/link", "a file now\n");
    f.write("app/etc/fstab", "mine\n");
    for gone in ["app/srv/first", "app/srv/www/old"] {
        let path = f.root.join(gone);
        mknodat(
            CWD,
            path.as_std_path(),
            FileType::CharacterDevice,
            Mode::empty(),
            0,
        )
        .unwrap();
    }
    let app = f.layer("app");
    let parent = f.root.join("parent.raw");
    build(std::slice::from_ref(&base), &tools, &options(), &parent).unwrap();
    let before = fs::read(&parent).unwrap();
    let chain = [base, app];
    let patched = f.root.join("patched.raw");
    let info = patch(&parent, &chain, &tools, &options(), &patched).unwrap();
    assert_eq!(
        fs::read(&parent).unwrap(),
        before,
        "the parent stays as it is"
    );

    assert_eq!(ask(&patched, "cat /srv/www/index.html"), "two\n");
    assert_eq!(ask(&patched, "cat /srv/www/new/page"), "new\n");
    assert_eq!(ask(&patched, "cat /srv/link"), "a file now\n");
    assert_eq!(ask(&patched, "cat /etc/fstab"), "mine\n");
    assert_eq!(ask(&patched, "cat /srv/second"), "linked\n");
    assert!(ask(&patched, "stat /srv/second").contains("Links: 1"));
    assert!(!ask(&patched, "ls /srv/www").contains("old"));
    assert!(!ask(&patched, "ls /srv").contains("first"));

    let whole = f.root.join("whole.raw");
    assert_eq!(build(&chain, &tools, &options(), &whole).unwrap(), info);
    assert!(
        fs::read(&whole).unwrap() == fs::read(&patched).unwrap(),
        "one chain, one disk"
    );
    // And it can be patched again.
    f.write("more/boot/vmlinuz-6.1.0-11", "a kernel without modules");
    let chain = [chain[0].clone(), chain[1].clone(), f.layer("more")];
    let err = patch(
        &patched,
        &chain,
        &tools,
        &options(),
        &f.root.join("next.raw"),
    )
    .unwrap_err();
    assert!(matches!(err, DiskError::Initrd(_)), "{err}");
    assert!(!f.root.join("next.raw").exists());
}

#[test]
fn a_vhd_is_what_other_tools_take_for_one() {
    if !have("debugfs") || !have("qemu-img") {
        return;
    }
    let f = Fixture::new();
    let disk = f.root.join("disk.vhd");
    let info = build(&[f.base()], &f.tools(), &options(), &disk).unwrap();
    make_fixed_vhd(&disk, Digest::of(b"image")).unwrap();
    assert!(check(&disk).unwrap().vhd);
    let output = Command::new("qemu-img")
        .args(["info", "-f", "vpc", "--output=json", disk.as_str()])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains(&format!("\"virtual-size\": {}", info.disk_bytes)),
        "{text}"
    );
    let compare = Command::new("qemu-img")
        .args([
            "compare",
            "-f",
            "vpc",
            "-F",
            "raw",
            disk.as_str(),
            disk.as_str(),
        ])
        .output()
        .unwrap();
    // The raw reading sees the footer as one sector more.
    let text = String::from_utf8_lossy(&compare.stdout);
    assert!(text.contains("size") || compare.status.success(), "{text}");
}

#[test]
fn damage_is_found_by_the_check() {
    if !have("debugfs") {
        return;
    }
    let f = Fixture::new();
    let disk = f.root.join("disk.raw");
    build(&[f.base()], &f.tools(), &options(), &disk).unwrap();
    let root = check(&disk).unwrap().root_start;
    let len = fs::metadata(&disk).unwrap().len();
    // Primary table, its backup, the boot loader's file system, the root's superblock.
    for (at, word) in [
        (512, "GPT"),
        (len - 512, "GPT"),
        (1 << 20, "EFI system"),
        (root + 1024, "root file system"),
    ] {
        let copy = f.root.join("damaged.raw");
        fs::copy(&disk, &copy).unwrap();
        File::options()
            .write(true)
            .open(&copy)
            .unwrap()
            .write_all_at(&[0xff; 64], at)
            .unwrap();
        let err = check(&copy).unwrap_err();
        assert!(err.to_string().contains(word), "{at}: {err}");
    }
}

#[test]
fn a_disk_that_is_too_small_says_so_and_leaves_nothing() {
    if !have("debugfs") {
        return;
    }
    let f = Fixture::new();
    let mut noise = vec![0; 60 << 20];
    getrandom_like(&mut noise);
    f.write("base/srv/large", &noise);
    let folder = f.root.join("out");
    fs::create_dir(&folder).unwrap();
    let options = DiskOptions {
        root_bytes: disk::MIN_ROOT_BYTES,
        ..options()
    };
    let odd = DiskOptions {
        root_bytes: (1 << 30) + 1,
        ..options.clone()
    };
    let base = [f.base()];
    let err = build(&base, &f.tools(), &odd, &folder.join("disk")).unwrap_err();
    assert!(matches!(err, DiskError::RootSize { .. }), "{err}");
    let err = build(&base, &f.tools(), &options, &folder.join("disk")).unwrap_err();
    assert!(
        err.to_string().contains("raise the image's disk size"),
        "{err}"
    );
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
}

/// Bytes without runs of zeros; need not be random.
fn getrandom_like(bytes: &mut [u8]) {
    for (at, piece) in bytes.chunks_mut(32).enumerate() {
        piece.copy_from_slice(&Digest::of(&at.to_le_bytes()).as_bytes()[..piece.len()]);
    }
}

#[test]
fn an_image_without_a_kernel_is_no_disk() {
    let f = Fixture::new();
    f.write("base/etc/hostname", "x\n");
    let err = build(
        &[f.layer("base")],
        &f.tools(),
        &options(),
        &f.root.join("disk"),
    )
    .unwrap_err();
    assert!(
        matches!(err, DiskError::NoKernel | DiskError::Ext4(_)),
        "{err}"
    );
}
