//! As much of DER as certificates and signing requests need: a cursor over tagged values.
//!
//! What the cursor reads has been verified by webpki before anything hangs on it, or is our own
//! file; it is strict all the same, because it also reads requests of strangers.

/// SEQUENCE.
pub(super) const SEQUENCE: u8 = 0x30;
/// SET.
pub(super) const SET: u8 = 0x31;
/// INTEGER.
pub(super) const INTEGER: u8 = 0x02;
/// BIT STRING.
pub(super) const BITS: u8 = 0x03;
/// OCTET STRING.
pub(super) const OCTETS: u8 = 0x04;
/// OBJECT IDENTIFIER.
pub(super) const OID: u8 = 0x06;
/// BOOLEAN.
pub(super) const BOOLEAN: u8 = 0x01;
/// UTF8String.
pub(super) const UTF8: u8 = 0x0c;
/// PrintableString.
pub(super) const PRINTABLE: u8 = 0x13;
/// UTCTime.
pub(super) const UTC_TIME: u8 = 0x17;
/// GeneralizedTime.
pub(super) const GENERAL_TIME: u8 = 0x18;

/// Constructed, context-specific.
pub(super) const fn explicit(number: u8) -> u8 {
    0xa0 | number
}

/// Primitive, context-specific.
pub(super) const fn implicit(number: u8) -> u8 {
    0x80 | number
}

/// The bytes are not what they should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it is damaged or of another kind")]
pub struct Malformed;

/// A cursor; clones go on from the same place.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader { rest: bytes }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// Everything was read.
    pub(super) fn end(&self) -> Result<(), Malformed> {
        if self.is_empty() {
            Ok(())
        } else {
            Err(Malformed)
        }
    }

    /// The tag that comes next.
    pub(super) fn tag(&self) -> Option<u8> {
        self.rest.first().copied()
    }

    /// The next value: its tag and its contents.
    pub(super) fn any(&mut self) -> Result<(u8, &'a [u8]), Malformed> {
        let (tag, contents, _) = self.split()?;
        Ok((tag, contents))
    }

    /// The contents of the next value, which must have this tag.
    pub(super) fn value(&mut self, tag: u8) -> Result<&'a [u8], Malformed> {
        match self.any()? {
            (found, contents) if found == tag => Ok(contents),
            _ => Err(Malformed),
        }
    }

    /// A cursor inside the next value, which must have this tag.
    pub(super) fn inside(&mut self, tag: u8) -> Result<Reader<'a>, Malformed> {
        self.value(tag).map(Reader::new)
    }

    /// The next value with its head, which must have this tag.
    pub(super) fn whole(&mut self, tag: u8) -> Result<&'a [u8], Malformed> {
        match self.split()? {
            (found, _, whole) if found == tag => Ok(whole),
            _ => Err(Malformed),
        }
    }

    /// The contents of a BIT STRING of whole bytes.
    pub(super) fn bits(&mut self) -> Result<&'a [u8], Malformed> {
        match self.value(BITS)?.split_first() {
            Some((0, bytes)) => Ok(bytes),
            _ => Err(Malformed),
        }
    }

    /// Moves behind the next value.
    fn split(&mut self) -> Result<(u8, &'a [u8], &'a [u8]), Malformed> {
        let (&tag, after_tag) = self.rest.split_first().ok_or(Malformed)?;
        // Tags above 30 need more bytes and do not occur here.
        if tag & 0x1f == 0x1f {
            return Err(Malformed);
        }
        let (&first, after_first) = after_tag.split_first().ok_or(Malformed)?;
        let (length, body) = match first {
            0..=0x7f => (usize::from(first), after_first),
            0x81..=0x83 => {
                let count = usize::from(first & 0x7f);
                let (bytes, body) = after_first.split_at_checked(count).ok_or(Malformed)?;
                let length = bytes.iter().fold(0, |sum, b| sum << 8 | usize::from(*b));
                // Only the shortest form is DER.
                let least = if count == 1 {
                    0x80
                } else {
                    1 << (8 * (count - 1))
                };
                if length < least {
                    return Err(Malformed);
                }
                (length, body)
            }
            _ => return Err(Malformed),
        };
        let (contents, rest) = body.split_at_checked(length).ok_or(Malformed)?;
        let whole = &self.rest[..self.rest.len() - rest.len()];
        self.rest = rest;
        Ok((tag, contents, whole))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_one_after_the_other() {
        let bytes = [0x30, 0x03, 0x02, 0x01, 0x05, 0x04, 0x81, 0x80];
        let mut bytes = bytes.to_vec();
        bytes.extend([7; 128]);
        let mut reader = Reader::new(&bytes);
        assert_eq!(reader.tag(), Some(SEQUENCE));
        let mut inner = reader.inside(SEQUENCE).expect("a sequence");
        assert_eq!(inner.value(INTEGER), Ok(&[5][..]));
        assert_eq!(inner.end(), Ok(()));
        assert_eq!(reader.value(OCTETS).map(<[u8]>::len), Ok(128));
        assert_eq!(reader.end(), Ok(()));
        assert_eq!(reader.any(), Err(Malformed));
    }

    #[test]
    fn what_is_cut_off_or_not_in_the_shortest_form_is_refused() {
        let mut whole = vec![0x30, 0x82, 0x01, 0x00];
        whole.extend([0; 256]);
        assert!(Reader::new(&whole).any().is_ok());
        for cut in 0..whole.len() {
            assert_eq!(Reader::new(&whole[..cut]).any(), Err(Malformed), "{cut}");
        }
        for bad in [
            &[0x30, 0x81, 0x01, 0x00][..],
            &[0x30, 0x82, 0x00, 0x01, 0x00],
            &[0x30, 0x80, 0x00, 0x00],
            &[0x30, 0x84, 0x00, 0x00, 0x00, 0x00],
            &[0x1f, 0x01, 0x00],
        ] {
            assert_eq!(Reader::new(bad).any(), Err(Malformed), "{bad:?}");
        }
        assert_eq!(
            Reader::new(&[0x03, 0x02, 0x01, 0xff]).bits(),
            Err(Malformed)
        );
    }
}
