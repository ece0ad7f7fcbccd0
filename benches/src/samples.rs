//! Taking measurements side by side, and what is said of them.

use std::time::{Duration, Instant};

/// Numbers of one kind, at least one.
#[derive(Debug, Clone, PartialEq)]
pub struct Samples {
    /// Ascending.
    sorted: Vec<f64>,
}

impl Samples {
    /// Takes measurements in any order; nothing where there are none, or one is not a number.
    #[must_use]
    pub fn new(mut values: Vec<f64>) -> Option<Self> {
        if values.is_empty() || values.iter().any(|value| value.is_nan()) {
            return None;
        }
        values.sort_unstable_by(f64::total_cmp);
        Some(Self { sorted: values })
    }

    /// The value that `share` (0 to 1) of all values are below, between two neighbours in
    /// proportion.
    #[must_use]
    pub fn quantile(&self, share: f64) -> f64 {
        let last = self.sorted.len() - 1;
        let place = share.clamp(0.0, 1.0) * last as f64;
        let below = place.floor() as usize;
        let above = (below + 1).min(last);
        let part = place - below as f64;
        self.sorted[below] * (1.0 - part) + self.sorted[above] * part
    }

    /// The middle.
    #[must_use]
    pub fn median(&self) -> f64 {
        self.quantile(0.5)
    }

    /// The middle half.
    #[must_use]
    pub fn quartiles(&self) -> [f64; 2] {
        [self.quantile(0.25), self.quantile(0.75)]
    }
}

/// Which of two is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Dormouse.
    Ours,
    /// What it is compared with.
    Floor,
}

/// Calls `work` for each side in turn, `rounds` times, so that what changes on the machine meanwhile
/// meets both alike. Every second round goes the other way around.
///
/// # Errors
/// The first of `work`.
pub fn in_turn<E>(rounds: usize, mut work: impl FnMut(Side) -> Result<(), E>) -> Result<(), E> {
    for round in 0..rounds.max(1) {
        let mut sides = [Side::Ours, Side::Floor];
        if round % 2 == 1 {
            sides.reverse();
        }
        for side in sides {
            work(side)?;
        }
    }
    Ok(())
}

/// Takes `rounds` measurements of each side, [`in_turn`].
///
/// # Errors
/// The first of `measure`.
pub fn interleaved<E>(
    rounds: usize,
    mut measure: impl FnMut(Side) -> Result<f64, E>,
) -> Result<Pair, E> {
    let mut pair = Pair::default();
    in_turn(rounds, |side| {
        pair.side(side).push(measure(side)?);
        Ok(())
    })?;
    Ok(pair)
}

/// Measurements of both sides, in the order in which they were taken.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Pair {
    /// Dormouse.
    pub ours: Vec<f64>,
    /// What it is compared with.
    pub floor: Vec<f64>,
}

impl Pair {
    /// The measurements of one side.
    pub fn side(&mut self, side: Side) -> &mut Vec<f64> {
        match side {
            Side::Ours => &mut self.ours,
            Side::Floor => &mut self.floor,
        }
    }
}

/// How long `work` takes, in microseconds.
///
/// # Errors
/// That of `work`.
pub fn timed_us<T, E>(work: impl FnOnce() -> Result<T, E>) -> Result<(T, f64), E> {
    let begun = Instant::now();
    let done = work()?;
    Ok((done, us(begun.elapsed())))
}

/// A time in microseconds.
#[must_use]
pub fn us(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_lie_between_neighbours() {
        let samples = Samples::new(vec![4.0, 1.0, 3.0, 2.0]).unwrap();
        assert_eq!(samples.median(), 2.5);
        assert_eq!(samples.quartiles(), [1.75, 3.25]);
        assert_eq!(samples.quantile(0.0), 1.0);
        assert_eq!(samples.quantile(1.0), 4.0);
        assert_eq!(Samples::new(vec![7.0]).unwrap().quartiles(), [7.0, 7.0]);
    }

    #[test]
    fn what_is_no_number_makes_no_samples() {
        assert_eq!(Samples::new(Vec::new()), None);
        assert_eq!(Samples::new(vec![1.0, f64::NAN]), None);
    }

    #[test]
    fn sides_take_turns() {
        let mut order = Vec::new();
        let pair = interleaved(3, |side| {
            order.push(side);
            Ok::<_, ()>(order.len() as f64)
        })
        .unwrap();
        use Side::{Floor, Ours};
        assert_eq!(order, [Ours, Floor, Floor, Ours, Ours, Floor]);
        assert_eq!(pair.ours, [1.0, 4.0, 5.0]);
        assert_eq!(pair.floor, [2.0, 3.0, 6.0]);
        assert_eq!(interleaved(3, |_| Err::<f64, _>("no")), Err("no"));
    }
}
