//! README.md, taken apart: blocks that commands write, and the prose around them.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::LazyLock;

use anyhow::{Context, Result, bail};
use regex::Regex;

use super::number::{self, fixed};

static BEGIN: LazyLock<Regex> = LazyLock::new(|| fixed(r"<!-- ([a-z]+):begin -->"));
static FACTS: LazyLock<Regex> = LazyLock::new(|| fixed(r"^\((.*)\):$"));
/// In prose: comments, code spans, targets of links, bare addresses, numbers of list entries.
static NAMELESS: LazyLock<Regex> = LazyLock::new(|| {
    fixed(r"(?s)<!--.*?-->|`[^`]*`|\]\([^)\s]*\)|<?https?://[^\s)]+|(?m:^[ \t]*\d+\.[ \t])")
});

/// A page with marked blocks.
#[derive(Debug)]
pub(super) struct Page {
    pub(super) blocks: Vec<Block>,
    /// The text with spaces in place of the blocks; offsets are those of the page.
    pub(super) prose: String,
    /// Where the numbers of the prose are.
    pub(super) numbers: Vec<Range<usize>>,
}

/// What stands between `<!-- name:begin -->` and `<!-- name:end -->`.
#[derive(Debug)]
pub(super) struct Block {
    pub(super) name: String,
    /// The machine's facts: the line `(…):` above the fence.
    pub(super) facts: Option<String>,
    pub(super) tables: Vec<Table>,
    /// All other lines, with their places in the page, counted from 1.
    pub(super) lines: Vec<(usize, String)>,
}

/// A paragraph inside a fence whose lines have columns in common, at least two blanks apart. The
/// first line is the header.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) header: Vec<String>,
    pub(super) rows: Vec<Row>,
}

/// A line of a table. The first cell is its name.
#[derive(Debug)]
pub(super) struct Row {
    /// Its place in the page, counted from 1.
    pub(super) line: usize,
    pub(super) cells: Vec<String>,
}

impl Row {
    pub(super) fn name(&self) -> &str {
        self.cells.first().map_or("", String::as_str)
    }
}

impl Page {
    /// Takes a page apart.
    pub(super) fn parse(text: &str) -> Result<Self> {
        let mut prose = String::new();
        let mut blocks: Vec<Block> = Vec::new();
        let mut rest = 0;
        while let Some(begin) = BEGIN.captures_at(text, rest) {
            let (mark, name) = (begin.get_match(), &begin[1]);
            let end = format!("<!-- {name}:end -->");
            let length = text[mark.end()..].find(&end);
            let length = length.with_context(|| format!("the mark {end} is missing"))?;
            let inner = mark.end()..mark.end() + length;
            if blocks.iter().any(|block| block.name == name) {
                bail!("there are two blocks {name}");
            }
            let line = line_of(text, inner.start);
            blocks.push(Block::parse(name, line, &text[inner.clone()]));
            prose.push_str(&text[rest..mark.start()]);
            rest = inner.end + end.len();
            prose.push_str(&blank(&text[mark.start()..rest]));
        }
        prose.push_str(&text[rest..]);
        let numbers = number::find(&countable(&prose));
        Ok(Self {
            blocks,
            prose,
            numbers,
        })
    }

    pub(super) fn block(&self, name: &str) -> Option<&Block> {
        self.blocks.iter().find(|block| block.name == name)
    }

    /// Line of the prose at an offset, with its place in the page, counted from 1.
    pub(super) fn line_at(&self, offset: usize) -> (usize, &str) {
        let number = line_of(&self.prose, offset);
        let line = self.prose.lines().nth(number - 1).unwrap_or_default();
        (number, line.trim())
    }
}

impl Block {
    /// `first` is the place in the page of the line that `text` begins in.
    fn parse(name: &str, first: usize, text: &str) -> Self {
        let mut block = Self {
            name: name.to_owned(),
            facts: None,
            tables: Vec::new(),
            lines: Vec::new(),
        };
        let mut fenced = false;
        let mut paragraph: Vec<(usize, &str)> = Vec::new();
        for (number, line) in (first..).zip(text.lines()) {
            let is_fence = line.starts_with("```");
            if fenced && !is_fence && !line.trim().is_empty() {
                paragraph.push((number, line));
                continue;
            }
            block.take_paragraph(&mut paragraph);
            fenced ^= is_fence;
            if let Some(facts) = FACTS.captures(line).filter(|_| !fenced) {
                block.facts = Some(facts[1].to_owned());
            } else if !is_fence {
                block.lines.push((number, line.trim().to_owned()));
            }
        }
        block.take_paragraph(&mut paragraph);
        block
    }

    fn take_paragraph(&mut self, paragraph: &mut Vec<(usize, &str)>) {
        let lines = std::mem::take(paragraph);
        let columns = columns(&lines);
        if lines.len() < 2 || columns.len() < 2 {
            let lines = lines.into_iter();
            self.lines
                .extend(lines.map(|(number, line)| (number, line.trim().to_owned())));
            return;
        }
        let mut rows = lines.into_iter().map(|(number, line)| Row {
            line: number,
            cells: columns.iter().map(|column| cell(line, column)).collect(),
        });
        let header = rows.next().map(|row| row.cells).unwrap_or_default();
        let rows = rows.collect();
        self.tables.push(Table { header, rows });
    }

