//! Power that goes away: what was not flushed is lost, or not, or in part.

mod disk;
mod recorder;

use std::path::Path;

use anyhow::{Context, Result, ensure};
use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};

use crate::drive::Cases;
use crate::model::Model;
use crate::operation::Operation;
use crate::report::Report;
use crate::scene::{self, Scene};
use crate::tracee;
use crate::worker::Worker;
use disk::Disk;
use recorder::Recorder;

pub(crate) const KIND: &str = "power loss";

/// Moments at which one recorded run loses its power.
const MOMENTS: usize = 60;

/// A store below two folders that are not there yet, which have to last as well.
const STORE: &str = "data/store";

pub(crate) fn run(
    worker: &Worker,
    place: &Path,
    seed: u64,
    mut cases: Cases,
    report: &mut Report,
) -> Result<()> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    while !cases.are_over() {
        let seed = rng.random();
        run_script(worker, place, seed, &mut cases, report)
            .with_context(|| format!("script {seed}"))?;
    }
    Ok(())
}

fn run_script(
    worker: &Worker,
    place: &Path,
    seed: u64,
    cases: &mut Cases,
    report: &mut Report,
) -> Result<()> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let functions = scene::functions()?;
    let functions = &functions[..2];
    let first = Operation::publish(&mut rng, functions[0].clone(), false);
    let mut script = vec![first];
    script.extend((0..rng.random_range(2..8)).map(|_| Operation::any(&mut rng, functions)));

    // The scene only lends its folder, and takes it away.
    let scene = Scene::empty(place, Operation::Verify)?;
    let root = scene.folder().canonicalize()?;
    let child = worker.start(&root.join(STORE), &script, true)?;
    let mut recorder = Recorder::new(&root);
    let ended = tracee::run(child, &mut recorder)?;
    ensure!(
        ended.outcomes.len() == script.len(),
        "an undisturbed worker ended early: {}",
        ended.said
    );
    let mut models = vec![Model::default()];
    for (operation, outcome) in script.iter().zip(&ended.outcomes) {
        let mut model = models[models.len() - 1].clone();
        model.apply(operation, outcome)?;
        models.push(model);
    }
    models[script.len()].check(&root.join(STORE), None)?;

    let disk = recorder.disk;
    for _ in 0..MOMENTS {
        if !cases.next() {
            return Ok(());
        }
        let moment = a_moment(&disk, &mut rng);
        let done = disk.done_before(moment);
        let cut_off = script.get(done);
        let after = tempfile::tempdir_in(scene.folder())?;
        let kept = disk.lose_power(moment, after.path(), &mut rng)?;
        models[done]
            .check(&after.path().join(STORE), cut_off)
            .with_context(|| format!("{script:?}, after {done} and at step {moment}, {kept}"))?;
        let case = match cut_off {
            Some(operation) => format!("in {}", operation.name()),
            None => "after the last".to_owned(),
        };
        report.count(KIND, case, "all that was published is there");
    }
    Ok(())
}

/// Any step; often one at which somebody has just been told that something is done.
fn a_moment(disk: &Disk, rng: &mut ChaCha8Rng) -> usize {
    let moment = rng.random_range(0..=disk.steps());
    match rng.random_bool(0.4) {
        true => disk.next_done(moment),
        false => moment,
    }
}
