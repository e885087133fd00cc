//! From the text of a resource file to checked [`Resource`]s, or to all that is wrong with them.
//!
//! A file holds one or more documents, each with `apiVersion`, `kind`, `name` and `spec`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use crate::document::reader::shorten;
use crate::document::{Checked, Code, Node, Place, Reader};
use crate::names::{
    ChannelName, FleetName, ImageName, RegionName, RepositoryName, SecretName, SetName, TeamName,
};
use crate::pipeline::check::{api_version, globs};
use crate::pipeline::rules::Rule;
use crate::pipeline::{PIPELINE_PATH, SecretRef};
use crate::resource::definition::{
    ChannelRef, Drain, Fleet, Health, HealthHttp, Provider, Quota, Repository, Resource,
    ResourceKind, Retention, Role, ScaleSet, Serve, Team, TeamMember,
};
use crate::units::TimeSpan;

/// The most documents in one file.
pub const RESOURCES_MAX: usize = 1_000;
/// The most scale sets of a fleet.
pub const SETS_MAX: usize = 64;
/// The most instances of a scale set; Azure's limit.
pub const INSTANCES_MAX: u32 = 1_000;
/// The most members of a team.
pub const MEMBERS_MAX: usize = 10_000;
/// The longest text about a resource.
pub const DESCRIPTION_BYTES_MAX: usize = 4_096;
/// Health is asked for at least this often.
pub const HEALTH_INTERVAL_MAX: TimeSpan = TimeSpan::from_secs(5 * 60);
/// And at most this often: faster asks more than it learns.
pub const HEALTH_INTERVAL_MIN: TimeSpan = TimeSpan::from_millis(50);
/// The most answers in a row that a verdict waits for.
pub const VERDICT_ANSWERS_MAX: u32 = 100;
/// The longest that open connections may hold up a replacement.
pub const DRAIN_MAX: TimeSpan = TimeSpan::from_secs(60 * 60);
/// A repository is looked at at most this often.
pub const POLL_MIN: TimeSpan = TimeSpan::from_millis(500);
/// And at least this often, when it is polled at all.
pub const POLL_MAX: TimeSpan = TimeSpan::from_secs(24 * 60 * 60);

/// The largest weight of a team.
pub const WEIGHT_MAX: u32 = 1_000;
/// The largest quota of a team.
pub const QUOTA_MAX: u32 = 1_000_000;
/// The most finished runs of a team that can be kept.
pub const RUNS_KEPT_MAX: u32 = 10_000_000;
/// The most days for which they can be kept.
pub const DAYS_KEPT_MAX: u32 = 3_650;

/// Reads a file of resources. `file` is what the problems call it.
pub fn parse(file: &str, text: &str) -> Checked<Vec<Resource>> {
    let (mut reader, documents) = Reader::open(file, text);
    if documents.is_empty() && !reader.failed() {
        let place = Place {
            line: 1,
            column: 1,
            ..Place::default()
        };
        reader.error(Code::Documents, place, "the file is empty");
    }
    if let Some(beyond) = documents.get(RESOURCES_MAX) {
        reader.error(
            Code::TooLarge,
            beyond.place,
            format!("a file holds at most {RESOURCES_MAX} resources"),
        );
    }
    let mut first: BTreeMap<(ResourceKind, String), usize> = BTreeMap::new();
    let mut resources = Vec::new();
    for document in documents.iter().take(RESOURCES_MAX) {
        let Some(resource) = resource(&mut reader, document) else {
            continue;
        };
        let (kind, name) = (resource.kind(), resource.name().to_owned());
        if let Some(line) = first.insert((kind, name.clone()), document.place.line) {
            let message = format!("the {} `{name}` stands in the file twice", kind.as_str());
            reader.error_hint(
                Code::Contradiction,
                document.place,
                message,
                format!("the first is on line {line}"),
            );
        }
        resources.push(resource);
    }
    let value = if reader.failed() {
        None
    } else {
        Some(resources)
    };
    Checked {
        value,
        problems: reader.finish(),
    }
}

