//! Asking for a certificate (PKCS#10): the key stays with who asks, the request proves that they
//! have it.
//!
//! Nothing but the key is taken from a request. Who somebody is comes from a join token or from
//! the certificate that they show, never from what they write about themselves.

use rcgen::{CertificateParams, DistinguishedName, DnType};
use rustls::crypto::ring;

use super::der::{self, Malformed, Reader};
use super::key::{Key, KeyError, PublicKey};

/// Largest request that is looked at; ours are below 500 bytes.
pub const REQUEST_MAX: usize = 8 << 10;
/// ecdsa-with-SHA256
const ECDSA_SHA256: &[u8] = &[0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02];

/// A request cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// It is too long.
    #[error("a certificate request has at most {REQUEST_MAX} bytes")]
    TooLong,
    /// It cannot be read.
    #[error(
        "the certificate request cannot be read: it must be PKCS#10 with an ECDSA P-256 or Ed25519 key"
    )]
    Malformed,
    /// Its signature is not by its key.
    #[error("the certificate request is not signed by the key that it names")]
    Signature,
}

impl From<Malformed> for RequestError {
    fn from(_: Malformed) -> RequestError {
        RequestError::Malformed
    }
}

/// Makes a request for `key`; `subject` is for people who look at it.
///
/// # Errors
/// [`KeyError`].
pub fn make(key: &Key, subject: &str) -> Result<Vec<u8>, KeyError> {
    let mut params = CertificateParams::default();
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, subject);
    params.distinguished_name = name;
    let request = params.serialize_request(&key.signer()?);
    Ok(request.map_err(KeyError::Use)?.der().to_vec())
}

/// The key of a request whose signature is good.
///
/// # Errors
/// [`RequestError`].
pub fn check(request: &[u8]) -> Result<PublicKey, RequestError> {
    if request.len() > REQUEST_MAX {
        return Err(RequestError::TooLong);
    }
    let mut outer = Reader::new(request);
    let mut parts = outer.inside(der::SEQUENCE)?;
    outer.end()?;
    let signed = parts.whole(der::SEQUENCE)?;
    let algorithm = parts.value(der::SEQUENCE)?;
    let signature = parts.bits()?;
    parts.end()?;
    let mut body = Reader::new(signed).inside(der::SEQUENCE)?;
    body.value(der::INTEGER)?;
    body.value(der::SEQUENCE)?;
    let key = PublicKey::read(body.whole(der::SEQUENCE)?)?;
    let known = ring::default_provider().signature_verification_algorithms;
    let verifier = known.all.iter().find(|known| {
        known.public_key_alg_id().as_ref() == key.algorithm_id()
            && known.signature_alg_id().as_ref() == algorithm
            // Ed25519 signs with the same identifier as its key's.
            && (algorithm == ECDSA_SHA256 || algorithm == key.algorithm_id())
    });
    let verifier = verifier.ok_or(RequestError::Malformed)?;
    let checked = verifier.verify_signature(key.bits(), signed, signature);
    checked.map(|()| key).map_err(|_| RequestError::Signature)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_gives_its_key_only_while_no_bit_of_it_is_changed() {
        let key = Key::generate().expect("a key");
        let request = make(&key, "w1").expect("a request");
        let found = check(&request).expect("good");
        assert_eq!(found.info(), key.public().expect("the public half"));
        for place in 0..request.len() {
            let mut bad = request.clone();
            bad[place] ^= 1;
            assert!(check(&bad).is_err(), "byte {place}");
            assert!(check(&request[..place]).is_err(), "cut at {place}");
        }
        assert_eq!(check(&vec![0; REQUEST_MAX + 1]), Err(RequestError::TooLong));
    }
}
