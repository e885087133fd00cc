//! The types of resources: what is alike for all, and where each type's rules are.
//!
//! ```text
//! PUT, PATCH  schema -> preconditions -> the type's check -> stored (Creating | Updating) -> operation
//! end         the type's `written`: Succeeded, or Failed and left there to be written again
//! DELETE      the type's `removable` -> Deleting -> operation -> gone, with all beneath it
//! POST        the type's `act`
//! ```

use serde_json::{Value, json};

use crate::http::{Method, Reply};
use crate::json;
use crate::operations::{Operation, Verb};
use crate::problem::Problem;
use crate::schema::Need;
use crate::store::Resource;
use crate::time::Moment;
use crate::world::{Begin, Call, Due, World};

mod capacity;
mod disk;
mod gallery;
mod group;
mod guest;
mod image;
mod kind;
mod machine;
mod network;
mod read;
mod set;

pub use capacity::{Capacity, skus, usages};
pub use disk::Media;
pub use gallery::Replicas;
pub use guest::{Guests, Run};
pub use kind::{Kind, region};
pub use machine::{Power, Vm, events};
pub use read::{list, show};
pub use set::{Deed, Instance, Set};

/// What the service knows about a resource besides its body.
#[derive(Clone, Debug)]
pub enum State {
    /// Nothing.
    Plain,
    /// Of a disk or snapshot.
    Disk(Box<Media>),
    /// Of a gallery version.
    Version(Box<Replicas>),
    /// Of a virtual machine.
    Machine(Box<Vm>),
    /// Of a scale set.
    Set(Box<Set>),
    /// Of an instance of a scale set.
    Instance(Box<Instance>),
    /// Of a managed Run Command.
    Command(Box<Run>),
    /// Of what is of the network: the VM that uses it.
    Interface(Option<String>),
}

/// What an operation does at its end.
#[derive(Clone, Debug)]
pub enum Work {
    /// A body was written.
    Write {
        /// It was not there before.
        fresh: bool,
    },
    /// The resource goes.
    Delete,
    /// Something else.
    Act(Act),
}

/// Actions whose effect comes at the end of their operation.
#[derive(Clone, Debug)]
pub enum Act {
    /// A link to a disk's bytes.
    GrantAccess {
        /// To upload.
        write: bool,
        /// For so long.
        seconds: u64,
        /// `http://host:port` of who asked.
        base: String,
    },
    /// The links end.
    RevokeAccess,
    /// A machine comes to this state of power.
    Power(Power),
    /// A machine is as it was, but started anew; from its image when so told.
    Restart {
        /// Its disk is made anew.
        reimage: bool,
    },
    /// What a script gave.
    RunCommand(Box<Run>),
    /// Something is done to instances of a scale set.
    Instances {
        /// Which.
        keys: Vec<String>,
        /// What.
        deed: Deed,
    },
}

/// What happens to a resource by itself.
#[derive(Clone, Debug)]
pub enum Tick {
    /// A link to a disk's bytes has expired.
    AccessEnds,
    /// A spot machine has had its notice.
    Evict,
    /// A rolling upgrade goes on, unless there is a newer one.
    Upgrade(u64),
}

/// The rules of one type. What has a body here is what most types do.
pub(crate) trait Rules: Sync {
    /// Fills in defaults and checks a body against the rest of the world.
    fn check(
        &self,
        world: &mut World,
        call: &Call<'_>,
        old: Option<&Resource>,
        body: &mut Value,
    ) -> Result<State, Problem>;

    /// The recorded duration of writing; absent: at once.
    fn write_takes(&self, fresh: bool, method: Method) -> Option<&'static str>;

    /// How long this write takes, when it is not the recorded duration.
    fn write_ms(&self, _world: &mut World, _call: &Call<'_>) -> Option<u64> {
        None
    }

    /// The recorded duration of deleting; absent: at once.
    fn delete_takes(&self) -> Option<&'static str>;

    /// The end of a write.
    fn written(&self, _world: &mut World, _operation: &Operation) -> Result<(), Problem> {
        Ok(())
    }

