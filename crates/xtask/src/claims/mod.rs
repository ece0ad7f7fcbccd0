//! `cargo xtask claims`: whether README.md still says what is so on the machine at hand.
//!
//! ```text
//! README.md ─► page (blocks, prose) ─┬─► account: who answers for each number? ◄─ benches/claims.toml
//!                                    └─► verdict ◄─ page of a copy ◄─ sources, which measure afresh
//! ```

mod account;
mod file;
mod number;
mod page;
mod source;
mod verdict;

use std::fs;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use comfy_table::{Table, presets};
use glob::Pattern;

use crate::repo::Repo;
use account::{Claimed, cells, problems};
use file::{Claim, Claims, FILE};
use page::{Block, Page};
use source::{Bench, SOURCES, Source};
use verdict::{Outcome, Run, Verdict, judge};

const README: &str = "README.md";
/// What `--quick` widens factors by.
const QUICK_WIDENS: f64 = 1.5;

/// Measures all that README.md has figures of and says which still hold; ends with 1 where one does
/// not
///
/// benches/claims.toml says when a number holds.
#[derive(Debug, Args)]
pub(crate) struct ClaimsArgs {
    /// Renew the figures in README.md
    #[arg(long, conflicts_with_all = ["quick", "only"])]
    write: bool,
    /// Measure less and widen the factors by 1.5
    #[arg(long)]
    quick: bool,
    /// Only numbers with names like this, for example 'engine:http/*' or '*:RATIO'
    #[arg(long, value_name = "GLOB", value_parser = Pattern::new)]
    only: Option<Pattern>,
}

/// A number of README.md and the claim that decides about it.
type Chosen<'a> = (&'a Claim, Claimed<'a>);

/// Runs the command.
pub(crate) fn run(repo: &Repo, args: &ClaimsArgs) -> Result<()> {
    let claims = Claims::read(repo)?;
    let read = |file: &str| {
        let text = fs::read_to_string(repo.path(file));
        text.with_context(|| format!("cannot read {file}"))
    };
    let text = read(README)?;
    let page = Page::parse(&text).context("README.md is broken")?;
    refuse(&problems(&page, &claims, read))?;

    let chosen = chosen(&page, &claims, args.only.as_ref());
    if let (Some(only), true) = (&args.only, chosen.is_empty()) {
        bail!(
            "no number of README.md has a name like {only}\nhint: names are block:row:column, for \
             example engine:http/hello:RATIO"
        );
    }
    // It stays there, to be looked at.
    let copy = repo.path("target/claims/README.md");
    fs::create_dir_all(repo.path("target/claims")).context("cannot create target/claims")?;
    fs::write(&copy, &text).with_context(|| format!("cannot write {}", copy.display()))?;
    let sources = sources(&chosen)?;
    let bench = Bench::build(repo, args.quick)?;
    for source in &sources {
        let block = source.block;
        let rows = rows(&chosen, block);
        (source.write)(&bench, &copy, &rows).with_context(|| {
            format!("the block {block} was not measured; README.md is as it was")
        })?;
    }

    let fresh_text =
        fs::read_to_string(&copy).with_context(|| format!("cannot read {}", copy.display()))?;
    let fresh = Page::parse(&fresh_text).context("what was measured cannot be read")?;
    let Compared { verdicts, failed } = compare(&page, &fresh, &chosen, args.quick)?;
    println!("{}", table(&verdicts));
    if args.quick {
        println!("Measured less (--quick): all factors are {QUICK_WIDENS} times as wide.");
    }
    println!("{}", summary(&verdicts));

    if args.write {
        let kept = || {
            format!(
                "README.md is as it was; what was measured is in {}",
                copy.display()
            )
        };
        refuse(&problems(&fresh, &claims, read)).with_context(kept)?;
        ensure!(
            read(README)? == text,
            "README.md was edited meanwhile\n{}",
            kept()
        );
        replace(&repo.path(README), &fresh_text)?;
        println!("README.md has the figures measured now.");
        for sentence in &failed {
            println!("changed beyond its rule: {sentence}");
        }
        return Ok(());
    }
    if !failed.is_empty() {
        bail!(
            "what README.md says does not hold here\n{}\nhint: `cargo xtask claims --write` renews \
             README.md, where what was measured now is what should be said",
            failed.join("\n")
        );
    }
    Ok(())
}

