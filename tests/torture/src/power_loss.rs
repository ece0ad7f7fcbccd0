//! Power that goes away: what was not flushed is lost, or not, or in part.

mod disk;
mod recorder;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};

use crate::drive::Cases;
use crate::model::Model;
use crate::operation::Operation;
use crate::report::Report;
use crate::scene::{self, Scene};
use crate::worker::{Ended, Worker};
use disk::Disk;
use recorder::Recorder;

pub(crate) const KIND: &str = "power loss";

/// Moments at which one recorded run loses its power.
const MOMENTS: usize = 60;

/// The longest life of a worker that dies before the others begin, in system calls. It has not
/// published anything by then, but may have made the store's folders.
const MOST_LIFE: usize = 100;

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

    let mut run = Run::new(worker, place)?;
    let mut deaths = 0;
    while deaths < 3 && rng.random_bool(0.4) {
        // Most folders are made in the first calls.
        let most = [10, MOST_LIFE][rng.random_range(0..2)];
        if run.die(&script[0], rng.random_range(0..most))? {
            return Ok(());
        }
        deaths += 1;
    }
    let ended = run.live(&script)?;
    let (scene, root) = (run.scene, run.root);
    let mut models = vec![Model::default()];
    for (operation, outcome) in script.iter().zip(&ended.outcomes) {
        let mut model = models[models.len() - 1].clone();
        model.apply(operation, outcome)?;
        models.push(model);
    }
    models[script.len()].check(&root.join(STORE), None)?;

    let disk = run.recorder.disk;
    for _ in 0..MOMENTS {
        if !cases.next() {
            return Ok(());
        }
        let moment = a_moment(&disk, &mut rng);
        let done = disk.done_before(moment);
        let cut_off = script.get(done);
        let after = tempfile::tempdir_in(scene.folder())?;
        let share = [0.0, 0.2, 0.5, 0.8, 1.0][rng.random_range(0..5)];
        disk.lose_power(moment, after.path(), share, &mut rng)?;
        models[done]
            .check(&after.path().join(STORE), cut_off)
            .with_context(|| {
                format!(
                    "{deaths} deaths and {script:?}, after {done} and at step {moment}, {share} of \
                     what was not flushed kept"
                )
            })?;
        let case = match (cut_off, deaths) {
            (Some(operation), _) => format!("in {}", operation.name()),
            (None, 0) => "after the last".to_owned(),
            (None, _) => "after the last, others died before".to_owned(),
        };
        report.count(KIND, case, "all that was published is there");
    }
    Ok(())
}

/// Workers on a new store, and what they do to its disk.
struct Run<'a> {
    worker: &'a Worker,
    /// Only lends its folder, and takes it away.
    scene: Scene,
    root: PathBuf,
    recorder: Recorder,
}

impl<'a> Run<'a> {
    fn new(worker: &'a Worker, place: &Path) -> Result<Self> {
        let scene = Scene::empty(place, Operation::Verify)?;
        let root = scene.folder().canonicalize()?;
        Ok(Self {
            worker,
            scene,
            recorder: Recorder::new(&root),
            root,
        })
    }

    fn store(&self) -> PathBuf {
        self.root.join(STORE)
    }

    /// Lets a worker begin a publish and die after so many system calls. Tells whether others can
    /// see what it was to publish.
    fn die(&mut self, publish: &Operation, life: usize) -> Result<bool> {
        let script = std::slice::from_ref(publish);
        let child = self.worker.start(&self.store(), script, true)?;
        self.recorder.follow(child, Some(life))?;
        // Looking must not make what the worker has not made.
        let is_there = self.store().is_dir();
        Ok(is_there && !Model::found(&self.store())?.is_empty())
    }

    /// Lets a worker do a script to its end.
    fn live(&mut self, script: &[Operation]) -> Result<Ended> {
        let child = self.worker.start(&self.store(), script, true)?;
        let ended = self.recorder.follow(child, None)?;
        ensure!(
            ended.outcomes.len() == script.len(),
            "an undisturbed worker ended early: {}",
            ended.said
        );
        Ok(ended)
    }
}

/// Kills a worker at each of the first system calls of the first publish in a store, which make its
/// folders, and at some later ones; lets another one publish the
/// same, and then loses all that was not flushed. Tells how often.
///
/// # Errors
/// Where what was published is lost.
pub fn after_every_death(program: &Path, place: &Path, report: &mut Report) -> Result<u64> {
    let worker = Worker::new(program);
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let functions = scene::functions()?;
    let publish = Operation::publish(&mut rng, functions[0].clone(), false);
    let mut deaths = 0;
    for life in (0..20).chain((20..).step_by(8)) {
        let mut run = Run::new(&worker, place)?;
        if run.die(&publish, life)? {
            break;
        }
        let ended = run.live(std::slice::from_ref(&publish))?;
        let mut model = Model::default();
        model.apply(&publish, &ended.outcomes[0])?;
        let disk = &run.recorder.disk;
        let after = tempfile::tempdir_in(run.scene.folder())?;
        disk.lose_power(disk.steps(), after.path(), 0.0, &mut rng)?;
        model
            .check(&after.path().join(STORE), None)
            .with_context(|| format!("another one had died after {life} system calls"))?;
        report.count(KIND, "after a death", "all that was published is there");
        deaths += 1;
    }
    Ok(deaths)
}

/// Any step; often one at which somebody has just been told that something is done.
fn a_moment(disk: &Disk, rng: &mut ChaCha8Rng) -> usize {
    let moment = rng.random_range(0..=disk.steps());
    match rng.random_bool(0.4) {
        true => disk.next_done(moment),
        false => moment,
    }
}
