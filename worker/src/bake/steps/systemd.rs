//! `systemd`: unit files, and which units start, without a running systemd.
//!
//! The image's own `systemctl` makes the links: without `/run/systemd` it works on files alone, and
//! it knows every rule of `[Install]` as the system that will boot does.

use std::fmt::Write as _;

use oast_model::pipeline::{Network, Run, Systemd};

use super::run::Found;
use crate::bake::key::last;
use crate::sandbox::SecretFile;

/// Where unit files are inside, in memory.
const UNITS: &str = "/run/oast-units";
/// The largest unit file.
pub const UNIT_BYTES_MAX: u64 = 1 << 20;

/// Says it itself: the shell's own words would not name the way out.
const NEEDED: &str = "command -v systemctl >/dev/null || \
     { echo 'the image has no systemctl: install systemd in a step before' >&2; exit 1; }\n";

/// The command of the step, and the files that it finds. `texts` are those of `install`, in order.
pub fn command(units: &Systemd, texts: Vec<Vec<u8>>) -> (Run, Found) {
    let mut script = NEEDED.to_owned();
    let mut found = Found::default();
    for (path, data) in units.install.iter().zip(texts) {
        let name = last(path);
        // The rules of unit names leave nothing that a shell would read.
        let _ = writeln!(
            script,
            "install -D -m 0644 -- '{UNITS}/{name}' '/etc/systemd/system/{name}'"
        );
        found.files.push(SecretFile {
            target: format!("{UNITS}/{name}").into(),
            mode: 0o444,
            data,
        });
    }
    for (verb, units) in &units.verbs()[1..] {
        if !units.is_empty() {
            let units: Vec<String> = units.iter().map(|unit| format!("'{unit}'")).collect();
            let _ = writeln!(script, "systemctl {verb} -- {}", units.join(" "));
        }
    }
    found
        .env
        .push(("SYSTEMD_OFFLINE".to_owned(), "1".to_owned()));
    let run = Run {
        network: Network::None,
        ..Run::new(script)
    };
    (run, found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_installed_before_they_are_switched() {
        let units = Systemd {
            install: vec!["units/web.service".to_owned()],
            enable: vec!["web.service".to_owned(), "a@b.timer".to_owned()],
            mask: vec!["apt-daily.timer".to_owned()],
            ..Systemd::default()
        };
        let (run, found) = command(&units, vec![b"[Unit]\n".to_vec()]);
        let lines: Vec<&str> = run.command.lines().skip(1).collect();
        assert_eq!(
            lines,
            [
                "install -D -m 0644 -- '/run/oast-units/web.service' '/etc/systemd/system/web.service'",
                "systemctl enable -- 'web.service' 'a@b.timer'",
                "systemctl mask -- 'apt-daily.timer'",
            ]
        );
        assert_eq!(found.files.len(), 1);
    }
}
