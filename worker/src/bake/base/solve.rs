//! Which packages a system needs: a small, deterministic dependency solver.
//!
//! It chooses as apt does for an empty system without recommended packages: everything
//! essential and required, what was asked for, and then for each dependency what is chosen
//! already, else the first alternative that can be installed, a real package before a provider.
//! When a choice runs into a conflict it is barred and the search starts again; the number of
//! such restarts is bounded. This is not a complete solver: an archive of one distribution
//! release is made to be installable, and an answer that a person can follow is worth more here
//! than one that only an exhaustive search would find.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::index::{Dependency, Package, Packages, relations};

/// How many choices may be taken back before the search is given up.
const RESTARTS_MAX: usize = 64;

/// What the system must have.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Package names, beside the essential and required ones.
    pub packages: &'a [String],
    /// Names that count as installed although no package is chosen for them: the engine brings
    /// what they stand for itself (see [`super::configure`] on the initial ramdisk).
    pub provided: &'a [&'a str],
    /// Names taken before other alternatives where a dependency leaves the choice.
    pub preferred: &'a [&'a str],
    /// Whether to start from the essential and required packages; extra build tools do not.
    pub system: bool,
}

/// A set of packages that cannot be had.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum SolveError {
    #[error("find package {name}: no configured archive has it for this suite{hint}")]
    Unknown { name: String, hint: String },
    #[error("install {chain}: nothing satisfies `{wanted}`; {reasons}")]
    Unsatisfiable {
        chain: String,
        wanted: String,
        reasons: String,
    },
    #[error("install {chain}: it conflicts with {other} (`{rule}`)")]
    Conflict {
        chain: String,
        other: String,
        rule: String,
    },
    #[error("the archives have no essential packages; is this a whole suite?")]
    NoEssential,
}

/// Chooses the packages; the result is ordered by name.
pub fn solve<'p, 'a>(
    packages: &'p Packages<'a>,
    request: &Request<'_>,
) -> Result<Vec<&'p Package<'a>>, SolveError> {
    let mut barred = BTreeSet::new();
    let mut first_error = None;
    for _ in 0..=RESTARTS_MAX {
        let mut search = Search {
            packages,
            request,
            barred: &barred,
            chosen: BTreeMap::new(),
            queue: VecDeque::new(),
        };
        match search.run() {
            Ok(()) => {
                return Ok(search
                    .chosen
                    .into_values()
                    .map(|choice| choice.package)
                    .collect());
            }
            Err(Stop { error, culprits }) => {
                let error = first_error.get_or_insert(error).clone();
                // Bar the newest choice that had an alternative; without one this is the end.
                match culprits
                    .into_iter()
                    .find(|culprit| !barred.contains(culprit))
                {
                    Some(culprit) => {
                        barred.insert(culprit);
                    }
                    None => return Err(error),
                }
            }
        }
    }
    Err(first_error.unwrap_or(SolveError::NoEssential))
}

/// Why a search ended, and which free choices could be to blame, the newest first.
struct Stop {
    error: SolveError,
    culprits: Vec<String>,
}

struct Choice<'p, 'a> {
    package: &'p Package<'a>,
    /// Who needed it, for messages; `None` for what was asked for.
    wanted_by: Option<&'a str>,
    /// Whether another package could have been chosen in its place.
    free: bool,
    /// Order of the choice.
    turn: usize,
}

struct Search<'s, 'p, 'a> {
    packages: &'p Packages<'a>,
    request: &'s Request<'s>,
    barred: &'s BTreeSet<String>,
    chosen: BTreeMap<&'a str, Choice<'p, 'a>>,
    queue: VecDeque<&'p Package<'a>>,
}

