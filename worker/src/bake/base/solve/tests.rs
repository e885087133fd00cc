use std::fmt::Write as _;

use super::*;

/// Writes an index from lines `name version | field: value | …`.
fn index(lines: &[&str]) -> String {
    let mut text = String::new();
    for line in lines {
        let mut parts = line.split(';').map(str::trim);
        let (name, version) = parts.next().unwrap().split_once(' ').unwrap();
        let _ = write!(
            text,
            "Package: {name}\nVersion: {version}\nArchitecture: amd64\nFilename: pool/{name}\n\
             Size: 1\nSHA256: {}\n",
            "0".repeat(64)
        );
        for field in parts {
            text += field;
            text.push('\n');
        }
        text.push('\n');
    }
    text
}

fn answer(lines: &[&str], wanted: &[&str]) -> Result<Vec<String>, SolveError> {
    let text = index(lines);
    let mut packages = Packages::default();
    packages.add(&text, "amd64", 0).unwrap();
    let wanted: Vec<_> = wanted.iter().map(|name| (*name).to_owned()).collect();
    let request = Request {
        packages: &wanted,
        provided: &["ramdisk-maker"],
        preferred: &["small"],
        system: true,
    };
    solve(&packages, &request).map(|chosen| {
        chosen
            .iter()
            .map(|package| package.name.to_owned())
            .collect()
    })
}

const ESSENTIAL: &str = "base 1; Essential: yes";

#[test]
fn essential_required_and_requested_packages_come_with_their_dependencies() {
    let lines = [
        ESSENTIAL,
        "shell 1; Priority: required; Pre-Depends: libc (>= 2)",
        "libc 2.36",
        "web 1; Depends: libssl, shell; Recommends: docs",
        "libssl 3",
        "docs 1",
    ];
    assert_eq!(
        answer(&lines, &["web"]).unwrap(),
        ["base", "libc", "libssl", "shell", "web"]
    );
}

#[test]
fn the_first_alternative_wins_unless_another_is_chosen_already() {
    let lines = [ESSENTIAL, "web 1; Depends: one | two", "one 1", "two 1"];
    assert_eq!(answer(&lines, &["web"]).unwrap(), ["base", "one", "web"]);
    assert_eq!(
        answer(&lines, &["web", "two"]).unwrap(),
        ["base", "two", "web"]
    );
}

#[test]
fn a_real_package_is_preferred_to_a_provider_and_providers_are_ordered() {
    let lines = [
        ESSENTIAL,
        "web 1; Depends: mta, awk",
        "zmail 1; Provides: mta; Priority: important",
        "amail 1; Provides: mta; Priority: optional",
        "awk 1",
        "mawk 1; Provides: awk; Priority: required",
    ];
    // mawk is required and provides awk, so the real awk is not needed any more.
    assert_eq!(
        answer(&lines, &["web"]).unwrap(),
        ["base", "mawk", "web", "zmail"]
    );
}

#[test]
fn an_alternative_that_conflicts_is_passed_over() {
    let lines = [
        ESSENTIAL,
        "web 1; Depends: one | two, three",
        "one 1; Conflicts: three",
        "two 1",
        "three 1",
    ];
    assert_eq!(
        answer(&lines, &["web"]).unwrap(),
        ["base", "three", "two", "web"]
    );
    let broken = [
        "base 1; Essential: yes; Breaks: one (<< 2)",
        lines[1],
        lines[2],
        lines[3],
        lines[4],
    ];
    assert_eq!(
        answer(&broken, &["web"]).unwrap(),
        ["base", "three", "two", "web"]
    );
}

#[test]
fn what_the_engine_provides_needs_no_package() {
    let lines = [
        ESSENTIAL,
        "kernel 1; Depends: fat-ramdisk (>= 9) | ramdisk-maker",
        "fat-ramdisk 9",
    ];
    assert_eq!(answer(&lines, &["kernel"]).unwrap(), ["base", "kernel"]);
}

#[test]
fn a_preferred_alternative_comes_before_the_first() {
    let lines = [
        ESSENTIAL,
        "web 1; Depends: large | small",
        "large 1",
        "small 1",
    ];
    assert_eq!(answer(&lines, &["web"]).unwrap(), ["base", "small", "web"]);
}

#[test]
fn an_unsatisfiable_dependency_says_who_needs_what() {
    let lines = [
        ESSENTIAL,
        "web 1; Depends: lib (>= 2)",
        "lib 1",
        "site 1; Depends: web",
    ];
    let error = answer(&lines, &["site"]).unwrap_err().to_string();
    assert_eq!(
        error,
        "install web <- site: nothing satisfies `lib (>= 2)`; \
         the archives have lib only in version 1"
    );
    let error = answer(&lines, &["sit"]).unwrap_err().to_string();
    assert!(error.contains("did you mean site?"), "{error}");
}

#[test]
fn two_requested_packages_that_conflict_are_named() {
    let lines = [ESSENTIAL, "a 1; Conflicts: b", "b 1"];
    let error = answer(&lines, &["a", "b"]).unwrap_err().to_string();
    assert_eq!(error, "install b: it conflicts with a (`a Conflicts: b`)");
}

#[test]
fn the_newest_version_decides_whether_a_package_is_required() {
    let lines = [
        ESSENTIAL,
        "old 1; Priority: required",
        "old 2; Priority: optional",
    ];
    assert_eq!(answer(&lines, &[]).unwrap(), ["base"]);
}

#[test]
fn an_archive_without_essential_packages_is_not_a_system() {
    assert_eq!(answer(&["a 1"], &[]).unwrap_err(), SolveError::NoEssential);
}
