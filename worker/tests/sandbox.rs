//! The sandbox for real: namespaces, mounts and processes of this machine. Without a harness, because the test binary
//! is also the helper that a sandbox re-executes (`internal sandbox`), which must have one thread.
//!
//! Runs as root; as an ordinary user through the farm namespace. The sandbox's root is an overlay over a few empty
//! folders with this machine's `/usr` bound in, so nothing needs to be downloaded.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use oast_daemon::clock::SystemClock;
use oast_daemon::task::Tasks;
use oast_daemon::testing::have;
use oast_worker::sandbox::netns::Dialer;
use oast_worker::sandbox::proxy::{Proxy, policy::Policy};
use oast_worker::sandbox::{
    Bind, Cgroup, Exit, IdMap, Launcher, Network, Output, Overlay, Root, SecretFile, Spec, cgroup,
};
use tokio::io::{AsyncBufReadExt, AsyncReadExt};

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.first().is_some_and(|arg| arg == "internal") {
        oast_worker::sandbox::entry();
    }
    // An ordinary user becomes root of the farm namespace first, like `oast worker` does.
    oast_daemon::isolate::enter()?;
    if let [mode, marker, folder] = args.as_slice()
        && mode == "hold"
    {
        return hold(marker, Path::new(folder));
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let bench = Bench::new()?;
    let result = runtime.block_on(bench.all());
    drop(runtime);
    fs::remove_dir_all(&bench.folder).context("remove what the tests made")?;
    result
}

/// The launcher that [`Bench::a_killed_launcher_leaves_nothing`] kills. Also proves that the death of
/// the thread that started a sandbox does not end it.
fn hold(marker: &str, folder: &Path) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let launcher = Launcher::new("/proc/self/exe", IdMap::detect()?);
    let bench = Bench {
        folder: folder.to_path_buf(),
        launcher,
    };
    let mut sandbox = std::thread::scope(|scope| {
        scope
            .spawn(|| {
                let spec = bench.shell("held", &format!("echo up; exec sleep {marker}"))?;
                runtime
                    .block_on(bench.launcher.spawn(spec, Output::Pipes))
                    .map_err(anyhow::Error::from)
            })
            .join()
            .expect("the thread does not panic")
    })?;
    runtime.block_on(read_line(&mut sandbox.stdout))?;
    say("up");
    runtime.block_on(sandbox.wait())?;
    Ok(())
}

struct Bench {
    folder: PathBuf,
    launcher: Launcher,
}

impl Bench {
    fn new() -> Result<Self> {
        let folder = std::env::temp_dir().join(format!("oast-sandbox-test-{}", std::process::id()));
        fs::create_dir_all(&folder)?;
        let idmap = IdMap::detect()?;
        let root = Some(idmap.host_id(0));
        for name in [
            "", "etc", "root", "var", "usr", "proc", "sys", "dev", "run", "tmp",
        ] {
            let made = folder.join("base").join(name);
            fs::create_dir(&made)?;
            std::os::unix::fs::chown(&made, root, root)?;
        }
        for name in ["bin", "sbin", "lib", "lib64"] {
            std::os::unix::fs::symlink(
                Path::new("usr").join(name),
                folder.join("base").join(name),
            )?;
        }
        Ok(Self {
            folder,
            launcher: Launcher::new("/proc/self/exe", idmap),
        })
    }

    fn overlay(&self, name: &str) -> Result<Root> {
        Ok(Root::Overlay(Overlay::prepare(
            &self.folder.join(name),
            vec![self.folder.join("base")],
            self.launcher.idmap(),
        )?))
    }

    fn shell(&self, name: &str, script: &str) -> Result<Spec> {
        let mut spec = Spec::step(self.overlay(name)?, ["sh", "-c", script]);
        spec.binds.push(Bind::read_only("/usr", "/usr"));
        Ok(spec)
    }

