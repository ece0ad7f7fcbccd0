//! Panics of what is tested: no input may cause one.

use std::panic;
use std::sync::{Mutex, Once, PoisonError};
use std::thread;

static SEEN: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Takes notes of the panics of Dormouse's own threads from now on. Those of tests are let be:
/// their threads are named after them, with underscores, or have no name.
pub(crate) fn watch() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let default = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            let thread = thread::current();
            if let Some(name) = thread.name()
                && name != "main"
                && !name.contains('_')
            {
                SEEN.lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push(format!("{name}: {info}"));
            }
            default(info);
        }));
    });
}

/// Fails if anything of Dormouse has panicked in this process.
#[track_caller]
pub(crate) fn assert_none() {
    let seen = SEEN.lock().unwrap_or_else(PoisonError::into_inner);
    assert!(seen.is_empty(), "panicked: {seen:?}");
}
