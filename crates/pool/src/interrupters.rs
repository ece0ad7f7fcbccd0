//! Who can be stopped: what runs, boots or waits for a pool, guests as well as processes of guests.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Stops something; may be called at any time, and again.
type Stop = Box<dyn Fn() + Send>;

/// Stops all that runs of a pool.
#[derive(Debug, Clone, Default)]
pub(crate) struct Interrupters {
    entries: Arc<Mutex<Entries>>,
}

#[derive(Default)]
struct Entries {
    next: u64,
    known: HashMap<u64, Stop>,
}

impl std::fmt::Debug for Entries {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} can be stopped", self.known.len())
    }
}

/// Keeps one registered.
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

    /// Registers what stops one, for as long as the result lives.
    pub(crate) fn register(&self, stop: impl Fn() + Send + 'static) -> Registered {
        let mut entries = self.lock();
        entries.next += 1;
        let number = entries.next;
        entries.known.insert(number, Box::new(stop));
        Registered {
            all: self.clone(),
            number,
        }
    }

    /// Ends every run.
    pub(crate) fn interrupt_all(&self) {
        for stop in self.lock().known.values() {
            stop();
        }
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.all.lock().known.remove(&self.number);
    }
}
