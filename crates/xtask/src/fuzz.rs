//! `cargo xtask fuzz`: hostile files for every parser of the snapshot format.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;

use crate::progress::Step;
use crate::repo::{Repo, run};
use crate::setup;

/// Where each target has a folder with its inputs; a test holds the two together.
const CORPORA: &str = "tests/fuzz/corpus";

/// How many targets run at once.
const AT_ONCE: usize = 3;

/// libFuzzer finds its way by what LLVM counts: stable compilers do that as well.
const FLAGS: [&str; 6] = [
    "--cfg=fuzzing",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
];

/// With a target named, the flags above do not apply to build scripts, which could not be linked.
const TRIPLE: &str = "x86_64-unknown-linux-gnu";

#[derive(Debug, Args)]
pub(crate) struct FuzzArgs {
    /// What to fuzz; everything where nothing is named
    #[arg(value_name = "TARGET")]
    targets: Vec<String>,
    /// How long to fuzz each target
    #[arg(long, value_name = "N", default_value_t = 60)]
    seconds: u64,
    /// Where libFuzzer's random numbers start
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u32,
}

/// Installs what the fuzzer's build needs, builds it and runs it.
pub(crate) fn run_named(repo: &Repo, args: &FuzzArgs) -> Result<()> {
    setup::install_cxx()?;
    let known = known_targets(repo)?;
    if let Some(unknown) = args.targets.iter().find(|target| !known.contains(target)) {
        bail!(
            "there is no fuzz target {unknown:?}\nhint: there are {}",
            known.join(", ")
        );
    }
    let targets = if args.targets.is_empty() {
        &known
    } else {
        &args.targets
    };
    fuzz(repo, targets, args)
}

fn known_targets(repo: &Repo) -> Result<Vec<String>> {
    let folder = repo.path(CORPORA);
    let entries =
        fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let names = entries.flatten().map(|entry| entry.file_name());
    let mut names: Vec<String> = names.filter_map(|name| name.into_string().ok()).collect();
    names.sort();
    Ok(names)
}

/// Fuzzes everything for a minute each, always in the same way.
pub(crate) fn run_all(repo: &Repo) -> Result<()> {
    let args = FuzzArgs {
        targets: Vec::new(),
        seconds: 60,
        seed: 1,
    };
    run_named(repo, &args)
}

fn fuzz(repo: &Repo, targets: &[String], args: &FuzzArgs) -> Result<()> {
    let fuzzer = build(repo)?;
    let folder = repo.path("target/fuzz");
    let begun = Instant::now();
    let waiting = Mutex::new(targets.iter());
    let next = || waiting.lock().ok()?.next();
    let failures: Vec<anyhow::Error> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..AT_ONCE.min(targets.len()))
            .map(|_| {
                scope.spawn(|| {
                    let ends = std::iter::from_fn(&next)
                        .map(|target| fuzz_one(repo, &fuzzer, &folder, target, args));
                    ends.filter_map(Result::err).collect::<Vec<_>>()
                })
            })
            .collect();
        let join = |worker: std::thread::ScopedJoinHandle<'_, Vec<anyhow::Error>>| {
            let panicked = |_| vec![anyhow!("a fuzzer's thread panicked")];
            worker.join().unwrap_or_else(panicked)
        };
        workers.into_iter().flat_map(join).collect()
    });
    for failure in &failures {
        eprintln!("{failure:#}");
    }
    if !failures.is_empty() {
        bail!(
            "{} of {} fuzz targets failed\nhint: tests/fuzz/README.md says what to do with an input \
             that was found",
            failures.len(),
            targets.len()
        );
    }
    eprintln!(
        "fuzzed {} for {} s each: nothing found ({} s in all)",
        targets.join(", "),
        args.seconds,
        begun.elapsed().as_secs()
    );
    Ok(())
}

fn build(repo: &Repo) -> Result<PathBuf> {
    let mut build = repo.cargo();
    // Flags with spaces between them would be one; the separator is cargo's for that.
    build
        .args(["build", "--quiet", "--package", "dormouse-fuzz"])
        .args(["--profile", "fuzz", "--target", TRIPLE])
        .args(["--target-dir", "target/fuzz"])
        .env("CARGO_ENCODED_RUSTFLAGS", FLAGS.join("\u{1f}"));
    run("building the fuzzer", build)?;
    Ok(repo.path(&format!("target/fuzz/{TRIPLE}/fuzz/dormouse-fuzz")))
}

/// Fuzzes one target, from a copy of its corpus: what is found stays out of the repository until
/// somebody puts it there.
fn fuzz_one(
    repo: &Repo,
    fuzzer: &Path,
    folder: &Path,
    target: &str,
    args: &FuzzArgs,
) -> Result<()> {
    let corpus = folder.join("corpus").join(target);
    let artifacts = folder.join("artifacts").join(target);
    for emptied in [&corpus, &artifacts] {
        if emptied.exists() {
            fs::remove_dir_all(emptied)
                .with_context(|| format!("cannot remove {}", emptied.display()))?;
        }
        fs::create_dir_all(emptied)
            .with_context(|| format!("cannot create {}", emptied.display()))?;
    }
    let seeds = repo.path(CORPORA).join(target);
    let entries =
        fs::read_dir(&seeds).with_context(|| format!("cannot read {}", seeds.display()))?;
    for seed in entries.flatten() {
        fs::copy(seed.path(), corpus.join(seed.file_name()))
            .with_context(|| format!("cannot copy {}", seed.path().display()))?;
    }

    let step = Step::begin(&format!("fuzzing {target} for {} s", args.seconds));
    let output = Command::new(fuzzer)
        .env("DORMOUSE_FUZZ_TARGET", target)
        .arg(format!("-seed={}", args.seed))
        .arg(format!("-max_total_time={}", args.seconds))
        .args(["-rss_limit_mb=512", "-timeout=20", "-print_final_stats=1"])
        .arg(format!("-artifact_prefix={}/", artifacts.display()))
        .arg(&corpus)
        .output()
        .with_context(|| format!("cannot start {}", fuzzer.display()))?;
    let told = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        let what = step.failed();
        bail!(
            "{what} failed; the input is in {}:\n{}",
            artifacts.display(),
            tail(&told)
        );
    }
    step.done();
    let runs = told.lines().find_map(|line| {
        let count = line.strip_prefix("stat::number_of_executed_units:")?;
        count.trim().parse::<u64>().ok()
    });
    match runs {
        // A fuzzer that tries nothing finds nothing.
        None | Some(0) => bail!("fuzzing {target} tried no input:\n{}", tail(&told)),
        Some(runs) => {
            eprintln!("{target}: {runs} inputs, nothing found");
            Ok(())
        }
    }
}

/// The last lines of what a fuzzer says, where the reason stands.
fn tail(text: &str) -> String {
    const LINES: usize = 40;
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LINES)..].join("\n")
}
