//! One service as it will be run: the directives with a meaning here, or why it is refused.

use std::collections::BTreeMap;

use super::Refused;
use super::file::{UnitFile, seconds, split};
use super::tree::ImageTree;

/// How a service says that it is up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The command is the service (`simple`, `exec`, `idle`).
    Main,
    /// The command ends and leaves the service behind.
    Forking,
    /// The command does its work and ends.
    Oneshot,
}

/// When a service that ended is started again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Restart {
    Never,
    OnFailure,
    Always,
}

/// One command line.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Command {
    pub(super) words: Vec<String>,
    /// `-`: its failure does not count.
    pub(super) may_fail: bool,
    /// `+` or `!`: as root, whatever `User=` says.
    pub(super) as_root: bool,
}

/// A service.
#[derive(Clone, Debug)]
pub(super) struct Service {
    pub(super) name: String,
    pub(super) kind: Kind,
    pub(super) pre: Vec<Command>,
    pub(super) start: Vec<Command>,
    pub(super) post: Vec<Command>,
    pub(super) stop: Vec<Command>,
    pub(super) environment: BTreeMap<String, String>,
    pub(super) user: Option<String>,
    pub(super) group: Option<String>,
    pub(super) working_directory: Option<String>,
    /// Absolute path, mode.
    pub(super) directories: Vec<(String, String)>,
    pub(super) pid_file: Option<String>,
    pub(super) umask: String,
    pub(super) restart: Restart,
    pub(super) restart_seconds: f64,
    pub(super) stop_seconds: f64,
    pub(super) after: Vec<String>,
}

/// Time between restarts when the unit names none.
const RESTART_SECONDS: f64 = 0.1;
/// Longest wait for a service to stop: an instance has only a few seconds in all.
const STOP_SECONDS_MAX: f64 = 4.0;

/// Directives of `[Service]` that are honoured.
const HONOURED: &[&str] = &[
    "Type",
    "ExecStartPre",
    "ExecStart",
    "ExecStartPost",
    "ExecStop",
    "ExecReload",
    "Environment",
    "EnvironmentFile",
    "User",
    "Group",
    "WorkingDirectory",
    "RuntimeDirectory",
    "RuntimeDirectoryMode",
    "StateDirectory",
    "StateDirectoryMode",
    "CacheDirectory",
    "CacheDirectoryMode",
    "LogsDirectory",
    "LogsDirectoryMode",
    "PIDFile",
    "UMask",
    "Restart",
    "RestartSec",
    "TimeoutStopSec",
    "TimeoutSec",
    "RemainAfterExit",
];

/// Directives that describe, limit or harden: without the image's init they are left out, and the
/// service runs as it would without them.
const LEFT_OUT: &[&str] = &[
    "TimeoutStartSec",
    "KillMode",
    "KillSignal",
    "SendSIGHUP",
    "SendSIGKILL",
    "FinalKillSignal",
    "StandardInput",
    "StandardOutput",
    "StandardError",
    "SyslogIdentifier",
    "SyslogFacility",
    "Nice",
    "OOMScoreAdjust",
    "OOMPolicy",
    "Delegate",
    "Slice",
    "GuessMainPID",
    "NotifyAccess",
    "RuntimeDirectoryPreserve",
    "StartLimitInterval",
    "StartLimitBurst",
    "SuccessExitStatus",
    "AmbientCapabilities",
    "CapabilityBoundingSet",
    "NoNewPrivileges",
    "SecureBits",
    "RestrictAddressFamilies",
    "RestrictNamespaces",
    "RestrictRealtime",
    "RestrictSUIDSGID",
    "LockPersonality",
    "MemoryDenyWriteExecute",
    "SystemCallFilter",
    "SystemCallArchitectures",
    "SystemCallErrorNumber",
    "DevicePolicy",
    "DeviceAllow",
    "ReadWritePaths",
    "ReadOnlyPaths",
    "InaccessiblePaths",
    "ReadWriteDirectories",
    "RemoveIPC",
    "KeyringMode",
    "MountFlags",
    "UtmpIdentifier",
];

/// Beginnings of more of them.
const LEFT_OUT_FAMILIES: &[&str] = &[
    "Limit",
    "Protect",
    "Private",
    "CPU",
    "Memory",
    "IO",
    "BlockIO",
    "Tasks",
    "IP",
    "LogLevel",
    "LogRateLimit",
];

/// Conditions and the like of `[Unit]` that are honoured or describe only.
const UNIT_KEYS: &[&str] = &[
    "Description",
    "Documentation",
    "After",
    "Before",
    "Wants",
    "Requires",
    "Requisite",
    "BindsTo",
    "PartOf",
    "Conflicts",
    "DefaultDependencies",
    "ConditionPathExists",
    "AssertPathExists",
    "StartLimitIntervalSec",
    "StartLimitInterval",
    "StartLimitBurst",
    "OnFailure",
    "SourcePath",
    "ConditionVirtualization",
    "RequiresMountsFor",
    "IgnoreOnIsolate",
    "RefuseManualStart",
    "RefuseManualStop",
    "CollectMode",
    "ReloadPropagatedFrom",
    "X-RestartIfChanged",
];

