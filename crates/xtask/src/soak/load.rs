//! Requests, in a closed loop to see what the machine bears, and in an open one beyond that.

use std::collections::BTreeMap;
use std::sync::mpsc::{self, Receiver};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result};
use hdrhistogram::Histogram;
use rand::SeedableRng;
use rand::distr::Distribution;
use rand::rngs::ChaCha8Rng;
use rand_distr::Exp1;

use super::client::Client;
use super::judge::{Judge, Outcome};
use super::requests::{Asked, FUNCTIONS, Requests};

/// Connections of the closed loop: two for each function and core or so, and few enough that none is
/// refused.
const CLOSED_LANES: usize = 16;
/// Requests that may be under way in the open loop: more than the server lets run and wait together,
/// so that none waits here.
const OPEN_LANES: usize = 384;
/// A thread that sends needs little.
const STACK_BYTES: usize = 256 << 10;
/// So much may go wrong until a run ends early: nothing is learned from more.
const ENOUGH: u64 = 200;
/// Sentences that are kept of what went wrong.
const MAX_EXAMPLES: usize = 10;

/// Requests of one function, by outcome.
#[derive(Debug, Default, Clone)]
pub(super) struct Tally {
    pub(super) asked: u64,
    pub(super) answered: u64,
    pub(super) refused: u64,
    pub(super) failed: u64,
    pub(super) lost: u64,
    pub(super) wrong: u64,
    pub(super) hung: u64,
}

/// What a run's requests add up to.
#[derive(Debug)]
pub(super) struct Report {
    /// As [`FUNCTIONS`].
    pub(super) tallies: [Tally; FUNCTIONS.len()],
    /// Refusals by code.
    pub(super) refusals: BTreeMap<String, u64>,
    /// Of what was answered: from when it was due, in microseconds.
    pub(super) from_due_us: Histogram<u64>,
    /// The same, from when it was sent.
    pub(super) from_sent_us: Histogram<u64>,
    /// How long the run took.
    pub(super) took: Duration,
    /// What went wrong, as far as it is kept.
    pub(super) examples: Vec<String>,
}

impl Report {
    /// Nothing yet.
    pub(super) fn new() -> Result<Self> {
        let times = Histogram::new(3).context("three digits are allowed")?;
        Ok(Self {
            tallies: Default::default(),
            refusals: BTreeMap::new(),
            from_due_us: times.clone(),
            from_sent_us: times,
            took: Duration::ZERO,
            examples: Vec::new(),
        })
    }

    /// All functions together.
    pub(super) fn total(&self) -> Tally {
        let mut total = Tally::default();
        for tally in &self.tallies {
            total.asked += tally.asked;
            total.answered += tally.answered;
            total.refused += tally.refused;
            total.failed += tally.failed;
            total.lost += tally.lost;
            total.wrong += tally.wrong;
            total.hung += tally.hung;
        }
        total
    }

    /// Requests per second that got as far as the function.
    pub(super) fn rate(&self) -> f64 {
        let total = self.total();
        (total.answered + total.failed) as f64 / self.took.as_secs_f64().max(f64::EPSILON)
    }

    fn is_hopeless(&self) -> bool {
        let total = self.total();
        total.wrong + total.hung >= ENOUGH
    }

    fn count(&mut self, asked: &Asked, outcome: Outcome, from_due: Duration, from_sent: Duration) {
        let tally = &mut self.tallies[asked.function];
        tally.asked += 1;
        let example = match outcome {
            Outcome::Answered => {
                tally.answered += 1;
                let us = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
                // They grow as they must.
                let _ = self.from_due_us.record(us(from_due));
                let _ = self.from_sent_us.record(us(from_sent));
                return;
            }
            Outcome::Refused(code) => {
                tally.refused += 1;
                *self.refusals.entry(code).or_default() += 1;
                return;
            }
            Outcome::Failed => {
                tally.failed += 1;
                return;
            }
            Outcome::Lost => {
                tally.lost += 1;
                return;
            }
            Outcome::Wrong(why) => {
                tally.wrong += 1;
                why
            }
            Outcome::Hung => {
                tally.hung += 1;
                format!("{} {}: no answer came", asked.method, asked.path())
            }
        };
        if self.examples.len() < MAX_EXAMPLES {
            eprintln!("wrong: {example}");
            self.examples.push(example);
        }
    }
}

