//! How fast the requests of a function get through, which is when a refused one may come back.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

/// What a refused client is told at least, and at most, to wait.
const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(60);

/// One function's requests, counted.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    /// Requests that wait, for a turn or for memory.
    pub(crate) waiting: AtomicUsize,
    /// Holders of all permits that an invocation needs.
    pub(crate) running: AtomicUsize,
    /// How long an invocation keeps its place, in microseconds: an average that forgets.
    held_us: AtomicU64,
}

impl Pace {
    /// Whether anything runs or waits.
    pub(crate) fn is_busy(&self) -> bool {
        let count = |counter: &AtomicUsize| counter.load(Ordering::Relaxed);
        count(&self.waiting) + count(&self.running) > 0
    }

    /// An invocation had its place for so long.
    pub(crate) fn ended(&self, held: Duration) {
        let held_us = u64::try_from(held.as_micros()).unwrap_or(u64::MAX >> 8);
        let average = |old: u64| {
            Some(match old {
                0 => held_us,
                old => old - old / 8 + held_us / 8,
            })
        };
        // It always is updated: the closure never says no.
        let _ = self
            .held_us
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, average);
    }

    /// How long, in whole seconds, it takes until all that wait now have been served, at the speed of late.
    pub(crate) fn retry_after(&self) -> Duration {
        let ahead = self.waiting.load(Ordering::Relaxed) as u64 + 1;
        let at_once = self.running.load(Ordering::Relaxed).max(1) as u64;
        let held_us = self.held_us.load(Ordering::Relaxed);
        let all_us = held_us.saturating_mul(ahead) / at_once;
        let all = Duration::from_micros(all_us).clamp(SHORTEST, LONGEST);
        // Whole seconds: an estimate of microseconds would only look exact.
        Duration::from_secs(all.as_secs() + u64::from(all.subsec_nanos() > 0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_refused_waits_for_those_before_it() {
        let pace = Pace::default();
        assert_eq!(pace.retry_after(), SHORTEST, "nothing is known yet");
        pace.ended(Duration::from_secs(2));
        pace.waiting.store(9, Ordering::Relaxed);
        pace.running.store(4, Ordering::Relaxed);
        assert_eq!(pace.retry_after(), Duration::from_secs(5));
        pace.running.store(1, Ordering::Relaxed);
        assert_eq!(pace.retry_after(), Duration::from_secs(20));
        pace.waiting.store(usize::MAX >> 1, Ordering::Relaxed);
        assert_eq!(pace.retry_after(), LONGEST);
        for _ in 0..100 {
            pace.ended(Duration::from_millis(1));
        }
        pace.waiting.store(9, Ordering::Relaxed);
        assert_eq!(pace.retry_after(), SHORTEST, "it has become faster");
    }
}
