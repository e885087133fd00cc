//! Whoever runs the group: adds members, gives them votes, takes others out, and replaces one whose
//! disk is gone. One call after the other, each repeated under its id until it has an answer.
//!
//! ```text
//! Grow, Replace(old):  AddLearners -> Join -> process starts -> Promote{replaces: old}
//! Shrink(old):         Remove
//! ```

use std::collections::{BTreeSet, VecDeque};

use oast_coordinator::consensus::change::{Change, ChangeError, Changed};

use crate::event::Event;
use crate::member::{Input, address_of, stamp_of};
use crate::network::{Fate, Place};
use crate::queue::{MS, Micros, SECOND};
use crate::rng::Rng;
use crate::world::World;

/// Time for one call.
const PATIENCE: Micros = 3 * SECOND;
/// Pause after an answer that says "not now".
const PAUSE: Micros = 300 * MS;
/// After so long a change that nobody needs is given up.
const GIVE_UP: Micros = 4 * SECOND;
/// Members that a world ever has.
pub const MEMBERS_MAX: usize = 9;

/// What the operator is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// One more voter.
    Grow,
    /// A member leaves.
    Shrink(u64),
    /// A new member takes another one's place.
    Replace(u64),
}

/// What it is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// A machine is announced.
    Add { replaces: Option<u64> },
    /// Its directory is bound to the id that it got.
    Join { member: u64, replaces: Option<u64> },
    /// It gets a vote.
    Promote { member: u64, replaces: Option<u64> },
    /// A member is taken out.
    Remove { member: u64 },
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Operator {
    rng: Rng,
    tasks: VecDeque<Task>,
    step: Option<Step>,
    /// Counts steps, for request ids.
    steps: u64,
    began: Micros,
    call: u64,
    wake: u64,
    /// Members that it asked to be taken out.
    removed: BTreeSet<u64>,
}

impl Operator {
    /// One that has nothing to do.
    pub fn new(rng: Rng) -> Operator {
        Operator {
            rng,
            tasks: VecDeque::new(),
            step: None,
            steps: 0,
            began: 0,
            call: 0,
            wake: 0,
            removed: BTreeSet::new(),
        }
    }

    /// Whether nothing is left to do.
    pub fn idle(&self) -> bool {
        self.step.is_none() && self.tasks.is_empty()
    }

    /// Whether it ever asked for this member to be taken out.
    pub fn removes(&self, member: u64) -> bool {
        self.removed.contains(&member)
    }
}

impl Step {
    /// Who leaves by it.
    fn leaves(self) -> Option<u64> {
        match self {
            Step::Promote { replaces, .. } => replaces,
            Step::Remove { member } => Some(member),
            Step::Add { .. } | Step::Join { .. } => None,
        }
    }

    fn change(self, disk_lost: bool) -> Change {
        match self {
            // The id is not known yet; addresses are counted as ids are.
            Step::Add { .. } => Change::AddLearners(Vec::new()),
            Step::Join { member, .. } => Change::Join {
                address: address_of(member),
                stamp: stamp_of(member),
            },
            Step::Promote { member, replaces } => Change::Promote {
                member,
                replaces,
                disk_lost,
            },
            Step::Remove { member } => Change::Remove { member, disk_lost },
        }
    }
}

impl World {
    /// The operator gets something to do.
    pub fn order(&mut self, task: Task) {
        self.operator.tasks.push_back(task);
        if self.operator.step.is_none() {
            self.next_task();
        }
    }

    fn next_task(&mut self) {
        let Some(task) = self.operator.tasks.pop_front() else {
            return;
        };
        let now = self.now;
        self.trace
            .say(now, format_args!("the operator is to {task:?}"));
        self.begin_step(match task {
            Task::Grow => Step::Add { replaces: None },
            Task::Replace(old) => Step::Add {
                replaces: Some(old),
            },
            Task::Shrink(member) => Step::Remove { member },
        });
    }

    fn begin_step(&mut self, step: Step) {
        let now = self.now;
        let operator = &mut self.operator;
        operator.removed.extend(step.leaves());
        operator.step = Some(step);
        operator.steps += 1;
        operator.began = now;
        self.call_leader();
    }

    fn wake_operator_at(&mut self, at: Micros) {
        self.operator.wake += 1;
        let wake = self.operator.wake;
        self.queue.put(at, Event::Operator { wake });
    }

    /// The operator has waited long enough.
    pub fn on_operator(&mut self, wake: u64) {
        if self.operator.wake == wake && self.operator.step.is_some() {
            self.call_leader();
        }
    }

