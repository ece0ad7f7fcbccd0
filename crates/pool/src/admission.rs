//! The way in: a request waits for its turn, then for memory, and gets an instance.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use dormouse_snapshot::FunctionName;
use tokio::sync::OwnedSemaphorePermit;

use crate::backoff::Leave;
use crate::budget::Charge;
use crate::cold::ColdStart;
use crate::error::Error;
use crate::function::Function;
use crate::group::{Group, Hold, Taken};
use crate::instance::{Instance, Order, Permits};
use crate::mailbox::Encoded;
use crate::message::{Outcome, Preparation, Request, Start};
use crate::pool::Pool;

/// The right to invoke a function once, with the instance to do it.
pub struct Lease {
    function: Arc<Function>,
    _hold: Hold,
    by: By,
    start: Start,
    preparation: Preparation,
    permits: Permits,
    leave: Leave,
    charge: Charge,
    arrival: Instant,
}

/// Who answers.
enum By {
    Instance(Instance),
    ColdStart(ColdStart),
}

impl std::fmt::Debug for Lease {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lease")
            .field("function", self.function.name())
            .finish_non_exhaustive()
    }
}

impl Pool {
    /// Waits for the right to invoke a function: for its turn, for memory, and for an instance. Opens
    /// the function's snapshot at its first use; where that cannot be restored on this host, boots
    /// the function cold from the stored image.
    ///
    /// # Errors
    /// [`Error::UnknownFunction`], [`Error::QueueFull`], [`Error::QueueTimeout`],
    /// [`Error::CrashLoop`], [`Error::BootLoop`], [`Error::OverBudget`], [`Error::LowMemory`], [`Error::Draining`],
    /// [`Error::Store`], [`Error::Host`].
    pub async fn checkout(&self, name: &str) -> Result<Lease, Error> {
        self.checkout_for(name, Start::Ready).await
    }

    /// The same, for an invocation that starts as it is told: for measurements.
    ///
    /// # Errors
    /// As [`Pool::checkout`]; for [`Start::Cold`] also [`Error::BadOption`] where the whole guest has
    /// no room in the budget.
    pub async fn checkout_for(&self, name: &str, start: Start) -> Result<Lease, Error> {
        let arrival = Instant::now();
        self.refuse_when_draining()?;
        let name = FunctionName::new(name)?;
        let open = match start {
            Start::First | Start::FirstUncached => None,
            _ => self.inner.functions.opened_for_use(&name),
        };
        let (group, preparation) = match open {
            Some(group) => (group, Preparation::default()),
            None => self.open(&name, start).await?,
        };
        // What these two go by is the same for all members.
        group.newest().refuse_while_resting()?;
        let permits = self.wait_for_turn(group.newest()).await?;
        let Taken { function, hold } = match group.take() {
            Ok(taken) => taken,
            Err(damage) => {
                self.close_damaged(&group, &name);
                return Err(damage);
            }
        };
        // Those before this one may have crashed meanwhile.
        let leave = function.enter()?;
        let (by, charge) = if start == Start::Cold {
            let turn = self.wait_to_boot(&function).await?;
            let memory_bytes = function.manifest().memory_bytes;
            let charge = self.memory_to_boot(&name, memory_bytes).await?;
            (By::ColdStart(ColdStart { turn }), charge)
        } else {
            let charge = self.wait_for_memory(&function).await?;
            (By::Instance(self.instance_of(&function).await?), charge)
        };
        Ok(Lease {
            function,
            _hold: hold,
            by,
            start,
            preparation,
            permits,
            leave,
            charge,
            arrival,
        })
    }

    /// Closes a function whose snapshot was found to be damaged, so that later requests open what is
    /// stored then, and nobody is in the way of its removal. Where its gate is held, whoever holds it
    /// or the next request does it.
    fn close_damaged(&self, group: &Arc<Group>, name: &FunctionName) {
        let slot = self.inner.functions.slot(name);
        if let Ok(_gate) = slot.gate.try_lock() {
            let open = slot.opened();
            if open.is_some_and(|open| Arc::ptr_eq(&open, group)) {
                slot.set(None);
            }
        };
    }

    /// An instance, in the function's next worker where the last one has just ended.
    async fn instance_of(&self, function: &Arc<Function>) -> Result<Instance, Error> {
        let limit = self.inner.config.queue_timeout;
        match tokio::time::timeout(limit, function.instance()).await {
            Ok(instance) => instance,
            Err(_) => {
                function.traffic.refuse();
                Err(timed_out(function, limit))
            }
        }
    }

    async fn wait_to_boot(&self, function: &Arc<Function>) -> Result<OwnedSemaphorePermit, Error> {
        let limit = self.inner.config.queue_timeout;
        let turn = Arc::clone(&self.inner.booting).acquire_owned();
        match tokio::time::timeout(limit, turn).await {
            Ok(turn) => turn.map_err(|_| Error::Draining),
            Err(_) => {
                function.traffic.refuse();
                Err(timed_out(function, limit))
            }
        }
    }

