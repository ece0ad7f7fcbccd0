//! A [`Machine`] on a thread of its own, and what becomes of it between requests.
//!
//! ```text
//!   build (ahead) ──► idle list ──── order ──► invoke ──► answer sent ──► recycle ──┐
//!                      ▲   │                                  │                     │
//!                      │   └─ idle for long:                  └─ crashed, timed out:│
//!                      │      memory given back,                 retired, a new one │
//!                      │      then ended if one too many         is built           │
//!                      └───────────────────────── parked ◄──────────────────────────┘
//! ```
//! An order carries the only handle of its instance, and the permits that it runs under. So an instance
//! is in one place at a time, and a caller that goes away takes nothing with it.
//!
//! Should Dormouse itself panic on an instance's thread, that is the end of this instance alone: what it
//! had unwinds with it, its caller learns that its reply will never come, and a new one is built.

use std::convert::Infallible;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, oneshot};

use crate::backoff::Leave;
use crate::budget::Charge;
use crate::deploy::elapsed_us;
use crate::error::{Error, Failure};
use crate::function::Function;
use crate::machine::Machine;
use crate::mailbox::Encoded;
use crate::message::{Outcome, Preparation};
use crate::pace::Pace;
use crate::turns::Turn;

/// The handle of an idle instance.
#[derive(Debug)]
pub(crate) struct Instance {
    number: u64,
    inbox: mpsc::Sender<Told>,
    /// Fails once the thread has ended and all that it had is gone.
    end: oneshot::Receiver<Infallible>,
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
enum Told {
    Serve {
        order: Box<Order>,
        reply: oneshot::Sender<Result<Outcome, Error>>,
        /// The instance's own handle, to park itself with.
        instance: Instance,
    },
    /// Give back the memory of the clone.
    GiveBack,
}

impl Instance {
    /// Starts an instance's thread, which builds its shell at once.
    ///
    /// # Errors
    /// Where no thread can be started.
    pub(crate) fn spawn(function: &Arc<Function>) -> Result<Self, Error> {
        static NEXT_NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NEXT_NUMBER.fetch_add(1, Ordering::Relaxed);
        let (sender, inbox) = mpsc::channel();
        let (alive, end) = oneshot::channel();
        let function_handle = Arc::downgrade(function);
        std::thread::Builder::new()
            .name(format!("vcpu {}", function.name()))
            .spawn(move || {
                // What is shared with other threads is consistent between any two statements.
                let serving = AssertUnwindSafe(|| serve(&function_handle, number, &inbox));
                if catch_unwind(serving).is_err() {
                    bury(&function_handle, number);
                }
                drop(alive);
            })
            .map_err(|e| Error::internal("starting a vCPU thread")(e.into()))?;
        Ok(Self {
            number,
            inbox: sender,
            end,
        })
    }

    /// Distinguishes the instance from all others in the process.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// Asks the idle instance for the memory of its clone.
    pub(crate) fn give_back(&self) {
        // Where the thread has died there is nothing to give back.
        let _ = self.inbox.send(Told::GiveBack);
    }

    /// Ends the idle instance. The receiver fails when it is gone.
    pub(crate) fn end(self) -> oneshot::Receiver<Infallible> {
        self.end
    }

    /// Hands a request to the instance. The receiver fails where its thread has died.
    pub(crate) fn send(self, order: Order) -> oneshot::Receiver<Result<Outcome, Error>> {
        let (reply, answer) = oneshot::channel();
        let inbox = self.inbox.clone();
        // Should the thread be gone, all of it is dropped here and with it the reply's sender.
        let _ = inbox.send(Told::Serve {
            order: Box::new(order),
            reply,
            instance: self,
        });
        answer
    }
}

/// How long an instance waits for a request before it gives back the memory of its clone.
const MEMORY_IDLE: Duration = Duration::from_secs(10);
/// How often it then asks whether it is one too many.
const INSTANCE_IDLE: Duration = Duration::from_secs(60);

/// Gives back the memory of the clone that waits, if one does.
fn give_back(function: &Weak<Function>, built: &mut Option<Machine>) {
    if let (Some(function), Some(machine)) = (function.upgrade(), built) {
        machine.make_blank(&function);
    }
}

/// Replaces an instance whose thread panicked.
fn bury(function: &Weak<Function>, number: u64) {
    let Some(function) = function.upgrade() else {
        return;
    };
    tracing::error!(function = %function.name(), "an instance's thread panicked and is replaced");
    function.forget(number);
    function.refill();
}

/// The thread: build, then serve until the last handle is gone or the instance is retired.
fn serve(function: &Weak<Function>, number: u64, inbox: &mpsc::Receiver<Told>) {
    let Some(built) = function.upgrade().map(|function| {
        #[cfg(test)]
        tests::pass(function.name(), tests::Step::Build);
        Machine::build(&function)
    }) else {
        return;
    };
    // What kept it from being built may be gone when it is needed.
    let mut built = built.ok();
    let mut patience = MEMORY_IDLE;
    loop {
        let (order, reply, instance) = match inbox.recv_timeout(patience) {
            Ok(Told::Serve {
                order,
                reply,
                instance,
            }) => (order, reply, instance),
            Ok(Told::GiveBack) => {
                give_back(function, &mut built);
                continue;
            }
            Err(RecvTimeoutError::Disconnected) => return,
            Err(RecvTimeoutError::Timeout) => {
                give_back(function, &mut built);
                if patience == INSTANCE_IDLE
                    && let Some(function) = function.upgrade()
                {
                    function.retire_idle(number);
                }
                patience = INSTANCE_IDLE;
                continue;
            }
        };
        patience = MEMORY_IDLE;
        let Some(function) = function.upgrade() else {
            return;
        };
        let Order {
            request,
            wants_fresh,
            mut preparation,
            arrival,
            permits,
            mut leave,
            charge,
        } = *order;
        let outcome = built
            .take()
            .map_or_else(|| Machine::build(&function), Ok)
            .and_then(|mut machine| {
                if wants_fresh && !machine.is_blank() {
                    let begun = Instant::now();
                    machine.make_blank(&function);
                    preparation.clear_us = Some(elapsed_us(begun));
                }
                machine.charge.lock().absorb(charge);
                #[cfg(test)]
                tests::pass(function.name(), tests::Step::Run);
                let outcome = machine.invoke(&function, &request, arrival);
                built = Some(machine);
                outcome
            })
            .map(|outcome| outcome.prepared(preparation));
        let is_healthy = outcome
            .as_ref()
            .is_ok_and(|outcome| matches!(outcome.result, Ok(_) | Err(Failure::Reported { .. })));
        function.traffic.record(&outcome);
        leave.settle(&outcome);
        // Nobody waits for what comes after the answer.
        let _ = reply.send(outcome);
        let machine = built
            .as_mut()
            .filter(|machine| is_healthy && machine.is_alive());
        let Some(machine) = machine else {
            drop(permits);
            function.refill();
            return;
        };
        #[cfg(test)]
        tests::pass(function.name(), tests::Step::Recycle);
        let learned = match machine.recycle(&function) {
            Ok(learned) => learned,
            Err(error) => {
                tracing::warn!(function = %function.name(), %error, "an instance was not recycled");
                if !machine.is_alive() {
                    drop(permits);
                    function.refill();
                    return;
                }
                None
            }
        };
        // Parked before the permits are back: who gets one finds an instance.
        function.park(instance);
        drop(permits);
        if let Some(set) = learned {
            function.store_working_set(&set);
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