    fn call_leader(&mut self) {
        let now = self.now;
        let call = self.number();
        self.operator.call = call;
        let present = self.present();
        let guess = *self.operator.rng.pick(&present);
        let member = self.leader().unwrap_or(guess);
        self.wake_operator_at(now + PATIENCE);
        if let Fate::Once(delay) | Fate::Twice(delay, _) =
            self.net.fate(Place::Client, Place::Member(member))
        {
            self.queue.put(now + delay, Event::Change { member, call });
        }
    }

    /// The operator's call has reached a member.
    pub fn on_change(&mut self, member: u64, call: u64) {
        let next = self.members.len() as u64 + 1;
        let operator = &self.operator;
        let Some(step) = operator.step.filter(|_| operator.call == call) else {
            return;
        };
        let lost = |member: u64| self.members[member as usize - 1].wiped;
        let change = match step {
            Step::Add { .. } => Change::AddLearners(vec![address_of(next)]),
            step => step.change(step.leaves().is_some_and(lost)),
        };
        let input = Input::Change {
            call,
            request_id: format!("operator-{}", operator.steps),
            change: Box::new(change),
        };
        self.input(member, input);
    }

    /// A member answers the operator.
    pub fn tell_operator(&mut self, from: u64, call: u64, result: Result<Changed, ChangeError>) {
        if let Fate::Once(delay) | Fate::Twice(delay, _) =
            self.net.fate(Place::Member(from), Place::Client)
        {
            let result = Box::new(result);
            let event = Event::Changed { call, result };
            self.queue.put(self.now + delay, event);
        }
    }

    /// The operator has an answer.
    pub fn on_changed(&mut self, call: u64, result: Result<Changed, ChangeError>) {
        let now = self.now;
        let Some(step) = self.operator.step.filter(|_| self.operator.call == call) else {
            return;
        };
        self.trace
            .say(now, format_args!("the operator: {step:?} -> {result:?}"));
        match result {
            Ok(changed) => self.step_done(step, &changed),
            Err(ChangeError::Retired { .. } | ChangeError::NoSuchMember { .. }) => {
                self.end_task();
            }
            // It left meanwhile: what was asked is so already, but for the vote.
            Err(ChangeError::Learner { .. }) => match step {
                Step::Promote { member, .. } => self.begin_step(Step::Promote {
                    member,
                    replaces: None,
                }),
                _ => self.end_task(),
            },
            Err(
                error @ (ChangeError::AddressTaken { .. }
                | ChangeError::AnotherDirectory { .. }
                | ChangeError::NotInvited { .. }
                | ChangeError::Address { .. }
                | ChangeError::LastVoter { .. }),
            ) => self.violate(format!("the operator's {step:?} was refused: {error}")),
            Err(error) => {
                if let ChangeError::History { .. } = error {
                    self.coverage.fault("member kept for its history");
                }
                self.not_now(step);
            }
        }
    }

    fn not_now(&mut self, step: Step) {
        let now = self.now;
        let late = now > self.operator.began + GIVE_UP;
        let needed = match step {
            // It may have an id already.
            Step::Add { .. } | Step::Join { .. } => true,
            Step::Promote { member, replaces } => {
                let lost = replaces.is_some_and(|old| self.member(old).wiped);
                lost && !self.member(member).gone
            }
            Step::Remove { member } => self.member(member).wiped,
        };
        if late && !needed {
            self.coverage.fault("change given up");
            self.end_task();
        } else {
            self.wake_operator_at(now + PAUSE);
        }
    }

    fn end_task(&mut self) {
        self.operator.step = None;
        self.next_task();
    }

    fn step_done(&mut self, step: Step, changed: &Changed) {
        match step {
            Step::Add { replaces } => {
                let expected = self.add_member();
                if changed.members != [expected] {
                    self.violate(format!(
                        "a new member got the ids {:?}, the next is {expected}",
                        changed.members
                    ));
                }
                self.coverage.fault("member added");
                self.begin_step(Step::Join {
                    member: expected,
                    replaces,
                });
            }
            Step::Join { member, replaces } => {
                self.start_member(member);
                self.begin_step(Step::Promote { member, replaces });
            }
            Step::Promote { replaces, .. } => {
                self.coverage.fault("learner promoted");
                if let Some(old) = replaces {
                    self.coverage.fault("member replaced");
                    let wrong = self.checks.leaders.left(old);
                    self.judge(wrong);
                }
                self.end_task();
            }
            Step::Remove { member } => {
                self.coverage.fault("member removed");
                let wrong = self.checks.leaders.left(member);
                self.judge(wrong);
                self.end_task();
            }
        }
    }
}
