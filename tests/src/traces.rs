//! What a farm leaves on the machine: processes, mounts, control groups, loop devices, files.
//!
//! Looked for by the farm's own folder and names, so that other farms on the machine do not count.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// What tells our traces from others'.
#[derive(Clone, Debug)]
pub struct Marks {
    /// The folder with the farm's data.
    pub folder: PathBuf,
    /// The binary, a copy that only this farm uses.
    pub oast: PathBuf,
    /// The folder for temporary files that it was given.
    pub temporary: PathBuf,
    /// Part of the names of its control groups.
    pub group: String,
}

impl Marks {
    /// Everything that is there now, a line each.
    #[must_use]
    pub fn look(&self) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        found.extend(self.processes());
        found.extend(self.mounts());
        found.extend(self.groups());
        found.extend(self.loops());
        found.extend(temporary(&self.temporary));
        found
    }

    /// Processes of ours, seen by program, arguments, root or open files.
    fn processes(&self) -> Vec<String> {
        let own = std::process::id().to_string();
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let name = entry.file_name().display().to_string();
            if name == own || !name.bytes().all(|byte| byte.is_ascii_digit()) {
                continue;
            }
            let arguments = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let arguments = String::from_utf8_lossy(&arguments).replace('\0', " ");
            let program = fs::read_link(entry.path().join("exe")).unwrap_or_default();
            // A program that was removed meanwhile has a note behind its name.
            let program = program.display().to_string();
            let ours = [
                self.oast.display().to_string(),
                self.folder.display().to_string(),
            ];
            if ours
                .iter()
                .any(|mark| program.starts_with(mark) || arguments.contains(mark))
            {
                found.push(format!("process {name}: {program}: {arguments}"));
            }
        }
        found
    }

    /// Mounts of this namespace and of every process that can be looked into.
    fn mounts(&self) -> Vec<String> {
        let mark = self.folder.display().to_string();
        let mut found = BTreeSet::new();
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let text = fs::read_to_string(entry.path().join("mountinfo")).unwrap_or_default();
            let ours = text.lines().filter(|line| line.contains(&mark));
            found.extend(ours.map(|line| {
                let place = line.split(' ').nth(4).unwrap_or_default();
                format!("mount {place}")
            }));
        }
        found.into_iter().collect()
    }

    fn groups(&self) -> Vec<String> {
        let mut found = Vec::new();
        let mut folders = vec![(PathBuf::from("/sys/fs/cgroup"), 0)];
        while let Some((folder, depth)) = folders.pop() {
            for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
                if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    continue;
                }
                let name = entry.file_name().display().to_string();
                if name.contains(&self.group) {
                    found.push(format!("control group {}", entry.path().display()));
                } else if depth < 4 {
                    folders.push((entry.path(), depth + 1));
                }
            }
        }
        found
    }

    fn loops(&self) -> Vec<String> {
        let mark = self.folder.display().to_string();
        let devices = fs::read_dir("/sys/block").into_iter().flatten().flatten();
        let backing = devices.filter_map(|entry| {
            let file = fs::read_to_string(entry.path().join("loop/backing_file")).ok()?;
            file.starts_with(&mark)
                .then(|| format!("loop device {}", entry.file_name().display()))
        });
        backing.collect()
    }
}

/// Files of ours where temporary files go: the folder that was named by TMPDIR, and where a
/// program might put things without asking.
fn temporary(own: &Path) -> Vec<String> {
    let mut found = names(own);
    for folder in ["/dev/shm", "/run"] {
        let all = names(Path::new(folder)).into_iter();
        found.extend(all.filter(|name| name.contains("/oast")));
    }
    found
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| format!("file {}", entry.path().display()))
        .collect()
}