    /// A write that was accepted has just been stored.
    fn stored(&self, _world: &mut World, _call: &Call<'_>, _old: Option<&Resource>) {}

    /// The end of an operation that a fault has doomed.
    fn failed(&self, _world: &mut World, _operation: &Operation, _problem: &Problem) {}

    /// Whether it may go.
    fn removable(&self, _world: &World, _resource: &Resource) -> Result<(), Problem> {
        Ok(())
    }

    /// It has gone.
    fn removed(&self, _world: &mut World, _resource: &Resource) {}

    /// Adds to the body what the service knows.
    fn show(&self, world: &World, resource: &Resource, expand: &str, body: &mut Value);

    /// Last parts of paths that are actions, in lower case.
    fn actions(&self) -> &'static [&'static str] {
        &[]
    }

    /// Does one of the actions.
    fn act(&self, _world: &mut World, call: &Call<'_>) -> Result<Reply, Problem> {
        Err(Problem::no_method(call.request.method.name()))
    }

    /// The end of an action.
    fn acted(
        &self,
        _world: &mut World,
        _operation: &Operation,
        _act: &Act,
    ) -> Result<Option<Value>, Problem> {
        Ok(None)
    }

    /// Something happens by itself.
    fn tick(&self, _world: &mut World, _key: &str, _tick: Tick) {}
}

fn rules(kind: Kind) -> &'static dyn Rules {
    match kind {
        Kind::Group | Kind::Any => &group::Groups,
        Kind::Disk => &disk::Disks,
        Kind::Snapshot => &disk::Snapshots,
        Kind::Image => &image::Images,
        Kind::Gallery => &gallery::Galleries,
        Kind::Definition => &gallery::Definitions,
        Kind::Version => &gallery::Versions,
        Kind::Machine => &machine::Machines,
        Kind::Set => &set::Sets,
        Kind::Instance => &set::Instances,
        Kind::Command => &machine::Commands,
        Kind::Extension => &machine::Extensions,
        Kind::Network | Kind::Subnet | Kind::Interface | Kind::Address | Kind::Firewall => {
            &network::Networks
        }
    }
}

/// Whether the last part of an open path is an action of the type.
#[must_use]
pub fn has_action(kind: Kind, target: &crate::http::Target) -> bool {
    let last = target.types.last().map(|last| last.to_ascii_lowercase());
    last.is_some_and(|last| rules(kind).actions().contains(&last.as_str()))
}

/// Answers a request about one resource.
///
/// # Errors
/// What is wrong with it.
pub fn answer(world: &mut World, call: &Call<'_>) -> Result<Reply, Problem> {
    if call.kind != Kind::Group {
        group::must_exist(world, &call.target)?;
    }
    if !call.action().is_empty() || call.request.method == Method::Post {
        read::visible(world, call)?;
        return rules(call.kind).act(world, call);
    }
    match call.request.method {
        Method::Get => read::one(world, call),
        Method::Head if call.kind == Kind::Group => {
            let there = world.store.get(&call.key).is_some();
            Ok(Reply::empty(if there { 204 } else { 404 }))
        }
        Method::Put | Method::Patch => write(world, call),
        Method::Delete => delete(world, call),
        Method::Head | Method::Post => Err(Problem::no_method(call.request.method.name())),
    }
}

