//! `steps:`: what is done to the base. Also the steps of an operator's policy.

use std::collections::BTreeMap;

use crate::document::reader::shorten;
use crate::document::{Code, Fields, Node, Reader};
use crate::names::{ChannelName, ImageName, SecretName};
use crate::pipeline::definition::{
    Action, Ansible, CopyFiles, CopySource, Network, Packages, RUN_TIMEOUT, Run, SHELL,
    SecretDelivery, SecretUse, Step, Systemd,
};
use crate::pipeline::rules::{self, Rule};
use crate::units::TimeSpan;

/// The longest a step may run.
pub const RUN_TIMEOUT_MAX: TimeSpan = TimeSpan::from_secs(12 * 60 * 60);
/// The most repetitions of a failed step.
pub const RETRIES_MAX: u32 = 10;
/// The most cache folders of a step.
pub const CACHES_MAX: usize = 16;
/// Folders that are the sandbox's own while a step runs, so nothing can be kept in them.
const NO_CACHES: [&str; 5] = ["/dev", "/proc", "/run", "/sys", "/tmp"];

pub(super) const ACTIONS: &[&str] = &[
    "run", "copy", "packages", "systemd", "ansible", "env", "workdir", "user",
];

pub(super) fn step(reader: &mut Reader, node: &Node) -> Option<Step> {
    if let Some(text) = node.scalar() {
        let hint = format!("write `- run: {}`", shorten(text));
        reader.error_hint(
            Code::WrongType,
            node.place,
            "a step is a map of keys and values",
            hint,
        );
        return None;
    }
    let mut map = reader.map(node, "a step")?;
    let name = map.optional(reader, "name", |r, n| r.ruled(n, Rule::Filled));
    let uses = map.optional(reader, "secrets", secrets);
    let secrets_place = map.peek("secrets").map(|n| n.place);
    let chosen = map.one_of(reader, ACTIONS);
    let action = match chosen {
        Some((key, n)) => Fields::inside(reader, key, |r| match key {
            "run" => run(r, n).map(Action::Run),
            "copy" => copy(r, n).map(Action::Copy),
            "packages" => packages(r, n).map(Action::Packages),
            "systemd" => systemd(r, n).map(Action::Systemd),
            "ansible" => ansible(r, n).map(|play| Action::Ansible(Box::new(play))),
            "env" => environment(r, n).map(Action::Env),
            "user" => owner(r, n, "a user").map(Action::User),
            _ => r.ruled(n, Rule::Target).map(Action::Workdir),
        }),
        None => None,
    };
    map.done(reader, |key| match key {
        "timeout" | "shell" | "retries" | "network" | "script" | "caches" => {
            Some("it belongs inside: `run: { command: \"...\", timeout: 5m }`")
        }
        "from" | "to" | "mode" | "owner" | "url" | "sha256" => {
            Some("it belongs inside: `copy: { from: web/site, to: /var/www/html }`")
        }
        "enable" | "disable" | "mask" => {
            Some("it belongs inside: `systemd: { enable: [nginx.service] }`")
        }
        "playbook" => Some("it belongs inside: `ansible: { playbook: site.yml }`"),
        "uses" => Some("there are no actions to use: a step runs commands or copies files"),
        _ => None,
    });
    let mut action = action?;
    match (uses?, &mut action) {
        (Some(uses), Action::Run(run)) => run.secrets = uses,
        (Some(uses), Action::Ansible(play)) => play.secrets = uses,
        (Some(_), _) => {
            let place = secrets_place.unwrap_or(node.place);
            reader.error(
                Code::Secret,
                place,
                "only `run` and `ansible` steps get secrets",
            );
        }
        (None, _) => {}
    }
    Some(Step {
        name: name?,
        action,
        line: u32::try_from(node.place.line).unwrap_or(u32::MAX),
        policy: None,
    })
}

/// Variables of the steps; also those of a whole bake.
pub(super) fn environment(reader: &mut Reader, node: &Node) -> Option<BTreeMap<String, String>> {
    values(reader, node, "`env`")
}

fn values(
    reader: &mut Reader,
    node: &Node,
    what: &'static str,
) -> Option<BTreeMap<String, String>> {
    reader.table(node, what, |r, key, node| {
        if let Err(wrong) = rules::variable(&key.text) {
            r.error(Code::Text, key.place, format!("`{}` {wrong}", shorten(&key.text)));
        }
        if rules::looks_secret(&key.text) {
            let message = format!("the value of `{}` stands in the file, in the ledger and in every log", key.text);
            let hint = "if it is secret: `oast secret set NAME`, then `secrets: [{ name: NAME, env: ... }]` beside `run`";
            r.warn(Code::Secret, node.place, message, hint);
        }
        // An empty value is a value here.
        if matches!(&node.value, crate::document::Value::Scalar { text, plain: false } if text.is_empty()) {
            return Some(String::new());
        }
        r.text(node)
    })
}