impl Service {
    /// Reads a service; none when one of its conditions does not hold.
    pub(super) fn read(
        name: &str,
        file: &UnitFile,
        tree: &ImageTree,
    ) -> Result<Option<Service>, Refused> {
        let refuse = |directive: &str, why: &str| Refused {
            unit: name.to_owned(),
            directive: directive.to_owned(),
            why: why.to_owned(),
        };
        known(file, &refuse)?;
        if !holds(file, tree) {
            return Ok(None);
        }
        let pid_file = file.last("Service", "PIDFile").map(|path| {
            if path.starts_with('/') {
                path.to_owned()
            } else {
                format!("/run/{path}")
            }
        });
        let has_start = !file.all("Service", "ExecStart").is_empty();
        let kind = match file.last("Service", "Type") {
            None if !has_start => Kind::Oneshot,
            None | Some("simple" | "exec" | "idle") => Kind::Main,
            Some("forking") => Kind::Forking,
            Some("oneshot") => Kind::Oneshot,
            Some(other) => {
                let why = "needs the image's own init; use simple, exec, forking or oneshot";
                return Err(refuse(&format!("Type={other}"), why));
            }
        };
        if kind == Kind::Forking && pid_file.is_none() {
            return Err(refuse(
                "PIDFile",
                "is needed with Type=forking, to see the service end",
            ));
        }
        let user = file.last("Service", "User").map(str::to_owned);
        let specifiers = |value: &str| expand(value, name);
        let commands = |key: &'static str| -> Result<Vec<Command>, Refused> {
            let lines = file.all("Service", key).iter();
            lines
                .map(|line| command(line, name).map_err(|why| refuse(key, &why)))
                .collect()
        };
        let (pre, start) = (commands("ExecStartPre")?, commands("ExecStart")?);
        let (post, stop) = (commands("ExecStartPost")?, commands("ExecStop")?);
        // Read so that a reload that could never work is refused with the rest.
        commands("ExecReload")?;
        match (kind, start.len()) {
            (Kind::Main | Kind::Forking, 1) | (Kind::Oneshot, _) => {}
            (_, n) => return Err(refuse("ExecStart", &format!("is set {n} times, not once"))),
        }
        let environment = environment(file, tree, name, user.as_deref())
            .map_err(|(key, why)| refuse(key, &why))?;
        let span = |key: &'static str| -> Result<Option<f64>, Refused> {
            let value = file.last("Service", key);
            Ok(value
                .map(seconds)
                .transpose()
                .map_err(|why| refuse(key, &why))?
                .flatten())
        };
        let stop_seconds = span("TimeoutStopSec")?.or(span("TimeoutSec")?);
        let working = file
            .last("Service", "WorkingDirectory")
            .map(specifiers)
            .transpose();
        let restart = match file.last("Service", "Restart") {
            None | Some("no") => Restart::Never,
            Some("on-failure" | "on-abnormal" | "on-abort" | "on-watchdog") => Restart::OnFailure,
            Some("always" | "on-success") => Restart::Always,
            Some(other) => return Err(refuse(&format!("Restart={other}"), "is not known")),
        };
        Ok(Some(Service {
            name: name.to_owned(),
            kind,
            pre,
            start,
            post,
            stop,
            environment,
            group: file.last("Service", "Group").map(str::to_owned),
            user,
            working_directory: working.map_err(|why| refuse("WorkingDirectory", &why))?,
            directories: directories(file),
            pid_file,
            umask: file.last("Service", "UMask").unwrap_or("0022").to_owned(),
            restart,
            restart_seconds: span("RestartSec")?.unwrap_or(RESTART_SECONDS),
            stop_seconds: stop_seconds
                .unwrap_or(STOP_SECONDS_MAX)
                .min(STOP_SECONDS_MAX),
            after: file.words("Unit", "After"),
        }))
    }
}

/// Refuses directives whose meaning would be lost in silence.
fn known(file: &UnitFile, refuse: &dyn Fn(&str, &str) -> Refused) -> Result<(), Refused> {
    for (section, key) in file.keys() {
        let fine = match section {
            "Service" => {
                HONOURED.contains(&key)
                    || LEFT_OUT.contains(&key)
                    || LEFT_OUT_FAMILIES.iter().any(|f| key.starts_with(f))
            }
            "Unit" => UNIT_KEYS.contains(&key),
            "Install" => true,
            _ => section.starts_with("X-"),
        };
        if !fine {
            let why = "is not honoured without the image's own init; leave it out, or run as root";
            return Err(refuse(&format!("[{section}] {key}"), why));
        }
    }
    Ok(())
}

/// Whether the unit's conditions hold. Virtualization is a container's.
fn holds(file: &UnitFile, tree: &ImageTree) -> bool {
    let paths = ["ConditionPathExists", "AssertPathExists"];
    let paths = paths.iter().flat_map(|key| file.all("Unit", key));
    let exists = paths.into_iter().all(|path| match path.strip_prefix('!') {
        Some(absent) => !tree.exists(absent),
        None => tree.exists(path.trim_start_matches('|')),
    });
    let mut virtual_ = file.all("Unit", "ConditionVirtualization").iter();
    exists && virtual_.all(|v| !matches!(v.as_str(), "!container" | "no" | "false" | "vm"))
}

