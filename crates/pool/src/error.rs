//! Who failed, and how: [`Failure`] is the function's doing, [`Error`] is everything else.

use std::borrow::Cow;
use std::time::Duration;

use dormouse_snapshot::FunctionName;
use dormouse_vmm::Crash;
use serde::{Deserialize, Serialize};

use crate::console::Tail;

/// When to try again where nobody knows better.
pub(crate) const SOON: Duration = Duration::from_secs(1);

/// How a function failed. The clone is thrown away; the next invocation starts from the snapshot.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Failure {
    /// A CPU exception, a triple fault, an instruction this host cannot run …
    #[error("the function crashed: {}", crash.reason)]
    Crashed {
        /// What happened and where, with the guest's registers.
        crash: Box<Crash>,
    },
    /// The program ended because it got no more memory.
    #[error(
        "the function ran out of memory: of its {} MiB there were not {wanted_bytes} bytes left in \
         one piece; deploy it with more memory",
        memory_bytes >> 20
    )]
    OutOfMemory {
        /// What it asked for last.
        wanted_bytes: u64,
        /// The guest's whole memory.
        memory_bytes: u64,
    },
    /// The program ended instead of answering: `process::exit`, a panic (code -1) or an abort.
    #[error("the function exited with code {code} instead of answering")]
    Exited {
        /// The exit code.
        code: i32,
    },
    /// It did not answer in time.
    #[error("the function did not answer within {limit:?}")]
    TimedOut {
        /// The limit that applied.
        limit: Duration,
    },
    /// The answer is over a limit or malformed.
    #[error("the function's answer is not acceptable: {reason}")]
    BadAnswer {
        /// What is wrong with it.
        reason: String,
    },
    /// It answered without confirming that it took the clone's own random bytes. The answer was not
    /// looked at: it might be the same in all clones.
    #[error(
        "the function did not confirm that it took this clone's own random bytes, so its answer was \
         discarded; build it with dormouse-guest, which confirms by itself"
    )]
    Unconfirmed,
    /// The handler returned an error.
    #[error("the function reported an error: {message}")]
    Reported {
        /// The function's own words.
        message: String,
    },
}

impl Failure {
    /// What it means that the program ended with `code`. One that gets no memory says so last.
    pub(crate) fn exited(code: i32, console: &Tail, memory_bytes: u64) -> Self {
        match console.failed_allocation_bytes() {
            Some(wanted_bytes) if code != 0 => Self::OutOfMemory {
                wanted_bytes,
                memory_bytes,
            },
            _ => Self::Exited { code },
        }
    }
}

