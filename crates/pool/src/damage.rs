//! Snapshots that were found to be damaged: nothing is answered from them any more.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dormouse_snapshot::SnapshotRef;

use crate::error::Error;

/// The damaged snapshots of a pool.
#[derive(Debug, Clone, Default)]
pub(crate) struct Damages {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// How many are known: what requests look at.
    count: AtomicU64,
    known: Mutex<HashMap<SnapshotRef, Damage>>,
}

/// What is damaged, and how.
#[derive(Debug)]
struct Damage {
    path: PathBuf,
    what: String,
}

impl Damages {
    fn lock(&self) -> MutexGuard<'_, HashMap<SnapshotRef, Damage>> {
        // The map is consistent between any two statements.
        self.inner
            .known
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note of `error`, if it tells of damage. True where that is news.
    pub(crate) fn note(&self, snapshot: &SnapshotRef, error: &dormouse_snapshot::Error) -> bool {
        let dormouse_snapshot::Error::Damaged { path, what } = error else {
            return false;
        };
        let damage = Damage {
            path: path.clone(),
            what: what.clone(),
        };
        let is_news = self.lock().insert(snapshot.clone(), damage).is_none();
        if is_news {
            self.inner.count.fetch_add(1, Ordering::Release);
            tracing::error!(%snapshot, %error, "a snapshot is damaged and is not used any more");
        }
        is_news
    }

    /// Refuses a snapshot that is known to be damaged.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub(crate) fn check(&self, snapshot: &SnapshotRef) -> Result<(), Error> {
        if self.count() == 0 {
            return Ok(());
        }
        match self.lock().get(snapshot) {
            None => Ok(()),
            Some(Damage { path, what }) => Err(Error::Store(dormouse_snapshot::Error::Damaged {
                path: path.clone(),
                what: what.clone(),
            })),
        }
    }

    /// How many were found.
    pub(crate) fn count(&self) -> u64 {
        self.inner.count.load(Ordering::Acquire)
    }
}
