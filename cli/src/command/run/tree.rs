//! What Git knows of a folder: the files to upload, the commit they are based on, what changed.
//!
//! Git itself is asked, so that its rules (ignored files, worktrees, sparse checkouts) hold. The
//! folder may be a part of a work tree; then only that part is taken.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::Context;

use crate::fail::Fail;

/// The folder as it is uploaded.
#[derive(Debug, PartialEq, Eq)]
pub struct Tree {
    /// The folder itself.
    pub root: PathBuf,
    /// By path.
    pub files: Vec<File>,
    /// HEAD; empty before the first commit.
    pub commit: String,
    /// Files that differ from the commit.
    pub changed: usize,
    /// Left out.
    pub submodules: Vec<String>,
}

/// A file or link of the tree.
#[derive(Debug, PartialEq, Eq)]
pub struct File {
    /// Relative to the folder, with `/`.
    pub path: String,
    /// Permission bits.
    pub mode: u32,
    /// Bytes; 0 for a link.
    pub size: u64,
    /// Where a link points.
    pub link: Option<String>,
}

/// Asks Git.
pub fn gather(folder: &Path) -> anyhow::Result<Tree> {
    let root = folder
        .canonicalize()
        .with_context(|| format!("open the folder {}", folder.display()))?;
    let inside = git(&root, &["rev-parse", "--is-inside-work-tree"])?;
    if !matches!(&inside, Ok(text) if text.starts_with(b"true")) {
        let why = inside
            .err()
            .unwrap_or_else(|| "it is Git's own folder".to_owned());
        if why.contains("dubious ownership") {
            return Err(Fail::failed(format!(
                "Git refuses {}: it belongs to another user",
                root.display()
            ))
            .hint(format!(
                "git config --global --add safe.directory {}",
                root.display()
            ))
            .into());
        }
        return Err(Fail::failed(format!("{} is no Git work tree, and what is uploaded is what Git knows", root.display()))
            .hint("`git init && git add .` makes it one; --dir names another folder; --repository R runs a repository of the farm")
            .into());
    }
    let listed = said(git(
        &root,
        &[
            "ls-files",
            "-z",
            "--cached",
            "--others",
            "--exclude-standard",
        ],
    )?)?;
    let mut submodules = Vec::new();
    let mut files = Vec::new();
    // A file with a conflict is listed more than once.
    for path in split(&listed)?.into_iter().collect::<BTreeSet<_>>() {
        let at = root.join(path);
        let meta = match fs::symlink_metadata(&at) {
            Ok(meta) => meta,
            // Deleted, but not yet in a commit.
            Err(err) if err.kind() == io::ErrorKind::NotFound => continue,
            Err(err) => return Err(err).with_context(|| format!("look at {}", at.display())),
        };
        let path = path.to_owned();
        if meta.is_dir() {
            submodules.push(path.trim_end_matches('/').to_owned());
        } else if meta.is_symlink() {
            let target =
                fs::read_link(&at).with_context(|| format!("read the link {}", at.display()))?;
            let link = target
                .to_str()
                .with_context(|| format!("the link {path} points to a name that is no UTF-8"))?;
            files.push(File {
                path,
                mode: 0o777,
                size: 0,
                link: Some(link.to_owned()),
            });
        } else if meta.is_file() {
            let mode = meta.permissions().mode() & 0o7777;
            files.push(File {
                path,
                mode,
                size: meta.len(),
                link: None,
            });
        }
    }
    if files.is_empty() {
        return Err(
            Fail::failed(format!("Git knows no file in {}", root.display()))
                .hint("`git add .` makes them known")
                .into(),
        );
    }
    // Before the first commit there is no HEAD.
    let commit = git(&root, &["rev-parse", "--verify", "--quiet", "HEAD"])?.unwrap_or_default();
    let status = said(git(
        &root,
        &[
            "status",
            "--porcelain",
            "-z",
            "--untracked-files=all",
            "--no-renames",
            "--",
            ".",
        ],
    )?)?;
    Ok(Tree {
        root,
        files,
        commit: String::from_utf8_lossy(&commit).trim().to_owned(),
        changed: split(&status)?.len(),
        submodules,
    })
}