    async fn all(&self) -> Result<()> {
        macro_rules! tests {
            ($($name:ident),* $(,)?) => { $(
                self.$name().await.context(stringify!($name))?;
                say(&format!("ok {}", stringify!($name)));
            )* };
        }
        tests![
            inside_we_are_root_and_outside_the_mapped_owner,
            exit_codes_and_signals_come_through,
            a_missing_program_is_named,
            a_killed_sandbox_takes_its_daemons_along,
            nothing_of_the_host_is_in_view,
            mapped_binds_show_owners_and_read_only_is_locked,
            secrets_live_in_memory_only,
            without_a_network_there_is_only_loopback,
            the_proxy_reaches_what_is_allowed_and_nothing_of_ours,
            the_dialer_reaches_a_server_inside,
            a_killed_launcher_leaves_nothing,
            an_images_own_init_boots_and_powers_off,
        ];
        self.time_of_one_sandbox().await
    }

    async fn sh(&self, name: &str, script: &str) -> Result<(Exit, String)> {
        let done = self
            .launcher
            .run(self.shell(name, script)?, 1 << 20)
            .await?;
        let text = [done.stdout, done.stderr].concat();
        Ok((done.exit, String::from_utf8_lossy(&text).into_owned()))
    }

    async fn inside_we_are_root_and_outside_the_mapped_owner(&self) -> Result<()> {
        let script = "id -u; touch /etc/made; touch /etc/given; chown 33:33 /etc/given";
        let (exit, text) = self.sh("owner", script).await?;
        ensure!(exit.success() && text == "0\n", "{exit}: {text}");
        let base = self.launcher.idmap().host_id(0);
        let owner = |name: &str| -> Result<u32> {
            Ok(fs::metadata(self.folder.join("owner/upper/etc").join(name))?.uid())
        };
        ensure!(owner("made")? == base, "made belongs to {}", owner("made")?);
        ensure!(
            owner("given")? == base + 33,
            "given belongs to {}",
            owner("given")?
        );
        Ok(())
    }

    async fn exit_codes_and_signals_come_through(&self) -> Result<()> {
        let (exit, text) = self.sh("code", "echo out; echo err >&2; exit 7").await?;
        ensure!(
            exit == Exit::Code(7) && text == "out\nerr\n",
            "{exit}: {text}"
        );
        let (exit, _) = self.sh("signal", "kill -9 $$").await?;
        ensure!(exit == Exit::Signal(9), "{exit}");
        Ok(())
    }

    async fn a_missing_program_is_named(&self) -> Result<()> {
        let mut spec = self.shell("missing", "")?;
        spec.command = vec!["no-such-program".into()];
        let error = self.launcher.run(spec, 0).await.expect_err("it cannot run");
        ensure!(
            error.to_string().contains("execve no-such-program"),
            "{error}"
        );
        let mut spec = self.shell("nofolder", "")?;
        spec.cwd = "/not/there".into();
        let error = self.launcher.run(spec, 0).await.expect_err("it cannot run");
        ensure!(error.to_string().contains("/not/there"), "{error}");
        Ok(())
    }

    async fn a_killed_sandbox_takes_its_daemons_along(&self) -> Result<()> {
        let marker = marker();
        let script =
            format!("setsid sleep {marker} & setsid sleep {marker} & echo up; sleep {marker}");
        let mut sandbox = self
            .launcher
            .spawn(self.shell("kill", &script)?, Output::Pipes)
            .await?;
        read_line(&mut sandbox.stdout).await?;
        until(|| Ok(running(&marker)? >= 3))
            .await
            .context("not all run")?;
        sandbox.kill();
        ensure!(sandbox.wait().await? == Exit::Signal(9));
        ensure!(running(&marker)? == 0, "{} are left", running(&marker)?);
        // A command that ends by itself takes what it left in the background along, too.
        let (exit, _) = self
            .sh("daemon", &format!("setsid sleep {marker} & exit 0"))
            .await?;
        ensure!(exit.success() && running(&marker)? == 0);
        Ok(())
    }

