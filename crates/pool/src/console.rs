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
}
