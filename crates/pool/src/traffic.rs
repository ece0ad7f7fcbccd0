//! What all requests of a function share: places, the queue's pace, crashes, and counts.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Semaphore;

use crate::backoff::CrashLoop;
use crate::error::{Error, Failure};
use crate::message::Outcome;
use crate::pace::Pace;
use crate::stats::FunctionStats;

/// The requests of one function, whichever of its instances answers them.
#[derive(Debug)]
pub(crate) struct Traffic {
    /// As many permits as the function may have invocations at once.
    pub(crate) permits: Arc<Semaphore>,
    pub(crate) pace: Arc<Pace>,
    /// Held by who waits for memory beside other functions: one request of each at a time, so that
    /// the functions take turns.
    pub(crate) memory_turn: tokio::sync::Mutex<()>,
    pub(crate) crash_loop: CrashLoop,
    counters: Counters,
}

#[derive(Debug, Default)]
struct Counters {
    invocations: AtomicU64,
    failures: AtomicU64,
    timeouts: AtomicU64,
    refused: AtomicU64,
    restore_us: AtomicU64,
    run_us: AtomicU64,
    faults: AtomicU64,
}

impl Traffic {
    /// Of a function that may have `concurrency` invocations at once.
    pub(crate) fn new(concurrency: usize) -> Self {
        Self {
            permits: Arc::new(Semaphore::new(concurrency)),
            pace: Arc::default(),
            memory_turn: tokio::sync::Mutex::default(),
            crash_loop: CrashLoop::default(),
            counters: Counters::default(),
        }
    }

    /// Counts a refused request.
    pub(crate) fn refuse(&self) {
        self.counters.refused.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a finished invocation.
    pub(crate) fn record(&self, outcome: &Result<Outcome, Error>) {
        let add = |counter: &AtomicU64, value| counter.fetch_add(value, Ordering::Relaxed);
        add(&self.counters.invocations, 1);
        let Ok(outcome) = outcome else {
            add(&self.counters.failures, 1);
            return;
        };
        add(&self.counters.restore_us, outcome.timings.restore_us);
        add(&self.counters.run_us, outcome.timings.run_us);
        add(&self.counters.faults, outcome.timings.faults);
        match &outcome.result {
            Ok(_) => {}
            Err(Failure::TimedOut { .. }) => {
                add(&self.counters.timeouts, 1);
            }
            Err(_) => {
                add(&self.counters.failures, 1);
            }
        }
    }

    pub(crate) fn stats(&self) -> FunctionStats {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        FunctionStats {
            invocations: get(&self.counters.invocations),
            failures: get(&self.counters.failures),
            timeouts: get(&self.counters.timeouts),
            refused: get(&self.counters.refused),
            crash_loops: self.crash_loop.loops(),
            running: self.pace.running.load(Ordering::Relaxed) as u64,
            waiting: self.pace.waiting.load(Ordering::Relaxed) as u64,
            restore_us_total: get(&self.counters.restore_us),
            run_us_total: get(&self.counters.run_us),
            faults_total: get(&self.counters.faults),
        }
    }
}
