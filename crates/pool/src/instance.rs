//! The handle of an instance: a [`Machine`](crate::machine::Machine) on a thread of its own, here or in
//! a worker process, and what becomes of it between requests.
//!
//! ```text
//!   build (ahead) ──► idle list ──── serve ──► invoke ──► answer sent ──► recycle ──┐
//!                      ▲   │                                  │                     │
//!                      │   └─ idle for long:                  └─ crashed, timed out:│
//!                      │      memory given back,                 retired, a new one │
//!                      │      then ended if one too many         is built           │
//!                      └───────────────────────── parked ◄──────────────────────────┘
//! ```
//! Whoever serves a request owns the only handle of its instance, and the permits that it runs under. So
//! an instance is in one place at a time, and a caller that goes away takes nothing with it.
//!
//! The two sides tell each other [`Told`] and [`Said`], through a channel or a socket ([`Link`]).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use crate::backoff::Leave;
use crate::budget::{Charge, INSTANCE_BYTES, SharedCharge};
use crate::error::Error;
use crate::function::Function;
use crate::ids::Ids;
use crate::mailbox::Encoded;
use crate::message::{Outcome, Preparation};
use crate::moment::Moment;
use crate::pace::Pace;
use crate::tasks::blocking;
use crate::template::Known;
use crate::turns::Turn;
use crate::worker::{Account, Fault, Link};

/// The handle of an idle instance.
pub(crate) struct Instance {
    number: u64,
    link: Link,
    /// The memory that it may hold.
    charge: SharedCharge,
    /// Where its process asks for more of that.
    account: Option<Account>,
    idle_since: Instant,
    is_blank: bool,
}

/// The right to run one invocation: counted by the function, and by the whole pool.
pub(crate) struct Permits {
    _function: OwnedSemaphorePermit,
    _pool: Turn,
    pace: Arc<Pace>,
    since: Instant,
}

impl Permits {
    pub(crate) fn new(function: &Function, own: OwnedSemaphorePermit, all: Turn) -> Self {
        let pace = Arc::clone(&function.traffic.pace);
        pace.running.fetch_add(1, Ordering::Relaxed);
        Self {
            _function: own,
            _pool: all,
            pace,
            since: Instant::now(),
        }
    }
}

impl Drop for Permits {
    fn drop(&mut self) {
        self.pace.running.fetch_sub(1, Ordering::Relaxed);
        self.pace.ended(self.since.elapsed());
    }
}

/// What an instance is to do with a request.
pub(crate) struct Order {
    pub(crate) request: Encoded,
    /// Whether a clone that waits must not be used.
    pub(crate) wants_fresh: bool,
    /// What was done for it so far.
    pub(crate) preparation: Preparation,
    pub(crate) arrival: Instant,
    pub(crate) permits: Permits,
    pub(crate) leave: Leave,
    /// Memory reserved for the run.
    pub(crate) charge: Charge,
}

/// What an instance is told.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Told {
    Serve(Box<Job>),
    /// Give back the memory of the clone.
    GiveBack,
}

/// A request on its way to a guest.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Job {
    pub(crate) request: Encoded,
    pub(crate) wants_fresh: bool,
    pub(crate) ids: Ids,
    pub(crate) arrival: Moment,
    /// What the instance may hold, all in all, until it asks for more.
    pub(crate) granted_bytes: u64,
}

/// What an instance says. After [`Said::Done`] it says how it ended up.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Said {
    Done {
        outcome: Box<Result<Outcome, Fault>>,
        /// How long a clone that waited had to be cleared away, if it had to.
        clear_us: Option<u64>,
    },
    /// It can take another request.
    Parked(Parked),
    /// It has ended.
    Retired,
}

/// How an instance waits for the next request.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Parked {
    pub(crate) held_bytes: u64,
    /// What the run wrote, as far as that is known.
    pub(crate) wrote_bytes: Option<u64>,
    pub(crate) known: Known,
    /// A working set that became known with this run.
    pub(crate) learned: Option<dormouse_snapshot::WorkingSet>,
    pub(crate) is_blank: bool,
}

/// How long an instance waits for a request before it gives back the memory of its clone.
const MEMORY_IDLE: Duration = Duration::from_secs(10);
/// How long before it ends, if it is one too many.
const INSTANCE_IDLE: Duration = Duration::from_secs(60);

/// How long an instance may take for a request beyond its function's own time: for its clone, and for
/// what comes after the answer.
const BEYOND_RUN: Duration = Duration::from_secs(30);

