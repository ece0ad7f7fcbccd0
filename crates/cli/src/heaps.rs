//! How many heaps the C library keeps, and how much in them.

#[cfg(target_env = "gnu")]
use std::time::Duration;

/// Two threads of ours rarely allocate at the same moment. The C library would have eight heaps for each
/// core, and what they hold for later is memory that the host lacks: tens of megabytes, in a server that has
/// been busy.
#[cfg(target_env = "gnu")]
const HEAPS: libc::c_int = 2;

/// Keeps few heaps, in this process. To be called while there is one thread.
pub(crate) fn keep_few() {
    // It says whether it did, and nothing depends on that.
    #[cfg(target_env = "gnu")]
    // SAFETY: `mallopt(3)` takes two numbers, and changes what later allocations do.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, HEAPS);
    }
}

/// How often what is free is given back.
#[cfg(target_env = "gnu")]
const GIVE_BACK_EVERY: Duration = Duration::from_secs(20);

/// Gives pages that nothing stands on back to the host, from time to time, for as long as the process lives.
/// The C library does so only from a heap's end: after a crowd of requests it would keep what they took.
///
/// # Errors
/// Where no thread can be started.
pub(crate) fn give_back() -> std::io::Result<()> {
    #[cfg(target_env = "gnu")]
    std::thread::Builder::new()
        .name("heaps".to_owned())
        .spawn(|| {
            loop {
                std::thread::sleep(GIVE_BACK_EVERY);
                // SAFETY: `malloc_trim(3)` takes a number, and touches nothing that is in use.
                unsafe {
                    libc::malloc_trim(0);
                }
            }
        })?;
    Ok(())
}
