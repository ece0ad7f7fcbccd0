//! What goes into an invocation and what comes out of it.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{Error, Failure};
use dormouse_abi::{MAX_BODY_BYTES, MAX_HEAD_BYTES};

/// One header: name and value. Values need not be UTF-8.
pub type Header = (Bytes, Bytes);

/// A request to a function.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// The HTTP method, for example `GET`.
    pub method: String,
    /// Path and query as the function sees them, for example `/a/b?c=d`.
    pub target: String,
    /// The headers, in order.
    pub headers: Vec<Header>,
    /// The body, at most [`dormouse_abi::MAX_BODY_BYTES`].
    pub body: Bytes,
}

/// A function's answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Answer {
    /// The HTTP status, 200–599.
    pub status: u16,
    /// The headers, in order.
    pub headers: Vec<Header>,
    /// The body, at most [`dormouse_abi::MAX_BODY_BYTES`].
    pub body: Bytes,
}

/// How the instance that answers a request is to start: for measurements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Start {
    /// However it is soonest: a clone that was rolled back and waits, else a fresh one.
    #[default]
    Ready,
    /// Booted from the stored image for this request, and gone after it. The snapshot is neither used
    /// nor replaced.
    Cold,
    /// Restored by a function that is opened anew, from files that are not in the page cache. What
    /// runs meanwhile ends where it began.
    FirstUncached,
    /// The same, but the page cache is left as it is.
    First,
    /// Restored for this request, also where a clone waits that was rolled back.
    Restored,
}

impl Start {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Ready,
        Self::Cold,
        Self::FirstUncached,
        Self::First,
        Self::Restored,
    ];

    /// The word for it: `rolled-back`, `cold`, `first-uncached`, `first` or `restored`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "rolled-back",
            Self::Cold => "cold",
            Self::FirstUncached => "first-uncached",
            Self::First => "first",
            Self::Restored => "restored",
        }
    }
}

impl std::str::FromStr for Start {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|start| start.as_str() == text);
        found.ok_or_else(|| {
            let words = Self::ALL.map(Self::as_str).join(", ");
            format!("{text:?} is not a way to start; the ways are {words}")
        })
    }
}

/// How the instance that served a request came to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum StartType {
    /// Booted from the image for this request.
    Cold,
    /// Restored from the snapshot for this request.
    Restored,
    /// Rolled back to the snapshot after the request before.
    RolledBack,
}

impl StartType {
    /// The word of the `X-Start-Type` header: `cold`, `restored` or `rolled-back`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cold => "cold",
            Self::Restored => "restored",
            Self::RolledBack => "rolled-back",
        }
    }
}

/// Where the time of one invocation went, and its page faults.
///
/// ```text
/// T0 request parsed ── queue ──► T1 instance in hand ── memory ──► T2 memory attached
///    ── state ──► T3 vCPU state set ──► T4 first KVM_RUN ── run ──► T7 answer out
///                                          ├── first fault ──► T5
///                                          └── handler ──────► T6
/// ```
/// Some requests find no instance that could become theirs. What is done for them then comes between
/// T0 and T1 as well, and is not part of the queue: `clear`, `boot`, `open`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timings {
    /// T0 to T1: from the request's arrival to an instance in hand, but for what was done meanwhile.
    pub queue_us: u64,
    /// What was there taken away first, where another [`Start`] was asked for: the function closed,
    /// or a clone's memory given back.
    pub clear_us: Option<u64>,
    /// The cold boot, from the image to ready; saving and publishing a new snapshot come to it where
    /// the old one does not fit the host.
    pub boot_us: Option<u64>,
    /// The function opened: its snapshot's memory read, verified and loaded.
    pub open_us: Option<u64>,
    /// T1 to T2: memory attached and the working set replayed; 0 where that was done before.
    pub memory_us: u64,
    /// T2 to T3: the vCPU's state set; 0 where that was done before.
    pub state_us: u64,
    /// T1 to T4: all that comes before the run, the request's way into the mailbox included.
    pub restore_us: u64,
    /// T4 to T7: from the first `KVM_RUN` until the answer is copied out; includes the time spent
    /// on page faults.
    pub run_us: u64,
    /// T4 to T5: until the first page fault of the run, if there was one.
    pub first_fault_us: Option<u64>,
    /// T4 to T6: until the guest entered its handler, by its own word, if it says so.
    pub handler_us: Option<u64>,
    /// Time the pager spent on page faults during the run.
    pub fault_us: u64,
    /// Page faults that the pager served during the run.
    pub faults: u64,
    /// Pages that the working set put in before the run.
    pub replayed_pages: u64,
}

/// What an invocation came to.
#[derive(Debug, Serialize, Deserialize)]
pub struct Outcome {
    /// How the instance came to be.
    pub start: StartType,
    /// Where the time went.
    pub timings: Timings,
    /// The function's answer, or how it failed.
    pub result: Result<Answer, Failure>,
    /// The end of what the guest wrote to its console and stderr/stdout during this invocation.
    pub console: String,
}

/// What was done for one request before an instance was in hand, in microseconds.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Preparation {
    pub(crate) clear_us: Option<u64>,
    pub(crate) boot_us: Option<u64>,
    pub(crate) open_us: Option<u64>,
}

impl Outcome {
    /// Whether it is within the limits that every outcome is: it may come from a process that a guest has
    /// taken over.
    ///
    /// # Errors
    /// [`Error::Internal`].
    pub(crate) fn check(&self) -> Result<(), Error> {
        /// For consoles, reasons and names: what is told is far shorter.
        const MOST_TEXT_BYTES: usize = 64 << 10;
        let is_fine = match &self.result {
            Ok(answer) => {
                let fields = answer.headers.iter();
                let head_bytes: usize = fields.map(|(name, value)| name.len() + value.len()).sum();
                (200..600).contains(&answer.status)
                    && answer.body.len() <= MAX_BODY_BYTES
                    && head_bytes <= MAX_HEAD_BYTES
                    && answer.headers.len() <= MAX_HEAD_BYTES
            }
            Err(failure) => failure.to_string().len() <= MOST_TEXT_BYTES,
        };
        if is_fine && self.console.len() <= MOST_TEXT_BYTES {
            return Ok(());
        }
        Err(Error::Internal {
            operation: "running a guest".into(),
            reason: "what came of it is over its limits".to_owned(),
        })
    }

    /// The same, of a request that all this was done for.
    pub(crate) fn prepared(mut self, preparation: Preparation) -> Self {
        let Preparation {
            clear_us,
            boot_us,
            open_us,
        } = preparation;
        let parts = [clear_us, boot_us, open_us];
        let done_us: u64 = parts.into_iter().flatten().sum();
        if boot_us.is_some() {
            self.start = StartType::Cold;
        }
        self.timings = Timings {
            queue_us: self.timings.queue_us.saturating_sub(done_us),
            clear_us,
            boot_us,
            open_us,
            ..self.timings
        };
        self
    }
}
