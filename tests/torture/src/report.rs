//! What was done, and what came of it.

use std::collections::BTreeMap;
use std::fmt;

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};

/// Counts of what has ended well, by kind and case.
#[derive(Debug, Default)]
pub struct Report {
    counts: BTreeMap<(&'static str, String, &'static str), u64>,
    notes: Vec<String>,
}

impl Report {
    /// Counts one case of a kind that has ended well, and how.
    pub fn count(&mut self, kind: &'static str, case: impl Into<String>, ended: &'static str) {
        *self.counts.entry((kind, case.into(), ended)).or_default() += 1;
    }

    /// Notes what could not be done.
    pub fn note(&mut self, note: String) {
        self.notes.push(note);
    }

    /// How many cases there were.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.counts.values().sum()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new();
        table
            .load_style(presets::NOTHING)
            .set_content_arrangement(ContentArrangement::Disabled)
            .set_header(["kind", "case", "ended", "count"]);
        for ((kind, case, ended), count) in &self.counts {
            table.add_row([*kind, case, *ended, &count.to_string()]);
        }
        if let Some(column) = table.column_mut(3) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        write!(f, "{table}")?;
        for note in &self.notes {
            write!(f, "\n{note}")?;
        }
        Ok(())
    }
}
