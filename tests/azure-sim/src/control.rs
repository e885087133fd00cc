//! The control API under `/__sim/`: what a test asks and tells the cloud behind its back.
//!
//! ```text
//! GET    clock | resources | operations | calls | runs | faults | violations
//! POST   clock      {"stepMs": n} | {"toNext": true} | {"scale": n} | {"stepped": true}
//! POST   settings   any of the names below
//! POST   faults     a rule (README.md)            DELETE faults
//! POST   quota      {"region", "name", "limit"} | {"region", "short": size}
//! POST   guests     {"contains": part of a script, "exitCode", "stdout", "stderr", "ms"}
//! POST   health     {"contains": part of an instance's or an image's id, "state"}
//! POST   foreign    {"policy", "perMinute"} | {"policy", "drain": true}
//! POST   principals {"clientId", "objectId", "secret"}
//! POST   denials    {"principal", "action"}       DELETE denials
//! POST   tokens     {"expire": true} | {"lifeSeconds": n}
//! ```

use std::time::Duration;

use serde_json::{Value, json};

use crate::http::{Method, Reply, Request};
use crate::identity::{Denial, Principal};
use crate::json;
use crate::resources;
use crate::time::Pace;
use crate::world::World;

/// How the paths begin.
pub const PREFIX: &str = "/__sim/";

/// Answers a request of the control API.
pub fn answer(world: &mut World, request: &Request, real: Duration) -> Reply {
    let what = &request.path[PREFIX.len()..];
    let body = match request.body.is_empty() {
        true => json!({}),
        false => match serde_json::from_slice(&request.body) {
            Ok(body) => body,
            Err(error) => return refuse(&error.to_string()),
        },
    };
    let done = match (request.method, what) {
        (Method::Get, "clock") => Ok(clock(world)),
        (Method::Get, "resources") => Ok(json!({"value": resources::inventory(world)})),
        (Method::Get, "operations") => Ok(operations(world)),
        (Method::Get, "calls") => Ok(calls(world)),
        (Method::Get, "faults") => Ok(json!({"value": world.faults.listed()})),
        (Method::Get, "runs") => Ok(json!({"value": world.guests.listed()})),
        (Method::Post, "guests") => {
            world.guests.add(&body);
            Ok(json!({}))
        }
        (Method::Post, "health") => health(world, &body),
        (Method::Get, "violations") => Ok(json!({"value": world.violations()})),
        (Method::Post, "clock") => set_clock(world, &body, real),
        (Method::Post, "settings") => settings(world, &body),
        (Method::Post, "faults") => world.faults.add(&body).map(|id| json!({"id": id})),
        (Method::Delete, "faults") => {
            world.faults.clear();
            Ok(json!({}))
        }
        (Method::Post, "quota") => quota(world, &body),
        (Method::Post, "foreign") => foreign(world, &body),
        (Method::Post, "principals") => principal(world, &body),
        (Method::Post, "denials") => deny(world, &body),
        (Method::Delete, "denials") => {
            world.identity.allow_all();
            Ok(json!({}))
        }
        (Method::Post, "tokens") => tokens(world, &body),
        _ => return Reply::json(404, json!({"error": format!("no {what:?} here")})),
    };
    match done {
        Ok(body) => Reply::json(200, body),
        Err(why) => refuse(&why),
    }
}

fn refuse(why: &str) -> Reply {
    Reply::json(400, json!({"error": why}))
}

fn clock(world: &World) -> Value {
    json!({
        "now": world.now.rfc3339(),
        "nowMs": world.now.0,
        "nextDueMs": world.next_due().map(|at| at.since(world.now)),
        "pace": match world.clock.pace() {
            Pace::Stepped => json!("stepped"),
            Pace::Scaled(factor) => json!(factor),
        },
    })
}

fn set_clock(world: &mut World, body: &Value, real: Duration) -> Result<Value, String> {
    if let Some(factor) = json::number(body, "scale") {
        world.clock.set(Pace::Scaled(factor.max(1)), real);
    } else if json::at(body, "stepped") == Some(&json!(true)) {
        world.clock.set(Pace::Stepped, real);
    } else if json::at(body, "toNext") == Some(&json!(true)) {
        let ms = world.next_due().map_or(0, |at| at.since(world.now));
        world.clock.step(ms);
    } else if let Some(ms) = json::number(body, "stepMs") {
        world.clock.step(ms);
    } else {
        return Err("one of scale, stepped, toNext, stepMs".to_owned());
    }
    world.advance(world.clock.now(real));
    Ok(clock(world))
}

