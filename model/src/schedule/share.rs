//! Shares: what teams hold and should hold, and whose turn it is in a band.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;

use imbl::OrdSet;

use super::floor::Floor;
use super::overlay::{Pace, STRIDE};
use super::{DUE_MAX, Overlay};
use crate::class::Kind;
use crate::ledger::{Lane, Ledger, Turn, Usage};
use crate::names::TeamName;
use crate::priority::Band;
use crate::resource::Quota;
use crate::time::Timestamp;

/// The whole of a dimension. A share is an integer part of it.
const WHOLE: u64 = 1 << 32;

/// What a team has and may have.
struct Purse {
    usage: Usage,
    weight: u64,
    quota: Option<Quota>,
    /// Virtual time in the band that is contested.
    time: u64,
}

/// Every team that holds or wants something.
pub(super) struct Teams<'a> {
    ledger: &'a Ledger,
    purses: BTreeMap<&'a TeamName, Purse>,
    clocks: [u64; Band::ALL.len()],
}

impl<'a> Teams<'a> {
    pub(super) fn of(ledger: &'a Ledger, overlay: &'a Overlay) -> Teams<'a> {
        let mut teams = Teams {
            ledger,
            purses: BTreeMap::new(),
            clocks: [0; Band::ALL.len()],
        };
        for (team, _) in ledger.index().usages() {
            teams.purse(team);
        }
        for grant in overlay.grants() {
            // What the ledger shows already is counted there.
            if ledger.index().place(grant.task).is_some() {
                teams.purse(&grant.team).usage.add(grant.band, grant.kind);
            }
        }
        teams
    }

    fn purse(&mut self, team: &'a TeamName) -> &mut Purse {
        let ledger = self.ledger;
        self.purses.entry(team).or_insert_with(|| {
            let spec = ledger.teams().get(team).map(|record| &record.spec);
            Purse {
                usage: ledger.index().usage(team),
                weight: spec.map_or(1, |spec| u64::from(spec.weight.max(1))),
                quota: spec.and_then(|spec| spec.quota),
                time: 0,
            }
        })
    }

    fn known(&self, team: &TeamName) -> &Purse {
        self.purses.get(team).expect("a team with a lane is known")
    }

    /// Whether a team may have no further lease in a band.
    pub(super) fn quota_reached(&self, team: &TeamName, band: Band) -> bool {
        let purse = self.known(team);
        band.counts()
            && purse
                .quota
                .is_some_and(|quota| purse.usage.counted() >= quota.limit())
    }

    /// Counts a grant.
    pub(super) fn charge(&mut self, team: &TeamName, band: Band, kind: Kind) -> Pace {
        let clock = self.clocks[band as usize];
        let purse = self
            .purses
            .get_mut(team)
            .expect("a team with a lane is known");
        purse.usage.add(band, kind);
        let pace = Pace {
            clock,
            start: purse.time,
            charge: STRIDE / purse.weight,
        };
        purse.time += pace.charge;
        pace
    }
}

/// What is used of each dimension: the slots of each kind, and all slots.
fn parts(usage: &Usage, floor: &Floor<'_>) -> impl Iterator<Item = (u32, u32)> {
    let kinds = usage.kinds.into_iter().zip(floor.slots_by_kind);
    kinds.chain([(usage.counted(), floor.slots)])
}

/// The largest of a team's parts of the dimensions.
fn dominant(usage: &Usage, floor: &Floor<'_>) -> u64 {
    let part = |(used, of): (u32, u32)| match of {
        // Its workers went away.
        0 => WHOLE * u64::from(used > 0),
        of => u64::from(used) * WHOLE / u64::from(of),
    };
    parts(usage, floor).map(part).max().unwrap_or(0)
}

/// Who goes first: less is earlier.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Standing {
    /// Beyond its nominal quota.
    borrows: bool,
    /// Below its share also with this lease, below it without, or beyond it.
    tier: u8,
    /// Weighted share; equal for all where fractions decide.
    share: u64,
    /// Virtual time.
    time: u64,
    /// Age, then the task itself.
    turn: Turn,
}

