//! The connected workers with their free slots, sorted by what they can do.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use super::{Overlay, RESERVE_PART, Rules, Session};
use crate::class::{Class, KINDS, Kind};
use crate::digest::Digest;
use crate::fleet::VersionRef;
use crate::ledger::{Ledger, Run};
use crate::names::{RegionName, WorkerName};
use crate::priority::Band;
use crate::task::{Task, TaskKind, TaskOwner};

/// Workers of one ability that are compared for one task, those with most free slots first.
/// Workers that the task's past names are compared besides.
const COMPARED_MAX: usize = 32;

struct Seat<'a> {
    session: &'a Session,
    free: u32,
    ability: usize,
}

/// Workers that can do the same.
struct Ability<'a> {
    sample: &'a Session,
    kinds: [bool; KINDS],
    workers: usize,
    /// Seats with a free slot, the emptiest first.
    free: BTreeSet<(Reverse<u32>, &'a WorkerName, usize)>,
}

impl Ability<'_> {
    fn meets(&self, class: &Class) -> bool {
        self.kinds[class.kind.index()]
            && class
                .arch
                .is_none_or(|arch| self.sample.arch == arch.as_str())
            && class
                .provider
                .is_none_or(|provider| self.sample.providers.contains(provider.as_str()))
            && class
                .region
                .as_ref()
                .is_none_or(|region| self.sample.region == region.as_str())
    }

    fn carries_batches(&self) -> bool {
        self.kinds[Kind::Batch.index()]
    }
}

/// The workers that take new tasks.
pub(super) struct Floor<'a> {
    seats: Vec<Seat<'a>>,
    abilities: Vec<Ability<'a>>,
    by_worker: BTreeMap<&'a WorkerName, usize>,
    /// Slots in all, and by kind: the sizes of the dimensions of shares.
    pub(super) slots: u32,
    pub(super) slots_by_kind: [u32; KINDS],
    free: u32,
    /// Free slots that can carry out batches, and how many of them are kept.
    batch_free: u32,
    batch_kept: u32,
}

impl<'a> Floor<'a> {
    pub(super) fn of(
        ledger: &'a Ledger,
        overlay: &'a Overlay,
        sessions: impl IntoIterator<Item = &'a Session>,
        rules: &Rules,
    ) -> Floor<'a> {
        let mut floor = Floor {
            seats: Vec::new(),
            abilities: Vec::new(),
            by_worker: BTreeMap::new(),
            slots: 0,
            slots_by_kind: [0; KINDS],
            free: 0,
            batch_free: 0,
            batch_kept: 0,
        };
        let index = ledger.index();
        let mut assumed: BTreeMap<(&WorkerName, u64), u32> = BTreeMap::new();
        let mut repairs: u32 = index.usages().map(|(_, usage)| usage.repair).sum();
        for grant in overlay.grants() {
            // What the ledger shows already is counted there.
            if index.place(grant.task).is_some() {
                *assumed
                    .entry((&grant.worker, grant.incarnation))
                    .or_default() += 1;
                repairs += u32::from(grant.band == Band::Repair);
            }
        }
        let mut known = BTreeMap::new();
        for session in sessions.into_iter().filter(|session| !session.cordoned) {
            let held = index.load_of(&session.worker, session.incarnation);
            let held = u32::try_from(held).unwrap_or(u32::MAX);
            let more = assumed.get(&(&session.worker, session.incarnation));
            let busy = held.saturating_add(more.copied().unwrap_or(0));
            floor.seat(session, session.slots.saturating_sub(busy), &mut known);
        }
        let reserve = rules
            .reserve
            .min(floor.slots_by_kind[Kind::Batch.index()] / RESERVE_PART);
        floor.batch_kept = reserve.saturating_sub(repairs);
        floor
    }

    fn seat(
        &mut self,
        session: &'a Session,
        free: u32,
        known: &mut BTreeMap<AbilityKey<'a>, usize>,
    ) {
        let key = (
            &session.capabilities,
            session.arch.as_str(),
            session.region.as_str(),
            &session.providers,
        );
        let abilities = &mut self.abilities;
        let ability = *known.entry(key).or_insert_with(|| {
            abilities.push(Ability {
                sample: session,
                kinds: Kind::ALL.map(|kind| session.capabilities.contains(kind.as_str())),
                workers: 0,
                free: BTreeSet::new(),
            });
            abilities.len() - 1
        });
        let seat = self.seats.len();
        let place = &mut self.abilities[ability];
        place.workers += 1;
        self.slots += session.slots;
        for (slots, can) in self.slots_by_kind.iter_mut().zip(place.kinds) {
            *slots += if can { session.slots } else { 0 };
        }
        if free > 0 {
            place.free.insert((Reverse(free), &session.worker, seat));
            self.free += free;
            if place.carries_batches() {
                self.batch_free += free;
            }
        }
        self.by_worker.insert(&session.worker, seat);
        self.seats.push(Seat {
            session,
            free,
            ability,
        });
    }

    /// Whether nothing is free anywhere.
    pub(super) fn is_full(&self) -> bool {
        self.free == 0
    }

    /// Whether somebody is connected who takes new tasks.
    pub(super) fn is_empty(&self) -> bool {
        self.seats.is_empty()
    }

    /// Workers that can do a class, and how many slots of them are free.
    pub(super) fn able(&self, class: &Class) -> (usize, u32) {
        let able = self.abilities.iter().filter(|ability| ability.meets(class));
        able.fold((0, 0), |(workers, free), ability| {
            let own: u32 = ability.free.iter().map(|(Reverse(free), ..)| *free).sum();
            (workers + ability.workers, free + own)
        })
    }

    /// Whether a worker with a free slot can do a class in a band.
    pub(super) fn has_room(&self, class: &Class, band: Band) -> bool {
        self.open(class, band)
            .any(|ability| !ability.free.is_empty())
    }

    /// Abilities that may be used for a class in a band.
    fn open(&self, class: &Class, band: Band) -> impl Iterator<Item = &Ability<'a>> {
        self.abilities
            .iter()
            .filter(move |ability| ability.meets(class) && !self.kept(ability, band))
    }

    /// What is left of these workers is for repairs.
    fn kept(&self, ability: &Ability<'_>, band: Band) -> bool {
        band != Band::Repair && ability.carries_batches() && self.batch_free <= self.batch_kept
    }

    /// The best worker for a task.
    pub(super) fn pick(&self, class: &Class, past: &Past<'_>, band: Band) -> Option<usize> {
        let named = past.workers.iter().filter_map(|worker| {
            let place = *self.by_worker.get(worker)?;
            let seat = &self.seats[place];
            let ability = &self.abilities[seat.ability];
            let able = seat.free > 0 && ability.meets(class) && !self.kept(ability, band);
            able.then_some(place)
        });
        let free = self
            .open(class, band)
            .flat_map(|ability| ability.free.iter().take(COMPARED_MAX))
            .map(|(_, _, place)| *place);
        named.chain(free).max_by_key(|place| {
            let seat = &self.seats[*place];
            (
                past.points(seat.session),
                seat.free,
                Reverse(&seat.session.worker),
            )
        })
    }

    /// Uses a slot.
    pub(super) fn take(&mut self, place: usize, band: Band) -> &'a Session {
        let seat = &mut self.seats[place];
        let session = seat.session;
        let worker = &session.worker;
        let ability = &mut self.abilities[seat.ability];
        ability.free.remove(&(Reverse(seat.free), worker, place));
        seat.free -= 1;
        if seat.free > 0 {
            ability.free.insert((Reverse(seat.free), worker, place));
        }
        self.free -= 1;
        if ability.carries_batches() {
            self.batch_free -= 1;
            if band == Band::Repair {
                self.batch_kept = self.batch_kept.saturating_sub(1);
            }
        }
        session
    }
}