/// A command, in which a text input may not stand.
fn command(reader: &mut Reader, node: &Node) -> Option<String> {
    reader.scope.in_command = true;
    let command = reader.ruled(node, Rule::Command);
    reader.scope.in_command = false;
    command
}

fn timeout(reader: &mut Reader, node: &Node) -> Option<TimeSpan> {
    let least = TimeSpan::from_secs(1);
    reader.span(node, "a step's timeout", least, RUN_TIMEOUT_MAX)
}

fn network(reader: &mut Reader, node: &Node) -> Option<Network> {
    let choices = [
        ("none", Network::None),
        ("proxy", Network::Proxy),
        ("host", Network::Host),
    ];
    reader.choice(node, "a network", &choices)
}

fn run(reader: &mut Reader, node: &Node) -> Option<Run> {
    if node.scalar().is_some() {
        return command(reader, node).map(Run::new);
    }
    if matches!(node.value, crate::document::Value::List(_)) {
        let hint = "one step, one text: use `run: |` and a line each, or a step each";
        reader.error_hint(
            Code::WrongType,
            node.place,
            "`run` takes a text, found a list",
            hint,
        );
        return None;
    }
    if node.is_null() {
        reader.error(Code::WrongType, node.place, "`run` has no command");
        return None;
    }
    let mut map = reader.map(node, "`run`")?;
    let (command, script) = match map.one_of(reader, &["command", "script"]) {
        Some(("command", n)) => (
            Fields::inside(reader, "command", |r| command(r, n)),
            Some(None),
        ),
        Some((_, n)) => (
            Some(String::new()),
            Fields::inside(reader, "script", |r| r.ruled(n, Rule::Source)).map(Some),
        ),
        None => (None, None),
    };
    let args_place = map.peek("args").map(|n| n.place);
    let args = map.or(reader, "args", Vec::new(), |r, n| {
        r.list(n, |r, n| r.ruled(n, Rule::Any))
    });
    let shell = map.or(reader, "shell", SHELL.to_owned(), |r, n| {
        let text = r.fixed(n, "a shell")?;
        if text.starts_with('/') {
            return Some(text.to_owned());
        }
        let message = format!("the shell `{}` has no absolute path", shorten(text));
        r.error_hint(
            Code::Path,
            n.place,
            message,
            format!("write `{SHELL}` or `/bin/bash -e`"),
        );
        None
    });
    let timeout = map.or(reader, "timeout", RUN_TIMEOUT, timeout);
    let retries = map.or(reader, "retries", 0, |r, n| {
        r.number(n, "the number of retries", 0, RETRIES_MAX)
    });
    let network = map.or(reader, "network", Network::default(), network);
    let caches = map.or(reader, "caches", Vec::new(), caches);
    map.done(reader, |key| match key {
        "secrets" => Some("it belongs beside `run`, not inside it"),
        "env" => Some("make it a step before: `- env: { NAME: value }`"),
        "cache" => Some("the key is `caches`"),
        _ => None,
    });
    let (script, args) = (script?, args?);
    if let (None, Some(place)) = (&script, args_place) {
        let message = "`args` is for a `script`; a command has its arguments in it";
        reader.error(Code::Contradiction, place, message);
    }
    Some(Run {
        command: command?,
        shell: shell?,
        timeout: timeout?,
        retries: retries?,
        network: network?,
        secrets: Vec::new(),
        script,
        args,
        caches: caches?,
    })
}

