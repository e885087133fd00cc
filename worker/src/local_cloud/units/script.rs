//! The shell script that runs a plan's services inside an instance, under the sandbox's own init.
//!
//! A script because the image always has a shell, while a program of ours would need the image's C
//! library. Everything that is not fixed text here is quoted, so a unit cannot add commands. The
//! script ends (and with it the instance) when a service has ended for good, with that service's
//! name in its last line; on SIGTERM it stops the services in reverse order.

use std::fmt::Write;

use super::service::{Command, Kind, Restart, Service};
use super::{Plan, Refused};

/// Longest script: it travels as one argument, of which the kernel takes 128 KiB.
const SCRIPT_MAX: usize = 120 << 10;
/// Restarts within [`BURST_SECONDS`] after which a service has ended for good, as systemd's default.
const BURST: u32 = 5;
const BURST_SECONDS: u32 = 10;

/// Writes formatted text to a string.
macro_rules! put {
    ($out:ident, $($text:tt)*) => {
        write!($out, $($text)*).expect("a string takes any text")
    };
}

const PRELUDE: &str = r#"export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8
R=/run/oast-units; mkdir -p $R
say() { echo "oast: $*"; }
# A service has ended for good: the instance ends with it.
over() { echo "$*" > $R/over; kill -USR1 $$ 2>/dev/null; }
# Sends SIGTERM and waits: PID, tenths of a second.
term() {
  kill -TERM "$1" 2>/dev/null || return 0
  n=0; while kill -0 "$1" 2>/dev/null && [ $n -lt $2 ]; do sleep 0.1; n=$((n+1)); done
}
"#;

impl Plan {
    /// The script of this plan.
    ///
    /// # Errors
    /// It is too long to be handed over.
    pub fn script(&self) -> Result<String, Refused> {
        let mut out = PRELUDE.to_owned();
        for (n, service) in self.services.iter().enumerate() {
            out.push_str(&functions(n, service));
        }
        out.push_str("stop_all() {\n  trap '' TERM USR1\n");
        for (n, service) in self.services.iter().enumerate().rev() {
            if service.kind != Kind::Oneshot || !service.stop.is_empty() {
                put!(out, "  stop_{n}\n");
            }
        }
        out.push_str("  exit 0\n}\ntrap stop_all TERM\n");
        out.push_str("trap 'say \"$(cat $R/over)\"; exit 1' USR1\n");
        for (n, service) in self.services.iter().enumerate() {
            let name = quote(&service.name);
            let begin = match service.kind {
                // A failed oneshot is a failed unit, not the end of the machine: as with an init.
                Kind::Oneshot => format!("begin_{n} || say {name} failed\n"),
                Kind::Main | Kind::Forking => format!("run_{n} & echo $! > $R/{n}.loop\n"),
            };
            out.push_str(&begin);
            if service.kind == Kind::Forking {
                // What is ordered after it may need it.
                put!(out, "while [ ! -e $R/{n}.up ]; do sleep 0.02; done\n");
            }
        }
        out.push_str("say services started\n");
        // `wait` returns when a trapped signal has come, and then is taken up again.
        out.push_str("while :; do sleep 3600 & wait $!; done\n");
        if out.len() > SCRIPT_MAX {
            return Err(Refused {
                unit: "all units together".to_owned(),
                directive: "their number".to_owned(),
                why: format!("make a script of more than {SCRIPT_MAX} bytes"),
            });
        }
        Ok(out)
    }
}

fn functions(n: usize, service: &Service) -> String {
    let mut begin = String::new();
    for (path, mode) in &service.directories {
        let owner = format!(
            "{}:{}",
            service.user.as_deref().unwrap_or("root"),
            service
                .group
                .as_deref()
                .or(service.user.as_deref())
                .unwrap_or("root")
        );
        put!(
            begin,
            "  mkdir -p {path} && chmod {} {path} && chown {} {path} || return 1\n",
            quote(mode),
            quote(&owner),
            path = quote(path)
        );
    }
    for command in &service.pre {
        begin.push_str(&step(service, command));
    }
    let mut post = String::new();
    for command in &service.post {
        post.push_str(&step(service, command));
    }
    let main = match service.kind {
        Kind::Oneshot => {
            for command in &service.start {
                begin.push_str(&step(service, command));
            }
            begin.push_str(&post);
            String::new()
        }
        Kind::Main => format!(
            "  ( exec {} ) & pid=$!; echo $pid > $R/{n}.pid\n{post}  touch $R/{n}.up\n  wait $pid; code=$?\n",
            line(service, &service.start[0])
        ),
        Kind::Forking => forking(n, service, &post),
    };
    let begin = format!("begin_{n}() {{\n{begin}  return 0\n}}\n");
    if service.kind == Kind::Oneshot {
        return begin + &stop(n, service);
    }
    let again = match service.restart {
        Restart::Never => "false",
        Restart::OnFailure => "[ $code -ne 0 ]",
        Restart::Always => "true",
    };
    let name = quote(&service.name);
    let run = format!(
        "run_{n}() {{\n  trap - USR1 TERM\n  times=0; since=$(date +%s)\n  while :; do\n  code=1\n  \
         if begin_{n}; then\n{main}  fi\n  touch $R/{n}.up\n  {again} || break\n  \
         now=$(date +%s); [ $((now-since)) -gt {BURST_SECONDS} ] && times=0 && since=$now\n  \
         times=$((times+1)); [ $times -gt {BURST} ] && break\n  \
         say {name} ended with code $code and is started again\n  sleep {}\n  done\n  \
         over {name} ended with code $code\n}}\n",
        service.restart_seconds,
    );
    begin + &run + &stop(n, service)
}

