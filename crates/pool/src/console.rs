//! The end of what a guest wrote.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use dormouse_vmm::{GuestOutput, Stream};

/// How much is kept.
const TAIL_BYTES: usize = 4096;

/// Keeps the last [`TAIL_BYTES`] of all streams, in the order in which they were written.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tail {
    bytes: Arc<Mutex<VecDeque<u8>>>,
}

impl GuestOutput for Tail {
    fn write(&mut self, _: Stream, bytes: &[u8]) {
        let mut tail = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        tail.extend(&bytes[bytes.len().saturating_sub(TAIL_BYTES)..]);
        let excess = tail.len().saturating_sub(TAIL_BYTES);
        tail.drain(..excess);
    }
}

impl Tail {
    /// What was kept, as text.
    pub(crate) fn text(&self) -> String {
        let mut tail = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(tail.make_contiguous()).into_owned()
    }

    /// The size of the allocation that failed, if the last that was written is about one. Rust's
    /// standard library and Hermit's kernel say it in the same words, just before they end the guest,
    /// and there is no other sign of it.
    pub(crate) fn failed_allocation_bytes(&self) -> Option<u64> {
        /// The kernel says some more at its end.
        const LAST_LINES: usize = 3;
        let text = self.text();
        let lines = text.lines().rev().filter(|line| !line.trim().is_empty());
        lines.take(LAST_LINES).find_map(|line| {
            let (_, size) = line.split_once("memory allocation of ")?;
            size.trim_end().strip_suffix(" bytes failed")?.parse().ok()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(text: &str) -> Option<u64> {
        let mut tail = Tail::default();
        tail.write(Stream::Kernel, text.as_bytes());
        tail.failed_allocation_bytes()
    }

    #[test]
    fn the_last_words_tell_of_memory_that_ran_out() {
        let std = "working\nmemory allocation of 67108864 bytes failed\n";
        assert_eq!(failed(std), Some(64 << 20));
        let kernel = "[0][PANIC] panicked at src/mm.rs:1:2:\nmemory allocation of 16 bytes failed\n\n\
                      [0][INFO] shutting down\n";
        assert_eq!(failed(kernel), Some(16));
        for other in [
            "",
            "fine\n",
            "memory allocation of many bytes failed\n",
            "memory allocation of 5 bytes failed, as it should\n",
            "memory allocation of 5 bytes failed\na\nb\nthread 'main' panicked\n",
        ] {
            assert_eq!(failed(other), None, "{other:?}");
        }
    }
}
