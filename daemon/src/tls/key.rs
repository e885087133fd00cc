//! Private keys: made here, kept here, shown to nobody.

use std::fmt;

use rcgen::{KeyPair, PublicKeyData, SignatureAlgorithm, SigningKey};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use zeroize::Zeroizing;

use super::der::{self, Malformed, Reader};
use crate::secret::Secret;

/// A private key as PKCS#8. Wiped when dropped; never printed.
#[derive(Clone)]
pub struct Key(Secret<Vec<u8>>);

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key")
    }
}

/// A key cannot be made or used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The machine gave no randomness or the library refused.
    #[error("make a key")]
    Make(#[source] rcgen::Error),
    /// The bytes are no key that is understood.
    #[error(
        "use a private key: it must be ECDSA P-256, P-384 or Ed25519 as PKCS#8 (`BEGIN PRIVATE KEY`)"
    )]
    Use(#[source] rcgen::Error),
}

impl Key {
    /// A fresh ECDSA P-256 key: small, quick, and understood by every browser.
    ///
    /// # Errors
    /// [`KeyError::Make`].
    pub fn generate() -> Result<Key, KeyError> {
        let pair = KeyPair::generate().map_err(KeyError::Make)?;
        Ok(Key(Secret::new(pair.serialize_der())))
    }

    /// A key from a file.
    #[must_use]
    pub fn from_pkcs8(bytes: Vec<u8>) -> Key {
        Key(Secret::new(bytes))
    }

    /// The bytes, for the one place that writes them to a file.
    pub(super) fn pkcs8(&self) -> &Secret<Vec<u8>> {
        &self.0
    }

    /// As rustls takes it.
    pub(super) fn for_tls(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.0.expose().clone()))
    }

    /// As certificates are signed with it.
    ///
    /// # Errors
    /// [`KeyError::Use`].
    pub(super) fn signer(&self) -> Result<Signer, KeyError> {
        let der = PrivatePkcs8KeyDer::from(self.0.expose().as_slice());
        KeyPair::try_from(&der).map(Signer).map_err(KeyError::Use)
    }

    /// The public half.
    ///
    /// # Errors
    /// [`KeyError::Use`].
    pub fn public(&self) -> Result<Vec<u8>, KeyError> {
        Ok(self.signer()?.0.subject_public_key_info())
    }
}

/// A key in use. Lives for one signature, so that the library's copy does not stay about.
pub(super) struct Signer(pub(super) KeyPair);

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Signer")
    }
}

impl PublicKeyData for Signer {
    fn der_bytes(&self) -> &[u8] {
        self.0.der_bytes()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        PublicKeyData::algorithm(&self.0)
    }
}

impl SigningKey for Signer {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        self.0.sign(message)
    }
}

/// Somebody's public key, of a kind that the farm signs for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicKey {
    info: Vec<u8>,
    bits: Vec<u8>,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    EcdsaP256,
    Ed25519,
}

/// id-ecPublicKey with the curve prime256v1.
const ECDSA_P256: &[u8] = &[
    0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d,
    0x03, 0x01, 0x07,
];
/// id-Ed25519
const ED25519: &[u8] = &[0x06, 0x03, 0x2b, 0x65, 0x70];

impl PublicKey {
    /// Reads a SubjectPublicKeyInfo.
    ///
    /// # Errors
    /// [`Malformed`] when it is none, or of another kind than ECDSA P-256 and Ed25519.
    pub fn read(info: &[u8]) -> Result<PublicKey, Malformed> {
        let mut outer = Reader::new(info);
        let mut parts = outer.inside(der::SEQUENCE)?;
        outer.end()?;
        let kind = match parts.value(der::SEQUENCE)? {
            ECDSA_P256 => Kind::EcdsaP256,
            ED25519 => Kind::Ed25519,
            _ => return Err(Malformed),
        };
        let bits = parts.bits()?.to_vec();
        parts.end()?;
        Ok(PublicKey {
            info: info.to_vec(),
            bits,
            kind,
        })
    }

    /// As a SubjectPublicKeyInfo.
    #[must_use]
    pub fn info(&self) -> &[u8] {
        &self.info
    }

    /// The algorithm's identifier without its head.
    pub(super) fn algorithm_id(&self) -> &'static [u8] {
        match self.kind {
            Kind::EcdsaP256 => ECDSA_P256,
            Kind::Ed25519 => ED25519,
        }
    }

    /// The bare key.
    pub(super) fn bits(&self) -> &[u8] {
        &self.bits
    }
}

impl PublicKeyData for PublicKey {
    fn der_bytes(&self) -> &[u8] {
        &self.bits
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        match self.kind {
            Kind::EcdsaP256 => &rcgen::PKCS_ECDSA_P256_SHA256,
            Kind::Ed25519 => &rcgen::PKCS_ED25519,
        }
    }
}

/// Text that holds a key, wiped when dropped.
pub(super) type SecretText = Zeroizing<String>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_made_kept_and_never_printed() {
        let key = Key::generate().expect("a key");
        let public = key.public().expect("its public half");
        let again = Key::from_pkcs8(key.pkcs8().expose().clone());
        assert_eq!(again.public().expect("the same"), public);
        assert_eq!(
            format!("{key:?} {:?}", key.signer().expect("a signer")),
            "Key Signer"
        );
        let read = PublicKey::read(&public).expect("a public key");
        assert_eq!(read.info(), public);
        assert_ne!(
            Key::generate().expect("a key").public().expect("another"),
            public
        );
        assert!(Key::from_pkcs8(vec![1, 2, 3]).public().is_err());
    }
}
