//! A real file system that is full. It takes the right to mount a small one.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use dormouse_snapshot::Store;
use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::drive::Cases;
use crate::model::Model;
use crate::operation::{Operation, Outcome};
use crate::report::Report;
use crate::scene;

pub(crate) const KIND: &str = "full disk";

/// Room for any snapshot of a scene.
const ROOM_BYTES: u64 = 400_000;

/// A small file system in memory, gone with this value.
struct SmallDisk {
    folder: PathBuf,
}

impl SmallDisk {
    fn mount(place: &Path, bytes: u64) -> rustix::io::Result<Self> {
        let folder = place.to_owned();
        let options = std::ffi::CString::new(format!("size={bytes},mode=700"))
            .map_err(|_| rustix::io::Errno::INVAL)?;
        mount(
            "dormouse-torture",
            &folder,
            "tmpfs",
            MountFlags::NODEV | MountFlags::NOSUID,
            &*options,
        )?;
        Ok(Self { folder })
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        if let Err(error) = unmount(&self.folder, UnmountFlags::DETACH) {
            eprintln!("{} stays mounted: {error}", self.folder.display());
        }
    }
}

pub(crate) fn run(place: &Path, seed: u64, mut cases: Cases, report: &mut Report) -> Result<()> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    while !cases.are_over() {
        let folder = tempfile::tempdir_in(place)?;
        let bytes = rng.random_range(60_000..500_000);
        let disk = match SmallDisk::mount(folder.path(), bytes) {
            Ok(disk) => disk,
            Err(error) => {
                // Disks that are full by decree are among the errors.
                let reason = format!("no small disk can be mounted ({error}): run as root");
                report.skip(KIND, cases.left(), reason);
                return Ok(());
            }
        };
        fill(&disk.folder, &mut rng, &mut cases, report)
            .with_context(|| format!("a disk of {bytes} bytes"))?;
    }
    Ok(())
}

/// Works on a disk until nothing has fitted for some time, then makes room.
fn fill(folder: &Path, rng: &mut ChaCha8Rng, cases: &mut Cases, report: &mut Report) -> Result<()> {
    let folder = folder.join("store");
    let (store, mut model) = (Store::open(&folder)?, Model::default());
    let functions = scene::functions()?;
    let mut failures = 0;
    while failures < 6 && cases.next() {
        let operation = match Operation::any(rng, &functions) {
            // Room is made at the end, and a parcel would be packed on this disk.
            Operation::Remove(function)
            | Operation::RemoveSnapshot { function, .. }
            | Operation::Import { function, .. } => Operation::publish(rng, function, false),
            Operation::Gc { limits, .. } => Operation::Gc {
                limits,
                dry_run: true,
            },
            other => other,
        };
        let outcome = operation.run(&store);
        let how = match &outcome {
            Outcome::Failed(message) => {
                ensure!(
                    message.contains("No space left"),
                    "{operation:?}: {message}"
                );
                failures += 1;
                "failed, nothing else harmed"
            }
            outcome => {
                model.apply(&operation, outcome)?;
                "fitted"
            }
        };
        model
            .check(&folder, None)
            .with_context(|| format!("{operation:?} ended in {outcome:?}"))?;
        report.count(KIND, format!("{} (real)", operation.name()), how);
    }
    for function in &functions {
        let remove = Operation::Remove(function.clone());
        model.apply(&remove, &remove.run(&store))?;
    }
    model.check(&folder, None)?;
    // All the room is back.
    let publish = Operation::publish(rng, functions[0].clone(), false);
    let disk = rustix::fs::statvfs(&folder)?;
    if disk.f_bfree * disk.f_frsize > ROOM_BYTES {
        model.apply(&publish, &publish.run(&store))?;
    }
    model.check(&folder, None).map(drop)
}
