//! A process that dies at a system call.

use std::path::Path;

use anyhow::{Context, Result};
use nix::libc;
use rand::rngs::ChaCha8Rng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};

use crate::content::Content;
use crate::drive::Cases;
use crate::model::Model;
use crate::operation::{Operation, Outcome};
use crate::report::Report;
use crate::scene::Scene;
use crate::seals::Seals;
use crate::tracee::{self, Call, Verdict};
use crate::worker::{Ended, Worker};

pub(crate) const KIND: &str = "kill";

/// Deaths in one scene, of all that there can be.
const DEATHS_PER_SCENE: usize = 40;

/// Where a worker dies.
#[derive(Clone, Copy, Debug)]
struct Death {
    /// In which system call, from 0.
    call: usize,
    /// What of its bytes is written before, where it writes and is not just kept from it.
    written: Option<u64>,
}

/// Kills a worker at every system call of the scene's operation, and in the middle of each write.
/// Tells how often.
///
/// # Errors
/// On the first thing that is lost or wrong.
pub fn every_call(program: &Path, scene: &Scene, report: &mut Report) -> Result<u64> {
    let mut cases = Cases::unlimited();
    suffer(&Worker::new(program), scene, None, &mut cases, report)?;
    Ok(cases.begun())
}

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
        let scene = Scene::new(place, seed)?;
        let some = Some((DEATHS_PER_SCENE, &mut rng));
        suffer(worker, &scene, some, &mut cases, report)
            .with_context(|| format!("scene {seed}"))?;
    }
    Ok(())
}

/// Kills a worker everywhere, or at so many places.
fn suffer(
    worker: &Worker,
    scene: &Scene,
    some: Option<(usize, &mut ChaCha8Rng)>,
    cases: &mut Cases,
    report: &mut Report,
) -> Result<()> {
    let mut deaths: Vec<_> = deaths(&calls(worker, scene)?).collect();
    if let Some((most, rng)) = some {
        deaths = deaths.sample(rng, most).copied().collect();
    }
    // All copies share the scene's files.
    let mut seals = Seals::of(&scene.store())?;
    for death in deaths {
        if !cases.next() {
            break;
        }
        let copy = scene.linked()?;
        let ended = die(worker, &copy.store(), &scene.operation, death)?;
        let check = || -> Result<&'static str> {
            let how = check(scene, &copy.store(), &ended)?;
            if death.call.is_multiple_of(8) {
                goes_on(&copy.store())?;
            }
            Ok(how)
        };
        let how = check().with_context(|| format!("{:?}, {death:?}", scene.operation))?;
        report.count(KIND, scene.operation.name(), how);
    }
    seals.check(&scene.store())
}

/// The system calls of the scene's operation, where nothing disturbs it; that is checked as well.
pub(crate) fn calls(worker: &Worker, scene: &Scene) -> Result<Vec<Call>> {
    let copy = scene.linked()?;
    let mut calls = Vec::new();
    let child = worker.start(&copy.store(), std::slice::from_ref(&scene.operation), true)?;
    let ended = tracee::run(child, &mut |call: &Call| {
        calls.push(call.clone());
        Verdict::Pass
    })?;
    let mut model = scene.model.clone();
    let [outcome] = ended.outcomes.as_slice() else {
        anyhow::bail!("an undisturbed worker ended early: {}", ended.said);
    };
    model.apply(&scene.operation, outcome)?;
    model
        .check(&copy.store(), None)
        .with_context(|| format!("undisturbed {:?}", scene.operation))?;
    Ok(calls)
}

fn deaths(calls: &[Call]) -> impl Iterator<Item = Death> {
    calls.iter().enumerate().flat_map(|(call, what)| {
        let bytes = what.arguments[2];
        let half = (what.is_write() && bytes > 1).then_some(bytes / 2);
        let written = [None, half];
        let deaths = written.into_iter().take(1 + usize::from(half.is_some()));
        deaths.map(move |written| Death { call, written })
    })
}

fn die(worker: &Worker, store: &Path, operation: &Operation, death: Death) -> Result<Ended> {
    let child = worker.start(store, std::slice::from_ref(operation), true)?;
    let mut calls = 0..;
    tracee::run(child, &mut |call: &Call| {
        if calls.next() != Some(death.call) {
            return Verdict::Pass;
        }
        let to_us = call.number == libc::SYS_write && call.arguments[0] <= 2;
        match death.written {
            // Calls may shift by one or two, as hash tables are seeded anew in each process.
            Some(written) if call.is_write() && written < call.arguments[2] && !to_us => {
                Verdict::ShortenAndKill(written)
            }
            _ => Verdict::Kill,
        }
    })
}

/// Checks the store after its worker has died; tells what became of the operation.
fn check(scene: &Scene, store: &Path, ended: &Ended) -> Result<&'static str> {
    let mut model = scene.model.clone();
    if let [outcome] = ended.outcomes.as_slice() {
        model.apply(&scene.operation, outcome)?;
        model.check(store, None)?;
        return Ok("done before");
    }
    let found = model.check(store, Some(&scene.operation))?;
    Ok(match found == scene.model {
        true => "as if never begun",
        false => "as if finished",
    })
}

/// Checks that what died hinders nobody.
fn goes_on(store: &Path) -> Result<()> {
    let mut model = Model::found(store)?;
    let operation = Operation::Publish {
        function: dormouse_snapshot::FunctionName::new("alpha")?,
        content: Content(7),
        layer: false,
    };
    let outcome = operation.run(&dormouse_snapshot::Store::open(store)?);
    anyhow::ensure!(
        matches!(outcome, Outcome::Published(_)),
        "publishing afterwards: {outcome:?}"
    );
    model.apply(&operation, &outcome)?;
    model.check(store, None).map(drop)
}
