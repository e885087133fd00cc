//! What stands in a certificate, as far as the farm cares, and in plain words.

use std::fmt::Write as _;
use std::net::IpAddr;

use oast_model::time::Timestamp;
use rustls::pki_types::CertificateDer;
use sha2::{Digest as _, Sha256};

use super::der::{self, Malformed, Reader};
use super::name::Name;

/// Before the hex digits of a pin.
pub const PIN_PREFIX: &str = "sha256:";

/// 2.5.4.3
const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];
/// 2.5.29.17
const ALTERNATIVE_NAMES: &[u8] = &[0x55, 0x1d, 0x11];
/// 2.5.29.19
const BASIC_CONSTRAINTS: &[u8] = &[0x55, 0x1d, 0x13];
/// Hex digits of a serial number that are shown.
const SERIAL_SHOWN: usize = 16;

/// A certificate that was read. Says nothing about whether it is to be believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    der: CertificateDer<'static>,
    serial: Vec<u8>,
    issuer: Vec<u8>,
    issuer_name: String,
    subject: Vec<u8>,
    subject_name: String,
    not_before: Timestamp,
    not_after: Timestamp,
    key: Vec<u8>,
    uris: Vec<String>,
    hosts: Vec<String>,
    authority: bool,
}

impl Certificate {
    /// Reads one.
    ///
    /// # Errors
    /// [`Malformed`] when it is no X.509 certificate.
    pub fn read(der: &CertificateDer<'_>) -> Result<Certificate, Malformed> {
        let mut outer = Reader::new(der.as_ref());
        let mut all = outer.inside(der::SEQUENCE)?;
        outer.end()?;
        let mut body = all.inside(der::SEQUENCE)?;
        if body.tag() == Some(der::explicit(0)) {
            body.value(der::explicit(0))?;
        }
        let serial = body.value(der::INTEGER)?.to_vec();
        body.value(der::SEQUENCE)?;
        let issuer = body.whole(der::SEQUENCE)?;
        let mut validity = body.inside(der::SEQUENCE)?;
        let not_before = time(&mut validity)?;
        let not_after = time(&mut validity)?;
        let subject = body.whole(der::SEQUENCE)?;
        let key = body.whole(der::SEQUENCE)?.to_vec();
        let mut read = Certificate {
            der: der.clone().into_owned(),
            serial,
            issuer: issuer.to_vec(),
            issuer_name: common_name(issuer)?,
            subject: subject.to_vec(),
            subject_name: common_name(subject)?,
            not_before,
            not_after,
            key,
            uris: Vec::new(),
            hosts: Vec::new(),
            authority: false,
        };
        while !body.is_empty() {
            let (tag, contents) = body.any()?;
            if tag == der::explicit(3) {
                read.extensions(contents)?;
            }
        }
        Ok(read)
    }