fn caches(reader: &mut Reader, node: &Node) -> Option<Vec<String>> {
    let caches = reader.list(node, |r, n| {
        let path = r.fixed(n, "a cache's folder")?;
        let own = NO_CACHES
            .iter()
            .find(|own| path == **own || path.starts_with(&format!("{own}/")));
        let wrong = match (Rule::Target.judge(path), own) {
            (Err(wrong), _) => wrong,
            (Ok(()), Some(own)) => format!("is in {own}, which is in memory while a step runs"),
            (Ok(()), None) if path.trim_matches('/').is_empty() => {
                "is the whole image: name the folder that a program keeps".to_owned()
            }
            (Ok(()), None) => return Some(path.trim_end_matches('/').to_owned()),
        };
        r.error(Code::Path, n.place, format!("`{}` {wrong}", shorten(path)));
        None
    })?;
    if caches.len() > CACHES_MAX {
        let message = format!("a step has at most {CACHES_MAX} caches");
        reader.error(Code::OutOfRange, node.place, message);
    }
    let within = caches.iter().enumerate().find_map(|(at, inner)| {
        let others = caches.iter().take(at).chain(caches.iter().skip(at + 1));
        let mut outer = others.filter(|outer| {
            inner
                .strip_prefix(outer.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        });
        outer.next().map(|outer| (inner, outer))
    });
    if let Some((inner, outer)) = within {
        let message = format!(
            "the cache `{}` is in the cache `{}`",
            shorten(inner),
            shorten(outer)
        );
        reader.error_hint(
            Code::Contradiction,
            node.place,
            message,
            "keep one of the two",
        );
    }
    Some(caches)
}

fn secrets(reader: &mut Reader, node: &Node) -> Option<Vec<SecretUse>> {
    reader.list(node, |r, n| {
        if n.scalar().is_some() {
            let hint = "write `- { name: NAME, env: VARIABLE }`; the value is set by `oast secret set NAME`";
            r.error_hint(Code::Secret, n.place, "a secret is named with how the step finds it", hint);
            return None;
        }
        let mut map = r.map(n, "a secret")?;
        let name = map.required(r, "name", |r, n| r.name::<SecretName>(n, "a secret's name"));
        let delivery = match map.one_of(r, &["env", "file"]) {
            Some(("env", n)) => Fields::inside(r, "env", |r| {
                let text = r.fixed(n, "a variable's name")?;
                rules::variable(text)
                    .map_err(|wrong| r.error(Code::Text, n.place, format!("`{}` {wrong}", shorten(text))))
                    .ok()?;
                Some(SecretDelivery::Env(text.to_owned()))
            }),
            Some((_, n)) => Fields::inside(r, "file", |r| {
                let text = r.fixed(n, "a file's name")?;
                if text.contains('/') || text.starts_with('.') {
                    let message = format!("`{}` is a path: the file's folder is in $OAST_SECRETS", shorten(text));
                    r.error_hint(Code::Secret, n.place, message, "give a name without `/`");
                    return None;
                }
                Some(SecretDelivery::File(text.to_owned()))
            }),
            None => None,
        };
        map.done(r, |key| match key {
            "value" => Some("the value never stands in the file: `oast secret set NAME` reads it from its input"),
            _ => None,
        });
        Some(SecretUse { name: name?, delivery: delivery? })
    })
}

fn packages(reader: &mut Reader, node: &Node) -> Option<Packages> {
    if matches!(node.value, crate::document::Value::List(_)) {
        let install = super::bake::packages(reader, node)?;
        return some_packages(reader, node, install, false);
    }
    if node.scalar().is_some() {
        let hint = "write `packages: [nginx-light]`";
        reader.error_hint(Code::WrongType, node.place, "`packages` is a list", hint);
        return None;
    }
    let mut map = reader.map(node, "`packages`")?;
    let install = map.required(reader, "install", super::bake::packages);
    let recommends = map.or(reader, "recommends", false, Reader::truth);
    map.done(reader, |key| match key {
        "remove" | "purge" => Some("take it out by a step: `run: apt-get purge -y NAME`"),
        "update" | "upgrade" => {
            Some("packages are always the newest that the image's archives have")
        }
        _ => None,
    });
    let (install, recommends) = (install?, recommends?);
    some_packages(reader, node, install, recommends)
}

fn some_packages(
    reader: &mut Reader,
    node: &Node,
    install: Vec<String>,
    recommends: bool,
) -> Option<Packages> {
    if install.is_empty() {
        reader.error(Code::MissingKey, node.place, "`packages` names no package");
        return None;
    }
    Some(Packages {
        install,
        recommends,
    })
}

fn systemd(reader: &mut Reader, node: &Node) -> Option<Systemd> {
    if node.scalar().is_some() {
        let hint = "write `systemd: { enable: [nginx.service] }`";
        reader.error_hint(
            Code::WrongType,
            node.place,
            "`systemd` is a map of keys and values",
            hint,
        );
        return None;
    }
    let mut map = reader.map(node, "`systemd`")?;
    let install = map.or(reader, "install", Vec::new(), |r, n| r.list(n, unit_file));
    let mut units = |reader: &mut Reader, key: &'static str| {
        map.or(reader, key, Vec::new(), |r, n| {
            r.list(n, |r, n| r.ruled(n, Rule::Unit))
        })
    };
    let enable = units(reader, "enable");
    let disable = units(reader, "disable");
    let mask = units(reader, "mask");
    let unmask = units(reader, "unmask");
    let default = map.optional(reader, "default", |r, n| {
        let target = r.ruled(n, Rule::Unit)?;
        if target.ends_with(".target") || target.contains("${{") {
            return Some(target);
        }
        let message = format!(
            "`{}` is not a target, such as multi-user.target",
            shorten(&target)
        );
        r.error(Code::Text, n.place, message);
        None
    });
    map.done(reader, |key| match key {
        "start" | "restart" => {
            Some("nothing runs while an image is made: `enable` it, and it starts at boot")
        }
        "units" | "copy" => Some("the key is `install`"),
        _ => None,
    });
    let systemd = Systemd {
        install: install?,
        enable: enable?,
        disable: disable?,
        mask: mask?,
        unmask: unmask?,
        default: default?,
    };
    if systemd.verbs().iter().all(|(_, units)| units.is_empty()) {
        reader.error(Code::MissingKey, node.place, "`systemd` has nothing to do");
        return None;
    }
    let both = systemd
        .enable
        .iter()
        .find(|unit| systemd.disable.contains(unit) || systemd.mask.contains(unit));
    if let Some(unit) = both {
        let message = format!("`{}` is both enabled and not", shorten(unit));
        reader.error(Code::Contradiction, node.place, message);
    }
    Some(systemd)
}

