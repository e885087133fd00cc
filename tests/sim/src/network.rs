//! What lies between the parts: loss, doubling, delay, and cuts in one or both directions.

use std::collections::BTreeSet;

use crate::plan::Plan;
use crate::queue::Micros;
use crate::rng::Rng;

/// A place that messages come from and go to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// A member.
    Member(u64),
    /// A worker.
    Worker(usize),
    /// Everybody who submits.
    Client,
    /// The cloud.
    Cloud,
}

/// The network.
#[derive(Debug)]
pub struct Network {
    cuts: BTreeSet<(Place, Place)>,
    lost: u64,
    doubled: u64,
    delay: Micros,
    rng: Rng,
}

/// What the network did with a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It never arrives.
    Lost,
    /// It arrives after this time.
    Once(Micros),
    /// It arrives twice.
    Twice(Micros, Micros),
}

impl Network {
    /// The network of a plan.
    pub fn new(plan: &Plan, rng: Rng) -> Network {
        Network {
            cuts: BTreeSet::new(),
            lost: plan.lost,
            doubled: plan.doubled,
            delay: plan.delay,
            rng,
        }
    }

    /// Whether nothing gets from one place to the other.
    pub fn is_cut(&self, from: Place, to: Place) -> bool {
        self.cuts.contains(&(from, to))
    }

    /// Cuts one direction.
    pub fn cut(&mut self, from: Place, to: Place) {
        self.cuts.insert((from, to));
    }

    /// Mends one direction.
    pub fn mend(&mut self, from: Place, to: Place) {
        self.cuts.remove(&(from, to));
    }

    /// Everything works from now on.
    pub fn heal(&mut self) {
        self.cuts.clear();
        self.lost = 0;
        self.doubled = 0;
    }

    /// A usual delay.
    pub fn delay(&mut self) -> Micros {
        self.rng.skewed(150, self.delay)
    }

    /// A datagram: may be lost, doubled, overtaken.
    pub fn fate(&mut self, from: Place, to: Place) -> Fate {
        if self.is_cut(from, to) || self.rng.chance(self.lost) {
            return Fate::Lost;
        }
        let first = self.delay();
        if self.rng.chance(self.doubled) {
            return Fate::Twice(first, self.delay() * 3);
        }
        Fate::Once(first)
    }
}
