//! Packages indices: the stanzas of an archive, parsed in place.
//!
//! A Debian index is 50 MB of text with 63,000 stanzas, so nothing is copied: every field is a
//! slice of the text, and dependency fields are only split when the solver looks at them.
//! The text must have been verified against a signed release file before it comes here.

use std::collections::HashMap;

use super::version::{self, Relation};

/// One stanza of a Packages index. All fields borrow from the index's text.
#[derive(Clone, Debug, Default)]
pub struct Package<'a> {
    pub name: &'a str,
    pub version: &'a str,
    pub architecture: &'a str,
    pub multi_arch: &'a str,
    pub priority: &'a str,
    pub essential: bool,
    pub depends: &'a str,
    pub pre_depends: &'a str,
    pub provides: &'a str,
    pub conflicts: &'a str,
    pub breaks: &'a str,
    pub replaces: &'a str,
    pub filename: &'a str,
    pub size: u64,
    pub sha256: &'a str,
    /// Which source (in the order of the caller's list) carries it.
    pub source: usize,
}

/// An index that cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum IndexError {
    #[error("read stanza {stanza} of the package index: it has no `{field}` field")]
    MissingField { stanza: usize, field: &'static str },
    #[error("read package {package} of the package index: `{value}` is not a size")]
    Size { package: String, value: String },
    #[error(
        "read package {package} of the package index: `{value}` is not a SHA-256 digest; \
         the archive is too old for this engine"
    )]
    Digest { package: String, value: String },
}

/// All candidates of one system: every index of every suite, for one architecture.
#[derive(Debug, Default)]
pub struct Packages<'a> {
    packages: Vec<Package<'a>>,
    by_name: HashMap<&'a str, Vec<usize>>,
    providers: HashMap<&'a str, Vec<usize>>,
}

impl<'a> Packages<'a> {
    /// Adds the stanzas of one index that fit `architecture`.
    pub fn add(
        &mut self,
        text: &'a str,
        architecture: &str,
        source: usize,
    ) -> Result<(), IndexError> {
        for (stanza, fields) in Stanzas::new(text).enumerate() {
            let package = Package::read(&fields, stanza, source)?;
            if package.architecture != architecture && package.architecture != "all" {
                continue;
            }
            let position = self.packages.len();
            for provided in relations(package.provides).flatten() {
                self.providers
                    .entry(provided.name)
                    .or_default()
                    .push(position);
            }
            self.by_name.entry(package.name).or_default().push(position);
            self.packages.push(package);
        }
        Ok(())
    }

    pub fn len(&self) -> usize {
        self.packages.len()
    }

    pub fn is_empty(&self) -> bool {
        self.packages.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = &Package<'a>> {
        self.packages.iter()
    }

    /// The candidate of a name: its newest version, the earlier source when versions are equal.
    pub fn candidate(&self, name: &str) -> Option<&Package<'a>> {
        let positions = self.by_name.get(name)?;
        let mut newest: Option<&Package<'a>> = None;
        for package in positions.iter().map(|position| &self.packages[*position]) {
            if newest.is_none_or(|best| version::compare(package.version, best.version).is_gt()) {
                newest = Some(package);
            }
        }
        newest
    }

    /// Candidates that provide a virtual name in a version that satisfies `wanted`, by package
    /// priority and then by name, so that the choice does not depend on the index's order.
    pub fn providers(&self, wanted: &Dependency<'_>) -> Vec<&Package<'a>> {
        let Some(positions) = self.providers.get(wanted.name) else {
            return Vec::new();
        };
        let mut found: Vec<&Package<'a>> = positions
            .iter()
            .map(|position| &self.packages[*position])
            .filter(|package| package.provides(wanted))
            .filter(|package| {
                self.candidate(package.name)
                    .is_some_and(|best| best.version == package.version)
            })
            .collect();
        found.sort_by_key(|package| (priority_rank(package.priority), package.name));
        found.dedup_by_key(|package| package.name);
        found
    }

    /// Names that look like `name`, for an error message.
    pub fn similar(&self, name: &str) -> Vec<&'a str> {
        let mut names: Vec<&'a str> = self
            .by_name
            .keys()
            .copied()
            .filter(|known| {
                known.len() > 2 && (known.starts_with(name) || name.starts_with(*known))
            })
            .collect();
        names.sort_by_key(|known| (known.len().abs_diff(name.len()), *known));
        names.truncate(SIMILAR_NAMES);
        names
    }
}

/// How many similar names an error offers.
const SIMILAR_NAMES: usize = 3;

fn priority_rank(priority: &str) -> u8 {
    match priority {
        "required" => 0,
        "important" => 1,
        "standard" => 2,
        "optional" => 3,
        _ => 4,
    }
}

