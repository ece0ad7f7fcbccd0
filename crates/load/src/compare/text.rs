//! A comparison for people.

use std::fmt;

use comfy_table::{CellAlignment, Table, presets};

use super::{Change, Comparison, Metric, Verdict};

const HEADER: [&str; 7] = [
    "RUN", "METRIC", "BASE", "NEW", "CHANGE", "INTERVAL", "VERDICT",
];

/// The table, what there is to say of it, and the sum in one line.
impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "base: {} ({})", self.base.title, self.base.target)?;
        writeln!(f, "new:  {} ({})\n", self.new.title, self.new.target)?;
        for line in self.table().lines() {
            writeln!(f, "{}", line.trim_end())?;
        }
        let notes = self.notes();
        if !notes.is_empty() {
            writeln!(f)?;
        }
        for note in notes {
            writeln!(f, "- {note}")?;
        }
        let counts = [
            Verdict::Worse,
            Verdict::Better,
            Verdict::Same,
            Verdict::Unclear,
            Verdict::NotComparable,
        ]
        .map(|verdict| format!("{} {verdict}", self.count(verdict)));
        writeln!(f, "\n{}", counts.join(", "))
    }
}

impl Comparison {
    fn table(&self) -> String {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        table.set_header(HEADER);
        for run in &self.runs {
            for change in &run.changes {
                table.add_row(cells(&run.base, change));
            }
        }
        for (index, column) in table.column_iter_mut().enumerate() {
            column.set_padding((0, 2));
            if (2..6).contains(&index) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        table.to_string()
    }

    /// All sentences, those of runs with the run's name.
    fn notes(&self) -> Vec<String> {
        let mut notes = self.warnings.clone();
        for run in &self.runs {
            let name = if run.base == run.new {
                run.base.clone()
            } else {
                format!("{} and {}", run.base, run.new)
            };
            notes.extend(run.warnings.iter().map(|text| format!("{name}: {text}")));
            for change in &run.changes {
                let Change {
                    metric, verdict, ..
                } = change;
                let reason = change.reason.iter();
                notes.extend(reason.map(|why| format!("{name}: {metric} is {verdict}: {why}")));
            }
        }
        for (names, side) in [(&self.only_in_base, "base"), (&self.only_in_new, "new")] {
            if !names.is_empty() {
                notes.push(format!("only in {side}: {}", names.join(", ")));
            }
        }
        notes
    }
}

fn cells(run: &str, change: &Change) -> [String; HEADER.len()] {
    let dash = || "–".to_owned();
    let metric = change.metric;
    let of = |value: Option<f64>| value.map_or_else(dash, |value| size(metric, value));
    [
        run.to_owned(),
        metric.to_string(),
        of(change.base),
        of(change.new),
        change
            .change
            .map_or_else(dash, |by| self::change(metric, by)),
        change
            .interval
            .map_or_else(dash, |between| interval(metric, between)),
        change.verdict.to_string(),
    ]
}

/// In words.
impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Worse => "worse",
            Self::Better => "better",
            Self::Same => "same",
            Self::Unclear => "unclear",
            Self::NotComparable => "not comparable",
        })
    }
}

/// A metric's value with its unit.
fn size(metric: Metric, value: f64) -> String {
    match metric {
        Metric::Throughput => format!("{}/s", digits(value)),
        Metric::Failed => format!("{} %", digits(value * 100.0)),
        _ if value < 1e3 => format!("{} µs", digits(value)),
        _ if value < 1e6 => format!("{} ms", digits(value / 1e3)),
        _ => format!("{} s", digits(value / 1e6)),
    }
}

/// A change: percent, or for a share the difference in percentage points.
pub(super) fn change(metric: Metric, change: f64) -> String {
    format!("{} {}", percent(metric, change), unit(metric))
}

/// Two changes that another one lies between.
pub(super) fn interval(metric: Metric, [low, high]: [f64; 2]) -> String {
    let (low, high) = (percent(metric, low), percent(metric, high));
    format!("{low}…{high} {}", unit(metric))
}

fn percent(metric: Metric, change: f64) -> String {
    let percent = change * 100.0;
    match metric {
        Metric::Failed => format!("{percent:+.2}"),
        _ => format!("{percent:+.1}"),
    }
}

fn unit(metric: Metric) -> &'static str {
    match metric {
        Metric::Failed => "points",
        _ => "%",
    }
}

/// Three digits that count, or all before the point.
fn digits(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        size if size < 10.0 => format!("{value:.2}"),
        size if size < 100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}
