//! Whether one measurement is better or worse than another, and how sure that is.
//!
//! Answers that follow each other are alike: what slows one down slows its neighbours down too. So
//! the interval of a change comes from a *block bootstrap*: from each run's slices (without the
//! warm-up) as many are drawn again, with replacement and in blocks of neighbours, the metric is
//! taken of what was drawn, and the change from base to new is noted. After some thousand times,
//! the middle 95 % of the changes are the interval, made a little wider where slices are few
//! (Hesterberg's expanded percentile interval). A single stall in one slice is not drawn at
//! all in more than a third of the cases, so that it makes a high percentile unclear, not worse.
//!
//! The interval knows what varies *within* a run. What differs from run to run as a whole, such as
//! where memory was placed, it cannot know: the threshold is there for that.
//!
//! There is no metric for the greatest time: it is one answer, and drawing again says nothing
//! about it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Record;

mod config;
mod error;
mod judge;
mod pairs;
mod slices;
mod text;
mod warnings;

pub use config::{CompareConfig, Metric};
pub use error::CompareError;

/// The name of this form of a comparison. A form that older readers would misread gets another.
pub const FORMAT: &str = "dormouse-load-comparison/1";

/// Two records against each other: what can be kept as JSON, and shown as a table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Comparison {
    /// [`FORMAT`].
    pub format: String,
    /// How it was made.
    pub config: CompareConfig,
    /// The record that is the standard.
    pub base: Side,
    /// The record that is judged.
    pub new: Side,
    /// Runs that were compared, in the order of base.
    pub runs: Vec<RunComparison>,
    /// Names of runs that only base has.
    pub only_in_base: Vec<String>,
    /// Names of runs that only new has.
    pub only_in_new: Vec<String>,
    /// What makes the whole comparison worth less, one sentence each.
    pub warnings: Vec<String>,
}

/// Which record stood on a side.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Side {
    /// The record's title.
    pub title: String,
    /// The URL that was driven.
    pub target: String,
    /// When the measurement began, milliseconds since the Unix epoch.
    pub began_unix_ms: u64,
}

/// Two runs against each other.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RunComparison {
    /// The run's name in base.
    pub base: String,
    /// The run's name in new: another one only where each side had a single run.
    pub new: String,
    /// One for each metric that was asked for.
    pub changes: Vec<Change>,
    /// What makes these numbers worth less, one sentence each.
    pub warnings: Vec<String>,
}

/// A metric of two runs.
///
/// Times are in microseconds, throughput is in good answers per second, `failed` is a share between
/// 0 and 1.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Change {
    /// Which.
    pub metric: Metric,
    /// Its value in base; nothing where it has none.
    pub base: Option<f64>,
    /// Its value in new; nothing where it has none.
    pub new: Option<f64>,
    /// By which share of base it changed: 0.05 is 5 % more. For `failed`, the difference.
    pub change: Option<f64>,
    /// Between which two the change lies, with the confidence that was asked for.
    pub interval: Option<[f64; 2]>,
    /// What that means.
    pub verdict: Verdict,
    /// Why it is not clear or not comparable, in one sentence.
    pub reason: Option<String>,
}

/// What a change means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// The whole interval lies beyond the threshold, on the bad side.
    Worse,
    /// The whole interval lies beyond the threshold, on the good side.
    Better,
    /// The whole interval lies within the threshold.
    Same,
    /// The interval reaches over the threshold: a longer run is needed.
    Unclear,
    /// There is too little to judge by.
    NotComparable,
}

/// Compares the runs of two records.
///
/// The same records, config and seed give the same comparison.
///
/// # Errors
///
/// A value of the config is not allowed, no run has the name that was asked for, or no name is on
/// both sides.
pub fn compare(
    base: &Record,
    new: &Record,
    config: &CompareConfig,
) -> Result<Comparison, CompareError> {
    config.check()?;
    let paired = pairs::pair(&base.runs, &new.runs, config.run.as_deref())?;
    let runs = paired.both.iter().map(|&(base, new)| RunComparison {
        base: base.name.clone(),
        new: new.name.clone(),
        changes: judge::changes(base, new, config),
        warnings: warnings::of_runs(base, new),
    });
    let side = |record: &Record| Side {
        title: record.title.clone(),
        target: record.target.clone(),
        began_unix_ms: record.began_unix_ms,
    };
    Ok(Comparison {
        format: FORMAT.to_owned(),
        config: config.clone(),
        base: side(base),
        new: side(new),
        runs: runs.collect(),
        only_in_base: paired.only_in_base,
        only_in_new: paired.only_in_new,
        warnings: warnings::of_records(base, new),
    })
}

impl Comparison {
    /// Whether anything became worse: what a gate in CI stops at.
    #[must_use]
    pub fn is_regression(&self) -> bool {
        self.count(Verdict::Worse) > 0
    }

    /// How many changes have a verdict, over all runs.
    #[must_use]
    pub fn count(&self, verdict: Verdict) -> usize {
        let changes = self.runs.iter().flat_map(|run| &run.changes);
        changes.filter(|change| change.verdict == verdict).count()
    }
}