/// Why an operation of the pool could not be carried out.
///
/// It can be sent from process to process, but for [`Error::Store`].
#[derive(Debug, thiserror::Error, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Error {
    /// No function of this name is deployed.
    #[error("there is no function named {name:?}; deploy it first")]
    UnknownFunction {
        /// The name that was asked for.
        name: String,
    },
    /// The function has no such snapshot.
    #[error("{reason}")]
    UnknownSnapshot {
        /// Which, and what to do.
        reason: String,
    },
    /// An option of a function is out of range.
    #[error("{option} = {value} is not possible: {reason}")]
    BadOption {
        /// The option's name.
        option: Cow<'static, str>,
        /// Its value as given.
        value: String,
        /// What is possible.
        reason: String,
    },
    /// The image cannot be run: not an ELF, another machine, not Hermit, truncated …
    #[error("this image cannot be used: {reason}")]
    BadImage {
        /// What is wrong with it and what to do.
        reason: String,
    },
    /// The function failed before it was ready.
    #[error("the function failed while it started: {failure}")]
    Init {
        /// How it failed.
        failure: Failure,
        /// The end of its console.
        console: String,
    },
    /// The function fails on the request that it was to be measured with.
    #[error("there is nothing to measure: {failure}; give a payload that it answers")]
    Unanswered {
        /// How it failed.
        failure: Failure,
    },
    /// The function fails on a request that it was to be warmed with.
    #[error(
        "run {run} of {runs} that were to warm the function failed: {reason}; nothing was published, \
         warm it with a request that it answers"
    )]
    Warming {
        /// Which run failed, from 1.
        run: u32,
        /// How many there were to be.
        runs: u32,
        /// How it failed, or the status of 500 or more that it answered with.
        reason: String,
        /// The end of its console.
        console: String,
    },
    /// The request is over a limit.
    #[error("the request's {what} has {bytes} bytes, at most {limit_bytes} are allowed")]
    RequestTooLarge {
        /// `body` or `head`.
        what: Cow<'static, str>,
        /// Its size.
        bytes: u64,
        /// The limit.
        limit_bytes: u64,
    },
    /// Too many requests wait for this function.
    #[error("{waiting} requests wait for {name:?} already; try again in {retry_after:?}")]
    QueueFull {
        /// The function.
        name: String,
        /// How many wait.
        waiting: usize,
        /// When to try again.
        retry_after: Duration,
    },
    /// The request waited for the whole of its queue time.
    #[error("no instance of {name:?} became free within {waited:?}; try again in {retry_after:?}")]
    QueueTimeout {
        /// The function.
        name: String,
        /// How long it waited.
        waited: Duration,
        /// When to try again.
        retry_after: Duration,
    },
    /// Too many deployments and warmings run or wait.
    #[error("{limit} deployments run or wait already; try again in {retry_after:?}")]
    DeploysFull {
        /// How many may.
        limit: usize,
        /// When to try again.
        retry_after: Duration,
    },
    /// The function does nothing but crash.
    #[error(
        "{name:?} crashed on each of its last requests and rests; try again in {retry_after:?}, or \
         deploy it anew"
    )]
    CrashLoop {
        /// The function.
        name: String,
        /// When to try again.
        retry_after: Duration,
    },
    /// Its snapshot does not fit this host, and its image failed when it was booted anew for it.
    #[error(
        "{name:?} has to be booted anew on this host and rests, since it failed at that: {reason}; try \
         again in {retry_after:?}, or deploy it anew"
    )]
    BootLoop {
        /// The function.
        name: String,
        /// How the last boot failed.
        reason: String,
        /// When to try again.
        retry_after: Duration,
    },
    /// There is not enough memory left for it.
    #[error(
        "{name:?} needs {needed_bytes} bytes of memory and the instances' budget of {budget_bytes} \
         bytes has no room for it; try again in {retry_after:?}, or raise --memory-budget"
    )]
    OverBudget {
        /// The function.
        name: String,
        /// What it was to get.
        needed_bytes: u64,
        /// What all instances may hold together.
        budget_bytes: u64,
        /// When to try again.
        retry_after: Duration,
    },
    /// The host has less memory left than it is to keep.
    #[error(
        "{name:?} needs {needed_bytes} bytes of memory and the host has less left than the server is \
         to leave it; try again in {retry_after:?}, or lower --memory-floor"
    )]
    LowMemory {
        /// The function.
        name: String,
        /// What it was to get.
        needed_bytes: u64,
        /// When to try again.
        retry_after: Duration,
    },
    /// The process that worked on a request ended, and the request with it.
    #[error(
        "the worker process that was at work on this ended ({how}): it may have been half done, and \
         nothing of that is left; another one is started: try again"
    )]
    WorkerLost {
        /// How it ended, as far as that is known.
        how: String,
    },
    /// The pool is shutting down.
    #[error("the server is shutting down; try again elsewhere")]
    Draining,
    /// This host cannot do it: no KVM, no userfaultfd, a snapshot of another kind of host …
    #[error("{reason}")]
    Host {
        /// What is missing and what to do.
        reason: String,
    },
    /// Snapshots of other functions are layers on what was to be removed.
    #[error("{reason}")]
    HasLayers {
        /// Which, and what to do.
        reason: String,
    },
    /// The function in a snapshot was built for another version of the guests' interface. Booting its
    /// image would not help.
    #[error(
        "the function in this snapshot speaks Dormouse ABI version {found}, this host speaks version \
         {here}: build it against the matching dormouse-guest and deploy it again"
    )]
    OtherAbi {
        /// The version that the function speaks.
        found: u32,
        /// The version that this host speaks.
        here: u32,
    },
    /// Something in Dormouse or in the host's kernel failed.
    #[error("internal error: {operation}: {reason}")]
    Internal {
        /// What was being done.
        operation: Cow<'static, str>,
        /// What the system said.
        reason: String,
    },
    /// The store failed.
    // The last, or serde's derive counts those after it differently when it reads them.
    #[error(transparent)]
    #[serde(skip)]
    Store(dormouse_snapshot::Error),
}

impl Error {
    /// Wraps an error that no caller can do anything about.
    pub(crate) fn internal(
        operation: &'static str,
    ) -> impl FnOnce(Box<dyn std::error::Error + Send + Sync>) -> Self {
        move |e| Self::Internal {
            operation: operation.into(),
            reason: e.to_string(),
        }
    }

    pub(crate) fn queue_full(name: &FunctionName, waiting: usize) -> Self {
        Self::QueueFull {
            name: name.to_string(),
            waiting,
            retry_after: SOON,
        }
    }

    pub(crate) fn deploys_full(limit: usize) -> Self {
        Self::DeploysFull {
            limit,
            retry_after: SOON,
        }
    }

    pub(crate) fn low_memory(name: &FunctionName, needed_bytes: u64) -> Self {
        Self::LowMemory {
            name: name.to_string(),
            needed_bytes,
            retry_after: SOON,
        }
    }

    pub(crate) fn crash_loop(name: &FunctionName, retry_after: Duration) -> Self {
        Self::CrashLoop {
            name: name.to_string(),
            retry_after,
        }
    }

