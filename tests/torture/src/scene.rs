//! A store with something in it, and an operation that something is done to.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use dormouse_snapshot::{FunctionName, Store};
use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};

use crate::model::Model;
use crate::operation::{self, Operation};
use crate::seals::Seals;

/// The store's folder below the one that a case has for itself.
const STORE: &str = "store";

/// A store, what is in it, and an operation on it.
#[derive(Debug)]
pub struct Scene {
    folder: tempfile::TempDir,
    /// What is in the store.
    pub model: Model,
    /// What is to be done.
    pub operation: Operation,
}

/// The functions that scenes have.
pub(crate) fn functions() -> Result<Vec<FunctionName>> {
    let names = ["alpha", "beta", "gamma"];
    Ok(names
        .into_iter()
        .map(FunctionName::new)
        .collect::<Result<_, _>>()?)
}

impl Scene {
    /// The scene of this `seed`, below the folder `place`.
    ///
    /// # Errors
    /// Where its store cannot be made.
    pub fn new(place: &Path, seed: u64) -> Result<Self> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let functions = functions()?;
        let mut scene = Self::empty(place, Operation::any(&mut rng, &functions))?;
        let store = Store::open(scene.store())?;
        let mut seals = Seals::default();
        let mut add = |operation: Operation| {
            let outcome = operation.run(&store);
            seals.check(store.path())?;
            scene.model.apply(&operation, &outcome)
        };
        for _ in 0..rng.random_range(1..6) {
            add(Operation::any(&mut rng, &functions))?;
        }
        // Most operations need something to be there.
        match &scene.operation {
            Operation::Untag(function, tag) => {
                add(Operation::publish(&mut rng, function.clone(), false))?;
                add(Operation::Tag(function.clone(), tag.clone()))?;
            }
            Operation::RemoveSnapshot { function, .. } => {
                add(Operation::publish(&mut rng, function.clone(), false))?;
                if let Some(tag) = operation::any_tag(&mut rng) {
                    add(Operation::Tag(function.clone(), tag))?;
                }
            }
            Operation::Gc { .. } => {
                for layer in [false, true, false, true] {
                    add(Operation::publish(&mut rng, functions[0].clone(), layer))?;
                }
            }
            _ => {}
        }
        if let Some(function) = scene.operation.function().cloned() {
            add(Operation::publish(&mut rng, function.clone(), false))?;
            if rng.random_bool(0.4) {
                add(Operation::SaveWorkingSet(
                    function,
                    rng.random_range(1..=30),
                ))?;
            }
        }
        if rng.random_bool(0.3) {
            leave_something(scene.folder.path())?;
        }
        Ok(scene)
    }

    /// The scene with no store yet.
    ///
    /// # Errors
    /// Where there is no place for it.
    pub fn empty(place: &Path, operation: Operation) -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("torture-")
            .tempdir_in(place)
            .with_context(|| format!("cannot make a folder in {}", place.display()))?;
        Ok(Self {
            folder,
            model: Model::default(),
            operation,
        })
    }

    /// The folder that it has for itself.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Where its store is.
    #[must_use]
    pub fn store(&self) -> PathBuf {
        self.folder.path().join(STORE)
    }

    /// A copy of the store, which shares its files: nothing may write into them.
    pub(crate) fn linked(&self) -> Result<Copy> {
        Copy::new(&self.folder, |from, to| fs::hard_link(from, to))
    }

    /// A copy of the store whose files are its own. Files that are one stay one.
    pub(crate) fn copied(&self) -> Result<Copy> {
        use std::os::unix::fs::MetadataExt;
        let mut copies = std::collections::HashMap::new();
        Copy::new(&self.folder, |from, to| {
            let inode = fs::metadata(from)?.ino();
            if let Some(first) = copies.get(&inode) {
                return fs::hard_link(first, to);
            }
            copies.insert(inode, to.to_owned());
            fs::copy(from, to).map(drop)
        })
    }
}

/// A copy of a scene's store; it goes away with this value.
#[derive(Debug)]
pub(crate) struct Copy {
    folder: tempfile::TempDir,
}

impl Copy {
    fn new(
        scene: &tempfile::TempDir,
        mut file: impl FnMut(&Path, &Path) -> std::io::Result<()>,
    ) -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("case-")
            .tempdir_in(scene.path())?;
        let from = scene.path().join(STORE);
        if from.is_dir() {
            copy(&from, &folder.path().join(STORE), &mut file)
                .with_context(|| format!("cannot copy {}", from.display()))?;
        }
        Ok(Self { folder })
    }

    pub(crate) fn store(&self) -> PathBuf {
        self.folder.path().join(STORE)
    }
}

fn copy(
    from: &Path,
    to: &Path,
    file: &mut impl FnMut(&Path, &Path) -> std::io::Result<()>,
) -> std::io::Result<()> {
    fs::create_dir(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let to = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &to, file)?;
        } else if entry.file_name() != ".lock" {
            file(&entry.path(), &to)?;
        }
    }
    Ok(())
}

/// What a publisher that died has left.
fn leave_something(folder: &Path) -> Result<()> {
    let left = folder.join(STORE).join(".tmp-1-2-3");
    fs::create_dir(&left)?;
    fs::write(left.join("pack"), "half a pack")?;
    Ok(())
}