/// What Git says, or why it refuses.
fn git(root: &Path, args: &[&str]) -> anyhow::Result<Result<Vec<u8>, String>> {
    let done = Command::new("git")
        .arg("-C")
        .arg(root)
        .args(args)
        .stdin(Stdio::null())
        .output();
    let done = match done {
        Ok(done) => done,
        Err(err) if err.kind() == io::ErrorKind::NotFound => {
            return Err(Fail::failed("Git is not installed here")
                .hint("sudo apt install git")
                .into());
        }
        Err(err) => return Err(err).context("run git"),
    };
    Ok(if done.status.success() {
        Ok(done.stdout)
    } else {
        Err(String::from_utf8_lossy(&done.stderr).trim().to_owned())
    })
}

fn said(answer: Result<Vec<u8>, String>) -> anyhow::Result<Vec<u8>> {
    answer.map_err(|why| Fail::failed(format!("Git says: {why}")).into())
}

fn split(listed: &[u8]) -> anyhow::Result<Vec<&str>> {
    let names = listed
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty());
    names
        .map(|name| {
            std::str::from_utf8(name).map_err(|_| {
                let message = format!("the name {} is no UTF-8", String::from_utf8_lossy(name));
                Fail::failed(message)
                    .hint("rename the file, or let Git ignore it")
                    .into()
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn repository() -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a folder");
        for args in [
            &["init", "-q"][..],
            &["config", "user.name", "t"],
            &["config", "user.email", "t@example.org"],
            &["config", "commit.gpgsign", "false"],
        ] {
            said(git(folder.path(), args).expect("git runs")).expect("git");
        }
        folder
    }

    fn commit(root: &Path) {
        said(git(root, &["add", "-A"]).expect("git runs")).expect("add");
        said(git(root, &["commit", "-q", "-m", "x"]).expect("git runs")).expect("commit");
    }

    #[test]
    fn tracked_changed_and_new_files_go_along_but_ignored_and_deleted_ones_do_not() {
        let folder = repository();
        let root = folder.path();
        for (name, text) in [("a", "1"), ("gone", "1"), (".gitignore", "*.log\n")] {
            fs::write(root.join(name), text).expect("write");
        }
        commit(root);
        assert_eq!(gather(root).expect("a tree").changed, 0);

        fs::write(root.join("a"), "22").expect("write");
        fs::remove_file(root.join("gone")).expect("remove");
        fs::create_dir(root.join("new")).expect("mkdir");
        fs::write(root.join("new/tool"), "#!/bin/sh\n").expect("write");
        fs::set_permissions(root.join("new/tool"), fs::Permissions::from_mode(0o755))
            .expect("chmod");
        fs::write(root.join("x.log"), "").expect("write");
        std::os::unix::fs::symlink("a", root.join("link")).expect("link");

        let tree = gather(root).expect("a tree");
        let names: Vec<_> = tree.files.iter().map(|file| file.path.as_str()).collect();
        assert_eq!(names, [".gitignore", "a", "link", "new/tool"]);
        assert_eq!((tree.files[1].size, tree.files[3].mode & 0o111), (2, 0o111));
        assert_eq!(tree.files[2].link.as_deref(), Some("a"));
        assert_eq!(tree.changed, 4, "changed, deleted and two new ones");
        assert_eq!(tree.commit.len(), 40);

        let part = gather(&root.join("new")).expect("a part");
        assert_eq!(part.files[0].path, "tool");
        assert_eq!(part.changed, 1);
    }

    #[test]
    fn before_the_first_commit_there_is_a_tree_without_one() {
        let folder = repository();
        fs::write(folder.path().join("a"), "1").expect("write");
        let tree = gather(folder.path()).expect("a tree");
        assert_eq!((tree.commit.as_str(), tree.changed), ("", 1));
    }

    #[test]
    fn a_folder_that_is_no_repository_is_told_the_way_out() {
        let folder = tempfile::tempdir().expect("a folder");
        let err = gather(folder.path()).expect_err("no repository");
        assert!(err.to_string().contains("no Git work tree"), "{err}");
        let folder = repository();
        assert!(
            gather(folder.path())
                .expect_err("empty")
                .to_string()
                .contains("knows no file")
        );
    }
}
