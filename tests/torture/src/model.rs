//! What a store should hold, and whether it does.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use dormouse_snapshot::{FunctionName, SnapshotRef, Store};

use crate::content::Content;
use crate::operation::{Operation, Outcome};

/// One snapshot that should be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Kept {
    content: Content,
    /// Which working set it has; 0 for none.
    working_set: u64,
}

/// The snapshots that should be in a store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Model {
    snapshots: BTreeMap<SnapshotRef, Kept>,
}

impl Model {
    /// How many snapshots there should be.
    #[must_use]
    pub fn len(&self) -> usize {
        self.snapshots.len()
    }

    /// Whether there should be none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.snapshots.is_empty()
    }

    /// The snapshots that should be there.
    pub fn snapshots(&self) -> impl Iterator<Item = &SnapshotRef> {
        self.snapshots.keys()
    }

    fn newest(&self, function: &FunctionName) -> Option<(&SnapshotRef, &Kept)> {
        let mut of_function = self.snapshots.iter().rev();
        of_function.find(|(snapshot, _)| snapshot.function == *function)
    }

    /// Notes what `operation` has done.
    ///
    /// # Errors
    /// Where it cannot have ended so.
    pub fn apply(&mut self, operation: &Operation, outcome: &Outcome) -> Result<()> {
        let newest = operation.function().and_then(|name| self.newest(name));
        let newest = newest.map(|(snapshot, kept)| (snapshot.clone(), *kept));
        let published = |function: &FunctionName, id| SnapshotRef {
            function: function.clone(),
            id,
        };
        if let (Outcome::Published(id), Some((last, _))) = (outcome, &newest) {
            ensure!(
                last.id.sequence() < id.sequence(),
                "{id} was published behind {last}"
            );
        }
        match (operation, outcome) {
            (
                Operation::Publish {
                    function, content, ..
                },
                Outcome::Published(id),
            ) => {
                let kept = Kept {
                    content: *content,
                    working_set: 0,
                };
                self.snapshots.insert(published(function, *id), kept);
            }
            (Operation::Flatten(function), Outcome::Published(id)) => {
                let (_, kept) = newest.context("something was flattened that was not there")?;
                self.snapshots.insert(published(function, *id), kept);
            }
            (Operation::Remove(function), Outcome::Done) => {
                ensure!(newest.is_some(), "what was removed was not there");
                self.snapshots
                    .retain(|snapshot, _| snapshot.function != *function);
            }
            (Operation::SaveWorkingSet(function, version), Outcome::Saved(id)) => {
                let kept = self.snapshots.get_mut(&published(function, *id));
                kept.context("a working set was saved for a snapshot that was not there")?
                    .working_set = *version;
            }
            (Operation::CleanLeftovers | Operation::Verify | Operation::Read(_), Outcome::Done) => {
            }
            (_, Outcome::Unknown(message)) => {
                ensure!(newest.is_none(), "a snapshot was not found: {message}");
            }
            (_, outcome) => bail!("{operation:?} ended in {outcome:?}"),
        }
        Ok(())
    }

    /// The states that a store may be in when `operation` was cut off.
    fn possible(&self, operation: &Operation, found: &Self) -> Vec<Self> {
        let mut possible = vec![self.clone()];
        let mut after = self.clone();
        // Which id a new snapshot gets is the store's choice.
        let new = found
            .snapshots
            .keys()
            .find(|snapshot| !self.snapshots.contains_key(snapshot));
        let outcome = match operation {
            Operation::Publish { .. } | Operation::Flatten(_) => {
                new.map(|snapshot| Outcome::Published(snapshot.id))
            }
            Operation::SaveWorkingSet(function, _) => self
                .newest(function)
                .map(|(snapshot, _)| Outcome::Saved(snapshot.id)),
            _ => Some(Outcome::Done),
        };
        if let Some(outcome) = outcome
            && after.apply(operation, &outcome).is_ok()
        {
            possible.push(after);
        }
        possible
    }

    /// Opens the store in `folder` and reads all of it.
    ///
    /// # Errors
    /// Where anything that is there is not good.
    pub fn found(folder: &Path) -> Result<Self> {
        let store = Store::open(folder).context("the store does not open")?;
        let mut found = Self::default();
        for entry in store.list().context("the store cannot be listed")? {
            let snapshot = SnapshotRef {
                function: entry.function,
                id: entry.id,
            };
            let (content, working_set) = Content::check(&store, &snapshot.function, &snapshot.id)
                .with_context(|| snapshot.to_string())?;
            let kept = Kept {
                content,
                working_set,
            };
            if let Some((last, _)) = found.newest(&snapshot.function) {
                ensure!(
                    last.id.sequence() < snapshot.id.sequence(),
                    "WRONG: {last} and {snapshot} have one number"
                );
            }
            found.snapshots.insert(snapshot, kept);
        }
        Ok(found)
    }

    /// Checks that the store in `folder` holds exactly what it should, all of it right, where
    /// `cut_off` has either happened or not; that what is left over is found and cleared away; and
    /// that this takes nothing with it.
    ///
    /// # Errors
    /// Where something is lost, wrong or left.
    pub fn check(&self, folder: &Path, cut_off: Option<&Operation>) -> Result<()> {
        let found = Self::found(folder)?;
        let possible = match cut_off {
            Some(operation) => self.possible(operation, &found),
            None => vec![self.clone()],
        };
        ensure!(
            possible.contains(&found),
            "the store should hold one of\n{possible:#?}\nand holds\n{found:#?}"
        );
        if clear(folder)? > 0 {
            let cleared = Self::found(folder)?;
            ensure!(cleared == found, "clearing left {cleared:#?} of {found:#?}");
        }
        Ok(())
    }

    /// Checks that the snapshots other than `touched` are all there and right.
    ///
    /// # Errors
    /// Where one is not.
    pub fn check_others(&self, store: &Store, touched: &[SnapshotRef]) -> Result<()> {
        for (snapshot, kept) in &self.snapshots {
            if touched.contains(snapshot) {
                continue;
            }
            let found = Content::check(store, &snapshot.function, &snapshot.id)
                .with_context(|| format!("{snapshot}, which was not touched"))?;
            ensure!(
                found == (kept.content, kept.working_set),
                "WRONG: {snapshot} should be {kept:?} and is {found:?}"
            );
        }
        Ok(())
    }

    /// What a snapshot should hold.
    #[must_use]
    pub fn content(&self, snapshot: &SnapshotRef) -> Option<Content> {
        self.snapshots.get(snapshot).map(|kept| kept.content)
    }
}

/// Clears away leftovers and checks that none remain; tells how many there were.
///
/// # Errors
/// Where some remain.
pub(crate) fn clear(folder: &Path) -> Result<u64> {
    let store = Store::open(folder)?;
    let cleared = store.clean_leftovers(Duration::ZERO)?;
    for entry in std::fs::read_dir(folder)? {
        let name = entry?.file_name();
        ensure!(
            !name.to_string_lossy().starts_with(".tmp"),
            "{} is left over",
            name.display()
        );
    }
    Ok(cleared)
}
