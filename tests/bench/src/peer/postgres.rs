//! A PostgreSQL primary with two standbys, one of which must have written a commit before it is
//! acknowledged: the same majority of three that Raft asks for. Driven by its own pgbench.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

/// Who runs it: PostgreSQL refuses root.
const USER: &str = "postgres";

/// Connections that pgbench makes in a second, at least.
const CONNECTED_A_SECOND: u64 = 50;

/// The servers; they end with this value.
#[derive(Debug)]
pub struct Postgres {
    folder: TempDir,
    ports: Vec<u16>,
    running: Vec<PathBuf>,
}

impl Drop for Postgres {
    fn drop(&mut self) {
        for data in self.running.iter().rev() {
            // What does not end here was not started.
            let _ = command("pg_ctl")
                .args(["stop", "-m", "immediate", "-D"])
                .arg(data)
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status();
        }
    }
}

/// What pgbench measured.
#[derive(Clone, Copy, Debug)]
pub struct Rate(pub f64);

impl Postgres {
    /// Starts the primary and its standbys.
    ///
    /// # Errors
    /// One of PostgreSQL's programs failed.
    pub fn start() -> Result<Postgres> {
        let folder = tempfile::Builder::new()
            .prefix("oast-bench-pg-")
            .tempdir()?;
        if oast_tests::need::root() {
            let user = user()?;
            chown(folder.path(), Some(user.0), Some(user.1))?;
        }
        let held: Vec<TcpListener> = (0..3)
            .map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))
            .collect::<Result<_, _>>()?;
        let ports = held
            .iter()
            .map(|port| Ok(port.local_addr()?.port()))
            .collect::<Result<Vec<_>>>()?;
        drop(held);
        let mut postgres = Postgres {
            folder,
            ports,
            running: Vec::new(),
        };
        let primary = postgres.data(0);
        done(command("initdb").args(["--auth=trust", "-D"]).arg(&primary))?;
        postgres.configure(
            0,
            "synchronous_standby_names = 'ANY 1 (s1, s2)'\nsynchronous_commit = off\n",
        )?;
        postgres.run(0)?;
        for number in 1..3 {
            let standby = postgres.data(number);
            let upstream = format!(
                "host=127.0.0.1 port={} application_name=s{number}",
                postgres.ports[0]
            );
            done(
                command("pg_basebackup")
                    .args(["--write-recovery-conf", "-d", &upstream, "-D"])
                    .arg(&standby),
            )?;
            postgres.configure(number, "")?;
            postgres.run(number)?;
        }
        postgres.sql("CREATE TABLE runs (id bigserial PRIMARY KEY, body bytea NOT NULL)")?;
        // From here on a commit waits for a standby's disk.
        postgres.sql("ALTER SYSTEM SET synchronous_commit = on")?;
        postgres.sql("SELECT pg_reload_conf()")?;
        Ok(postgres)
    }

    fn data(&self, number: usize) -> PathBuf {
        self.folder.path().join(format!("data-{number}"))
    }

    fn configure(&self, number: usize, more: &str) -> Result<()> {
        use std::io::Write as _;
        let path = self.data(number).join("postgresql.conf");
        let mut file = fs::OpenOptions::new().append(true).open(&path)?;
        write!(
            file,
            "\nport = {}\nlisten_addresses = '127.0.0.1'\nunix_socket_directories = ''\nmax_connections = 1100\n{more}",
            self.ports[number]
        )?;
        Ok(())
    }

    fn run(&mut self, number: usize) -> Result<()> {
        let data = self.data(number);
        self.running.push(data.clone());
        let log = self.folder.path().join(format!("log-{number}"));
        done(
            command("pg_ctl")
                .args(["start", "--wait", "-l"])
                .arg(log)
                .arg("-D")
                .arg(data),
        )
    }

    fn sql(&self, statement: &str) -> Result<()> {
        let port = self.ports[0].to_string();
        let options = ["-X", "-q", "-h", "127.0.0.1", "-p", &port, "-d", "postgres"];
        done(command("psql").args(options).args(["-c", statement]))
    }

    /// Single inserts.
    ///
    /// # Errors
    /// pgbench failed.
    pub async fn inserts(&self, clients: usize, time: Duration, size: usize) -> Result<Rate> {
        let script = self.folder.path().join("insert.sql");
        fs::write(
            &script,
            format!("INSERT INTO runs (body) VALUES (decode(repeat('78', {size}), 'hex'));\n"),
        )?;
        // Its time begins with the first of its connections, and each is a process.
        let connecting = clients as u64 / CONNECTED_A_SECOND;
        let seconds = time.as_secs().max(1) + connecting;
        let mut pgbench = command("pgbench");
        pgbench
            .args(["-n", "-M", "prepared", "-h", "127.0.0.1", "-j", "2"])
            .args(["-p", &self.ports[0].to_string()])
            .args(["-c", &clients.to_string()])
            .args(["-T", &seconds.to_string(), "-f"])
            .arg(script)
            .arg("postgres");
        let output = tokio::process::Command::from(pgbench).output().await?;
        let text = String::from_utf8_lossy(&output.stdout);
        ensure!(
            output.status.success(),
            "pgbench: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        let rate = text
            .lines()
            .find_map(|line| line.strip_prefix("tps = ")?.split(' ').next()?.parse().ok());
        rate.map(Rate)
            .with_context(|| format!("pgbench printed no rate: {text}"))
    }
}

/// One of PostgreSQL's programs, under a user that it accepts.
fn command(program: &str) -> Command {
    let mut command = if oast_tests::need::root() {
        let mut command = Command::new("setpriv");
        command
            .args(["--reuid", USER, "--regid", USER, "--clear-groups", "--"])
            .arg(program);
        command
    } else {
        Command::new(program)
    };
    command.current_dir("/").stdin(Stdio::null());
    command
}

fn done(command: &mut Command) -> Result<()> {
    // A daemon that it starts must not hold our pipes open.
    let log = tempfile::tempfile()?;
    let status = command
        .stdout(Stdio::null())
        .stderr(log.try_clone()?)
        .status()
        .with_context(|| format!("start {:?}", command.get_program()))?;
    if status.success() {
        return Ok(());
    }
    let mut text = String::new();
    let mut log = log;
    std::io::Seek::rewind(&mut log)?;
    std::io::Read::read_to_string(&mut log, &mut text)?;
    bail!("{command:?} failed: {}", text.trim())
}

fn user() -> Result<(u32, u32)> {
    let passwd = fs::read_to_string(Path::new("/etc/passwd"))?;
    let line = passwd
        .lines()
        .find(|line| line.starts_with(&format!("{USER}:")))
        .with_context(|| format!("there is no user {USER}"))?;
    let mut fields = line.split(':').skip(2).map(str::parse);
    match (fields.next(), fields.next()) {
        (Some(Ok(uid)), Some(Ok(gid))) => Ok((uid, gid)),
        _ => bail!("/etc/passwd: {line}"),
    }
}
