//! What a machine runs: the Run Command action, managed Run Commands, extensions.

use serde_json::Value;

use super::super::{Act, Rules, Run, State, Work};
use super::{Power, not_running, vm};
use crate::http::{Method, Reply};
use crate::json;
use crate::operations::{Operation, Verb};
use crate::problem::Problem;
use crate::store::{Resource, key};
use crate::world::{Begin, Call, World};

const ROW: &str = "POST /virtualMachines/{}/runCommand";
/// A managed Run Command may run so long unless told otherwise.
const LIMIT_SECONDS: u64 = 90 * 60;

/// The action: one at a time, the output comes with the operation's result.
pub(super) fn run_command(
    world: &mut World,
    call: &Call<'_>,
    resource: &Resource,
) -> Result<Reply, Problem> {
    if vm(resource).is_none_or(|vm| vm.power != Power::Running) {
        return Err(not_running("runCommand", &resource.name));
    }
    if resource.busy() {
        return Err(Problem::new(
            409,
            "Conflict",
            "Run command extension execution is in progress. Please wait for completion before invoking a run command.",
        ));
    }
    let body = call.body()?;
    let id = json::text(&body, "commandId").ok_or_else(|| Problem::required("commandId"))?;
    let lines = json::list(&body, "script").iter().filter_map(Value::as_str);
    let script = lines.collect::<Vec<_>>().join("\n");
    if script.is_empty() && id.starts_with("Run") {
        return Err(Problem::required("script"));
    }
    let usual = world.durations.take(ROW, &mut world.dice);
    let run = world
        .guests
        .run(&resource.id, &script, world.now, usual, None);
    let ms = run.ends.since(world.now);
    let begin = Begin {
        key: call.key.clone(),
        verb: Verb::Act,
        work: Work::Act(Act::RunCommand(Box::new(run))),
        ms,
        shared: false,
    };
    let id = world.begin(call, begin)?;
    Ok(world.following(call, &id, Reply::empty(202)))
}

/// The machine of a nested resource, which must run.
fn running(world: &World, call: &Call<'_>) -> Result<Resource, Problem> {
    let parent = call.target.parent();
    let machine = world.store.get(&key(&parent.id()));
    let machine = machine.ok_or_else(|| Problem::bad_reference(&parent.id()))?;
    match vm(machine).map(|vm| vm.power) {
        Some(Power::Running) => Ok(machine.clone()),
        _ => Err(Problem::not_allowed(
            "Cannot modify extensions in the VM when the VM is not running.",
        )),
    }
}

pub(in crate::resources) struct Commands;

impl Rules for Commands {
    fn check(
        &self,
        world: &mut World,
        call: &Call<'_>,
        _old: Option<&Resource>,
        body: &mut Value,
    ) -> Result<State, Problem> {
        let machine = running(world, call)?;
        let source = ["script", "scriptUri", "commandId"]
            .iter()
            .find_map(|path| json::text(body, &format!("properties.source.{path}")));
        let script = source
            .ok_or_else(|| Problem::required("properties.source.script"))?
            .to_owned();
        json::default(body, "properties.asyncExecution", false);
        json::default(body, "properties.timeoutInSeconds", LIMIT_SECONDS);
        let limit = json::number(body, "properties.timeoutInSeconds").unwrap_or(LIMIT_SECONDS);
        let usual = world.durations.take(ROW, &mut world.dice);
        let limit = Some(limit.max(1) * 1000);
        let run = world
            .guests
            .run(&machine.id, &script, world.now, usual, limit);
        Ok(State::Command(Box::new(run)))
    }

    fn write_takes(&self, _fresh: bool, _method: Method) -> Option<&'static str> {
        Some(ROW)
    }

    fn write_ms(&self, world: &mut World, call: &Call<'_>) -> Option<u64> {
        let resource = world.store.get(&call.key)?;
        let State::Command(run) = &resource.state else {
            return None;
        };
        // A command that runs by itself is done when the agent has taken it.
        let alone =
            json::at(&resource.body, "properties.asyncExecution") == Some(&Value::Bool(true));
        let whole = run.ends.since(world.now).max(1);
        Some(if alone { whole.min(1000) } else { whole })
    }

    fn delete_takes(&self) -> Option<&'static str> {
        Some("POST /virtualMachines/{}/reapply")
    }

    fn written(&self, world: &mut World, operation: &Operation) -> Result<(), Problem> {
        let Some(resource) = world.store.get(&operation.key) else {
            return Ok(());
        };
        let path = "properties.treatFailureAsDeploymentFailure";
        let strict = json::at(&resource.body, path) == Some(&Value::Bool(true));
        match &resource.state {
            State::Command(run) if strict && run.ends <= world.now && !run.succeeded() => {
                Err(failure(&resource.name, run))
            }
            _ => Ok(()),
        }
    }

    fn show(&self, world: &World, resource: &Resource, expand: &str, body: &mut Value) {
        if let State::Command(run) = &resource.state
            && expand.eq_ignore_ascii_case("instanceView")
        {
            json::set(body, "properties.instanceView", run.view(world.now));
        }
    }
}

fn failure(name: &str, run: &Run) -> Problem {
    Problem::new(
        409,
        "VMExtensionProvisioningError",
        format!(
            "VM has reported a failure when processing run command '{name}': the script ended with exit code {}.",
            run.exit
        ),
    )
}

pub(in crate::resources) struct Extensions;

impl Rules for Extensions {
    fn check(
        &self,
        world: &mut World,
        call: &Call<'_>,
        _old: Option<&Resource>,
        body: &mut Value,
    ) -> Result<State, Problem> {
        running(world, call)?;
        for part in ["publisher", "type", "typeHandlerVersion"] {
            if json::text(body, &format!("properties.{part}")).is_none() {
                return Err(Problem::required(&format!("properties.{part}")));
            }
        }
        json::default(body, "properties.autoUpgradeMinorVersion", false);
        Ok(State::Plain)
    }

    fn write_takes(&self, fresh: bool, method: Method) -> Option<&'static str> {
        Some(match method {
            Method::Put if fresh => "PUT /virtualMachines/{}/extensions/{}",
            _ => "PATCH /virtualMachines/{}/extensions/{}",
        })
    }

    fn delete_takes(&self) -> Option<&'static str> {
        Some("DELETE /virtualMachines/{}/extensions/{}")
    }

    fn show(&self, _world: &World, _resource: &Resource, _expand: &str, _body: &mut Value) {}
}
