//! What writes README's blocks: each measures afresh and writes into a copy.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::Result;

use crate::repo::{Repo, run_openly};
use crate::{demo, functions, setup, soak};

/// What measures, and how.
#[derive(Debug)]
pub(super) struct Bench<'a> {
    pub(super) repo: &'a Repo,
    /// The `dormouse` command, built for release.
    pub(super) dormouse: PathBuf,
    /// The sample functions' images.
    pub(super) images: PathBuf,
    /// Whether fewer measurements will do.
    pub(super) quick: bool,
}

/// A block of README.md and what writes it into the copy at a path. The names of the rows that are
/// needed come with it; more may be written.
pub(super) struct Source {
    pub(super) block: &'static str,
    pub(super) write: fn(&Bench<'_>, &Path, &[&str]) -> Result<()>,
}

/// All that README's figures come from. A new block needs an entry here, and its claims.
///
/// A block has the machine's facts in a line `(…):` of their own, and below it a fence with tables as
/// text: a header, and columns that two blanks or more part. Each row's first cell is its name, which
/// no other row of the block has.
pub(super) const SOURCES: [Source; 6] = [
    Source {
        block: "demo",
        write: shown,
    },
    Source {
        block: "engine",
        write: engine,
    },
    Source {
        block: "load",
        write: load,
    },
    Source {
        block: "flood",
        write: flood,
    },
    Source {
        block: "sizes",
        write: sizes,
    },
    Source {
        block: "soak",
        write: soaked,
    },
];

impl<'a> Bench<'a> {
    /// Builds what is measured.
    pub(super) fn build(repo: &'a Repo, quick: bool) -> Result<Self> {
        setup::run(repo)?;
        let dormouse = functions::dormouse(repo, true)?;
        let images = functions::build(repo, &dormouse)?;
        Ok(Self {
            repo,
            dormouse,
            images,
            quick,
        })
    }
}

fn shown(bench: &Bench<'_>, copy: &Path, _: &[&str]) -> Result<()> {
    let (transcript, server) = demo::show(bench.repo, &bench.dormouse, &bench.images)?;
    server.stop()?;
    demo::README.write(copy, &transcript)
}

fn engine(bench: &Bench<'_>, copy: &Path, rows: &[&str]) -> Result<()> {
    let mut command = Command::new(&bench.dormouse);
    command
        .args(["bench", "engine", "--rows", &pattern(rows)])
        .arg("--images")
        .arg(&bench.images)
        .arg("--readme")
        .arg(copy)
        .stdout(Stdio::null());
    if bench.quick {
        command.arg("--quick");
    }
    run_openly("dormouse bench engine", command)
}

fn load(bench: &Bench<'_>, copy: &Path, _: &[&str]) -> Result<()> {
    scenario(bench, "load", "mixed.toml", copy)
}

fn flood(bench: &Bench<'_>, copy: &Path, _: &[&str]) -> Result<()> {
    scenario(bench, "flood", "flood.toml", copy)
}

/// A minute of each run: enough for figures, and a scenario's own time is for whoever looks closely.
fn scenario(bench: &Bench<'_>, block: &str, file: &str, copy: &Path) -> Result<()> {
    let duration = if bench.quick { "10s" } else { "1m" };
    let mut command = Command::new(&bench.dormouse);
    command
        .args(["bench", "load", "--serve", "--duration", duration])
        .arg(bench.repo.path("benches/scenarios").join(file))
        .arg("--images")
        .arg(&bench.images)
        .args(["--readme-block", block, "--readme"])
        .arg(copy)
        .stdout(Stdio::null());
    run_openly("dormouse bench load", command)
}

fn sizes(bench: &Bench<'_>, copy: &Path, _: &[&str]) -> Result<()> {
    let mut command = Command::new(&bench.dormouse);
    command
        .args(["bench", "sizes", "--images"])
        .arg(&bench.images)
        .arg("--readme")
        .arg(copy)
        .stdout(Stdio::null());
    run_openly("dormouse bench sizes", command)
}

/// Long enough for every kind of thing to happen some times; `cargo xtask soak` is for whoever looks
/// closely.
fn soaked(bench: &Bench<'_>, copy: &Path, _: &[&str]) -> Result<()> {
    let minutes = if bench.quick { 1 } else { 5 };
    soak::write(bench.repo, &bench.dormouse, &bench.images, minutes, copy)
}

/// A pattern that fits these names and as few others as one pattern can.
fn pattern(names: &[&str]) -> String {
    let [first, rest @ ..] = names else {
        return "*".to_owned();
    };
    if rest.is_empty() {
        return glob::Pattern::escape(first);
    }
    let common = |name: &&str| {
        let pairs = first.chars().zip(name.chars());
        pairs.take_while(|(a, b)| a == b).count()
    };
    let length = rest.iter().map(common).min().unwrap_or(0);
    let prefix: String = first.chars().take(length).collect();
    format!("{}*", glob::Pattern::escape(&prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_rows_that_are_needed_are_measured() {
        for (names, expected) in [
            (&["memory/pss/10", "memory/available/10"][..], "memory/*"),
            (&["http/hello"], "http/hello"),
            (&["http/hello", "replay/1000"], "*"),
            (&["a[1]", "a[2]"], "a[[]*"),
        ] {
            assert_eq!(pattern(names), expected);
        }
    }
}
