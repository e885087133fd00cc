//! A baked disk boots: the example is baked by a small farm, checked by `e2fsck` and `qemu-img`,
//! started by emulated firmware, and asked for its page.
//!
//! Emulation only: whether KVM works cannot be told from its device being there.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use oast_tests::documents::TEAM;
use oast_tests::farm::Plan;
use oast_tests::git::Copy;
use oast_tests::wait::{Seen, until_blocking};
use oast_tests::{http, need};

const OVMF: &str = "/usr/share/OVMF/OVMF_CODE_4M.fd";
const OVMF_VARS: &str = "/usr/share/OVMF/OVMF_VARS_4M.fd";
/// A bake from nothing on a busy machine.
const BAKE: Duration = Duration::from_secs(300);
/// Ten times what an emulated boot usually takes.
const BOOT: Duration = Duration::from_secs(400);

#[tokio::test(flavor = "multi_thread")]
async fn the_baked_disk_boots_and_serves_its_page() -> Result<()> {
    let test = "the_baked_disk_boots_and_serves_its_page";
    let Some(oast) = need::oast(test) else {
        return Ok(());
    };
    let programs = ["qemu-system-x86_64", "qemu-img", "e2fsck"];
    for program in programs {
        if !need::have(need::program(program), program, test) {
            return Ok(());
        }
    }
    if !need::have(Path::new(OVMF).exists(), OVMF, test) {
        return Ok(());
    }
    let farm = Plan::new(&oast)
        .members(1)
        .worker(&["source", "bake", "test", "publish"])
        .start()
        .await?;
    farm.apply(TEAM).await?;
    let copy = Copy::new()?;
    example(copy.folder())?;
    copy.commit("the example", &[("web/site/version", "31\n")])?;
    let cli = farm.cli().limit(BAKE).at(copy.folder());
    farm.explain(cli.good(&["run"]))?;

    let disk = farm.folder().join("web.raw");
    let vhd = farm.folder().join("web.vhd");
    cli.good(&[
        "image",
        "export",
        "web",
        "--format",
        "raw",
        "--output",
        &text(&disk),
    ])?;
    cli.good(&[
        "image",
        "export",
        "web",
        "--format",
        "vhd",
        "--output",
        &text(&vhd),
    ])?;
    check_vhd(&vhd, &disk)?;
    check_file_system(&disk)?;

    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let mut machine = boot(&disk, port, farm.folder())?;
    let console = farm.folder().join("console.log");
    let page = until_blocking("the page of the booted disk", BOOT, || {
        if let Some(status) = machine.0.try_wait()? {
            return Ok(Seen::Never(format!("the emulator ended with {status}")));
        }
        let answer = http::get(&format!("127.0.0.1:{port}"), "/version")?;
        Ok(match answer.status {
            200 => Seen::This(answer.body),
            status => Seen::NotYet(status.to_string()),
        })
    });
    let page = page.with_context(|| {
        let bytes = std::fs::read(&console).unwrap_or_default();
        let end = bytes.len().saturating_sub(4000);
        String::from_utf8_lossy(&bytes[end..]).into_owned()
    })?;
    ensure!(page.trim() == "31", "{page}");
    drop(machine);
    farm.finish().await
}

/// The example without its rollout, which needs a fleet.
fn example(folder: &Path) -> Result<()> {
    let from = need::workspace().join("examples/web");
    let copied = Command::new("cp")
        .arg("-r")
        .arg(from.join("."))
        .arg(folder)
        .status()?;
    ensure!(copied.success(), "the example cannot be copied");
    let path = folder.join("oast.yaml");
    let file = std::fs::read_to_string(&path)?;
    let (kept, _) = file
        .split_once("\nrollout:")
        .context("the example has a rollout")?;
    std::fs::write(path, format!("{kept}\n"))?;
    Ok(())
}

fn check_vhd(vhd: &Path, disk: &Path) -> Result<()> {
    let info = Command::new("qemu-img")
        .args(["info", "-f", "vpc", "--output", "json"])
        .arg(vhd)
        .output()?;
    ensure!(
        info.status.success(),
        "{}",
        String::from_utf8_lossy(&info.stderr)
    );
    let info: serde_json::Value = serde_json::from_slice(&info.stdout)?;
    let size = std::fs::metadata(vhd)?.len();
    ensure!(
        size % (1 << 20) == 512,
        "a fixed VHD is whole MiB and a footer, this has {size}"
    );
    ensure!(info["virtual-size"] == size - 512, "{info}");
    ensure!(size - 512 == std::fs::metadata(disk)?.len());
    let same = Command::new("qemu-img")
        .args(["compare", "-f", "raw", "-F", "vpc"])
        .args([disk, vhd])
        .output()?;
    ensure!(
        same.status.success(),
        "{}",
        String::from_utf8_lossy(&same.stdout)
    );
    Ok(())
}

/// The root partition as the partition table says, judged by e2fsck.
fn check_file_system(disk: &Path) -> Result<()> {
    const SECTOR: u64 = 512;
    let mut file = File::open(disk)?;
    let mut entries = [0_u8; 2 * 128];
    file.seek(SeekFrom::Start(2 * SECTOR))?;
    file.read_exact(&mut entries)?;
    let number = |at: usize| {
        let bytes = entries[at..at + 8].try_into().expect("eight bytes");
        u64::from_le_bytes(bytes)
    };
    // The second partition: first and last sector.
    let (first, last) = (number(128 + 32), number(128 + 40));
    ensure!(first > 0 && last > first, "sectors {first} to {last}");
    let root = disk.with_extension("ext4");
    let mut out = File::create(&root)?;
    file.seek(SeekFrom::Start(first * SECTOR))?;
    std::io::copy(&mut file.take((last + 1 - first) * SECTOR), &mut out)?;
    let checked = Command::new("e2fsck")
        .args(["-f", "-n"])
        .arg(&root)
        .output()?;
    let said = String::from_utf8_lossy(&checked.stdout).into_owned();
    std::fs::remove_file(&root)?;
    ensure!(checked.status.success(), "{said}");
    Ok(())
}

/// Ends the emulator with the test.
struct Machine(Child);

impl Drop for Machine {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn boot(disk: &Path, port: u16, folder: &Path) -> Result<Machine> {
    let console = folder.join("console.log");
    let vars: PathBuf = folder.join("vars.fd");
    std::fs::copy(OVMF_VARS, &vars)?;
    let machine = Command::new("qemu-system-x86_64")
        .args("-machine q35 -accel tcg,thread=multi -cpu qemu64 -smp 2 -m 1024".split(' '))
        .args("-display none -monitor none -no-reboot".split(' '))
        .arg("-serial")
        .arg(format!("file:{}", text(&console)))
        .arg("-drive")
        .arg(format!(
            "if=pflash,format=raw,unit=0,readonly=on,file={OVMF}"
        ))
        .arg("-drive")
        .arg(format!("if=pflash,format=raw,unit=1,file={}", text(&vars)))
        .arg("-drive")
        .arg(format!(
            "file={},if=virtio,format=raw,snapshot=on",
            text(disk)
        ))
        .arg("-netdev")
        .arg(format!("user,id=n0,hostfwd=tcp:127.0.0.1:{port}-:80"))
        .args(["-device", "virtio-net-pci,netdev=n0,romfile="])
        .env("TMPDIR", folder)
        .stdin(Stdio::null())
        .spawn()
        .context("start the emulator")?;
    Ok(Machine(machine))
}

fn text(path: &Path) -> String {
    path.display().to_string()
}
