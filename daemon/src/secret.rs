//! Values that must not reach a log, an error, a core of a finished request or a config dump.
//!
//! [`Secret`] can be deserialized but never serialized, prints as `[secret]`, and wipes its
//! memory when dropped. [`redact`] is for text that is not a secret but may carry one: addresses
//! with user information, and signed (SAS) links. Neither protects against code that calls
//! [`Secret::expose`] and prints the result; a search for `expose` finds all such places.

use std::borrow::Cow;
use std::fmt;

use serde::{Deserialize, Deserializer};
use zeroize::{Zeroize, Zeroizing};

/// A secret value. No `Serialize`, no `Display`, no `Deref`.
#[derive(Clone)]
pub struct Secret<T: Zeroize>(Zeroizing<T>);

impl<T: Zeroize> Secret<T> {
    /// Takes the value into custody. The caller's other copies stay the caller's problem.
    pub fn new(value: T) -> Self {
        Secret(Zeroizing::new(value))
    }

    /// The value, for the one place that must send or compare it.
    pub fn expose(&self) -> &T {
        &self.0
    }
}

impl<T: Zeroize + AsRef<[u8]>> Secret<T> {
    /// Compares without telling by timing how much agreed (the length is not hidden).
    #[must_use]
    pub fn matches(&self, candidate: &[u8]) -> bool {
        constant_time_eq::constant_time_eq(self.0.as_ref(), candidate)
    }
}

/// Prints a fixed word, so that a struct with a secret can still derive `Debug`.
impl<T: Zeroize> fmt::Debug for Secret<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

impl<T: Zeroize> From<T> for Secret<T> {
    fn from(value: T) -> Self {
        Secret::new(value)
    }
}

impl<'de, T: Zeroize + Deserialize<'de>> Deserialize<'de> for Secret<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        T::deserialize(deserializer).map(Secret::new)
    }
}

/// What stands in for a removed part.
const MASK: &str = "***";

/// Query parameters that carry a right rather than a name, lower case. `sig` is Azure's SAS.
const SIGNED: [&str; 12] = [
    "sig",
    "signature",
    "token",
    "access_token",
    "id_token",
    "refresh_token",
    "code",
    "key",
    "api_key",
    "password",
    "secret",
    "client_secret",
];

/// Characters that end an address inside running text.
fn ends_address(c: char) -> bool {
    c.is_whitespace() || matches!(c, '"' | '\'' | '<' | '>' | '`' | '|' | '{' | '}')
}

/// Replaces user information and signing parameters of every address in `text`.
///
/// The text may be one address or a sentence with several. Borrowed when nothing was found.
#[must_use]
pub fn redact(text: &str) -> Cow<'_, str> {
    if !text.contains("://") {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    let mut changed = false;
    while let Some(at) = rest.find("://") {
        let (before, tail) = rest.split_at(at + 3);
        out.push_str(before);
        let end = tail.find(ends_address).unwrap_or(tail.len());
        let (address, after) = tail.split_at(end);
        changed |= redact_address(address, &mut out);
        rest = after;
    }
    out.push_str(rest);
    if changed {
        Cow::Owned(out)
    } else {
        Cow::Borrowed(text)
    }
}

/// Writes what follows `scheme://` without its secrets; true when something was taken out.
fn redact_address(address: &str, out: &mut String) -> bool {
    let authority_end = address.find(['/', '?', '#']).unwrap_or(address.len());
    let (authority, rest) = address.split_at(authority_end);
    let mut changed = false;
    match authority.rfind('@') {
        Some(at) => {
            changed = true;
            out.push_str(MASK);
            out.push_str(&authority[at..]);
        }
        None => out.push_str(authority),
    }
    let Some(query_at) = rest.find(['?', '#']) else {
        out.push_str(rest);
        return changed;
    };
    let (path, query) = rest.split_at(query_at);
    out.push_str(path);
    // `#` separates too: implicit-flow tokens travel in the fragment.
    for piece in query.split_inclusive(['?', '&', ';', '#']) {
        let separator = piece
            .chars()
            .last()
            .filter(|c| matches!(c, '?' | '&' | ';' | '#'));
        let pair = piece.strip_suffix(['?', '&', ';', '#']).unwrap_or(piece);
        match pair.split_once('=') {
            Some((name, value)) if !value.is_empty() && is_signed(name) => {
                changed = true;
                out.push_str(name);
                out.push('=');
                out.push_str(MASK);
            }
            _ => out.push_str(pair),
        }
        out.extend(separator);
    }
    changed
}

fn is_signed(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    SIGNED.contains(&name.as_str()) || name.ends_with("-signature") || name.ends_with("-token")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_of_a_holder_never_shows_the_value() {
        #[derive(Debug, Deserialize)]
        struct Holder {
            token: Secret<String>,
        }
        let holder: Holder = toml::from_str("token = \"hunter2\"").expect("valid TOML");
        assert_eq!(format!("{holder:?}"), "Holder { token: [secret] }");
        assert_eq!(holder.token.expose(), "hunter2");
        assert!(holder.token.matches(b"hunter2"));
        assert!(!holder.token.matches(b"hunter3"));
        assert!(!holder.token.matches(b"hunter"));
    }

    #[test]
    fn user_information_is_masked() {
        assert_eq!(
            redact("https://bob:pw@host/x.git"),
            "https://***@host/x.git"
        );
        assert_eq!(redact("ssh://git@host:22/x"), "ssh://***@host:22/x");
        // A stray @ in the password must not leave half of it behind.
        assert_eq!(redact("https://bob:p@w@host/x"), "https://***@host/x");
        assert_eq!(redact("https://host/a@b"), "https://host/a@b");
    }

    #[test]
    fn signed_links_keep_all_but_the_signature() {
        assert_eq!(
            redact("https://a.blob/c?sv=2024&sig=abc%2F&se=2026"),
            "https://a.blob/c?sv=2024&sig=***&se=2026"
        );
        assert_eq!(
            redact("https://a/c?X-Amz-Signature=1f"),
            "https://a/c?X-Amz-Signature=***"
        );
        assert_eq!(
            redact("https://a/cb#access_token=1f&s=2"),
            "https://a/cb#access_token=***&s=2"
        );
    }

    #[test]
    fn every_address_in_a_sentence_is_masked_and_the_words_stay() {
        let text = "fetch 'https://u:p@h/x' failed, tried https://h/y?token=1 too";
        assert_eq!(
            redact(text),
            "fetch 'https://***@h/x' failed, tried https://h/y?token=*** too"
        );
    }

    #[test]
    fn text_without_secrets_is_borrowed() {
        assert!(matches!(redact("plain words"), Cow::Borrowed(_)));
        assert!(matches!(
            redact("see https://host/page?q=1"),
            Cow::Borrowed(_)
        ));
    }
}