    pub(crate) fn boot_loop(name: &FunctionName, reason: &str, retry_after: Duration) -> Self {
        Self::BootLoop {
            name: name.to_string(),
            reason: reason.to_owned(),
            retry_after,
        }
    }

    pub(crate) fn over_budget(name: &FunctionName, needed_bytes: u64, budget_bytes: u64) -> Self {
        Self::OverBudget {
            name: name.to_string(),
            needed_bytes,
            budget_bytes,
            retry_after: SOON,
        }
    }

    pub(crate) fn queue_timeout(name: &FunctionName, waited: Duration) -> Self {
        Self::QueueTimeout {
            name: name.to_string(),
            waited,
            retry_after: SOON,
        }
    }

    /// The same, but to be tried again after `wait`, where trying again can help.
    pub(crate) fn retry_after(mut self, wait: Duration) -> Self {
        if let Self::QueueFull { retry_after, .. }
        | Self::QueueTimeout { retry_after, .. }
        | Self::OverBudget { retry_after, .. }
        | Self::LowMemory { retry_after, .. } = &mut self
        {
            *retry_after = wait;
        }
        self
    }

    /// True where a snapshot cannot be used on this host although nothing is wrong with it.
    pub(crate) fn is_not_restorable(&self) -> bool {
        matches!(self, Self::Host { .. })
    }
}

impl From<dormouse_snapshot::Error> for Error {
    fn from(error: dormouse_snapshot::Error) -> Self {
        use dormouse_snapshot::Error as Store;
        match error {
            Store::InvalidName { name, reason } => Self::BadOption {
                option: "name".into(),
                value: format!("{name:?}"),
                reason: reason.to_string(),
            },
            Store::UnknownFunction { function, .. } => Self::UnknownFunction {
                name: function.to_string(),
            },
            Store::HasLayers { .. } => Self::HasLayers {
                reason: error.to_string(),
            },
            Store::InvalidId { id } => Self::BadOption {
                option: "snapshot".into(),
                value: format!("{id:?}"),
                reason: "write a name, or name@id as the list of snapshots has it".to_owned(),
            },
            Store::InvalidTag { .. } => Self::BadOption {
                option: "snapshot".into(),
                value: "its tag".to_owned(),
                reason: error.to_string(),
            },
            Store::UnknownSnapshot { .. }
            | Store::UnknownSequence { .. }
            | Store::UnknownTag { .. }
            | Store::DanglingTag { .. } => Self::UnknownSnapshot {
                reason: error.to_string(),
            },
            other => Self::Store(other),
        }
    }
}

impl From<dormouse_vmm::Error> for Error {
    fn from(error: dormouse_vmm::Error) -> Self {
        use dormouse_vmm::Error as Vmm;
        let reason = error.to_string();
        match error {
            Vmm::Image { reason } => Self::BadImage { reason },
            Vmm::NotSavable { .. } => Self::BadImage { reason },
            Vmm::MemorySize {
                memory_bytes,
                reason,
            } => Self::BadOption {
                option: "memory".into(),
                value: format!("{memory_bytes} bytes"),
                reason,
            },
            Vmm::ImageTooLarge { memory_bytes, .. } => Self::BadOption {
                option: "memory".into(),
                value: format!("{memory_bytes} bytes"),
                reason,
            },
            Vmm::OutOfTableFrames { length_bytes, .. } => Self::BadOption {
                option: "memory".into(),
                value: format!("{length_bytes} bytes"),
                reason,
            },
            Vmm::BaseUnaligned { base }
            | Vmm::BaseTooHigh { base, .. }
            | Vmm::OverDevices { base, .. } => Self::BadOption {
                option: "base".into(),
                value: format!("{base:#x}"),
                reason,
            },
            Vmm::Argument { what, value, .. } => Self::BadOption {
                option: what.into(),
                value,
                reason,
            },
            Vmm::ArgumentsTooLarge { bytes, .. } => Self::BadOption {
                option: "args".into(),
                value: format!("{bytes} bytes"),
                reason,
            },
            Vmm::NoKvm { reason } => Self::Host { reason },
            Vmm::NotRestorable { .. }
            | Vmm::OtherVendor { .. }
            | Vmm::OtherKvm { .. }
            | Vmm::MissingFeatures { .. }
            | Vmm::OtherTsc { .. } => Self::Host { reason },
            _ => Self::Internal {
                operation: "running a virtual machine".into(),
                reason,
            },
        }
    }
}

impl From<dormouse_pager::Error> for Error {
    fn from(error: dormouse_pager::Error) -> Self {
        let reason = error.to_string();
        match error {
            dormouse_pager::Error::Unavailable { .. } => Self::Host { reason },
            _ => Self::Internal {
                operation: "paging guest memory".into(),
                reason,
            },
        }
    }
}
