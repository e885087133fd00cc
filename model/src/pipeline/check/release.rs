//! `test:`, `publish:` and `rollout:`: from the image to the fleet.

use std::collections::BTreeSet;

use crate::document::reader::shorten;
use crate::document::{Code, Fields, Node, Reader};
use crate::names::{ChannelName, FleetName, ImageName, RegionName};
use crate::pipeline::definition::{
    BOOT_TIMEOUT, BootTest, Check, Decimal, Gate, HttpCheck, OnFailure, PrometheusGate, Publish,
    REQUEST_TIMEOUT, Rollout, StaticTest, Strategy, Test,
};
use crate::pipeline::rules::Rule;
use crate::units::{Amount, TimeSpan};

/// The longest a boot test may take.
pub const BOOT_TIMEOUT_MAX: TimeSpan = TimeSpan::from_secs(60 * 60);
/// The longest one request of a check or gate may take.
pub const REQUEST_TIMEOUT_MAX: TimeSpan = TimeSpan::from_secs(60);
/// The longest a batch may soak.
pub const SOAK_MAX: TimeSpan = TimeSpan::from_secs(7 * 24 * 60 * 60);
/// The longest an instance may take to become healthy.
pub const HEALTHY_DEADLINE_MAX: TimeSpan = TimeSpan::from_secs(2 * 60 * 60);
/// The most checks of a test, and gates of a rollout.
pub const CHECKS_MAX: usize = 100;
/// The least of what must last at all.
const MOMENT: TimeSpan = TimeSpan::from_millis(1);

pub(super) fn tests(reader: &mut Reader, node: &Node) -> Option<Vec<Test>> {
    reader.list(node, |r, n| {
        if n.scalar() == Some("static") {
            r.error_hint(
                Code::WrongType,
                n.place,
                "a test is a map of keys and values",
                "write `- static: {}`",
            );
            return None;
        }
        let mut map = r.map(n, "a test")?;
        let test = match map.one_of(r, &["static", "boot"]) {
            Some(("static", n)) => Fields::inside(r, "static", |r| {
                // `static:` with nothing after it means the same as `{}`.
                if !n.is_null() {
                    r.map(n, "a static test")?
                        .done(r, |_| Some("a static test has no settings"));
                }
                Some(Test::Static(StaticTest {}))
            }),
            Some((_, n)) => Fields::inside(r, "boot", |r| boot(r, n)).map(Test::Boot),
            None => None,
        };
        map.done(r, |key| match key {
            "checks" | "timeout" => {
                Some("it belongs inside: `boot: { timeout: 3m, checks: [...] }`")
            }
            _ => None,
        });
        test
    })
}

fn boot(reader: &mut Reader, node: &Node) -> Option<BootTest> {
    let mut map = reader.map(node, "a boot test")?;
    let timeout = map.or(reader, "timeout", BOOT_TIMEOUT, |r, n| {
        r.span(
            n,
            "a boot test's timeout",
            TimeSpan::from_secs(1),
            BOOT_TIMEOUT_MAX,
        )
    });
    let checks = map.or(reader, "checks", Vec::new(), |r, n| {
        let checks = r.list(n, check)?;
        if checks.len() > CHECKS_MAX {
            r.error(
                Code::OutOfRange,
                n.place,
                format!("a test has at most {CHECKS_MAX} checks"),
            );
        }
        Some(checks)
    });
    map.done(reader, |_| None);
    Some(BootTest {
        timeout: timeout?,
        checks: checks?,
    })
}

const CHECKS: &[&str] = &["http", "tcp", "command", "systemdUnit", "file"];

fn check(reader: &mut Reader, node: &Node) -> Option<Check> {
    let mut map = reader.map(node, "a check")?;
    let check = match map.one_of(reader, CHECKS) {
        Some((key @ "http", n)) => {
            Fields::inside(reader, key, |r| http(r, n, true)).map(Check::Http)
        }
        Some((key @ "tcp", n)) => Fields::inside(reader, key, |r| {
            let mut map = r.map(n, "a tcp check")?;
            let port = map.required(r, "port", Reader::port);
            map.done(r, |_| None);
            Some(Check::Tcp { port: port? })
        }),
        Some((key @ "command", n)) => {
            Fields::inside(reader, key, |r| r.ruled(n, Rule::Command)).map(Check::Command)
        }
        Some((key @ "systemdUnit", n)) => {
            Fields::inside(reader, key, |r| r.ruled(n, Rule::Unit)).map(Check::SystemdUnit)
        }
        Some((key, n)) => Fields::inside(reader, key, |r| {
            let mut map = r.map(n, "a file check")?;
            let path = map.required(r, "path", |r, n| r.ruled(n, Rule::Target));
            let contains = map.optional(r, "contains", |r, n| r.ruled(n, Rule::Filled));
            map.done(r, |_| None);
            Some(Check::File {
                path: path?,
                contains: contains?,
            })
        }),
        None => None,
    };
    map.done(reader, |_| None);
    check
}

