//! How the ids inside a sandbox map to ids outside.
//!
//! Every sandbox has 65,536 user and group ids. A process of the farm is either real root or root of the *farm
//! namespace* (see [`super::enter`]), which already is such a map. As real root, sandboxes get a high range, so that
//! nothing in them ever runs as the machine's root; as farm root the ids pass through unchanged. Root trees on disk are
//! owned by [`IdMap::host_id`] of what they look like inside. This module decides and writes maps; it makes no namespace.

use std::fs;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::fault::{Fault, Named};

/// Ids per sandbox: what distribution packages expect to exist, `nobody` (65534) included.
pub const ID_COUNT: u32 = 65_536;

/// Where sandboxes' ids start when we are real root and `/etc/subuid` gives root no range of its own.
///
/// A multiple of 65,536 above systemd's container ranges (which end at 0x6FFF_FFFF), above what `useradd` hands out
/// from `/etc/subuid` (600,100,000), and below 2^31, where some tools take ids for negative numbers.
pub const ROOT_HOST_BASE: u32 = 0x7061_0000;

const SUBUID: &str = "/etc/subuid";
const SUBGID: &str = "/etc/subgid";

/// The map of every sandbox this process makes: id `i` inside is id `host_base + i` as this process sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMap {
    host_base: u32,
}

#[derive(Debug, Error)]
pub enum IdMapError {
    #[error("read {path}")]
    Read {
        path: &'static str,
        source: io::Error,
    },
    #[error("not root: start through the farm namespace (`isolate::enter`) or with sudo")]
    NotRoot,
    #[error(
        "this user namespace has too few ids ({have} of {ID_COUNT} in {path}); give the container or user 65,536 ids"
    )]
    TooFewIds { path: &'static str, have: u64 },
}

/// One line of `uid_map`: `count` ids from `inside` are ids from `outside` in the parent namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    pub inside: u32,
    pub outside: u32,
    pub count: u32,
}

impl IdMap {
    /// Ids pass through unchanged: we already are in the farm namespace.
    pub const IDENTITY: Self = Self { host_base: 0 };

    pub const fn starting_at(host_base: u32) -> Self {
        Self { host_base }
    }

    /// What this process can give its sandboxes.
    pub fn detect() -> Result<Self, IdMapError> {
        if !rustix::process::geteuid().is_root() {
            return Err(IdMapError::NotRoot);
        }
        let uids = own_map("/proc/self/uid_map")?;
        let gids = own_map("/proc/self/gid_map")?;
        if is_whole(&uids) && is_whole(&gids) {
            return Ok(Self {
                host_base: root_range().unwrap_or(ROOT_HOST_BASE),
            });
        }
        for (path, map) in [("/proc/self/uid_map", &uids), ("/proc/self/gid_map", &gids)] {
            let have = extents_of(0, map)
                .iter()
                .map(|extent| u64::from(extent.count))
                .sum();
            if have < u64::from(ID_COUNT) {
                return Err(IdMapError::TooFewIds { path, have });
            }
        }
        Ok(Self::IDENTITY)
    }

    pub const fn host_base(self) -> u32 {
        self.host_base
    }

    /// The id outside of id `inside`.
    pub const fn host_id(self, inside: u32) -> u32 {
        self.host_base + inside
    }

    /// The id inside of id `host`, if it has one.
    pub const fn inside_id(self, host: u32) -> Option<u32> {
        match host.checked_sub(self.host_base) {
            Some(inside) if inside < ID_COUNT => Some(inside),
            _ => None,
        }
    }

    /// Writes the map of a child's fresh user namespace. The caller is the child's parent and root here.
    pub fn write(self, pid: i32) -> Result<(), Fault> {
        for (kind, own) in [
            ("uid_map", "/proc/self/uid_map"),
            ("gid_map", "/proc/self/gid_map"),
        ] {
            let own = fs::read_to_string(own).at("read", own)?;
            let lines = render(&extents_of(self.host_base, &parse(&own)));
            let path = format!("/proc/{pid}/{kind}");
            fs::write(&path, lines).at("write id map", &path)?;
        }
        Ok(())
    }
}

