//! Random bytes that differ in every clone.
//!
//! ChaCha20 with fast key erasure: each block's first half becomes the next key. One block costs
//! about a thousand instructions, and no SIMD is needed; the crates that do the same compute four
//! or more blocks at a time, or need SSE2, which guests are built without.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::{Mutex, MutexGuard, PoisonError};

static GENERATOR: Mutex<Generator> = Mutex::new(Generator::new());

/// Fills `bytes` from a cryptographic generator that the host seeds in every clone.
///
/// Bytes drawn before the snapshot are the same in all clones; see [`crate::after_restore`].
pub fn random(bytes: &mut [u8]) {
    let mut generator = generator();
    if !generator.seeded {
        generator.mix(&initial_entropy());
    }
    generator.fill(bytes);
}

/// Mixes the host's fresh entropy into the generator.
pub(crate) fn reseed(entropy: &[u8; 32]) {
    generator().mix(entropy);
}

fn generator() -> MutexGuard<'static, Generator> {
    GENERATOR.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Before the snapshot the host has sent nothing yet; std's hash keys come from the kernel's pool.
fn initial_entropy() -> [u8; 32] {
    let mut entropy = [0; 32];
    for word in entropy.chunks_exact_mut(8) {
        let hash = RandomState::new().build_hasher().finish();
        word.copy_from_slice(&hash.to_le_bytes());
    }
    entropy
}

struct Generator {
    key: [u32; 8],
    seeded: bool,
}

impl Generator {
    const fn new() -> Self {
        Self {
            key: [0; 8],
            seeded: false,
        }
    }

    fn mix(&mut self, entropy: &[u8; 32]) {
        for (word, fresh) in self.key.iter_mut().zip(entropy.chunks_exact(4)) {
            *word ^= u32::from_le_bytes([fresh[0], fresh[1], fresh[2], fresh[3]]);
        }
        self.seeded = true;
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        for part in bytes.chunks_mut(32) {
            let block = chacha20_block(&self.key, 0, [0; 3]);
            self.key.copy_from_slice(&block[..8]);
            for (out, word) in part.chunks_mut(4).zip(&block[8..]) {
                out.copy_from_slice(&word.to_le_bytes()[..out.len()]);
            }
        }
    }
}

/// The block function of RFC 8439, section 2.3.
fn chacha20_block(key: &[u32; 8], counter: u32, nonce: [u32; 3]) -> [u32; 16] {
    let mut start = [0; 16];
    start[..4].copy_from_slice(&[0x6170_7865, 0x3320_646e, 0x7962_2d32, 0x6b20_6574]);
    start[4..12].copy_from_slice(key);
    start[12] = counter;
    start[13..].copy_from_slice(&nonce);

    let mut state = start;
    for _ in 0..10 {
        quarter_round(&mut state, 0, 4, 8, 12);
        quarter_round(&mut state, 1, 5, 9, 13);
        quarter_round(&mut state, 2, 6, 10, 14);
        quarter_round(&mut state, 3, 7, 11, 15);
        quarter_round(&mut state, 0, 5, 10, 15);
        quarter_round(&mut state, 1, 6, 11, 12);
        quarter_round(&mut state, 2, 7, 8, 13);
        quarter_round(&mut state, 3, 4, 9, 14);
    }
    for (word, first) in state.iter_mut().zip(start) {
        *word = word.wrapping_add(first);
    }
    state
}

#[inline(always)]
fn quarter_round(state: &mut [u32; 16], a: usize, b: usize, c: usize, d: usize) {
    state[a] = state[a].wrapping_add(state[b]);
    state[d] = (state[d] ^ state[a]).rotate_left(16);
    state[c] = state[c].wrapping_add(state[d]);
    state[b] = (state[b] ^ state[c]).rotate_left(12);
    state[a] = state[a].wrapping_add(state[b]);
    state[d] = (state[d] ^ state[a]).rotate_left(8);
    state[c] = state[c].wrapping_add(state[d]);
    state[b] = (state[b] ^ state[c]).rotate_left(7);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_block_function_is_that_of_the_rfc() {
        let key = std::array::from_fn(|word| {
            let byte = 4 * word as u8;
            u32::from_le_bytes([byte, byte + 1, byte + 2, byte + 3])
        });
        let block = chacha20_block(&key, 1, [0x0900_0000, 0x4a00_0000, 0]);
        let expected = [
            0xe4e7_f110,
            0x1559_3bd1,
            0x1fdd_0f50,
            0xc471_20a3,
            0xc7f4_d1c7,
            0x0368_c033,
            0x9aaa_2204,
            0x4e6c_d4c3,
            0x4664_82d2,
            0x09aa_9f07,
            0x05d7_c214,
            0xa202_8bd9,
            0xd19c_12b5,
            0xb94e_16de,
            0xe883_d0cb,
            0x4e3c_50a2,
        ];
        assert_eq!(block, expected);
    }

    #[test]
    fn equal_clones_differ_by_their_entropy_alone() {
        let draw = |entropy: u8| {
            let mut generator = Generator::new();
            generator.mix(&[7; 32]);
            generator.mix(&[entropy; 32]);
            let mut bytes = [0; 40];
            generator.fill(&mut bytes);
            bytes
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
    }

    #[test]
    fn random_fills_everything_and_never_repeats() {
        let (mut first, mut second) = ([0; 100], [0; 100]);
        random(&mut first);
        random(&mut second);
        assert_ne!(first, second);
        assert!(
            first
                .chunks(10)
                .all(|part| part.iter().any(|&byte| byte != 0))
        );
    }
}
