//! Tables for a terminal.

use std::fmt::Write as _;

use comfy_table::{CellAlignment, Table, presets};

use super::numbers::{band, clipped, mean_ms, moment, ms, percent, percent_of, short, tame};
use crate::{Histogram, Record, Run};

/// The most characters that foreign text gets in a cell.
const CELL: usize = 100;

/// The record as text: a row for each run, then what there is to say of each.
#[must_use]
pub fn table(record: &Record) -> String {
    let mut text = format!(
        "{}\n{}, {}\n{}\n",
        tame(&record.title),
        tame(&record.target),
        moment(record.began_unix_ms),
        tame(&record.machine.to_string()),
    );
    for warning in record.machine.warnings() {
        line(&mut text, "warning", &warning);
    }
    text.push('\n');
    text.push_str(&runs(record));
    for run in &record.runs {
        text.push('\n');
        details(&mut text, run);
    }
    text
}

/// The runs in few columns, for a page such as README.md: one a line, each ending in a line break. Below
/// a run of several requests stands each of them.
#[must_use]
pub fn readme_table(record: &Record) -> String {
    let header = [
        "run",
        "offered/s",
        "achieved/s",
        "p50, ms",
        "p90, ms",
        "p99, ms",
        "p99.9, ms",
        "max, ms",
        "failed, %",
        "limited by",
    ];
    let row = |name: &str, rates: [String; 2], latency: &Histogram, failed: f64, limited: &str| {
        let mut row = vec![clipped(name, CELL)];
        row.extend(rates);
        row.extend(percentiles(latency));
        row.extend([percent(failed), limited.to_owned()]);
        row
    };
    let mut rows = Vec::new();
    for run in &record.runs {
        let rates = [short(run.offered_per_s()), short(run.achieved_per_s())];
        let limited = if run.is_client_limited() {
            "client"
        } else {
            ""
        };
        let failed = run.failed_share();
        rows.push(row(&run.name, rates, &run.latency, failed, limited));
        if run.requests.len() < 2 {
            continue;
        }
        for (request, share) in &run.requests {
            let name = format!("{}: {request}", run.name);
            let rates = [short(run.offered_of_per_s(share)), String::new()];
            rows.push(row(&name, rates, &share.latency, share.failed_share(), ""));
        }
    }
    aligned(&header, &[0, 9], rows.into_iter())
}

fn runs(record: &Record) -> String {
    let header = [
        "run",
        "pattern",
        "offered/s",
        "achieved/s",
        "p50, ms",
        "p90, ms",
        "p99, ms",
        "p99.9, ms",
        "max, ms",
        "service p99, ms",
        "failed, %",
        "start types",
    ];
    let rows = record.runs.iter().map(|run| {
        let mut row = vec![clipped(&run.name, CELL), clipped(&run.pattern, CELL)];
        row.extend([short(run.offered_per_s()), short(run.achieved_per_s())]);
        row.extend(percentiles(&run.latency));
        row.push(time(&run.service, 0.99));
        row.push(percent(run.failed_share()));
        let starts = run.starts.iter();
        let starts = starts.map(|(kind, share)| format!("{kind} {}", share.latency.count()));
        row.push(clipped(&starts.collect::<Vec<_>>().join(", "), CELL));
        row
    });
    aligned(&header, &[0, 1, 11], rows)
}

fn details(text: &mut String, run: &Run) {
    let interrupted = if run.interrupted {
        " (interrupted before its time)"
    } else {
        ""
    };
    let _ = writeln!(text, "{}{interrupted}", tame(&run.name));
    if run.client.limits.is_empty() {
        line(text, "client", "was not the limit");
    }
    for limit in &run.client.limits {
        line(text, "client was the limit", limit);
    }
    for finding in &run.findings {
        line(text, "finding", finding);
    }
    if run.answered == 0 {
        line(text, "answers", "none that were good");
    }
    part(text, &errors(run));
    if run.starts.len() > 1 {
        part(text, &shares("start type", &run.starts));
    }
    if run.requests.len() > 1 {
        part(text, &shares("request", &run.requests));
    }
    part(text, &stages(run));
    part(text, &breakdown(run));
}

