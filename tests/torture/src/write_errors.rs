//! A disk that fails or is full: system calls on files that return errors.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use rand::rngs::ChaCha8Rng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use rustix::io::Errno;

use crate::drive::Cases;
use crate::kills::calls;
use crate::operation::{Operation, Outcome};
use crate::report::Report;
use crate::scene::Scene;
use crate::seals::Seals;
use crate::tracee::{self, Call, Tracer, Verdict};
use crate::worker::{Ended, Worker};

pub(crate) const KIND: &str = "error";

/// Faults in one scene, of all that there can be.
const FAULTS_PER_SCENE: usize = 40;

/// What goes wrong with the disk.
#[derive(Clone, Copy, Debug)]
enum Fault {
    /// The system call of this number, from 0, fails.
    Once(usize, Errno),
    /// So does every one behind it that changes something.
    Always(usize, Errno),
    /// There is room for so many bytes, and no more.
    Full(u64),
}

/// A disk with a fault.
struct Disk {
    fault: Fault,
    calls: usize,
    room_bytes: u64,
    has_failed: bool,
}

impl Tracer for Disk {
    fn enter(&mut self, call: &Call) -> Result<Verdict> {
        let number = self.calls;
        self.calls += 1;
        let to_us = call.is_write() && call.arguments[0] <= 2;
        if to_us || !call.is_of_files() {
            return Ok(Verdict::Pass);
        }
        let verdict = match self.fault {
            Fault::Once(which, errno) if number == which => Verdict::Fail(errno),
            Fault::Always(from, errno) if number >= from && call.changes_files() => {
                Verdict::Fail(errno)
            }
            Fault::Full(_) => self.store(call),
            Fault::Once(..) | Fault::Always(..) => Verdict::Pass,
        };
        self.has_failed |= matches!(verdict, Verdict::Fail(_));
        Ok(verdict)
    }
}

impl Disk {
    /// What a call gets of the room that is left. Removing is always possible, as on real disks.
    fn store(&mut self, call: &Call) -> Verdict {
        let bytes = call.arguments[2];
        if call.is_write() {
            let fits = bytes.min(self.room_bytes);
            self.room_bytes -= fits;
            return match fits {
                0 => Verdict::Fail(Errno::NOSPC),
                _ if fits < bytes => Verdict::Shorten(fits),
                _ => Verdict::Pass,
            };
        }
        match call.creates() && self.room_bytes == 0 {
            true => Verdict::Fail(Errno::NOSPC),
            false => Verdict::Pass,
        }
    }
}

/// Lets every system call on files fail that the scene's operation makes, one at a time. Tells how
/// many.
///
/// # Errors
/// On the first thing that is lost or wrong.
pub fn every_call(program: &Path, scene: &Scene, report: &mut Report) -> Result<u64> {
    let mut cases = Cases::unlimited();
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    suffer(
        &Worker::new(program),
        scene,
        None,
        &mut rng,
        &mut cases,
        report,
    )?;
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
        suffer(
            worker,
            &scene,
            Some(FAULTS_PER_SCENE),
            &mut rng,
            &mut cases,
            report,
        )
        .with_context(|| format!("scene {seed}"))?;
    }
    Ok(())
}

/// Has every fault there can be, or so many.
fn suffer(
    worker: &Worker,
    scene: &Scene,
    most: Option<usize>,
    rng: &mut ChaCha8Rng,
    cases: &mut Cases,
    report: &mut Report,
) -> Result<()> {
    let mut faults = Vec::new();
    for (number, call) in calls(worker, scene)?.iter().enumerate() {
        if !call.is_of_files() || call.is_write() && call.arguments[0] <= 2 {
            continue;
        }
        let may_be_full = call.is_write() || call.creates();
        let errno = match may_be_full && rng.random_bool(0.5) {
            true => Errno::NOSPC,
            false => Errno::IO,
        };
        faults.push(Fault::Once(number, errno));
        if call.changes_files() {
            faults.push(Fault::Always(number, errno));
        }
        if call.is_write() {
            faults.push(Fault::Full(rng.random_range(0..200_000)));
        }
    }
    if let Some(most) = most {
        faults = faults.sample(rng, most).copied().collect();
    }
    // All copies share the scene's files.
    let mut seals = Seals::of(&scene.store())?;
    for fault in faults {
        if !cases.next() {
            break;
        }
        let how = suffer_once(worker, scene, fault)
            .with_context(|| format!("{:?}, {fault:x?}", scene.operation))?;
        let (Fault::Once(_, errno) | Fault::Always(_, errno)) = fault else {
            report.count("full disk", scene.operation.name(), how);
            continue;
        };
        let case = match errno {
            Errno::NOSPC => format!("{} (ENOSPC)", scene.operation.name()),
            _ => format!("{} (EIO)", scene.operation.name()),
        };
        report.count(KIND, case, how);
    }
    seals.check(&scene.store())
}

fn suffer_once(worker: &Worker, scene: &Scene, fault: Fault) -> Result<&'static str> {
    let copy = scene.linked()?;
    let child = worker.start(&copy.store(), std::slice::from_ref(&scene.operation), true)?;
    let mut disk = Disk {
        fault,
        calls: 0,
        room_bytes: match fault {
            Fault::Full(bytes) => bytes,
            _ => 0,
        },
        has_failed: false,
    };
    let ended = tracee::run(child, &mut disk)?;
    check(scene, &copy.store(), fault, disk.has_failed, &ended)
}

fn check(
    scene: &Scene,
    store: &Path,
    fault: Fault,
    has_failed: bool,
    ended: &Ended,
) -> Result<&'static str> {
    let mut model = scene.model.clone();
    let [outcome] = ended.outcomes.as_slice() else {
        anyhow::bail!("the worker ended early: {}", ended.said);
    };
    match outcome {
        Outcome::Failed(message) | Outcome::Refused(message) if has_failed => {
            ensure!(
                !message.is_empty() && !message.contains('\n'),
                "not a clear error: {message:?}"
            );
            // What undoes a publish may fail as well where the disk is gone for good.
            let must_be_undone = !matches!(fault, Fault::Always(..));
            let publishes = matches!(
                scene.operation,
                Operation::Publish { .. } | Operation::Import { .. } | Operation::Flatten(_)
            );
            let may_be_done = !(publishes && must_be_undone);
            model
                .check(store, may_be_done.then_some(&scene.operation))
                .with_context(|| format!("after {message:?}"))?;
            Ok("failed, nothing else harmed")
        }
        // It does without what it cannot read.
        Outcome::Collected { .. } | Outcome::Removed(_) if has_failed => {
            model.check_after_errors(store, &scene.operation)?;
            Ok("succeeded all the same")
        }
        outcome => {
            model.apply(&scene.operation, outcome)?;
            model.check(store, None)?;
            Ok(match has_failed {
                true => "succeeded all the same",
                false => "not reached",
            })
        }
    }
}