    fn extensions(&mut self, contents: &[u8]) -> Result<(), Malformed> {
        let mut list = Reader::new(contents).inside(der::SEQUENCE)?;
        while !list.is_empty() {
            let mut extension = list.inside(der::SEQUENCE)?;
            let id = extension.value(der::OID)?;
            if extension.tag() == Some(der::BOOLEAN) {
                extension.value(der::BOOLEAN)?;
            }
            let mut value = extension.inside(der::OCTETS)?;
            match id {
                ALTERNATIVE_NAMES => {
                    let mut names = value.inside(der::SEQUENCE)?;
                    while !names.is_empty() {
                        self.alternative(names.any()?);
                    }
                }
                BASIC_CONSTRAINTS => {
                    let mut constraints = value.inside(der::SEQUENCE)?;
                    self.authority = constraints.tag() == Some(der::BOOLEAN)
                        && constraints.value(der::BOOLEAN)? == [0xff];
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// DNS names, addresses and URIs; other kinds are nothing to us.
    fn alternative(&mut self, (tag, value): (u8, &[u8])) {
        let text = || String::from_utf8_lossy(value).into_owned();
        if tag == der::implicit(2) {
            self.hosts.push(text());
        } else if tag == der::implicit(6) {
            self.uris.push(text());
        } else if tag == der::implicit(7) {
            let address = match value.len() {
                4 => <[u8; 4]>::try_from(value).ok().map(IpAddr::from),
                16 => <[u8; 16]>::try_from(value).ok().map(IpAddr::from),
                _ => None,
            };
            self.hosts
                .extend(address.map(|address| address.to_string()));
        }
    }

    /// Its bytes.
    #[must_use]
    pub fn der(&self) -> &CertificateDer<'static> {
        &self.der
    }

    /// Who it speaks for; none for a certificate that no farm of ours made, or that names
    /// several, which could be taken for either.
    #[must_use]
    pub fn name(&self) -> Option<Name> {
        match self.uris.as_slice() {
            [only] => only.parse().ok(),
            _ => None,
        }
    }

    /// Hosts and addresses that it may answer for.
    #[must_use]
    pub fn hosts(&self) -> &[String] {
        &self.hosts
    }

    /// Whether it may sign others.
    #[must_use]
    pub fn is_authority(&self) -> bool {
        self.authority
    }

    /// Whether it signs itself.
    #[must_use]
    pub fn is_root(&self) -> bool {
        self.authority && self.issuer == self.subject
    }

    /// From when.
    #[must_use]
    pub fn not_before(&self) -> Timestamp {
        self.not_before
    }

    /// Until when.
    #[must_use]
    pub fn not_after(&self) -> Timestamp {
        self.not_after
    }

    /// The subject's common name.
    #[must_use]
    pub fn subject_name(&self) -> &str {
        &self.subject_name
    }

    /// The issuer's common name.
    #[must_use]
    pub fn issuer_name(&self) -> &str {
        &self.issuer_name
    }

    /// Whether `signer`'s name stands as the issuer. The signature is not looked at.
    #[must_use]
    pub fn names_as_issuer(&self, signer: &Certificate) -> bool {
        self.issuer == signer.subject
    }

    /// The public key, as a SubjectPublicKeyInfo.
    #[must_use]
    pub fn public_key(&self) -> &[u8] {
        &self.key
    }

    /// What pins the key of an authority: `sha256:` and the hash of its public key.
    #[must_use]
    pub fn pin(&self) -> String {
        let mut pin = PIN_PREFIX.to_owned();
        push_hex(&mut pin, &Sha256::digest(&self.key));
        pin
    }

    /// When two thirds of its life are over: the time to have the next one made.
    #[must_use]
    pub fn renew_at(&self) -> Timestamp {
        self.not_before + self.not_after.since(self.not_before) * 2 / 3
    }

    /// In plain words, a line for each fact.
    #[must_use]
    pub fn words(&self, now: Timestamp) -> Vec<(&'static str, String)> {
        let who = match self.name() {
            Some(name) => name.to_string(),
            None => "nobody in a farm (it carries no oast:// name)".to_owned(),
        };
        let kind = match (self.is_root(), self.authority) {
            (true, _) => "the root of a farm's trust, signed by itself",
            (false, true) => "may sign certificates of others",
            (false, false) => "may not sign others",
        };
        let state = if now < self.not_before {
            "not valid yet"
        } else if now > self.not_after {
            "expired"
        } else if now >= self.renew_at() {
            "valid, due for renewal"
        } else {
            "valid"
        };
        let hosts = match self.hosts.is_empty() {
            true => "none".to_owned(),
            false => self.hosts.join(", "),
        };
        let mut serial = String::new();
        push_hex(
            &mut serial,
            &self.serial[..self.serial.len().min(SERIAL_SHOWN / 2)],
        );
        vec![
            ("Speaks for", who),
            ("Kind", kind.to_owned()),
            ("Answers for hosts", hosts),
            ("Subject", self.subject_name.clone()),
            ("Signed by", self.issuer_name.clone()),
            ("State", state.to_owned()),
            ("Valid from", self.not_before.to_string()),
            ("Valid until", self.not_after.to_string()),
            ("Renewed from", self.renew_at().to_string()),
            ("Serial", serial),
            ("Key", self.pin()),
        ]
    }
}

fn push_hex(out: &mut String, bytes: &[u8]) {
    for byte in bytes {
        // Writing to a String does not fail.
        let _ = write!(out, "{byte:02x}");
    }
}

/// The first common name in a distinguished name; empty when there is none.
fn common_name(name: &[u8]) -> Result<String, Malformed> {
    let mut sets = Reader::new(name).inside(der::SEQUENCE)?;
    while !sets.is_empty() {
        let mut set = sets.inside(der::SET)?;
        while !set.is_empty() {
            let mut pair = set.inside(der::SEQUENCE)?;
            let id = pair.value(der::OID)?;
            let (tag, text) = pair.any()?;
            if id == COMMON_NAME && matches!(tag, der::UTF8 | der::PRINTABLE) {
                return Ok(String::from_utf8_lossy(text).into_owned());
            }
        }
    }
    Ok(String::new())
}

/// `YYMMDDHHMMSSZ` or `YYYYMMDDHHMMSSZ`; other forms are not allowed in certificates.
fn time(reader: &mut Reader<'_>) -> Result<Timestamp, Malformed> {
    let (tag, text) = reader.any()?;
    let digits = text.strip_suffix(b"Z").ok_or(Malformed)?;
    if !digits.iter().all(u8::is_ascii_digit) {
        return Err(Malformed);
    }
    let number = |digits: &[u8]| {
        digits
            .iter()
            .fold(0, |sum, d| sum * 10 + u64::from(d - b'0'))
    };
    let (year, rest) = match (tag, digits.len()) {
        (der::UTC_TIME, 12) => {
            let (year, rest) = digits.split_at(2);
            // 50 and later are of the last century (RFC 5280, 4.1.2.5.1).
            let year = number(year);
            (if year < 50 { 2000 + year } else { 1900 + year }, rest)
        }
        (der::GENERAL_TIME, 14) => {
            let (year, rest) = digits.split_at(4);
            (number(year), rest)
        }
        _ => return Err(Malformed),
    };
    let mut pairs = rest.chunks(2).map(number);
    let mut next = || pairs.next().ok_or(Malformed);
    let (month, day, hour, minute, second) = (next()?, next()?, next()?, next()?, next()?);
    let plausible = (1..=12).contains(&month)
        && (1..=31).contains(&day)
        && hour < 24
        && minute < 60
        && second < 61;
    if !plausible {
        return Err(Malformed);
    }
    let Some(days) = days_since_epoch(year, month, day) else {
        // Before the epoch is as good as the epoch: both are long over.
        return Ok(Timestamp::EPOCH);
    };
    let seconds = days * 86_400 + hour * 3_600 + minute * 60 + second;
    Ok(Timestamp::from_millis(seconds.saturating_mul(1_000)))
}

/// Days from 1970-01-01 to a date of the proleptic Gregorian calendar, none for earlier ones.
fn days_since_epoch(year: u64, month: u64, day: u64) -> Option<u64> {
    // Years are counted from March, so that the leap day is the last of its year.
    let (year, month) = if month < 3 {
        (year.saturating_sub(1), month + 9)
    } else {
        (year, month - 3)
    };
    let days = year * 365 + year / 4 - year / 100 + year / 400 + (month * 153 + 2) / 5 + day - 1;
    /// 1970-01-01 in the same count.
    const EPOCH: u64 = 719_468;
    days.checked_sub(EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_time(tag: u8, text: &str) -> Result<u64, Malformed> {
        let mut bytes = vec![tag, u8::try_from(text.len()).expect("short")];
        bytes.extend(text.as_bytes());
        time(&mut Reader::new(&bytes)).map(|t| t.as_millis() / 1000)
    }

    #[test]
    fn both_forms_of_time_are_read() {
        assert_eq!(read_time(der::UTC_TIME, "700101000000Z"), Ok(0));
        assert_eq!(read_time(der::UTC_TIME, "700101000001Z"), Ok(1));
        assert_eq!(read_time(der::UTC_TIME, "000229120000Z"), Ok(951_825_600));
        assert_eq!(read_time(der::UTC_TIME, "261123063754Z"), Ok(1_795_415_874));
        assert_eq!(
            read_time(der::GENERAL_TIME, "20501231235959Z"),
            Ok(2_556_143_999)
        );
        assert_eq!(read_time(der::UTC_TIME, "691231235959Z"), Ok(0));
        for (tag, text) in [
            (der::UTC_TIME, "700101000000"),
            (der::UTC_TIME, "701301000000Z"),
            (der::UTC_TIME, "7001010000Z"),
            (der::GENERAL_TIME, "700101000000Z"),
            (der::UTC_TIME, "70010100000xZ"),
        ] {
            assert_eq!(read_time(tag, text), Err(Malformed), "{text}");
        }
    }
}