const KINDS: [(&str, ResourceKind); 3] = [
    ("Fleet", ResourceKind::Fleet),
    ("Repository", ResourceKind::Repository),
    ("Team", ResourceKind::Team),
];

fn resource(reader: &mut Reader, node: &Node) -> Option<Resource> {
    let mut map = reader.map(node, "a resource")?;
    let version = map.required(reader, "apiVersion", api_version);
    let kind = map.required(reader, "kind", |r, n| {
        r.choice(n, "a kind of resource", &KINDS)
    });
    let name_node = map.required(reader, "name", |_, n| Some(n));
    let resource = map.required(reader, "spec", |r, n| match kind? {
        ResourceKind::Fleet => fleet(r, name_node, n).map(Resource::Fleet),
        ResourceKind::Repository => repository(r, name_node, n).map(Resource::Repository),
        ResourceKind::Team => team(r, name_node, n).map(Resource::Team),
    });
    map.done(reader, |key| match key {
        "metadata" => Some("the name stands at the top: `name: ...`"),
        "bake" | "rollout" | "triggers" | "publish" => {
            Some("this is a pipeline's key; pipelines stand in repositories and are not applied")
        }
        _ => None,
    });
    version?;
    resource
}

fn fleet(reader: &mut Reader, name: Option<&Node>, node: &Node) -> Option<Fleet> {
    let name = name.and_then(|n| reader.name::<FleetName>(n, "a fleet's name"));
    let mut map = reader.map(node, "a fleet")?;
    let team = map.required(reader, "team", |r, n| {
        r.name::<TeamName>(n, "a team's name")
    });
    let provider = map.required(reader, "provider", |r, n| {
        if n.scalar() == Some("azure") {
            let hint = "use `local`, which runs instances on this machine";
            r.error_hint(
                Code::ComesLater,
                n.place,
                "the provider `azure` comes in a later version",
                hint,
            );
            return None;
        }
        r.choice(n, "a provider", &[("local", Provider::Local)])
    });
    let sets = map.required(reader, "sets", sets);
    let listen = map.required(reader, "listen", listen);
    let serve = map.required(reader, "serve", |r, n| {
        let mut map = r.map(n, "`serve`")?;
        let port = map.required(r, "port", Reader::port);
        map.done(r, |_| None);
        Some(Serve { port: port? })
    });
    let health = map.required(reader, "health", health);
    let drain = map.or(
        reader,
        "drain",
        Drain {
            timeout: TimeSpan::from_secs(30),
        },
        |r, n| {
            let mut map = r.map(n, "`drain`")?;
            let timeout = map.required(r, "timeout", |r, n| {
                r.span(n, "a drain's timeout", TimeSpan::default(), DRAIN_MAX)
            });
            map.done(r, |_| None);
            Some(Drain { timeout: timeout? })
        },
    );
    let channel = map.required(reader, "channel", |r, n| {
        let mut map = r.map(n, "`channel`")?;
        let image = map.required(r, "image", |r, n| r.name::<ImageName>(n, "an image's name"));
        let channel = map.required(r, "channel", |r, n| {
            r.name::<ChannelName>(n, "a channel's name")
        });
        map.done(r, |_| None);
        Some(ChannelRef {
            image: image?,
            channel: channel?,
        })
    });
    map.done(reader, |key| match key {
        "count" => Some("it belongs into an item of `sets`"),
        "port" => Some("the port that instances serve is `serve: { port: 80 }`"),
        _ => None,
    });
    Some(Fleet {
        name: name?,
        team: team?,
        provider: provider?,
        sets: sets?,
        listen: listen?,
        serve: serve?,
        health: health?,
        drain: drain?,
        channel: channel?,
    })
}