fn write(world: &mut World, call: &Call<'_>) -> Result<Reply, Problem> {
    let kind = call.kind;
    let rules = rules(kind);
    let method = call.request.method;
    let old = world.store.get(&call.key).cloned();
    preconditions(call, old.as_ref())?;
    if method == Method::Patch && old.is_none() {
        return Err(read::absent(call));
    }
    kind.parent_must_exist(world, call)?;
    group::must_stay(world, &call.target)?;
    let need = if method == Method::Patch {
        Need::Part
    } else {
        Need::Whole
    };
    let given = world.schema().accept(kind.schema(), &call.body()?, need)?;
    let mut body = match &old {
        Some(old) if method == Method::Patch => {
            let mut merged = old.body.clone();
            json::merge(&mut merged, &given);
            merged
        }
        _ => given,
    };
    let state = rules.check(world, call, old.as_ref(), &mut body)?;
    let location = place(call, old.as_ref(), &mut body)?;
    let takes = rules.write_takes(old.is_none(), method);
    world.make_room(&call.key, Verb::Write)?;
    hide_secrets(&mut body);
    let settings = world.settings.clone();
    let now = world.now;
    if let Some(old) = &old
        && settings.stale_ms > 0
    {
        let shown = show(world, old, "");
        let until = now.after(world.dice.between(0, settings.stale_ms));
        world.store.echo(&call.key, kind, shown, until);
    }
    let appear = world.dice.between(0, settings.appear_ms);
    let listed = appear + world.dice.between(0, settings.list_ms);
    let fresh = old.is_none();
    let resource = Resource {
        id: old
            .as_ref()
            .map_or_else(|| kind.id(&call.target), |old| old.id.clone()),
        kind,
        name: old
            .as_ref()
            .map_or_else(|| call.target.name().to_owned(), |old| old.name.clone()),
        location,
        body,
        state,
        provisioning: match takes {
            None => "Succeeded",
            Some(_) if fresh => "Creating",
            Some(_) => "Updating",
        },
        etag: old.as_ref().map_or(1, |old| old.etag + 1),
        created: old.as_ref().map_or(now, |old| old.created),
        operation: None,
        visible: old
            .as_ref()
            .map_or_else(|| now.after(appear), |old| old.visible),
        listed: old
            .as_ref()
            .map_or_else(|| now.after(listed), |old| old.listed),
    };
    if fresh || settings.stale_ms == 0 {
        world.store.insert(resource);
    } else if let Some(stored) = world.store.get_mut(&call.key) {
        *stored = resource;
    }
    rules.stored(world, call, old.as_ref());
    let Some(row) = takes else {
        let body = shown(world, call);
        let status = if fresh { 201 } else { 200 };
        return Ok(Reply::json(status, body));
    };
    let ms = match rules.write_ms(world, call) {
        Some(ms) => ms,
        None => world.durations.take(row, &mut world.dice),
    };
    let begin = Begin {
        key: call.key.clone(),
        verb: Verb::Write,
        work: Work::Write { fresh },
        ms,
        shared: false,
    };
    let id = world.begin(call, begin)?;
    let body = shown(world, call);
    let reply = match kind {
        Kind::Disk | Kind::Snapshot => Reply::json(202, disk::stub(&body)),
        _ if fresh => Reply::json(201, body),
        _ => Reply::json(200, body),
    };
    Ok(world.following(call, &id, reply))
}

fn shown(world: &World, call: &Call<'_>) -> Value {
    let stored = world.store.get(&call.key).expect("it has just been stored");
    show(world, stored, "")
}

/// The region of a resource: given with the first PUT, kept for ever.
fn place(call: &Call<'_>, old: Option<&Resource>, body: &mut Value) -> Result<String, Problem> {
    let given = json::text(body, "location").map(region);
    json::remove(body, "location");
    let Some(old) = old else {
        return Ok(given.unwrap_or_else(|| "westeurope".to_owned()));
    };
    match given {
        Some(given) if given != old.location && call.kind != Kind::Group => Err(Problem::new(
            409,
            "InvalidResourceLocation",
            format!(
                "The resource '{}' already exists in location '{}' in resource group '{}'. A resource with the same name cannot be created in location '{given}'. Please select a new resource name.",
                old.name,
                old.location,
                call.target.group()
            ),
        )),
        _ => Ok(old.location.clone()),
    }
}

/// `If-Match` and `If-None-Match`, as far as the type has an ETag.
fn preconditions(call: &Call<'_>, old: Option<&Resource>) -> Result<(), Problem> {
    if !call.kind.has_etag() {
        return Ok(());
    }
    let etag = old.map(read::etag);
    if let Some(wanted) = call.request.header("if-match") {
        let holds = etag
            .as_deref()
            .is_some_and(|etag| wanted == "*" || same_etag(wanted, etag));
        if !holds {
            return Err(Problem::precondition("If-Match"));
        }
    }
    if let Some(unwanted) = call.request.header("if-none-match") {
        let hit = etag
            .as_deref()
            .is_some_and(|etag| unwanted == "*" || same_etag(unwanted, etag));
        if hit {
            return Err(Problem::precondition("If-None-Match"));
        }
    }
    Ok(())
}

fn same_etag(given: &str, ours: &str) -> bool {
    given.trim_matches('"') == ours.trim_matches('"')
}

/// What is kept for the service alone does not come back in any answer.
fn hide_secrets(value: &mut Value) {
    match value {
        Value::Object(object) => {
            for secret in crate::schema::SECRETS {
                object.shift_remove(secret);
            }
            object.values_mut().for_each(hide_secrets);
        }
        Value::Array(elements) => elements.iter_mut().for_each(hide_secrets),
        _ => {}
    }
}

