//! The memory that the instances of a pool may hold together, and who holds how much of it.
//!
//! What counts is what an instance really holds: the pages that its clones wrote or had brought in
//! for them alone, and what the kernel keeps for a VM. The guest's size does not, and neither do
//! pages that all clones share; a function's own memory file is counted once.
//!
//! Whoever starts something reserves what such things took before. A run that needs more asks for it
//! while it runs, a little ahead of its page faults, and is ended where there is no more: by its own
//! pool, with a reason, and not by the kernel.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dormouse_snapshot::FunctionName;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::Error;
use crate::host_memory::{self, HostMemory};

/// What is counted in: small beside an instance, and few enough for any host in 32 bits.
const UNIT_BYTES: u64 = 64 << 10;

/// What a VM costs before a page of its guest is in: the kernel's own memory for VM, vCPU and
/// userfaultfd, and two threads. The rows `memory/available` of `dormouse bench engine` measure it;
/// this is what they say on hosts with shadow paging, which take the most, rounded up.
pub(crate) const INSTANCE_BYTES: u64 = 1 << 20;

/// What a function's first run is taken to need, until it asks for more.
pub(crate) const FIRST_RUN_BYTES: u64 = 2 << 20;

/// How much a run asks for at a time.
const STEP_BYTES: u64 = 1 << 20;

/// A pool's memory. A cheap handle.
#[derive(Debug, Clone)]
pub(crate) struct Budget {
    units: Arc<Semaphore>,
    limit: u32,
    host: Arc<HostMemory>,
    refused: Arc<Refused>,
}

/// How often somebody waited for memory in vain.
#[derive(Debug, Default)]
struct Refused {
    over_budget: AtomicU64,
    low_memory: AtomicU64,
}

/// A part of a [`Budget`], given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Charge {
    budget: Budget,
    held: Option<OwnedSemaphorePermit>,
}

fn units(bytes: u64) -> u32 {
    u32::try_from(bytes.div_ceil(UNIT_BYTES)).unwrap_or(u32::MAX)
}

impl Budget {
    /// `host` keeps anything new from starting while it is low.
    pub(crate) fn new(limit_bytes: u64, host: Arc<HostMemory>) -> Self {
        let limit = units(limit_bytes).max(1);
        Self {
            units: Arc::new(Semaphore::new(limit as usize)),
            limit,
            host,
            refused: Arc::default(),
        }
    }

    pub(crate) fn limit_bytes(&self) -> u64 {
        u64::from(self.limit) * UNIT_BYTES
    }

    /// What keeps anything new from starting.
    pub(crate) fn host(&self) -> &HostMemory {
        &self.host
    }

    pub(crate) fn held_bytes(&self) -> u64 {
        self.limit_bytes() - self.units.available_permits() as u64 * UNIT_BYTES
    }

    /// A charge of nothing.
    pub(crate) fn empty(&self) -> Charge {
        Charge {
            budget: self.clone(),
            held: None,
        }
    }

    /// Takes a part, if that much is left.
    pub(crate) fn try_charge(&self, bytes: u64) -> Option<Charge> {
        if self.host.is_low() {
            return None;
        }
        let mut charge = self.empty();
        charge.cover(bytes).then_some(charge)
    }

    /// Waits until that much is left, and takes it. Who asks first is served first.
    pub(crate) async fn charge(&self, bytes: u64) -> Charge {
        loop {
            self.host.until_enough().await;
            let held = Arc::clone(&self.units).acquire_many_owned(units(bytes));
            let charge = Charge {
                budget: self.clone(),
                // The semaphore is never closed.
                held: held.await.ok(),
            };
            // It may have become low meanwhile.
            if !self.host.is_low() {
                return charge;
            }
        }
    }

    /// Why nobody waits any longer for so much. It is counted.
    pub(crate) fn refuse(&self, name: &FunctionName, needed_bytes: u64) -> Error {
        let refusal = self.refusal(name, needed_bytes);
        let counter = match refusal {
            Error::LowMemory { .. } => &self.refused.low_memory,
            _ => &self.refused.over_budget,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        refusal
    }

    /// How often somebody waited in vain because the budget was held.
    pub(crate) fn refused_over_budget(&self) -> u64 {
        self.refused.over_budget.load(Ordering::Relaxed)
    }

    /// How often somebody waited in vain because the host had too little left.
    pub(crate) fn refused_low_memory(&self) -> u64 {
        self.refused.low_memory.load(Ordering::Relaxed)
    }

    /// Why there is no room for so much now.
    pub(crate) fn refusal(&self, name: &FunctionName, needed_bytes: u64) -> Error {
        if self.host.is_low() {
            Error::low_memory(name, needed_bytes)
        } else {
            Error::over_budget(name, needed_bytes, self.limit_bytes())
        }
    }
}

impl Charge {
    fn units(&self) -> u32 {
        let held = self.held.as_ref();
        held.map_or(0, |held| {
            u32::try_from(held.num_permits()).unwrap_or(u32::MAX)
        })
    }