/// The command leaves the service behind; its PID file says which process that is.
fn forking(n: usize, service: &Service, post: &str) -> String {
    let file = quote(service.pid_file.as_deref().unwrap_or_default());
    format!(
        "  if ( exec {} ); then\n  \
         k=0; while [ ! -s {file} ] && [ $k -lt 50 ]; do sleep 0.02; k=$((k+1)); done\n  \
         pid=$(cat {file} 2>/dev/null); echo \"$pid\" > $R/{n}.pid\n{post}  touch $R/{n}.up\n  \
         while [ -n \"$pid\" ] && kill -0 \"$pid\" 2>/dev/null; do sleep 0.2; done\n  \
         else code=$?; fi\n",
        line(service, &service.start[0])
    )
}

fn stop(n: usize, service: &Service) -> String {
    let mut out = format!("stop_{n}() {{\n");
    // The loop first, or it would start again what is stopped.
    put!(
        out,
        "  [ -e $R/{n}.loop ] && kill -KILL $(cat $R/{n}.loop) 2>/dev/null\n"
    );
    for command in &service.stop {
        put!(out, "  ( {} )\n", line(service, command));
    }
    let tenths = (service.stop_seconds * 10.0).ceil();
    put!(
        out,
        "  [ -s $R/{n}.pid ] && term \"$(cat $R/{n}.pid)\" {tenths}\n"
    );
    out.push_str("  return 0\n}\n");
    out
}

/// A command that must end well before the next one.
fn step(service: &Service, command: &Command) -> String {
    let fail = if command.may_fail { "true" } else { "return 1" };
    format!("  ( exec {} ) || {fail}\n", line(service, command))
}

/// The command with its whole surroundings, ready for `exec`.
fn line(service: &Service, command: &Command) -> String {
    let mut out = String::from("/usr/bin/env -i");
    let folder = service.working_directory.as_deref();
    if let Some(folder) = folder.map(|f| if f == "~" { "/root" } else { f }) {
        put!(out, " -C {}", quote(folder.trim_start_matches('-')));
    }
    out.push_str(" PATH=\"$PATH\" LANG=\"$LANG\"");
    for (name, value) in &service.environment {
        put!(out, " {name}={}", quote(value));
    }
    if !command.as_root && (service.user.is_some() || service.group.is_some()) {
        out.push_str(" /usr/bin/setpriv");
        if let Some(user) = &service.user {
            put!(out, " --reuid={}", quote(user));
        }
        match (&service.group, &service.user) {
            (Some(group), _) => put!(out, " --regid={}", quote(group)),
            (None, Some(user)) => put!(out, " --regid=\"$(id -g {})\"", quote(user)),
            (None, None) => {}
        }
        out.push_str(if service.user.is_some() {
            " --init-groups --"
        } else {
            " --keep-groups --"
        });
    }
    for word in substitute(&command.words, service) {
        out.push(' ');
        out.push_str(&word);
    }
    // The mask is the shell's to set, in the same sub-shell.
    format!(
        "/bin/sh -c 'umask \"$0\" && exec \"$@\"' {} {out}",
        quote(&service.umask)
    )
}

/// Quoted words with `$NAME` and `${NAME}` replaced from the unit's environment, as systemd does: a
/// word that is only `$NAME` becomes its words, within a word it is the value as it is.
fn substitute(words: &[String], service: &Service) -> Vec<String> {
    let value = |name: &str| service.environment.get(name).cloned().unwrap_or_default();
    let mut out = Vec::new();
    for word in words {
        let whole = word
            .strip_prefix('$')
            .filter(|n| !n.is_empty() && n.bytes().all(is_name_byte));
        if let Some(name) = whole {
            out.extend(value(name).split_whitespace().map(quote));
            continue;
        }
        let mut text = String::new();
        let mut rest = word.as_str();
        while let Some(at) = rest.find('$') {
            text.push_str(&rest[..at]);
            rest = &rest[at + 1..];
            if let Some(more) = rest.strip_prefix('$') {
                text.push('$');
                rest = more;
            } else if let Some((name, more)) =
                rest.strip_prefix('{').and_then(|r| r.split_once('}'))
            {
                text.push_str(&value(name));
                rest = more;
            } else {
                text.push('$');
            }
        }
        text.push_str(rest);
        out.push(quote(&text));
    }
    out
}

fn is_name_byte(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b == b'_'
}

/// A word that the shell takes literally.
fn quote(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}
