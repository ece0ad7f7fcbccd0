//! The process that is hurt, from both sides.

use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Output, Stdio};

use anyhow::{Context, Result, ensure};
use dormouse_snapshot::Store;
use nix::sys::ptrace;
use nix::sys::signal::{Signal, raise};

use crate::operation::{Operation, Outcome};
use crate::seals::Seals;

/// The subcommand by which the program becomes a worker.
const WORK: &str = "work";
/// The exit code of a panic in Rust.
const PANICKED: i32 = 101;

/// Does the operations that `script` lists, on the store in `folder`, and writes a line with the
/// outcome of each to stdout. Where it is `traced`, it first waits for the process that started it;
/// else it looks after each operation whether somebody has written into a published file.
///
/// # Errors
/// Where it cannot begin, or cannot write.
pub fn work(folder: &Path, script: &str, traced: bool) -> Result<ExitCode> {
    let script: Vec<Operation> = serde_json::from_str(script).context("the script")?;
    let place = folder.ancestors().skip(1).find(|above| above.is_dir());
    for operation in &script {
        operation.prepare(place.context("the store's folder is nowhere")?)?;
    }
    if traced {
        ptrace::traceme().context("cannot be traced")?;
        raise(Signal::SIGSTOP)?;
    }
    let store = Store::open(folder);
    let mut seals = Seals::default();
    for operation in script {
        let mut outcome = match &store {
            Ok(store) => operation.run(store),
            Err(error) => Outcome::Failed(error.to_string()),
        };
        // Whoever is traced is to be seen with its own system calls only.
        if !traced && let Err(error) = seals.check(folder) {
            outcome = Outcome::Wrong(format!("after {operation:?}: {error:#}"));
        }
        let line = format!("{}\n", serde_json::to_string(&outcome)?);
        // One write: a line is there as a whole or not at all.
        std::io::stdout().lock().write_all(line.as_bytes())?;
    }
    Ok(ExitCode::SUCCESS)
}

/// How workers are started.
#[derive(Clone, Debug)]
pub(crate) struct Worker {
    program: PathBuf,
}

/// What a worker has left.
#[derive(Debug)]
pub(crate) struct Ended {
    /// The outcomes of the operations that it has finished.
    pub(crate) outcomes: Vec<Outcome>,
    /// What it said beside them.
    pub(crate) said: String,
}

impl Worker {
    pub(crate) fn new(program: &Path) -> Self {
        let program = program.to_owned();
        Self { program }
    }

    pub(crate) fn start(&self, folder: &Path, script: &[Operation], traced: bool) -> Result<Child> {
        let mut command = Command::new(&self.program);
        command.arg(WORK).arg(folder);
        command.arg(serde_json::to_string(script)?);
        if traced {
            command.arg("--traced");
        }
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", self.program.display()))
    }
}

impl Ended {
    /// Waits for `child` and reads what it wrote.
    pub(crate) fn of(child: Child) -> Result<Self> {
        Self::from(child.wait_with_output()?)
    }

    pub(crate) fn from(output: Output) -> Result<Self> {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let panicked = output.status.code() == Some(PANICKED) || said.contains("panicked at");
        ensure!(!panicked, "the worker panicked: {said}");
        let signal = output.status.signal();
        ensure!(
            signal.is_none_or(|signal| signal == Signal::SIGKILL as i32),
            "the worker died of signal {signal:?}: {said}"
        );
        let lines = String::from_utf8(output.stdout)?;
        let outcomes = lines
            .lines()
            .map(|line| serde_json::from_str(line).with_context(|| format!("{line:?}")))
            .collect::<Result<Vec<Outcome>>>()?;
        for outcome in &outcomes {
            ensure!(!matches!(outcome, Outcome::Wrong(_)), "{outcome:?}");
        }
        Ok(Self { outcomes, said })
    }
}
