//! Licences as Debian's copyright files name them, in SPDX's words.
//!
//! Only the machine-readable form (DEP-5) is read; of free text nothing is guessed. A short name that SPDX does not list becomes a
//! `LicenseRef` of that package, because the same word means different texts in different packages.

use std::collections::{BTreeMap, BTreeSet};

use crate::dpkg::stanzas;

/// What a package declares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Licence {
    /// An SPDX licence expression.
    pub expression: String,
    /// What the references in it stand for: the word of the copyright file.
    pub references: BTreeMap<String, String>,
}

impl Licence {
    /// The one licence of SPDX's list that this is, if it is one.
    pub fn single(&self) -> Option<&str> {
        let plain = self.references.is_empty() && !self.expression.contains(' ');
        plain.then_some(self.expression.as_str())
    }
}

/// Debian's short names that differ from SPDX's, in lower case. Families with versions are in [`family`].
const NAMES: &[(&str, &str)] = &[
    ("expat", "MIT"),
    ("mit", "MIT"),
    ("x11", "X11"),
    ("isc", "ISC"),
    ("zlib", "Zlib"),
    ("bsd-2-clause", "BSD-2-Clause"),
    ("bsd-3-clause", "BSD-3-Clause"),
    ("bsd-4-clause", "BSD-4-Clause"),
    ("0bsd", "0BSD"),
    ("apache-1.1", "Apache-1.1"),
    ("apache-2", "Apache-2.0"),
    ("apache-2.0", "Apache-2.0"),
    ("artistic", "Artistic-1.0-Perl"),
    ("artistic-2", "Artistic-2.0"),
    ("artistic-2.0", "Artistic-2.0"),
    ("bsl-1.0", "BSL-1.0"),
    ("boost-1.0", "BSL-1.0"),
    ("cc0", "CC0-1.0"),
    ("cc0-1.0", "CC0-1.0"),
    ("cc-by-3.0", "CC-BY-3.0"),
    ("cc-by-4.0", "CC-BY-4.0"),
    ("cc-by-sa-3.0", "CC-BY-SA-3.0"),
    ("cc-by-sa-4.0", "CC-BY-SA-4.0"),
    ("mpl-1.1", "MPL-1.1"),
    ("mpl-2", "MPL-2.0"),
    ("mpl-2.0", "MPL-2.0"),
    ("openssl", "OpenSSL"),
    ("ofl-1.1", "OFL-1.1"),
    ("psf-2", "PSF-2.0"),
    ("python-2.0", "Python-2.0"),
    ("postgresql", "PostgreSQL"),
    ("curl", "curl"),
    ("bzip2-1.0.6", "bzip2-1.0.6"),
    ("unlicense", "Unlicense"),
    ("wtfpl", "WTFPL"),
];

/// Licences that come as "this version" and "this version or later".
const FAMILIES: &[(&str, &[&str])] = &[
    ("gpl", &["1", "2", "3"]),
    ("lgpl", &["2", "2.1", "3"]),
    ("agpl", &["3"]),
    ("gfdl", &["1.1", "1.2", "1.3"]),
];

/// `GPL-2+` is `GPL-2.0-or-later`, `LGPL-2.1` is `LGPL-2.1-only`.
fn family(name: &str) -> Option<String> {
    let (family, version) = name.split_once('-')?;
    let (_, versions) = FAMILIES.iter().find(|(known, _)| *known == family)?;
    let (version, ending) = match version.strip_suffix('+') {
        Some(version) => (version, "or-later"),
        None => (version, "only"),
    };
    let version = version.strip_suffix(".0").unwrap_or(version);
    versions.contains(&version).then_some(())?;
    let dot = if version.contains('.') { "" } else { ".0" };
    Some(format!("{}-{version}{dot}-{ending}", family.to_uppercase()))
}

fn spdx(name: &str) -> Option<String> {
    let name = name.to_ascii_lowercase();
    let known = NAMES.iter().find(|(short, _)| *short == name);
    known
        .map(|(_, id)| (*id).to_owned())
        .or_else(|| family(&name))
}

