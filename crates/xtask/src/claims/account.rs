//! Whether somebody accounts for every number of README.md, and every constant is what its source
//! says. Nothing is measured for it.

use std::collections::BTreeSet;
use std::ops::Range;

use anyhow::Result;
use regex::Regex;

use super::file::{Claims, Constant};
use super::number;
use super::page::{Block, Page, Row, Table};
use super::verdict::limit_of;

/// What is wrong, one sentence each; nothing where all is accounted for. `read` reads a file of the
/// repository.
pub(super) fn problems(
    page: &Page,
    claims: &Claims,
    read: impl Fn(&str) -> Result<String>,
) -> Vec<String> {
    let mut account = Account {
        claims,
        used: BTreeSet::new(),
        problems: Vec::new(),
    };
    for block in &page.blocks {
        account.block(block);
    }
    account.prose(page);
    account.idle();
    for constant in &claims.constants {
        account.sources(constant, &read);
    }
    account.problems
}

/// A number that somebody claims: where it stands.
pub(super) struct Claimed<'a> {
    pub(super) block: &'a Block,
    pub(super) table: &'a Table,
    pub(super) row: &'a Row,
    pub(super) column: usize,
}

/// All cells of a block's tables that hold a number. First cells are names.
pub(super) fn cells(block: &Block) -> impl Iterator<Item = Claimed<'_>> {
    block.rows().flat_map(move |(table, row)| {
        let columns = 1..row.cells.len();
        let columns = columns.filter(|column| !number::find(&row.cells[*column]).is_empty());
        columns.map(move |column| Claimed {
            block,
            table,
            row,
            column,
        })
    })
}

impl Claimed<'_> {
    pub(super) fn column_name(&self) -> &str {
        self.table
            .header
            .get(self.column)
            .map_or("", String::as_str)
    }

    pub(super) fn cell(&self) -> &str {
        self.row.cells.get(self.column).map_or("", String::as_str)
    }

    /// Block, row and column; the second column of the same header ends in `#2`.
    pub(super) fn name(&self) -> String {
        let (block, row) = (&self.block.name, self.row.name());
        let name = format!("{block}:{row}:{}", self.column_name());
        match self.table.before(self.column) {
            0 => name,
            before => format!("{name} #{}", before + 1),
        }
    }

    pub(super) fn has_limit(&self) -> bool {
        limit_of(self.table, self.row).is_some()
    }
}

struct Account<'a> {
    claims: &'a Claims,
    /// The entries that account for something, by their addresses.
    used: BTreeSet<*const ()>,
    problems: Vec<String>,
}

fn address<T>(entry: &T) -> *const () {
    std::ptr::from_ref(entry).cast()
}

impl Account<'_> {
    fn block(&mut self, block: &Block) {
        let mut names = BTreeSet::new();
        for (_, row) in block.rows() {
            if !names.insert(row.name()) {
                let (line, name) = (row.line, row.name());
                let problem = format!("README.md:{line}: there are two rows {name}");
                self.problems.push(problem);
            }
        }
        for cell in cells(block) {
            let (row, column) = (cell.row.name(), cell.column_name());
            match self.claims.find(&block.name, row, column, cell.has_limit()) {
                Some(claim) => {
                    self.used.insert(address(claim));
                }
                None => self.problems.push(format!(
                    "README.md:{}: no claim covers {:?} of {}",
                    cell.row.line,
                    cell.cell(),
                    cell.name()
                )),
            }
        }
        for (place, line) in &block.lines {
            if !number::find(line).is_empty() && !self.ignores(Some(&block.name), line) {
                self.problems.push(format!(
                    "README.md:{place}: the block {} has numbers outside a table, and no `ignore` \
                     fits {line:?}",
                    block.name
                ));
            }
        }
    }

    fn ignores(&mut self, block: Option<&str>, line: &str) -> bool {
        let mut ignored = self.claims.ignored.iter();
        let found =
            ignored.find(|ignored| ignored.block.as_deref() == block && ignored.line.matches(line));
        if let Some(ignored) = found {
            self.used.insert(address(ignored));
        }
        found.is_some()
    }

    fn prose(&mut self, page: &Page) {
        let mut said: Vec<(&Constant, Range<usize>)> = Vec::new();
        for constant in &self.claims.constants {
            let places = places(&constant.says, &page.prose);
            said.extend(places.into_iter().map(|place| (constant, place)));
        }
        for number in &page.numbers {
            let covers =
                |place: &Range<usize>| place.start <= number.start && number.end <= place.end;
            let constants = said.iter().filter(|(_, place)| covers(place));
            let constants: Vec<_> = constants.map(|(constant, _)| address(*constant)).collect();
            if !constants.is_empty() {
                self.used.extend(constants);
                continue;
            }
            let (place, line) = page.line_at(number.start);
            if !self.ignores(None, line) {
                self.problems.push(format!(
                    "README.md:{place}: no `constant` says {:?} of {line:?}",
                    &page.prose[number.clone()]
                ));
            }
        }
    }

    /// Entries that account for nothing: what they were for has gone, or they are wrong.
    fn idle(&mut self) {
        let Claims {
            claims,
            ignored,
            constants,
        } = self.claims;
        let claims = claims
            .iter()
            .map(|claim| (address(claim), format!("claim {claim}")));
        let ignored = ignored.iter().map(|ignored| {
            let name = format!("`ignore` of {:?}", ignored.line.as_str());
            (address(ignored), name)
        });
        let constants = constants.iter().map(|constant| {
            let name = format!("constant {:?}", constant.says);
            (address(constant), name)
        });
        for (entry, name) in claims.chain(ignored).chain(constants) {
            if !self.used.contains(&entry) {
                let problem = format!("the {name} fits no number of README.md");
                self.problems.push(problem);
            }
        }
    }

    fn sources(&mut self, constant: &Constant, read: &impl Fn(&str) -> Result<String>) {
        let says = &constant.says;
        for source in &constant.sources {
            let file = &source.file;
            let problem = match read(file) {
                Ok(text) if source.matches.0.is_match(&text) => continue,
                Ok(_) => format!(
                    "README.md says {says:?}, and nothing in {file} matches {:?} any more",
                    source.matches.0.as_str()
                ),
                Err(error) => format!("README.md says {says:?}, and its source is gone: {error:#}"),
            };
            self.problems.push(problem);
        }
    }
}