fn http(reader: &mut Reader, node: &Node, port_required: bool) -> Option<HttpCheck> {
    let mut map = reader.map(
        node,
        if port_required {
            "an http check"
        } else {
            "an http gate"
        },
    )?;
    let port = if port_required {
        map.required(reader, "port", Reader::port).map(Some)
    } else {
        map.optional(reader, "port", Reader::port)
    };
    let path = map.or(reader, "path", "/".to_owned(), |r, n| {
        r.ruled(n, Rule::Request)
    });
    let status = map.or(reader, "status", 200, |r, n| {
        r.number(n, "a status", 100, 599)
            .and_then(|status| u16::try_from(status).ok())
    });
    let contains = map.optional(reader, "contains", |r, n| r.ruled(n, Rule::Filled));
    let timeout = map.or(reader, "timeout", REQUEST_TIMEOUT, |r, n| {
        r.span(n, "a request's timeout", MOMENT, REQUEST_TIMEOUT_MAX)
    });
    map.done(reader, |key| match key {
        "url" | "host" => {
            Some("each instance is asked at its own address: give `path`, and `port` if need be")
        }
        _ => None,
    });
    Some(HttpCheck {
        port: port?,
        path: path?,
        status: status?,
        contains: contains?,
        timeout: timeout?,
    })
}

pub(super) fn publish(reader: &mut Reader, node: &Node) -> Option<Publish> {
    let mut map = reader.map(node, "`publish`")?;
    let image = map.required(reader, "image", |r, n| {
        r.name::<ImageName>(n, "an image's name")
    });
    let channel = map.required(reader, "channel", |r, n| {
        r.name::<ChannelName>(n, "a channel's name")
    });
    let regions = map.or(reader, "regions", Vec::new(), |r, n| {
        let mut seen = BTreeSet::new();
        r.list(n, |r, n| {
            let region = r.name::<RegionName>(n, "a region, as its provider writes it")?;
            if !seen.insert(region.clone()) {
                r.error(
                    Code::Contradiction,
                    n.place,
                    format!("the region `{region}` is named twice"),
                );
                return None;
            }
            Some(region)
        })
    });
    map.done(reader, |_| None);
    Some(Publish {
        image: image?,
        channel: channel?,
        regions: regions?,
    })
}

pub(super) fn rollouts(reader: &mut Reader, node: &Node) -> Option<Vec<Rollout>> {
    let mut seen = BTreeSet::new();
    reader.list(node, |r, n| {
        let mut map = r.map(n, "a rollout")?;
        let fleet = map.required(r, "fleet", |r, n| {
            let fleet = r.name::<FleetName>(n, "a fleet's name")?;
            if !seen.insert(fleet.clone()) {
                r.error(
                    Code::Contradiction,
                    n.place,
                    format!("the fleet `{fleet}` gets the image twice"),
                );
            }
            Some(fleet)
        });
        let strategy = map.or(r, "strategy", Strategy::default(), strategy);
        let gates = map.or(r, "gates", Vec::new(), |r, n| {
            let gates = r.list(n, gate)?;
            if gates.len() > CHECKS_MAX {
                r.error(
                    Code::OutOfRange,
                    n.place,
                    format!("a rollout has at most {CHECKS_MAX} gates"),
                );
            }
            Some(gates)
        });
        let on_failure = map.or(r, "onFailure", OnFailure::Rollback, |r, n| {
            let choices = [
                ("rollback", OnFailure::Rollback),
                ("pause", OnFailure::Pause),
            ];
            r.choice(n, "an answer to a failure", &choices)
        });
        map.done(r, |key| match key {
            "canary" | "batch" | "soak" | "maxUnavailable" => Some("it belongs inside `strategy`"),
            _ => None,
        });
        Some(Rollout {
            fleet: fleet?,
            strategy: strategy?,
            gates: gates?,
            on_failure: on_failure?,
        })
    })
}