/// Ends where numbers are not accounted for.
fn refuse(problems: &[String]) -> Result<()> {
    ensure!(
        problems.is_empty(),
        "not every number of README.md is accounted for\n{}\nhint: {FILE} says how it can be",
        problems.join("\n")
    );
    Ok(())
}

/// The numbers in blocks that are to be checked.
fn chosen<'a>(page: &'a Page, claims: &'a Claims, only: Option<&Pattern>) -> Vec<Chosen<'a>> {
    let cells = page.blocks.iter().flat_map(cells);
    let wanted = cells.filter(|cell| only.is_none_or(|only| only.matches(&cell.name())));
    wanted
        .filter_map(|cell| {
            let (block, row) = (&cell.block.name, cell.row.name());
            let claim = claims.find(block, row, cell.column_name(), cell.has_limit())?;
            Some((claim, cell))
        })
        .collect()
}

/// What has to be measured.
fn sources(chosen: &[Chosen<'_>]) -> Result<Vec<Source>> {
    for (claim, _) in chosen {
        let block = &claim.block;
        ensure!(
            SOURCES.iter().any(|source| source.block == *block),
            "nothing measures the block {block}\nhint: add its source in \
             crates/xtask/src/claims/source.rs"
        );
    }
    let needed = |source: &Source| chosen.iter().any(|(claim, _)| claim.block == source.block);
    Ok(SOURCES.into_iter().filter(needed).collect())
}

/// The names of the rows of a block that are to be checked.
fn rows<'a>(chosen: &[Chosen<'a>], block: &str) -> Vec<&'a str> {
    let chosen = chosen.iter().filter(|(claim, _)| claim.block == block);
    let mut rows: Vec<&str> = chosen.map(|(_, cell)| cell.row.name()).collect();
    rows.dedup();
    rows
}

/// README.md beside a fresh run.
#[derive(Debug, Default)]
struct Compared {
    verdicts: Vec<Verdict>,
    /// What does not hold, one sentence each.
    failed: Vec<String>,
}

