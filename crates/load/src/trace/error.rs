//! What can go wrong, in one sentence each, with the next step.

use std::io;
use std::path::PathBuf;

use super::{MAX_FUNCTIONS, MAX_INVOCATIONS};

/// `Result` with this module's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a trace could not be read, sampled, made or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system does not let the file be read.
    #[error("cannot read the trace file {}: {source}; check its name and permissions", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },

    /// The path leads to a folder, a pipe or a device.
    #[error("{} is {what}, but a trace is read from a file, more than once: unpack it to one", path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
        /// What it is instead.
        what: &'static str,
    },

    /// There is no header, or nothing after it.
    #[error("the trace file {} has no {what}: download or unpack it again", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
        /// What is not there.
        what: &'static str,
    },

    /// The first line is the header of no known form.
    #[error(
        "the first line of {} starts with {found:?}, which is no header of the Azure Functions \
         traces of 2019 or 2021: unpack the published archive and give its CSV files", path.display()
    )]
    UnknownHeader {
        /// The file.
        path: PathBuf,
        /// How the line starts, shortened to 80 characters.
        found: String,
    },

    /// The header does not have a column that files of its kind have.
    #[error("the header of {} has no column {column:?}: download or unpack the file again", path.display())]
    MissingColumn {
        /// The file.
        path: PathBuf,
        /// The column.
        column: String,
    },

    /// A line has more or fewer fields than the header.
    #[error(
        "line {line} of {} has {found} fields where the header has {expected}: the file is cut off \
         or damaged there, so download or unpack it again", path.display()
    )]
    Fields {
        /// The file.
        path: PathBuf,
        /// The line, from 1 on.
        line: u64,
        /// Fields in the line.
        found: usize,
        /// Fields in the header.
        expected: usize,
    },

    /// A field is not the number that it should be.
    #[error(
        "line {line} of {} has {value:?} as {column}, which should be {expected}: correct or remove \
         the line", path.display()
    )]
    BadNumber {
        /// The file.
        path: PathBuf,
        /// The line, from 1 on.
        line: u64,
        /// The column.
        column: String,
        /// The field, shortened to 80 characters.
        value: String,
        /// What it should be.
        expected: &'static str,
    },

    /// A line is not text.
    #[error("line {line} of {} is not UTF-8: unpack the file first, or download it again", path.display())]
    NotUtf8 {
        /// The file.
        path: PathBuf,
        /// The line, from 1 on.
        line: u64,
    },

    /// A line is longer than any that was published.
    #[error(
        "line {line} of {} is longer than {most} bytes, so this is no published trace: give the \
         unpacked CSV file", path.display()
    )]
    LongLine {
        /// The file.
        path: PathBuf,
        /// The line, from 1 on.
        line: u64,
        /// The longest that is read, in bytes.
        most: usize,
    },

    /// The files given do not make one trace.
    #[error(
        "these files are not one trace, because {reason}: give one file of 2021, or of 2019 one \
         day's invocations and at will its durations and memory"
    )]
    Files {
        /// Why not.
        reason: String,
    },

    /// The file speaks of too many functions.
    #[error("{} has more than {MAX_FUNCTIONS} functions: split it and give a part", path.display())]
    TooManyFunctions {
        /// The file.
        path: PathBuf,
    },

    /// The trace would not fit into memory.
    #[error(
        "this would be a trace of about {expected} invocations, and at most {MAX_INVOCATIONS} are \
         kept in memory: ask for fewer functions, a shorter window, or at most {rate_per_s:.1} per \
         second"
    )]
    TooManyInvocations {
        /// How many there would be.
        expected: u64,
        /// The mean rate with which they would fit, invocations per second.
        rate_per_s: f64,
    },

    /// Nothing happens in the window.
    #[error(
        "nothing is invoked in the {length_s} s from second {start_s} on, but {outside} times at \
         others: choose another window"
    )]
    NoInvocations {
        /// Where the window begins, in seconds from the beginning of the trace.
        start_s: f64,
        /// How long it is, in seconds.
        length_s: f64,
        /// Invocations that there are outside it.
        outside: u64,
    },

    /// The sample should be busier than what it is a sample of.
    #[error(
        "there are no {asked:.3} invocations per second to be had, since invocations are only ever \
         left out: ask for at most {most:.3}, for more functions, or for more compression"
    )]
    RateTooHigh {
        /// The rate asked for, invocations per second.
        asked: f64,
        /// The highest that there is.
        most: f64,
    },

    /// A setting is out of its range.
    #[error("{setting} cannot be {value}: it must be {expected}")]
    InvalidConfig {
        /// The field of the `…Config`.
        setting: &'static str,
        /// What it was.
        value: String,
        /// What it may be.
        expected: &'static str,
    },

    /// The trace could not be written.
    #[error("cannot write the trace: {source}; check the disk's free space")]
    Write {
        /// What the operating system said.
        source: io::Error,
    },
}

/// The start of a text from outside, for an error.
pub(super) fn shorten(text: &str) -> String {
    text.chars().take(80).collect()
}
