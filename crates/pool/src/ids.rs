//! What tells one run from every other: numbers that are given out once.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::mailbox::Envelope;

/// The numbers of one run. They come from the process that serves: the processes that run guests
/// come and go, and would repeat each other's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ids {
    request_id: u64,
    generation: u64,
}

impl Ids {
    /// Numbers that nobody had.
    pub(crate) fn next() -> Self {
        Self::block(1)
    }

    /// The first of `runs` numbers that nobody had; [`Ids::nth`] has the others.
    pub(crate) fn block(runs: u32) -> Self {
        static REQUEST_ID: AtomicU64 = AtomicU64::new(1);
        static GENERATION: AtomicU64 = AtomicU64::new(0);

        // From the time of the first restore on, so that servers do not repeat each other's numbers.
        let now = dormouse_vmm::real_time_unix_ns();
        let _ = GENERATION.compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed);
        Self {
            request_id: REQUEST_ID.fetch_add(runs.into(), Ordering::Relaxed),
            generation: GENERATION.fetch_add(runs.into(), Ordering::Relaxed),
        }
    }

    /// The numbers of a run in a block, counted from 0.
    pub(crate) fn nth(self, run: u32) -> Self {
        Self {
            request_id: self.request_id + u64::from(run),
            generation: self.generation + u64::from(run),
        }
    }

    /// What makes this run's clone differ from all others, now.
    ///
    /// # Errors
    /// [`Error::Internal`] where the host has no random bytes.
    pub(crate) fn envelope(self, limit: Duration) -> Result<Envelope, Error> {
        let real_time_unix_ns = dormouse_vmm::real_time_unix_ns();
        let mut entropy = [0; 32];
        getrandom::fill(&mut entropy).map_err(|e| Error::Internal {
            operation: "drawing entropy for a clone".into(),
            reason: e.to_string(),
        })?;
        let limit_ns = u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX);
        Ok(Envelope {
            request_id: self.request_id,
            generation: self.generation,
            real_time_unix_ns,
            deadline_unix_ns: real_time_unix_ns.saturating_add(limit_ns),
            entropy,
        })
    }
}
