//! What this worker keeps on its disk beyond the bake that made it: unpacked layers and disks, within one bound.
//!
//! ```text
//! put(path) --> on the shelf, newest --pin--> in use: never removed
//!                      |                         | pin dropped
//!                      '--- bound exceeded: the longest unused without a pin goes ---'
//! ```
//!
//! The bound is checked whenever something is added, and at the start. So more than the bound lies here for a moment, while a
//! thing is made, and as long as everything is in use. The order of use is in memory: after a start of the worker, what
//! was made last counts as used last.
//!
//! What goes is first renamed to a name that no reader knows and that the next start removes, so that a reader
//! finds all of a thing or nothing, whenever this process dies.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use camino::{Utf8Path, Utf8PathBuf};
use oast_daemon::metrics::{Counters, Gauges, Metric, Metrics};
use tracing::{debug, warn};

/// `st_blocks` counts in these.
const BLOCK_BYTES: u64 = 512;

/// What lies on the shelf.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// The folder of an unpacked layer.
    Layer,
    /// A raw disk, with what is known of it beside it.
    Disk,
}

impl Kind {
    const ALL: [Kind; 2] = [Kind::Layer, Kind::Disk];

    fn word(self) -> &'static str {
        match self {
            Kind::Layer => "layer",
            Kind::Disk => "disk",
        }
    }

    /// Everything that belongs to the thing at `path`, that by which it is found first.
    fn files(self, path: &Utf8Path) -> Vec<Utf8PathBuf> {
        match self {
            Kind::Layer => vec![path.to_owned()],
            Kind::Disk => ["raw", "json", "tree"]
                .map(|ending| path.with_extension(ending))
                .to_vec(),
        }
    }
}

/// The shelf.
#[derive(Debug)]
pub struct Shelf {
    limit: u64,
    things: Mutex<Things>,
    evicted: Counters,
    bytes: Gauges,
}

#[derive(Debug, Default)]
struct Things {
    /// Rises with every use.
    tick: u64,
    all: BTreeMap<Utf8PathBuf, Thing>,
}

#[derive(Debug)]
struct Thing {
    kind: Kind,
    bytes: u64,
    used: u64,
    pins: u32,
}

impl Things {
    fn bytes(&self, kind: Option<Kind>) -> u64 {
        let of_kind = |thing: &&Thing| kind.is_none_or(|kind| thing.kind == kind);
        self.all
            .values()
            .filter(of_kind)
            .map(|thing| thing.bytes)
            .sum()
    }

    fn next(&mut self) -> u64 {
        self.tick += 1;
        self.tick
    }
}

/// Keeps a thing on the shelf as long as it, or a clone of it, lives.
#[derive(Debug)]
pub struct Pin {
    shelf: Arc<Shelf>,
    path: Utf8PathBuf,
}

impl Clone for Pin {
    fn clone(&self) -> Pin {
        if let Some(thing) = self.shelf.things().all.get_mut(&self.path) {
            thing.pins += 1;
        }
        Pin {
            shelf: self.shelf.clone(),
            path: self.path.clone(),
        }
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        if let Some(thing) = self.shelf.things().all.get_mut(&self.path) {
            thing.pins = thing.pins.saturating_sub(1);
        }
    }
}

impl Shelf {
    /// An empty shelf that holds `limit` bytes.
    pub fn new(limit: u64, metrics: &Metrics) -> Arc<Shelf> {
        Arc::new(Shelf {
            limit,
            things: Mutex::default(),
            evicted: metrics.counters(Metric::CacheEvicted),
            bytes: metrics.gauges(Metric::CacheBytes),
        })
    }