fn delete(world: &mut World, call: &Call<'_>) -> Result<Reply, Problem> {
    let Some(resource) = world.store.get(&call.key).cloned() else {
        return Ok(Reply::empty(204));
    };
    preconditions(call, Some(&resource))?;
    let rules = rules(call.kind);
    rules.removable(world, &resource)?;
    let ms = match (call.kind, rules.delete_takes()) {
        (Kind::Group, _) => group::removal_takes(world, &call.key),
        (_, Some(row)) => world.durations.take(row, &mut world.dice),
        (_, None) => {
            remove(world, &call.key);
            return Ok(Reply::empty(200));
        }
    };
    let begin = Begin {
        key: call.key.clone(),
        verb: Verb::Delete,
        work: Work::Delete,
        ms,
        shared: false,
    };
    let id = world.begin(call, begin)?;
    if let Some(resource) = world.store.get_mut(&call.key) {
        resource.provisioning = "Deleting";
    }
    Ok(world.following(call, &id, Reply::empty(202)))
}

/// Takes a resource and all beneath it away.
pub(crate) fn remove(world: &mut World, key: &str) {
    let beneath: Vec<String> = world.store.under(key).map(Resource::key).collect();
    // The deepest first, so that a parent's rules find what they made.
    for key in beneath.iter().rev().map(String::as_str).chain([key]) {
        let Some(resource) = world.store.get(key).cloned() else {
            continue;
        };
        let vanish = world.settings.vanish_ms;
        if vanish > 0 {
            let until = world.now.after(world.dice.between(0, vanish));
            let body = show(world, &resource, "");
            world.store.echo(key, resource.kind, body, until);
        }
        world.store.remove(key);
        rules(resource.kind).removed(world, &resource);
    }
}

/// An operation's time has come.
///
/// # Errors
/// It failed for a reason of the type's own.
pub fn finish(world: &mut World, operation: &Operation) -> Result<Option<Value>, Problem> {
    let Some(resource) = world.store.get(&operation.key) else {
        return match operation.work {
            Work::Delete => Ok(None),
            _ => Err(Problem::no_entity()),
        };
    };
    let rules = rules(resource.kind);
    match &operation.work {
        Work::Write { .. } => rules.written(world, operation).map(|()| None),
        Work::Delete => {
            remove(world, &operation.key);
            Ok(None)
        }
        Work::Act(act) => rules.acted(world, operation, act),
    }
}

/// A fault has doomed an operation; the type may have to undo something.
pub fn failed(world: &mut World, operation: &Operation, problem: &Problem) {
    if let Some(kind) = world
        .store
        .get(&operation.key)
        .map(|resource| resource.kind)
    {
        rules(kind).failed(world, operation, problem);
    }
}

/// Something happens to a resource by itself, if it is still there.
pub fn tick(world: &mut World, key: &str, tick: Tick) {
    if let Some(kind) = world.store.get(key).map(|resource| resource.kind) {
        rules(kind).tick(world, key, tick);
    }
}

/// Begins an action on a resource and says where it can be followed.
pub(crate) fn begin_act(
    world: &mut World,
    call: &Call<'_>,
    act: Act,
    row: &str,
) -> Result<Reply, Problem> {
    let ms = world.durations.take(row, &mut world.dice);
    let begin = Begin {
        key: call.key.clone(),
        verb: Verb::Act,
        work: Work::Act(act),
        ms,
        shared: false,
    };
    let id = world.begin(call, begin)?;
    Ok(world.following(call, &id, Reply::empty(202)))
}

/// Has something happen to a resource at a moment.
pub(crate) fn tick_at(world: &mut World, at: Moment, key: &str, tick: Tick) {
    world.schedule(at, Due::Resource(key.to_owned(), tick));
}

/// Everything that exists, for the control API.
#[must_use]
pub fn inventory(world: &World) -> Value {
    let one = |resource: &Resource| {
        json!({
            "id": resource.id,
            "type": resource.kind.type_name(),
            "provisioningState": resource.provisioning,
            "tags": resource.body.get("tags").cloned().unwrap_or_else(|| json!({})),
        })
    };
    world.store.all().map(one).collect()
}
