//! What a function wants done around the snapshot.

use std::sync::{Mutex, PoisonError};

pub(crate) type Hook = Box<dyn FnMut() + Send>;

static BEFORE_SNAPSHOT: Mutex<Vec<Hook>> = Mutex::new(Vec::new());
static AFTER_RESTORE: Mutex<Vec<Hook>> = Mutex::new(Vec::new());

/// Runs `hook` once, after initialisation and just before the snapshot: to close what must not be
/// shared by the clones, or to warm up what all of them will need.
///
/// Hooks run in the order of their registration. Register them before serving starts.
pub fn before_snapshot(hook: impl FnMut() + Send + 'static) {
    register(&BEFORE_SNAPSHOT, Box::new(hook));
}

/// Runs `hook` in every clone, before its first request is handled: to draw secrets and to forget
/// what is out of date.
///
/// Its time is part of the request's. Hooks run in the order of their registration. Register them
/// before serving starts.
pub fn after_restore(hook: impl FnMut() + Send + 'static) {
    register(&AFTER_RESTORE, Box::new(hook));
}

fn register(list: &Mutex<Vec<Hook>>, hook: Hook) {
    list.lock()
        .unwrap_or_else(PoisonError::into_inner)
        .push(hook);
}

/// The registered hooks. The serving loop owns them, so that a request without hooks takes no lock.
pub(crate) struct Hooks {
    pub(crate) before_snapshot: Vec<Hook>,
    pub(crate) after_restore: Vec<Hook>,
}

impl Hooks {
    /// Takes all that were registered.
    pub(crate) fn take() -> Self {
        let take = |list: &Mutex<Vec<Hook>>| {
            std::mem::take(&mut *list.lock().unwrap_or_else(PoisonError::into_inner))
        };
        Self {
            before_snapshot: take(&BEFORE_SNAPSHOT),
            after_restore: take(&AFTER_RESTORE),
        }
    }
}