    fn things(&self) -> MutexGuard<'_, Things> {
        // Nothing under this lock panics.
        self.things.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes over what an earlier process of this worker left in `folder`, the oldest first. Blocks.
    ///
    /// # Errors
    /// The folder cannot be listed.
    pub fn restore(&self, kind: Kind, folder: &Utf8Path) -> io::Result<()> {
        let mut found = Vec::new();
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            let Ok(path) = Utf8PathBuf::from_path_buf(entry.path()) else {
                continue;
            };
            let metadata = entry.metadata()?;
            let is_one = match kind {
                Kind::Layer => metadata.is_dir(),
                Kind::Disk => path.extension() == Some("raw"),
            };
            if is_one {
                // A rename sets the time of the inode's change, and nothing else here does.
                found.push(((metadata.ctime(), metadata.ctime_nsec()), path));
            }
        }
        found.sort();
        let mut things = self.things();
        for (_, path) in found {
            let used = things.next();
            let thing = Thing {
                kind,
                bytes: size(kind, &path),
                used,
                pins: 0,
            };
            things.all.insert(path, thing);
        }
        drop(things);
        self.make_room();
        Ok(())
    }

    /// Puts a finished thing on the shelf, or one that has grown, and makes room for it. Blocks.
    pub fn put(self: &Arc<Self>, kind: Kind, path: &Utf8Path) -> Pin {
        let bytes = size(kind, path);
        {
            let mut things = self.things();
            let used = things.next();
            let thing = things.all.entry(path.to_owned()).or_insert(Thing {
                kind,
                bytes,
                used,
                pins: 0,
            });
            thing.bytes = bytes;
            thing.used = used;
            thing.pins += 1;
        }
        let pin = Pin {
            shelf: self.clone(),
            path: path.to_owned(),
        };
        self.make_room();
        pin
    }

    /// Marks a thing as used now and keeps it. None when it is not on the shelf.
    pub fn pin(self: &Arc<Self>, path: &Utf8Path) -> Option<Pin> {
        let mut things = self.things();
        let used = things.next();
        let thing = things.all.get_mut(path)?;
        thing.used = used;
        thing.pins += 1;
        Some(Pin {
            shelf: self.clone(),
            path: path.to_owned(),
        })
    }

    /// Whether a thing is on the shelf.
    pub fn has(&self, path: &Utf8Path) -> bool {
        self.things().all.contains_key(path)
    }

    /// Bytes on the shelf.
    pub fn bytes(&self) -> u64 {
        self.things().bytes(None)
    }

    fn make_room(&self) {
        let mut gone = Vec::new();
        {
            let mut things = self.things();
            let mut total = things.bytes(None);
            while total > self.limit {
                let free = things.all.iter().filter(|(_, thing)| thing.pins == 0);
                let Some((path, _)) = free.min_by_key(|(_, thing)| thing.used) else {
                    debug!(
                        total,
                        limit = self.limit,
                        "Everything in the cache of layers and disks is in use."
                    );
                    break;
                };
                let path = path.clone();
                if let Some(thing) = things.all.remove(&path) {
                    total -= thing.bytes;
                    let tick = things.next();
                    self.evicted.with(&[thing.kind.word()]).inc();
                    debug!(%path, bytes = thing.bytes, "Leaves the cache: unused for longest.");
                    gone.extend(
                        thing
                            .kind
                            .files(&path)
                            .iter()
                            .filter_map(|file| hide(file, tick)),
                    );
                }
            }
            for kind in Kind::ALL {
                self.bytes
                    .with(&[kind.word()])
                    .set(things.bytes(Some(kind)));
            }
        }
        // Not under the lock: a layer has thousands of files.
        for path in gone {
            if let Err(err) = remove(&path) {
                warn!(%path, error = %err, "Could not be removed; the worker's next start tries again.");
            }
        }
    }
}

/// Gives a file or folder a name that only [`super::cache::open_folder`] knows.
fn hide(path: &Utf8Path, tick: u64) -> Option<Utf8PathBuf> {
    let name = path.file_name()?;
    let hidden = path.with_file_name(format!(".{name}.gone-{tick}-{}", std::process::id()));
    match fs::rename(path, &hidden) {
        Ok(()) => Some(hidden),
        Err(err) if err.kind() == io::ErrorKind::NotFound => None,
        Err(err) => {
            warn!(%path, error = %err, "Could not be taken out of the cache.");
            None
        }
    }
}

fn remove(path: &Utf8Path) -> io::Result<()> {
    let gone = match path.symlink_metadata()?.is_dir() {
        true => fs::remove_dir_all(path),
        false => fs::remove_file(path),
    };
    match gone {
        Err(err) if err.kind() != io::ErrorKind::NotFound => Err(err),
        _ => Ok(()),
    }
}

/// Bytes that the thing has on this disk; what cannot be read counts nothing.
fn size(kind: Kind, path: &Utf8Path) -> u64 {
    kind.files(path)
        .iter()
        .map(|file| blocks(file.as_std_path()))
        .sum()
}