fn strategy(reader: &mut Reader, node: &Node) -> Option<Strategy> {
    let usual = Strategy::default();
    let mut map = reader.map(node, "`strategy`")?;
    let canary = map.or(reader, "canary", usual.canary, |r, n| {
        positive(r, n, "a canary")
    });
    let batch = map.or(reader, "batch", usual.batch, |r, n| {
        positive(r, n, "a batch")
    });
    let max_unavailable = map.or(reader, "maxUnavailable", usual.max_unavailable, |r, n| {
        r.amount(n, "the number of unavailable instances")
    });
    let surge_place = map.peek("maxSurge").map(|n| n.place);
    let max_surge = map.or(reader, "maxSurge", usual.max_surge, |r, n| {
        r.amount(n, "the number of extra instances")
    });
    let soak = map.or(reader, "soak", usual.soak, |r, n| {
        r.span(n, "a soak", TimeSpan::default(), SOAK_MAX)
    });
    let healthy_deadline = map.or(reader, "healthyDeadline", usual.healthy_deadline, |r, n| {
        r.span(
            n,
            "the healthy deadline",
            TimeSpan::from_secs(1),
            HEALTHY_DEADLINE_MAX,
        )
    });
    map.done(reader, |key| match key {
        "batches" | "step" => Some("the key is `batch`"),
        "bake" | "wait" | "pause" => Some("the key is `soak`"),
        _ => None,
    });
    let (max_unavailable, max_surge) = (max_unavailable?, max_surge?);
    if !max_surge.is_zero() {
        let place = surge_place.unwrap_or(node.place);
        let message = "extra instances during a rollout come in a later version";
        reader.error_hint(
            Code::ComesLater,
            place,
            message,
            "leave `maxSurge` out, or write 0",
        );
    }
    if max_unavailable.is_zero() && max_surge.is_zero() {
        let message =
            "with `maxUnavailable: 0` and no extra instances no instance can ever be replaced";
        reader.error_hint(
            Code::Contradiction,
            node.place,
            message,
            "let `maxUnavailable` be at least 1",
        );
    }
    if let (Some(Amount::Count(canary)), Some(Amount::Count(batch))) = (canary, batch)
        && canary > batch
    {
        let message = format!("the canary ({canary}) is larger than each batch after it ({batch})");
        let hint = "a canary is the smallest risk: make it smaller, or the batch larger";
        reader.warn(Code::Contradiction, node.place, message, hint);
    }
    Some(Strategy {
        canary: canary?,
        batch: batch?,
        max_unavailable,
        max_surge,
        soak: soak?,
        healthy_deadline: healthy_deadline?,
    })
}

fn positive(reader: &mut Reader, node: &Node, what: &str) -> Option<Amount> {
    let amount = reader.amount(node, what)?;
    if amount.is_zero() {
        reader.error(
            Code::OutOfRange,
            node.place,
            format!("{what} is at least 1"),
        );
        return None;
    }
    Some(amount)
}

fn gate(reader: &mut Reader, node: &Node) -> Option<Gate> {
    let mut map = reader.map(node, "a gate")?;
    let gate = match map.one_of(reader, &["http", "prometheus"]) {
        Some((key @ "http", n)) => {
            Fields::inside(reader, key, |r| http(r, n, false)).map(Gate::Http)
        }
        Some((key, n)) => Fields::inside(reader, key, |r| {
            let message = "gates on metrics come in a later version";
            r.error_hint(Code::ComesLater, n.place, message, "use an `http` gate");
            prometheus(r, n)
        })
        .map(Gate::Prometheus),
        None => None,
    };
    map.done(reader, |key| match key {
        "promql" | "metric" => {
            Some("the key is `prometheus`: `{ query: \"...\", max: 0.01, for: 2m }`")
        }
        "approval" => Some("approvals come in a later version"),
        _ => None,
    });
    gate
}

fn prometheus(reader: &mut Reader, node: &Node) -> Option<PrometheusGate> {
    let mut map = reader.map(node, "a prometheus gate")?;
    let url = map.optional(reader, "url", |r, n| r.ruled(n, Rule::Web));
    let query = map.required(reader, "query", |r, n| r.ruled(n, Rule::Filled));
    let min = map.optional(reader, "min", decimal);
    let max = map.optional(reader, "max", decimal);
    let hold = map.or(reader, "for", TimeSpan::default(), |r, n| {
        r.span(
            n,
            "the time that a gate must be good",
            TimeSpan::default(),
            SOAK_MAX,
        )
    });
    map.done(reader, |_| None);
    let (min, max) = (min?, max?);
    match (&min, &max) {
        (None, None) => reader.error(
            Code::MissingKey,
            node.place,
            "a prometheus gate needs `min` or `max`",
        ),
        (Some(min), Some(max)) if min.value() > max.value() => {
            let message = format!("`min` ({}) is above `max` ({})", min.as_str(), max.as_str());
            reader.error(Code::Contradiction, node.place, message);
        }
        _ => {}
    }
    Some(PrometheusGate {
        url: url?,
        query: query?,
        min,
        max,
        hold: hold?,
    })
}

fn decimal(reader: &mut Reader, node: &Node) -> Option<Decimal> {
    let text = reader.fixed(node, "a limit")?;
    match text.parse() {
        Ok(decimal) => Some(decimal),
        Err(_) => {
            let message = format!("`{}` is not a decimal number, such as 0.01", shorten(text));
            reader.error(Code::WrongType, node.place, message);
            None
        }
    }
}