    /// The row and the names of its columns.
    pub(super) fn row(&self, name: &str) -> Option<(&Table, &Row)> {
        self.rows().find(|(_, row)| row.name() == name)
    }

    pub(super) fn rows(&self) -> impl Iterator<Item = (&Table, &Row)> {
        let tables = self.tables.iter();
        tables.flat_map(|table| table.rows.iter().map(move |row| (table, row)))
    }
}

impl Table {
    /// Where a column of this name stands that has `before` others of the same name before it.
    pub(super) fn column(&self, name: &str, before: usize) -> Option<usize> {
        let places = self.header.iter().enumerate();
        let mut places = places.filter(|(_, column)| *column == name);
        places.nth(before).map(|(place, _)| place)
    }

    /// How many columns of the same name stand before a column.
    pub(super) fn before(&self, column: usize) -> usize {
        let name = self.header.get(column);
        let before = self.header.iter().take(column);
        before.filter(|other| Some(*other) == name).count()
    }
}

/// Columns that all lines have in common, in characters: what two blanks in every line part.
fn columns(lines: &[(usize, &str)]) -> Vec<Range<usize>> {
    let filled: BTreeSet<usize> = lines
        .iter()
        .flat_map(|(_, line)| line.chars().enumerate())
        .filter(|(_, character)| *character != ' ')
        .map(|(place, _)| place)
        .collect();
    let mut columns: Vec<Range<usize>> = Vec::new();
    for place in filled {
        match columns.last_mut() {
            Some(last) if place <= last.end + 1 => last.end = place + 1,
            _ => columns.push(place..place + 1),
        }
    }
    columns
}

fn cell(line: &str, column: &Range<usize>) -> String {
    let text: String = line.chars().skip(column.start).take(column.len()).collect();
    text.trim().to_owned()
}

/// The prose without what is no prose: only the code in fences stays as it is.
fn countable(prose: &str) -> String {
    let mut text = String::new();
    for (place, part) in prose.split("```").enumerate() {
        let is_code = place % 2 == 1;
        if place > 0 {
            text.push_str("   ");
        }
        if is_code {
            text.push_str(part);
            continue;
        }
        let mut rest = 0;
        for nameless in NAMELESS.find_iter(part) {
            text.push_str(&part[rest..nameless.start()]);
            text.push_str(&blank(nameless.as_str()));
            rest = nameless.end();
        }
        text.push_str(&part[rest..]);
    }
    text
}

/// As many bytes, nothing in them but line breaks.
fn blank(text: &str) -> String {
    let bytes = text.bytes();
    bytes
        .map(|byte| if byte == b'\n' { '\n' } else { ' ' })
        .collect()
}

fn line_of(text: &str, offset: usize) -> usize {
    text.bytes()
        .take(offset)
        .filter(|byte| *byte == b'\n')
        .count()
        + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "\
# A page of 3 lines
with `4 codes`, [5 links](https://example.org/6), https://example.org/7
1. and a list.
<!-- engine:begin -->
What it measured
(A CPU, 2 cores):

```text
WHAT      UNIT  OURS  (middle half)  FLOOR  (middle half)      LIMIT
a/10      µs    9.50      6.00…13.0      –
bb/1000   µs     160        157…167    148        145…156  0.40 OVER

A line of 8 words
```
<!-- engine:end -->
```console
curl :8080
```
";

    #[test]
    fn prose_is_counted_without_blocks_code_and_links() {
        let page = Page::parse(PAGE).unwrap();
        let numbers = page.numbers.iter().cloned();
        let numbers: Vec<&str> = numbers.map(|range| &PAGE[range]).collect();
        assert_eq!(numbers, ["3", "5", "8080"]);
        assert_eq!(page.prose.len(), PAGE.len());
        let last = page.numbers[2].start;
        assert_eq!(page.line_at(last), (17, "curl :8080"));
    }

    #[test]
    fn a_table_is_read_by_where_its_columns_stand() {
        let page = Page::parse(PAGE).unwrap();
        let block = page.block("engine").unwrap();
        assert_eq!(block.facts.as_deref(), Some("A CPU, 2 cores"));
        let (table, row) = block.row("bb/1000").unwrap();
        assert_eq!(row.line, 11);
        assert_eq!(
            row.cells,
            [
                "bb/1000",
                "µs",
                "160",
                "157…167",
                "148",
                "145…156",
                "0.40 OVER"
            ]
        );
        assert_eq!(table.column("(middle half)", 1), Some(5));
        assert_eq!((table.before(5), table.before(4)), (1, 0));
        let (_, row) = block.row("a/10").unwrap();
        assert_eq!(row.cells[4..], ["–", "", ""]);
        assert!(block.row("c").is_none());
        assert!(block.lines.contains(&(13, "A line of 8 words".to_owned())));
    }

    #[test]
    fn broken_marks_are_told() {
        for (text, said) in [
            ("<!-- a:begin -->", "the mark <!-- a:end --> is missing"),
            (
                "<!-- a:begin --><!-- a:end --><!-- a:begin --><!-- a:end -->",
                "there are two blocks a",
            ),
        ] {
            assert_eq!(Page::parse(text).unwrap_err().to_string(), said);
        }
    }
}
