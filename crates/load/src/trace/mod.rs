//! Traces: who was invoked when and for how long, from the published Azure Functions traces or from
//! a generator, at a scale that one machine can replay.
//!
//! ```text
//! files ─ Trace::open ─┐                        ┌─ Trace::sample ─ a smaller trace
//! SyntheticConfig ─────┴─ Trace ─ burn_path ────┤
//!                                               └─ Trace::write_2021 ─ a file
//! ```
//!
//! Both published forms are read as they are (<https://github.com/Azure/AzurePublicDataset>, CC-BY):
//!
//! - *Azure 2019* (Shahrad et al., "Serverless in the Wild", USENIX ATC 2020): one day per file.
//!   `invocations_per_function_md` has counts per minute, `function_durations_percentiles` and
//!   `app_memory_percentiles` are optional company. Within its minute an invocation comes at a
//!   uniformly random time, as a Poisson process would have it; durations are drawn from the
//!   percentiles, straight lines between them; memory is the median of the whole app.
//! - *Azure 2021* (Zhang et al., "Faster and Cheaper Serverless Computing on Harvested Resources",
//!   SOSP 2021): one invocation per line, with the time of its *end* and its duration.
//!
//! Files are gone through line by line, more than once, and thinned before single invocations
//! exist, so that memory is bounded by [`MAX_FUNCTIONS`] and [`MAX_INVOCATIONS`] whatever they say.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

mod azure2019;
mod azure2021;
mod burn;
mod error;
mod name;
mod sample;
mod shape;
mod synthetic;
mod table;

pub use burn::{BurnCaps, burn_path};
pub use error::{Error, Result};
pub use sample::SampleConfig;
pub use synthetic::SyntheticConfig;

use table::Table;

/// The most invocations that a trace in memory has: 240 MB of them.
pub const MAX_INVOCATIONS: u64 = 10_000_000;

/// The most functions that a file may speak of. A published day has about 50 000.
pub const MAX_FUNCTIONS: usize = 250_000;

/// Where a trace comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// The Azure Functions trace of 2019: arrivals within the minute and durations are drawn.
    #[serde(rename = "azure-2019")]
    Azure2019,
    /// The Azure Functions trace of 2021: every invocation happened.
    #[serde(rename = "azure-2021")]
    Azure2021,
    /// Made up by [`Trace::synthetic`]: nothing in it happened.
    Synthetic,
}

/// What one file of a published trace tells, as its header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Azure 2019, invocations of each function per minute.
    Invocations2019,
    /// Azure 2019, percentiles of each function's durations.
    Durations2019,
    /// Azure 2019, percentiles of each app's memory.
    Memory2019,
    /// Azure 2021, single invocations. [`Trace::write_2021`] writes the same.
    Invocations2021,
}

impl Kind {
    /// Tells by its header what a file is.
    ///
    /// # Errors
    ///
    /// The file cannot be read, is empty, or has the header of none of the four kinds.
    pub fn detect(path: &Path) -> Result<Self> {
        Table::open(path)?.kind()
    }
}

/// A function of a trace.
#[derive(Debug, Clone, PartialEq)]
pub struct TracedFunction {
    /// The app that it belongs to, shortened as `name` is.
    pub app: String,
    /// A short name: the published one, or its start and a hash of all of it. No two functions of
    /// a trace share one. It has only `a-z`, `0-9`, `-` and `_`.
    pub name: String,
    /// What invoked it, such as `http` or `timer`, if the trace tells.
    pub trigger: Option<String>,
    /// Memory that the function's app had allocated, in MiB; 0 if the trace does not tell.
    pub memory_mib: f64,
}

/// One invocation of a trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Invocation {
    /// When it comes, in microseconds from the beginning of the trace.
    pub at_us: u64,
    /// Which function it is for: a place in [`Trace::functions`].
    pub function: u32,
    /// How long the function runs, in microseconds.
    pub duration_us: u64,
}

/// Who was invoked when and for how long.
#[derive(Debug, Clone, PartialEq)]
pub struct Trace {
    /// Where it comes from.
    pub source: Source,
    /// How long it lasts. Every invocation comes before its end.
    pub span: Duration,
    /// The functions, the most popular first: those with the most invocations in the window that
    /// was read or sampled. Some may have none left in a sample.
    pub functions: Vec<TracedFunction>,
    /// The invocations, in the order of their coming.
    pub invocations: Vec<Invocation>,
    /// How many durations were cut to [`SampleConfig::max_duration`].
    pub capped: u64,
}

/// What was odd about the files of a trace, and what was done about it.
///
/// The published files have all of this; none of it stops reading.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadStats {
    /// Lines read from the file with the invocations, the header left aside.
    pub rows: u64,
    /// Functions with at least one invocation in the window.
    pub functions: u64,
    /// Functions without any, left out.
    pub idle_functions: u64,
    /// Lines about something that an earlier line was about: invocations are added up, of
    /// durations and memory the line with more samples counts.
    pub duplicate_rows: u64,
    /// Negative counts, durations and sizes, taken as 0.
    pub negative_values: u64,
    /// Lines whose percentiles fall somewhere, levelled.
    pub unordered_rows: u64,
    /// Lines about functions or apps that were never invoked, passed over.
    pub unmatched_rows: u64,
    /// Functions whose durations nobody tells. They got those of another function, picked at
    /// random; where none are known at all, the published median of 684 ms.
    pub without_durations: u64,
    /// Functions whose app's memory nobody tells.
    pub without_memory: u64,
    /// Invocations outside the window, among them those that ended in it but began before the
    /// trace.
    pub outside_window: u64,
}

impl Trace {
    /// Reads a published trace, or one written by [`Trace::write_2021`], and samples it on the way:
    /// either one file of Azure 2021, or one day of Azure 2019, in any order.
    ///
    /// # Errors
    ///
    /// A file cannot be read, is no such file or is broken, the files do not belong together, or
    /// the sample cannot be had (see [`Trace::sample`]).
    pub fn open(paths: &[PathBuf], config: &SampleConfig) -> Result<(Self, ReadStats)> {
        config.check()?;
        let mut found: [Option<&Path>; 4] = [None; 4];
        for path in paths {
            let place = &mut found[Kind::detect(path)? as usize];
            if let Some(first) = place.replace(path) {
                let reason = format!("{} and {} are of one kind", first.display(), path.display());
                return Err(Error::Files { reason });
            }
        }
        match found {
            [Some(invocations), durations, memory, None] => {
                azure2019::read(invocations, durations, memory, config)
            }
            [None, None, None, Some(path)] => azure2021::read(path, config),
            [Some(_), _, _, Some(_)] => Err(Error::Files {
                reason: "they are of both 2019 and 2021".to_owned(),
            }),
            _ => Err(Error::Files {
                reason: "none of them, or not the right one, has the invocations".to_owned(),
            }),
        }
    }

    /// Invocations per second, on average.
    pub fn rate_per_s(&self) -> f64 {
        self.invocations.len() as f64 / self.span.as_secs_f64()
    }
}