fn unit_file(reader: &mut Reader, node: &Node) -> Option<String> {
    let path = reader.ruled(node, Rule::Source)?;
    if let Err(wrong) = rules::unit_file(&path) {
        reader.error(
            Code::Text,
            node.place,
            format!("`{}` {wrong}", shorten(&path)),
        );
        return None;
    }
    Some(path)
}

fn ansible(reader: &mut Reader, node: &Node) -> Option<Ansible> {
    if node.scalar().is_some() {
        let hint = "write `ansible: { playbook: ansible/site.yml }`";
        reader.error_hint(
            Code::WrongType,
            node.place,
            "`ansible` is a map of keys and values",
            hint,
        );
        return None;
    }
    let mut map = reader.map(node, "`ansible`")?;
    let playbook_place = map.peek("playbook").map(|n| n.place);
    let playbook = map.required(reader, "playbook", |r, n| r.ruled(n, Rule::Source));
    let folder = map.optional(reader, "folder", |r, n| r.ruled(n, Rule::Source));
    let variables = map.or(reader, "variables", BTreeMap::new(), |r, n| {
        values(r, n, "`variables`")
    });
    let tags = map.or(reader, "tags", Vec::new(), |r, n| {
        r.list(n, |r, n| {
            let tag = r.fixed(n, "a tag")?;
            let good = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
            if tag.bytes().all(good) && !tag.starts_with('-') {
                return Some(tag.to_owned());
            }
            r.error(
                Code::Text,
                n.place,
                format!("`{}` is not a tag", shorten(tag)),
            );
            None
        })
    });
    let timeout = map.or(reader, "timeout", RUN_TIMEOUT, timeout);
    let network = map.or(reader, "network", Network::default(), network);
    map.done(reader, |key| match key {
        "secrets" => Some("it belongs beside `ansible`, not inside it"),
        "inventory" | "hosts" => {
            Some("the inventory is the image alone: let the play say `hosts: all`")
        }
        "vars" | "extraVars" => Some("the key is `variables`"),
        "roles" | "requirements" => {
            Some("roles are taken from the playbook's folder: commit them, or name `folder`")
        }
        _ => None,
    });
    let play = Ansible {
        playbook: playbook?,
        folder: folder?,
        variables: variables?,
        tags: tags?,
        timeout: timeout?,
        network: network?,
        secrets: Vec::new(),
    };
    let folder = play.folder().trim_start_matches("./").trim_end_matches('/');
    let playbook = play.playbook.trim_start_matches("./");
    let inside = folder.is_empty()
        || folder == "."
        || playbook
            .strip_prefix(folder)
            .is_some_and(|rest| rest.starts_with('/'));
    if !inside && !folder.contains("${{") && !playbook.contains("${{") {
        let message = format!(
            "the playbook `{}` is not in the folder `{}`, which is all that the play sees",
            shorten(playbook),
            shorten(folder)
        );
        let place = playbook_place.unwrap_or(node.place);
        reader.error_hint(
            Code::Contradiction,
            place,
            message,
            "name a folder that holds both",
        );
    }
    Some(play)
}

