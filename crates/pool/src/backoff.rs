//! Functions whose clones do nothing but crash are let rest.
//!
//! ```text
//!            10 crashes in a row within 60 s,                wait over: one request is let
//!            no answer in the last 60 s                      through, the others still wait
//!   trusted ────────────────────────────────► resting ─────────────────────────────────► tried
//!      ▲                                        ▲                                          │ │
//!      │                                        └──── it crashes: twice the wait, ─────────┘ │
//!      │                                              60 s at most                           │
//!      └────────────────────────────── it answers ───────────────────────────────────────────┘
//! ```
//! A crash is the end of the virtual machine: a crash of the guest, an exit, or memory that ran out.
//! An answer is an answer whatever its status, the handler's own error and an answer that is not
//! acceptable included. Neither is a run that was out of time, which a busy host can be to blame for
//! and which the deadline and the function's concurrency bound, or what failed in Dormouse.
//!
//! So a function that fails on some requests only goes on answering the others: one answer in a minute
//! is enough to be trusted. The memory of all this is that of the opened snapshot; a new deployment
//! begins anew.
//!
//! Where a snapshot does not fit the host, a request has the function's image booted. Each such boot that
//! fails is followed by a rest of the same kind ([`FailedBoots`]): a boot keeps a core busy, and requests
//! may come at any rate.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use dormouse_snapshot::FunctionName;

use crate::error::{Error, Failure};
use crate::function::Function;
use crate::message::Outcome;

/// So many crashes in a row are a loop …
const CRASHES: usize = 10;
/// … if they come within that time, and nothing was answered for as long.
const WINDOW: Duration = Duration::from_secs(60);
/// The first wait; it doubles with each request that was let through and crashed.
const FIRST_WAIT: Duration = Duration::from_secs(1);
/// The longest wait.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// What a request is told while another one is being tried.
const TRY_AGAIN: Duration = Duration::from_secs(1);

/// What is remembered of a function's crashes.
#[derive(Debug, Clone, Default)]
pub(crate) struct CrashLoop {
    history: Arc<Mutex<History>>,
}

#[derive(Debug, Default)]
struct History {
    /// When the last crashes were that no answer came between.
    crashes: VecDeque<Instant>,
    last_answer: Option<Instant>,
    rest: Option<Rest>,
    /// How often a loop was found.
    loops: u64,
}

/// A loop that was found.
#[derive(Debug)]
struct Rest {
    wait: Duration,
    until: Instant,
    is_tried: bool,
}

/// What a run says about its function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Answered,
    Crashed,
    Nothing,
}

/// The leave to run once. One that is never settled says nothing about the function.
#[derive(Debug)]
pub(crate) struct Leave {
    history: Arc<Mutex<History>>,
    /// Whether it is the one request by which a resting function is tried.
    is_trial: bool,
}

impl CrashLoop {
    /// Refuses a request that would have to wait, before it waits for anything else.
    ///
    /// # Errors
    /// When to try again.
    pub(crate) fn check(&self, now: Instant) -> Result<(), Duration> {
        match &lock(&self.history).rest {
            Some(rest) if now < rest.until => Err(rest.until - now),
            _ => Ok(()),
        }
    }

    /// Lets a request through.
    ///
    /// # Errors
    /// When to try again, where the function rests.
    pub(crate) fn enter(&self, now: Instant) -> Result<Leave, Duration> {
        let mut history = lock(&self.history);
        let is_trial = match &mut history.rest {
            None => false,
            Some(rest) if now < rest.until => return Err(rest.until - now),
            Some(rest) if rest.is_tried => return Err(TRY_AGAIN),
            Some(rest) => {
                rest.is_tried = true;
                true
            }
        };
        Ok(Leave {
            history: Arc::clone(&self.history),
            is_trial,
        })
    }

    /// How often a loop was found.
    pub(crate) fn loops(&self) -> u64 {
        lock(&self.history).loops
    }

    /// Whether the function rests, or is tried.
    #[cfg(test)]
    fn is_resting(&self) -> bool {
        lock(&self.history).rest.is_some()
    }
}

impl Leave {
    /// Remembers what the run came to.
    pub(crate) fn settle(&mut self, outcome: &Result<Outcome, Error>) {
        self.judge(verdict(outcome), Instant::now());
    }

