//! Files that are not what they were.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, ensure};
use dormouse_snapshot::{FunctionName, SnapshotRef, Store};
use rand::rngs::ChaCha8Rng;
use rand::seq::IndexedRandom;
use rand::{Rng, RngExt, SeedableRng};

use crate::content::{Content, Differs};
use crate::drive::Cases;
use crate::report::Report;
use crate::scene::Scene;
use crate::seals::Seals;

pub(crate) const KIND: &str = "damage";

/// How often the store of one scene is damaged, each time afresh.
const CASES_PER_SCENE: usize = 25;

/// What happens to a file.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Damage {
    FlipBits,
    CutOff,
    Append,
    ZeroPage,
    Delete,
    TakeFromOther,
    SymbolicLink,
    Folder,
}

const ALL: &[Damage] = &[
    // What disks do most.
    Damage::FlipBits,
    Damage::FlipBits,
    Damage::FlipBits,
    Damage::CutOff,
    Damage::Append,
    Damage::ZeroPage,
    Damage::Delete,
    Damage::TakeFromOther,
    Damage::SymbolicLink,
    Damage::Folder,
];

impl Damage {
    pub(crate) fn any(rng: &mut ChaCha8Rng) -> Self {
        ALL.choose(rng).copied().unwrap_or(Self::FlipBits)
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::FlipBits => "flip bits",
            Self::CutOff => "cut off",
            Self::Append => "append",
            Self::ZeroPage => "zero a page",
            Self::Delete => "delete",
            Self::TakeFromOther => "take from another file",
            Self::SymbolicLink => "replace by a link",
            Self::Folder => "replace by a folder",
        }
    }

    /// Whether all names of the file have the damage.
    fn is_in_the_file(self) -> bool {
        !matches!(self, Self::Delete | Self::SymbolicLink | Self::Folder)
    }

    /// Does it to `file`; `other` is a file of the same store.
    pub(crate) fn inflict(self, file: &Path, other: &Path, rng: &mut ChaCha8Rng) -> Result<()> {
        if self.is_in_the_file() {
            fs::set_permissions(file, Permissions::from_mode(0o600))?;
            let mut bytes = fs::read(file)?;
            self.change(&mut bytes, other, rng)?;
            // Not a new file: other snapshots have this one, too.
            return Ok(fs::write(file, bytes)?);
        }
        fs::remove_file(file)?;
        match self {
            Self::SymbolicLink => symlink(other, file)?,
            Self::Folder => fs::create_dir(file)?,
            _ => {}
        }
        Ok(())
    }

    fn change(self, bytes: &mut Vec<u8>, other: &Path, rng: &mut ChaCha8Rng) -> Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        match self {
            Self::FlipBits => {
                for _ in 0..rng.random_range(1..4) {
                    let at = rng.random_range(0..bytes.len());
                    bytes[at] ^= 1 << rng.random_range(0..8);
                }
            }
            Self::CutOff => bytes.truncate(rng.random_range(0..bytes.len())),
            Self::Append => {
                let mut more = vec![0; rng.random_range(1..5000)];
                rng.fill_bytes(&mut more);
                bytes.extend(more);
            }
            Self::ZeroPage => {
                let start = rng.random_range(0..bytes.len()) & !4095;
                let end = bytes.len().min(start + 4096);
                bytes[start..end].fill(0);
            }
            Self::TakeFromOther => {
                let taken = fs::read(other)?;
                let most = bytes.len().min(taken.len());
                let start = rng.random_range(0..=most) & !511;
                bytes[start..most].copy_from_slice(&taken[start..most]);
            }
            Self::Delete | Self::SymbolicLink | Self::Folder => {}
        }
        Ok(())
    }
}

