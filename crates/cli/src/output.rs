//! What goes to stdout: tables for people, JSON for programs.

use std::borrow::Cow;
use std::io::{self, IsTerminal, Write};

use anyhow::{Result, bail};
use clap::ValueEnum;
use comfy_table::{Table, presets};
use dormouse_explain::Section;
use serde::Deserialize;
use serde_json::Value;

use crate::exit::{Exit, Failed};

const PAGE_BYTES: u64 = 4096;

/// How data is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    Table,
    /// For programs.
    Json,
}

/// What a table shows of a function.
#[derive(Debug, Deserialize)]
pub(crate) struct Function {
    pub(crate) name: String,
    pub(crate) snapshot: String,
    pub(crate) created_unix_ms: u64,
    pub(crate) image_digest: String,
    pub(crate) image_bytes: u64,
    pub(crate) memory_bytes: u64,
    pub(crate) data_bytes: u64,
    pub(crate) working_set_pages: u64,
    pub(crate) config: Value,
}

impl Function {
    /// Reads one from an API's reply.
    pub(crate) fn from_json(value: &Value) -> Result<Self> {
        Self::deserialize(value).or_else(|error| {
            bail!(Failed::new(
                Exit::Protocol,
                format!("the server's reply lacks something: {error}"),
            ))
        })
    }
}

/// Prints JSON.
pub(crate) fn json(value: &Value) -> Result<()> {
    let json = format!("{value:#}\n");
    text(&without_controls(&json, |control| {
        let code = u32::from(control);
        format!("\\u{code:04x}")
    }))
}

/// Replaces what would tell a terminal something, but for ends of lines and tabs: names in snapshots
/// and images come from anybody, and so does what functions say.
fn without_controls(text: &str, written: impl Fn(char) -> String) -> Cow<'_, str> {
    let is_harmless = |char: char| matches!(char, '\n' | '\t') || !char.is_control();
    if text.chars().all(is_harmless) {
        return Cow::Borrowed(text);
    }
    let chars = text.chars().map(|char| match is_harmless(char) {
        true => char.to_string(),
        false => written(char),
    });
    Cow::Owned(chars.collect())
}

/// What tables and messages show of `text`.
pub(crate) fn shown(text: &str) -> Cow<'_, str> {
    without_controls(text, |control| control.escape_default().to_string())
}

/// Bytes that come in pieces, as a terminal may have them.
#[derive(Debug, Default)]
pub(crate) struct Shown {
    /// The begin of a character whose end is in the next piece.
    begun: Vec<u8>,
}

impl Shown {
    /// The next piece.
    pub(crate) fn next(&mut self, piece: &[u8]) -> String {
        let mut bytes = std::mem::take(&mut self.begun);
        bytes.extend_from_slice(piece);
        let mut text = String::new();
        let mut rest = &bytes[..];
        while let Err(error) = str::from_utf8(rest) {
            let (valid, after) = rest.split_at(error.valid_up_to());
            text.push_str(&String::from_utf8_lossy(valid));
            let Some(invalid_bytes) = error.error_len() else {
                self.begun = after.to_vec();
                rest = &[];
                break;
            };
            text.push(char::REPLACEMENT_CHARACTER);
            rest = &after[invalid_bytes..];
        }
        text.push_str(&String::from_utf8_lossy(rest));
        shown(&text).into_owned()
    }
}

/// Prints functions, one a line.
pub(crate) fn functions(functions: &[Function]) -> Result<()> {
    let header = ["NAME", "SNAPSHOT", "MEMORY", "DATA", "WORKING SET", "AGE"];
    let cells: Vec<_> = functions
        .iter()
        .map(|function| {
            [
                function.name.clone(),
                function.snapshot.clone(),
                bytes(function.memory_bytes),
                bytes(function.data_bytes),
                format!("{} pages", function.working_set_pages),
                age(function.created_unix_ms),
            ]
        })
        .collect();
    rows(&header, &cells)
}

/// Prints rows under a header.
pub(crate) fn rows<C: AsRef<str>, const COLUMNS: usize>(
    header: &[&str; COLUMNS],
    rows: &[[C; COLUMNS]],
) -> Result<()> {
    let mut table = table();
    table.set_header(header);
    for row in rows {
        table.add_row(row.iter().map(|cell| shown(cell.as_ref())));
    }
    print(table)
}

