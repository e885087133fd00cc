//! Where a suite's packages are fetched from.
//!
//! Three places are asked in this order: the pipeline's own `mirror:`, the worker's
//! configuration, and the machine's apt configuration where it carries the suite. No host is
//! compiled in: a suite that none of them carries is an error that says what to write.
//! The package sources that the *image* gets are another matter; see [`super::distribution`].

use std::collections::BTreeSet;

use camino::{Utf8Path, Utf8PathBuf};

use super::apt_conf;
use super::index::{Stanza, Stanzas};

/// An archive that the pipeline or the operator names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mirror {
    /// Base address, without `dists/`.
    pub url: String,
    /// Suites that it carries; empty means any suite that it turns out to have.
    pub suites: Vec<String>,
    /// Components to take; empty means the distribution's usual ones.
    pub components: Vec<String>,
    /// What its release files must be signed with. Empty files take the keyring of the next
    /// place that carries the suite: worker configuration, then the machine's apt.
    pub keyring: Keyring,
    /// Whether an expired `Valid-Until` is an error. Only snapshots of old archives need `false`.
    pub check_valid_until: bool,
}

/// What a release file must be signed with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Keyring {
    /// Keyring files, binary (`.gpg`) or armoured (`.asc`); any of their keys will do.
    Files(Vec<Utf8PathBuf>),
    /// An armoured key written into the configuration itself.
    Inline(String),
    /// Any key of these files, but only with one of these fingerprints.
    Fingerprints {
        files: Vec<Utf8PathBuf>,
        fingerprints: Vec<String>,
    },
}

/// One suite of one archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SuiteSource {
    /// Base address without a slash at its end.
    pub url: String,
    pub suite: String,
    pub components: Vec<String>,
    pub keyring: Keyring,
    pub check_valid_until: bool,
    /// When set, an archive without this suite is passed over: `-updates` and `-security` need
    /// not exist on every mirror.
    pub optional: bool,
    /// Who named this source, for messages.
    pub named_by: String,
}

/// Where to look.
#[derive(Clone, Debug)]
pub struct Places<'a> {
    /// The pipeline's `mirror:`.
    pub mirror: Option<&'a Mirror>,
    /// The worker's configured mirrors, in order.
    pub configured: &'a [Mirror],
    /// The root of the machine's apt configuration (usually `/etc/apt`).
    pub apt_root: &'a Utf8Path,
}

/// What is looked for.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    pub suite: &'a str,
    pub overlays: &'a [&'a str],
    pub components: &'a [&'a str],
    pub architecture: &'a str,
}

/// A suite that cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    #[error(
        "find packages for suite {suite} ({architecture}): nothing says where to fetch them. \
         Write `mirror: {{ url: ..., keyring: ... }}` under `bake:` in the pipeline, or a \
         `[[bake.mirrors]]` entry with `suites = [\"{suite}\"]` in the worker's configuration, \
         or give this machine an apt source for {suite} under {apt_root}"
    )]
    Nowhere {
        suite: String,
        architecture: String,
        apt_root: Utf8PathBuf,
    },
    #[error(
        "find packages for suite {suite}: {named_by} has no keyring to check its signature with. \
         Name one (`keyring:` in the pipeline or worker configuration, `Signed-By:` in an apt \
         source)"
    )]
    NoKeyring { suite: String, named_by: String },
    #[error("read the package sources in {path}")]
    Read {
        path: Utf8PathBuf,
        #[source]
        source: std::io::Error,
    },
}

/// Finds a source for the suite and for those of its overlays that are carried anywhere.
pub fn find(wanted: &Wanted<'_>, places: &Places<'_>) -> Result<Vec<SuiteSource>, SourceError> {
    let apt = machine_sources(places.apt_root, wanted.architecture)?;
    let mut found = Vec::new();
    for (position, suite) in std::iter::once(&wanted.suite)
        .chain(wanted.overlays.iter())
        .enumerate()
    {
        let optional = position > 0;
        let sources = find_suite(suite, optional, wanted, places, &apt);
        if sources.is_empty() && !optional {
            return Err(SourceError::Nowhere {
                suite: (*suite).to_owned(),
                architecture: wanted.architecture.to_owned(),
                apt_root: places.apt_root.to_owned(),
            });
        }
        found.extend(sources);
    }
    for source in &found {
        if source.keyring.is_empty() {
            return Err(SourceError::NoKeyring {
                suite: source.suite.clone(),
                named_by: source.named_by.clone(),
            });
        }
    }
    Ok(found)
}

