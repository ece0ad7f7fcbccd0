//! Functions by name, and who may change one.
//!
//! Opening, publishing and removing a function are done one at a time ([`Slot::gate`]), each by a
//! task of its own: whoever waits for it may go away without leaving half of it undone.
//!
//! A function stays open, with its snapshot's memory, until others need that memory.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use dormouse_snapshot::FunctionName;

use crate::backoff::FailedBoots;
use crate::error::Error;
use crate::group::Group;

/// How long nobody has used a function that is closed where others need its memory.
const IDLE: Duration = Duration::from_secs(1);

/// The functions that were used, by name.
#[derive(Default)]
pub(crate) struct Catalog {
    slots: RwLock<HashMap<FunctionName, Arc<Slot>>>,
}

/// The place of one function.
#[derive(Default)]
pub(crate) struct Slot {
    /// Held by who opens, publishes or removes the function.
    pub(crate) gate: tokio::sync::Mutex<FailedBoots>,
    open: RwLock<Option<Arc<Group>>>,
    waiting: AtomicUsize,
    /// When it was opened, or a request came for it, last.
    used: Mutex<Option<Instant>>,
}

impl Catalog {
    /// The function, if it is open.
    pub(crate) fn opened(&self, name: &FunctionName) -> Option<Arc<Group>> {
        let slots = self.slots.read().unwrap_or_else(PoisonError::into_inner);
        slots.get(name)?.opened()
    }

    /// The same, for a request.
    pub(crate) fn opened_for_use(&self, name: &FunctionName) -> Option<Arc<Group>> {
        let slots = self.slots.read().unwrap_or_else(PoisonError::into_inner);
        let slot = slots.get(name)?;
        slot.note_use();
        slot.opened()
    }

    /// Closes the function that was used the longest ago, if that is [`IDLE`] ago and nothing of it runs or
    /// waits. The memory of its snapshot goes with the last who has it, and the next request opens it
    /// again. Nothing where there is no such function.
    pub(crate) fn close_idle(&self) -> Option<Arc<Group>> {
        let slots = self.slots.read().unwrap_or_else(PoisonError::into_inner);
        let idle = slots
            .values()
            .filter_map(|slot| Some((slot.idle_since()?, slot)));
        let (_, slot) = idle.min_by_key(|(since, _)| *since)?;
        // Whoever holds the gate uses it.
        let _gate = slot.gate.try_lock().ok()?;
        let closed = slot.opened();
        slot.set(None);
        closed
    }

    /// The function's place, made if there is none yet. For names that are stored or about to be.
    pub(crate) fn slot(&self, name: &FunctionName) -> Arc<Slot> {
        let mut slots = self.slots.write().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(slots.entry(name.clone()).or_default())
    }

    /// Forgets the place of a function that is not open and that nobody has in hand, so that names that
    /// come and go leave nothing.
    pub(crate) fn forget(&self, name: &FunctionName) {
        let mut slots = self.slots.write().unwrap_or_else(PoisonError::into_inner);
        let is_unused = |slot: &Arc<Slot>| Arc::strong_count(slot) == 1 && slot.opened().is_none();
        if slots.get(name).is_some_and(is_unused) {
            slots.remove(name);
        }
    }

    /// All open functions, by name.
    pub(crate) fn all(&self) -> Vec<(FunctionName, Arc<Group>)> {
        let slots = self.slots.read().unwrap_or_else(PoisonError::into_inner);
        let open = slots
            .iter()
            .filter_map(|(name, slot)| Some((name.clone(), slot.opened()?)));
        let mut all: Vec<_> = open.collect();
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all
    }

    /// Closes all functions.
    pub(crate) fn clear(&self) {
        self.slots
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
    }
}

impl Slot {
    /// The function, if it is open.
    pub(crate) fn opened(&self) -> Option<Arc<Group>> {
        self.open
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn note_use(&self) {
        *self.used.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// Since when nobody has used the function, if it is open and that is long enough.
    fn idle_since(&self) -> Option<Instant> {
        let group = self.opened()?;
        let used = *self.used.lock().unwrap_or_else(PoisonError::into_inner);
        used.filter(|used| used.elapsed() >= IDLE && !group.newest().traffic.pace.is_busy())
    }

    /// Opens or closes the function. Only for the holder of the gate.
    pub(crate) fn set(&self, group: Option<Arc<Group>>) {
        self.note_use();
        *self.open.write().unwrap_or_else(PoisonError::into_inner) = group;
    }

    /// Counts one who waits for the function to be opened, up to `limit`.
    ///
    /// # Errors
    /// [`Error::QueueFull`].
    pub(crate) fn wait(
        self: &Arc<Self>,
        name: &FunctionName,
        limit: usize,
    ) -> Result<Waiter, Error> {
        let waiter = Waiter {
            slot: Arc::clone(self),
        };
        if self.waiting.fetch_add(1, Ordering::Relaxed) >= limit {
            return Err(Error::queue_full(name, limit));
        }
        Ok(waiter)
    }
}

/// One who waits for a function to be opened.
pub(crate) struct Waiter {
    slot: Arc<Slot>,
}

impl Drop for Waiter {
    fn drop(&mut self) {
        self.slot.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use dormouse_snapshot::Store;

    use super::*;
    use crate::{FunctionConfig, Pool, PoolConfig};

    #[tokio::test]
    async fn names_that_come_and_go_leave_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let pool = Pool::new(Store::open(folder.path()).unwrap(), PoolConfig::default());
        let places = || pool.inner.functions.slots.read().unwrap().len();
        for number in 0..5 {
            let name = format!("f{number}");
            let deploy = pool.deploy(&name, "no image".into(), FunctionConfig::default());
            deploy.await.unwrap_err();
            assert!(pool.remove(&name).await.is_err());
            assert_eq!(places(), 0);
        }
        let name = FunctionName::new("held").unwrap();
        let held = pool.inner.functions.slot(&name);
        pool.inner.functions.forget(&name);
        assert_eq!(places(), 1);
        drop(held);
        pool.inner.functions.forget(&name);
        assert_eq!(places(), 0);
    }
}
