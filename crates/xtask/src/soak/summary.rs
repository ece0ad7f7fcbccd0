//! One summary, for people and for README.md.

use comfy_table::{CellAlignment, Table, presets};
use hdrhistogram::Histogram;

use super::chaos::Events;
use super::judge::{CRASH_LOOP, REFUSALS};
use super::load::{Report, Tally};
use super::requests::FUNCTIONS;
use super::resources::{Resources, Usage};

/// All that a soak learned.
pub(super) struct Summary {
    /// Requests per second that were dealt with in the closed loop.
    pub(super) borne: f64,
    /// Requests per second that were offered.
    pub(super) offered: f64,
    pub(super) report: Report,
    pub(super) kills: u64,
    pub(super) events: Events,
    pub(super) before: Resources,
    pub(super) after: Resources,
    /// What must not be, one sentence each.
    pub(super) wrong: Vec<String>,
}

impl Summary {
    /// The tables, with how often things happened, or how often in a minute: that compares with runs
    /// that took longer.
    pub(super) fn tables(&self, is_by_minute: bool) -> String {
        let minutes = self.report.took.as_secs_f64() / 60.0;
        let count = |number: u64| {
            if is_by_minute {
                figure(number as f64 / minutes)
            } else {
                number.to_string()
            }
        };
        let unit = if is_by_minute { "a minute" } else { "times" };
        let tables = [
            self.requests(&count),
            self.happened(&count, unit),
            self.rates(),
            self.latencies(),
            self.resources(),
        ];
        tables.join("\n\n")
    }

    /// Requests by function and outcome. What must not be is counted in any case.
    fn requests(&self, count: &dyn Fn(u64) -> String) -> String {
        let head = [
            "REQUESTS", "offered", "answered", "refused", "failed", "lost", "wrong", "hung",
        ];
        let row = |name: &str, tally: &Tally| {
            [
                name.to_owned(),
                count(tally.asked),
                count(tally.answered),
                count(tally.refused),
                count(tally.failed),
                count(tally.lost),
                tally.wrong.to_string(),
                tally.hung.to_string(),
            ]
        };
        let functions = FUNCTIONS.iter().zip(&self.report.tallies);
        let mut rows: Vec<_> = functions
            .map(|(function, tally)| row(function.name, tally))
            .collect();
        rows.push(row("all", &self.report.total()));
        table(&head, &rows)
    }

    /// What else happened.
    fn happened(&self, count: &dyn Fn(u64) -> String, unit: &str) -> String {
        let events = &self.events;
        let mut rows = vec![
            ["workers killed".to_owned(), count(self.kills)],
            ["deployed again".to_owned(), count(events.deployed)],
            ["warmed".to_owned(), count(events.warmed)],
            [
                "functions removed".to_owned(),
                count(events.functions_removed),
            ],
            [
                "snapshots removed".to_owned(),
                count(events.snapshots_removed),
            ],
            ["store collected".to_owned(), count(events.collections)],
            ["of these refused or lost".to_owned(), count(events.refused)],
        ];
        let refusals = REFUSALS.iter().chain([&CRASH_LOOP]);
        rows.extend(refusals.map(|code| {
            let number = self.report.refusals.get(*code).copied();
            [format!("refused: {code}"), count(number.unwrap_or(0))]
        }));
        table(&["WHAT", unit], &rows)
    }

    /// What the machine bears, and what it was offered.
    fn rates(&self) -> String {
        let rows = [("borne", self.borne), ("offered", self.offered)];
        let rows = rows.map(|(name, rate)| [name.to_owned(), figure(rate)]);
        table(&["A SECOND", "requests"], &rows)
    }

    /// How long what was answered took.
    fn latencies(&self) -> String {
        let head = ["ANSWERED, ms", "p50", "p90", "p99", "p99.9", "max"];
        let row = |name: &str, times: &Histogram<u64>| {
            let ms = |share| figure(times.value_at_quantile(share) as f64 / 1e3);
            [
                name.to_owned(),
                ms(0.5),
                ms(0.9),
                ms(0.99),
                ms(0.999),
                figure(times.max() as f64 / 1e3),
            ]
        };
        let rows = [
            row("since it was due", &self.report.from_due_us),
            row("since it was sent", &self.report.from_sent_us),
        ];
        table(&head, &rows)
    }

    fn resources(&self) -> String {
        let (before, after) = (&self.before, &self.after);
        let mut rows = Vec::new();
        for (who, before, after) in [
            ("server", before.front, after.front),
            ("workers", before.workers, after.workers),
        ] {
            let mib = |usage: Usage| figure(usage.pss_kib as f64 / 1024.0);
            let both = |what: &str, of: fn(&Usage) -> u64| {
                [
                    format!("{who}, {what}"),
                    of(&before).to_string(),
                    of(&after).to_string(),
                ]
            };
            rows.push([format!("{who}, MiB"), mib(before), mib(after)]);
            rows.push(both("descriptors", |usage| usage.descriptors));
            rows.push(both("threads", |usage| usage.threads));
            rows.push(both("processes", |usage| usage.processes));
        }
        let zombies = [before.zombies, after.zombies].map(|zombies| zombies.to_string());
        let [before, after] = zombies;
        rows.push(["zombies".to_owned(), before, after]);
        table(&["HELD", "before", "after"], &rows)
    }

    /// The whole of it.
    pub(super) fn text(&self, machine: &str, seed: u64) -> String {
        let verdict = match self.wrong.len() {
            0 => "Nothing went wrong.".to_owned(),
            wrong => format!("Something went wrong, {wrong} in all; the error says what."),
        };
        format!(
            "Soaked for {} s, seed {seed}, on {machine}.\n\n{}\n\n{verdict}",
            self.report.took.as_secs(),
            self.tables(false)
        )
    }
}

/// Three digits that matter, and no exponent.
fn figure(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        size if size >= 99.95 => format!("{value:.0}"),
        size if size >= 9.995 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// Names to the left, numbers to the right, at least two blanks between.
fn table<const COLUMNS: usize>(head: &[&str; COLUMNS], rows: &[[String; COLUMNS]]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(head.iter());
    for row in rows {
        table.add_row(row.iter());
    }
    for (place, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if place > 0 {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let text = table.to_string();
    let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_three_digits() {
        for (value, expected) in [
            (0.0, "0"),
            (0.123, "0.12"),
            (9.994, "9.99"),
            (12.34, "12.3"),
            (99.96, "100"),
            (1234.5, "1234"),
        ] {
            assert_eq!(figure(value), expected);
        }
    }

    #[test]
    fn columns_stand_two_blanks_apart() {
        let rows = [["a b", "1"], ["c", "1234567"]].map(|row| row.map(str::to_owned));
        let text = table(&["WHAT", "times"], &rows);
        assert_eq!(text, "WHAT    times\na b         1\nc     1234567");
    }
}
