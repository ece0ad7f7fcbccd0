//! Rollback in place or a fresh restore: which of them costs a function less, by what was measured.
//!
//! A rollback costs by the page that it copies back. A fresh restore costs what attaching takes and
//! what the run then takes longer, since nothing that it touches is at hand. So a rollback is worth
//! it up to a number of pages, which this finds from the function's own invocations.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::message::Timings;

/// What is worth rolling back in any case: less than one system call's worth of copies.
const ALWAYS_PAGES: u64 = 64;
/// A rollback of fewer pages says little about the cost of a page.
const TELLING_PAGES: u64 = 32;
/// What a page costs until it was measured, nanoseconds.
const USUAL_PAGE_NS: f64 = 250.0;
/// After so many restores in a row the next clone is rolled back whatever it costs. Who does not roll back
/// measures nothing of it, so one time that was measured while others had the core would count for ever.
const TRY_AGAIN_AFTER: u32 = 64;

/// The measured costs of one function.
#[derive(Debug, Default)]
pub(crate) struct Crossover {
    measured: Mutex<Measured>,
}

#[derive(Debug, Default)]
struct Measured {
    /// Attaching a fresh clone, microseconds.
    attach_us: Average,
    /// Running it, microseconds.
    restored_run_us: Fastest,
    /// Running a clone that was rolled back, microseconds.
    rolled_back_run_us: Fastest,
    /// Copying a page back, nanoseconds.
    page_ns: Fastest,
    /// Clones that were restored since one was rolled back.
    restored_in_a_row: u32,
}

/// An average that forgets: each new value counts for an eighth.
#[derive(Debug, Default, Clone, Copy)]
struct Average(Option<f64>);

impl Average {
    fn add(&mut self, value: f64) {
        self.0 = Some(self.0.map_or(value, |old| old + (value - old) / 8.0));
    }
}

/// The least of late: what a run takes when it has little to do, and nobody else has the core. Requests
/// differ far more than what is compared here, so averages of their runs would say nothing.
#[derive(Debug, Default, Clone, Copy)]
struct Fastest(Option<f64>);

impl Fastest {
    fn add(&mut self, value: f64) {
        self.0 = Some(
            self.0
                .map_or(value, |old| value.min(old + (value - old) / 64.0)),
        );
    }
}

impl Crossover {
    fn lock(&self) -> MutexGuard<'_, Measured> {
        // The averages are consistent between any two statements.
        self.measured.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A restored clone has run.
    pub(crate) fn restored(&self, timings: &Timings) {
        // A clone that was recorded, or waited for the disk, is no measure of the others.
        if timings.replayed_pages > 0 {
            let mut measured = self.lock();
            measured.attach_us.add(timings.memory_us as f64);
            measured.restored_run_us.add(timings.run_us as f64);
            measured.restored_in_a_row = measured.restored_in_a_row.saturating_add(1);
        }
    }

    /// A clone that was rolled back has run.
    pub(crate) fn ran_rolled_back(&self, run_us: u64) {
        let mut measured = self.lock();
        measured.rolled_back_run_us.add(run_us as f64);
        measured.restored_in_a_row = 0;
    }

    /// A clone was rolled back.
    pub(crate) fn rolled_back(&self, copied_pages: u64, took: Duration) {
        if copied_pages >= TELLING_PAGES {
            let page_ns = took.as_nanos() as f64 / copied_pages as f64;
            self.lock().page_ns.add(page_ns);
        }
    }

    /// With how many pages to copy back a rollback still costs no more than a fresh restore; any number
    /// where that is to be found out.
    pub(crate) fn most_pages(&self) -> u64 {
        let measured = self.lock();
        if measured.restored_in_a_row >= TRY_AGAIN_AFTER {
            return u64::MAX;
        }
        let (Some(attach_us), Some(restored_us), Some(rolled_back_us)) = (
            measured.attach_us.0,
            measured.restored_run_us.0,
            measured.rolled_back_run_us.0,
        ) else {
            // Only by trying both can they be compared.
            return u64::MAX;
        };
        let saved_ns = (attach_us + (restored_us - rolled_back_us).max(0.0)) * 1000.0;
        let page_ns = measured.page_ns.0.unwrap_or(USUAL_PAGE_NS).max(1.0);
        ((saved_ns / page_ns) as u64).max(ALWAYS_PAGES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn restored(memory_us: u64, run_us: u64) -> Timings {
        Timings {
            memory_us,
            run_us,
            replayed_pages: 1,
            ..Timings::default()
        }
    }

    #[test]
    fn a_rollback_is_worth_as_many_pages_as_a_restore_costs_more() {
        let crossover = Crossover::default();
        assert_eq!(crossover.most_pages(), u64::MAX);
        crossover.restored(&restored(100, 500));
        assert_eq!(crossover.most_pages(), u64::MAX, "not compared yet");
        crossover.ran_rolled_back(400);
        assert_eq!(crossover.most_pages(), 800, "200 us at 250 ns a page");
        crossover.rolled_back(100, Duration::from_micros(50));
        assert_eq!(crossover.most_pages(), 400, "at 500 ns a page");
        crossover.rolled_back(2, Duration::from_secs(1));
        assert_eq!(crossover.most_pages(), 400, "two pages say nothing");
    }

    #[test]
    fn few_pages_are_always_rolled_back_and_costs_may_change() {
        let crossover = Crossover::default();
        crossover.restored(&restored(10, 100));
        crossover.ran_rolled_back(300);
        assert_eq!(crossover.most_pages(), ALWAYS_PAGES);
        for _ in 0..1000 {
            crossover.restored(&restored(1000, 1300));
        }
        crossover.ran_rolled_back(300);
        assert!(crossover.most_pages() > 7900, "{}", crossover.most_pages());
        // A slow request among fast ones changes little.
        let before = crossover.most_pages();
        crossover.restored(&restored(1000, 1_000_000));
        crossover.restored(&restored(1000, 1300));
        assert_eq!(crossover.most_pages(), before);
    }

    #[test]
    fn what_was_measured_at_a_bad_moment_is_measured_again() {
        let crossover = Crossover::default();
        crossover.restored(&restored(100, 500));
        crossover.rolled_back(100, Duration::from_millis(10));
        crossover.ran_rolled_back(30_000);
        let mut restores = 0;
        while crossover.most_pages() == ALWAYS_PAGES {
            crossover.restored(&restored(100, 500));
            restores += 1;
        }
        assert_eq!(crossover.most_pages(), u64::MAX);
        assert_eq!(restores, TRY_AGAIN_AFTER);
        crossover.rolled_back(100, Duration::from_micros(25));
        crossover.ran_rolled_back(400);
        assert_eq!(crossover.most_pages(), 800, "200 us at 250 ns a page");
    }
}
