//! Reading: one resource, and lists with everything that lags behind.

use serde_json::{Value, json};

use super::{Kind, group, rules};
use crate::http::{Method, Reply};
use crate::json;
use crate::problem::Problem;
use crate::store::Resource;
use crate::world::{Call, World};

/// The body of a resource.
#[must_use]
pub fn show(world: &World, resource: &Resource, expand: &str) -> Value {
    let mut body = json!({
        "name": resource.name,
        "id": resource.id,
        "type": resource.kind.type_name(),
        "location": resource.location,
    });
    json::merge(&mut body, &resource.body);
    json::set(
        &mut body,
        "properties.provisioningState",
        resource.provisioning,
    );
    rules(resource.kind).show(world, resource, expand, &mut body);
    if resource.kind.has_etag() {
        body["etag"] = json!(etag(resource));
    }
    body
}

/// The ETag of a resource, with its quotes.
#[must_use]
pub fn etag(resource: &Resource) -> String {
    format!("\"{}\"", resource.etag)
}

/// What is answered for a resource that is not there.
#[must_use]
pub fn absent(call: &Call<'_>) -> Problem {
    let subject = match call.target.is_open() {
        true => call.target.parent(),
        false => call.target.clone(),
    };
    match call.kind {
        Kind::Group => Problem::no_group(subject.group()),
        _ => Problem::not_found(
            call.kind.type_name(),
            &subject.names.join("/"),
            subject.group(),
        ),
    }
}

/// Whether the resource of a call can be seen.
///
/// # Errors
/// It is not there, or not yet to be seen.
pub fn visible<'w>(world: &'w World, call: &Call<'_>) -> Result<&'w Resource, Problem> {
    let seen = |resource: &&Resource| resource.visible <= world.now;
    world
        .store
        .get(&call.key)
        .filter(seen)
        .ok_or_else(|| absent(call))
}

/// Answers GET of one resource.
pub fn one(world: &World, call: &Call<'_>) -> Result<Reply, Problem> {
    if let Some(body) = world.store.echoed(&call.key, world.now) {
        return Ok(Reply::json(200, body.clone()));
    }
    let resource = visible(world, call)?;
    let expand = call.request.parameter("$expand").unwrap_or_default();
    let mut reply = Reply::json(200, show(world, resource, expand));
    if call.kind.has_etag() {
        reply = reply.with("etag", etag(resource));
    }
    Ok(reply)
}

/// Answers GET of a collection: of a group, a subscription, a location or a parent.
///
/// # Errors
/// What it should be in is not there.
pub fn list(world: &mut World, call: &Call<'_>) -> Result<Reply, Problem> {
    if call.request.method != Method::Get {
        return Err(Problem::no_method(call.request.method.name()));
    }
    let target = &call.target;
    if target.group.is_some() {
        group::must_exist(world, target)?;
    }
    let mut parent = target.parent();
    let location = match target.types.first() {
        Some(first) if first.eq_ignore_ascii_case("locations") => target.names.first(),
        _ => None,
    };
    let prefix = if parent.types.is_empty() || location.is_some() {
        parent.provider = None;
        parent.types.clear();
        parent.names.clear();
        crate::store::key(&parent.id())
    } else {
        if world.store.get(&call.key).is_none() {
            let kind = Kind::of("microsoft.compute", &parent.route())
                .or_else(|| Kind::of("microsoft.network", &parent.route()))
                .unwrap_or(call.kind);
            let names = parent.names.join("/");
            return Err(Problem::not_found(kind.type_name(), &names, target.group()));
        }
        call.key.clone()
    };
    let there = |resource: &&Resource| {
        let kind = match call.kind {
            Kind::Any => resource.kind != Kind::Group,
            kind => resource.kind == kind,
        };
        kind && resource.listed <= world.now
            && location.is_none_or(|location| super::region(location) == resource.location)
    };
    let expand = call.request.parameter("$expand").unwrap_or_default();
    let mut elements: Vec<Value> = world
        .store
        .under(&prefix)
        .filter(there)
        .map(|resource| match call.kind {
            Kind::Any => brief(resource),
            _ => show(world, resource, expand),
        })
        .collect();
    elements.extend(world.store.echoes(&prefix, call.kind, world.now).cloned());
    Ok(world.page(call.request, elements))
}

/// As the list of a group's resources has it.
fn brief(resource: &Resource) -> Value {
    let mut body = json!({
        "id": resource.id,
        "name": resource.name,
        "type": resource.kind.type_name(),
        "location": resource.location,
    });
    if let Some(tags) = resource.body.get("tags") {
        body["tags"] = tags.clone();
    }
    body
}
