//! The one place that asks the kernel for randomness.
//!
//! Replicated ids come from the log's sequence, never from here. This is for secrets, for telling
//! one incarnation of a process from the next, and for request ids that clients make up.

use crate::secret::Secret;

/// Digits, upper and lower case: safe in headers, shells, addresses and file names.
const BASE62: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// What every access token begins with, so that secret scanners can find a leaked one.
pub const TOKEN_PREFIX: &str = "oast_";

/// Characters after the prefix: 32 of base62 are 190 bits.
const TOKEN_CHARS: usize = 32;

/// Characters of a request id: 16 of base62 are 95 bits, enough to never meet by chance.
const REQUEST_CHARS: usize = 16;

/// Fills an array from the kernel.
#[must_use]
pub fn bytes<const N: usize>() -> [u8; N] {
    let mut out = [0; N];
    getrandom::fill(&mut out).expect("Linux always has getrandom(2) once it has booted");
    out
}

/// A random number, for jitter seeds and incarnations.
#[must_use]
pub fn number() -> u64 {
    u64::from_le_bytes(bytes())
}

/// A fresh access token: `oast_` and 32 random characters.
#[must_use]
pub fn token() -> Secret<String> {
    let mut text = String::with_capacity(TOKEN_PREFIX.len() + TOKEN_CHARS);
    text.push_str(TOKEN_PREFIX);
    push_base62(&mut text, TOKEN_CHARS);
    Secret::new(text)
}

/// A fresh id for a request, for callers that did not bring one.
#[must_use]
pub fn request_id() -> String {
    let mut text = String::from("req-");
    push_base62(&mut text, REQUEST_CHARS);
    text
}

fn push_base62(out: &mut String, count: usize) {
    // 248 is the largest multiple of 62 in a byte: higher bytes are drawn again, else the first
    // characters of the alphabet would come up more often.
    const FAIR: u8 = 248;
    let mut left = count;
    while left > 0 {
        for byte in bytes::<32>() {
            if byte < FAIR && left > 0 {
                out.push(char::from(BASE62[usize::from(byte % 62)]));
                left -= 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn tokens_have_the_published_shape_and_differ() {
        let token = token();
        let body = token
            .expose()
            .strip_prefix(TOKEN_PREFIX)
            .expect("the prefix");
        assert_eq!(body.len(), TOKEN_CHARS);
        assert!(body.bytes().all(|b| b.is_ascii_alphanumeric()));
        assert_ne!(token.expose(), super::token().expose());
        assert_eq!(request_id().len(), 20);
    }

    #[test]
    fn every_character_of_the_alphabet_comes_up() {
        let mut text = String::new();
        // Missing one of 62 in 8192 draws has a chance of about e^-126.
        push_base62(&mut text, 8192);
        assert_eq!(text.bytes().collect::<BTreeSet<_>>().len(), 62);
    }
}