type Bounds = (Bound<Turn>, Bound<Turn>);

struct Row<'a> {
    lane: &'a Arc<Lane>,
    turns: Option<&'a OrdSet<Turn>>,
    /// Tasks that became ready since the last command.
    due: BTreeSet<Turn>,
    standing: Option<Standing>,
}

impl Row<'_> {
    /// The first task after `last` whose grant is not on its way.
    fn next(&self, overlay: &Overlay, last: Option<Turn>) -> Option<Turn> {
        let from = last.map_or(Bound::Unbounded, Bound::Excluded);
        let bounds: Bounds = (from, Bound::Unbounded);
        let free = |turn: &&Turn| !overlay.contains(turn.task);
        let ready = self
            .turns
            .and_then(|turns| turns.range::<_, Turn>(bounds).find(free));
        let due = self.due.range(bounds).find(free);
        ready.into_iter().chain(due).min().copied()
    }
}

/// The lane whose turn it is.
pub(super) struct Next<'a> {
    pub(super) lane: &'a Arc<Lane>,
    pub(super) turn: Turn,
    row: usize,
}

/// The lanes of a band, in the order in which they are served.
pub(super) struct Contest<'a> {
    overlay: &'a Overlay,
    band: Band,
    rows: Vec<Row<'a>>,
    by_team: BTreeMap<&'a TeamName, Vec<usize>>,
    order: BTreeSet<(Standing, usize)>,
    /// Weights of all teams that take part.
    weights: u64,
}

