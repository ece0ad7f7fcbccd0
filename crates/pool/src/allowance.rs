//! What something may hold of the pool's memory: as far as it was granted, and where to ask for more.

use std::sync::atomic::{AtomicU64, Ordering};

/// Asks for so many bytes, all in all, and returns how many there are then.
pub(crate) type Ask = Box<dyn Fn(u64) -> u64 + Send + Sync>;

/// A part of a pool's memory, seen by who holds the memory: the budget may be another process's.
pub(crate) struct Allowance {
    granted_bytes: AtomicU64,
    ask: Ask,
}

impl Allowance {
    pub(crate) fn new(ask: Ask) -> Self {
        Self {
            granted_bytes: AtomicU64::new(0),
            ask,
        }
    }

    /// Where nobody counts.
    pub(crate) fn unlimited() -> Self {
        Self::new(Box::new(|_| u64::MAX))
    }

    /// What was granted, as who grants it says.
    pub(crate) fn set(&self, granted_bytes: u64) {
        self.granted_bytes.store(granted_bytes, Ordering::Relaxed);
    }

    /// Whether it may hold `bytes`, all in all; asks for more where it must.
    pub(crate) fn covers(&self, bytes: u64) -> bool {
        if bytes <= self.granted_bytes.load(Ordering::Relaxed) {
            return true;
        }
        let granted_bytes = (self.ask)(bytes);
        self.set(granted_bytes);
        bytes <= granted_bytes
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn more_is_asked_for_once_it_is_needed() {
        let asked = Arc::new(AtomicU64::new(0));
        let times = Arc::clone(&asked);
        let allowance = Allowance::new(Box::new(move |bytes| {
            times.fetch_add(1, Ordering::Relaxed);
            if bytes > 100 { 80 } else { bytes.max(50) }
        }));
        allowance.set(10);
        assert!(allowance.covers(10));
        assert_eq!(asked.load(Ordering::Relaxed), 0);
        assert!(
            allowance.covers(11) && allowance.covers(50),
            "a step at once"
        );
        assert_eq!(asked.load(Ordering::Relaxed), 1);
        assert!(!allowance.covers(101));
        assert!(allowance.covers(80), "what was refused is no loss");
    }
}
