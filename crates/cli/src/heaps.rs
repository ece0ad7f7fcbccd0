//! How many heaps the C library keeps.

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