fn line(text: &mut String, what: &str, says: &str) {
    let _ = writeln!(text, "{what}: {}", tame(says));
}

/// A table below what stands there, if it has rows.
fn part(text: &mut String, table: &str) {
    if !table.is_empty() {
        text.push('\n');
        text.push_str(table);
    }
}

fn errors(run: &Run) -> String {
    let all = run.answered.saturating_add(run.failed);
    let rows = run.errors.iter().map(|(kind, error)| {
        vec![
            clipped(kind, CELL),
            error.count.to_string(),
            percent_of(error.count, all),
            short(error.first_at_us as f64 / 1e6),
            clipped(&error.example, CELL),
        ]
    });
    let header = ["error", "count", "of all, %", "first at, s", "example"];
    aligned(&header, &[0, 4], rows)
}

fn shares(what: &str, shares: &std::collections::BTreeMap<String, crate::Share>) -> String {
    let header = [
        what,
        "answers",
        "failed",
        "p50, ms",
        "p90, ms",
        "p99, ms",
        "p99.9, ms",
        "max, ms",
    ];
    let rows = shares.iter().map(|(name, share)| {
        let mut row = vec![clipped(name, CELL), share.latency.count().to_string()];
        row.push(share.failed.to_string());
        row.extend(percentiles(&share.latency));
        row
    });
    aligned(&header, &[0], rows)
}

fn stages(run: &Run) -> String {
    let rows = run.stages.iter().map(|(name, times)| {
        vec![
            clipped(name, CELL),
            times.count().to_string(),
            time(times, 0.5),
            time(times, 0.99),
            time(times, 1.0),
        ]
    });
    let header = ["stage", "answers", "p50, ms", "p99, ms", "max, ms"];
    aligned(&header, &[0], rows)
}

/// A row for each band: its mean, and the parts that add up to it.
fn breakdown(run: &Run) -> String {
    let names = part_names(run);
    let mut header = vec!["answers by latency", "count", "mean, ms"];
    let titles: Vec<String> = names
        .iter()
        .map(|name| format!("{}, ms", clipped(name, CELL)))
        .collect();
    header.extend(titles.iter().map(String::as_str));
    let rows = run.breakdown.iter().map(|found| {
        let mut row = vec![
            band(found.from, found.to),
            found.count.to_string(),
            mean_ms(found.mean_us),
        ];
        for name in &names {
            let part = found.parts.iter().find(|part| part.name == **name);
            row.push(part.map_or_else(String::new, |part| mean_ms(part.mean_us)));
        }
        row
    });
    aligned(&header, &[0], rows)
}

/// The parts of all bands, in the order in which they come.
pub(super) fn part_names(run: &Run) -> Vec<&str> {
    let mut names: Vec<&str> = Vec::new();
    for part in run.breakdown.iter().flat_map(|band| &band.parts) {
        if !names.contains(&part.name.as_str()) {
            names.push(&part.name);
        }
    }
    names
}

fn percentiles(times: &Histogram) -> [String; 5] {
    [0.5, 0.9, 0.99, 0.999, 1.0].map(|share| time(times, share))
}

/// The time that a share does not exceed; a dash where there is none.
pub(super) fn time(times: &Histogram, share: f64) -> String {
    if times.is_empty() {
        "–".to_owned()
    } else {
        ms(times.quantile_us(share))
    }
}

/// A table without borders, its columns two spaces apart; nothing where it has no rows.
fn aligned(header: &[&str], left: &[usize], rows: impl Iterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(header);
    table.add_rows(rows);
    if table.row_count() == 0 {
        return String::new();
    }
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if !left.contains(&index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let lines = table.to_string();
    let lines = lines.lines().map(|line| format!("{}\n", line.trim_end()));
    lines.collect()
}
