//! Pages: their size, and tokens that are positions.
//!
//! A token holds the last item that was shown and a hash of the list's filter; whoever continues
//! asks for what comes after that item. Nothing is kept for it on any member.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use oast_model::codec;
use oast_model::digest::Digest;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tonic::Status;

use super::status;

/// Items in one answer unless asked for fewer or more.
pub(super) const PAGE: usize = 50;
/// Most items in one answer.
pub(super) const PAGE_MAX: usize = 500;
/// Longest token that is looked at.
const TOKEN_MAX: usize = 512;

/// Which list a token belongs to.
type Filter = [u8; 8];

/// The filter of a list, from everything that restricts or orders it.
fn filter(of: &impl Serialize) -> Filter {
    let digest = Digest::of(&codec::encode(of));
    let mut filter = [0; 8];
    filter.copy_from_slice(&digest.as_bytes()[..8]);
    filter
}

/// How many items are wanted.
pub(super) fn size(asked: u32, usual: usize, most: usize) -> usize {
    match usize::try_from(asked).unwrap_or(most) {
        0 => usual,
        asked => asked.min(most),
    }
}

/// The part of a list that was asked for.
pub(super) struct Page<T> {
    of: Filter,
    /// The last item of the page before; none for the first page.
    pub(super) last: Option<T>,
    /// Most items.
    pub(super) size: usize,
}

impl<T: Serialize + DeserializeOwned> Page<T> {
    /// Of the list that `of` tells from every other: its name and everything that restricts it.
    pub(super) fn read(of: &impl Serialize, token: &str, size: usize) -> Result<Self, Status> {
        let of = filter(of);
        let last = read(token, of)?;
        Ok(Page { of, last, size })
    }

    /// The token for the page after this one, which ends with `last`; empty without one.
    pub(super) fn next(&self, last: Option<T>) -> String {
        last.map_or_else(String::new, |last| token(&last, self.of))
    }
}

/// A token for what comes after `last`.
fn token(last: &impl Serialize, filter: Filter) -> String {
    URL_SAFE_NO_PAD.encode(codec::encode(&(filter, last)))
}

/// The position in a token; none for the beginning.
fn read<T: DeserializeOwned>(token: &str, filter: Filter) -> Result<Option<T>, Status> {
    if token.is_empty() {
        return Ok(None);
    }
    let wrong = || status::invalid("page_token", "it is none that this farm gave out");
    if token.len() > TOKEN_MAX {
        return Err(wrong());
    }
    let bytes = URL_SAFE_NO_PAD.decode(token).map_err(|_| wrong())?;
    let (of, last): (Filter, T) = codec::decode(&bytes).map_err(|_| wrong())?;
    if of != filter {
        let message = "it belongs to another list: filters stay the same from page to page";
        return Err(status::invalid("page_token", message));
    }
    Ok(Some(last))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_a_position_in_one_list_and_nothing_else() {
        let (web, api) = (filter(&("web", true)), filter(&("api", true)));
        let made = token(&42_u64, web);
        assert_eq!(read::<u64>(&made, web).unwrap(), Some(42));
        assert_eq!(read::<u64>("", web).unwrap(), None);
        for (text, of) in [
            (made.as_str(), api),
            ("r-1@web/true", web),
            ("AAAA", web),
            (&"A".repeat(1000), web),
        ] {
            let status = read::<u64>(text, of).expect_err(text);
            assert_eq!(status.code(), tonic::Code::InvalidArgument, "{text}");
        }
    }

    #[test]
    fn sizes_are_bounded() {
        let sizes = [0, 1, 500, 501, u32::MAX].map(|asked| size(asked, PAGE, PAGE_MAX));
        assert_eq!(sizes, [50, 1, 500, 500, 500]);
    }
}
