//! What makes a comparison worth less, one sentence each.

use crate::{Record, Run};

/// Rates that differ by more were not meant to be the same: arrivals drawn with another seed differ
/// by less, from some thousand requests on.
const MAX_RATE_DIFFERENCE: f64 = 0.05;

/// What is wrong with two records as a whole.
pub(super) fn of_records(base: &Record, new: &Record) -> Vec<String> {
    let mut warnings = Vec::new();
    let (one, other) = (base.machine.to_string(), new.machine.to_string());
    if one != other {
        warnings.push(format!(
            "the load came from different machines ({one}; {other}): times of different machines \
             say little about the target"
        ));
    }
    for (record, side) in [(base, "base"), (new, "new")] {
        let machine = record.machine.warnings().into_iter();
        warnings.extend(machine.map(|warning| format!("{side}: {warning}")));
    }
    warnings
}

/// What is wrong with two runs.
pub(super) fn of_runs(base: &Run, new: &Run) -> Vec<String> {
    let mut warnings = Vec::new();
    if base.name != new.name {
        warnings.push("the runs have different names".to_owned());
    }
    if base.pattern != new.pattern {
        warnings.push(format!(
            "requests came in different patterns ({}; {})",
            base.pattern, new.pattern
        ));
    }
    if base.is_open != new.is_open {
        warnings.push(
            "one run is an open loop and the other a closed one: their latencies mean different \
             things"
                .to_owned(),
        );
    }
    let (one, other) = (base.offered_per_s(), new.offered_per_s());
    // In a closed loop, the rate is what comes out.
    let same_rate = (one - other).abs() <= MAX_RATE_DIFFERENCE * one.max(other);
    if base.is_open && new.is_open && !same_rate {
        warnings.push(format!(
            "different loads were offered ({one:.1} and {other:.1} requests per second): latency \
             depends on it"
        ));
    }
    if base.warmup_us != new.warmup_us {
        warnings.push(format!(
            "the warm-ups differ ({:.1} s and {:.1} s)",
            base.warmup_us as f64 / 1e6,
            new.warmup_us as f64 / 1e6
        ));
    }
    for (run, side) in [(base, "base"), (new, "new")] {
        if run.interrupted {
            warnings.push(format!("{side} was interrupted"));
        }
        if let [first, ..] = run.client.limits.as_slice() {
            warnings.push(format!(
                "{side} measured the client rather than the target: {first}"
            ));
        }
        if run.failed > 0 {
            warnings.push(format!(
                "{} requests of {side} failed: latencies are those of good answers only",
                run.failed
            ));
        }
    }
    warnings
}
