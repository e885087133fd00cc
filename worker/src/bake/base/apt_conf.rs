//! The little that the engine takes from the machine's apt configuration: its HTTP proxy.
//!
//! apt's configuration is a tree written either as `Acquire::http::Proxy "…";` or with braces.
//! Only what is needed to follow both spellings is understood; `#include` and `#clear` are not.

use camino::{Utf8Path, Utf8PathBuf};

/// The files of a `.d` folder in the order in which apt reads them; none if it is not there.
pub fn parts(folder: &Utf8Path) -> Vec<Utf8PathBuf> {
    let mut files: Vec<Utf8PathBuf> = folder
        .read_dir_utf8()
        .into_iter()
        .flatten()
        .filter_map(Result::ok)
        .map(|entry| entry.path().to_owned())
        .collect();
    files.sort();
    files
}

/// The proxy that apt uses for plain HTTP, if the machine has one.
pub fn http_proxy(apt_root: &Utf8Path) -> Option<String> {
    let mut files: Vec<_> = parts(&apt_root.join("apt.conf.d"))
        .into_iter()
        .filter(|path| matches!(path.extension(), None | Some("conf")))
        .collect();
    files.push(apt_root.join("apt.conf"));
    let mut proxy = None;
    for file in files {
        let Ok(text) = std::fs::read_to_string(&file) else {
            continue;
        };
        for (key, value) in settings(&text) {
            if key.eq_ignore_ascii_case("Acquire::http::Proxy") {
                proxy = Some(value);
            }
        }
    }
    proxy.filter(|value| !value.is_empty() && !value.eq_ignore_ascii_case("DIRECT"))
}

/// Reads `key "value";` pairs, with the enclosing scopes joined by `::`.
fn settings(text: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut scopes: Vec<String> = Vec::new();
    let mut words: Vec<String> = Vec::new();
    let text = without_comments(text);
    let mut rest = text.as_str();
    loop {
        let trimmed = rest.trim_start();
        let Some(first) = trimmed.chars().next() else {
            break;
        };
        let taken = match first {
            '"' => {
                let inner = trimmed[1..].split('"').next().unwrap_or_default();
                words.push(inner.to_owned());
                (inner.len() + 2).min(trimmed.len())
            }
            '{' => {
                scopes.push(std::mem::take(&mut words).join("::"));
                1
            }
            '}' => {
                scopes.pop();
                words.clear();
                1
            }
            ';' => {
                if let [key, value] = words.as_slice() {
                    let mut path = scopes.clone();
                    path.push(key.clone());
                    found.push((path.join("::"), value.clone()));
                }
                words.clear();
                1
            }
            _ => {
                let end = trimmed
                    .find(|c: char| c.is_whitespace() || matches!(c, '"' | '{' | '}' | ';'))
                    .unwrap_or(trimmed.len());
                words.push(trimmed[..end].to_owned());
                end
            }
        };
        rest = &trimmed[taken..];
    }
    found
}

/// Cuts `//` and `#` comments at the start of a line and `/* … */` anywhere.
fn without_comments(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("/*") {
        out.push_str(before);
        rest = after.split_once("*/").map_or("", |(_, after)| after);
    }
    out.push_str(rest);
    out.lines()
        .filter(|line| {
            let line = line.trim_start();
            !line.starts_with("//") && !line.starts_with('#')
        })
        .collect::<Vec<_>>()
        .join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxy_of(text: &str) -> Option<String> {
        let folder = tempfile::tempdir().unwrap();
        let root = Utf8Path::from_path(folder.path()).unwrap();
        std::fs::create_dir(root.join("apt.conf.d")).unwrap();
        std::fs::write(root.join("apt.conf.d/80proxy"), text).unwrap();
        http_proxy(root)
    }

    #[test]
    fn both_spellings_of_the_proxy_are_read() {
        let expected = Some("http://cache.example:3142/".to_owned());
        assert_eq!(
            proxy_of("Acquire::http::Proxy \"http://cache.example:3142/\";"),
            expected
        );
        assert_eq!(
            proxy_of("/* x */ Acquire {\n http { Proxy \"http://cache.example:3142/\"; };\n};"),
            expected
        );
    }

    #[test]
    fn other_settings_and_comments_are_not_a_proxy() {
        assert_eq!(
            proxy_of("// Acquire::http::Proxy \"http://x/\";\nAcquire::Retries 3;"),
            None
        );
        assert_eq!(proxy_of("Acquire::http::Proxy \"DIRECT\";"), None);
        assert_eq!(
            proxy_of("Acquire::http::Proxy::a.example \"http://x/\";"),
            None
        );
    }
}
