//! Figures for a page such as README.md.

use super::text::readme_table;
use crate::Record;

/// The lines for such a page: how they came to be, where, and the table.
#[must_use]
pub fn readme_block(record: &Record) -> String {
    let (title, machine) = (&record.title, &record.machine);
    format!(
        "{title}, as `dormouse bench load … --readme README.md` measured it here\n\
         ({machine}):\n\n```text\n{}\n```\n",
        readme_table(record).trim_end()
    )
}
