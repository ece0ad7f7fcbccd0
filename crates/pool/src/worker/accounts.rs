//! What the instances of a worker may hold: the pool's memory, lent to another process.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::process::Process;
use crate::budget::{Charge, INSTANCE_BYTES, SharedCharge};
use crate::paging::STAGED_SETS;

/// The charges of a worker's instances, by their numbers, and of what is staged for all of them.
#[derive(Debug)]
pub(crate) struct Accounts {
    instances: Mutex<HashMap<u64, SharedCharge>>,
    staged: SharedCharge,
    /// The most that an instance can have a use for.
    most_bytes: u64,
}

/// An entry in a worker's accounts, for as long as it lives.
pub(crate) struct Account {
    accounts: Arc<Accounts>,
    number: u64,
    process: Weak<Process>,
}

impl Accounts {
    /// For instances of a guest with so much memory.
    pub(super) fn new(staged: Charge, memory_bytes: u64) -> Self {
        Self {
            instances: Mutex::default(),
            staged: SharedCharge::new(staged),
            most_bytes: INSTANCE_BYTES.saturating_add(memory_bytes),
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, SharedCharge>> {
        // The map is consistent between any two statements.
        self.instances
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn open(
        self: &Arc<Self>,
        number: u64,
        charge: SharedCharge,
        process: &Arc<Process>,
    ) -> Account {
        self.lock().insert(number, charge);
        Account {
            accounts: Arc::clone(self),
            number,
            process: Arc::downgrade(process),
        }
    }

    /// Takes as much from the budget as lets the account hold `bytes`, if that can be had, and no more than
    /// a guest can hold. Tells what it holds then.
    pub(super) fn cover(&self, instance: Option<u64>, bytes: u64) -> u64 {
        let (charge, most_bytes) = match instance {
            Some(number) => (self.lock().get(&number).cloned(), self.most_bytes),
            None => {
                let most_bytes = self.most_bytes.saturating_mul(STAGED_SETS as u64);
                (Some(self.staged.clone()), most_bytes)
            }
        };
        let Some(charge) = charge else {
            return 0;
        };
        let mut charge = charge.lock();
        if bytes <= most_bytes {
            charge.cover(bytes);
        }
        charge.bytes()
    }

    /// Gives back what was staged in a worker that has ended.
    pub(super) fn forget_staged(&self) {
        self.staged.lock().keep(0);
    }
}

impl Account {
    /// The worker has answered a request.
    pub(crate) fn note_use(&self) {
        if let Some(process) = self.process.upgrade() {
            process.note_use();
        }
    }

    /// Ends the worker that the account is of.
    pub(crate) fn end_worker(&self) {
        if let Some(process) = self.process.upgrade() {
            process.end();
        }
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        self.accounts.lock().remove(&self.number);
    }
}
