//! What a store should hold, and whether it does.

mod retention;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use dormouse_snapshot::{
    FunctionName, LayerInfo, MAX_LAYER_DEPTH, SnapshotId, SnapshotRef, Store, Tag,
};

use crate::content::{Content, Kept};
use crate::operation::{Operation, Outcome};
use retention::Layers;

/// The snapshots and tags that should be in a store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Model {
    snapshots: BTreeMap<SnapshotRef, Kept>,
    tags: BTreeMap<(FunctionName, Tag), SnapshotId>,
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

    /// The snapshots of a function, from old to new.
    fn of<'a>(
        &'a self,
        function: &'a FunctionName,
    ) -> impl Iterator<Item = (&'a SnapshotRef, &'a Kept)> {
        let all = self.snapshots.iter();
        all.filter(move |(snapshot, _)| snapshot.function == *function)
    }

    fn newest(&self, function: &FunctionName) -> Option<(&SnapshotRef, &Kept)> {
        let mut newest_first = self.snapshots.iter().rev();
        newest_first.find(|(snapshot, _)| snapshot.function == *function)
    }

    /// Notes what `operation` has done.
    ///
    /// # Errors
    /// Where it cannot have ended so.
    pub fn apply(&mut self, operation: &Operation, outcome: &Outcome) -> Result<()> {
        let newest = operation.function().and_then(|name| self.newest(name));
        let newest = newest.map(|(snapshot, kept)| (snapshot.clone(), kept.clone()));
        let newest_id = newest.as_ref().map(|(snapshot, _)| snapshot.id);
        let the = |function: &FunctionName, id| SnapshotRef {
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
                    function,
                    content,
                    layer,
                },
                Outcome::Published(id),
            ) => {
                let parent = newest.filter(|_| *layer);
                let kept = Kept {
                    content: *content,
                    working_set: 0,
                    layer: parent.and_then(|(parent, kept)| layer_on(parent, &kept)),
                };
                self.snapshots.insert(the(function, *id), kept);
            }
            (Operation::Flatten(function), Outcome::Published(id)) => {
                let (_, kept) = newest.context("something was flattened that was not there")?;
                let kept = Kept {
                    layer: None,
                    ..kept
                };
                self.snapshots.insert(the(function, *id), kept);
            }
            (
                Operation::Import {
                    function,
                    content,
                    sequence,
                },
                Outcome::Imported { id, already_there },
            ) => {
                ensure!(id.sequence() == *sequence, "{id} was imported");
                let there = self.in_place(function, *sequence);
                let expected = already_there.then_some(*id);
                ensure!(there == expected, "{id} was imported, and {there:?} there");
                let kept = Kept {
                    content: *content,
                    working_set: 0,
                    layer: None,
                };
                self.snapshots.entry(the(function, *id)).or_insert(kept);
            }
            (
                Operation::Import {
                    function, sequence, ..
                },
                Outcome::Refused(message),
            ) => ensure!(self.in_place(function, *sequence).is_some(), "{message}"),
            (Operation::Remove(function), Outcome::Done) => {
                ensure!(newest.is_some(), "what was removed was not there");
                self.take(|snapshot| snapshot.function == *function);
            }
            (
                Operation::RemoveSnapshot {
                    function,
                    place,
                    drop_tags,
                },
                Outcome::Removed(id),
            ) => {
                let snapshot = the(function, *id);
                let expected = self.at(function, *place);
                ensure!(
                    expected.as_ref() == Some(&snapshot),
                    "{snapshot} was removed"
                );
                self.may_be_removed(&snapshot, *drop_tags)?;
                self.take(|other| *other == snapshot);
            }
            (
                Operation::RemoveSnapshot {
                    function,
                    place,
                    drop_tags,
                },
                Outcome::Refused(message),
            ) => {
                let snapshot = self.at(function, *place);
                let snapshot = snapshot.context("nothing was not removed")?;
                let may_be_removed = self.may_be_removed(&snapshot, *drop_tags).is_ok();
                ensure!(!may_be_removed, "nothing keeps {snapshot}: {message}");
            }
            (Operation::Tag(function, tag), Outcome::Tagged(id)) => {
                ensure!(newest_id == Some(*id), "{id} was tagged as the newest");
                self.tags.insert((function.clone(), tag.clone()), *id);
            }
            (Operation::Untag(function, tag), Outcome::Untagged(id)) => {
                let tagged = self.tags.remove(&(function.clone(), tag.clone()));
                ensure!(tagged == Some(*id), "{tagged:?} had {tag}, and not {id}");
            }
            (Operation::Untag(function, tag), Outcome::Unknown(message)) => {
                let is_known = self.tags.contains_key(&(function.clone(), tag.clone()));
                ensure!(!is_known, "a tag was not found: {message}");
            }
            (
                Operation::Gc { limits, dry_run },
                Outcome::Collected {
                    removed,
                    store_bytes,
                },
            ) => {
                let after = self.collected(limits, removed, *store_bytes)?;
                if !dry_run {
                    *self = after;
                }
            }
            (Operation::SaveWorkingSet(function, version), Outcome::Saved(id)) => {
                let kept = self.snapshots.get_mut(&the(function, *id));
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
        let function = operation.function();
        // Which id a new snapshot gets is the store's choice.
        let mut new = found.snapshots.keys().filter(|snapshot| {
            Some(&snapshot.function) == function && !self.snapshots.contains_key(snapshot)
        });
        let newest = function.and_then(|function| self.newest(function));
        let outcome = match operation {
            Operation::Publish { .. } | Operation::Flatten(_) => {
                new.next().map(|snapshot| Outcome::Published(snapshot.id))
            }
            Operation::Import { .. } => new.next().map(|snapshot| Outcome::Imported {
                id: snapshot.id,
                already_there: false,
            }),
            Operation::SaveWorkingSet(..) => newest.map(|(of, _)| Outcome::Saved(of.id)),
            Operation::Tag(..) => newest.map(|(of, _)| Outcome::Tagged(of.id)),
            Operation::Untag(function, tag) => {
                let tagged = self.tags.get(&(function.clone(), tag.clone()));
                tagged.copied().map(Outcome::Untagged)
            }
            Operation::RemoveSnapshot {
                function,
                place,
                drop_tags,
            } => {
                let snapshot = self.at(function, *place);
                let snapshot = snapshot.filter(|of| self.may_be_removed(of, *drop_tags).is_ok());
                if let Some(snapshot) = &snapshot {
                    // Its tags go first.
                    let mut without_tags = self.clone();
                    without_tags.untag(snapshot);
                    possible.push(without_tags);
                }
                snapshot.map(|snapshot| Outcome::Removed(snapshot.id))
            }
            Operation::Gc {
                limits,
                dry_run: false,
            } => {
                possible.extend(self.partly_collected(limits, Layers::KeepParents, found));
                None
            }
            Operation::Gc { dry_run: true, .. } => None,
            Operation::Remove(_)
            | Operation::CleanLeftovers
            | Operation::Verify
            | Operation::Read(_) => Some(Outcome::Done),
        };
        let mut after = self.clone();
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
            let kept = Content::check(&store, &snapshot.function, &snapshot.id)
                .with_context(|| snapshot.to_string())?;
            if let Some((last, _)) = found.newest(&snapshot.function) {
                ensure!(
                    last.id.sequence() < snapshot.id.sequence(),
                    "WRONG: {last} and {snapshot} have one number"
                );
            }
            for (tag, id) in store.tags(&snapshot.function)? {
                found.tags.insert((snapshot.function.clone(), tag), id);
            }
            found.snapshots.insert(snapshot, kept);
        }
        for ((function, tag), id) in &found.tags {
            let snapshot = SnapshotRef {
                function: function.clone(),
                id: *id,
            };
            let is_there = found.snapshots.contains_key(&snapshot);
            ensure!(is_there, "WRONG: {function}:{tag} is a tag of nothing");
        }
        Ok(found)
    }

    /// Checks that the store in `folder` holds exactly what it should, all of it right, where
    /// `cut_off` has either happened or not; that what is left over is found and cleared away; and
    /// that this takes nothing with it. Tells what it holds.
    ///
    /// # Errors
    /// Where something is lost, wrong or left.
    pub fn check(&self, folder: &Path, cut_off: Option<&Operation>) -> Result<Self> {
        let found = Self::found(folder)?;
        let possible = match cut_off {
            Some(operation) => self.possible(operation, &found),
            None => vec![self.clone()],
        };
        found.is_one_of(&possible, folder)?;
        Ok(found)
    }

    /// The same after errors that `operation` may have overcome. A layer whose manifest cannot be
    /// read keeps no parent, as it is whole without it.
    ///
    /// # Errors
    /// As [`check`](Self::check).
    pub fn check_after_errors(&self, folder: &Path, operation: &Operation) -> Result<()> {
        let found = Self::found(folder)?;
        let mut possible = self.possible(operation, &found);
        match operation {
            Operation::Gc {
                limits,
                dry_run: false,
            } => possible.extend(self.partly_collected(limits, Layers::KeepNothing, &found)),
            Operation::RemoveSnapshot {
                function,
                place,
                drop_tags,
            } => {
                let snapshot = self.at(function, *place);
                if let Some(snapshot) = snapshot.filter(|of| *drop_tags || !self.is_tagged(of)) {
                    let mut after = self.clone();
                    after.take(|other| *other == snapshot);
                    possible.push(after);
                }
            }
            _ => {}
        }
        found.is_one_of(&possible, folder)
    }

    /// Checks that what was found in `folder` is possible, and clears away what is left over.
    fn is_one_of(&self, possible: &[Self], folder: &Path) -> Result<()> {
        let found = self;
        ensure!(
            possible.contains(found),
            "the store should hold one of\n{possible:#?}\nand holds\n{found:#?}"
        );
        if clear(folder)? > 0 {
            let cleared = Self::found(folder)?;
            ensure!(
                cleared == *found,
                "clearing left {cleared:#?} of {found:#?}"
            );
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
                found == *kept,
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

/// What a layer on `parent` says of itself; nothing where there would be too many below it.
fn layer_on(parent: SnapshotRef, kept: &Kept) -> Option<LayerInfo> {
    let depth = kept.layer.as_ref().map_or(0, |layer| layer.depth) + 1;
    (depth <= MAX_LAYER_DEPTH).then_some(LayerInfo { parent, depth })
}

/// Clears away leftovers and checks that none remain; tells how many there were.
///
/// # Errors
/// Where some remain.
fn clear(folder: &Path) -> Result<u64> {
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
