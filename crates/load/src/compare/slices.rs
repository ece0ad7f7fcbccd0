//! A run's slices, in a form from which they can be drawn again thousands of times.

use rand::{Rng, RngExt};

use super::Metric;
use crate::{Run, Slice};

/// Longer runs have neighbouring slices put together: memory is bounded, and more pieces would
/// hardly make an interval better.
const MAX_SLICES: usize = 512;

/// Three digits over a day are fewer distinct times. Where a histogram of another make has more,
/// neighbouring times count as the greatest of them.
const MAX_CLASSES: usize = 1 << 15;

/// What a file may say of empty slices at the end.
const MAX_PLACES: usize = 10_000;

/// The measured slices of a run.
pub(super) struct Slices {
    pieces: Vec<Piece>,
    /// All distinct times, ascending.
    classes: Vec<Class>,
}

/// What there is to count of a slice. Floats, because sums of what a file says may be any size.
#[derive(Debug, Clone, Default)]
struct Piece {
    answers: f64,
    latency_sum_us: f64,
    failed: f64,
    /// Good answers that came in time…
    arrived: f64,
    /// …and the time, which is nothing where arrivals were not counted for all of the slice.
    time_s: f64,
}

/// Answers that took the same time.
struct Class {
    time_us: f64,
    /// How many answers took that time or less, for each piece.
    up_to: Vec<f64>,
}

impl Slices {
    pub(super) fn of(run: &Run) -> Self {
        let end_us = run.warmup_us.saturating_add(run.measured_us);
        let begin_us = |place: usize| (place as u64).saturating_mul(run.slice_us);
        // Where nothing happened at the end of a run, there are no slices. It was measured though.
        let (empty, last) = (Slice::default(), run.slices.len());
        let missing = (last..MAX_PLACES)
            .take_while(|&place| run.slice_us > 0 && begin_us(place) < end_us)
            .filter(|&place| begin_us(place) >= run.warmup_us);
        let measured: Vec<(usize, &Slice)> = (0..)
            .zip(&run.slices)
            .filter(|(_, slice)| !slice.is_warmup)
            .chain(missing.map(|place| (place, &empty)))
            .collect();
        let group = measured.len().div_ceil(MAX_SLICES).max(1);
        let counts: Vec<Vec<(u64, u64)>> = measured
            .iter()
            .map(|(_, slice)| &slice.latency)
            // To find nothing in a histogram takes time, and there may be many such.
            .map(|latency| match latency.is_empty() {
                true => Vec::new(),
                false => latency.counts().collect(),
            })
            .collect();
        let mut times: Vec<u64> = counts
            .iter()
            .flatten()
            .map(|&(time_us, _)| time_us)
            .collect();
        times.sort_unstable();
        times.dedup();
        let groups = measured.len().div_ceil(group);
        let mut classes: Vec<Class> = times
            .chunks(times.len().div_ceil(MAX_CLASSES).max(1))
            .map(|times| Class {
                time_us: times.last().map_or(0.0, |&time_us| time_us as f64),
                up_to: vec![0.0; groups],
            })
            .collect();
        let mut pieces = vec![Piece::default(); groups];
        for (at, ((place, slice), counts)) in measured.into_iter().zip(counts).enumerate() {
            let at = at / group;
            let piece = &mut pieces[at];
            for (time_us, count) in counts {
                let (time_us, count) = (time_us as f64, count as f64);
                let class = classes.partition_point(|class| class.time_us < time_us);
                classes[class].up_to[at] += count;
                piece.answers += count;
                piece.latency_sum_us += time_us * count;
            }
            piece.failed += slice.failed as f64;
            // The last slice takes all that came after the run's end.
            if begin_us(place + 1) < end_us {
                piece.arrived += slice.arrived as f64;
                piece.time_s += run.slice_us as f64 / 1e6;
            }
        }
        let mut below = vec![0.0; groups];
        for class in &mut classes {
            for (count, below) in class.up_to.iter_mut().zip(&mut below) {
                *count += *below;
                *below = *count;
            }
        }
        Self { pieces, classes }
    }

    /// How many slices say something of a metric.
    pub(super) fn count(&self, metric: Metric) -> usize {
        let says = |piece: &&Piece| match metric {
            Metric::Throughput => piece.time_s > 0.0,
            Metric::Failed => piece.answers + piece.failed > 0.0,
            _ => piece.answers > 0.0,
        };
        self.pieces.iter().filter(says).count()
    }

    /// Good answers in all slices.
    pub(super) fn answers(&self) -> f64 {
        self.pieces.iter().map(|piece| piece.answers).sum()
    }

    /// How many neighbours are drawn together, so that what lasts for more than a slice stays
    /// together: the third root of their number, which is how such a length has to grow.
    fn block(&self) -> usize {
        (self.pieces.len() as f64).cbrt().round().max(1.0) as usize
    }

    /// How many blocks make as much as there is.
    pub(super) fn blocks(&self) -> usize {
        self.pieces.len().div_ceil(self.block())
    }

    /// Every slice once.
    pub(super) fn once(&self) -> Vec<f64> {
        vec![1.0; self.pieces.len()]
    }

    /// As many slices, drawn with replacement: how often each. The last one's neighbour is the
    /// first, so that all are drawn equally often.
    pub(super) fn draw(&self, rng: &mut impl Rng, drawn: &mut [f64]) {
        drawn.fill(0.0);
        let length = drawn.len();
        if length == 0 {
            return;
        }
        let block = self.block();
        for _ in 0..self.blocks() {
            let first = rng.random_range(0..length);
            for place in first..first + block {
                drawn[place % length] += 1.0;
            }
        }
    }

    /// A metric of slices that were drawn so often each; nothing where they have none.
    pub(super) fn metric(&self, metric: Metric, drawn: &[f64]) -> Option<f64> {
        let total = |count: fn(&Piece) -> f64| -> f64 {
            let counts = self.pieces.iter().map(count);
            counts.zip(drawn).map(|(count, times)| count * times).sum()
        };
        let answers = total(|piece| piece.answers);
        let ratio = |above: f64, below: f64| (below > 0.0).then(|| above / below);
        match (metric, metric.quantile()) {
            (_, Some(share)) => {
                // As HdrHistogram has it: the first time that so many answers do not exceed.
                let rank = (share * answers).ceil().max(1.0);
                let place = self.classes.partition_point(|class| {
                    let up_to: f64 = class.up_to.iter().zip(drawn).map(|(a, b)| a * b).sum();
                    up_to < rank
                });
                self.classes.get(place).map(|class| class.time_us)
            }
            (Metric::Throughput, _) => {
                ratio(total(|piece| piece.arrived), total(|piece| piece.time_s))
            }
            (Metric::Failed, _) => {
                let failed = total(|piece| piece.failed);
                ratio(failed, answers + failed)
            }
            _ => ratio(total(|piece| piece.latency_sum_us), answers),
        }
    }
}