/// Where load goes, and who judges what comes of it.
pub(super) struct Load<'a> {
    pub(super) url: &'a str,
    /// How long a request may take before it counts as hung.
    pub(super) patience: Duration,
    pub(super) judge: &'a Judge,
}

impl Load<'_> {
    /// Sends the next request when the last one's answer is there, over a few connections.
    pub(super) fn closed(&self, requests: &mut Requests, length: Duration) -> Result<Report> {
        let report = Mutex::new(Report::new()?);
        let requests = Mutex::new(requests);
        let begun = Instant::now();
        thread::scope(|scope| {
            for _ in 0..CLOSED_LANES {
                scope.spawn(|| {
                    let client = Client::new(self.url, self.patience);
                    while begun.elapsed() < length {
                        let asked = lock(&requests).draw();
                        self.ask(&client, &asked, Instant::now(), &report);
                        if lock(&report).is_hopeless() {
                            return;
                        }
                    }
                });
            }
        });
        finish(report, begun)
    }

    /// Sends requests at a rate, per second, at random times (a Poisson process) whatever comes of
    /// them. `progress` is told of the run every minute, on a thread of its own: nothing waits for it.
    pub(super) fn open(
        &self,
        requests: &mut Requests,
        (rate, seed): (f64, u64),
        length: Duration,
        progress: impl Fn(Tally) + Sync,
    ) -> Result<Report> {
        const EVERY: Duration = Duration::from_secs(60);
        let report = Mutex::new(Report::new()?);
        let (sender, receiver) = mpsc::channel::<(Instant, Asked)>();
        let receiver = Mutex::new(receiver);
        let begun = Instant::now();
        thread::scope(|scope| -> Result<()> {
            for _ in 0..OPEN_LANES {
                thread::Builder::new()
                    .stack_size(STACK_BYTES)
                    .spawn_scoped(scope, || self.lane(&receiver, &report))
                    .context("cannot start a thread that sends")?;
            }
            // Dropped at the end, which ends the lanes.
            let sender = sender;
            let mut spacing = ChaCha8Rng::seed_from_u64(seed);
            let mut at_s = 0.0;
            let mut told = EVERY;
            loop {
                let gap: f64 = Exp1.sample(&mut spacing);
                at_s += gap / rate;
                let at = Duration::from_secs_f64(at_s);
                if at >= length || lock(&report).is_hopeless() {
                    return Ok(());
                }
                let asked = requests.draw();
                if at >= told {
                    let (total, progress) = (lock(&report).total(), &progress);
                    scope.spawn(move || progress(total));
                    told += EVERY;
                }
                let due = begun + at;
                thread::sleep(due.saturating_duration_since(Instant::now()));
                // The lanes live as long as this loop.
                let _ = sender.send((due, asked));
            }
        })?;
        finish(report, begun)
    }

    /// Sends what is due, one after the other.
    fn lane(&self, due: &Mutex<Receiver<(Instant, Asked)>>, report: &Mutex<Report>) {
        let client = Client::new(self.url, self.patience);
        loop {
            // One statement: the lock is given up before the request is sent.
            let next = lock(due).recv();
            let Ok((due, asked)) = next else { return };
            self.ask(&client, &asked, due, report);
        }
    }

    fn ask(&self, client: &Client, asked: &Asked, due: Instant, report: &Mutex<Report>) {
        let sent = (Instant::now(), SystemTime::now());
        let result = client.send(&asked.method, &asked.path(), &asked.body);
        let (from_due, from_sent) = (due.elapsed(), sent.0.elapsed());
        let outcome = self.judge.judge(asked, sent, &result);
        lock(report).count(asked, outcome, from_due, from_sent);
    }
}

fn finish(report: Mutex<Report>, begun: Instant) -> Result<Report> {
    let mut report = report.into_inner().unwrap_or_else(PoisonError::into_inner);
    report.took = begun.elapsed();
    Ok(report)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
