//! CSV files as they were published: a header, no quotes, lines of bounded length.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use csv::{ErrorKind, ReaderBuilder, StringRecord, Terminator};

use super::error::{Error, Result, shorten};
use super::{Kind, ReadStats};

/// The longest line that is read, in bytes. The longest published have about 10 000.
const MAX_LINE_BYTES: usize = 64 << 10;

/// No published number is larger: it is 300 000 years in seconds.
const MAX_NUMBER: f64 = 1e13;

/// A file of a trace, read line by line.
pub(super) struct Table {
    path: PathBuf,
    reader: csv::Reader<ShortLines>,
    header: StringRecord,
    record: StringRecord,
    line: u64,
}

/// A column of a [`Table`].
#[derive(Debug, Clone, Copy)]
pub(super) struct Column(usize);

impl Table {
    /// Opens a file and reads its header.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let unreadable = |source| Error::Unreadable {
            path: path.to_owned(),
            source,
        };
        let kind = path.metadata().map_err(unreadable)?.file_type();
        if !kind.is_file() {
            return Err(Error::NotAFile {
                path: path.to_owned(),
                what: if kind.is_dir() {
                    "a folder"
                } else {
                    "no regular file"
                },
            });
        }
        let file = ShortLines::new(File::open(path).map_err(unreadable)?);
        let reader = ReaderBuilder::new()
            // Published files have no quotes, and a stray one must not swallow the lines after it.
            .quoting(false)
            .flexible(true)
            .has_headers(false)
            .terminator(Terminator::Any(b'\n'))
            .buffer_capacity(64 << 10)
            .from_reader(file);
        let mut table = Self {
            path: path.to_owned(),
            reader,
            header: StringRecord::new(),
            record: StringRecord::new(),
            line: 0,
        };
        if !table.read()? {
            return Err(Error::Empty {
                path: path.to_owned(),
                what: "header",
            });
        }
        table.header = table.record.iter().map(str::trim).collect();
        Ok(table)
    }

    /// What the header says that this is.
    pub(super) fn kind(&self) -> Result<Kind> {
        let starts = |start: &str| self.header.iter().any(|name| name.starts_with(start));
        let has = |column: &str| self.header.iter().any(|name| name == column);
        if has("end_timestamp") {
            Ok(Kind::Invocations2021)
        } else if starts("percentile_Average_") {
            Ok(Kind::Durations2019)
        } else if starts("AverageAllocatedMb") {
            Ok(Kind::Memory2019)
        } else if has("HashFunction") && has("Trigger") {
            Ok(Kind::Invocations2019)
        } else {
            let names: Vec<&str> = self.header.iter().take(80).collect();
            Err(Error::UnknownHeader {
                path: self.path.clone(),
                found: shorten(&names.join(",")),
            })
        }
    }

    /// Finds a column by its name.
    pub(super) fn column(&self, name: &str) -> Result<Column> {
        let place = self.header.iter().position(|found| found == name);
        place.map(Column).ok_or_else(|| Error::MissingColumn {
            path: self.path.clone(),
            column: name.to_owned(),
        })
    }

    /// Goes on to the next line, if there is one.
    pub(super) fn advance(&mut self) -> Result<bool> {
        if !self.read()? {
            return Ok(false);
        }
        let (found, expected) = (self.record.len(), self.header.len());
        if found == expected {
            return Ok(true);
        }
        Err(Error::Fields {
            path: self.path.clone(),
            line: self.line,
            found,
            expected,
        })
    }

    /// A field of the current line.
    pub(super) fn text(&self, column: Column) -> &str {
        self.record.get(column.0).unwrap_or("").trim()
    }

    /// A field that counts something.
    pub(super) fn count(&self, column: Column, stats: &mut ReadStats) -> Result<u64> {
        let text = self.text(column);
        // Most fields of most files.
        if text == "0" {
            return Ok(0);
        }
        let number = self.non_negative(column, "a whole number", stats)?;
        if number.fract() == 0.0 {
            Ok(number as u64)
        } else {
            Err(self.bad(column, "a whole number"))
        }
    }

    /// A field that measures something which cannot be negative. Some are published as negative
    /// all the same: those are 0, and counted.
    pub(super) fn non_negative(
        &self,
        column: Column,
        expected: &'static str,
        stats: &mut ReadStats,
    ) -> Result<f64> {
        let number = self.number(column, expected)?;
        if number < 0.0 {
            stats.negative_values += 1;
        }
        Ok(number.max(0.0))
    }

    /// A field that is a number.
    pub(super) fn number(&self, column: Column, expected: &'static str) -> Result<f64> {
        match self.text(column).parse::<f64>() {
            Ok(number) if number.abs() <= MAX_NUMBER => Ok(number),
            _ => Err(self.bad(column, expected)),
        }
    }

    /// The file.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    fn bad(&self, column: Column, expected: &'static str) -> Error {
        Error::BadNumber {
            path: self.path.clone(),
            line: self.line,
            column: self.header.get(column.0).unwrap_or("").to_owned(),
            value: shorten(self.text(column)),
            expected,
        }
    }

    /// Reads the next line that is not empty.
    fn read(&mut self) -> Result<bool> {
        loop {
            let read = self.reader.read_record(&mut self.record);
            let position = self.record.position().map_or(0, csv::Position::line);
            self.line = position;
            if !read.map_err(|error| self.unreadable(error))? {
                return Ok(false);
            }
            if self.record.len() > 1 || !self.text(Column(0)).is_empty() {
                return Ok(true);
            }
        }
    }

    fn unreadable(&self, error: csv::Error) -> Error {
        let path = self.path.clone();
        match error.into_kind() {
            ErrorKind::Io(source) => match source.get_ref().and_then(|e| e.downcast_ref()) {
                Some(&LongLine { line }) => Error::LongLine {
                    path,
                    line,
                    most: MAX_LINE_BYTES,
                },
                None => Error::Unreadable { path, source },
            },
            ErrorKind::Utf8 { pos, .. } => Error::NotUtf8 {
                path,
                line: pos.map_or(self.line, |pos| pos.line()),
            },
            other => Error::Unreadable {
                path,
                source: io::Error::other(format!("{other:?}")),
            },
        }
    }
}

/// Reads a file, but no line that is longer than [`MAX_LINE_BYTES`]: a reader that waits for the
/// end of a line must not fill the memory.
struct ShortLines {
    file: File,
    line: u64,
    line_bytes: usize,
}

#[derive(Debug, thiserror::Error)]
#[error("line {line} is too long")]
struct LongLine {
    line: u64,
}

impl ShortLines {
    fn new(file: File) -> Self {
        Self {
            file,
            line: 1,
            line_bytes: 0,
        }
    }
}

impl Read for ShortLines {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read(buffer)?;
        for part in buffer
            .get(..read)
            .unwrap_or_default()
            .split_inclusive(|byte| *byte == b'\n')
        {
            self.line_bytes += part.len();
            if self.line_bytes > MAX_LINE_BYTES {
                return Err(io::Error::other(LongLine { line: self.line }));
            }
            if part.ends_with(b"\n") {
                self.line += 1;
                self.line_bytes = 0;
            }
        }
        Ok(read)
    }
}