fn sets(reader: &mut Reader, node: &Node) -> Option<Vec<ScaleSet>> {
    let mut seen = BTreeSet::new();
    let sets = reader.list(node, |r, n| {
        let mut map = r.map(n, "a scale set")?;
        let name = map.required(r, "name", |r, n| {
            let name = r.name::<SetName>(n, "a scale set's name")?;
            if !seen.insert(name.clone()) {
                r.error(
                    Code::Contradiction,
                    n.place,
                    format!("the scale set `{name}` is named twice"),
                );
            }
            Some(name)
        });
        let region = map.optional(r, "region", |r, n| r.name::<RegionName>(n, "a region"));
        let count = map.required(r, "count", |r, n| {
            r.number(n, "the number of instances", 0, INSTANCES_MAX)
        });
        map.done(r, |_| None);
        Some(ScaleSet {
            name: name?,
            region: region?,
            count: count?,
        })
    })?;
    if sets.is_empty() || sets.len() > SETS_MAX {
        let message = format!(
            "a fleet has between 1 and {SETS_MAX} scale sets, found {}",
            sets.len()
        );
        reader.error(Code::OutOfRange, node.place, message);
    }
    Some(sets)
}

fn listen(reader: &mut Reader, node: &Node) -> Option<SocketAddr> {
    let text = reader.fixed(node, "an address")?;
    let text = text.replacen("localhost:", "127.0.0.1:", 1);
    let Ok(address) = text.parse::<SocketAddr>() else {
        let message = format!("`{}` is not an address with a port", shorten(&text));
        reader.error_hint(
            Code::Address,
            node.place,
            message,
            "write it as 127.0.0.1:8080",
        );
        return None;
    };
    let loopback = match address.ip() {
        IpAddr::V4(ip) => ip.is_loopback(),
        IpAddr::V6(ip) => ip.is_loopback(),
    };
    if !loopback {
        // The local provider is for trying things out, and its balancer knows no TLS.
        let message = format!(
            "the local provider listens on loopback only, not on {}",
            address.ip()
        );
        reader.error_hint(
            Code::Address,
            node.place,
            message,
            format!("write 127.0.0.1:{}", address.port()),
        );
        return None;
    }
    Some(address)
}

fn health(reader: &mut Reader, node: &Node) -> Option<Health> {
    let mut map = reader.map(node, "`health`")?;
    let http = map.required(reader, "http", |r, n| {
        let mut map = r.map(n, "a health check")?;
        let port = map.required(r, "port", Reader::port);
        let path = map.or(r, "path", "/".to_owned(), |r, n| r.ruled(n, Rule::Request));
        let status = map.or(r, "status", 200, |r, n| {
            r.number(n, "a status", 100, 599)
                .and_then(|status| u16::try_from(status).ok())
        });
        map.done(r, |_| None);
        Some(HealthHttp {
            port: port?,
            path: path?,
            status: status?,
        })
    });
    let interval = map.or(reader, "interval", TimeSpan::from_secs(2), |r, n| {
        r.span(
            n,
            "the time between two health checks",
            HEALTH_INTERVAL_MIN,
            HEALTH_INTERVAL_MAX,
        )
    });
    let timeout = map.or(reader, "timeout", TimeSpan::from_secs(1), |r, n| {
        r.span(
            n,
            "a health check's timeout",
            TimeSpan::from_millis(10),
            HEALTH_INTERVAL_MAX,
        )
    });
    let answers =
        |r: &mut Reader, n: &Node| r.number(n, "the number of answers", 1, VERDICT_ANSWERS_MAX);
    let healthy_after = map.or(reader, "healthyAfter", 2, answers);
    let unhealthy_after = map.or(reader, "unhealthyAfter", 3, answers);
    map.done(reader, |_| None);
    Some(Health {
        http: http?,
        interval: interval?,
        timeout: timeout?,
        healthy_after: healthy_after?,
        unhealthy_after: unhealthy_after?,
    })
}

