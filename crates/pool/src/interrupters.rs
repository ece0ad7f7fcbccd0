//! Who can be stopped: the guests of a pool that run, boot or wait.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dormouse_vmm::Interrupter;

/// The interrupters of all guests of a pool.
#[derive(Debug, Clone, Default)]
pub(crate) struct Interrupters {
    entries: Arc<Mutex<Entries>>,
}

#[derive(Debug, Default)]
struct Entries {
    next: u64,
    known: HashMap<u64, Interrupter>,
}

/// Keeps one guest registered.
#[derive(Debug)]
pub(crate) struct Registered {
    all: Interrupters,
    number: u64,
}

impl Interrupters {
    fn lock(&self) -> MutexGuard<'_, Entries> {
        // The map is consistent between any two statements.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers a guest for as long as the result lives.
    pub(crate) fn register(&self, interrupter: Interrupter) -> Registered {
        let mut entries = self.lock();
        entries.next += 1;
        let number = entries.next;
        entries.known.insert(number, interrupter);
        Registered {
            all: self.clone(),
            number,
        }
    }

    /// Ends every run.
    pub(crate) fn interrupt_all(&self) {
        for interrupter in self.lock().known.values() {
            interrupter.interrupt();
        }
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.all.lock().known.remove(&self.number);
    }
}