    async fn wait_for_turn(&self, function: &Arc<Function>) -> Result<Permits, Error> {
        let own = Arc::clone(&function.traffic.permits);
        let all = &self.inner.turns;
        if let Ok(own) = Arc::clone(&own).try_acquire_owned()
            && let Some(all) = all.try_take(function.name())
        {
            return Ok(Permits::new(function, own, all));
        }
        let config = &self.inner.config;
        let _waiting = Waiting::begin(function, config.max_queue)?;
        let both = async {
            // The function's own first: whoever waits there holds nothing that others need.
            let own: OwnedSemaphorePermit =
                own.acquire_owned().await.map_err(|_| Error::Draining)?;
            let all = all.take(function.name()).await;
            Ok(Permits::new(function, own, all))
        };
        match tokio::time::timeout(config.queue_timeout, both).await {
            Ok(permits) => permits,
            Err(_) => {
                function.traffic.refuse();
                Err(timed_out(function, config.queue_timeout))
            }
        }
    }

    /// Reserves what runs of the function took before. Where it is not there, idle instances give
    /// back the memory of their clones, and the request waits for that or for others to end.
    async fn wait_for_memory(&self, function: &Arc<Function>) -> Result<Charge, Error> {
        let budget = &self.inner.budget;
        // One request that took very much must not keep all others of the function out.
        let needed_bytes = function.expected_bytes().min(budget.limit_bytes() / 2);
        if let Some(charge) = budget.try_charge(needed_bytes) {
            return Ok(charge);
        }
        let _waiting = Waiting::begin(function, self.inner.config.max_queue)?;
        let waiting = async {
            let _turn = function.traffic.memory_turn.lock().await;
            self.wait_for(function.name(), needed_bytes).await
        };
        let charge = match tokio::time::timeout(self.inner.config.queue_timeout, waiting).await {
            Ok(charge) => charge,
            Err(_) => Err(budget.refuse(function.name(), needed_bytes)),
        };
        charge.map_err(|error| {
            function.traffic.refuse();
            error.retry_after(function.traffic.pace.retry_after())
        })
    }
}

impl Lease {
    /// Runs the function on `request`, for its configured time at most. Should the caller stop
    /// waiting, the invocation ends by itself and is discarded.
    ///
    /// # Errors
    /// [`Error::RequestTooLarge`], or what kept Dormouse (not the function) from running it.
    pub async fn invoke(self, request: Request) -> Result<Outcome, Error> {
        let request = match Encoded::new(&request) {
            Ok(request) => request,
            Err(error) => {
                if let By::Instance(instance) = self.by {
                    self.function.park(instance);
                }
                return Err(error);
            }
        };
        let order = Order {
            request,
            wants_fresh: self.start == Start::Restored,
            preparation: self.preparation,
            arrival: self.arrival,
            permits: self.permits,
            leave: self.leave,
            charge: self.charge,
        };
        let function = Arc::clone(&self.function);
        let (answer, is_clone) = match self.by {
            By::Instance(instance) => (instance.serve(self.function, order), true),
            By::ColdStart(cold) => (cold.send(self.function, order), false),
        };
        let outcome = answer.await.unwrap_or_else(|_| {
            let outcome = Err(Error::Internal {
                operation: "running a guest".into(),
                reason: "the instance's thread ended; see the log".to_owned(),
            });
            function.traffic.record(&outcome);
            outcome
        });
        // The damage may have been found while it ran. A cold start has nothing of the snapshot but
        // its image, which was verified.
        if is_clone {
            function.check_undamaged()?;
        }
        outcome
    }
}

fn timed_out(function: &Function, waited: Duration) -> Error {
    let retry_after = function.traffic.pace.retry_after();
    Error::queue_timeout(function.name(), waited).retry_after(retry_after)
}

/// Counts a waiting request for as long as it lives.
struct Waiting<'a> {
    function: &'a Function,
}

impl<'a> Waiting<'a> {
    /// Joins the queue.
    ///
    /// # Errors
    /// [`Error::QueueFull`] where `limit` wait already.
    fn begin(function: &'a Function, limit: usize) -> Result<Self, Error> {
        let waiting = Self { function };
        if function
            .traffic
            .pace
            .waiting
            .fetch_add(1, Ordering::Relaxed)
            >= limit
        {
            function.traffic.refuse();
            let retry_after = function.traffic.pace.retry_after();
            return Err(Error::queue_full(function.name(), limit).retry_after(retry_after));
        }
        Ok(waiting)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.function
            .traffic
            .pace
            .waiting
            .fetch_sub(1, Ordering::Relaxed);
    }
}