type AbilityKey<'a> = (&'a BTreeSet<String>, &'a str, &'a str, &'a BTreeSet<String>);

/// What of a task's past lies with some worker.
pub(super) struct Past<'a> {
    layers: Vec<Digest>,
    baker: Option<&'a WorkerName>,
    siblings: Vec<(&'a WorkerName, u64)>,
    regions: Vec<&'a RegionName>,
    /// Everybody who is named above, or made one of the layers.
    workers: BTreeSet<&'a WorkerName>,
}

impl<'a> Past<'a> {
    pub(super) fn of(ledger: &'a Ledger, task: &'a Task) -> Past<'a> {
        let run = match task.owner {
            TaskOwner::Run(id) => ledger.runs().get(&id),
            _ => None,
        };
        let siblings: Vec<_> = run
            .into_iter()
            .flat_map(|run| &run.tasks)
            .filter_map(|id| ledger.tasks().get(id)?.attempts.last())
            .map(|attempt| (&attempt.worker, attempt.incarnation))
            .collect();
        let baker = run
            .filter(|_| task.kind == TaskKind::Bake)
            .and_then(|run| newest_baker(ledger, run));
        let regions = match &task.kind {
            TaskKind::Batch(order) => ledger
                .fleets()
                .get(&order.fleet)
                .into_iter()
                .flat_map(|fleet| &fleet.spec.sets)
                .filter_map(|set| set.region.as_ref())
                .collect(),
            _ => Vec::new(),
        };
        let makers = task.finished_layers().map(|layer| &layer.worker);
        let workers = siblings
            .iter()
            .map(|(worker, _)| *worker)
            .chain(baker)
            .chain(makers)
            .collect();
        Past {
            layers: task.finished_layers().map(|layer| layer.key).collect(),
            baker,
            siblings,
            regions,
            workers,
        }
    }

    /// How much of the past is there: the task's own layers, then those of the version before, then
    /// nearness to the instances, then the run's other tasks.
    fn points(&self, session: &Session) -> usize {
        const LAYER: usize = 256;
        const VERSION: usize = 64;
        const REGION: usize = 32;
        let layers = self
            .layers
            .iter()
            .filter(|key| session.cached.contains(*key))
            .count();
        let before = self.baker == Some(&session.worker);
        let near = self
            .regions
            .iter()
            .any(|region| session.region == region.as_str());
        let siblings = self
            .siblings
            .iter()
            .filter(|(worker, incarnation)| {
                **worker == session.worker && *incarnation == session.incarnation
            })
            .count();
        layers * LAYER
            + usize::from(before) * VERSION
            + usize::from(near) * REGION
            + siblings.min(REGION - 1)
    }
}

/// Who baked the newest version of the image that the run makes.
fn newest_baker<'a>(ledger: &'a Ledger, run: &Run) -> Option<&'a WorkerName> {
    let image = &run.pipeline.as_ref()?.publish.image;
    let number = ledger.images().get(image)?.newest;
    let version = VersionRef {
        image: image.clone(),
        number,
    };
    ledger.versions().get(&version)?.baked_by.as_ref()
}
