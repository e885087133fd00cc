//! The image's own package sources and apt's lists for them.
//!
//! The release files and indices that the base was made from are put where apt keeps its own, so
//! that `apt-get install` works in a step without `apt-get update`, and sees the same candidates
//! as the base. They go under the names of the image's sources: the archive signs its contents,
//! not its address, so a mirror's copy is as good as any.

use std::io;

use super::archive::{ArchiveError, Archives};
use super::distribution::{Distribution, ImageSource};
use super::fetch::Fetcher;
use super::tree::{Attributes, Tree};

/// Sources or lists that cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum ListsError {
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    #[error("write the image's package sources: /{path}")]
    Write {
        path: String,
        #[source]
        source: io::Error,
    },
    #[error(
        "write the image's package sources: `{line}` is not a line like \
         `deb http://host/debian suite component`"
    )]
    Line { line: String },
}

/// One suite of the image's sources.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    uri: String,
    suite: String,
    components: Vec<String>,
}

/// Writes the sources and the lists that belong to them.
pub fn write(
    tree: &Tree,
    distribution: &Distribution,
    sources: Option<&[String]>,
    archives: &Archives,
    fetcher: &Fetcher,
    architecture: &str,
) -> Result<(), ListsError> {
    let writer = Writer { tree };
    let entries = match sources {
        Some(lines) => {
            let entries = parse_lines(lines)?;
            let mut text = lines.join("\n");
            text.push('\n');
            writer.file("etc/apt/sources.list", text.as_bytes(), 0)?;
            entries
        }
        None => {
            let family = distribution
                .name
                .split('-')
                .next()
                .unwrap_or(distribution.name);
            let path = format!("etc/apt/sources.list.d/{family}.sources");
            writer.file(&path, deb822(distribution.image_sources).as_bytes(), 0)?;
            default_entries(distribution.image_sources)
        }
    };
    for entry in &entries {
        for (position, release) in archives.releases.iter().enumerate() {
            if release.source.suite != entry.suite {
                continue;
            }
            let base = file_name(&format!("{}/dists/{}", entry.uri, entry.suite));
            let folder = "var/lib/apt/lists";
            match &release.detached {
                None => writer.file(
                    &format!("{folder}/{base}_InRelease"),
                    &release.signed,
                    release.date,
                )?,
                Some(signature) => {
                    let name = format!("{folder}/{base}_Release");
                    writer.file(&name, &release.signed, release.date)?;
                    writer.file(&format!("{name}.gpg"), signature, release.date)?;
                }
            }
            for (_, index) in archives.indices.iter().filter(|(of, _)| *of == position) {
                if !entry.components.contains(&index.component) {
                    continue;
                }
                let component = file_name(&index.component);
                let name =
                    format!("{folder}/{base}_{component}_binary-{architecture}_Packages.zst");
                let bytes = archives.compressed(fetcher, release, index)?;
                writer.file(&name, &bytes, release.date)?;
            }
            break;
        }
    }
    Ok(())
}

struct Writer<'a> {
    tree: &'a Tree,
}

impl Writer<'_> {
    fn file(&self, path: &str, bytes: &[u8], modified: i64) -> Result<(), ListsError> {
        self.tree
            .write(path, bytes, Attributes::root(0o644, modified))
            .map_err(|source| ListsError::Write {
                path: path.to_owned(),
                source,
            })
    }
}

fn deb822(sources: &[ImageSource]) -> String {
    sources
        .iter()
        .map(|source| {
            format!(
                "Types: deb\nURIs: {}\nSuites: {}\nComponents: {}\nSigned-By: {}\n",
                source.uri,
                source.suites.join(" "),
                source.components.join(" "),
                source.signed_by
            )
        })
        .collect::<Vec<_>>()
        .join("\n")
}

fn default_entries(sources: &[ImageSource]) -> Vec<Entry> {
    let owned = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    sources
        .iter()
        .flat_map(|source| {
            source.suites.iter().map(|suite| Entry {
                uri: source.uri.to_owned(),
                suite: (*suite).to_owned(),
                components: owned(source.components),
            })
        })
        .collect()
}

fn parse_lines(lines: &[String]) -> Result<Vec<Entry>, ListsError> {
    let mut entries = Vec::new();
    for line in lines {
        let wrong = || ListsError::Line { line: line.clone() };
        let text = line.split('#').next().unwrap_or_default().trim();
        if text.is_empty() || text.starts_with("deb-src") {
            continue;
        }
        let rest = text.strip_prefix("deb ").ok_or_else(wrong)?.trim_start();
        let rest = match rest.strip_prefix('[') {
            Some(options) => options.split_once(']').ok_or_else(wrong)?.1,
            None => rest,
        };
        let mut words = rest.split_whitespace().map(ToOwned::to_owned);
        let (Some(uri), Some(suite)) = (words.next(), words.next()) else {
            return Err(wrong());
        };
        entries.push(Entry {
            uri: uri.trim_end_matches('/').to_owned(),
            suite,
            components: words.collect(),
        });
    }
    Ok(entries)
}

/// apt's name for the stored copy of an address: no scheme, no login, slashes as underscores.
fn file_name(url: &str) -> String {
    use std::fmt::Write as _;
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
    let whole = if path.is_empty() {
        host.to_owned()
    } else {
        format!("{host}/{path}")
    };
    let mut out = String::new();
    for c in whole.chars() {
        match c {
            '/' => out.push('_'),
            '\\' | '|' | '{' | '}' | '[' | ']' | '<' | '>' | '"' | '^' | '~' | '_' | '=' | '!'
            | '@' | '#' | '$' | '%' | '*' => {
                let _ = write!(out, "%{:02x}", c as u32);
            }
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_become_the_file_names_that_apt_uses() {
        assert_eq!(
            file_name("http://deb.debian.org/debian/dists/bookworm"),
            "deb.debian.org_debian_dists_bookworm"
        );
        assert_eq!(
            file_name("https://user:pw@m.example:8080/my_deb/dists/a"),
            "m.example:8080_my%5fdeb_dists_a"
        );
    }

    #[test]
    fn lines_of_the_pipeline_are_understood_or_refused() {
        let lines = [
            "# mine".to_owned(),
            "deb [signed-by=/k] http://m/d/ s main extra".to_owned(),
        ];
        let entries = parse_lines(&lines).unwrap();
        assert_eq!(entries[0].components, ["main", "extra"]);
        assert_eq!(entries[0].uri, "http://m/d");
        assert!(parse_lines(&["http://m/d s main".to_owned()]).is_err());
    }
}
