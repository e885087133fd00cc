//! Calls and words that a crate may not use, with the reason and the replacement.
//!
//! Clippy's bans (clippy.toml) hold for the whole workspace and know types; these are the rules
//! that differ from crate to crate, or that are about words rather than calls.

use super::lexer::{is_word, outside_tests};
use super::{Problem, Text};

/// One ban.
struct Ban {
    /// Begins and ends at a word's border.
    pattern: &'static str,
    /// Folders it holds in; empty for everywhere.
    within: &'static [&'static str],
    /// Files and folders it does not hold in.
    except: &'static [&'static str],
    why: &'static str,
}

const MODEL: &[&str] = &["model/"];
const PURE: &str = "model is a pure function of its arguments";
const NO_CLOCK: &str = "model reads no clock: take `now: Timestamp` as an argument";
const ORDER: &str =
    "its order differs from process to process: use BTreeMap/BTreeSet or imbl's OrdMap";

const fn model(pattern: &'static str, why: &'static str) -> Ban {
    Ban {
        pattern,
        within: MODEL,
        except: &[],
        why,
    }
}

const BANS: &[Ban] = &[
    model("HashMap", ORDER),
    model("HashSet", ORDER),
    model("RandomState", ORDER),
    model("Instant", NO_CLOCK),
    model("SystemTime", NO_CLOCK),
    model("Timestamp::now", NO_CLOCK),
    model("Zoned::now", NO_CLOCK),
    model("rand::", PURE),
    model("getrandom", PURE),
    model("std::fs", PURE),
    model("TcpStream", PURE),
    model("TcpListener", PURE),
    model("UdpSocket", PURE),
    model("ToSocketAddrs", PURE),
    model("std::env", PURE),
    model("std::process", PURE),
    model("std::thread", PURE),
    model("std::sync::Mutex", PURE),
    model("thread_local!", PURE),
    model("unsafe", PURE),
    Ban {
        pattern: "todo!",
        within: &[],
        except: &[],
        why: "finish it, or open an issue and return an error that says so",
    },
    Ban {
        pattern: "unimplemented!",
        within: &[],
        except: &[],
        why: "finish it, or open an issue and return an error that says so",
    },
    Ban {
        pattern: ".unwrap()",
        within: &[],
        except: &[],
        why: "write expect(\"why it cannot fail\") or return the error",
    },
    Ban {
        pattern: "getrandom::fill",
        within: &[],
        // artifacts is below daemon and only makes names of temporary files.
        except: &["daemon/src/random.rs", "artifacts/"],
        why: "ask oast_daemon::random, so that one place answers for every secret we make",
    },
    Ban {
        pattern: "process::exit",
        within: &["artifacts/", "coordinator/", "proto/"],
        except: &[],
        why: "return an error: only a program's outermost layer ends the process",
    },
    Ban {
        pattern: "unbounded_channel",
        within: &[],
        except: &[],
        why: "every queue has a bound: a slow peer must not become our memory",
    },
    Ban {
        pattern: "println!",
        within: &[
            "artifacts/",
            "coordinator/",
            "daemon/",
            "model/",
            "proto/",
            "worker/",
        ],
        except: &[],
        why: "log with tracing; only the command line prints",
    },
];

/// Looks at every Rust file outside its tests.
pub fn scan(texts: &[Text]) -> Vec<Problem> {
    let mut problems = Vec::new();
    for file in texts
        .iter()
        .filter(|file| file.extension() == "rs" && !is_test(file))
    {
        let path = file.path.to_string_lossy();
        // Only this crate may spell out what it looks for.
        let bans = BANS.iter().filter(|ban| {
            let inside =
                ban.within.is_empty() || ban.within.iter().any(|dir| path.starts_with(dir));
            inside && !ban.except.iter().any(|dir| path.starts_with(dir))
        });
        let code = outside_tests(&file.text);
        for ban in bans {
            for (number, line) in code.lines().enumerate() {
                if contains_word(line, ban.pattern) {
                    let what = format!("`{}` is banned here: {}", ban.pattern, ban.why);
                    problems.push(Problem::new(file.place(number + 1), what));
                }
            }
        }
    }
    problems
}

/// Files that are only compiled for tests, shown as examples, or only speak to cargo.
fn is_test(file: &Text) -> bool {
    let path = &file.path;
    if path.file_name().is_some_and(|name| name == "build.rs") {
        return true;
    }
    let in_tests = path.components().any(|part| {
        ["tests", "examples", "benches"]
            .iter()
            .any(|dir| part.as_os_str() == *dir)
    });
    in_tests || path.file_stem().is_some_and(|stem| stem == "tests")
}

/// Whether `pattern` stands in `line` at a word's border on both sides.
fn contains_word(line: &str, pattern: &str) -> bool {
    let begins_word = pattern.chars().next().is_some_and(is_word);
    let ends_word = pattern.chars().last().is_some_and(is_word);
    line.match_indices(pattern).any(|(at, _)| {
        let goes_on_before = begins_word && line[..at].ends_with(is_word);
        let goes_on_after = ends_word && line[at + pattern.len()..].starts_with(is_word);
        !goes_on_before && !goes_on_after
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scan_one(path: &str, text: &str) -> Vec<String> {
        let file = Text {
            path: path.into(),
            text: text.to_owned(),
        };
        scan(&[file])
            .into_iter()
            .map(|problem| problem.place)
            .collect()
    }

    #[test]
    fn a_banned_call_is_found_with_its_line() {
        let text = "fn f() {\n    let m = HashMap::new();\n}\n";
        assert_eq!(scan_one("model/src/a.rs", text), ["model/src/a.rs:2"]);
        assert_eq!(scan_one("worker/src/a.rs", text), Vec::<String>::new());
    }

    #[test]
    fn comments_strings_tests_and_longer_words_are_left_alone() {
        for text in [
            "// HashMap",
            "const A: &str = \"HashMap\";",
            "struct MyHashMapLike;",
            "#[cfg(test)]\nmod tests { use std::collections::HashMap; }",
        ] {
            assert_eq!(
                scan_one("model/src/a.rs", text),
                Vec::<String>::new(),
                "{text}"
            );
        }
        let text = "fn f() { x.unwrap() }";
        assert_eq!(scan_one("model/src/a/tests.rs", text), Vec::<String>::new());
        assert_eq!(scan_one("tests/src/a.rs", text), Vec::<String>::new());
        assert_eq!(scan_one("model/src/a.rs", text).len(), 1);
    }
}