fn find_suite(
    suite: &str,
    optional: bool,
    wanted: &Wanted<'_>,
    places: &Places<'_>,
    apt: &[SuiteSource],
) -> Vec<SuiteSource> {
    let from_mirror = |mirror: &Mirror, named_by: &str| SuiteSource {
        url: trim_url(&mirror.url),
        suite: suite.to_owned(),
        components: if mirror.components.is_empty() {
            wanted
                .components
                .iter()
                .map(|component| (*component).to_owned())
                .collect()
        } else {
            mirror.components.clone()
        },
        keyring: if mirror.keyring.is_empty() {
            known_keyring(wanted.suite, suite, places, apt)
        } else {
            mirror.keyring.clone()
        },
        check_valid_until: mirror.check_valid_until,
        optional,
        named_by: named_by.to_owned(),
    };
    // A pipeline that names a mirror gets that mirror only: mixing in the machine's security
    // suite would make the result depend on the machine.
    if let Some(mirror) = places.mirror {
        return if mirror.carries(suite) {
            vec![from_mirror(mirror, "the pipeline's mirror")]
        } else {
            Vec::new()
        };
    }
    let named = places
        .configured
        .iter()
        .filter(|mirror| mirror.suites.iter().any(|known| known == suite));
    let any = places
        .configured
        .iter()
        .filter(|mirror| mirror.suites.is_empty());
    if let Some(mirror) = named.chain(any).next() {
        return vec![from_mirror(mirror, "the worker's configuration")];
    }
    apt.iter()
        .filter(|source| source.suite == suite)
        .cloned()
        .collect()
}

/// The keyring that the worker or the machine would check this suite with. An overlay that they
/// do not carry is checked with the keyring of its base.
fn known_keyring(base: &str, suite: &str, places: &Places<'_>, apt: &[SuiteSource]) -> Keyring {
    for suite in [suite, base] {
        let configured = places
            .configured
            .iter()
            .filter(|mirror| mirror.suites.iter().any(|known| known == suite))
            .map(|mirror| &mirror.keyring);
        let machine = apt
            .iter()
            .filter(|source| source.suite == suite)
            .map(|s| &s.keyring);
        if let Some(keyring) = configured
            .chain(machine)
            .find(|keyring| !keyring.is_empty())
        {
            return keyring.clone();
        }
    }
    Keyring::Files(Vec::new())
}

impl Mirror {
    fn carries(&self, suite: &str) -> bool {
        self.suites.is_empty() || self.suites.iter().any(|known| known == suite)
    }
}

impl Keyring {
    fn is_empty(&self) -> bool {
        match self {
            Self::Files(files) => files.is_empty(),
            Self::Inline(text) => text.trim().is_empty(),
            Self::Fingerprints {
                files,
                fingerprints,
            } => files.is_empty() || fingerprints.is_empty(),
        }
    }
}

fn trim_url(url: &str) -> String {
    url.trim_end_matches('/').to_owned()
}

/// Reads every suite that the machine's apt fetches over HTTP and whose signature it checks.
pub fn machine_sources(
    apt_root: &Utf8Path,
    architecture: &str,
) -> Result<Vec<SuiteSource>, SourceError> {
    let reader = Reader {
        architecture,
        trusted: trusted_keyrings(apt_root),
    };
    let mut found = Vec::new();
    let main = apt_root.join("sources.list");
    if let Some(text) = read_optional(&main)? {
        reader.one_line(&text, &main, &mut found);
    }
    for path in apt_conf::parts(&apt_root.join("sources.list.d")) {
        let Some(text) = read_optional(&path)? else {
            continue;
        };
        match path.extension() {
            Some("list") => reader.one_line(&text, &path, &mut found),
            Some("sources") => {
                for stanza in Stanzas::new(&without_comments(&text)) {
                    reader.deb822(&stanza, &path, &mut found);
                }
            }
            _ => {}
        }
    }
    // The same suite of the same archive may be written twice (one line per component).
    let mut merged: Vec<SuiteSource> = Vec::new();
    for source in found {
        match merged
            .iter_mut()
            .find(|known| known.url == source.url && known.suite == source.suite)
        {
            None => merged.push(source),
            Some(known) => {
                let more = source
                    .components
                    .into_iter()
                    .filter(|c| !known.components.contains(c));
                let more: Vec<_> = more.collect();
                known.components.extend(more);
            }
        }
    }
    Ok(merged)
}

fn read_optional(path: &Utf8Path) -> Result<Option<String>, SourceError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(SourceError::Read {
            path: path.to_owned(),
            source,
        }),
    }
}

/// Lines that start with `#` are comments anywhere in a deb822 file, also inside a field.
fn without_comments(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        // apt takes a line of blanks as the end of a stanza, too.
        out.push_str(if line.trim().is_empty() { "" } else { line });
        out.push('\n');
    }
    out
}

/// The keys that apt trusts for sources without `Signed-By`.
fn trusted_keyrings(apt_root: &Utf8Path) -> Vec<Utf8PathBuf> {
    let mut files: Vec<_> = apt_conf::parts(&apt_root.join("trusted.gpg.d"))
        .into_iter()
        .filter(|path| matches!(path.extension(), Some("gpg" | "asc")))
        .collect();
    let old = apt_root.join("trusted.gpg");
    if old.metadata().is_ok_and(|metadata| metadata.len() > 0) {
        files.push(old);
    }
    files
}