impl<'p, 'a> Search<'_, 'p, 'a> {
    fn run(&mut self) -> Result<(), Stop> {
        if self.request.system {
            let names: BTreeSet<&'a str> = self
                .packages
                .iter()
                .filter(|package| package.essential || package.priority == "required")
                .map(|package| package.name)
                .collect();
            if names.is_empty() {
                return Err(SolveError::NoEssential.into());
            }
            for name in names {
                // The newest version decides: a package may have lost its flag in an update.
                let Some(package) = self.packages.candidate(name) else {
                    continue;
                };
                if package.essential || package.priority == "required" {
                    self.choose(package, None, false)?;
                }
            }
        }
        let request = self.request;
        for name in request.packages {
            let package = self.requested(name)?;
            self.choose(package, None, false)?;
        }
        while let Some(package) = self.queue.pop_front() {
            for field in [package.pre_depends, package.depends] {
                for group in relations(field) {
                    self.satisfy(package, &group)?;
                }
            }
        }
        Ok(())
    }

    fn requested(&self, name: &str) -> Result<&'p Package<'a>, Stop> {
        if let Some(package) = self.packages.candidate(name) {
            return Ok(package);
        }
        if let [only] = self.packages.providers(&Dependency::any(name)).as_slice() {
            return Ok(only);
        }
        let similar = self.packages.similar(name);
        let hint = if similar.is_empty() {
            String::new()
        } else {
            format!("; did you mean {}?", similar.join(" or "))
        };
        Err(SolveError::Unknown {
            name: name.to_owned(),
            hint,
        }
        .into())
    }

    /// Makes sure that one alternative of a group is chosen.
    fn satisfy(&mut self, package: &'p Package<'a>, group: &[Dependency<'a>]) -> Result<(), Stop> {
        let provided = |wanted: &Dependency<'_>| self.request.provided.contains(&wanted.name);
        if group
            .iter()
            .any(|wanted| provided(wanted) || self.is_chosen(wanted))
        {
            return Ok(());
        }
        let mut offers: Vec<&'p Package<'a>> = Vec::new();
        let (preferred, others): (Vec<&Dependency<'a>>, Vec<&Dependency<'a>>) = group
            .iter()
            .partition(|wanted| self.request.preferred.contains(&wanted.name));
        for wanted in preferred.into_iter().chain(others) {
            offers.extend(
                self.packages
                    .candidate(wanted.name)
                    .filter(|real| real.is(wanted)),
            );
            offers.extend(self.packages.providers(wanted));
        }
        offers.retain(|offer| !self.barred.contains(offer.name));
        let mut seen = BTreeSet::new();
        offers.retain(|offer| seen.insert(offer.name));
        let free = offers.len() > 1;
        let mut stops = Vec::new();
        for offer in &offers {
            match self.conflict(offer, Some(package.name)) {
                None => return self.choose(offer, Some(package.name), free),
                Some(stop) => stops.push(stop),
            }
        }
        let wanted = group
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(" | ");
        let reasons = if stops.is_empty() {
            group
                .iter()
                .map(|wanted| self.absence(wanted))
                .collect::<Vec<_>>()
                .join("; ")
        } else {
            stops
                .iter()
                .map(|stop| stop.error.to_string())
                .collect::<Vec<_>>()
                .join("; ")
        };
        let mut culprits: Vec<String> = stops.into_iter().flat_map(|stop| stop.culprits).collect();
        culprits.extend(self.free_ancestors(package.name));
        Err(Stop {
            error: SolveError::Unsatisfiable {
                chain: self.chain(package.name),
                wanted,
                reasons,
            },
            culprits,
        })
    }

    fn absence(&self, wanted: &Dependency<'_>) -> String {
        match self.packages.candidate(wanted.name) {
            Some(real) if self.barred.contains(real.name) => {
                format!("{} cannot be installed beside the rest", real.name)
            }
            Some(real) => {
                format!(
                    "the archives have {} only in version {}",
                    real.name, real.version
                )
            }
            None => format!("the archives have no package {}", wanted.name),
        }
    }

    fn is_chosen(&self, wanted: &Dependency<'_>) -> bool {
        match self.chosen.get(wanted.name) {
            Some(choice) if choice.package.is(wanted) => true,
            _ => self.chosen.values().any(|choice| {
                !choice.package.provides.is_empty() && choice.package.provides(wanted)
            }),
        }
    }

    fn choose(
        &mut self,
        package: &'p Package<'a>,
        wanted_by: Option<&'a str>,
        free: bool,
    ) -> Result<(), Stop> {
        if self.chosen.contains_key(package.name) {
            return Ok(());
        }
        if let Some(stop) = self.conflict(package, wanted_by) {
            return Err(stop);
        }
        let turn = self.chosen.len();
        self.chosen.insert(
            package.name,
            Choice {
                package,
                wanted_by,
                free,
                turn,
            },
        );
        self.queue.push_back(package);
        Ok(())
    }

    /// Looks for a chosen package that cannot be installed together with this one.
    fn conflict(&self, package: &Package<'a>, wanted_by: Option<&'a str>) -> Option<Stop> {
        for choice in self.chosen.values() {
            if choice.package.name == package.name {
                continue;
            }
            let rule =
                excludes(package, choice.package).or_else(|| excludes(choice.package, package));
            let Some(rule) = rule else { continue };
            let chain = match wanted_by {
                None => package.name.to_owned(),
                Some(parent) => format!("{} <- {}", package.name, self.chain(parent)),
            };
            let mut culprits = self.free_ancestors(choice.package.name);
            culprits.extend(
                wanted_by
                    .map(|by| self.free_ancestors(by))
                    .unwrap_or_default(),
            );
            return Some(Stop {
                error: SolveError::Conflict {
                    chain,
                    other: self.chain(choice.package.name),
                    rule,
                },
                culprits,
            });
        }
        None
    }

    /// The package and those that led to it, as far as they could have been chosen otherwise.
    fn free_ancestors(&self, name: &str) -> Vec<String> {
        let mut found = Vec::new();
        let mut name = Some(name);
        while let Some(choice) = name.and_then(|name| self.chosen.get(name)) {
            if choice.free {
                found.push((choice.turn, choice.package.name.to_owned()));
            }
            name = choice.wanted_by;
        }
        found.sort_by(|left, right| right.cmp(left));
        found.into_iter().map(|(_, name)| name).collect()
    }

    /// Spells out who needed whom: `c <- b <- a`.
    fn chain(&self, name: &str) -> String {
        let mut out = name.to_owned();
        let mut parent = self.chosen.get(name).and_then(|choice| choice.wanted_by);
        while let Some(name) = parent {
            out.push_str(" <- ");
            out.push_str(name);
            parent = self.chosen.get(name).and_then(|choice| choice.wanted_by);
        }
        out
    }
}

impl From<SolveError> for Stop {
    fn from(error: SolveError) -> Self {
        Self {
            error,
            culprits: Vec::new(),
        }
    }
}

/// The `Conflicts` or `Breaks` entry of `package` that `other` falls under.
fn excludes(package: &Package<'_>, other: &Package<'_>) -> Option<String> {
    for (field, key) in [(package.conflicts, "Conflicts"), (package.breaks, "Breaks")] {
        if field.is_empty() {
            continue;
        }
        for wanted in relations(field).flatten() {
            if other.satisfies(&wanted) {
                return Some(format!("{} {key}: {wanted}", package.name));
            }
        }
    }
    None
}

#[cfg(test)]
mod tests;
