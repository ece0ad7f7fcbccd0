//! What was done, and what came of it.

use std::collections::BTreeMap;
use std::fmt;

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};

/// Counts of what has ended well, by kind and case.
#[derive(Debug, Default)]
pub struct Report {
    counts: BTreeMap<(&'static str, String, &'static str), u64>,
    skipped: Vec<Skipped>,
}

/// Cases that were to be and were not.
#[derive(Debug)]
struct Skipped {
    kind: &'static str,
    cases: u64,
    reason: String,
}

impl Report {
    /// Counts one case of a kind that has ended well, and how.
    pub fn count(&mut self, kind: &'static str, case: impl Into<String>, ended: &'static str) {
        *self.counts.entry((kind, case.into(), ended)).or_default() += 1;
    }

    /// Counts cases of a kind that this host cannot do, and says so at once.
    pub fn skip(&mut self, kind: &'static str, cases: u64, reason: String) {
        eprintln!("SKIPPED: {cases} cases of {kind:?}: {reason}");
        self.skipped.push(Skipped {
            kind,
            cases,
            reason,
        });
    }

    /// How many cases were done.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.counts.values().sum()
    }

    /// How many were not.
    #[must_use]
    pub fn skipped(&self) -> u64 {
        self.skipped.iter().map(|skipped| skipped.cases).sum()
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
        for skipped in &self.skipped {
            table.add_row([skipped.kind, "", "SKIPPED", &skipped.cases.to_string()]);
        }
        if let Some(column) = table.column_mut(3) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        write!(f, "{table}")?;
        for Skipped { kind, reason, .. } in &self.skipped {
            write!(f, "\nSKIPPED: {kind}: {reason}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_skipped_is_in_the_table_and_not_among_the_done() {
        let mut report = Report::default();
        report.count("kill", "publish", "done before");
        report.skip("full disk", 7, "nothing can be mounted".to_owned());
        assert_eq!((report.total(), report.skipped()), (1, 7));
        let text = report.to_string();
        let row = text.lines().find(|line| line.contains("full disk"));
        let row: Vec<_> = row.expect("a row").split_whitespace().collect();
        assert_eq!(row, ["full", "disk", "SKIPPED", "7"]);
        assert!(
            text.ends_with("SKIPPED: full disk: nothing can be mounted"),
            "{text}"
        );
    }
}
