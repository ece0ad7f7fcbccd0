//! Scales of axes, and where their ticks are.

use super::numbers::{plain_percent, short};

/// An axis: which values it shows, and which of them it names.
#[derive(Debug)]
pub(super) struct Axis {
    from: f64,
    to: f64,
    is_log: bool,
    /// Values and their names, ascending.
    pub(super) ticks: Vec<(f64, String)>,
}

impl Axis {
    /// From 0 to at least `most`, in round steps.
    pub(super) fn linear(most: f64) -> Self {
        let most = if most.is_finite() && most > 0.0 {
            most
        } else {
            1.0
        };
        let step = round_step(most / 4.0);
        let steps = (most / step - 1e-9).ceil().max(1.0);
        Self {
            from: 0.0,
            to: steps * step,
            is_log: false,
            ticks: (0..=steps as u32)
                .map(|index| f64::from(index) * step)
                .map(|value| (value, label(value)))
                .collect(),
        }
    }

    /// From 0 to exactly the end, in microseconds; ticks in seconds.
    pub(super) fn seconds(end_us: u64) -> Self {
        let end = (end_us as f64 / 1e6).max(1e-6);
        let step = round_step(end / 9.0);
        let ticks = (0..=12).map(|index| f64::from(index) * step);
        Self {
            from: 0.0,
            to: end * 1e6,
            is_log: false,
            ticks: ticks
                .take_while(|value| *value <= end * (1.0 + 1e-9))
                .map(|value| (value * 1e6, label(value)))
                .collect(),
        }
    }

    /// Times in microseconds on a logarithmic scale that has both in it; ticks in milliseconds.
    pub(super) fn log_ms(least_us: u64, most_us: u64) -> Self {
        let least = (least_us.max(1)) as f64;
        let most = (most_us.max(1) as f64).max(least);
        let steps: &[f64] = match (most / least).log10() {
            decades if decades < 2.5 => &[1.0, 2.0, 5.0],
            decades if decades < 4.0 => &[1.0, 3.0],
            _ => &[1.0],
        };
        let all: Vec<f64> = (-1..=12)
            .flat_map(|decade| steps.iter().map(move |step| step * 10f64.powi(decade)))
            .collect();
        let from = all.iter().rev().find(|value| **value <= least);
        let from = from.copied().unwrap_or(1.0);
        let to = all
            .iter()
            .find(|value| **value >= most && **value > from * 1.5);
        let to = to.copied().unwrap_or(most.max(from * 10.0));
        let shown = all
            .into_iter()
            .filter(|value| *value >= from && *value <= to);
        Self {
            from,
            to,
            is_log: true,
            ticks: shown.map(|value| (value, label(value / 1e3))).collect(),
        }
    }

    /// Shares of `count` things by how many nines they have: 0 %, 50 %, 90 %, 99 %, and so on.
    pub(super) fn nines(count: u64) -> Self {
        let to = nines_of(count);
        let decades = (1..=9).map(|decade| 1.0 - 10f64.powi(-decade));
        let shares = [0.0, 0.5].into_iter().chain(decades);
        Self {
            from: 0.0,
            to,
            is_log: false,
            ticks: shares
                .map(|share| (nines(share), format!("{} %", plain_percent(share))))
                .take_while(|(value, _)| *value <= to + 1e-6)
                .collect(),
        }
    }

    /// Where a value is, from 0 to 1; what is beyond an end is at it.
    pub(super) fn share(&self, value: f64) -> f64 {
        let share = if self.is_log {
            (value.max(self.from) / self.from).ln() / (self.to / self.from).ln()
        } else {
            (value - self.from) / (self.to - self.from)
        };
        if share.is_finite() {
            share.clamp(0.0, 1.0)
        } else {
            0.0
        }
    }
}

/// How many nines a share has: 1 for 90 %, 2 for 99 %.
pub(super) fn nines(share: f64) -> f64 {
    -(1.0 - share).log10()
}

/// How many nines so many things can tell apart; at least one.
pub(super) fn nines_of(count: u64) -> f64 {
    (count.max(10) as f64).log10()
}

/// The least of 1, 2, 5, 10, … that is no less.
fn round_step(least: f64) -> f64 {
    let decade = 10f64.powf(least.log10().floor());
    let steps = [1.0, 2.0, 5.0, 10.0].map(|step| step * decade);
    let fits = steps.into_iter().find(|step| *step >= least * (1.0 - 1e-9));
    fits.unwrap_or(least)
}

/// A round number without idle digits.
fn label(value: f64) -> String {
    if (1e3..1e15).contains(&value) {
        return super::numbers::count(value.round() as u64);
    }
    let text = format!("{value:.6}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if text == "0" && value != 0.0 {
        short(value)
    } else {
        text.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(axis: &Axis) -> Vec<&str> {
        axis.ticks.iter().map(|(_, label)| label.as_str()).collect()
    }

    #[test]
    fn linear_ticks_are_round_and_hold_the_greatest() {
        assert_eq!(
            labels(&Axis::linear(400.0)),
            ["0", "100", "200", "300", "400"]
        );
        assert_eq!(labels(&Axis::linear(401.0)), ["0", "200", "400", "600"]);
        assert_eq!(
            labels(&Axis::linear(0.7)),
            ["0", "0.2", "0.4", "0.6", "0.8"]
        );
        for nothing in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert_eq!(Axis::linear(nothing).to, 1.0, "{nothing}");
        }
    }

    #[test]
    fn a_log_axis_holds_both_ends() {
        for (least, most) in [
            (0, 0),
            (1, 1),
            (118, 118),
            (250, 9_000),
            (3, 86_400_000_000),
        ] {
            let axis = Axis::log_ms(least, most);
            assert!(axis.from <= least.max(1) as f64, "{axis:?}");
            assert!(axis.to >= most as f64 && axis.to > axis.from, "{axis:?}");
            assert!((2..=13).contains(&axis.ticks.len()), "{axis:?}");
            assert!(axis.ticks.is_sorted_by(|a, b| a.0 < b.0));
        }
        assert_eq!(
            labels(&Axis::log_ms(250, 9_000)),
            ["0.2", "0.5", "1", "2", "5", "10"]
        );
    }

    #[test]
    fn nines_end_where_the_count_does() {
        assert_eq!(
            labels(&Axis::nines(20_000)),
            ["0 %", "50 %", "90 %", "99 %", "99.9 %", "99.99 %"]
        );
        assert_eq!(labels(&Axis::nines(0)), ["0 %", "50 %", "90 %"]);
        let axis = Axis::nines(1000);
        assert!((axis.share(nines(0.9)) - 1.0 / 3.0).abs() < 1e-9);
        assert_eq!(axis.share(f64::INFINITY), 0.0);
    }

    #[test]
    fn seconds_end_with_the_run() {
        let axis = Axis::seconds(32_000_000);
        assert_eq!(labels(&axis), ["0", "5", "10", "15", "20", "25", "30"]);
        assert_eq!(axis.share(32e6), 1.0);
        assert_eq!(labels(&Axis::seconds(0)).first(), Some(&"0"));
    }

    #[test]
    fn positions_stay_on_the_axis() {
        let axis = Axis::log_ms(100, 10_000);
        for value in [f64::NAN, -1.0, 0.0, 1.0, 1e12] {
            assert!((0.0..=1.0).contains(&axis.share(value)), "{value}");
        }
        assert!(axis.share(1_000.0) > axis.share(500.0));
    }
}
