//! Keys that sign and keys that judge: ed25519, in the PEM forms that every tool reads.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::rand::{SecureRandom, SystemRandom};
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};

use crate::hash::sha256;

const PRIVATE: &str = "PRIVATE KEY";
const PUBLIC: &str = "PUBLIC KEY";
/// DER of a PKCS #8 key of version 1 up to its 32 secret bytes: the form that all versions of OpenSSL take.
const PKCS8: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];
/// DER of a public key up to its 32 bytes.
const SPKI: [u8; 12] = [
    0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00,
];
const KEY_BYTES: usize = 32;

/// Why a text is no key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// No PEM of that kind.
    #[error(
        "it has no `-----BEGIN {0}-----` block; make one with `openssl genpkey -algorithm ed25519`, and the public one with `openssl pkey -pubout`"
    )]
    NoPem(&'static str),
    /// A PEM of another kind of key.
    #[error("it is no ed25519 key, the only kind that is used here")]
    Other,
    /// The machine has no random bytes.
    #[error("the machine gives no random bytes")]
    Random,
}

/// A key that signs. Never printed.
pub struct SigningKey {
    pair: Ed25519KeyPair,
}

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("SigningKey")
            .field(&self.public().id())
            .finish()
    }
}

impl SigningKey {
    /// A new key as PEM (PKCS #8), to be kept secret.
    ///
    /// # Errors
    /// [`KeyError::Random`].
    pub fn generate() -> Result<String, KeyError> {
        let mut der = [0; PKCS8.len() + KEY_BYTES];
        der[..PKCS8.len()].copy_from_slice(&PKCS8);
        let seed = &mut der[PKCS8.len()..];
        SystemRandom::new()
            .fill(seed)
            .map_err(|_| KeyError::Random)?;
        Ok(pem(PRIVATE, &der))
    }

    /// Reads a PKCS #8 PEM.
    ///
    /// # Errors
    /// [`KeyError::NoPem`], [`KeyError::Other`].
    pub fn read(text: &str) -> Result<SigningKey, KeyError> {
        let der = block(text, PRIVATE)?;
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(&der).map_err(|_| KeyError::Other)?;
        Ok(SigningKey { pair })
    }

    /// The key that judges what this one signs.
    pub fn public(&self) -> PublicKey {
        let mut bytes = [0; KEY_BYTES];
        bytes.copy_from_slice(self.pair.public_key().as_ref());
        PublicKey { bytes }
    }

    pub(crate) fn sign(&self, message: &[u8]) -> Vec<u8> {
        self.pair.sign(message).as_ref().to_vec()
    }
}

/// A key that judges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublicKey {
    bytes: [u8; KEY_BYTES],
}

impl PublicKey {
    /// Reads a `PUBLIC KEY` PEM.
    ///
    /// # Errors
    /// [`KeyError::NoPem`], [`KeyError::Other`].
    pub fn read(text: &str) -> Result<PublicKey, KeyError> {
        let der = block(text, PUBLIC)?;
        let bytes = der
            .strip_prefix(&SPKI)
            .and_then(|bytes| bytes.try_into().ok());
        bytes
            .map(|bytes| PublicKey { bytes })
            .ok_or(KeyError::Other)
    }

    /// As PEM.
    pub fn to_pem(&self) -> String {
        pem(PUBLIC, &self.der())
    }

    /// Its name: SHA-256 of its DER form, in hexadecimal.
    pub fn id(&self) -> String {
        sha256(&self.der())
    }

    fn der(&self) -> Vec<u8> {
        [&SPKI[..], &self.bytes].concat()
    }

    pub(crate) fn accepts(&self, message: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ED25519, &self.bytes)
            .verify(message, signature)
            .is_ok()
    }
}

fn pem(label: &str, der: &[u8]) -> String {
    // Both kinds of key fit into one line of 64.
    format!(
        "-----BEGIN {label}-----\n{}\n-----END {label}-----\n",
        STANDARD.encode(der)
    )
}

fn block(text: &str, label: &'static str) -> Result<Vec<u8>, KeyError> {
    let missing = KeyError::NoPem(label);
    let (_, rest) = text
        .split_once(&format!("-----BEGIN {label}-----"))
        .ok_or_else(|| missing.clone())?;
    let (body, _) = rest
        .split_once(&format!("-----END {label}-----"))
        .ok_or(missing)?;
    let body: String = body.split_whitespace().collect();
    STANDARD.decode(body).map_err(|_| KeyError::Other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_survives_its_text_and_judges_what_it_signed() {
        let key = SigningKey::read(&SigningKey::generate().unwrap()).unwrap();
        let public = PublicKey::read(&key.public().to_pem()).unwrap();
        let signature = key.sign(b"message");
        assert!(public.accepts(b"message", &signature));
        assert!(!public.accepts(b"massage", &signature));
        assert_eq!(signature, key.sign(b"message"), "signing is a function");
    }

    #[test]
    fn other_texts_are_no_keys_and_a_secret_one_is_never_printed() {
        let text = SigningKey::generate().unwrap();
        assert_eq!(PublicKey::read(&text), Err(KeyError::NoPem("PUBLIC KEY")));
        assert_eq!(
            SigningKey::read(&pem(PRIVATE, b"rsa")).unwrap_err(),
            KeyError::Other
        );
        let secret: String = text.lines().nth(1).unwrap()[22..].to_owned();
        assert!(!format!("{:?}", SigningKey::read(&text).unwrap()).contains(&secret));
    }
}