    fn judge(&mut self, verdict: Verdict, now: Instant) {
        let mut history = lock(&self.history);
        match verdict {
            Verdict::Answered => {
                history.crashes.clear();
                history.last_answer = Some(now);
                history.rest = None;
            }
            Verdict::Crashed if self.is_trial => {
                if let Some(rest) = &mut history.rest {
                    rest.wait = (rest.wait * 2).min(LONGEST_WAIT);
                    rest.until = now + rest.wait;
                    rest.is_tried = false;
                }
            }
            // Of a run that began before the loop was found there is nothing to learn.
            Verdict::Crashed if history.rest.is_some() => {}
            Verdict::Crashed => history.crashed(now),
            Verdict::Nothing => return,
        }
        self.is_trial = false;
    }
}

impl Drop for Leave {
    /// A trial that came to nothing makes way for another.
    fn drop(&mut self) {
        if self.is_trial
            && let Some(rest) = &mut lock(&self.history).rest
        {
            rest.is_tried = false;
        }
    }
}

/// What is remembered of a function's cold boots that failed since one was ready.
#[derive(Debug, Default)]
pub(crate) struct FailedBoots {
    last: Option<FailedBoot>,
}

#[derive(Debug)]
struct FailedBoot {
    reason: String,
    wait: Duration,
    until: Instant,
}

impl FailedBoots {
    /// Refuses another boot while the function rests from the last.
    ///
    /// # Errors
    /// [`Error::BootLoop`].
    pub(crate) fn check(&self, name: &FunctionName, now: Instant) -> Result<(), Error> {
        match &self.last {
            Some(boot) if now < boot.until => {
                Err(Error::boot_loop(name, &boot.reason, boot.until - now))
            }
            _ => Ok(()),
        }
    }

    /// Takes note of a boot that failed. What others have to do with it is none of the function's doing.
    pub(crate) fn note(&mut self, error: &Error, now: Instant) {
        if !matches!(error, Error::Init { .. } | Error::BadImage { .. }) {
            return;
        }
        let last = self.last.as_ref();
        let wait = last.map_or(FIRST_WAIT, |boot| (boot.wait * 2).min(LONGEST_WAIT));
        self.last = Some(FailedBoot {
            reason: error.to_string(),
            wait,
            until: now + wait,
        });
    }

    /// The function is ready.
    pub(crate) fn forget(&mut self) {
        self.last = None;
    }
}

impl Function {
    /// Refuses a request while the function rests from crashes.
    ///
    /// # Errors
    /// [`Error::CrashLoop`].
    pub(crate) fn refuse_while_resting(&self) -> Result<(), Error> {
        let rested = self.traffic.crash_loop.check(Instant::now());
        rested.map_err(|wait| self.crash_loop_error(wait))
    }

    /// Lets a request run, as far as the function's crashes are concerned.
    ///
    /// # Errors
    /// [`Error::CrashLoop`].
    pub(crate) fn enter(&self) -> Result<Leave, Error> {
        let entered = self.traffic.crash_loop.enter(Instant::now());
        entered.map_err(|wait| self.crash_loop_error(wait))
    }

    fn crash_loop_error(&self, wait: Duration) -> Error {
        self.traffic.refuse();
        Error::crash_loop(self.name(), wait)
    }
}

impl History {
    fn crashed(&mut self, now: Instant) {
        self.crashes.push_back(now);
        if self.crashes.len() < CRASHES {
            return;
        }
        let first = self.crashes.pop_front();
        let is_recent = |at: Instant| now.saturating_duration_since(at) < WINDOW;
        if first.is_some_and(is_recent) && !self.last_answer.is_some_and(is_recent) {
            self.crashes.clear();
            self.loops += 1;
            self.rest = Some(Rest {
                wait: FIRST_WAIT,
                until: now + FIRST_WAIT,
                is_tried: false,
            });
        }
    }
}

fn verdict(outcome: &Result<Outcome, Error>) -> Verdict {
    let Ok(outcome) = outcome else {
        return Verdict::Nothing;
    };
    match outcome.result {
        Ok(_)
        | Err(Failure::Reported { .. } | Failure::BadAnswer { .. } | Failure::Unconfirmed) => {
            Verdict::Answered
        }
        Err(Failure::Crashed { .. } | Failure::Exited { .. } | Failure::OutOfMemory { .. }) => {
            Verdict::Crashed
        }
        Err(Failure::TimedOut { .. }) => Verdict::Nothing,
    }
}

