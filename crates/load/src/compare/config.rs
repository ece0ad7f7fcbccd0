//! What is compared, and how sure it has to be.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::CompareError;

/// What to compare and how.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CompareConfig {
    /// The name of the runs to compare, or a pattern of names (`steady-*`). Without one, all runs
    /// whose name is on both sides, or, where each side has a single run, those two.
    pub run: Option<String>,
    /// What to compare of each run.
    pub metrics: Vec<Metric>,
    /// How sure an interval has to be, between 0 and 1: by default 0.95.
    pub confidence: f64,
    /// How often slices are drawn again, 100 to 100 000 times: by default 2000.
    pub resamples: u32,
    /// Where the drawing starts. The same seed draws the same.
    pub seed: u64,
    /// The least relative change that counts: by default 0.05, which is 5 %.
    pub threshold: f64,
    /// The least difference of the failed share that counts: by default 0.001, one request in 1000.
    pub failed_threshold: f64,
    /// How many answers have to be beyond a percentile, on each side: by default 10, so that p99.9
    /// needs 10 000 answers.
    pub min_beyond: u32,
    /// How many slices with requests each side has to have, at least 4: by default 10.
    pub min_slices: u32,
}

impl Default for CompareConfig {
    fn default() -> Self {
        Self {
            run: None,
            metrics: vec![Metric::P50, Metric::P99, Metric::Throughput, Metric::Failed],
            confidence: 0.95,
            resamples: 2000,
            seed: 1,
            threshold: 0.05,
            failed_threshold: 0.001,
            min_beyond: 10,
            min_slices: 10,
        }
    }
}

impl CompareConfig {
    pub(super) fn check(&self) -> Result<(), CompareError> {
        let refuse = |name, value: String, allowed| {
            Err(CompareError::BadConfig {
                name,
                value,
                allowed,
            })
        };
        // NaN is in no range.
        if !(0.5..=0.999).contains(&self.confidence) {
            let value = self.confidence.to_string();
            return refuse("confidence", value, "between 0.5 and 0.999");
        }
        if !(100..=100_000).contains(&self.resamples) {
            let value = self.resamples.to_string();
            return refuse("resamples", value, "between 100 and 100000");
        }
        if !(0.0..=10.0).contains(&self.threshold) {
            let value = self.threshold.to_string();
            return refuse("threshold", value, "between 0 and 10 (0.05 is 5 %)");
        }
        if !(0.0..=1.0).contains(&self.failed_threshold) {
            let value = self.failed_threshold.to_string();
            return refuse("failed_threshold", value, "between 0 and 1");
        }
        if self.min_slices < 4 {
            return refuse("min_slices", self.min_slices.to_string(), "at least 4");
        }
        if self.metrics.is_empty() {
            return refuse("metrics", "an empty list".to_owned(), "at least one metric");
        }
        Ok(())
    }
}

/// What is compared of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Metric {
    /// The median latency of good answers.
    #[serde(rename = "p50")]
    P50,
    /// The latency that 90 % of the good answers do not exceed.
    #[serde(rename = "p90")]
    P90,
    /// The latency that 99 % of the good answers do not exceed.
    #[serde(rename = "p99")]
    P99,
    /// The latency that 99.9 % of the good answers do not exceed.
    #[serde(rename = "p99.9")]
    P999,
    /// The mean latency of good answers.
    #[serde(rename = "mean")]
    Mean,
    /// Good answers per second. Without the run's last slice, which may be a short one, and counts
    /// answers that came after the run's end.
    #[serde(rename = "throughput")]
    Throughput,
    /// The share of the requests that failed.
    #[serde(rename = "failed")]
    Failed,
}

impl Metric {
    /// All that there are.
    pub const ALL: [Self; 7] = [
        Self::P50,
        Self::P90,
        Self::P99,
        Self::P999,
        Self::Mean,
        Self::Throughput,
        Self::Failed,
    ];

    /// The name, as in JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::P50 => "p50",
            Self::P90 => "p90",
            Self::P99 => "p99",
            Self::P999 => "p99.9",
            Self::Mean => "mean",
            Self::Throughput => "throughput",
            Self::Failed => "failed",
        }
    }

    /// The share of all answers up to a percentile; nothing for what is none.
    pub(super) fn quantile(self) -> Option<f64> {
        match self {
            Self::P50 => Some(0.5),
            Self::P90 => Some(0.9),
            Self::P99 => Some(0.99),
            Self::P999 => Some(0.999),
            Self::Mean | Self::Throughput | Self::Failed => None,
        }
    }
}

/// Its name.
impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// By its name.
impl FromStr for Metric {
    type Err = CompareError;

    fn from_str(text: &str) -> Result<Self, CompareError> {
        let metric = Self::ALL.into_iter().find(|metric| metric.name() == text);
        metric.ok_or_else(|| CompareError::NoSuchMetric {
            name: text.to_owned(),
        })
    }
}