/// What a copyright file declares of the package's files, all of it together. None for a file that is no DEP-5, or that declares
/// nothing.
pub fn declared(package: &str, copyright: &str) -> Option<Licence> {
    let stanzas = stanzas(copyright);
    let (header, rest) = stanzas.split_first()?;
    let format = header
        .get("format")
        .or_else(|| header.get("format-specification"))?;
    (format.contains("copyright-format") || format.contains("dep5")).then_some(())?;
    // A paragraph without files is the text of a licence that others name.
    let of_files = rest.iter().filter(|stanza| stanza.contains_key("files"));
    let names = of_files.filter_map(|stanza| stanza.get("license"));
    let names: BTreeSet<&String> = names.chain(header.get("license")).collect();
    let mut references = BTreeMap::new();
    let mut expressions = BTreeSet::new();
    for name in names.into_iter().filter(|name| !name.is_empty()) {
        expressions.insert(synopsis(package, name, &mut references));
    }
    let many = expressions.len() > 1;
    let parts: Vec<String> = expressions
        .into_iter()
        .map(|part| match many && part.contains(" OR ") {
            true => format!("({part})"),
            false => part,
        })
        .collect();
    (!parts.is_empty()).then(|| Licence {
        expression: parts.join(" AND "),
        references,
    })
}

/// One `License:` line. A comma binds weaker than the word behind it, "and" stronger than "or", as SPDX has it.
fn synopsis(package: &str, text: &str, references: &mut BTreeMap<String, String>) -> String {
    let mut join = |parts: Vec<&str>, with: &str| {
        let parts = parts.into_iter().map(|part| {
            let part = synopsis(package, part, references);
            match with == " AND " && part.contains(" OR ") {
                true => format!("({part})"),
                false => part,
            }
        });
        parts.collect::<Vec<_>>().join(with)
    };
    for (word, with) in [
        (", and ", " AND "),
        (", or ", " OR "),
        (" or ", " OR "),
        (" and ", " AND "),
    ] {
        if text.contains(word) {
            return join(text.split(word).collect(), with);
        }
    }
    let name = text.trim().trim_end_matches(',');
    spdx(name).unwrap_or_else(|| {
        let plain = |text: &str| -> String {
            let allowed = |c: char| {
                if c.is_ascii_alphanumeric() || c == '.' {
                    c
                } else {
                    '-'
                }
            };
            text.chars().map(allowed).collect()
        };
        let reference = format!("LicenseRef-debian-{}-{}", plain(package), plain(name));
        references.insert(reference.clone(), name.to_owned());
        reference
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(lines: &[&str]) -> Option<Licence> {
        let format = "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/";
        let files = |line: &&str| {
            format!("Files: *\nCopyright: x\nLicense: {line}\n text\n .\n more: text\n")
        };
        let stanzas: Vec<String> = lines.iter().map(files).collect();
        declared("pkg+x", &format!("{format}\n\n{}", stanzas.join("\n")))
    }

    fn expression(lines: &[&str]) -> String {
        of(lines).unwrap().expression
    }

    #[test]
    fn debians_words_become_spdxs() {
        for (debian, spdx) in [
            ("GPL-2+", "GPL-2.0-or-later"),
            ("GPL-2.0", "GPL-2.0-only"),
            ("LGPL-2.1+", "LGPL-2.1-or-later"),
            ("GFDL-1.3", "GFDL-1.3-only"),
            ("Expat", "MIT"),
            ("BSD-3-clause", "BSD-3-Clause"),
            (
                "GPL-1+ or Artistic",
                "GPL-1.0-or-later OR Artistic-1.0-Perl",
            ),
            (
                "GPL-2+ or Expat, and ISC",
                "(GPL-2.0-or-later OR MIT) AND ISC",
            ),
            ("GPL-2 or Expat and ISC", "GPL-2.0-only OR MIT AND ISC"),
        ] {
            assert_eq!(expression(&[debian]), spdx, "{debian}");
        }
    }

    #[test]
    fn the_licences_of_all_files_are_declared_together_and_each_once() {
        assert_eq!(
            expression(&["ISC", "GPL-2 or Expat", "ISC", "Expat"]),
            "(GPL-2.0-only OR MIT) AND ISC AND MIT"
        );
    }

    #[test]
    fn a_word_that_spdx_does_not_list_is_a_reference_of_that_package() {
        let licence = of(&["public-domain", "GPL-3+ with Autoconf exception"]).unwrap();
        assert_eq!(
            licence.expression,
            "LicenseRef-debian-pkg-x-GPL-3--with-Autoconf-exception AND LicenseRef-debian-pkg-x-public-domain"
        );
        assert_eq!(
            licence.references["LicenseRef-debian-pkg-x-public-domain"],
            "public-domain"
        );
        assert_eq!(licence.single(), None);
        assert_eq!(of(&["Expat"]).unwrap().single(), Some("MIT"));
    }

    #[test]
    fn free_text_and_files_without_a_declaration_say_nothing() {
        assert_eq!(declared("x", "This is GPL.\nLicense: GPL-2\n"), None);
        assert_eq!(declared("x", ""), None);
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[""]), None);
    }
}
