//! Waiting for memory: for a run, for a boot, and while the host itself has none left.

use std::sync::Arc;
use std::time::Duration;

use dormouse_snapshot::FunctionName;
use tokio::sync::OwnedSemaphorePermit;

use crate::budget::Charge;
use crate::error::Error;
use crate::pool::{Inner, Pool};

impl Pool {
    /// The right to deploy or to warm. Each holds an image or a guest, also once its client is gone.
    ///
    /// # Errors
    /// [`Error::DeploysFull`].
    pub(crate) fn place_to_deploy(&self) -> Result<OwnedSemaphorePermit, Error> {
        let place = Arc::clone(&self.inner.deploys).try_acquire_owned();
        place.map_err(|_| Error::deploys_full(self.inner.config.max_deploys))
    }

    /// Reserves a guest's whole memory, of which nobody knows yet how much its start will take.
    pub(crate) async fn memory_to_boot(
        &self,
        name: &FunctionName,
        bytes: u64,
    ) -> Result<Charge, Error> {
        let budget_bytes = self.inner.budget.limit_bytes();
        if bytes > budget_bytes {
            return Err(Error::BadOption {
                option: "memory".into(),
                value: format!("{bytes} bytes"),
                reason: format!(
                    "all instances together may hold {budget_bytes} bytes (--memory-budget)"
                ),
            });
        }
        // Clones that wait are worth more than the room that nobody needs.
        match self.inner.budget.try_charge(bytes) {
            Some(charge) => Ok(charge),
            None => self.wait_for(name, bytes).await,
        }
    }

    /// Asks idle instances for their clones' memory and waits until there is as much as that. Where it
    /// is not there at once, functions that nobody uses are closed for it, one after the other.
    pub(crate) async fn wait_for(&self, name: &FunctionName, bytes: u64) -> Result<Charge, Error> {
        /// Who still ran, or rolled back, when it was asked the last time may be idle by now.
        const ASK_EVERY: Duration = Duration::from_millis(20);

        let budget = &self.inner.budget;
        let charging = async {
            let charge = budget.charge(bytes);
            tokio::pin!(charge);
            loop {
                for (_, function) in self.inner.functions.all() {
                    function.reclaim();
                }
                if let Ok(charge) = tokio::time::timeout(ASK_EVERY, &mut charge).await {
                    return charge;
                }
                if let Some(closed) = self.inner.functions.close_idle() {
                    // Giving memory back takes its time.
                    tokio::task::spawn_blocking(move || drop(closed));
                }
            }
        };
        let charge = tokio::time::timeout(self.inner.config.queue_timeout, charging).await;
        charge.map_err(|_| budget.refuse(name, bytes))
    }
}

impl Inner {
    /// Ends all instances that are idle: they hold more than the clones that they can give back.
    pub(crate) fn end_idle_instances(&self) {
        for (_, function) in self.functions.all() {
            function.shed_idle();
        }
    }

    /// Has instances that wait for long give back what they hold.
    pub(crate) fn rest_idle_instances(&self) {
        for (_, function) in self.functions.all() {
            function.rest();
        }
    }
}
