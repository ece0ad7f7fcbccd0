//! What is kept of a run: rows, and the machine that they were taken on.

use schemars::JsonSchema;
use serde::Serialize;

use crate::machine::Machine;
use crate::samples::{Pair, Samples};

/// A whole run.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct Record {
    /// Where it was taken.
    pub machine: Machine,
    /// What was measured, in the order of METHOD.md.
    pub rows: Vec<Row>,
}

/// One measurement beside its floor.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct Row {
    /// What was measured: a group, a slash, and which of the group.
    pub name: String,
    /// What `ours` and `floor` count.
    pub unit: &'static str,
    /// The median of Dormouse; where METHOD.md says so, the mean.
    pub ours: f64,
    /// The median of the floor; nothing where there is none.
    pub floor: Option<f64>,
    /// `ours` / `floor`.
    pub ratio: Option<f64>,
    /// What the ratio, or `ours` where there is no floor, may be at most; nothing where nothing is
    /// demanded.
    pub limit: Option<f64>,
    /// How far the measurements lie apart.
    pub spread: Spread,
}

/// The middle half of the measurements: the first and the third quartile.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, JsonSchema)]
pub struct Spread {
    /// Of Dormouse.
    pub ours: [f64; 2],
    /// Of the floor.
    pub floor: Option<[f64; 2]>,
}

impl Row {
    /// A row without a floor.
    #[must_use]
    pub fn alone(name: impl Into<String>, unit: &'static str, ours: &Samples) -> Self {
        Self::of_value(name, unit, ours.median(), ours)
    }

    /// A row without a floor, of another value than the median.
    #[must_use]
    pub fn of_value(
        name: impl Into<String>,
        unit: &'static str,
        value: f64,
        ours: &Samples,
    ) -> Self {
        Self {
            name: name.into(),
            unit,
            ours: rounded(value),
            floor: None,
            ratio: None,
            limit: None,
            spread: Spread {
                ours: ours.quartiles().map(rounded),
                floor: None,
            },
        }
    }

    /// A row beside its floor.
    #[must_use]
    pub fn beside(
        name: impl Into<String>,
        unit: &'static str,
        ours: &Samples,
        floor: &Samples,
    ) -> Self {
        let mut row = Self::alone(name, unit, ours);
        row.floor = Some(rounded(floor.median()));
        row.ratio = Some(rounded(ours.median() / floor.median())).filter(|ratio| ratio.is_finite());
        row.spread.floor = Some(floor.quartiles().map(rounded));
        row
    }

    /// A row of two sides that were measured in turn; nothing where there are no measurements.
    #[must_use]
    pub fn of_pair(name: impl Into<String>, unit: &'static str, pair: Pair) -> Option<Self> {
        let (ours, floor) = (Samples::new(pair.ours)?, Samples::new(pair.floor)?);
        Some(Self::beside(name, unit, &ours, &floor))
    }

    /// The same row with what it may be at most.
    #[must_use]
    pub fn with_limit(mut self, limit: f64) -> Self {
        self.limit = Some(limit);
        self
    }

    /// Whether the row is over its limit.
    #[must_use]
    pub fn is_over(&self) -> bool {
        let value = match self.floor {
            Some(_) => self.ratio.unwrap_or(f64::INFINITY),
            None => self.ours,
        };
        self.limit.is_some_and(|limit| value > limit)
    }
}

impl Record {
    /// The names of the rows that are over their limits.
    #[must_use]
    pub fn over(&self) -> Vec<&str> {
        let over = self.rows.iter().filter(|row| row.is_over());
        over.map(|row| row.name.as_str()).collect()
    }
}

/// Three digits behind the point say more than any measurement here.
fn rounded(value: f64) -> f64 {
    (value * 1e3).round() / 1e3
}

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::json;

    use super::*;

    pub(crate) fn record() -> Record {
        let samples = |values: &[f64]| Samples::new(values.to_vec()).unwrap();
        let (ours, floor) = (samples(&[3.0, 2.0, 4.0]), samples(&[2.0, 2.0, 2.0]));
        Record {
            machine: Machine::for_tests(),
            rows: vec![
                Row::beside("first-exit/hello", "µs", &ours, &floor).with_limit(1.25),
                Row::alone("memory/pss/100", "MiB", &samples(&[0.25])).with_limit(0.4),
            ],
        }
    }

    #[test]
    fn the_json_has_just_what_is_documented() {
        let value = serde_json::to_value(record()).unwrap();
        let members: Vec<_> = value.as_object().unwrap().keys().collect();
        assert_eq!(members, ["machine", "rows"]);
        assert_eq!(
            value["rows"],
            json!([
                {
                    "name": "first-exit/hello", "unit": "µs", "ours": 3.0, "floor": 2.0,
                    "ratio": 1.5, "limit": 1.25,
                    "spread": {"ours": [2.5, 3.5], "floor": [2.0, 2.0]},
                },
                {
                    "name": "memory/pss/100", "unit": "MiB", "ours": 0.25, "floor": null,
                    "ratio": null, "limit": 0.4,
                    "spread": {"ours": [0.25, 0.25], "floor": null},
                },
            ])
        );
    }

    #[test]
    fn a_limit_is_for_the_ratio_or_else_for_the_value() {
        let record = record();
        assert_eq!(record.over(), ["first-exit/hello"]);
        let [beside, alone] = &record.rows[..] else {
            panic!("two rows");
        };
        assert!(!beside.clone().with_limit(1.5).is_over());
        assert!(alone.clone().with_limit(0.2).is_over());
        let unlimited = Row {
            limit: None,
            ..beside.clone()
        };
        assert!(!unlimited.is_over());
    }

    #[test]
    fn what_takes_no_time_at_all_has_no_ratio() {
        let ours = Samples::new(vec![1.0]).unwrap();
        let floor = Samples::new(vec![0.0]).unwrap();
        let row = Row::beside("a", "µs", &ours, &floor).with_limit(1.0);
        assert_eq!(row.ratio, None);
        assert!(row.is_over(), "a limit that cannot be checked is not kept");
    }
}
