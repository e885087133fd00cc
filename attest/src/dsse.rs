//! The signed envelope (DSSE 1.0): the payload's bytes with signatures over their type and themselves.
//!
//! What is signed is the bytes, never a parsed form of them, so no two readers can disagree about what a signature covers.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use crate::key::{PublicKey, SigningKey};

/// Type of an in-toto statement's payload.
pub const IN_TOTO: &str = "application/vnd.in-toto+json";

/// A payload with its signatures.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Envelope {
    payload_type: String,
    payload: String,
    signatures: Vec<Signature>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Signature {
    #[serde(default)]
    keyid: String,
    sig: String,
}

/// Why an envelope proves nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeError {
    /// Something else.
    #[error("it is no signed envelope (DSSE): {0}")]
    Form(String),
    /// Of another kind.
    #[error("the envelope holds `{0}`, not {IN_TOTO}")]
    Type(String),
    /// By nobody we know.
    #[error(
        "none of its signatures was made with the key {key}; it names {named}. Either it was changed, or another key is the right one"
    )]
    Signature {
        /// The key that was tried.
        key: String,
        /// Those that the envelope names, unproved.
        named: String,
    },
}

/// What exactly is signed.
fn pre_authentication(kind: &str, payload: &[u8]) -> Vec<u8> {
    let mut bytes = format!("DSSEv1 {} {kind} {} ", kind.len(), payload.len()).into_bytes();
    bytes.extend_from_slice(payload);
    bytes
}

/// Signs a statement.
pub fn sign(key: &SigningKey, payload: &[u8]) -> Envelope {
    Envelope {
        payload_type: IN_TOTO.to_owned(),
        payload: STANDARD.encode(payload),
        signatures: vec![Signature {
            keyid: key.public().id(),
            sig: STANDARD.encode(key.sign(&pre_authentication(IN_TOTO, payload))),
        }],
    }
}

impl Envelope {
    /// One line of JSON.
    pub fn to_json(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec(self).expect("an envelope has text keys only");
        bytes.push(b'\n');
        bytes
    }

    /// Reads an envelope. Nothing is proved by that.
    ///
    /// # Errors
    /// [`EnvelopeError::Form`].
    pub fn read(json: &[u8]) -> Result<Envelope, EnvelopeError> {
        serde_json::from_slice(json).map_err(|err| EnvelopeError::Form(err.to_string()))
    }

    /// The payload, when `key` signed it.
    ///
    /// # Errors
    /// [`EnvelopeError`].
    pub fn open(&self, key: &PublicKey) -> Result<Vec<u8>, EnvelopeError> {
        if self.payload_type != IN_TOTO {
            return Err(EnvelopeError::Type(self.payload_type.clone()));
        }
        let decode = |text: &str| {
            let bytes = STANDARD.decode(text);
            bytes.map_err(|err| EnvelopeError::Form(err.to_string()))
        };
        let payload = decode(&self.payload)?;
        let signed = pre_authentication(&self.payload_type, &payload);
        for signature in &self.signatures {
            // The key's name is a hint that anybody can write; only the signature counts.
            if key.accepts(&signed, &decode(&signature.sig)?) {
                return Ok(payload);
            }
        }
        let named = self.signatures.iter().map(|s| s.keyid.as_str());
        let named: Vec<&str> = named.filter(|id| !id.is_empty()).collect();
        Err(EnvelopeError::Signature {
            key: key.id(),
            named: if named.is_empty() {
                "none".to_owned()
            } else {
                named.join(", ")
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> SigningKey {
        SigningKey::read(&SigningKey::generate().unwrap()).unwrap()
    }

    #[test]
    fn what_is_signed_is_what_the_specification_shows() {
        assert_eq!(
            pre_authentication("http://example.com/HelloWorld", b"hello world"),
            b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
        );
    }

    #[test]
    fn an_envelope_opens_for_its_key_only_and_only_unchanged() {
        let (ours, theirs) = (key(), key());
        let envelope = sign(&ours, b"{\"a\":1}");
        let read = Envelope::read(&envelope.to_json()).unwrap();
        assert_eq!(read.open(&ours.public()).unwrap(), b"{\"a\":1}");
        let refused = read.open(&theirs.public()).unwrap_err();
        assert!(matches!(refused, EnvelopeError::Signature { .. }));

        let mut changed = read.clone();
        changed.payload = STANDARD.encode(b"{\"a\":2}");
        assert!(changed.open(&ours.public()).is_err());
        let mut retyped = read.clone();
        retyped.payload_type = "text/plain".to_owned();
        assert!(matches!(
            retyped.open(&ours.public()),
            Err(EnvelopeError::Type(_))
        ));
        let mut bare = read;
        bare.signatures.clear();
        assert!(bare.open(&ours.public()).is_err());
        assert!(Envelope::read(b"{}").is_err());
    }
}