pub(crate) fn run(place: &Path, seed: u64, mut cases: Cases, report: &mut Report) -> Result<()> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    while !cases.are_over() {
        let seed = rng.random();
        let scene = Scene::new(place, seed)?;
        for _ in 0..CASES_PER_SCENE {
            if scene.model.is_empty() || !cases.next() {
                break;
            }
            damage_once(&scene, &mut rng, report).with_context(|| format!("scene {seed}"))?;
        }
    }
    Ok(())
}

/// A file of a snapshot.
struct SnapshotFile {
    snapshot: SnapshotRef,
    path: PathBuf,
    inode: u64,
}

fn damage_once(scene: &Scene, rng: &mut ChaCha8Rng, report: &mut Report) -> Result<()> {
    let copy = scene.copied()?;
    let mut files = Vec::new();
    for snapshot in scene.model.snapshots() {
        let folder = copy.store().join(snapshot.function.as_str());
        let mut paths = Vec::new();
        for entry in fs::read_dir(folder.join(snapshot.id.to_string()))? {
            paths.push(entry?.path());
        }
        // The order in a folder is the file system's.
        paths.sort();
        for path in paths {
            files.push(SnapshotFile {
                snapshot: snapshot.clone(),
                inode: fs::metadata(&path)?.ino(),
                path,
            });
        }
    }
    let (Some(file), Some(other)) = (files.choose(rng), files.choose(rng)) else {
        return Ok(());
    };
    let damage = Damage::any(rng);
    damage.inflict(&file.path, &other.path, rng)?;
    let touched: Vec<SnapshotRef> = files
        .iter()
        .filter(|name| match damage.is_in_the_file() {
            true => name.inode == file.inode,
            false => name.path == file.path,
        })
        .map(|name| name.snapshot.clone())
        .collect();

    let name = file.path.file_name().unwrap_or_default().to_string_lossy();
    let mut seals = Seals::of(&copy.store())?;
    let checked = catch_unwind(AssertUnwindSafe(|| {
        let how = check(scene, &copy.store(), &touched)?;
        seals.check(&copy.store())?;
        Ok(how)
    }));
    let how = checked
        .unwrap_or_else(|_| Err(anyhow!("a panic")))
        .with_context(|| format!("{}: {damage:?} in {}", file.snapshot, name))?;
    let kind_of_file = name.split('-').next().unwrap_or_default();
    let kind_of_file = match kind_of_file {
        "working" => "working-set",
        other => other,
    };
    report.count(KIND, format!("{} in {kind_of_file}", damage.name()), how);
    Ok(())
}

/// Checks that what was touched is refused or right, and all else is right; tells which.
fn check(scene: &Scene, folder: &Path, touched: &[SnapshotRef]) -> Result<&'static str> {
    let store = Store::open(folder)?;
    scene.model.check_others(&store, touched)?;
    let mut bad = Vec::new();
    store.verify_all(|snapshot, _| bad.push(snapshot))?;
    for snapshot in &bad {
        ensure!(touched.contains(snapshot), "{snapshot} does not verify");
    }
    let mut how = match bad.is_empty() {
        true => "without effect",
        false => "found by verify only",
    };
    for snapshot in touched {
        let content = scene.model.content(snapshot).context("not in the model")?;
        match Content::check(&store, &snapshot.function, &snapshot.id) {
            Ok(found) => ensure!(
                found.content == content,
                "WRONG: {snapshot} is {found:?} and not {content:?}"
            ),
            Err(error) if error.downcast_ref::<Differs>().is_some() => return Err(error),
            Err(error) => {
                ensure!(
                    bad.contains(snapshot),
                    "reading {snapshot} says {error:#}, and verifying it nothing"
                );
                how = "refused";
            }
        }
        // What looks for equal pages meets the damaged ones.
        let fresh = FunctionName::new("fresh")?;
        let id = content.publish(&store, &fresh, None);
        let id = id.context("publishing beside it")?;
        let found = Content::check(&store, &fresh, &id).context("published beside it")?;
        ensure!(found.content == content, "WRONG: published beside it");
    }
    Ok(how)
}