impl<'a> Package<'a> {
    fn read(fields: &Stanza<'a>, stanza: usize, source: usize) -> Result<Self, IndexError> {
        let mut package = Self {
            source,
            ..Self::default()
        };
        let mut size = "";
        for (key, value) in fields.iter() {
            match key {
                "Package" => package.name = value,
                "Version" => package.version = value,
                "Architecture" => package.architecture = value,
                "Multi-Arch" => package.multi_arch = value,
                "Priority" => package.priority = value,
                "Essential" => package.essential = value == "yes",
                "Depends" => package.depends = value,
                "Pre-Depends" => package.pre_depends = value,
                "Provides" => package.provides = value,
                "Conflicts" => package.conflicts = value,
                "Breaks" => package.breaks = value,
                "Replaces" => package.replaces = value,
                "Filename" => package.filename = value,
                "Size" => size = value,
                "SHA256" => package.sha256 = value,
                _ => {}
            }
        }
        for (field, value) in [
            ("Package", package.name),
            ("Version", package.version),
            ("Architecture", package.architecture),
            ("Filename", package.filename),
            ("Size", size),
        ] {
            if value.is_empty() {
                return Err(IndexError::MissingField { stanza, field });
            }
        }
        package.size = size.parse().map_err(|_| IndexError::Size {
            package: package.name.to_owned(),
            value: size.to_owned(),
        })?;
        if package.sha256.len() != 64 || !package.sha256.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(IndexError::Digest {
                package: package.name.to_owned(),
                value: package.sha256.to_owned(),
            });
        }
        Ok(package)
    }

    /// Says whether this package itself, by its own name, satisfies a dependency.
    pub fn is(&self, wanted: &Dependency<'_>) -> bool {
        self.name == wanted.name && wanted.admits(self.version)
    }

    /// Says whether this package provides the wanted name. A dependency with a version is only
    /// satisfied by a provision with one.
    pub fn provides(&self, wanted: &Dependency<'_>) -> bool {
        relations(self.provides).flatten().any(|provided| {
            provided.name == wanted.name
                && match (wanted.constraint, provided.constraint) {
                    (None, _) => true,
                    (Some(_), None) => false,
                    (Some((relation, version)), Some((_, offered))) => {
                        relation.holds(offered, version)
                    }
                }
        })
    }

    /// Says whether this package satisfies a dependency by name or by provision.
    pub fn satisfies(&self, wanted: &Dependency<'_>) -> bool {
        self.is(wanted) || self.provides(wanted)
    }
}

/// One alternative of a dependency: a name and perhaps a version constraint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dependency<'a> {
    pub name: &'a str,
    pub constraint: Option<(Relation, &'a str)>,
}

impl<'a> Dependency<'a> {
    /// A dependency on any version of a name.
    pub fn any(name: &'a str) -> Self {
        Self {
            name,
            constraint: None,
        }
    }

    fn admits(&self, version: &str) -> bool {
        self.constraint
            .is_none_or(|(relation, wanted)| relation.holds(version, wanted))
    }

    fn parse(text: &'a str) -> Option<Self> {
        // Build profiles `<…>` do not occur in binary packages; an architecture list `[…]`
        // neither, but costs nothing to cut off.
        let text = text.split('[').next().unwrap_or(text).trim();
        let (name, constraint) = match text.split_once('(') {
            None => (text, None),
            Some((name, rest)) => {
                let rest = rest.trim_end().strip_suffix(')')?.trim();
                let split = rest.find(|c: char| !matches!(c, '<' | '>' | '='))?;
                let relation = Relation::parse(&rest[..split])?;
                (name, Some((relation, rest[split..].trim())))
            }
        };
        // `python3:any` is satisfied by the package of any architecture, so by ours.
        let name = name.trim().split(':').next().unwrap_or_default();
        (!name.is_empty()).then_some(Self { name, constraint })
    }
}

impl std::fmt::Display for Dependency<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.constraint {
            None => f.write_str(self.name),
            Some((relation, version)) => {
                write!(f, "{} ({} {version})", self.name, relation.as_str())
            }
        }
    }
}

/// Splits a dependency field into its groups; any one alternative of a group satisfies it.
/// Parts that cannot be read are left out: dpkg itself checks them again when it configures.
pub fn relations(field: &str) -> impl Iterator<Item = Vec<Dependency<'_>>> {
    field
        .split(',')
        .map(|group| {
            group
                .split('|')
                .filter_map(Dependency::parse)
                .collect::<Vec<_>>()
        })
        .filter(|group| !group.is_empty())
}

/// The paragraphs of a control file.
#[derive(Debug)]
pub struct Stanzas<'a> {
    rest: &'a str,
}