fn lock(history: &Mutex<History>) -> MutexGuard<'_, History> {
    // It is consistent between any two statements.
    history.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A function with a clock of its own.
    struct Timeline {
        function: CrashLoop,
        now: Instant,
    }

    impl Timeline {
        fn new() -> Self {
            Self {
                function: CrashLoop::default(),
                now: Instant::now(),
            }
        }

        fn run(&mut self, verdict: Verdict) -> Result<(), Duration> {
            self.function.enter(self.now)?.judge(verdict, self.now);
            Ok(())
        }

        fn crashes(&mut self, times: usize, apart: Duration) {
            for _ in 0..times {
                self.run(Verdict::Crashed).unwrap();
                self.now += apart;
            }
        }
    }

    const SECOND: Duration = Duration::from_secs(1);
    const NO_TIME: Duration = Duration::ZERO;

    #[test]
    fn crashes_in_a_row_are_a_loop_and_the_wait_doubles() {
        let mut time = Timeline::new();
        time.crashes(CRASHES - 1, NO_TIME);
        assert!(!time.function.is_resting());
        time.crashes(1, NO_TIME);
        assert!(time.function.is_resting());
        for seconds in [1, 2, 4, 8, 16, 32, 60, 60] {
            let wait = Duration::from_secs(seconds);
            assert_eq!(time.run(Verdict::Crashed), Err(wait));
            time.now += wait;
            assert_eq!(time.run(Verdict::Crashed), Ok(()), "one is let through");
        }
        assert_eq!(time.function.loops(), 1);

        time.now += LONGEST_WAIT;
        time.run(Verdict::Answered).unwrap();
        time.run(Verdict::Answered).unwrap();
        assert!(!time.function.is_resting());
        // All of it is forgotten, but that it answered.
        time.now += WINDOW;
        time.crashes(CRASHES, NO_TIME);
        assert_eq!(time.run(Verdict::Crashed), Err(SECOND));
        assert_eq!(time.function.loops(), 2);
    }

    #[test]
    fn who_answers_now_and_then_is_never_refused() {
        let mut time = Timeline::new();
        for _ in 0..50 {
            time.run(Verdict::Answered).unwrap();
            time.crashes(3 * CRASHES, SECOND);
        }
        // Nor is one that crashes seldom, or that only runs out of time.
        let mut time = Timeline::new();
        time.crashes(5 * CRASHES, WINDOW / CRASHES as u32 + SECOND);
        let mut time = Timeline::new();
        for _ in 0..5 * CRASHES {
            time.run(Verdict::Nothing).unwrap();
        }
        assert_eq!(time.function.loops(), 0);
    }

    #[test]
    fn one_request_at_a_time_tries_a_resting_function() {
        let mut time = Timeline::new();
        let late = time.function.enter(time.now).unwrap();
        let (mut late_crash, mut late_answer) = (late, time.function.enter(time.now).unwrap());
        time.crashes(CRASHES, NO_TIME);
        time.now += SECOND;
        let trial = time.function.enter(time.now).unwrap();
        assert_eq!(time.run(Verdict::Crashed), Err(TRY_AGAIN));
        // What began before the loop was found makes the wait no longer.
        late_crash.judge(Verdict::Crashed, time.now);
        assert_eq!(time.run(Verdict::Crashed), Err(TRY_AGAIN));
        // A trial that comes to nothing makes way for the next.
        drop(trial);
        time.run(Verdict::Nothing).unwrap();
        let _trial = time.function.enter(time.now).unwrap();
        late_answer.judge(Verdict::Answered, time.now);
        time.run(Verdict::Answered).unwrap();
    }

    #[test]
    fn each_boot_that_fails_is_followed_by_a_longer_rest() {
        let name = FunctionName::new("f").unwrap();
        let mut boots = FailedBoots::default();
        let mut now = Instant::now();
        let failed = || Error::Init {
            failure: Failure::Exited { code: 3 },
            console: String::new(),
        };
        let mut wait = FIRST_WAIT;
        for _ in 0..10 {
            boots.check(&name, now).unwrap();
            boots.note(&failed(), now);
            now += wait - Duration::from_millis(1);
            let error = boots.check(&name, now).unwrap_err();
            assert!(error.to_string().contains("exited with code 3"), "{error}");
            now += Duration::from_millis(1);
            wait = (wait * 2).min(LONGEST_WAIT);
        }
        boots.forget();
        boots.note(&Error::Draining, now);
        boots.check(&name, now).unwrap();
        boots.note(&failed(), now);
        boots.check(&name, now + FIRST_WAIT).unwrap();
    }
}