fn settings(world: &mut World, body: &Value) -> Result<Value, String> {
    let given = body.as_object().ok_or("an object of settings")?;
    for (name, value) in given {
        let number = || value.as_u64().ok_or_else(|| format!("{name} is a number"));
        let flag = || {
            value
                .as_bool()
                .ok_or_else(|| format!("{name} is true or false"))
        };
        match name.as_str() {
            "lenientVersions" => world.settings.lenient_versions = flag()?,
            "virtualRetryAfter" => world.settings.virtual_retry_after = flag()?,
            "noRetryAfterPerMillion" => world.settings.no_retry_after_per_million = number()?,
            "page" => world.settings.page = usize::try_from(number()?).unwrap_or(usize::MAX),
            "appearMs" => world.settings.appear_ms = number()?,
            "listMs" => world.settings.list_ms = number()?,
            "vanishMs" => world.settings.vanish_ms = number()?,
            "staleMs" => world.settings.stale_ms = number()?,
            "urlPadding" => {
                world.settings.url_padding = usize::try_from(number()?).unwrap_or_default();
            }
            "anonymous" => world.settings.anonymous = flag()?,
            "throttleOff" => world.throttle.off = flag()?,
            "durationsPerMille" => world.durations.per_mille = number()?,
            "durationsSteady" => world.durations.steady = flag()?,
            _ => return Err(format!("no setting {name:?}")),
        }
    }
    Ok(json!({}))
}

fn operations(world: &World) -> Value {
    let one = |operation: &crate::operations::Operation| json!({"id": operation.id, "resource": operation.key, "began": operation.began.rfc3339()});
    let running: Vec<Value> = world.operations.running().map(one).collect();
    json!({"value": running})
}

fn calls(world: &World) -> Value {
    let counted = |((method, status), count): (&(&str, u16), &u64)| json!({"method": method, "status": status, "count": count});
    let counts: Vec<Value> = world.calls.iter().map(counted).collect();
    let logged = |call: &crate::world::Logged| json!({"at": call.at.rfc3339(), "method": call.method, "path": call.path, "status": call.status});
    let log: Vec<Value> = world.log.iter().map(logged).collect();
    json!({
        "counts": counts,
        "refused": world.throttle.refused(),
        "bytesUploaded": world.blobs.received,
        "log": log,
    })
}

fn quota(world: &mut World, body: &Value) -> Result<Value, String> {
    let region = resources::region(json::text(body, "region").ok_or("region")?);
    if let Some(size) = json::text(body, "short") {
        world.capacity.short.push((region, size.to_owned()));
        return Ok(json!({}));
    }
    let name = json::text(body, "name").ok_or("name")?.to_owned();
    let limit = json::number(body, "limit").ok_or("limit")?;
    world.capacity.limits.insert((region, name), limit);
    Ok(json!({}))
}

fn health(world: &mut World, body: &Value) -> Result<Value, String> {
    let contains = json::text(body, "contains").ok_or("contains")?;
    let state = json::text(body, "state").ok_or("state")?;
    world.guests.set_health(contains, state);
    Ok(json!({}))
}

fn foreign(world: &mut World, body: &Value) -> Result<Value, String> {
    let policy = json::text(body, "policy").ok_or("policy")?;
    if json::at(body, "drain") == Some(&json!(true)) {
        world.throttle.drain(policy, world.now);
    } else {
        let per_minute = json::number(body, "perMinute").ok_or("perMinute or drain")?;
        world.throttle.set_foreign(policy, per_minute);
    }
    Ok(json!({}))
}

fn principal(world: &mut World, body: &Value) -> Result<Value, String> {
    let client_id = json::text(body, "clientId").ok_or("clientId")?.to_owned();
    world.identity.register(Principal {
        object_id: json::text(body, "objectId")
            .unwrap_or(&client_id)
            .to_owned(),
        secret: json::text(body, "secret").map(str::to_owned),
        client_id,
    });
    Ok(json!({}))
}

fn deny(world: &mut World, body: &Value) -> Result<Value, String> {
    world.identity.deny(Denial {
        principal: json::text(body, "principal").unwrap_or("*").to_owned(),
        action: json::text(body, "action").ok_or("action")?.to_owned(),
    });
    Ok(json!({}))
}

fn tokens(world: &mut World, body: &Value) -> Result<Value, String> {
    if json::at(body, "expire") == Some(&json!(true)) {
        world.identity.expire_all(world.now);
    } else {
        let life = json::number(body, "lifeSeconds").ok_or("lifeSeconds or expire")?;
        world.identity.life_seconds = Some(life);
    }
    Ok(json!({}))
}
