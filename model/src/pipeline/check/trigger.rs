//! `triggers:`: what starts a run by itself.

use crate::document::reader::shorten;
use crate::document::{Code, Fields, Node, Reader};
use crate::pipeline::cron::{self, Schedule};
use crate::pipeline::definition::{CronTrigger, GitTrigger, Trigger};
use crate::pipeline::rules;

/// The most globs in one list.
pub const GLOBS_MAX: usize = 100;

pub(super) fn triggers(reader: &mut Reader, node: &Node) -> Option<Vec<Trigger>> {
    reader.list(node, |r, n| {
        let mut map = r.map(n, "a trigger")?;
        let trigger = match map.one_of(r, &["git", "cron"]) {
            Some(("git", n)) => Fields::inside(r, "git", |r| git(r, n)).map(Trigger::Git),
            Some((_, n)) => Fields::inside(r, "cron", |r| calendar(r, n)).map(Trigger::Cron),
            None => None,
        };
        map.done(r, |key| match key {
            "schedule" => {
                Some("the key is `cron`: `- cron: { cron: \"0 3 * * 1\", timezone: UTC }`")
            }
            "push" | "branches" | "paths" => {
                Some("write `- git: { branches: [main], paths: [\"web/**\"] }`")
            }
            "timezone" => Some("it belongs inside: `cron: { cron: \"0 3 * * 1\", timezone: UTC }`"),
            _ => None,
        });
        trigger
    })
}

fn git(reader: &mut Reader, node: &Node) -> Option<GitTrigger> {
    let mut map = reader.map(node, "a git trigger")?;
    let branches = map.or(reader, "branches", Vec::new(), globs);
    let paths = map.or(reader, "paths", Vec::new(), globs);
    map.done(reader, |key| match key {
        "branch" => Some("the key is `branches` and takes a list"),
        "repo" | "repository" | "url" => {
            Some("a pipeline's repository is the one that it stands in; others are declared by `oast apply`")
        }
        _ => None,
    });
    Some(GitTrigger {
        branches: branches?,
        paths: paths?,
    })
}

/// A list of globs.
pub(crate) fn globs(reader: &mut Reader, node: &Node) -> Option<Vec<String>> {
    let globs = reader.list(node, |r, n| {
        let text = r.fixed(n, "a glob")?;
        match rules::glob(text) {
            Ok(()) => Some(text.to_owned()),
            Err(wrong) => {
                r.error(Code::Glob, n.place, format!("`{}` {wrong}", shorten(text)));
                None
            }
        }
    })?;
    if globs.len() > GLOBS_MAX {
        reader.error(
            Code::OutOfRange,
            node.place,
            format!("a list has at most {GLOBS_MAX} globs"),
        );
        return None;
    }
    Some(globs)
}

fn calendar(reader: &mut Reader, node: &Node) -> Option<CronTrigger> {
    if node.scalar().is_some() {
        let hint = "write `cron: { cron: \"0 3 * * 1\", timezone: UTC }`";
        reader.error_hint(
            Code::WrongType,
            node.place,
            "a cron trigger is a map of keys and values",
            hint,
        );
        return None;
    }
    let mut map = reader.map(node, "a cron trigger")?;
    let cron = map.required(reader, "cron", |r, n| {
        let text = r.fixed(n, "a calendar")?;
        match text.parse::<Schedule>() {
            Ok(_) => Some(text.split_ascii_whitespace().collect::<Vec<_>>().join(" ")),
            Err(error) => {
                let message = format!("`{}` is not a calendar: {error}", shorten(text));
                match text {
                    "@hourly" => r.error_hint(Code::Cron, n.place, message, "write \"0 * * * *\""),
                    "@daily" | "@midnight" => {
                        r.error_hint(Code::Cron, n.place, message, "write \"0 0 * * *\"")
                    }
                    "@weekly" => r.error_hint(Code::Cron, n.place, message, "write \"0 0 * * 0\""),
                    "@monthly" => r.error_hint(Code::Cron, n.place, message, "write \"0 0 1 * *\""),
                    _ => r.error(Code::Cron, n.place, message),
                }
                None
            }
        }
    });
    let timezone = map.or(reader, "timezone", "UTC".to_owned(), |r, n| {
        let name = r.fixed(n, "a time zone")?;
        if cron::zone(name).is_some() {
            return Some(name.to_owned());
        }
        let message = format!("`{}` is not a time zone", shorten(name));
        let hint = match cron::nearest_zone(name) {
            Some(near) => format!("did you mean `{near}`?"),
            None => "use UTC or an IANA name such as Europe/Berlin".to_owned(),
        };
        r.error_hint(Code::Timezone, n.place, message, hint);
        None
    });
    map.done(reader, |_| None);
    Some(CronTrigger {
        cron: cron?,
        timezone: timezone?,
    })
}