fn copy(reader: &mut Reader, node: &Node) -> Option<CopyFiles> {
    if node.scalar().is_some() {
        let hint = "write `copy: { from: web/site, to: /var/www/html }`";
        reader.error_hint(
            Code::WrongType,
            node.place,
            "`copy` is a map of keys and values",
            hint,
        );
        return None;
    }
    let mut map = reader.map(node, "`copy`")?;
    let image = map.optional(reader, "image", |r, n| {
        r.name::<ImageName>(n, "an image's name")
    });
    let channel = map.optional(reader, "channel", |r, n| {
        r.name::<ChannelName>(n, "a channel's name")
    });
    let sha256 = map.optional(reader, "sha256", sha256);
    let from_image = map.peek("image").is_some();
    let from = if map.peek("url").is_some() {
        match map.one_of(reader, &["url", "from", "image"]) {
            Some(("url", n)) => Fields::inside(reader, "url", |r| r.ruled(n, Rule::Web)),
            _ => None,
        }
    } else {
        map.required(reader, "from", |r, n| {
            r.ruled(
                n,
                if from_image {
                    Rule::Target
                } else {
                    Rule::Source
                },
            )
        })
    };
    let to = map.required(reader, "to", |r, n| r.ruled(n, Rule::Target));
    let mode = map.optional(reader, "mode", mode);
    let owner = map.optional(reader, "owner", |r, n| owner(r, n, "an owner"));
    let by_url = map.peek("url").is_some();
    map.done(reader, |key| match key {
        "src" | "source" => Some("the key is `from`"),
        "dest" | "dst" | "destination" => Some("the key is `to`"),
        "checksum" | "hash" | "digest" => Some("the key is `sha256`"),
        _ => None,
    });
    let (image, channel, sha256) = (image?, channel?, sha256?);
    let source = match (by_url, image, channel, sha256) {
        (true, None, None, Some(sha256)) => CopySource::Url { sha256 },
        (true, None, None, None) => {
            let hint = "add `sha256: ...`; `curl -L URL | sha256sum` prints it";
            let message = "a file of the web needs the SHA-256 that it must have";
            reader.error_hint(Code::MissingKey, node.place, message, hint);
            return None;
        }
        (false, Some(image), Some(channel), None) => CopySource::Image { image, channel },
        (false, Some(_), None, None) => {
            let hint = "add `channel: ...`, such as `channel: stable`";
            reader.error_hint(
                Code::MissingKey,
                node.place,
                "a copy from an image needs its channel",
                hint,
            );
            return None;
        }
        (false, None, None, None) => CopySource::Commit,
        _ => {
            let message = "`sha256` is for a `url`, `channel` for an `image`";
            reader.error(Code::Contradiction, node.place, message);
            return None;
        }
    };
    Some(CopyFiles {
        from: from?,
        to: to?,
        mode: mode?,
        owner: owner?,
        source,
    })
}

/// `user` or `user:group`, names or numbers.
fn owner(reader: &mut Reader, node: &Node, what: &str) -> Option<String> {
    let text = reader.fixed(node, what)?;
    let word = |w: &str| {
        !w.is_empty()
            && !w.starts_with('-')
            && w.bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"-_.$".contains(&b))
    };
    let parts: Vec<&str> = text.split(':').collect();
    if parts.len() <= 2 && parts.iter().all(|part| word(part)) {
        return Some(text.to_owned());
    }
    let message = format!(
        "`{}` is not {what}, such as www-data:www-data",
        shorten(text)
    );
    reader.error(Code::Text, node.place, message);
    None
}

/// 64 hexadecimal digits, made lower-case.
pub(super) fn sha256(reader: &mut Reader, node: &Node) -> Option<String> {
    let text = reader.fixed(node, "a SHA-256")?;
    if text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Some(text.to_ascii_lowercase());
    }
    let message = format!(
        "`{}` is not a SHA-256: 64 hexadecimal digits",
        shorten(text)
    );
    reader.error(Code::Text, node.place, message);
    None
}

fn mode(reader: &mut Reader, node: &Node) -> Option<u32> {
    let text = reader.fixed(node, "a mode")?;
    let octal = text.strip_prefix("0o").unwrap_or(text);
    match u32::from_str_radix(octal, 8) {
        Ok(mode) if mode <= 0o7777 && (3..=5).contains(&octal.len()) && !octal.starts_with('+') => {
            Some(mode)
        }
        _ => {
            let message = format!(
                "`{}` is not a mode: octal digits, such as \"0644\"",
                shorten(text)
            );
            reader.error(Code::Text, node.place, message);
            None
        }
    }
}