fn compare(page: &Page, fresh: &Page, chosen: &[Chosen<'_>], quick: bool) -> Result<Compared> {
    let mut compared = Compared::default();
    for old in &page.blocks {
        let mut chosen = chosen.iter().filter(|(claim, _)| claim.block == old.name);
        let Some(first) = chosen.next() else {
            continue;
        };
        let new = fresh.block(&old.name);
        let new = new.with_context(|| format!("the block {} was not written", old.name))?;
        let run = Run {
            same_machine: is_same_machine(old, new),
            widened: if quick { QUICK_WIDENS } else { 1.0 },
        };
        for (claim, cell) in std::iter::once(first).chain(chosen) {
            compared.verdicts.push(judge(claim, cell, new, run));
        }
        compared.failed.extend(unknown_rows(old, new));
    }
    let sentences = compared.verdicts.iter().filter_map(sentence);
    compared.failed.extend(sentences);
    Ok(compared)
}

/// Whether both blocks name the same machine; says so where they do not.
fn is_same_machine(old: &Block, new: &Block) -> bool {
    if old.facts.is_some() && old.facts == new.facts {
        return true;
    }
    let facts = |block: &Block| block.facts.clone().unwrap_or_else(|| "not said".to_owned());
    println!(
        "The block {} is of another machine: only limits and what does not depend on the machine \
         are checked.\n  README: {}\n  here:   {}",
        old.name,
        facts(old),
        facts(new)
    );
    false
}

/// Rows that are measured and that README.md does not have.
fn unknown_rows(old: &Block, new: &Block) -> Vec<String> {
    let rows = new.rows().map(|(_, row)| row.name());
    let unknown = rows.filter(|name| old.row(name).is_none());
    unknown
        .map(|name| format!("{}:{name} is not in README.md", new.name))
        .collect()
}

fn sentence(verdict: &Verdict) -> Option<String> {
    match &verdict.outcome {
        Outcome::Fails(why) => Some(format!("{} {why}", verdict.name)),
        Outcome::Holds | Outcome::OtherMachine => None,
    }
}

fn table(verdicts: &[Verdict]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["CLAIM", "README SAYS", "MEASURED NOW", "RULE", "HOLDS"]);
    for verdict in verdicts {
        let holds = match verdict.outcome {
            Outcome::Holds => "yes",
            Outcome::Fails(_) => "NO",
            Outcome::OtherMachine => "not comparable: another machine",
        };
        let Verdict {
            name,
            says,
            now,
            rule,
            ..
        } = verdict;
        table.add_row([name, says, now, rule, holds]);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let lines = table.to_string();
    let lines: Vec<&str> = lines.lines().map(str::trim_end).collect();
    lines.join("\n")
}

/// What was checked, and what was not.
fn summary(verdicts: &[Verdict]) -> String {
    let count = |is: fn(&Outcome) -> bool| {
        let verdicts = verdicts.iter();
        verdicts.filter(|verdict| is(&verdict.outcome)).count()
    };
    let held = count(|outcome| *outcome == Outcome::Holds);
    let failed = count(|outcome| matches!(outcome, Outcome::Fails(_)));
    let elsewhere = count(|outcome| *outcome == Outcome::OtherMachine);
    let mut text = format!("{} checked: {held} hold, {failed} do not.", held + failed);
    if elsewhere > 0 {
        text.push_str(&format!(
            " {elsewhere} not checked: they are of another machine."
        ));
    }
    text
}

/// Puts `text` in a file's place at once: nobody sees half of it.
fn replace(path: &Path, text: &str) -> Result<()> {
    let what = || format!("cannot replace {}", path.display());
    let folder = path.parent().with_context(what)?;
    let mut half = tempfile::Builder::new()
        .prefix(".claims-")
        .tempfile_in(folder)
        .with_context(what)?;
    half.write_all(text.as_bytes()).with_context(what)?;
    let permissions = fs::metadata(path).with_context(what)?.permissions();
    half.as_file()
        .set_permissions(permissions)
        .with_context(what)?;
    half.persist(path).with_context(what)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const CLAIMS: &str = "
[[claim]]
block = 'engine'
rows = '*'
column = 'RATIO'
within = 1.5

[[claim]]
block = 'engine'
rows = '*'
column = 'OURS'
within = 1.5
absolute = true
";

    fn page(machine: &str, rows: &str) -> Page {
        Page::parse(&format!(
            "<!-- engine:begin -->\n({machine}):\n```text\nWHAT  OURS  RATIO\n{rows}```\n\
             <!-- engine:end -->\n"
        ))
        .unwrap()
    }

    /// What does not hold, and the summary.
    fn told(fresh: &Page, only: Option<&str>) -> (Vec<String>, String) {
        let claims = Claims::parse(CLAIMS).unwrap();
        let readme = page("A CPU", "a     1.00   1.00\nb     1.00   1.00\n");
        let only = only.map(|only| Pattern::new(only).unwrap());
        let chosen = chosen(&readme, &claims, only.as_ref());
        let compared = compare(&readme, fresh, &chosen, false).unwrap();
        (compared.failed, summary(&compared.verdicts))
    }

    #[test]
    fn what_changed_is_told_number_by_number() {
        let fresh = page("A CPU", "a     1.00   2.00\nc     1.00   1.00\n");
        let (failed, summary) = told(&fresh, None);
        assert_eq!(
            failed,
            [
                "engine:c is not in README.md",
                "engine:a:RATIO is more than 1.50 times away: README says 1.00, measured now: 2.00",
                "engine:b:OURS was not measured: the row is gone",
                "engine:b:RATIO was not measured: the row is gone",
            ]
        );
        assert_eq!(summary, "4 checked: 1 hold, 3 do not.");
    }

    #[test]
    fn only_what_is_asked_for_is_checked() {
        let fresh = page("A CPU", "a     9.00   1.00\n");
        let (failed, summary) = told(&fresh, Some("engine:a:RATIO"));
        assert!(failed.is_empty(), "{failed:?}");
        assert_eq!(summary, "1 checked: 1 hold, 0 do not.");
    }

    #[test]
    fn on_another_machine_times_are_not_counted() {
        let fresh = page("Another", "a     9.00   1.00\nb     9.00   2.00\n");
        let (failed, summary) = told(&fresh, None);
        assert_eq!(failed.len(), 1);
        assert_eq!(
            summary,
            "2 checked: 1 hold, 1 do not. 2 not checked: they are of another machine."
        );
    }

    #[test]
    fn every_claim_has_something_that_measures_it() {
        let repo = Repo::find();
        let claims = Claims::read(&repo).unwrap();
        let readme = Page::parse(&fs::read_to_string(repo.path(README)).unwrap()).unwrap();
        let chosen = chosen(&readme, &claims, None);
        assert_eq!(sources(&chosen).unwrap().len(), SOURCES.len());
    }

    #[test]
    fn a_file_is_replaced_with_its_rights() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("README.md");
        fs::write(&path, "old").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        replace(&path, "new").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o640);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
