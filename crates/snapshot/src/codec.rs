//! The only place that knows how a state becomes bytes: bincode 2.0.1 through serde, its
//! `standard` configuration (little-endian, variable-length integers).
//!
//! bincode is unmaintained (RUSTSEC-2025-0141) and may have to be replaced one day. A successor
//! gets the next [`CODEC_ID`], which the file header carries outside of the encoded bytes.

use bincode::config::{Configuration, Limit, LittleEndian, Varint, standard};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Names the codec in the file header.
pub(crate) const CODEC_ID: u32 = 1;

/// The most bytes that an encoded state may have, and that decoding may claim for any container
/// that it announces. States are some tens of KiB.
pub(crate) const MAX_STATE_BYTES: usize = 4 << 20;

const CONFIG: Configuration<LittleEndian, Varint, Limit<MAX_STATE_BYTES>> =
    standard().with_limit::<MAX_STATE_BYTES>();

/// Encodes `state`, or says why it cannot be.
pub(crate) fn encode<S: Serialize>(state: &S) -> Result<Vec<u8>, String> {
    let bytes = bincode::serde::encode_to_vec(state, CONFIG).map_err(|error| error.to_string())?;
    if bytes.len() > MAX_STATE_BYTES {
        return Err(format!(
            "it takes {} bytes of at most {MAX_STATE_BYTES}",
            bytes.len()
        ));
    }
    Ok(bytes)
}

/// Decodes a state that takes up all of `bytes`, or says why there is none.
pub(crate) fn decode<S: DeserializeOwned>(bytes: &[u8]) -> Result<S, String> {
    let (state, used_bytes) =
        bincode::serde::decode_from_slice(bytes, CONFIG).map_err(|error| error.to_string())?;
    // bincode does not describe itself: what is left over shows that another type was written.
    if used_bytes != bytes.len() {
        return Err(format!(
            "only {used_bytes} of {} bytes belong to it",
            bytes.len()
        ));
    }
    Ok(state)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_lengths_are_refused_before_allocation() {
        // 253 announces a u64 length in bincode's variable-length integers.
        let mut bytes = vec![253];
        bytes.extend_from_slice(&u64::MAX.to_le_bytes());
        assert!(decode::<String>(&bytes).is_err());
        assert!(decode::<Vec<u64>>(&bytes).is_err());
        assert!(decode::<std::collections::HashMap<String, u64>>(&bytes).is_err());
        bytes[1..].copy_from_slice(&(1u64 << 40).to_le_bytes());
        assert!(decode::<Vec<[u8; 32]>>(&bytes).is_err());
    }

    #[test]
    fn left_over_and_missing_bytes_are_refused() {
        let bytes = encode(&(7u64, "seven")).unwrap();
        assert_eq!(
            decode::<(u64, String)>(&bytes).unwrap(),
            (7, "seven".into())
        );
        assert!(decode::<u64>(&bytes).unwrap_err().contains("only 1 of"));
        assert!(decode::<(u64, String, u64)>(&bytes).is_err());
    }

    #[test]
    fn the_encoding_is_the_documented_one() {
        assert_eq!(
            encode(&(250u32, 251u32, -1i32, "ab")).unwrap(),
            b"\xfa\xfb\xfb\x00\x01\x02ab"
        );
    }

    #[test]
    fn a_state_beyond_the_limit_is_refused() {
        assert!(encode(&"x".repeat(MAX_STATE_BYTES)).is_err());
    }
}