impl Instance {
    /// A number that distinguishes an instance from all others in the process.
    pub(crate) fn next_number() -> u64 {
        static NEXT_NUMBER: AtomicU64 = AtomicU64::new(0);
        NEXT_NUMBER.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn new(
        number: u64,
        link: Link,
        charge: SharedCharge,
        account: Option<Account>,
    ) -> Self {
        Self {
            number,
            link,
            charge,
            account,
            idle_since: Instant::now(),
            is_blank: true,
        }
    }

    /// Whether anybody is at the other end.
    pub(crate) fn is_alive(&self) -> bool {
        self.link.is_open()
    }

    /// Asks the idle instance for the memory of its clone.
    pub(crate) fn give_back(&mut self) {
        // Where it has died there is nothing to give back.
        if !self.is_blank && self.link.tell_soon(Told::GiveBack) {
            self.is_blank = true;
        }
        // A moment before it is so.
        self.charge.lock().keep(INSTANCE_BYTES);
    }

    /// Does what is due with an instance that waits. False where it has waited for so long that it should
    /// end, if it is one too many.
    pub(crate) fn rest(&mut self) -> bool {
        let idle = self.idle_since.elapsed();
        if idle >= MEMORY_IDLE {
            self.give_back();
        }
        idle < INSTANCE_IDLE
    }

    /// Ends the idle instance, and waits until all that it had is gone.
    pub(crate) async fn end(self) {
        self.link.end().await;
    }

    /// Ends the worker process of an instance that is silent for too long. It ends its runs itself, at their
    /// deadlines: one that does not is no instance any more, whatever it is.
    fn end_worker(&self) {
        if let Some(account) = &self.account {
            account.end_worker();
        }
    }

    /// Has the instance serve a request. The receiver fails only with the runtime.
    pub(crate) fn serve(
        self,
        function: Arc<Function>,
        order: Order,
    ) -> oneshot::Receiver<Result<Outcome, Error>> {
        let (reply, answer) = oneshot::channel();
        tokio::spawn(self.see_through(function, order, reply));
        answer
    }

    /// What came of a request that the instance was told of, and how long a clone had to be cleared away
    /// for it.
    async fn outcome(
        &mut self,
        function: &Function,
        limit: Duration,
    ) -> Result<(Outcome, Option<u64>), Error> {
        match tokio::time::timeout(limit, self.link.hear()).await {
            Ok(Some(Said::Done { outcome, clear_us })) => {
                let outcome = (*outcome)?;
                outcome.check()?;
                if let Some(account) = &self.account {
                    account.note_use();
                }
                Ok((outcome, clear_us))
            }
            Ok(Some(Said::Retired)) => Err(Error::Internal {
                operation: "running a guest".into(),
                reason: "the instance's thread ended; see the log".to_owned(),
            }),
            // Gone without a word, silent, or nonsense: nothing of it is to be relied on.
            Ok(Some(Said::Parked(_)) | None) | Err(_) => {
                self.end_worker();
                Err(function.lost())
            }
        }
    }

    /// Has a request run: here, or in another instance where this one died before it saw the request.
    async fn run(
        &mut self,
        function: &Function,
        mut job: Box<Job>,
        charge: Charge,
    ) -> Result<(Outcome, Option<u64>), Error> {
        const TRIES: usize = 3;
        let limit = Duration::from_millis(function.config().timeout_ms) + BEYOND_RUN;
        self.charge.lock().absorb(charge);
        for _ in 0..TRIES {
            job.granted_bytes = self.charge.lock().bytes();
            let told = tokio::time::timeout(limit, self.link.tell(Told::Serve(job)));
            job = match told.await {
                Ok(Ok(())) => return self.outcome(function, limit).await,
                Ok(Err(Told::Serve(unseen))) => unseen,
                Ok(Err(Told::GiveBack)) | Err(_) => {
                    self.end_worker();
                    return Err(function.lost());
                }
            };
            let other = function.instance().await?;
            let held = self.charge.lock().take();
            other.charge.lock().absorb(held);
            *self = other;
        }
        Err(function.lost())
    }

    /// A request from its order until the instance is parked, or gone.
    async fn see_through(
        mut self,
        function: Arc<Function>,
        order: Order,
        reply: oneshot::Sender<Result<Outcome, Error>>,
    ) {
        let Order {
            request,
            wants_fresh,
            preparation,
            arrival,
            permits,
            mut leave,
            charge,
        } = order;
        let job = Job {
            request,
            wants_fresh,
            ids: Ids::next(),
            arrival: Moment::of(arrival),
            granted_bytes: 0,
        };
        let run = self.run(&function, Box::new(job), charge).await;
        let outcome = run.map(|(outcome, clear_us)| {
            outcome.prepared(Preparation {
                clear_us: clear_us.or(preparation.clear_us),
                ..preparation
            })
        });
        function.traffic.record(&outcome);
        leave.settle(&outcome);
        // Nobody waits for what comes after the answer.
        let _ = reply.send(outcome);
        let said = tokio::time::timeout(BEYOND_RUN, self.link.hear()).await;
        let Ok(Some(Said::Parked(parked))) = said else {
            if said.is_err() {
                self.end_worker();
            }
            drop(self);
            drop(permits);
            function.refill();
            return;
        };
        self.charge.lock().keep(parked.held_bytes);
        self.is_blank = parked.is_blank;
        self.idle_since = Instant::now();
        function.note(&parked);
        // Before the permits are back: who waits until nothing runs has this to wait for as well.
        let learned = match parked.learned {
            Some(set) => {
                let storing = Arc::clone(&function.shared().storing);
                Some((set, storing.read_owned().await))
            }
            None => None,
        };
        // Parked before the permits are back: who gets one finds an instance.
        function.park(self);
        drop(permits);
        if let Some((set, storing)) = learned {
            let stored = blocking(move || {
                function.store_working_set(&set);
                drop(storing);
                Ok(())
            });
            // It logs what keeps it.
            let _ = stored.await;
        }
    }
}

impl std::fmt::Debug for Instance {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Instance")
            .field("number", &self.number)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
pub(crate) mod tests;