fn repository(reader: &mut Reader, name: Option<&Node>, node: &Node) -> Option<Repository> {
    let name = name.and_then(|n| reader.name::<RepositoryName>(n, "a repository's name"));
    let mut map = reader.map(node, "a repository")?;
    let team = map.required(reader, "team", |r, n| {
        r.name::<TeamName>(n, "a team's name")
    });
    let url = map.required(reader, "url", url);
    let branches = map.or(reader, "branches", Vec::new(), globs);
    let path = map.or(reader, "path", PIPELINE_PATH.to_owned(), |r, n| {
        r.ruled(n, Rule::Source)
    });
    let poll = map.optional(reader, "poll", |r, n| {
        r.span(n, "the time between two looks", POLL_MIN, POLL_MAX)
    });
    let webhook_secret = map.optional(reader, "webhookSecret", secret_ref);
    let credentials = map.optional(reader, "credentials", secret_ref);
    map.done(reader, |key| match key {
        "branch" => Some("the key is `branches` and takes a list"),
        "pipeline" | "file" => Some("the key is `path`"),
        "token" | "password" | "sshKey" => {
            Some("the key is `credentials: { secret: NAME }`; the value is set by `oast secret set NAME`")
        }
        _ => None,
    });
    Some(Repository {
        name: name?,
        team: team?,
        url: url?,
        branches: branches?,
        path: path?,
        poll: poll?,
        webhook_secret: webhook_secret?,
        credentials: credentials?,
    })
}

/// A repository's address, as `git clone` takes it.
fn url(reader: &mut Reader, node: &Node) -> Option<String> {
    let text = reader.fixed(node, "a repository's address")?;
    let wrong = |r: &mut Reader, why: &str, hint: &str| {
        r.error_hint(
            Code::Address,
            node.place,
            format!("`{}` {why}", shorten(text)),
            hint,
        );
    };
    if text.chars().any(|c| c.is_whitespace() || c.is_control()) {
        wrong(
            reader,
            "has a space in it",
            "write the address as `git clone` takes it",
        );
        return None;
    }
    let scheme = ["https://", "http://", "ssh://", "file:///"]
        .into_iter()
        .find(|s| text.starts_with(s));
    // `git@host:path`, but not `-option` and not `ext::command`, which git would run.
    let scp = text.split_once(':').is_some_and(|(host, path)| {
        host.contains('@')
            && !host.starts_with('-')
            && !host.contains('/')
            && !path.starts_with(':')
    });
    let hosted = text
        .strip_prefix("farm:")
        .is_some_and(|name| crate::names::check(name).is_ok());
    if scheme.is_none() && !scp && !hosted && !text.starts_with('/') {
        let hint = "https://host/path.git, ssh://git@host/path.git, git@host:path.git, an absolute path, or farm:NAME for a repository that the farm serves itself";
        wrong(reader, "is not a repository's address", hint);
        return None;
    }
    let authority = scheme
        .map(|s| text[s.len()..].split('/').next().unwrap_or_default())
        .unwrap_or_default();
    let password = authority
        .split_once('@')
        .is_some_and(|(user, _)| user.contains(':') || scheme != Some("ssh://"));
    if password {
        // Not shown again: what stands before the @ may be secret.
        let message = "the address has credentials in it";
        let hint =
            "leave them out, write `credentials: { secret: NAME }` and `oast secret set NAME`";
        reader.error_hint(Code::Secret, node.place, message, hint);
        return None;
    }
    Some(text.to_owned())
}

fn secret_ref(reader: &mut Reader, node: &Node) -> Option<SecretRef> {
    if node.scalar().is_some() {
        // The text is not shown: it may be the secret itself.
        let message = "a secret is named here, never written";
        let hint = "write `{ secret: NAME }`, and set the value by `oast secret set NAME`";
        reader.error_hint(Code::Secret, node.place, message, hint);
        return None;
    }
    let mut map = reader.map(node, "a reference to a secret")?;
    let secret = map.required(reader, "secret", |r, n| {
        r.name::<SecretName>(n, "a secret's name")
    });
    map.done(reader, |_| None);
    Some(SecretRef { secret: secret? })
}

