//! Whether what came of a request is right.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};
use regex::Regex;
use serde::Deserialize;

use super::client::{Failure, Reply};
use super::requests::{Asked, Expected, FAULTY, FUNCTIONS};
use crate::repo::Repo;

/// Codes that refuse a request which might have been answered at another time. Each comes with
/// `Retry-After`.
pub(super) const REFUSALS: [&str; 3] = ["queue-full", "queue-timeout", "over-budget"];
/// The same, for a function that did nothing but crash.
pub(super) const CRASH_LOOP: &str = "crash-loop";
/// The code of a request whose worker was killed.
const LOST: &str = "worker-lost";
const TIMED_OUT: &str = "function-timeout";
/// How long before a request a kill may have been that it still suffers from: what the server takes
/// to notice.
const AFTERMATH: Duration = Duration::from_secs(1);
/// How far a clone's clock may be from that of this process, which was read around its answer.
const CLOCK_SLACK: Duration = Duration::from_secs(2);

/// How a request ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Answered as it must be.
    Answered,
    /// Refused with this code.
    Refused(String),
    /// The function failed as it was asked to.
    Failed,
    /// Its worker was killed.
    Lost,
    /// Anything else, in one line.
    Wrong(String),
    /// Nothing came.
    Hung,
}

/// When workers were killed.
#[derive(Debug, Default)]
pub(super) struct Kills(Mutex<Vec<Instant>>);

impl Kills {
    /// A worker is about to be killed.
    pub(super) fn begin(&self) {
        let mut times = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        times.push(Instant::now());
    }

    /// How many there were.
    pub(super) fn count(&self) -> u64 {
        let times = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        times.len() as u64
    }

    /// Whether one can have hurt what began at that time and has ended now.
    pub(super) fn can_have_hurt(&self, begun: Instant) -> bool {
        let times = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let last = times.last();
        last.is_some_and(|last| *last + AFTERMATH >= begun)
    }
}

/// What a clone says of itself.
#[derive(Debug, Deserialize)]
struct Itself {
    real_time_unix_ms: u64,
    random: String,
    generation: u64,
    requests: u64,
}

/// What no two clones may have in common.
#[derive(Debug, Default)]
struct Seen {
    random: HashSet<String>,
    generations: HashSet<u64>,
}

/// Judges replies. It remembers what must not come twice.
#[derive(Debug)]
pub(super) struct Judge {
    /// The documented codes with their statuses.
    codes: BTreeMap<String, u16>,
    seen: Mutex<Seen>,
    pub(super) kills: Kills,
}

impl Judge {
    /// Reads what is documented.
    pub(super) fn read(repo: &Repo) -> Result<Self> {
        const FILE: &str = "api/errors.md";
        let text = fs::read_to_string(repo.path(FILE));
        let text = text.with_context(|| format!("cannot read {FILE}"))?;
        let row = Regex::new(r#"(?m)^\| <a id="([a-z-]+)"></a>`[a-z-]+` \| (\d+) \|"#)?;
        let codes: BTreeMap<String, u16> = row
            .captures_iter(&text)
            .map(|row| Ok((row[1].to_owned(), row[2].parse()?)))
            .collect::<Result<_>>()?;
        ensure!(
            codes.contains_key(CRASH_LOOP),
            "{FILE} has no table of codes that can be read"
        );
        Ok(Self::new(codes))
    }

    /// A judge that knows these codes, with their statuses.
    pub(super) fn new(codes: BTreeMap<String, u16>) -> Self {
        Self {
            codes,
            seen: Mutex::default(),
            kills: Kills::default(),
        }
    }

    /// What came of a request that was sent at that time and has ended now.
    pub(super) fn judge(
        &self,
        asked: &Asked,
        (sent, sent_at): (Instant, SystemTime),
        result: &Result<Reply, Failure>,
    ) -> Outcome {
        let reply = match result {
            Ok(reply) => reply,
            Err(Failure::Hung) => return Outcome::Hung,
            Err(Failure::Broken(why)) => return wrong(asked, why),
        };
        if let Some(code) = &reply.error {
            return self.error(asked, sent, reply, code);
        }
        match &asked.expected {
            Expected::Exactly { status, body } => {
                if reply.status == *status && reply.body == *body {
                    Outcome::Answered
                } else {
                    wrong(asked, &reply.describe())
                }
            }
            Expected::Itself => match self.itself(reply, sent_at) {
                Ok(()) => Outcome::Answered,
                Err(error) => wrong(asked, &format!("{error:#}: {}", reply.describe())),
            },
            Expected::Fails(_) => wrong(asked, &reply.describe()),
        }
    }

    /// An error of the server.
    pub(super) fn error(&self, asked: &Asked, sent: Instant, reply: &Reply, code: &str) -> Outcome {
        if let Err(error) = self.documented(reply, code) {
            return wrong(asked, &format!("{error:#}: {}", reply.describe()));
        }
        let is_faulty = FUNCTIONS[asked.function].name == FAULTY;
        match (code, &asked.expected) {
            (code, _) if is_refusal(code) || (is_faulty && code == CRASH_LOOP) => {
                Outcome::Refused(code.to_owned())
            }
            (LOST, _) if self.kills.can_have_hurt(sent) => Outcome::Lost,
            // On a machine with too much to do its time may end before its failure has come.
            (code, Expected::Fails(expected)) if code == *expected || code == TIMED_OUT => {
                Outcome::Failed
            }
            _ => wrong(asked, &reply.describe()),
        }
    }

    /// Whether an error is as documented: its code, its status, its document, and when to try again.
    pub(super) fn documented(&self, reply: &Reply, code: &str) -> Result<()> {
        let status = self.codes.get(code);
        let status = status.with_context(|| format!("no code {code} is documented"))?;
        ensure!(reply.status == *status, "{code} goes with {status}");
        ensure!(
            reply.problem().as_deref() == Some(code),
            "header and document differ"
        );
        let wants_time = is_refusal(code) || [CRASH_LOOP, LOST].contains(&code);
        ensure!(
            !wants_time || reply.has_retry_after,
            "{code} came without Retry-After"
        );
        Ok(())
    }

    fn itself(&self, reply: &Reply, sent_at: SystemTime) -> Result<()> {
        ensure!(reply.status == 200, "it did not tell");
        let said: Itself = serde_json::from_slice(&reply.body)?;
        ensure!(said.requests == 1, "the clone was used before");
        let told = SystemTime::UNIX_EPOCH + Duration::from_millis(said.real_time_unix_ms);
        ensure!(
            told + CLOCK_SLACK >= sent_at && told <= SystemTime::now() + CLOCK_SLACK,
            "the clone's clock is wrong"
        );
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        ensure!(
            seen.random.insert(said.random),
            "another clone drew the same"
        );
        ensure!(
            seen.generations.insert(said.generation),
            "another clone had this generation"
        );
        Ok(())
    }
}

/// Whether a code refuses what might be answered at another time.
pub(super) fn is_refusal(code: &str) -> bool {
    REFUSALS.contains(&code)
}

/// Whether a code says that a worker was killed.
pub(super) fn is_loss(code: &str) -> bool {
    code == LOST
}

fn wrong(asked: &Asked, why: &str) -> Outcome {
    Outcome::Wrong(format!("{} {}: {why}", asked.method, asked.path()))
}
