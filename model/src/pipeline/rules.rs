//! The rules of single texts in a pipeline: paths, globs, packages, addresses.
//!
//! Each answers with what is wrong, in words that read after the text itself.
//! They are asked twice: for the file, and again once inputs have been filled in,
//! because a value could have made a good text a bad one.

use crate::document::Code;

/// The longest path that is taken.
pub const PATH_BYTES_MAX: usize = 1024;
/// The longest command; a longer one belongs into a file of the repository.
pub const COMMAND_BYTES_MAX: usize = 64 << 10;

/// What is wrong with a text.
pub type Verdict = Result<(), String>;

/// Which rule a text follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// A file or folder of the repository.
    Source,
    /// An absolute path in the image.
    Target,
    /// A package name, perhaps with `=version`.
    Package,
    /// A line of `sources.list`.
    SourceLine,
    /// `http://` or `https://`.
    Web,
    /// An archive: also `file:`.
    Archive,
    /// The path of a request.
    Request,
    /// A systemd unit.
    Unit,
    /// A command.
    Command,
    /// Anything that is not empty.
    Filled,
    /// Anything.
    Any,
}

impl Rule {
    /// The code of a breach.
    pub const fn code(self) -> Code {
        match self {
            Self::Source | Self::Target | Self::Request => Code::Path,
            Self::Web | Self::Archive => Code::Address,
            Self::Package
            | Self::SourceLine
            | Self::Unit
            | Self::Command
            | Self::Filled
            | Self::Any => Code::Text,
        }
    }

    /// Judges a text.
    pub fn judge(self, text: &str) -> Verdict {
        if text.contains('\0') {
            return Err("holds a NUL character".to_owned());
        }
        match self {
            Self::Source => source(text),
            Self::Target => target(text),
            Self::Package => package(text),
            Self::SourceLine => source_line(text),
            Self::Web => address(text, &["http://", "https://"]),
            Self::Archive => address(text, &["http://", "https://", "file:///"]),
            Self::Request => request(text),
            Self::Unit => unit(text),
            Self::Command if text.trim().is_empty() => Err("is empty".to_owned()),
            Self::Command if text.len() > COMMAND_BYTES_MAX => Err(format!(
                "has {} bytes, at most {COMMAND_BYTES_MAX} are taken: copy a script instead",
                text.len()
            )),
            Self::Filled if text.trim().is_empty() => Err("is empty".to_owned()),
            Self::Command | Self::Filled | Self::Any => Ok(()),
        }
    }
}

fn length(text: &str) -> Verdict {
    if text.len() > PATH_BYTES_MAX {
        return Err(format!("is longer than {PATH_BYTES_MAX} bytes"));
    }
    Ok(())
}

fn source(text: &str) -> Verdict {
    length(text)?;
    if text.is_empty() {
        return Err("is empty: write `.` for the whole repository".to_owned());
    }
    if text.starts_with('/') {
        return Err("is absolute: it is looked up from the top of the repository".to_owned());
    }
    if text.split('/').any(|part| part == "..") {
        return Err("leaves the repository by `..`".to_owned());
    }
    Ok(())
}

fn target(text: &str) -> Verdict {
    length(text)?;
    if !text.starts_with('/') {
        return Err("is not absolute: a path in the image starts with `/`".to_owned());
    }
    if text.split('/').any(|part| part == "..") {
        return Err("has `..` in it".to_owned());
    }
    Ok(())
}

fn package(text: &str) -> Verdict {
    let (name, version) = text.split_once('=').unwrap_or((text, "0"));
    let (name, arch) = name.split_once(':').unwrap_or((name, "any"));
    let first = name.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit());
    let rest = name
        .bytes()
        .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"+-.".contains(&b));
    let version = !version.is_empty()
        && version
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"+-.~:".contains(&b));
    let arch = !arch.is_empty() && arch.bytes().all(|b| b.is_ascii_alphanumeric());
    if first && rest && version && arch && name.len() > 1 {
        return Ok(());
    }
    Err("is not a package name, such as nginx-light or nginx-light=1.22.1-9".to_owned())
}