fn own_map(path: &'static str) -> Result<Vec<Extent>, IdMapError> {
    fs::read_to_string(path)
        .map(|text| parse(&text))
        .map_err(|source| IdMapError::Read { path, source })
}

/// Whether this is the map of the first user namespace.
fn is_whole(map: &[Extent]) -> bool {
    matches!(
        map,
        [Extent {
            inside: 0,
            outside: 0,
            count: u32::MAX
        }]
    )
}

/// The extents that give a child `0..65536 -> host_base..`. The kernel wants each extent of a child to lie inside one
/// extent of its parent, so a parent with two (the caller, then the subordinate ids) makes two here.
fn extents_of(host_base: u32, own: &[Extent]) -> Vec<Extent> {
    let end = u64::from(host_base) + u64::from(ID_COUNT);
    let mut extents: Vec<Extent> = own
        .iter()
        .filter_map(|extent| {
            let from = u64::from(extent.inside).max(u64::from(host_base));
            let to = (u64::from(extent.inside) + u64::from(extent.count)).min(end);
            (from < to).then(|| Extent {
                inside: (from - u64::from(host_base)) as u32,
                outside: from as u32,
                count: (to - from) as u32,
            })
        })
        .collect();
    extents.sort_by_key(|extent| extent.inside);
    extents
}

fn render(extents: &[Extent]) -> String {
    extents
        .iter()
        .map(|extent| format!("{} {} {}\n", extent.inside, extent.outside, extent.count))
        .collect()
}

fn parse(text: &str) -> Vec<Extent> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace().map(str::parse);
            match (words.next(), words.next(), words.next()) {
                (Some(Ok(inside)), Some(Ok(outside)), Some(Ok(count))) => Some(Extent {
                    inside,
                    outside,
                    count,
                }),
                _ => None,
            }
        })
        .collect()
}

/// A range that `/etc/subuid` and `/etc/subgid` both give to root.
fn root_range() -> Option<u32> {
    let uids = subordinate(Path::new(SUBUID), "root", 0);
    let gids = subordinate(Path::new(SUBGID), "root", 0);
    uids.into_iter()
        .find(|(start, count)| {
            *start >= ID_COUNT && *count >= ID_COUNT && gids.contains(&(*start, *count))
        })
        .map(|(start, _)| start)
}

/// The ranges `(start, count)` that a file like `/etc/subuid` gives to a user, by name or by number.
pub fn subordinate(file: &Path, name: &str, id: u32) -> Vec<(u32, u32)> {
    let text = fs::read_to_string(file).unwrap_or_default();
    text.lines()
        .filter_map(|line| {
            let mut fields = line.trim().split(':');
            let owner = fields.next()?;
            let start = fields.next()?.parse().ok()?;
            let count = fields.next()?.parse().ok()?;
            (owner == name || owner == id.to_string()).then_some((start, count))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn real_root_maps_one_high_range() {
        let own = parse("         0          0 4294967295\n");
        assert!(is_whole(&own));
        assert_eq!(
            render(&extents_of(ROOT_HOST_BASE, &own)),
            format!("0 {ROOT_HOST_BASE} 65536\n")
        );
        assert_eq!(ROOT_HOST_BASE % ID_COUNT, 0);
    }

    #[test]
    fn farm_root_maps_the_caller_and_the_subordinate_ids_apart() {
        let own = parse("0 1000 1\n1 100000 65535\n");
        assert_eq!(render(&extents_of(0, &own)), "0 0 1\n1 1 65535\n");
    }

    #[test]
    fn ids_outside_the_range_have_no_name_inside() {
        let map = IdMap::starting_at(100_000);
        assert_eq!(map.inside_id(100_033), Some(33));
        assert_eq!(map.inside_id(99_999), None);
        assert_eq!(map.inside_id(165_536), None);
        assert_eq!(map.host_id(33), 100_033);
    }
}