    /// What it holds.
    pub(crate) fn bytes(&self) -> u64 {
        u64::from(self.units()) * UNIT_BYTES
    }

    /// Adds another charge to this one.
    pub(crate) fn absorb(&mut self, other: Self) {
        match (&mut self.held, other.held) {
            (Some(held), Some(more)) => held.merge(more),
            (held @ None, more) => *held = more,
            (Some(_), None) => {}
        }
    }

    /// Makes sure that it holds at least `bytes`. False where there is not that much left.
    pub(crate) fn cover(&mut self, bytes: u64) -> bool {
        let missing = units(bytes).saturating_sub(self.units());
        if missing == 0 {
            return true;
        }
        // A little more at once, so that a growing run does not ask for each page.
        let step = missing.max(units(STEP_BYTES));
        for wanted in [step, missing] {
            let units = Arc::clone(&self.budget.units);
            if let Ok(more) = units.try_acquire_many_owned(wanted) {
                let more = Some(more);
                let budget = self.budget.clone();
                self.absorb(Self { budget, held: more });
                return true;
            }
        }
        false
    }

    /// All that it holds, which it then does not.
    pub(crate) fn take(&mut self) -> Self {
        Self {
            budget: self.budget.clone(),
            held: self.held.take(),
        }
    }

    /// Gives back all but `bytes`.
    pub(crate) fn keep(&mut self, bytes: u64) {
        let excess = self.units().saturating_sub(units(bytes));
        if let Some(held) = &mut self.held {
            drop(held.split(excess as usize));
        }
    }
}

/// A charge that a run and its page faults, which come from another thread, share.
#[derive(Debug, Clone)]
pub(crate) struct SharedCharge(Arc<Mutex<Charge>>);

impl SharedCharge {
    pub(crate) fn new(charge: Charge) -> Self {
        Self(Arc::new(Mutex::new(charge)))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Charge> {
        // A charge is consistent between any two statements.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Three quarters of what the host, or this process's control group, has free now.
pub(crate) fn usual_limit_bytes() -> u64 {
    host_memory::available_bytes().unwrap_or(u64::MAX) / 4 * 3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn charges_are_taken_grown_and_given_back() {
        let budget = Budget::new(4 << 20, Arc::default());
        assert_eq!((budget.limit_bytes(), budget.held_bytes()), (4 << 20, 0));
        let mut run = budget.try_charge(1 << 20).unwrap();
        assert_eq!(budget.held_bytes(), 1 << 20);
        assert!(run.cover(1 << 20), "it has that");
        assert_eq!(budget.held_bytes(), 1 << 20);
        assert!(run.cover((1 << 20) + 1));
        assert_eq!(budget.held_bytes(), 2 << 20, "a step at a time");
        assert!(run.cover(4 << 20), "the rest");
        assert!(!run.cover((4 << 20) + 1), "there is no more");
        assert!(budget.try_charge(1).is_none());
        run.keep(100);
        assert_eq!(budget.held_bytes(), UNIT_BYTES);
        let mut other = budget.try_charge(1 << 20).unwrap();
        other.absorb(run);
        assert_eq!(budget.held_bytes(), (1 << 20) + UNIT_BYTES);
        other.keep(0);
        assert_eq!(budget.held_bytes(), 0);
        drop(other);
        assert_eq!(budget.held_bytes(), 0);
    }

    #[tokio::test]
    async fn who_waits_gets_what_is_given_back() {
        let budget = Budget::new(1 << 20, Arc::default());
        let held = budget.try_charge(1 << 20).unwrap();
        let waiting = tokio::spawn({
            let budget = budget.clone();
            async move { budget.charge(512 << 10).await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(held);
        let charge = waiting.await.unwrap();
        assert_eq!(budget.held_bytes(), 512 << 10);
        drop(charge);
    }

    #[tokio::test]
    async fn nothing_new_is_charged_while_the_host_is_low() {
        let memory = Arc::new(HostMemory::default());
        let budget = Budget::new(4 << 20, Arc::clone(&memory));
        let mut running = budget.try_charge(1 << 20).unwrap();
        memory.note(true);
        assert!(budget.try_charge(1).is_none());
        assert!(running.cover(2 << 20), "what runs goes on");
        let waiting = tokio::spawn({
            let budget = budget.clone();
            async move { budget.charge(1 << 20).await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        let name = FunctionName::new("f").unwrap();
        assert!(matches!(budget.refusal(&name, 1), Error::LowMemory { .. }));
        memory.note(false);
        drop(waiting.await.unwrap());
        assert!(matches!(budget.refusal(&name, 1), Error::OverBudget { .. }));
    }
}
