//! After healing everything ends: no open run, lease or rollout, every member with the same state
//! and the whole history, every fleet as the ledger says.

use oast_coordinator::store::state::StateStore as _;
use oast_model::rollout::instance_names;

use super::Wrong;
use crate::member::Member;
use crate::world::World;

/// Why the world is not at rest yet.
pub fn unrest(world: &World) -> Wrong {
    let ledger = world.oracle.ledger();
    if let Some((run, open)) = ledger.runs().iter().next() {
        return Some(format!("{run} is open in phase {:?}", open.phase));
    }
    if let Some((rollout, open)) = ledger.rollouts().iter().next() {
        return Some(format!("{rollout} is open in phase {:?}", open.phase));
    }
    if let Some((token, lease)) = ledger.leases().iter().next() {
        return Some(format!("lease {token} of {} is live", lease.task));
    }
    if let Some((task, _)) = ledger.tasks().iter().next() {
        return Some(format!("{task} is left over"));
    }
    if world.clients.iter().any(|client| !client.idle()) {
        return Some("a client waits for an answer".to_owned());
    }
    if !world.ready {
        return Some("the farm was never set up".to_owned());
    }
    members(world).or_else(|| fleets(world))
}

fn members(world: &World) -> Wrong {
    if !world.operator.idle() {
        return Some("the operator waits for the group".to_owned());
    }
    // One whose disk was wiped and that was never heard since does not know that it has to go.
    let here = |member: &&Member| !member.gone && !world.operator.removes(member.id);
    for member in world.members.iter().filter(here) {
        let id = member.id;
        let Some(node) = &member.node else {
            return Some(format!("member {id} does not run"));
        };
        let applied = node.replica.mark().position.index;
        if applied < world.oracle.index() {
            return Some(format!(
                "member {id} is at {applied}, the log at {}",
                world.oracle.index()
            ));
        }
        if let Some(gap) = node.replica.state().gap() {
            return Some(format!(
                "member {id} lacks history from {} to {}",
                gap.after.last, gap.until.last
            ));
        }
    }
    let tails: Vec<_> = world
        .members
        .iter()
        .filter(here)
        .filter_map(|member| Some(member.node.as_ref()?.replica.state().history()))
        .collect();
    let same = tails.windows(2).all(|pair| pair[0] == pair[1]);
    (!same).then(|| "the members' histories differ".to_owned())
}

/// Every instance that a fleet declares runs its good version and serves.
fn fleets(world: &World) -> Wrong {
    for (name, fleet) in world.oracle.ledger().fleets().iter() {
        let (Some(good), None) = (&fleet.good, fleet.active) else {
            continue;
        };
        for instance in instance_names(&fleet.spec) {
            let wrong = match world.cloud.instance(name, &instance, world.now) {
                None => "does not exist".to_owned(),
                Some(seen) if seen.version != *good => format!("runs {}", seen.version),
                Some(seen) if !seen.serves() => "does not serve".to_owned(),
                Some(_) => continue,
            };
            return Some(format!("{name}/{instance} {wrong}, not {good}"));
        }
    }
    None
}
