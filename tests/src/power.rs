//! Disks that lose power: what is on them afterwards is what was synced, and by chance some of the
//! rest.
//!
//! `faults/power.c` follows what a process syncs and keeps it apart. A power loss then makes the
//! folder anew: the names of each folder as of its last sync, and behind each name the bytes as of
//! the file's last sync. A kernel also writes back what nobody asked it to; so in one loss of two
//! each file has by chance its synced bytes, its last ones, or a mixture of their pages.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::dice::Dice;

/// What a disk writes at once.
const PAGE: usize = 4096;

/// A folder that can lose power.
#[derive(Clone, Debug)]
pub struct Forgetful {
    data: PathBuf,
    kept: PathBuf,
}

/// What a power loss took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Loss {
    /// Files that are not any more what they were.
    pub changed: u32,
    /// Files and folders whose name was not synced.
    pub nameless: u32,
    /// Whether unsynced pages may have survived.
    pub mixed: bool,
}

impl Forgetful {
    /// `data` may be there or not; `kept` is for what is durable of it.
    ///
    /// # Errors
    /// A folder could not be made.
    pub fn new(data: &Path, kept: &Path) -> Result<Forgetful> {
        let disk = Forgetful {
            data: data.to_owned(),
            kept: kept.to_owned(),
        };
        disk.make_folders()?;
        Ok(disk)
    }

    /// Variables for the process that uses the folder.
    #[must_use]
    pub fn environment(&self, library: &Path) -> Vec<(String, String)> {
        [
            ("LD_PRELOAD", library),
            ("OAST_POWER_OF", &self.data),
            ("OAST_POWER_KEPT", &self.kept),
        ]
        .map(|(key, value)| (key.to_owned(), value.display().to_string()))
        .to_vec()
    }

    fn make_folders(&self) -> Result<()> {
        for kind in ["i", "d", "u", "r"] {
            fs::create_dir_all(self.kept.join(kind))?;
        }
        Ok(())
    }

    /// Makes the folder what it is after a power loss. Its process must be dead.
    ///
    /// # Errors
    /// Files.
    pub fn lose_power(&self, dice: &mut Dice) -> Result<Loss> {
        let mut loss = Loss {
            mixed: dice.below(2) == 0,
            ..Loss::default()
        };
        let Some(root) = inode(&self.data)? else {
            return Ok(loss);
        };
        let mut last = BTreeMap::new();
        files(&self.data, &mut last)?;
        let names = last.len();
        let after = self.data.with_extension("after");
        let mut left = 0;
        self.make_again(root, &after, &last, dice, &mut loss, &mut left)?;
        loss.nameless = u32::try_from(names.saturating_sub(left))?;
        fs::remove_dir_all(&self.data)?;
        fs::rename(&after, &self.data)?;
        fs::remove_dir_all(&self.kept)?;
        self.make_folders()?;
        boot_again(&self.data)?;
        self.seed(&self.data)?;
        Ok(loss)
    }

    fn make_again(
        &self,
        folder: u64,
        at: &Path,
        last: &BTreeMap<u64, PathBuf>,
        dice: &mut Dice,
        loss: &mut Loss,
        left: &mut usize,
    ) -> Result<()> {
        fs::create_dir_all(at)?;
        let names = or_nothing(&self.kept.join("d"), folder)?;
        for line in String::from_utf8(names)?.lines() {
            let mut words = line.splitn(3, ' ');
            let what = words.next();
            let number: u64 = words.next().context("a number")?.parse()?;
            let to = at.join(words.next().context("a name")?);
            *left += 1;
            if what == Some("d") {
                self.make_again(number, &to, last, dice, loss, left)?;
                continue;
            }
            let synced = or_nothing(&self.kept.join("i"), number)?;
            let latest = match last.get(&number) {
                Some(path) => fs::read(path)?,
                None => or_nothing(&self.kept.join("u"), number)?,
            };
            let survives = match (loss.mixed, dice.below(3)) {
                (false, _) | (true, 0) => synced,
                (true, 1) => latest.clone(),
                (true, _) => mixture(&synced, &latest, dice),
            };
            loss.changed += u32::from(survives != latest);
            fs::write(&to, survives).with_context(|| format!("make {}", to.display()))?;
        }
        Ok(())
    }

    /// From now on everything that is there is durable.
    fn seed(&self, folder: &Path) -> Result<()> {
        let mut lines = String::new();
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            let about = entry.metadata()?;
            let name = entry.file_name();
            let name = name.to_str().context("a name in UTF-8")?;
            let what = if about.is_dir() { 'd' } else { 'f' };
            // Writing to a String does not fail.
            let _ = writeln!(lines, "{what} {} {name}", about.ino());
            if about.is_dir() {
                self.seed(&entry.path())?;
            } else {
                let copy = self.kept.join("i").join(about.ino().to_string());
                fs::copy(entry.path(), copy)?;
            }
        }
        let own = inode(folder)?.context("a folder that was just read")?;
        fs::write(self.kept.join("d").join(own.to_string()), lines)?;
        Ok(())
    }
}

/// The machine comes back as another boot than the one that wrote these states.
fn boot_again(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            boot_again(&path)?;
        } else if path.file_name().is_some_and(|name| name == "life") {
            let text = fs::read_to_string(&path)?;
            let stage = text.split(' ').next().unwrap_or_default();
            fs::write(&path, format!("{stage} before\n"))?;
        }
    }
    Ok(())
}

/// Each page from one of the two; where only one goes on, its end is there or not.
fn mixture(synced: &[u8], latest: &[u8], dice: &mut Dice) -> Vec<u8> {
    let longest = synced.len().max(latest.len());
    let end = if dice.below(2) == 0 {
        synced.len()
    } else {
        latest.len()
    };
    let mut mixed = vec![0; longest];
    for (number, page) in mixed.chunks_mut(PAGE).enumerate() {
        let from = if dice.below(2) == 0 { synced } else { latest };
        let from = from.get(number * PAGE..).unwrap_or_default();
        let length = from.len().min(page.len());
        page[..length].copy_from_slice(&from[..length]);
    }
    mixed.truncate(end);
    mixed
}

fn or_nothing(folder: &Path, number: u64) -> Result<Vec<u8>> {
    match fs::read(folder.join(number.to_string())) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        read => Ok(read?),
    }
}

fn inode(path: &Path) -> Result<Option<u64>> {
    match fs::metadata(path) {
        Ok(about) => Ok(Some(about.ino())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Everything below a folder by its number.
fn files(folder: &Path, found: &mut BTreeMap<u64, PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let about = entry.metadata()?;
        found.insert(about.ino(), entry.path());
        if about.is_dir() {
            files(&entry.path(), found)?;
        }
    }
    Ok(())
}