impl<'a> Contest<'a> {
    pub(super) fn of(
        ledger: &'a Ledger,
        overlay: &'a Overlay,
        floor: &Floor<'_>,
        teams: &mut Teams<'a>,
        band: Band,
        now: Timestamp,
    ) -> Contest<'a> {
        let mut contest = Contest::without_limits(ledger, overlay, teams, band, now);
        contest.rows.retain(|row| {
            floor.has_room(&row.lane.class, band) && !teams.quota_reached(&row.lane.team, band)
        });
        contest.settle(floor, teams);
        contest
    }

    /// Every lane of the band, whether or not it can be served now. Has no order yet.
    pub(super) fn without_limits(
        ledger: &'a Ledger,
        overlay: &'a Overlay,
        teams: &mut Teams<'a>,
        band: Band,
        now: Timestamp,
    ) -> Contest<'a> {
        let mut due: BTreeMap<&'a Arc<Lane>, BTreeSet<Turn>> = BTreeMap::new();
        for place in ledger.index().due(now, DUE_MAX) {
            if place.band == band {
                due.entry(&place.lane).or_default().insert(place.turn);
            }
        }
        let mut rows: Vec<Row<'a>> = ledger
            .index()
            .lanes(band)
            .map(|(lane, turns)| Row {
                lane,
                turns: Some(turns),
                due: due.remove(lane).unwrap_or_default(),
                standing: None,
            })
            .collect();
        rows.extend(due.into_iter().map(|(lane, due)| Row {
            lane,
            turns: None,
            due,
            standing: None,
        }));
        for row in &rows {
            teams.purse(&row.lane.team);
        }
        Contest {
            overlay,
            band,
            rows,
            by_team: BTreeMap::new(),
            order: BTreeSet::new(),
            weights: 0,
        }
    }

    /// Gives every lane its place in the order.
    pub(super) fn settle(&mut self, floor: &Floor<'_>, teams: &mut Teams<'a>) {
        for (place, row) in self.rows.iter().enumerate() {
            self.by_team.entry(&row.lane.team).or_default().push(place);
        }
        let wants = &self.by_team;
        let takes_part =
            |team: &TeamName, purse: &Purse| wants.contains_key(team) || purse.usage.counted() > 0;
        self.weights = teams
            .purses
            .iter()
            .filter(|(team, purse)| takes_part(team, purse))
            .map(|(_, purse)| purse.weight)
            .sum();
        let mut clock = None;
        for team in self.by_team.keys() {
            let time = self.overlay.time(self.band, team);
            if let Some(purse) = teams.purses.get_mut(team) {
                purse.time = time;
            }
            clock = Some(clock.map_or(time, |least: u64| least.min(time)));
        }
        teams.clocks[self.band as usize] = clock.unwrap_or(0);
        for place in 0..self.rows.len() {
            let first = self.rows[place].next(self.overlay, None);
            self.place(place, first, floor, teams);
        }
    }

    fn place(&mut self, place: usize, turn: Option<Turn>, floor: &Floor<'_>, teams: &Teams<'_>) {
        let row = &mut self.rows[place];
        if let Some(standing) = row.standing.take() {
            self.order.remove(&(standing, place));
        }
        let Some(turn) = turn else { return };
        let purse = teams.known(&row.lane.team);
        let mut with = purse.usage;
        with.add(self.band, row.lane.class.kind);
        // used / of <= weight / weights in every dimension, without fractions.
        let within =
            |(used, of): (u32, u32)| u64::from(used) * self.weights <= purse.weight * u64::from(of);
        let below =
            |(used, of): (u32, u32)| u64::from(used) * self.weights < purse.weight * u64::from(of);
        let tier = if parts(&with, floor).all(within) {
            0
        } else if parts(&purse.usage, floor).all(|part| part.0 == 0 || below(part)) {
            1
        } else {
            2
        };
        let standing = Standing {
            borrows: self.band.counts()
                && purse
                    .quota
                    .is_some_and(|quota| purse.usage.counted() >= quota.slots),
            tier,
            share: if tier == 1 {
                0
            } else {
                dominant(&purse.usage, floor) / purse.weight
            },
            time: purse.time,
            turn,
        };
        row.standing = Some(standing.clone());
        self.order.insert((standing, place));
    }

    /// Takes the lane whose turn it is. It stays out unless it is advanced.
    pub(super) fn pop(&mut self) -> Option<Next<'a>> {
        let (standing, place) = self.order.pop_first()?;
        let row = &mut self.rows[place];
        row.standing = None;
        Some(Next {
            lane: row.lane,
            turn: standing.turn,
            row: place,
        })
    }

    /// The lane's task was granted: its team stands elsewhere now.
    pub(super) fn advance(&mut self, next: &Next<'a>, floor: &Floor<'_>, teams: &Teams<'_>) {
        let following = self.rows[next.row].next(self.overlay, Some(next.turn));
        self.place(next.row, following, floor, teams);
        let others = self.by_team.get(&next.lane.team).cloned();
        for place in others.into_iter().flatten() {
            // A lane without a standing was given up in this turn.
            if let Some(standing) = &self.rows[place].standing {
                let turn = standing.turn;
                self.place(place, Some(turn), floor, teams);
            }
        }
    }

    /// How many other teams come before the lane of a task, in the present order.
    pub(super) fn teams_before(&self, lane: &Lane) -> usize {
        let before: BTreeSet<&TeamName> = self
            .order
            .iter()
            .map(|(_, place)| self.rows[*place].lane.as_ref())
            .take_while(|other| **other != *lane)
            .map(|other| &other.team)
            .filter(|team| **team != lane.team)
            .collect();
        before.len()
    }

    /// How many of the same team's tasks come before one, counted up to `limit`.
    pub(super) fn own_before(&self, team: &TeamName, turn: Turn, limit: usize) -> usize {
        let bounds: Bounds = (Bound::Unbounded, Bound::Excluded(turn));
        let lanes = self.rows.iter().filter(|row| row.lane.team == *team);
        lanes
            .filter_map(|row| row.turns)
            .map(|turns| turns.range::<_, Turn>(bounds).take(limit).count())
            .sum::<usize>()
            .min(limit)
    }
}
