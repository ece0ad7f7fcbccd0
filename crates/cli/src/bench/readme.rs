//! Tables that are written into a file, between its marks.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::exit::{Exit, Failed};

/// A file, and the marks that its table stands between.
pub(super) struct Readme<'a> {
    pub(super) path: &'a Path,
    pub(super) marks: [&'static str; 2],
    pub(super) has_marks: fn(&str) -> bool,
}

impl Readme<'_> {
    /// Reads a file that the table can be written into.
    pub(super) fn read(&self) -> Result<String> {
        let text = fs::read_to_string(self.path).map_err(|error| {
            let message = format!("cannot read {}: {error}", self.path.display());
            Failed::new(Exit::NoInput, message)
        })?;
        if (self.has_marks)(&text) {
            return Ok(text);
        }
        let [begin, end] = self.marks;
        let message = format!("{} lacks the marks {begin} and {end}", self.path.display());
        Err(Failed::new(Exit::Data, message).into())
    }

    /// Writes what `change` makes of it.
    pub(super) fn write(&self, change: impl FnOnce(&str) -> String) -> Result<()> {
        let text = change(&self.read()?);
        fs::write(self.path, text).with_context(|| format!("cannot write {}", self.path.display()))
    }
}
