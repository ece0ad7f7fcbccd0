//! Processes that work on one store at the same time, some of which are killed.

use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use dormouse_snapshot::FunctionName;
use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};

use crate::drive::Cases;
use crate::model::Model;
use crate::operation::{Operation, Outcome};
use crate::report::Report;
use crate::scene::{self, Scene};
use crate::worker::{Ended, Worker};

pub(crate) const KIND: &str = "race";

/// Operations of each process.
const OPERATIONS: usize = 8;
/// The longest that a process lives that is to be killed; most are done sooner.
const MOST_LIFE_US: u64 = 60_000;

pub(crate) fn run(
    worker: &Worker,
    place: &Path,
    seed: u64,
    mut cases: Cases,
    report: &mut Report,
) -> Result<()> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    while cases.next() {
        let seed = rng.random();
        race(worker, place, seed, report)
            .with_context(|| format!("race {seed}, which may end otherwise next time"))?;
    }
    Ok(())
}

fn race(worker: &Worker, place: &Path, seed: u64, report: &mut Report) -> Result<()> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let functions = scene::functions()?;
    let lasting = &functions[0];
    let scene = Scene::empty(place, Operation::Verify)?;
    let store = scene.store();

    let processes = rng.random_range(2..5);
    let has_limits = rng.random_bool(0.5);
    let scripts: Vec<Vec<Operation>> = (0..processes)
        .map(|_| script(&mut rng, &functions, lasting, has_limits))
        .collect();
    let mut children = Vec::new();
    for script in &scripts {
        children.push(worker.start(&store, script, false)?);
    }
    let mut killed = 0;
    for child in &mut children {
        if rng.random_bool(0.4) {
            thread::sleep(Duration::from_micros(rng.random_range(0..MOST_LIFE_US)));
            child.kill()?;
            killed += 1;
        }
    }
    let mut published = Vec::new();
    for (child, script) in children.into_iter().zip(&scripts) {
        let ended = Ended::of(child)?;
        let mut has_published = false;
        for (operation, outcome) in script.iter().zip(&ended.outcomes) {
            match outcome {
                Outcome::Unknown(message) if operation.function() == Some(lasting) => {
                    let is_lost = has_published && matches!(operation, Operation::Read(_));
                    ensure!(!is_lost, "LOST for {operation:?}: {message}");
                }
                // Somebody else was faster.
                Outcome::Failed(message) => ensure!(
                    message.contains("is not the newest snapshot"),
                    "{operation:?}: {message}"
                ),
                Outcome::Published(id) if operation.function() == Some(lasting) => {
                    let content = match operation {
                        Operation::Publish { content, .. } => Some(*content),
                        _ => None,
                    };
                    published.push((*id, content));
                    has_published = true;
                }
                Outcome::Imported { id, .. } if operation.function() == Some(lasting) => {
                    published.push((*id, None));
                }
                _ => {}
            }
        }
    }
    let found = Model::found(&store)?;
    let newest = found.snapshots().filter(|of| of.function == *lasting);
    let newest = newest.map(|of| of.id.sequence()).max();
    for (id, content) in published {
        // Only what is not the newest may be over a limit.
        if has_limits && newest.is_some_and(|newest| id.sequence() < newest) {
            continue;
        }
        let snapshot = dormouse_snapshot::SnapshotRef {
            function: lasting.clone(),
            id,
        };
        let kept = found.content(&snapshot);
        let kept = kept.with_context(|| format!("LOST: {snapshot}"))?;
        ensure!(
            content.is_none_or(|content| content == kept),
            "WRONG: {snapshot} is {kept:?} and not {content:?}"
        );
    }
    found.check(&store, None)?;
    let case = format!("{processes} processes, {killed} killed");
    report.count(KIND, case, "all that was published is there");
    Ok(())
}

/// Operations of one process, none of which takes away what is to last: that is all of a function,
/// or its newest snapshot at any time where the limits of a history hold.
fn script(
    rng: &mut ChaCha8Rng,
    functions: &[FunctionName],
    lasting: &FunctionName,
    has_limits: bool,
) -> Vec<Operation> {
    let mut operation = || match Operation::any(rng, functions) {
        Operation::Remove(function) | Operation::RemoveSnapshot { function, .. }
            if function == *lasting =>
        {
            Operation::Read(function)
        }
        Operation::Gc { limits, dry_run } => Operation::Gc {
            limits,
            dry_run: dry_run || !has_limits,
        },
        // Right after it was made, a folder of somebody who lives looks like that of one who died:
        // that is why leftovers are cleared away only after some time.
        Operation::CleanLeftovers => Operation::Verify,
        other => other,
    };
    (0..OPERATIONS).map(|_| operation()).collect()
}
