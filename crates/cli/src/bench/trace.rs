//! `dormouse bench trace`: makes traces that can be replayed.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use dormouse_load::Histogram;
use dormouse_load::trace::{SampleConfig, SyntheticConfig, Trace};

use super::load::failed;
use crate::exit::{Exit, Failed};
use crate::output;

/// Samples a published Azure Functions trace, or makes one up, and tells what is in it
///
/// The formats of 2019 (invocations, and with them durations and memory) and of 2021 are read as
/// they are published. Without a file a synthetic trace is made. What is written has the form of
/// 2021, which scenarios replay: trace = { files = ["FILE"] }.
#[derive(Debug, Args)]
pub(crate) struct TraceArgs {
    /// The files of one trace
    files: Vec<PathBuf>,

    /// How many functions of it
    #[arg(long, value_name = "NUMBER")]
    functions: Option<usize>,

    /// Invocations per second, on average
    #[arg(long, value_name = "NUMBER")]
    rate: Option<f64>,

    /// How many times faster than recorded
    #[arg(long, value_name = "NUMBER", default_value_t = 1.0)]
    compression: f64,

    /// Where it begins
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration, default_value = "0s")]
    start: Duration,

    /// How much of it, before compression
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    length: Option<Duration>,

    /// Longer invocations are cut to that
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    max_duration: Option<Duration>,

    /// What random choices depend on
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    seed: u64,

    /// Where it is written
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// Runs the command.
pub(super) fn trace(args: &TraceArgs) -> Result<()> {
    let trace = read(args).map_err(|error| failed(error.into()))?;
    if let Some(out) = &args.out {
        write(&trace, out)?;
    }
    let mut durations = Histogram::default();
    for invocation in &trace.invocations {
        durations.record_us(invocation.duration_us);
    }
    let quantile = |share| format!("{:.3} s", durations.quantile_us(share) as f64 / 1e6);
    output::properties(&[
        ("source", format!("{:?}", trace.source)),
        ("length", humantime::format_duration(trace.span).to_string()),
        ("functions", trace.functions.len().to_string()),
        ("invocations", trace.invocations.len().to_string()),
        ("rate", format!("{:.3} per second", trace.rate_per_s())),
        ("duration, median", quantile(0.5)),
        ("duration, p99", quantile(0.99)),
        ("cut to --max-duration", trace.capped.to_string()),
    ])
}

fn write(trace: &Trace, out: &Path) -> Result<()> {
    let unwritable = |reason: &dyn std::fmt::Display| {
        let message = format!("cannot write {}: {reason}", out.display());
        Failed::new(Exit::Unavailable, message)
    };
    let mut file = BufWriter::new(File::create(out).map_err(|error| unwritable(&error))?);
    trace
        .write_2021(&mut file)
        .map_err(|error| unwritable(&error))?;
    file.flush().map_err(|error| unwritable(&error))?;
    Ok(())
}

fn read(args: &TraceArgs) -> Result<Trace, dormouse_load::trace::Error> {
    let sample = SampleConfig {
        start: args.start,
        length: args.length,
        functions: args.functions,
        rate_per_s: args.rate,
        compression: args.compression,
        max_duration: args.max_duration,
        seed: args.seed,
    };
    if !args.files.is_empty() {
        let (trace, stats) = Trace::open(&args.files, &sample)?;
        eprintln!("read: {stats:?}");
        return Ok(trace);
    }
    let usual = SyntheticConfig::default();
    Trace::synthetic(&SyntheticConfig {
        functions: args.functions.unwrap_or(usual.functions),
        span: args.length.unwrap_or(usual.span),
        rate_per_s: args.rate.unwrap_or(usual.rate_per_s),
        seed: args.seed,
    })
}