fn command(line: &str, unit: &str) -> Result<Command, String> {
    let mut rest = line.trim_start();
    let mut command = Command {
        words: Vec::new(),
        may_fail: false,
        as_root: false,
    };
    loop {
        let mut chars = rest.chars();
        match chars.next() {
            Some('-') => command.may_fail = true,
            Some('+' | '!') => command.as_root = true,
            Some(prefix @ ('@' | ':' | '|')) => {
                return Err(format!(
                    "the prefix {prefix} is not honoured without the image's init"
                ));
            }
            _ => break,
        }
        rest = chars.as_str();
    }
    command.words = split(rest)?;
    if command.words.iter().any(|w| w == ";") {
        return Err(
            "several commands in one line are not honoured; write one line for each".into(),
        );
    }
    for word in &mut command.words {
        *word = expand(word, unit)?;
    }
    if command.words.is_empty() {
        return Err("names no program".to_owned());
    }
    Ok(command)
}

/// Replaces specifiers.
fn expand(text: &str, unit: &str) -> Result<String, String> {
    let stem = unit.rsplit_once('.').map_or(unit, |(stem, _)| stem);
    let (prefix, instance) = stem.split_once('@').unwrap_or((stem, ""));
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        match chars.next() {
            Some('%') => out.push('%'),
            Some('n') => out.push_str(unit),
            Some('N') => out.push_str(stem),
            Some('p' | 'P') => out.push_str(prefix),
            Some('i' | 'I') => out.push_str(instance),
            Some('t') => out.push_str("/run"),
            Some('S') => out.push_str("/var/lib"),
            Some('C') => out.push_str("/var/cache"),
            Some('L') => out.push_str("/var/log"),
            Some('E') => out.push_str("/etc"),
            Some('T') => out.push_str("/tmp"),
            other => {
                let shown = other.map(String::from).unwrap_or_default();
                return Err(format!(
                    "the specifier %{shown} is not honoured without the image's init"
                ));
            }
        }
    }
    Ok(out)
}

fn environment(
    file: &UnitFile,
    tree: &ImageTree,
    unit: &str,
    user: Option<&str>,
) -> Result<BTreeMap<String, String>, (&'static str, String)> {
    let mut all = BTreeMap::new();
    if let Some(user) = user {
        all.insert("USER".to_owned(), user.to_owned());
        all.insert("LOGNAME".to_owned(), user.to_owned());
        let passwd = tree.read("/etc/passwd").unwrap_or_default();
        let line = passwd.lines().find(|l| l.split(':').next() == Some(user));
        if let Some(home) = line.and_then(|l| l.split(':').nth(5)) {
            all.insert("HOME".to_owned(), home.to_owned());
        }
    }
    let assign = |all: &mut BTreeMap<String, String>, word: &str| match word.split_once('=') {
        Some((name, value)) if is_name(name) => {
            all.insert(name.to_owned(), value.to_owned());
            Ok(())
        }
        _ => Err(format!("{word:?} is no NAME=VALUE")),
    };
    for line in file.all("Service", "Environment") {
        for word in split(line).map_err(|why| ("Environment", why))? {
            let word = expand(&word, unit).map_err(|why| ("Environment", why))?;
            assign(&mut all, &word).map_err(|why| ("Environment", why))?;
        }
    }
    for path in file.all("Service", "EnvironmentFile") {
        let (optional, path) = path
            .strip_prefix('-')
            .map_or((false, path.as_str()), |p| (true, p));
        let Some(text) = tree.read(path) else {
            if optional {
                continue;
            }
            return Err(("EnvironmentFile", format!("{path} is not in the image")));
        };
        for line in text.lines().map(str::trim) {
            if line.is_empty() || line.starts_with(['#', ';']) {
                continue;
            }
            let Some((name, value)) = line.split_once('=') else {
                continue;
            };
            let words =
                split(value).map_err(|why| ("EnvironmentFile", format!("{path}: {why}")))?;
            assign(&mut all, &format!("{}={}", name.trim(), words.join(" ")))
                .map_err(|why| ("EnvironmentFile", format!("{path}: {why}")))?;
        }
    }
    Ok(all)
}

fn is_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes
        .next()
        .is_some_and(|b| b.is_ascii_alphabetic() || b == b'_')
        && bytes.all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

fn directories(file: &UnitFile) -> Vec<(String, String)> {
    let kinds = [
        ("RuntimeDirectory", "/run"),
        ("StateDirectory", "/var/lib"),
        ("CacheDirectory", "/var/cache"),
        ("LogsDirectory", "/var/log"),
    ];
    let mut all = Vec::new();
    for (key, parent) in kinds {
        let mode = file
            .last("Service", &format!("{key}Mode"))
            .unwrap_or("0755");
        for name in file.words("Service", key) {
            all.push((format!("{parent}/{name}"), mode.to_owned()));
        }
    }
    all
}