impl<'a> Stanzas<'a> {
    pub fn new(text: &'a str) -> Self {
        Self { rest: text }
    }
}

impl<'a> Iterator for Stanzas<'a> {
    type Item = Stanza<'a>;

    fn next(&mut self) -> Option<Stanza<'a>> {
        let start = self.rest.trim_start_matches(['\n', '\r']);
        if start.trim().is_empty() {
            self.rest = "";
            return None;
        }
        let (stanza, rest) = start.split_once("\n\n").unwrap_or((start, ""));
        self.rest = rest;
        Some(Stanza { text: stanza })
    }
}

/// One paragraph of a control file.
#[derive(Clone, Copy, Debug)]
pub struct Stanza<'a> {
    text: &'a str,
}

impl<'a> Stanza<'a> {
    pub fn text(&self) -> &'a str {
        self.text
    }

    /// The fields in order; a value keeps its continuation lines, unfolded only at its ends.
    pub fn iter(&self) -> impl Iterator<Item = (&'a str, &'a str)> {
        let mut rest = self.text;
        std::iter::from_fn(move || {
            while !rest.is_empty() {
                let mut end = 0;
                // A field ends at the first line that does not start with white space.
                loop {
                    end += rest[end..].find('\n').map_or(rest.len() - end, |at| at + 1);
                    if !rest[end..].starts_with([' ', '\t']) {
                        break;
                    }
                }
                let field = &rest[..end];
                rest = &rest[end..];
                if field.starts_with('#') {
                    continue;
                }
                if let Some((key, value)) = field.split_once(':') {
                    return Some((key.trim(), value.trim()));
                }
            }
            None
        })
    }

    /// The value of a field, whatever the case of its name.
    pub fn get(&self, key: &str) -> Option<&'a str> {
        self.iter()
            .find(|(known, _)| known.eq_ignore_ascii_case(key))
            .map(|(_, value)| value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn stanza(name: &str, version: &str, more: &str) -> String {
        format!(
            "Package: {name}\nVersion: {version}\nArchitecture: amd64\n{more}Filename: p/{name}\n\
             Size: 7\nSHA256: {DIGEST}\n\n"
        )
    }

    #[test]
    fn the_newest_version_is_the_candidate() {
        let first = stanza("a", "1.0", "");
        let second = stanza("a", "1.0+deb12u1", "");
        let mut packages = Packages::default();
        packages.add(&first, "amd64", 0).unwrap();
        packages.add(&second, "amd64", 1).unwrap();
        assert_eq!(packages.candidate("a").unwrap().source, 1);
        assert!(packages.candidate("b").is_none());
    }

    #[test]
    fn a_versioned_dependency_needs_a_versioned_provision() {
        let text = stanza("mawk", "1.3", "Provides: awk, posix-awk (= 2)\n");
        let mut packages = Packages::default();
        packages.add(&text, "amd64", 0).unwrap();
        let wanted = |text| relations(text).next().unwrap()[0];
        assert_eq!(packages.providers(&wanted("awk")).len(), 1);
        assert_eq!(packages.providers(&wanted("awk (>= 1)")).len(), 0);
        assert_eq!(packages.providers(&wanted("posix-awk (>= 1)")).len(), 1);
        assert_eq!(packages.providers(&wanted("posix-awk (>= 3)")).len(), 0);
    }

    #[test]
    fn groups_and_alternatives_are_split() {
        let groups: Vec<_> = relations("a (>= 1:2.0~), b:any | c [amd64] |d(<<3)").collect();
        assert_eq!(groups.len(), 2);
        assert_eq!(
            groups[0][0].constraint,
            Some((Relation::GreaterOrEqual, "1:2.0~"))
        );
        assert_eq!(
            groups[1].iter().map(|d| d.name).collect::<Vec<_>>(),
            ["b", "c", "d"]
        );
        assert_eq!(groups[1][2].constraint, Some((Relation::Less, "3")));
    }

    #[test]
    fn continuation_lines_belong_to_their_field() {
        let stanza = Stanzas::new("A: 1\n 2\n\t3\n# no\nB: x\n").next().unwrap();
        assert_eq!(stanza.get("a"), Some("1\n 2\n\t3"));
        assert_eq!(stanza.get("B"), Some("x"));
    }

    #[test]
    fn a_stanza_without_a_digest_is_refused() {
        let text =
            "Package: a\nVersion: 1\nArchitecture: all\nFilename: x\nSize: 1\nSHA256: 12\n\n";
        let error = Packages::default().add(text, "amd64", 0).unwrap_err();
        assert!(matches!(error, IndexError::Digest { .. }), "{error}");
    }
}
