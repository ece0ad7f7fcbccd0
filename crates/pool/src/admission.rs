//! The way in: a request waits for its turn, then for memory, and gets an instance.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use dormouse_snapshot::FunctionName;
use tokio::sync::OwnedSemaphorePermit;

use crate::budget::Charge;
use crate::error::Error;
use crate::function::Function;
use crate::instance::{Instance, Order, Permits};
use crate::mailbox::Encoded;
use crate::message::{Outcome, Request, StartType};
use crate::pool::Pool;

/// The right to invoke a function once, with the instance to do it.
pub struct Lease {
    function: Arc<Function>,
    instance: Instance,
    permits: Permits,
    charge: Charge,
    start: StartType,
    arrival: Instant,
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
    /// [`Error::OverBudget`], [`Error::Draining`], [`Error::Store`], [`Error::Host`].
    pub async fn checkout(&self, name: &str) -> Result<Lease, Error> {
        let arrival = Instant::now();
        self.refuse_when_draining()?;
        let name = FunctionName::new(name)?;
        let (function, start) = match self.inner.functions.opened(&name) {
            Some(function) => (function, StartType::Restored),
            None => self.open(&name).await?,
        };
        let permits = self.wait_for_turn(&function).await?;
        let charge = self.wait_for_memory(&function).await?;
        let instance = function.instance()?;
        Ok(Lease {
            function,
            instance,
            permits,
            charge,
            start,
            arrival,
        })
    }

    async fn wait_for_turn(&self, function: &Arc<Function>) -> Result<Permits, Error> {
        let own = Arc::clone(&function.permits);
        let all = Arc::clone(&self.inner.permits);
        if let Ok(own) = Arc::clone(&own).try_acquire_owned()
            && let Ok(all) = Arc::clone(&all).try_acquire_owned()
        {
            return Ok(Permits::new(function, own, all));
        }
        let config = &self.inner.config;
        let _waiting = Waiting::begin(function, config.max_queue)?;
        let both = async {
            // The function's own first: whoever waits there holds nothing that others need.
            let own: OwnedSemaphorePermit =
                own.acquire_owned().await.map_err(|_| Error::Draining)?;
            let all = all.acquire_owned().await.map_err(|_| Error::Draining)?;
            Ok(Permits::new(function, own, all))
        };
        match tokio::time::timeout(config.queue_timeout, both).await {
            Ok(permits) => permits,
            Err(_) => {
                function.refuse();
                Err(Error::queue_timeout(function.name(), config.queue_timeout))
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
        let charge = self.wait_for(function.name(), needed_bytes).await;
        charge.inspect_err(|_| function.refuse())
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
                self.function.park(self.instance);
                return Err(error);
            }
        };
        let answer = self.instance.send(Order {
            request,
            start: self.start,
            arrival: self.arrival,
            permits: self.permits,
            charge: self.charge,
        });
        answer.await.unwrap_or_else(|_| {
            Err(Error::Internal {
                operation: "running a guest",
                reason: "the instance's thread ended; see the log".to_owned(),
            })
        })
    }
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
        if function.waiting.fetch_add(1, Ordering::Relaxed) >= limit {
            function.refuse();
            return Err(Error::queue_full(function.name(), limit));
        }
        Ok(waiting)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.function.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}
