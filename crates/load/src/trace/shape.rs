//! Which functions stand for all of them.

/// Parts of the window in which invocations are counted, for the rate curve.
const CURVE: usize = 32;
/// Classes of durations, each twice as long as the one before: below 2 ms, …, 32 s and more.
const CLASSES: usize = 16;

/// How a function's invocations lie in time and how long they take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape([f32; CURVE + CLASSES]);

/// A function that may be chosen.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Candidate {
    /// Its invocations in the window.
    pub(super) count: u64,
    pub(super) shape: Shape,
}

/// A function that was.
#[derive(Debug, Clone, Copy)]
pub(super) struct Chosen {
    /// Its place among the candidates.
    pub(super) index: usize,
    /// The share of its invocations that stay.
    pub(super) keep: f64,
}

impl Default for Shape {
    fn default() -> Self {
        Self([0.0; CURVE + CLASSES])
    }
}

impl Shape {
    /// Counts invocations at one time, given as its share of the window.
    pub(super) fn add_at(&mut self, share: f64, count: f32) {
        let part = ((share * CURVE as f64) as usize).min(CURVE - 1);
        if let Some(sum) = self.0.get_mut(part) {
            *sum += count;
        }
    }

    /// Counts invocations of one duration.
    pub(super) fn add_duration(&mut self, duration_us: u64, count: f32) {
        let class = ((duration_us / 1000).max(1).ilog2() as usize).min(CLASSES - 1);
        if let Some(sum) = self.0.get_mut(CURVE + class) {
            *sum += count;
        }
    }
}

/// Chooses at most `most` of the functions that were invoked, the most popular first.
///
/// The functions are put into order by popularity and cut into as many strata of equal size as
/// there are functions to choose, if need be within a function. Each stratum is represented by one
/// of its functions, thinned to the stratum's mean: so the n most popular of the chosen have, but
/// for chance, the share of the invocations that the n first strata have. Which function it is
/// decides what the rate curve and the durations look like: it is the one that brings the sums over
/// what was chosen so far nearest to those over the strata so far.
///
/// Functions are thinned, never multiplied, so nothing is busier than it was.
pub(super) fn choose(candidates: &[Candidate], most: Option<usize>) -> Vec<Chosen> {
    let mut order: Vec<(usize, &Candidate)> = candidates
        .iter()
        .enumerate()
        .filter(|(_, candidate)| candidate.count > 0)
        .collect();
    order.sort_by_key(|(index, candidate)| (std::cmp::Reverse(candidate.count), *index));
    let all = order.len();
    let Some(strata) = most.filter(|most| *most < all) else {
        let whole = |(index, _)| Chosen { index, keep: 1.0 };
        return order.into_iter().map(whole).collect();
    };
    // What the chosen functions still lack: the sum over the strata less that over the chosen.
    let mut lack = [0.0_f64; CURVE + CLASSES];
    let mut chosen = Vec::with_capacity(strata);
    for stratum in 0..strata {
        // In parts of a function, of which each has `strata` and each stratum `all`.
        let (start, end) = (stratum * all, (stratum + 1) * all);
        let members = order.get(start / strata..end.div_ceil(strata));
        let mut mean = 0.0;
        for (place, (_, member)) in (start / strata..).zip(members.unwrap_or_default()) {
            let parts = end.min((place + 1) * strata) - start.max(place * strata);
            let weight = parts as f64 / all as f64;
            mean += member.count as f64 * weight;
            add(&mut lack, &member.shape, weight);
        }
        // A function that is cut stands only for the second of its strata, where it is the most
        // popular: in each there must be one that is no less popular than the mean.
        let members = order.get(start / strata..end / strata);
        let members = members.unwrap_or_default();
        let mut best: Option<(f64, Chosen, [f64; CURVE + CLASSES])> = None;
        for (place, (index, member)) in members.iter().enumerate() {
            let keep = mean / member.count as f64;
            // The first is the most popular: rounding must not exclude it.
            if keep > 1.0 && place > 0 {
                break;
            }
            let keep = keep.min(1.0);
            let mut rest = lack;
            add(&mut rest, &member.shape, -keep);
            let distance: f64 = rest.iter().map(|part| part * part).sum();
            if best.as_ref().is_none_or(|(least, ..)| distance < *least) {
                let index = *index;
                best = Some((distance, Chosen { index, keep }, rest));
            }
        }
        if let Some((_, best, rest)) = best {
            lack = rest;
            chosen.push(best);
        }
    }
    chosen
}

fn add(sums: &mut [f64; CURVE + CLASSES], shape: &Shape, weight: f64) {
    for (sum, part) in sums.iter_mut().zip(shape.0) {
        *sum += f64::from(part) * weight;
    }
}
