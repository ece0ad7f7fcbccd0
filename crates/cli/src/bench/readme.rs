//! Tables that are written into a file, between its marks.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::exit::{Exit, Failed};

/// A place in a file: between the marks `<!-- BLOCK:begin -->` and `<!-- BLOCK:end -->`.
pub(super) struct Readme<'a> {
    pub(super) path: &'a Path,
    pub(super) block: &'a str,
}

impl Readme<'_> {
    /// Whether it can be written to, to be asked before minutes are spent on what could not be.
    pub(super) fn check(&self) -> Result<()> {
        self.with("").map(|_| ())
    }

    /// Puts lines there, in place of what was.
    pub(super) fn write(&self, lines: &str) -> Result<()> {
        fs::write(self.path, self.with(lines)?)
            .with_context(|| format!("cannot write {}", self.path.display()))
    }

    /// The whole file with these lines.
    fn with(&self, lines: &str) -> Result<String> {
        let Self { path, block } = self;
        let text = fs::read_to_string(path).map_err(|error| {
            let message = format!("cannot read {}: {error}", path.display());
            Failed::new(Exit::NoInput, message)
        })?;
        between(&text, block, lines).ok_or_else(|| {
            let [begin, end] = marks(block);
            let message = format!("{} lacks the marks {begin} and {end}", path.display());
            Failed::new(Exit::Data, message).into()
        })
    }
}

fn marks(block: &str) -> [String; 2] {
    ["begin", "end"].map(|side| format!("<!-- {block}:{side} -->"))
}

/// The text with these lines between the marks, where it has them.
fn between(text: &str, block: &str, lines: &str) -> Option<String> {
    let [begin, end] = marks(block);
    let (before, rest) = text.split_once(&begin)?;
    let (_, after) = rest.split_once(&end)?;
    Some(format!(
        "{before}{begin}\n{}\n{end}{after}",
        lines.trim_end()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_stands_between_the_marks_changes() {
        let [begin, end] = marks("some");
        let other = marks("other").concat();
        let text = format!("{other}a\n{begin}\nold\n{end}\nb\n");
        let written = between(&text, "some", "new\n").unwrap();
        assert_eq!(written, format!("{other}a\n{begin}\nnew\n{end}\nb\n"));
        assert_eq!(between(&written, "some", "new\n").unwrap(), written);
    }

    #[test]
    fn a_text_without_the_marks_has_no_place() {
        let [begin, end] = marks("some");
        for without in [
            "no marks",
            &end,
            &format!("{end}{begin}"),
            &marks("other").concat(),
        ] {
            assert_eq!(between(without, "some", "new"), None, "{without}");
        }
    }
}
