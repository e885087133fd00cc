//! The one encoding of records, commands and reports: MessagePack maps with field
//! names, so that a field can be added and an unknown one is skipped.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Bytes that are no record of the wanted shape.
#[derive(Debug, thiserror::Error)]
#[error("decode a {wanted}")]
pub struct DecodeError {
    wanted: &'static str,
    #[source]
    err: rmp_serde::decode::Error,
}

/// Encodes a value.
///
/// # Panics
/// Never for the farm's own types: they hold nothing that MessagePack cannot.
pub fn encode<T: Serialize + ?Sized>(value: &T) -> Vec<u8> {
    rmp_serde::to_vec_named(value).expect("the farm's types hold nothing unencodable")
}

/// Decodes what [`encode`] made, also by an older or a newer binary.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, DecodeError> {
    rmp_serde::from_slice(bytes).map_err(|err| DecodeError {
        wanted: std::any::type_name::<T>(),
        err,
    })
}
