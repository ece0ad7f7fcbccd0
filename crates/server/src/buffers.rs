//! Memory for bodies: what requests that arrive and answers that leave may hold together.
//! Counted is what is there, not what was announced, and for as long as it is there, whoever has it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{ApiError, ErrorCode};

/// What is counted in. Smaller bodies are not counted: the number of connections bounds them.
const UNIT_BYTES: usize = 16 << 10;

/// When a refused client may try again: bodies come and go within moments.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// All the memory that there is for bodies. A cheap handle.
#[derive(Debug, Clone)]
pub(crate) struct Buffers {
    units: Arc<Semaphore>,
    limit_bytes: usize,
}

/// A part of it, given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Held {
    buffers: Buffers,
    units: Option<OwnedSemaphorePermit>,
}

/// Bytes that are counted.
struct Counted {
    bytes: Bytes,
    _held: Held,
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Buffers {
    pub(crate) fn new(limit_bytes: usize) -> Self {
        let units = limit_bytes.div_ceil(UNIT_BYTES).min(Semaphore::MAX_PERMITS);
        Self {
            units: Arc::new(Semaphore::new(units)),
            limit_bytes,
        }
    }

    /// A part that holds nothing yet.
    pub(crate) fn empty(&self) -> Held {
        Held {
            buffers: self.clone(),
            units: None,
        }
    }

    /// The same bytes, counted.
    ///
    /// # Errors
    /// `over-budget` where there is no room for them.
    pub(crate) fn count(&self, bytes: Bytes) -> Result<Bytes, ApiError> {
        let mut held = self.empty();
        held.cover(bytes.len())?;
        Ok(held.around(bytes))
    }
}

impl Held {
    /// Makes sure that it holds at least `bytes`.
    ///
    /// # Errors
    /// `over-budget` where there is no room for them.
    pub(crate) fn cover(&mut self, bytes: usize) -> Result<(), ApiError> {
        let held = self
            .units
            .as_ref()
            .map_or(0, OwnedSemaphorePermit::num_permits);
        let missing = (bytes / UNIT_BYTES).saturating_sub(held);
        if missing == 0 {
            return Ok(());
        }
        let missing = u32::try_from(missing).unwrap_or(u32::MAX);
        match Arc::clone(&self.buffers.units).try_acquire_many_owned(missing) {
            Ok(more) => {
                match &mut self.units {
                    Some(units) => units.merge(more),
                    none => *none = Some(more),
                }
                Ok(())
            }
            Err(_) => Err(ApiError::new(
                ErrorCode::OverBudget,
                format!(
                    "Others' bodies hold the {} bytes that bodies of this kind may; try again, or raise \
                     --max-buffered.",
                    self.buffers.limit_bytes
                ),
            )
            .retry_after(RETRY_AFTER)),
        }
    }

    /// `bytes`, which hold this for as long as they live.
    pub(crate) fn around(self, bytes: Bytes) -> Bytes {
        match self.units {
            None => bytes,
            Some(_) => Bytes::from_owner(Counted { bytes, _held: self }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_are_counted_for_as_long_as_anybody_has_them() {
        let buffers = Buffers::new(4 * UNIT_BYTES);
        let three = buffers.count(vec![7; 3 * UNIT_BYTES].into()).unwrap();
        let refused = buffers.count(vec![0; 2 * UNIT_BYTES].into()).unwrap_err();
        assert_eq!(refused.code(), ErrorCode::OverBudget);
        let part = three.slice(1..2);
        drop(three);
        assert_eq!(part, [7].as_slice());
        assert!(buffers.count(vec![0; 2 * UNIT_BYTES].into()).is_err());
        drop(part);
        buffers.count(vec![0; 4 * UNIT_BYTES].into()).unwrap();
        buffers.count(Bytes::from_static(b"little")).unwrap();
    }

    #[test]
    fn what_grows_is_counted_as_it_grows() {
        let buffers = Buffers::new(4 * UNIT_BYTES);
        let mut held = buffers.empty();
        for units in 1..=4 {
            held.cover(units * UNIT_BYTES).unwrap();
        }
        assert!(held.cover(5 * UNIT_BYTES).is_err());
        drop(held);
        assert!(buffers.empty().cover(4 * UNIT_BYTES).is_ok());
    }
}
