//! The cloud ignores tokens, so etags and operation ids must have kept order: nothing is changed
//! under a token after something was changed under a higher one, and no instance is replaced twice
//! for one task.

use std::collections::{BTreeMap, BTreeSet};

use oast_model::ids::{TaskId, Token};
use oast_model::names::{FleetName, InstanceName};

use super::Wrong;
use crate::cloud::{Call, Verb};
use crate::queue::Micros;

/// What the cloud accepted.
#[derive(Debug, Default)]
pub struct Effects {
    highest: BTreeMap<(FleetName, InstanceName), (Token, Micros)>,
    replaced: BTreeSet<(TaskId, FleetName, InstanceName)>,
}

impl Effects {
    /// An instance stopped by itself: replacing it once more is right.
    pub fn crashed(&mut self, fleet: &FleetName, instance: &InstanceName) {
        self.replaced
            .retain(|(_, of, replaced)| (of, replaced) != (fleet, instance));
    }

    /// A call changed something.
    pub fn accepted(&mut self, now: Micros, call: &Call) -> Wrong {
        let key = (call.fleet.clone(), call.instance.clone());
        let (highest, at) = *self.highest.entry(key).or_insert((call.token, now));
        if call.token < highest {
            return Some(format!(
                "{} was accepted under {} at {now}, after a change under {highest} at {at}",
                call.operation, call.token
            ));
        }
        self.highest.insert(
            (call.fleet.clone(), call.instance.clone()),
            (call.token, now),
        );
        if matches!(call.verb, Verb::Drain | Verb::Undrain) {
            return None;
        }
        let new = self
            .replaced
            .insert((call.task, call.fleet.clone(), call.instance.clone()));
        (!new).then(|| format!("{} was replaced twice for {}", call.instance, call.task))
    }
}
