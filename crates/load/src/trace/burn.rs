//! From an invocation of a trace to a request for the sample function `burn`.

/// How much of a trace's invocation the function `burn` is asked to do.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BurnCaps {
    /// The longest time it burns, in milliseconds. `burn` takes at most 60 000.
    pub max_ms: u64,
    /// The most pages it writes. `burn` has 6000, which are 23 MiB.
    pub max_pages: u64,
    /// The share of the memory that its app had allocated which one invocation writes. Traces tell
    /// what was allocated, never what was touched.
    pub touched_share: f64,
    /// What is taken as allocated where the trace does not tell, in MiB.
    pub unknown_mib: f64,
}

impl Default for BurnCaps {
    /// All that `burn` can do. A twentieth of the memory is touched, with which nine of ten apps
    /// (they allocate up to 400 MiB, half of them up to 170 MiB) stay below `burn`'s most.
    fn default() -> Self {
        Self {
            max_ms: 60_000,
            max_pages: 6000,
            touched_share: 0.05,
            unknown_mib: 170.0,
        }
    }
}

/// Steps between the values asked for, so that a replay has few distinct requests.
const STEP: f64 = 1.05;
/// Up to here whole numbers are farther apart than the steps.
const FIRST_STEP: f64 = 20.0;
const PAGES_PER_MIB: f64 = 256.0;

/// The path and query with which `burn` burns the time and touches the memory of an invocation.
///
/// Both are rounded to steps of 5 %, or to whole milliseconds and pages where those are coarser.
pub fn burn_path(duration_us: u64, memory_mib: f64, caps: &BurnCaps) -> String {
    let allocated_mib = if memory_mib > 0.0 {
        memory_mib
    } else {
        caps.unknown_mib
    };
    let ms = step(duration_us as f64 / 1000.0, caps.max_ms);
    let pages = step(
        allocated_mib * caps.touched_share * PAGES_PER_MIB,
        caps.max_pages,
    );
    format!("/?ms={ms}&write={pages}")
}

fn step(value: f64, most: u64) -> u64 {
    let stepped = if value > FIRST_STEP {
        let steps = ((value / FIRST_STEP).ln() / STEP.ln()).round();
        FIRST_STEP * STEP.powf(steps)
    } else {
        value
    };
    (stepped.round() as u64).min(most)
}