    async fn nothing_of_the_host_is_in_view(&self) -> Result<()> {
        let host = std::process::id();
        let script =
            format!("ls / ; cat /proc/mounts; ls /proc/{host} 2>&1; cat /proc/kcore | head -c 1");
        let (_, text) = self.sh("view", &script).await?;
        ensure!(
            !text.contains(&*self.folder.to_string_lossy()),
            "the caller's folder shows: {text}"
        );
        ensure!(
            text.contains(&format!("/proc/{host}': No such file")),
            "{text}"
        );
        let script = "for c in 'mount -t tmpfs none /tmp' 'hostname evil' 'mknod /dev/x b 8 0' \
             'unshare -m true' 'chroot /proc/1/root ls /work'; do $c && echo \"escaped: $c\"; done";
        let (_, text) = self.sh("escape", script).await?;
        ensure!(!text.contains("escaped"), "{text}");
        Ok(())
    }

    async fn mapped_binds_show_owners_and_read_only_is_locked(&self) -> Result<()> {
        let source = self.folder.join("source");
        fs::create_dir_all(&source)?;
        fs::write(source.join("file"), "content")?;
        let mut spec = self.shell(
            "bind",
            "stat -c %u /src/file; cat /src/file; echo x >> /src/file",
        )?;
        spec.binds.push(Bind::read_only(&source, "/src").mapped());
        let done = self.launcher.run(spec, 1000).await?;
        let text = String::from_utf8_lossy(&done.stdout).into_owned();
        ensure!(text == "0\ncontent", "{text}");
        ensure!(
            String::from_utf8_lossy(&done.stderr).contains("Read-only"),
            "it was written"
        );
        Ok(())
    }

    async fn secrets_live_in_memory_only(&self) -> Result<()> {
        let mut spec = self.shell(
            "secret",
            "cat /run/secrets/token; stat -c %a /run/secrets/token; echo $LEAK",
        )?;
        let data = b"s3cret\n".to_vec();
        spec.secrets.push(SecretFile {
            target: "/run/secrets/token".into(),
            mode: 0o400,
            data,
        });
        ensure!(
            !format!("{spec:?}").contains("115, 51"),
            "the secret shows in Debug"
        );
        let done = self.launcher.run(spec, 1000).await?;
        let text = String::from_utf8_lossy(&done.stdout).into_owned();
        ensure!(text == "s3cret\n400\n\n", "{text}");
        ensure!(
            !self.folder.join("secret/upper/run/secrets").exists(),
            "it is on disk"
        );
        Ok(())
    }

    async fn without_a_network_there_is_only_loopback(&self) -> Result<()> {
        let server = std::net::TcpListener::bind("127.0.0.1:0")?;
        let port = server.local_addr()?.port();
        let script = format!("cat /proc/net/dev; exec 3<>/dev/tcp/127.0.0.1/{port}");
        let mut spec = self.shell("alone", "")?;
        spec.command = vec!["bash".into(), "-c".into(), script];
        let done = self.launcher.run(spec, 10_000).await?;
        let text = String::from_utf8_lossy(&done.stdout).into_owned();
        ensure!(text.lines().count() == 3 && text.contains("lo:"), "{text}");
        ensure!(!done.exit.success(), "it reached the host's loopback");
        let mut spec = self.shell("host", "true")?;
        spec.network = Network::Host;
        let error = self.launcher.run(spec, 0).await.expect_err("not allowed");
        ensure!(error.to_string().contains("allow_host_network"), "{error}");
        Ok(())
    }

