//! Short names for functions that are published as long hashes.

use std::collections::HashSet;

use super::TracedFunction;

/// Longer names are shortened.
const MAX_CHARS: usize = 32;
const START_CHARS: usize = 12;

/// A name for what is published as `text`, the same in every file and on every day. `whole` is
/// what tells it from all others.
pub(super) fn short(text: &str, whole: &str) -> String {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_';
    let starts_well = text.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit());
    if starts_well && text.len() <= MAX_CHARS && text.chars().all(plain) {
        return text.to_owned();
    }
    let start: String = text
        .chars()
        .take(START_CHARS)
        .map(|c| c.to_ascii_lowercase())
        .filter(|c| plain(*c))
        .collect();
    let start = start.trim_matches(['-', '_']);
    let start = if start.is_empty() { "f" } else { start };
    format!("{start}-{}", digest(whole))
}

/// Functions of two apps may have one name, and short names may meet: all but the first get a
/// longer one.
pub(super) fn make_unique(functions: &mut [TracedFunction]) {
    let mut taken = HashSet::new();
    for function in functions {
        let mut name = function.name.clone();
        let mut turn = 0_u32;
        while !taken.insert(name.clone()) {
            let whole = format!("{},{},{turn}", function.app, function.name);
            let start: String = function.name.chars().take(START_CHARS).collect();
            name = format!("{start}-{}", digest(&whole));
            turn += 1;
        }
        function.name = name;
    }
}

/// FNV-1a, the upper 48 bits in hexadecimal digits. Names must not change with the standard
/// library's hasher, and nobody gains by making two of them meet.
fn digest(text: &str) -> String {
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("{:012x}", hash >> 16)
}