fn source_line(text: &str) -> Verdict {
    if text.lines().count() > 1 {
        return Err("has several lines: make each an item of its own".to_owned());
    }
    if text.starts_with("deb ") || text.starts_with("deb-src ") {
        return Ok(());
    }
    Err("is not a line of sources.list: `deb URL SUITE COMPONENTS`".to_owned())
}

fn address(text: &str, schemes: &[&str]) -> Verdict {
    if text.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err("has a space in it".to_owned());
    }
    let Some(rest) = schemes.iter().find_map(|scheme| text.strip_prefix(scheme)) else {
        return Err(format!("does not start with {}", schemes.join(" or ")));
    };
    let host = rest.split('/').next().unwrap_or_default();
    if host.contains('@') {
        return Err("has credentials in it: make them a secret".to_owned());
    }
    if rest.is_empty() || (host.is_empty() && !text.starts_with("file:")) {
        return Err("has no host".to_owned());
    }
    Ok(())
}

fn request(text: &str) -> Verdict {
    length(text)?;
    if !text.starts_with('/') {
        return Err("does not start with `/`".to_owned());
    }
    if text
        .chars()
        .any(|c| c.is_whitespace() || c.is_control() || c == '#')
    {
        return Err("has a space or `#` in it".to_owned());
    }
    Ok(())
}

fn unit(text: &str) -> Verdict {
    const KINDS: [&str; 6] = [
        ".service", ".socket", ".timer", ".target", ".mount", ".path",
    ];
    let good = |b: u8| b.is_ascii_alphanumeric() || b":-_.\\@".contains(&b);
    if text.is_empty() || !text.bytes().all(good) {
        return Err("is not a unit name, such as nginx.service".to_owned());
    }
    if text.contains('.') && !KINDS.iter().any(|kind| text.ends_with(kind)) {
        return Err(format!("does not end with one of {}", KINDS.join(" ")));
    }
    Ok(())
}

/// Judges the path of a unit file: its name says what kind of unit it is.
pub fn unit_file(path: &str) -> Verdict {
    let name = path.rsplit('/').next().unwrap_or(path);
    if path.contains("${{") {
        return Ok(());
    }
    if !name.contains('.') {
        return Err("has no ending that says what kind of unit it is, such as .service".to_owned());
    }
    unit(name)
}

/// Judges a glob of branch names or paths: `*` within a part, `**` across parts, `?`, and no more.
pub fn glob(text: &str) -> Verdict {
    length(text)?;
    if text.is_empty() {
        return Err("is empty".to_owned());
    }
    if text.starts_with('/') {
        return Err("starts with `/`: it is matched from the top of the repository".to_owned());
    }
    if let Some(c) = text
        .chars()
        .find(|c| matches!(c, '[' | ']' | '{' | '}' | '!' | '\\') || c.is_control())
    {
        return Err(format!("has {c:?} in it: a glob knows `*`, `**` and `?`"));
    }
    if text
        .split('/')
        .any(|part| part.contains("**") && part != "**")
    {
        return Err(
            "has `**` beside other characters: it stands for whole parts, as in `web/**`"
                .to_owned(),
        );
    }
    Ok(())
}

/// Judges the name of an environment variable.
pub fn variable(text: &str) -> Verdict {
    let first = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    if first && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
        return Ok(());
    }
    Err("is not a variable name: letters, digits and `_`, no digit first".to_owned())
}

/// Whether a name looks as if its value should be a secret.
pub fn looks_secret(name: &str) -> bool {
    let name = name.to_ascii_uppercase();
    [
        "PASSWORD",
        "PASSWD",
        "SECRET",
        "TOKEN",
        "API_KEY",
        "APIKEY",
        "PRIVATE_KEY",
        "ACCESS_KEY",
    ]
    .iter()
    .any(|word| name.contains(word))
}