fn team(reader: &mut Reader, name: Option<&Node>, node: &Node) -> Option<Team> {
    let name = name.and_then(|n| reader.name::<TeamName>(n, "a team's name"));
    let mut map = reader.map(node, "a team")?;
    let description = map.optional(reader, "description", |r, n| {
        let text = r.fixed(n, "a description")?;
        if text.len() > DESCRIPTION_BYTES_MAX {
            r.error(
                Code::OutOfRange,
                n.place,
                format!("a description has at most {DESCRIPTION_BYTES_MAX} bytes"),
            );
            return None;
        }
        Some(text.to_owned())
    });
    let members = map.or(reader, "members", Vec::new(), members);
    let weight = map.or(reader, "weight", 1, |r, n| {
        r.number(n, "a team's weight", 1, WEIGHT_MAX)
    });
    let quota = map.optional(reader, "quota", quota);
    let retention = map.optional(reader, "retention", retention);
    map.done(reader, |key| match key {
        "share" | "priority" => {
            Some("a team's part of the farm is its `weight`; urgency is a pipeline's `priority`")
        }
        "limit" | "slots" | "borrow" => Some("write `quota: { slots: 4, borrow: 2 }`"),
        _ => None,
    });
    Some(Team {
        name: name?,
        description: description?,
        members: members?,
        weight: weight?,
        quota: quota?,
        retention: retention?,
    })
}

fn quota(reader: &mut Reader, node: &Node) -> Option<Quota> {
    let mut map = reader.map(node, "`quota`")?;
    let slots = map.required(reader, "slots", |r, n| {
        r.number(n, "the number of slots", 0, QUOTA_MAX)
    });
    let borrow = map.or(reader, "borrow", 0, |r, n| {
        r.number(n, "the number of slots to borrow", 0, QUOTA_MAX)
    });
    map.done(reader, |_| None);
    let (slots, borrow) = (slots?, borrow?);
    if slots == 0 && borrow == 0 {
        reader.error_hint(
            Code::OutOfRange,
            node.place,
            "with this quota the team could never run anything",
            "give it a slot, or let it borrow one",
        );
        return None;
    }
    Some(Quota { slots, borrow })
}

fn retention(reader: &mut Reader, node: &Node) -> Option<Retention> {
    let usual = Retention::default();
    let mut map = reader.map(node, "`retention`")?;
    let runs = map.or(reader, "runs", usual.runs, |r, n| {
        r.number(n, "the number of finished runs", 1, RUNS_KEPT_MAX)
    });
    let days = map.or(reader, "days", usual.days, |r, n| {
        r.number(n, "the number of days", 1, DAYS_KEPT_MAX)
    });
    map.done(reader, |_| None);
    Some(Retention {
        runs: runs?,
        days: days?,
    })
}

fn members(reader: &mut Reader, node: &Node) -> Option<Vec<TeamMember>> {
    let mut seen = BTreeSet::new();
    let members = reader.list(node, |r, n| {
        if let Some(user) = n.scalar() {
            let hint = format!("write `- {{ user: {}, role: operator }}`", shorten(user));
            r.error_hint(
                Code::WrongType,
                n.place,
                "a member is a user with a role",
                hint,
            );
            return None;
        }
        let mut map = r.map(n, "a member")?;
        let user = map.required(r, "user", |r, n| {
            let text = r.fixed(n, "a user")?;
            let good = text
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"@._+-".contains(&b));
            if !good || text.len() > 254 {
                r.error(
                    Code::Text,
                    n.place,
                    format!("`{}` is not a user's name or mail address", shorten(text)),
                );
                return None;
            }
            if !seen.insert(text.to_owned()) {
                r.error(
                    Code::Contradiction,
                    n.place,
                    format!("the user `{text}` is named twice"),
                );
            }
            Some(text.to_owned())
        });
        let role = map.required(r, "role", |r, n| {
            let roles = [
                ("viewer", Role::Viewer),
                ("operator", Role::Operator),
                ("admin", Role::Admin),
            ];
            r.choice(n, "a role", &roles)
        });
        map.done(r, |_| None);
        Some(TeamMember {
            user: user?,
            role: role?,
        })
    })?;
    if members.len() > MEMBERS_MAX {
        reader.error(
            Code::OutOfRange,
            node.place,
            format!("a team has at most {MEMBERS_MAX} members"),
        );
    }
    Some(members)
}
