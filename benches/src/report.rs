//! A record for people: a table, and a block of README.md.

use comfy_table::{CellAlignment, Table, presets};

use crate::record::{Record, Row};

const HEADER: [&str; 8] = [
    "WHAT",
    "UNIT",
    "OURS",
    "(middle half)",
    "FLOOR",
    "(middle half)",
    "RATIO",
    "LIMIT",
];

/// The rows as a table, one a line, each ending in a line break.
#[must_use]
pub fn table(record: &Record) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(HEADER);
    for row in &record.rows {
        table.add_row(cells(row));
    }
    text(table, 2)
}

/// A table as text, with two blanks between its columns, of which the first `names` are not numbers.
pub(crate) fn text(mut table: Table, names: usize) -> String {
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if index >= names {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let lines = table.to_string();
    let lines = lines.lines().map(|line| format!("{}\n", line.trim_end()));
    lines.collect()
}

fn cells(row: &Row) -> [String; HEADER.len()] {
    let or_dash = |value: Option<f64>| value.map_or_else(|| "–".to_owned(), short);
    let half = |half: [f64; 2]| format!("{}…{}", short(half[0]), short(half[1]));
    let limit = match row.limit {
        None => String::new(),
        Some(limit) if row.is_over() => format!("{} OVER", short(limit)),
        Some(limit) => short(limit),
    };
    [
        row.name.clone(),
        row.unit.to_owned(),
        short(row.ours),
        half(row.spread.ours),
        or_dash(row.floor),
        row.spread.floor.map(half).unwrap_or_default(),
        or_dash(row.ratio),
        limit,
    ]
}

/// Three digits that count, or all before the point.
fn short(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        size if size < 10.0 => format!("{value:.2}"),
        size if size < 100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

/// The lines for a page such as README.md: how they came to be, where, and the table.
#[must_use]
pub fn readme_block(record: &Record) -> String {
    let (machine, table) = (&record.machine, table(record));
    format!(
        "What `dormouse bench engine --readme README.md` measured here\n\
         ({machine}):\n\n```text\n{table}```\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::tests::record;

    #[test]
    fn a_table_has_a_line_for_each_row() {
        let text = table(&record());
        let lines: Vec<Vec<&str>> = text
            .lines()
            .map(|line| {
                line.split("  ")
                    .map(str::trim)
                    .filter(|cell| !cell.is_empty())
                    .collect()
            })
            .collect();
        assert_eq!(lines[0], HEADER);
        assert_eq!(
            lines[1],
            [
                "first-exit/hello",
                "µs",
                "3.00",
                "2.50…3.50",
                "2.00",
                "2.00…2.00",
                "1.50",
                "1.25 OVER"
            ]
        );
        assert_eq!(
            lines[2],
            [
                "memory/pss/100",
                "MiB",
                "0.25",
                "0.25…0.25",
                "–",
                "–",
                "0.40"
            ]
        );
        assert_eq!(lines.len(), 3);
        assert!(text.lines().all(|line| line == line.trim_end()));
    }

    #[test]
    fn numbers_keep_the_digits_that_count() {
        let texts = [0.0, 0.004, 1.234, 12.34, 123.4, 12345.6].map(short);
        assert_eq!(texts, ["0", "0.00", "1.23", "12.3", "123", "12346"]);
    }

    #[test]
    fn a_page_is_told_of_the_machine() {
        let block = readme_block(&record());
        assert!(block.contains("(A CPU, 2 cores"), "{block}");
        assert!(block.contains("\nfirst-exit/hello "), "{block}");
    }
}