/// Prints one thing, a property a line.
pub(crate) fn properties(properties: &[(&str, String)]) -> Result<()> {
    let mut table = table();
    for (name, value) in properties {
        table.add_row([Cow::Borrowed(*name), shown(value)]);
    }
    print(table)
}

/// Prints tables with titles, an empty line between them.
pub(crate) fn sections(sections: &[Section]) -> Result<()> {
    for (place, section) in sections.iter().enumerate() {
        let gap = if place == 0 { "" } else { "\n" };
        text(&format!("{gap}{}\n", shown(&section.title)))?;
        let mut table = table();
        if !section.header.is_empty() {
            table.set_header(&section.header);
        }
        for row in &section.rows {
            table.add_row(row.iter().map(|cell| shown(cell)));
        }
        print(table)?;
    }
    Ok(())
}

/// Everything about one function, as properties.
pub(crate) fn describe(function: &Function) -> Vec<(&'static str, String)> {
    let pages = |count: u64| format!("{}, {count} pages", bytes(count * PAGE_BYTES));
    vec![
        ("name", function.name.clone()),
        ("snapshot", function.snapshot.clone()),
        ("taken", age(function.created_unix_ms) + " ago"),
        ("image", bytes(function.image_bytes)),
        ("image digest", function.image_digest.clone()),
        ("memory", pages(function.memory_bytes / PAGE_BYTES)),
        ("data", pages(function.data_bytes / PAGE_BYTES)),
        ("working set", pages(function.working_set_pages)),
        ("config", function.config.to_string()),
    ]
}

/// A size as people read it.
pub(crate) fn bytes(bytes: u64) -> String {
    indicatif::BinaryBytes(bytes).to_string()
}

/// Writes to stdout. A reader that has read enough is no error.
pub(crate) fn text(text: &str) -> Result<()> {
    raw(text.as_bytes())
}

/// Writes a function's bytes to stdout: as they are, unless that is a terminal.
pub(crate) fn of_function(bytes: &[u8]) -> Result<()> {
    if io::stdout().is_terminal() {
        return text(&Shown::default().next(bytes));
    }
    raw(bytes)
}

/// Writes bytes to stdout as they are.
pub(crate) fn raw(bytes: &[u8]) -> Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => Ok(other?),
    }
}

fn table() -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table
}

/// Columns stand two spaces apart, and lines begin and end with text.
fn print(mut table: Table) -> Result<()> {
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    text(&format!("{}\n", table.trim_fmt()))
}

/// How long ago that was, in its two largest units.
pub(crate) fn age(created_unix_ms: u64) -> String {
    let created = std::time::UNIX_EPOCH + std::time::Duration::from_millis(created_unix_ms);
    let elapsed = created.elapsed().unwrap_or_default();
    let whole = std::time::Duration::from_secs(elapsed.as_secs());
    let all = humantime::format_duration(whole).to_string();
    let mut units = all.split_whitespace();
    let (first, second) = (units.next().unwrap_or_default(), units.next());
    second.map_or_else(|| first.to_owned(), |second| format!("{first} {second}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_printed_speaks_to_the_terminal() {
        assert_eq!(shown("main\nrust_main"), "main\nrust_main");
        let hostile = "\u{1b}]0;title\u{7}\r\u{9b}2J";
        assert_eq!(shown(hostile), r"\u{1b}]0;title\u{7}\r\u{9b}2J");
        assert_eq!(shown("a\tb"), "a\tb");
        let escaped = |control| format!("\\u{:04x}", u32::from(control));
        assert_eq!(without_controls("\u{9b}", escaped), r"\u009b");
    }

    #[test]
    fn pieces_are_shown_as_the_whole() {
        let whole = "ä\u{9b}2J\u{1b}c\n€\t".as_bytes();
        for size in 1..=whole.len() {
            let mut pieces = Shown::default();
            let text: String = whole.chunks(size).map(|piece| pieces.next(piece)).collect();
            assert_eq!(text, "ä\\u{9b}2J\\u{1b}c\n€\t", "{size} bytes at a time");
        }
        assert_eq!(Shown::default().next(b"a\xff\x9bb"), "a\u{fffd}\u{fffd}b");
    }
}
