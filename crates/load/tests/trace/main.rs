//! Traces: reading the published forms, sampling, making them up, and what is said of bad input.

use std::fs;
use std::path::PathBuf;

use dormouse_load::trace::{ReadStats, Result, SampleConfig, Trace};
use tempfile::TempDir;

mod burn;
mod errors;
mod files;
mod hostile;
mod sampling;
mod synthetic;

/// Files of one test.
struct Files(TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn add(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.path().join(name);
        fs::write(&path, content).unwrap();
        path
    }
}

/// Reads one file, all of it.
fn read(content: impl AsRef<[u8]>) -> Result<(Trace, ReadStats)> {
    let files = Files::new();
    let path = files.add("trace.csv", content);
    Trace::open(&[path], &SampleConfig::default())
}

/// Invocations of each function.
fn counts(trace: &Trace) -> Vec<u64> {
    let mut counts = vec![0; trace.functions.len()];
    for invocation in &trace.invocations {
        counts[invocation.function as usize] += 1;
    }
    counts
}

/// A row of a file of counts: what it is about, and minutes (from 1 on) with their counts.
type Row<'a> = (&'a str, &'a [(usize, &'a str)]);

/// A file of counts in the form of 2019.
fn counts_2019(rows: &[Row<'_>]) -> String {
    let minutes: Vec<String> = (1..=1440).map(|minute| minute.to_string()).collect();
    let mut text = format!(
        "HashOwner,HashApp,HashFunction,Trigger,{}\n",
        minutes.join(",")
    );
    for (key, counts) in rows {
        let mut fields = vec!["0"; 1440];
        for (minute, count) in *counts {
            fields[minute - 1] = count;
        }
        text += &format!("{key},{}\n", fields.join(","));
    }
    text
}

const DURATIONS_2019: &str = "HashOwner,HashApp,HashFunction,Average,Count,Minimum,Maximum,\
    percentile_Average_0,percentile_Average_1,percentile_Average_25,percentile_Average_50,\
    percentile_Average_75,percentile_Average_99,percentile_Average_100\n";

const MEMORY_2019: &str = "HashOwner,HashApp,SampleCount,AverageAllocatedMb,\
    AverageAllocatedMb_pct1,AverageAllocatedMb_pct5,AverageAllocatedMb_pct25,\
    AverageAllocatedMb_pct50,AverageAllocatedMb_pct75,AverageAllocatedMb_pct95,\
    AverageAllocatedMb_pct99,AverageAllocatedMb_pct100\n";

const HEADER_2021: &str = "app,func,end_timestamp,duration\n";

/// How far an empirical distribution of `n` values may be from the one they are drawn from, by the
/// inequality of Dvoretzky, Kiefer and Wolfowitz, but for one time in 10⁹.
fn distance_by_chance(n: usize) -> f64 {
    ((2.0 / 1e-9_f64).ln() / (2.0 * n as f64)).sqrt()
}

/// The largest distance between the distribution of `values` and `share_below`.
fn distance(values: &[u64], share_below: impl Fn(u64) -> f64) -> f64 {
    let mut values = values.to_vec();
    values.sort_unstable();
    let n = values.len() as f64;
    let mut largest: f64 = 0.0;
    for (rank, value) in values.iter().enumerate() {
        let expected = share_below(*value);
        largest = largest.max((expected - rank as f64 / n).abs());
        largest = largest.max(((rank + 1) as f64 / n - expected).abs());
    }
    largest
}
