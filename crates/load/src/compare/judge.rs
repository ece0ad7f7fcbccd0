//! From two runs to verdicts.

use rand::SeedableRng;
use rand::rngs::ChaCha8Rng;
use statrs::distribution::{ContinuousCDF, Normal, StudentsT};
use statrs::statistics::{Data, OrderStatistics};

use super::slices::Slices;
use super::{Change, CompareConfig, Metric, Verdict, text};
use crate::Run;

/// The part of the resamples that may have no value, as where all slices drawn are empty ones.
const MAX_LOST: f64 = 0.01;

/// The changes of all metrics that were asked for.
pub(super) fn changes(base: &Run, new: &Run, config: &CompareConfig) -> Vec<Change> {
    let (base, new) = (Slices::of(base), Slices::of(new));
    let mut metrics: Vec<Change> = config
        .metrics
        .iter()
        .map(|&metric| {
            let values = [&base, &new].map(|side| side.metric(metric, &side.once()));
            let reason = too_little(metric, &base, &new, config);
            Change {
                metric,
                base: values[0].map(rounded),
                new: values[1].map(rounded),
                change: difference(metric, values[0], values[1]).map(rounded),
                interval: None,
                verdict: Verdict::NotComparable,
                reason,
            }
        })
        .collect();
    let drawn = resample(&base, &new, config, &metrics);
    let tail = tail(config.confidence, base.blocks().min(new.blocks()));
    for (change, drawn) in metrics.iter_mut().zip(drawn) {
        if change.reason.is_some() {
            continue;
        }
        let least = f64::from(config.resamples) * (1.0 - MAX_LOST);
        if change.change.is_none() || (drawn.len() as f64) < least {
            change.reason = Some("it has no value, or is 0 in base: measure for longer".to_owned());
            continue;
        }
        let mut drawn = Data::new(drawn);
        let interval = [drawn.quantile(tail), drawn.quantile(1.0 - tail)];
        change.interval = Some(interval.map(rounded));
        (change.verdict, change.reason) = verdict(change.metric, interval, config);
    }
    metrics
}

/// Without digits that say nothing, so that JSON keeps it as it is.
fn rounded(value: f64) -> f64 {
    (value * 1e6).round() / 1e6
}

/// Why a metric is not judged.
fn too_little(
    metric: Metric,
    base: &Slices,
    new: &Slices,
    config: &CompareConfig,
) -> Option<String> {
    for (slices, side) in [(base, "base"), (new, "new")] {
        let (count, least) = (slices.count(metric), config.min_slices);
        if count < least as usize {
            return Some(format!(
                "{side} has {count} slices of the measured time that count, and {least} are \
                 needed: measure for longer"
            ));
        }
        let Some(share) = metric.quantile() else {
            continue;
        };
        // Rounded, because 1 - 0.99 is a little more than 0.01.
        let (answers, least) = (
            slices.answers(),
            (f64::from(config.min_beyond) / (1.0 - share)).round(),
        );
        if answers < least {
            return Some(format!(
                "{side} has {answers:.0} good answers, and {least:.0} are needed for {metric}: \
                 measure for longer"
            ));
        }
    }
    None
}

/// The changes of each metric, for all resamples that have one.
fn resample(
    base: &Slices,
    new: &Slices,
    config: &CompareConfig,
    metrics: &[Change],
) -> Vec<Vec<f64>> {
    // All metrics are taken of the same resamples, and each pair of runs starts at the seed: what
    // else is compared changes no number.
    let mut rng = ChaCha8Rng::seed_from_u64(config.seed);
    let (mut base_drawn, mut new_drawn) = (base.once(), new.once());
    let mut changes = vec![Vec::new(); metrics.len()];
    if metrics.iter().all(|change| change.reason.is_some()) {
        return changes;
    }
    for _ in 0..config.resamples {
        base.draw(&mut rng, &mut base_drawn);
        new.draw(&mut rng, &mut new_drawn);
        for (change, changes) in metrics.iter().zip(&mut changes) {
            if change.reason.is_none() {
                let metric = change.metric;
                let base = base.metric(metric, &base_drawn);
                let new = new.metric(metric, &new_drawn);
                changes.extend(difference(metric, base, new));
            }
        }
    }
    changes
}

/// The relative change, or the difference of shares.
fn difference(metric: Metric, base: Option<f64>, new: Option<f64>) -> Option<f64> {
    match (metric, base?, new?) {
        (Metric::Failed, base, new) => Some(new - base),
        (_, 0.0, _) => None,
        (_, base, new) => Some(new / base - 1.0),
    }
}

/// The share of the resamples to leave out at each end.
///
/// The bootstrap's spread is too small by a factor that depends on how many blocks there are, and
/// knows nothing of the error of the spread itself. Hesterberg ("What Teachers Should Know About
/// the Bootstrap", 2015) corrects both by going further out.
fn tail(confidence: f64, blocks: usize) -> f64 {
    let plain = (1.0 - confidence) / 2.0;
    let count = blocks.max(2) as f64;
    let Ok(student) = StudentsT::new(0.0, 1.0, count - 1.0) else {
        return plain;
    };
    let reach = student.inverse_cdf(1.0 - plain) * (count / (count - 1.0)).sqrt();
    Normal::standard().cdf(-reach)
}

fn verdict(
    metric: Metric,
    interval: [f64; 2],
    config: &CompareConfig,
) -> (Verdict, Option<String>) {
    let threshold = match metric {
        Metric::Failed => config.failed_threshold,
        _ => config.threshold,
    };
    // Upwards is bad.
    let [low, high] = match metric {
        Metric::Throughput => [-interval[1], -interval[0]],
        _ => interval,
    };
    let verdict = if low > threshold {
        Verdict::Worse
    } else if high < -threshold {
        Verdict::Better
    } else if low >= -threshold && high <= threshold {
        Verdict::Same
    } else {
        let reason = format!(
            "the change is {}, which may be beyond ±{} or not: measure for longer",
            text::interval(metric, interval),
            text::change(metric, threshold).trim_start_matches('+')
        );
        return (Verdict::Unclear, Some(reason));
    };
    (verdict, None)
}
