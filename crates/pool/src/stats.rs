//! What can be read of a pool.

use serde::Serialize;

use crate::config::FunctionConfig;

/// A function as it is deployed.
#[derive(Debug, Clone, Serialize)]
pub struct FunctionInfo {
    /// Its name.
    pub name: String,
    /// The id of its newest snapshot.
    pub snapshot: String,
    /// When that was made, milliseconds since the Unix epoch.
    pub created_unix_ms: u64,
    /// BLAKE3 digest of the image, hexadecimal.
    pub image_digest: String,
    /// Size of the image.
    pub image_bytes: u64,
    /// How it is booted and run.
    pub config: FunctionConfig,
    /// Guest memory.
    pub memory_bytes: u64,
    /// Snapshot pages that are not zero, in bytes.
    pub data_bytes: u64,
    /// Pages that invocations touch, as far as they were recorded.
    pub working_set_pages: u64,
    /// Page faults that the working set did not predict, as a share of the pages that it did
    /// predict, over the last invocations. Where it grows the set is recorded again.
    pub working_set_drift: f64,
    /// What it did since it was opened here.
    pub stats: FunctionStats,
}

/// What a function did since it was opened: for its first request, or for the first after a deployment or
/// after others needed its memory.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct FunctionStats {
    /// Finished invocations, however they ended.
    pub invocations: u64,
    /// Invocations that ended without an answer, timeouts aside.
    pub failures: u64,
    /// Invocations that ran out of time.
    pub timeouts: u64,
    /// Requests that were refused because of limits.
    pub refused: u64,
    /// How often it was found to do nothing but crash, and was let rest.
    pub crash_loops: u64,
    /// Invocations that run now.
    pub running: u64,
    /// Requests that wait now.
    pub waiting: u64,
    /// Time spent on restores, microseconds.
    pub restore_us_total: u64,
    /// Time spent in runs, microseconds.
    pub run_us_total: u64,
    /// Page faults that the pager served.
    pub faults_total: u64,
}

/// A whole pool.
#[derive(Debug, Clone, Serialize)]
pub struct PoolStats {
    /// Invocations that run now.
    pub running: u64,
    /// Requests that wait now.
    pub waiting: u64,
    /// VM shells that are ready and idle.
    pub shells: u64,
    /// Memory that all instances may hold together.
    pub memory_budget_bytes: u64,
    /// Memory that is held, or reserved for what runs.
    pub memory_held_bytes: u64,
    /// Whether the host has less memory left than it is to keep, so that nothing new starts.
    pub memory_is_low: bool,
    /// How many requests and deployments waited for memory in vain because others held the budget.
    pub refused_over_budget: u64,
    /// How many waited in vain because the host had less memory left than it is to keep.
    pub refused_low_memory: u64,
    /// Snapshots that were found to be damaged since the pool was opened.
    pub damaged_snapshots: u64,
    /// The functions in use, by name.
    pub functions: Vec<(String, FunctionStats)>,
}

/// What a deployment came to.
#[derive(Debug, Clone, Serialize)]
pub struct Deployed {
    /// The function as it is now.
    pub function: FunctionInfo,
    /// False where the same image with the same configuration was deployed already.
    pub created: bool,
    /// The cold boot, from the image to ready; 0 where nothing was booted.
    pub boot_us: u64,
    /// Saving and publishing; 0 where nothing was.
    pub snapshot_us: u64,
}