/// Whether a glob matches a text. Linear in both, whatever the glob.
pub fn glob_matches(glob: &str, text: &str) -> bool {
    let globs: Vec<&str> = glob.split('/').collect();
    let parts: Vec<&str> = text.split('/').collect();
    // `row[j]`: the globs so far match the first j parts.
    let mut row = vec![false; parts.len() + 1];
    row[0] = true;
    for (index, glob) in globs.iter().enumerate() {
        let mut next = vec![false; parts.len() + 1];
        if *glob == "**" {
            // `web/**` means what is in web, not web itself; `**/x` also means x at the top.
            let least = usize::from(index + 1 == globs.len() && index > 0);
            let mut from = None;
            for j in 0..=parts.len() {
                if row[j] && from.is_none() {
                    from = Some(j);
                }
                next[j] = from.is_some_and(|from| j >= from + least);
            }
        } else {
            for j in 0..parts.len() {
                next[j + 1] = row[j] && part_matches(glob.as_bytes(), parts[j].as_bytes());
            }
        }
        row = next;
    }
    row[parts.len()]
}

fn part_matches(glob: &[u8], text: &[u8]) -> bool {
    let (mut g, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        match glob.get(g) {
            Some(b'*') => {
                star = Some((g, t));
                g += 1;
            }
            Some(b'?') => (g, t) = (g + 1, t + 1),
            Some(c) if *c == text[t] => (g, t) = (g + 1, t + 1),
            _ => match star {
                Some((star_g, star_t)) => {
                    star = Some((star_g, star_t + 1));
                    (g, t) = (star_g + 1, star_t + 1);
                }
                None => return false,
            },
        }
    }
    glob[g..].iter().all(|c| *c == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs_match_branches_and_paths() {
        for (glob, text, matches) in [
            ("main", "main", true),
            ("main", "main2", false),
            ("release/*", "release/1.2", true),
            ("release/*", "release/1/2", false),
            ("web/**", "web/site/index.html", true),
            ("web/**", "web", false),
            ("web/**", "webby/x", false),
            ("**", "anything/at/all", true),
            ("**/*.md", "README.md", true),
            ("**/*.md", "docs/a/b.md", true),
            ("a/**/z", "a/z", true),
            ("a/**/z", "a/b/c/z", true),
            ("*-?", "web-1", true),
            ("*", "", true),
            ("a*a*a*a*a*b", "aaaaaaaaaaaaaaaaaaaaaaaaaaaa", false),
        ] {
            assert_eq!(glob_matches(glob, text), matches, "{glob} on {text}");
        }
    }

    #[test]
    fn a_source_stays_in_the_repository_and_a_target_is_absolute() {
        for good in [".", "web/site", "a..b/c"] {
            assert_eq!(Rule::Source.judge(good), Ok(()));
        }
        for bad in ["", "/etc", "../x", "a/../../b", "a\0b"] {
            assert!(Rule::Source.judge(bad).is_err(), "{bad:?}");
        }
        assert!(Rule::Target.judge("/var/www").is_ok());
        assert!(Rule::Target.judge("var/www").is_err());
        assert!(Rule::Target.judge("/var/../www").is_err());
    }

    #[test]
    fn packages_are_names_and_never_options() {
        for good in [
            "nginx-light",
            "g++",
            "libc6:amd64",
            "nginx-light=1.22.1-9+deb12u1",
        ] {
            assert_eq!(Rule::Package.judge(good), Ok(()), "{good}");
        }
        for bad in [
            "-y",
            "--option",
            "Nginx",
            "a",
            "nginx light",
            "nginx=",
            "x;y",
        ] {
            assert!(Rule::Package.judge(bad).is_err(), "{bad}");
        }
    }
}