    async fn the_proxy_reaches_what_is_allowed_and_nothing_of_ours(&self) -> Result<()> {
        use std::io::{Read, Write};
        let server = std::net::TcpListener::bind("127.0.0.1:0")?;
        let port = server.local_addr()?.port();
        let other = std::net::TcpListener::bind("127.0.0.1:0")?;
        let other_port = other.local_addr()?.port();
        other.set_nonblocking(true)?;
        std::thread::spawn(move || {
            for stream in server.incoming().flatten() {
                let mut stream = stream;
                let mut seen = Vec::new();
                let mut piece = [0; 1024];
                while let Ok(length @ 1..) = stream.read(&mut piece) {
                    seen.extend_from_slice(&piece[..length]);
                    while let Some(end) = seen.windows(4).position(|window| window == b"\r\n\r\n") {
                        let head = String::from_utf8_lossy(&seen[..end]).into_owned();
                        seen.drain(..end + 4);
                        let line = head.lines().next().unwrap_or_default();
                        let proxied = head.to_lowercase().contains("proxy-");
                        let body = format!("{line}|{proxied}\n");
                        let answer = format!(
                            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}",
                            body.len()
                        );
                        if stream.write_all(answer.as_bytes()).is_err() {
                            break;
                        }
                    }
                }
            }
        });
        let policy = Policy {
            allow: vec![format!("127.0.0.1:{port}").parse()?],
            deny: Vec::new(),
        };
        let tasks = Tasks::new(SystemClock::shared(), Default::default());
        let proxy = Proxy::new(policy, tasks, SystemClock::shared());
        // no_proxy keeps curl from asking the proxy for loopback addresses, which is what is tried here.
        let script = format!(
            "export no_proxy= NO_PROXY=; c='curl -sS --max-time 10'; \
             $c http://127.0.0.1:{port}/a http://127.0.0.1:{port}/b?c=d; \
             $c -p http://127.0.0.1:{port}/tunnel; \
             $c http://127.0.0.1:{other_port}/; $c http://169.254.169.254/metadata/instance; \
             $c -p http://169.254.169.254:80/; $c http://localhost:{other_port}/; \
             $c http://[::ffff:7f00:1]:{other_port}/; \
             $c --noproxy '*' http://169.254.169.254/ ; $c --noproxy '*' http://127.0.0.1:{other_port}/"
        );
        let mut spec = self.shell("proxy", &script)?;
        spec.network = Network::Proxy;
        let mut sandbox = self.launcher.spawn(spec, Output::Pipes).await?;
        let egress = proxy.serve(sandbox.listener.take().context("a listener")?)?;
        let mut text = String::new();
        sandbox
            .stdout
            .take()
            .context("stdout")?
            .read_to_string(&mut text)
            .await?;
        let mut errors = String::new();
        sandbox
            .stderr
            .take()
            .context("stderr")?
            .read_to_string(&mut errors)
            .await?;
        sandbox.wait().await?;
        ensure!(
            text.contains("GET /a HTTP/1.1|false\nGET /b?c=d HTTP/1.1|false"),
            "{text}{errors}"
        );
        ensure!(
            text.contains("GET /tunnel HTTP/1.1|false"),
            "{text}{errors}"
        );
        ensure!(
            text.matches("is not reachable from a step").count() == 4,
            "{text}{errors}"
        );
        ensure!(
            errors.contains("403"),
            "the tunnel was not refused: {errors}"
        );
        ensure!(
            errors.matches("onnect to").count() >= 2,
            "a direct way out: {errors}"
        );
        ensure!(other.accept().is_err(), "the other listener was reached");
        let counts = egress.counts();
        ensure!(
            counts.requests == 6 && counts.tunnels == 1 && counts.refused == 5,
            "{counts:?}"
        );
        ensure!(egress.refusals().len() == 5);
        Ok(())
    }

    async fn the_dialer_reaches_a_server_inside(&self) -> Result<()> {
        let script = "exec python3 -c 'import socket
s=socket.create_server((\"10.77.0.5\",80)); print(\"up\",flush=True); c=s.accept()[0]; c.sendall(b\"hello\")'";
        let mut spec = self.shell("dial", script)?;
        spec.addresses = vec!["10.77.0.5".parse()?];
        let mut sandbox = self.launcher.spawn(spec, Output::Pipes).await?;
        read_line(&mut sandbox.stdout).await?;
        let dialer = Dialer::enter(sandbox.namespace.take().context("a namespace")?).await?;
        let mut text = String::new();
        dialer
            .connect("10.77.0.5:80".parse()?)
            .await?
            .read_to_string(&mut text)
            .await?;
        ensure!(text == "hello", "{text}");
        let refused = dialer
            .connect("127.0.0.1:81".parse()?)
            .await
            .expect_err("nobody listens");
        ensure!(
            refused.kind() == std::io::ErrorKind::ConnectionRefused,
            "{refused}"
        );
        ensure!(sandbox.wait().await?.success());
        Ok(())
    }

    /// A launcher of its own (this binary again) starts a sandbox and is killed with SIGKILL.
    async fn a_killed_launcher_leaves_nothing(&self) -> Result<()> {
        let marker = marker();
        let mut launcher = tokio::process::Command::new("/proc/self/exe")
            .args(["hold", &marker])
            .arg(&self.folder)
            .stdout(std::process::Stdio::piped())
            .spawn()?;
        read_line(&mut launcher.stdout).await?;
        ensure!(running(&marker)? >= 1, "nothing runs");
        launcher.start_kill()?;
        launcher.wait().await?;
        until(|| Ok(running(&marker)? == 0))
            .await
            .context("processes are left")?;
        // And a monitor that is killed: the kernel ends process 1 inside.
        let script = format!("echo up; exec sleep {marker}");
        let mut sandbox = self
            .launcher
            .spawn(self.shell("monitor", &script)?, Output::Pipes)
            .await?;
        read_line(&mut sandbox.stdout).await?;
        let parent = fs::read_to_string(format!("/proc/{}/stat", sandbox.init_pid()))?;
        let monitor: i32 = parent.split(' ').nth(3).context("a parent")?.parse()?;
        // SAFETY: plain numbers.
        unsafe { libc::kill(monitor, libc::SIGKILL) };
        ensure!(
            sandbox.wait().await.is_err(),
            "a dead monitor has nothing to say"
        );
        until(|| Ok(running(&marker)? == 0))
            .await
            .context("the sandbox outlived its monitor")
    }

    /// This machine's systemd over a root with one target and one service, in a control group.
    async fn an_images_own_init_boots_and_powers_off(&self) -> Result<()> {
        let systemd = "/usr/lib/systemd/systemd";
        if !have(Path::new(systemd).exists(), systemd, "own init")
            || !have(
                cgroup::available().is_ok(),
                "a writable cgroup2 hierarchy",
                "own init",
            )
        {
            return Ok(());
        }
        let farm = format!("test-{}", std::process::id());
        let spec = |name: &str| -> Result<Spec> {
            let root = self.overlay(name)?;
            let group = Cgroup {
                farm: farm.clone(),
                name: name.into(),
            };
            let mut spec = Spec::instance(root, "web-0", group);
            spec.command = vec![systemd.into(), "--log-target=console".into()];
            spec.binds.push(Bind::read_only("/usr", "/usr"));
            spec.addresses = vec!["10.77.0.9".parse()?];
            let units = self.folder.join(name).join("upper/etc/systemd/system");
            fs::create_dir_all(&units)?;
            fs::write(
                units.join("default.target"),
                "[Unit]\nDescription=All\nWants=page.service\n",
            )?;
            fs::write(
                units.join("page.service"),
                "[Unit]\nDefaultDependencies=no\n[Service]\n\
                 ExecStart=/bin/sh -c 'echo PAGE $(id -u) $(hostname) $$(cat /proc/1/comm); exec sleep 1000'\n\
                 StandardOutput=tty\n",
            )?;
            for made in ["upper/etc", "upper/etc/systemd", "upper/etc/systemd/system"] {
                let root = Some(self.launcher.idmap().host_id(0));
                std::os::unix::fs::chown(self.folder.join(name).join(made), root, root)?;
            }
            Ok(spec)
        };
        let start = Instant::now();
        let mut sandbox = self.launcher.spawn(spec("own")?, Output::Pipes).await?;
        let console = sandbox.stdout.take().context("stdout")?;
        let mut lines = tokio::io::BufReader::new(console).lines();
        let mut seen = String::new();
        let page = async {
            while let Some(line) = lines.next_line().await? {
                seen.push_str(&line);
                seen.push('\n');
                if line.contains("PAGE 0 web-0 systemd") {
                    return Ok(());
                }
            }
            Err(anyhow::anyhow!("the console closed"))
        };
        let page = tokio::time::timeout(Duration::from_secs(30), page).await;
        ensure!(matches!(page, Ok(Ok(()))), "{page:?}: {seen}");
        say(&format!(
            "an init of its own serves after {:?}",
            start.elapsed()
        ));
        sandbox.stop();
        let rest = async { while lines.next_line().await.is_ok_and(|line| line.is_some()) {} };
        let (exit, ()) = tokio::join!(
            tokio::time::timeout(Duration::from_secs(30), sandbox.wait()),
            rest
        );
        say(&format!("and powers off with {}", exit??));
        let group = cgroup::hierarchy()?.join(format!("oast-{farm}"));
        ensure!(!group.exists(), "its control group is left");

        // Killed with its monitor: the process dies, the control group stays for a sweep.
        let sandbox = self.launcher.spawn(spec("swept")?, Output::Pipes).await?;
        let init = sandbox.init_pid();
        let stat = fs::read_to_string(format!("/proc/{init}/stat"))?;
        let fields = stat.rsplit_once(") ").context("a status")?.1;
        let monitor: i32 = fields.split(' ').nth(1).context("a parent")?.parse()?;
        // SAFETY: plain numbers.
        unsafe { libc::kill(monitor, libc::SIGKILL) };
        until(|| Ok(!Path::new(&format!("/proc/{init}")).exists())).await?;
        ensure!(group.exists(), "nothing to sweep");
        cgroup::sweep(&farm)?;
        ensure!(!group.exists(), "the sweep left it");
        Ok(())
    }

    async fn time_of_one_sandbox(&self) -> Result<()> {
        const TIMES: u32 = 30;
        let start = Instant::now();
        for index in 0..TIMES {
            let (exit, _) = self.sh(&format!("time{index}"), "exit 0").await?;
            ensure!(exit.success());
        }
        say(&format!("one sandbox takes {:?}", start.elapsed() / TIMES));
        Ok(())
    }
}

#[expect(
    clippy::disallowed_macros,
    reason = "a test without a harness reports by itself"
)]
fn say(text: &str) {
    println!("{text}");
}

/// A sleeping time that no other process uses, so that its users can be counted.
fn marker() -> String {
    static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let next = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    format!("{}.{}", 100_000 + std::process::id(), next)
}

fn running(marker: &str) -> Result<usize> {
    let mut count = 0;
    for entry in fs::read_dir("/proc")? {
        let path = entry?.path().join("cmdline");
        let line = fs::read(path).unwrap_or_default();
        count += usize::from(
            line.split(|byte| *byte == 0)
                .any(|word| word == marker.as_bytes()),
        );
    }
    Ok(count)
}

async fn read_line(stream: &mut Option<tokio::process::ChildStdout>) -> Result<String> {
    let mut line = String::new();
    let stream = stream.as_mut().context("stdout")?;
    let mut reader = tokio::io::BufReader::new(stream);
    tokio::time::timeout(Duration::from_secs(20), reader.read_line(&mut line)).await??;
    Ok(line)
}

async fn until(mut done: impl FnMut() -> Result<bool>) -> Result<()> {
    for _ in 0..500 {
        if done()? {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    anyhow::bail!("not within 5 s")
}