/// Where the prose says these words, wherever its lines break.
fn places(says: &str, prose: &str) -> Vec<Range<usize>> {
    let words: Vec<String> = says.split_whitespace().map(regex::escape).collect();
    let Ok(expression) = Regex::new(&words.join(r"\s+")) else {
        return Vec::new();
    };
    expression
        .find_iter(prose)
        .map(|found| found.range())
        .collect()
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;
    use crate::repo::Repo;

    const PAGE: &str = "\
Bodies up to
6 MiB, and no more than 16 MiB.
<!-- engine:begin -->
```text
WHAT   OURS
a/10   1.00
b/10   2.00

took 5 s
```
<!-- engine:end -->
";
    const CLAIMS: &str = "
[[claim]]
block = 'engine'
rows = 'a/*'
column = 'OURS'
within = 1.5
";

    fn told(claims: &str) -> Vec<String> {
        let page = Page::parse(PAGE).unwrap();
        let claims = Claims::parse(claims).unwrap();
        problems(&page, &claims, |file| match file {
            "limits.rs" => Ok("const BODY: usize = 6 << 20;\n".to_owned()),
            _ => anyhow::bail!("there is no {file}"),
        })
    }

    #[test]
    fn numbers_that_nobody_accounts_for_are_told() {
        assert_eq!(
            told(CLAIMS),
            [
                "README.md:7: no claim covers \"2.00\" of engine:b/10:OURS",
                "README.md:9: the block engine has numbers outside a table, and no `ignore` fits \
                 \"took 5 s\"",
                "README.md:2: no `constant` says \"6\" of \"6 MiB, and no more than 16 MiB.\"",
                "README.md:2: no `constant` says \"16\" of \"6 MiB, and no more than 16 MiB.\"",
            ]
        );
    }

    #[test]
    fn each_kind_of_entry_accounts_for_its_own() {
        let rest = "
[[claim]]
block = 'engine'
rows = 'b/*'
column = 'OURS'
equal = true

[[ignore]]
block = 'engine'
line = 'took * s'
reason = 'chance'

[[ignore]]
line = '* no more than 16 MiB.'
reason = 'an example'

[[constant]]
says = 'up to 6 MiB'
sources = [{ file = 'limits.rs', matches = 'BODY: usize = 6 << 20;$' }]
";
        assert!(told(&format!("{CLAIMS}{rest}")).is_empty());
        // Part of a number is not the number.
        let wrong = rest.replace("'up to 6 MiB'", "'6 MiB'");
        assert!(told(&format!("{CLAIMS}{wrong}")).is_empty());
        let wrong = wrong.replace("16 MiB.'", "17 MiB.'");
        assert_eq!(told(&format!("{CLAIMS}{wrong}")).len(), 2);
    }

    #[test]
    fn a_constant_whose_source_changed_is_told() {
        let constant = |file: &str, shift| {
            told(&format!(
                "[[constant]]\nsays = '6 MiB'\n\
                 sources = [{{ file = '{file}', matches = '= {shift} << 20' }}]"
            ))
        };
        let holds = constant("limits.rs", 6);
        assert!(!holds.iter().any(|problem| problem.contains("limits.rs")));
        let changed = constant("limits.rs", 7);
        let said = "README.md says \"6 MiB\", and nothing in limits.rs matches";
        assert!(changed.iter().any(|problem| problem.starts_with(said)));
        let gone = constant("gone.rs", 6);
        let said = "README.md says \"6 MiB\", and its source is gone: there is no gone.rs";
        assert!(gone.iter().any(|problem| problem == said));
    }

    #[test]
    fn entries_that_account_for_nothing_are_told() {
        let idle = told(
            "
[[claim]]
block = 'engine'
rows = 'c/*'
column = 'OURS'
within = 1.5

[[ignore]]
block = 'demo'
line = 'took * s'
reason = 'chance'

[[constant]]
says = '7 MiB'
sources = [{ file = 'limits.rs', matches = '6' }]
",
        );
        for said in [
            "the claim engine:c/*:OURS fits no number of README.md",
            "the `ignore` of \"took * s\" fits no number of README.md",
            "the constant \"7 MiB\" fits no number of README.md",
        ] {
            assert!(
                idle.iter().any(|problem| problem == said),
                "{said}: {idle:#?}"
            );
        }
    }

    /// README.md and benches/claims.toml as they are. `cargo xtask claims` measures.
    #[test]
    fn every_number_of_the_readme_is_accounted_for() {
        let repo = Repo::find();
        let read = |file: &str| {
            let text = std::fs::read_to_string(repo.path(file));
            text.with_context(|| format!("cannot read {file}"))
        };
        let page = Page::parse(&read("README.md").unwrap()).unwrap();
        let claims = Claims::read(&repo).unwrap();
        let problems = problems(&page, &claims, read);
        assert!(problems.is_empty(), "{}", problems.join("\n"));
        // None of it is empty by mistake.
        assert!(
            page.blocks
                .iter()
                .map(cells)
                .map(Iterator::count)
                .sum::<usize>()
                > 100
        );
        assert!(page.numbers.len() > 5);
    }
}