fn blocks(path: &std::path::Path) -> u64 {
    let Ok(metadata) = path.symlink_metadata() else {
        return 0;
    };
    let mut bytes = metadata.blocks() * BLOCK_BYTES;
    if metadata.is_dir()
        && let Ok(entries) = fs::read_dir(path)
    {
        bytes += entries
            .flatten()
            .map(|entry| blocks(&entry.path()))
            .sum::<u64>();
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    const PIECE: u64 = 64 << 10;

    struct Bench {
        _folder: tempfile::TempDir,
        root: Utf8PathBuf,
    }

    impl Bench {
        fn new() -> Bench {
            let folder = tempfile::tempdir().unwrap();
            let root = Utf8PathBuf::from_path_buf(folder.path().to_owned()).unwrap();
            Bench {
                _folder: folder,
                root,
            }
        }

        fn disk(&self, name: &str) -> Utf8PathBuf {
            let path = self.root.join(format!("{name}.raw"));
            fs::write(&path, vec![1; usize::try_from(PIECE).unwrap()]).unwrap();
            fs::write(path.with_extension("json"), "{}").unwrap();
            path
        }

        fn left(&self) -> Vec<String> {
            let entries = fs::read_dir(&self.root).unwrap();
            let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
            let mut names: Vec<_> = names.collect();
            names.sort();
            names
        }
    }

    fn shelf(pieces: u64) -> Arc<Shelf> {
        // Small files beside the pieces do not decide.
        Shelf::new(pieces * PIECE + PIECE / 2, &Metrics::new())
    }

    #[test]
    fn the_longest_unused_goes_with_all_its_files_and_what_is_in_use_stays() {
        let bench = Bench::new();
        let shelf = shelf(2);
        let [a, b, c, d] = ["a", "b", "c", "d"].map(|name| bench.disk(name));
        drop(shelf.put(Kind::Disk, &a));
        drop(shelf.put(Kind::Disk, &b));
        let used = shelf.pin(&a).unwrap();
        drop(shelf.put(Kind::Disk, &c));
        assert_eq!(
            bench.left(),
            ["a.json", "a.raw", "c.json", "c.raw", "d.json", "d.raw"]
        );
        assert!(shelf.pin(&b).is_none());
        // A clone of a pin is as good as the first.
        let still = used.clone();
        drop(used);
        let new = shelf.put(Kind::Disk, &d);
        assert!(shelf.has(&a) && shelf.has(&d) && !shelf.has(&c));
        drop((still, new));
    }

    #[test]
    fn a_layer_goes_as_a_whole_folder_and_an_earlier_process_s_things_count() {
        let bench = Bench::new();
        let layer = bench.root.join("layers");
        for name in ["one", "two"] {
            let deep = layer.join(name).join("usr/lib");
            fs::create_dir_all(&deep).unwrap();
            fs::write(deep.join("x"), vec![1; usize::try_from(PIECE).unwrap()]).unwrap();
            fs::rename(layer.join(name), layer.join(format!("l-{name}"))).unwrap();
        }
        let shelf = shelf(1);
        shelf.restore(Kind::Layer, &layer).unwrap();
        assert!(!layer.join("l-one").exists(), "the older one");
        assert!(layer.join("l-two/usr/lib/x").exists());
        assert!(shelf.bytes() >= PIECE);
        assert_eq!(
            fs::read_dir(&layer).unwrap().count(),
            1,
            "nothing is left of it"
        );
    }

    /// Random use from a printed seed, against what must hold after every step.
    #[test]
    fn the_bound_holds_for_all_that_is_not_in_use() {
        for seed in 1..=20_u64 {
            println!("seed {seed}");
            let bench = Bench::new();
            let shelf = shelf(3);
            let mut random = seed;
            let mut next = |below: u64| {
                random = random
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                (random >> 33) % below
            };
            let mut pins: Vec<(Utf8PathBuf, Pin)> = Vec::new();
            for _ in 0..60 {
                let name = next(8).to_string();
                let path = bench.root.join(format!("{name}.raw"));
                match next(4) {
                    0 | 1 => {
                        let pin = shelf
                            .pin(&path)
                            .unwrap_or_else(|| shelf.put(Kind::Disk, &bench.disk(&name)));
                        pins.push((path, pin));
                    }
                    _ if !pins.is_empty() => {
                        let at = usize::try_from(next(pins.len() as u64)).unwrap();
                        drop(pins.swap_remove(at));
                    }
                    _ => {}
                }
                for (path, _) in &pins {
                    assert!(path.exists() && shelf.has(path), "{path} was in use");
                }
                for file in bench.left() {
                    let path = bench.root.join(&file).with_extension("raw");
                    assert!(shelf.has(&path), "{file} is no longer counted");
                }
            }
            drop(pins);
            drop(shelf.put(Kind::Disk, &bench.disk("last")));
            assert!(
                shelf.bytes() <= 3 * PIECE + PIECE / 2,
                "{} bytes",
                shelf.bytes()
            );
        }
    }
}