struct Reader<'a> {
    architecture: &'a str,
    trusted: Vec<Utf8PathBuf>,
}

impl Reader<'_> {
    fn deb822(&self, stanza: &Stanza<'_>, path: &Utf8Path, found: &mut Vec<SuiteSource>) {
        let words = |key: &str| -> Vec<&str> {
            stanza
                .get(key)
                .unwrap_or_default()
                .split_whitespace()
                .collect()
        };
        let off = |key: &str| stanza.get(key).is_some_and(is_no);
        if off("Enabled") || !words("Types").contains(&"deb") {
            return;
        }
        let architectures = words("Architectures");
        if !architectures.is_empty() && !architectures.contains(&self.architecture) {
            return;
        }
        let keyring = self.keyring(stanza.get("Signed-By"));
        for url in words("URIs") {
            for suite in words("Suites") {
                self.push(
                    Found {
                        url,
                        suite,
                        components: &words("Components"),
                        keyring: &keyring,
                        check_valid_until: !off("Check-Valid-Until"),
                        path,
                    },
                    found,
                );
            }
        }
    }

    fn one_line(&self, text: &str, path: &Utf8Path, found: &mut Vec<SuiteSource>) {
        for line in text.lines() {
            let line = line.split('#').next().unwrap_or_default().trim();
            let Some(rest) = line
                .strip_prefix("deb")
                .filter(|rest| rest.starts_with([' ', '\t', '[']))
            else {
                continue;
            };
            let rest = rest.trim_start();
            let (options, rest) = match rest.strip_prefix('[').and_then(|o| o.split_once(']')) {
                Some((options, rest)) => (options, rest),
                None => ("", rest),
            };
            let option = |key: &str| {
                options
                    .split_whitespace()
                    .filter_map(|pair| pair.split_once('='))
                    .find(|(known, _)| known.eq_ignore_ascii_case(key))
                    .map(|(_, value)| value)
            };
            if option("arch").is_some_and(|list| !list.split(',').any(|a| a == self.architecture)) {
                continue;
            }
            let mut words = rest.split_whitespace();
            let (Some(url), Some(suite)) = (words.next(), words.next()) else {
                continue;
            };
            let components: Vec<_> = words.collect();
            let signed_by = option("signed-by").map(|value| value.replace(',', "\n "));
            self.push(
                Found {
                    url,
                    suite,
                    components: &components,
                    keyring: &self.keyring(signed_by.as_deref()),
                    check_valid_until: !option("check-valid-until").is_some_and(is_no),
                    path,
                },
                found,
            );
        }
    }

    fn keyring(&self, signed_by: Option<&str>) -> Keyring {
        let Some(signed_by) = signed_by else {
            return Keyring::Files(self.trusted.clone());
        };
        if signed_by.contains("-----BEGIN PGP PUBLIC KEY BLOCK-----") {
            return Keyring::Inline(unfold(signed_by));
        }
        let words = || signed_by.split_whitespace();
        if words().all(|word| word.starts_with('/')) {
            return Keyring::Files(words().map(Utf8PathBuf::from).collect());
        }
        Keyring::Fingerprints {
            files: self.trusted.clone(),
            fingerprints: words()
                .map(|word| word.trim_end_matches('!').to_ascii_uppercase())
                .collect(),
        }
    }

    fn push(&self, source: Found<'_>, found: &mut Vec<SuiteSource>) {
        let http = source.url.starts_with("http://") || source.url.starts_with("https://");
        // A flat repository (`deb URL ./`) has no suite; other transports are not fetched here.
        if !http || source.suite.ends_with('/') || source.components.is_empty() {
            return;
        }
        let components: BTreeSet<&str> = source.components.iter().copied().collect();
        found.push(SuiteSource {
            url: trim_url(&source.url.replace("$(ARCH)", self.architecture)),
            suite: source.suite.replace("$(ARCH)", self.architecture),
            components: components.into_iter().map(ToOwned::to_owned).collect(),
            keyring: source.keyring.clone(),
            check_valid_until: source.check_valid_until,
            // The machine's own apt insists on everything that its configuration lists.
            optional: false,
            named_by: source.path.to_string(),
        });
    }
}

struct Found<'a> {
    url: &'a str,
    suite: &'a str,
    components: &'a [&'a str],
    keyring: &'a Keyring,
    check_valid_until: bool,
    path: &'a Utf8Path,
}

fn is_no(value: &str) -> bool {
    matches!(
        value.trim().to_ascii_lowercase().as_str(),
        "no" | "false" | "0" | "off" | "without"
    )
}

/// Takes one space off continuation lines; a line of a single dot stands for an empty one.
fn unfold(field: &str) -> String {
    let mut out = String::with_capacity(field.len());
    for line in field.lines() {
        let line = line.strip_prefix(' ').unwrap_or(line);
        out.push_str(if line.trim() == "." { "" } else { line });
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests;
