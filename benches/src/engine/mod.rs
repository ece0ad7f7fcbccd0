//! The rows: what is measured, and how. METHOD.md has them in words.

mod bare;
mod boot;
mod faults;
mod http;
pub(crate) mod lab;
mod memory;
mod plan;
mod residual;
mod restore;
mod rollback;
mod stages;
mod throughput;

use std::path::PathBuf;

pub use boot::boot;
pub use glob::Pattern;

use crate::{Error, Machine, Record, Row};
use lab::Lab;

/// What to measure, and with what.
#[derive(Debug, Clone)]
pub struct Options {
    /// The folder with the sample functions' images.
    pub images: PathBuf,
    /// The `dormouse` command, for rows that need a server.
    pub dormouse: PathBuf,
    /// Only rows whose names match; all where there is none.
    pub rows: Option<Pattern>,
    /// A tenth of the measurements: enough to see that all works.
    pub quick: bool,
}

/// Rows that are measured together.
struct Group {
    /// What they are about, for who waits.
    title: &'static str,
    names: &'static [&'static str],
    /// Measures those of them that are wanted.
    measure: fn(&Lab) -> Result<Vec<Row>, Error>,
}

const GROUPS: &[Group] = &[
    stages::GROUP,
    restore::GROUP,
    rollback::GROUP,
    faults::GROUP,
    residual::GROUP,
    http::GROUP,
    throughput::GROUP,
    memory::GROUP,
    boot::GROUP,
];

/// The names of all rows, in order.
pub fn names() -> impl Iterator<Item = &'static str> {
    GROUPS.iter().flat_map(|group| group.names.iter().copied())
}

/// Measures. `say` is told what begins.
///
/// # Errors
/// What kept a row from being measured; no rows are given then.
pub fn measure(options: &Options, mut say: impl FnMut(&str)) -> Result<Record, Error> {
    let machine = Machine::now()?;
    let lab = Lab::new(options.clone())?;
    let mut rows = Vec::new();
    for group in GROUPS {
        if group.names.iter().any(|name| lab.wants(name)) {
            say(group.title);
            rows.extend((group.measure)(&lab)?);
        }
    }
    Ok(Record { machine, rows })
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_row_has_a_name_of_its_own_and_stands_in_the_method() {
        let method = include_str!("../../METHOD.md");
        let mut seen = HashSet::new();
        for name in names() {
            assert!(seen.insert(name), "{name} twice");
            assert!(method.contains(&format!("`{name}`")), "{name} in METHOD.md");
        }
    }
}
