//! Snapshots that were found to be damaged: nothing is answered from them any more, until they are
//! whole again.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use dormouse_snapshot::SnapshotRef;

use crate::error::Error;

/// How long a damaged snapshot is refused without another look at it: all of it has to be read.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The damaged snapshots of a pool.
#[derive(Debug, Clone, Default)]
pub(crate) struct Damages {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// How many were found, those included that are whole again: what requests look at.
    count: AtomicU64,
    known: Mutex<HashMap<SnapshotRef, Known>>,
}

#[derive(Debug)]
struct Known {
    damage: Damage,
    seen: Instant,
}

/// What is damaged, and how.
#[derive(Debug, Clone)]
struct Damage {
    path: PathBuf,
    what: String,
}

impl From<Damage> for Error {
    fn from(Damage { path, what }: Damage) -> Self {
        Self::Store(dormouse_snapshot::Error::Damaged { path, what })
    }
}

impl Damages {
    fn lock(&self) -> MutexGuard<'_, HashMap<SnapshotRef, Known>> {
        // The map is consistent between any two statements.
        self.inner
            .known
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a snapshot that is about to be loaded was damaged, and has to be verified first of all.
    ///
    /// # Errors
    /// [`Error::Store`] where that was seen only now.
    pub(crate) fn was_damaged(&self, snapshot: &SnapshotRef) -> Result<bool, Error> {
        match self.lock().get(snapshot) {
            None => Ok(false),
            Some(known) if known.seen.elapsed() >= LOOK_EVERY => Ok(true),
            Some(known) => Err(known.damage.clone().into()),
        }
    }

    /// Takes back what is known of a snapshot that is whole now.
    pub(crate) fn forget(&self, snapshot: &SnapshotRef) {
        if self.lock().remove(snapshot).is_some() {
            tracing::info!(%snapshot, "a snapshot that was damaged is whole again");
        }
    }

    /// How many were found.
    pub(crate) fn count(&self) -> u64 {
        self.inner.count.load(Ordering::Acquire)
    }
}

/// What is known of one loading of a snapshot. It stays damaged where the snapshot is replaced.
#[derive(Debug, Clone)]
pub(crate) struct Health {
    damages: Damages,
    snapshot: SnapshotRef,
    found: Arc<OnceLock<Damage>>,
}

impl Health {
    pub(crate) fn new(damages: &Damages, snapshot: &SnapshotRef) -> Self {
        Self {
            damages: damages.clone(),
            snapshot: snapshot.clone(),
            found: Arc::default(),
        }
    }

    /// Takes note of `error`, if it tells of damage.
    pub(crate) fn note(&self, error: &dormouse_snapshot::Error) {
        if let dormouse_snapshot::Error::Damaged { path, what } = error {
            let (path, what) = (path.clone(), what.clone());
            self.add(Damage { path, what });
        }
    }

    /// Takes note that the snapshot could not be verified, for whatever reason: what was loaded may
    /// be anything then.
    pub(crate) fn note_unverified(&self, error: &dormouse_snapshot::Error) {
        self.note(error);
        if let dormouse_snapshot::Error::Io { path, .. } = error {
            let (path, what) = (path.clone(), format!("it was not verified: {error}"));
            self.add(Damage { path, what });
        }
    }

    fn add(&self, damage: Damage) {
        let (path, what) = (damage.path.display().to_string(), damage.what.clone());
        let _ = self.found.set(damage.clone());
        let seen = Instant::now();
        let known = Known { damage, seen };
        let snapshot = &self.snapshot;
        if self
            .damages
            .lock()
            .insert(snapshot.clone(), known)
            .is_none()
        {
            self.damages.inner.count.fetch_add(1, Ordering::Release);
            tracing::error!(%snapshot, path, what, "a snapshot is damaged and is not used any more");
        } else {
            tracing::debug!(%snapshot, path, what, "a snapshot is still damaged");
        }
    }

    /// Refuses what is known to be damaged.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub(crate) fn check(&self) -> Result<(), Error> {
        if self.damages.count() == 0 {
            return Ok(());
        }
        if let Some(known) = self.damages.lock().get(&self.snapshot) {
            let _ = self.found.set(known.damage.clone());
        }
        match self.found.get() {
            None => Ok(()),
            Some(damage) => Err(damage.clone().into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot() -> SnapshotRef {
        "hello@00000001-9f86d081884c7d65".parse().unwrap()
    }

    #[test]
    fn a_repaired_snapshot_is_used_again_but_not_what_was_loaded_before() {
        let (damages, snapshot) = (Damages::default(), snapshot());
        let (first, other) = (
            Health::new(&damages, &snapshot),
            Health::new(&damages, &snapshot),
        );
        first.check().unwrap();
        first.note(&dormouse_snapshot::Error::Damaged {
            path: "pack".into(),
            what: "a page".to_owned(),
        });
        first.check().unwrap_err();
        // Whoever else loaded it has the same.
        other.check().unwrap_err();
        damages.was_damaged(&snapshot).unwrap_err();

        damages.forget(&snapshot);
        assert!(!damages.was_damaged(&snapshot).unwrap());
        Health::new(&damages, &snapshot).check().unwrap();
        first.check().unwrap_err();
        other.check().unwrap_err();
        assert_eq!(damages.count(), 1);
    }

    #[test]
    fn what_cannot_be_read_is_not_trusted() {
        let (damages, snapshot) = (Damages::default(), snapshot());
        let health = Health::new(&damages, &snapshot);
        let error = dormouse_snapshot::Error::Io {
            operation: "read",
            path: "pack".into(),
            source: std::io::Error::other("the disk is gone"),
        };
        // While it is loaded, the error itself is the answer.
        health.note(&error);
        health.check().unwrap();
        health.note_unverified(&error);
        let refused = health.check().unwrap_err().to_string();
        assert!(refused.contains("the disk is gone"), "{refused}");
    }
}
