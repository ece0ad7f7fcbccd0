//! Figures for a page such as README.md, between two marks.

use super::text::readme_table;
use crate::Record;

/// What the table stands between.
pub const MARKS: [&str; 2] = ["<!-- load:begin -->", "<!-- load:end -->"];

/// What stands before the marks, and after them.
fn around(text: &str) -> Option<(&str, &str)> {
    let (before, rest) = text.split_once(MARKS[0])?;
    let (_, after) = rest.split_once(MARKS[1])?;
    Some((before, after))
}

/// Whether a table can be written into a text.
#[must_use]
pub fn has_marks(text: &str) -> bool {
    around(text).is_some()
}

/// The text with this record's table between its marks; the same text where it has none.
#[must_use]
pub fn into_readme(text: &str, record: &Record) -> String {
    let Some((before, after)) = around(text) else {
        return text.to_owned();
    };
    let [begin, end] = MARKS;
    let machine = &record.machine;
    let title = &record.title;
    let table = readme_table(record);
    format!(
        "{before}{begin}\n{title}, as `dormouse bench load … --readme README.md` measured it here\n\
         ({machine}):\n\n```text\n{}\n```\n{end}{after}",
        table.trim_end()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{FORMAT, Machine};

    #[test]
    fn only_what_stands_between_the_marks_changes() {
        let record = Record {
            format: FORMAT.to_owned(),
            title: "Much".to_owned(),
            target: "http://h".to_owned(),
            machine: Machine::now(),
            began_unix_ms: 0,
            runs: Vec::new(),
        };
        let [begin, end] = MARKS;
        let written = into_readme(&format!("a\n{begin}\nold\n{end}\nb\n"), &record);
        assert!(
            written.starts_with(&format!("a\n{begin}\nMuch, as ")),
            "{written}"
        );
        assert!(written.ends_with(&format!("```\n{end}\nb\n")), "{written}");
        assert!(!written.contains("old") && has_marks(&written));
        assert_eq!(into_readme(&written, &record), written);
        for without in ["no marks", end, &format!("{end}{begin}")] {
            assert!(!has_marks(without));
            assert_eq!(into_readme(without, &record), without);
        }
    }
}
