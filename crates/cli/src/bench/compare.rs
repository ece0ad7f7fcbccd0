//! `dormouse bench compare`: two records against each other.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use dormouse_load::compare::{self, CompareConfig, Metric};

use super::load::read;
use crate::exit::{Exit, Failed};
use crate::output::{self, Format};

/// Compares two records of `bench load`: a gate for CI
///
/// Ends with 1 where anything became worse by more than the threshold, as far as the measurements
/// can tell: intervals come from drawing pieces of the runs again and again (bootstrap).
#[derive(Debug, Args)]
pub(crate) struct CompareArgs {
    /// The record that is the standard
    base: PathBuf,

    /// The record that is judged
    new: PathBuf,

    /// Only runs with names like this
    #[arg(long, value_name = "GLOB")]
    run: Option<String>,

    /// What is compared: p50, p90, p99, p99.9, mean, throughput, failed
    #[arg(long, value_name = "METRIC", value_delimiter = ',')]
    metrics: Vec<Metric>,

    /// The least change that counts, in percent
    #[arg(long, value_name = "PERCENT", default_value_t = 5.0)]
    threshold: f64,

    /// How sure it has to be, in percent
    #[arg(long, value_name = "PERCENT", default_value_t = 95.0)]
    confidence: f64,

    /// How it is printed
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
}

/// Runs the command.
pub(super) fn compare(args: &CompareArgs) -> Result<()> {
    let usual = CompareConfig::default();
    let config = CompareConfig {
        run: args.run.clone(),
        metrics: if args.metrics.is_empty() {
            usual.metrics.clone()
        } else {
            args.metrics.clone()
        },
        threshold: args.threshold / 100.0,
        confidence: args.confidence / 100.0,
        ..usual
    };
    let (base, new) = (read(&args.base)?, read(&args.new)?);
    let comparison = compare::compare(&base, &new, &config)
        .map_err(|error| Failed::new(Exit::Usage, error.to_string()))?;
    match args.format {
        Format::Table => output::text(&format!("{comparison}\n"))?,
        Format::Json => output::json(&serde_json::to_value(&comparison)?)?,
    }
    if comparison.is_regression() {
        return Err(Failed::new(Exit::Function, "it became worse: see the table").into());
    }
    Ok(())
}
