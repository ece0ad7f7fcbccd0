//! What keeps a snapshot, and what limits take away.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use dormouse_snapshot::{FunctionName, SnapshotId, SnapshotRef};

use super::Model;
use crate::limits::Limits;

/// What layers keep.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Layers {
    KeepParents,
    KeepNothing,
}

impl Model {
    /// The snapshot in this place from old to new, counted round and round.
    pub(super) fn at(&self, function: &FunctionName, place: usize) -> Option<SnapshotRef> {
        let all: Vec<_> = self.of(function).map(|(snapshot, _)| snapshot).collect();
        let at = place.checked_rem(all.len())?;
        Some(all[at].clone())
    }

    /// The id of the snapshot with this number.
    pub(super) fn in_place(&self, function: &FunctionName, sequence: u32) -> Option<SnapshotId> {
        let mut ids = self.of(function).map(|(snapshot, _)| snapshot.id);
        ids.find(|id| id.sequence() == sequence)
    }

    pub(super) fn is_tagged(&self, snapshot: &SnapshotRef) -> bool {
        let mut tags = self.tags.iter();
        tags.any(|((function, _), id)| *function == snapshot.function && *id == snapshot.id)
    }

    /// Whether a snapshot is a layer on this one.
    fn has_layers(&self, parent: &SnapshotRef) -> bool {
        let mut layers = self
            .snapshots
            .values()
            .filter_map(|kept| kept.layer.as_ref());
        layers.any(|layer| layer.parent == *parent)
    }

    /// Fails where something keeps a snapshot that is to be removed by itself.
    pub(super) fn may_be_removed(&self, snapshot: &SnapshotRef, drop_tags: bool) -> Result<()> {
        ensure!(!self.has_layers(snapshot), "{snapshot} has layers");
        ensure!(
            drop_tags || !self.is_tagged(snapshot),
            "{snapshot} has tags"
        );
        Ok(())
    }

    pub(super) fn untag(&mut self, snapshot: &SnapshotRef) {
        self.tags
            .retain(|(function, _), id| *function != snapshot.function || *id != snapshot.id);
    }

    /// Takes away the snapshots that `is_gone`, with their tags.
    pub(super) fn take(&mut self, is_gone: impl Fn(&SnapshotRef) -> bool) {
        let gone: Vec<_> = self.snapshots().filter(|of| is_gone(of)).cloned().collect();
        for snapshot in &gone {
            self.snapshots.remove(snapshot);
            self.untag(snapshot);
        }
    }

    /// The snapshots over the limits of their function's history.
    fn over(&self, limits: &Limits) -> BTreeSet<SnapshotRef> {
        let is_over = |snapshot: &SnapshotRef| {
            let of_function = self.of(&snapshot.function);
            let newer = of_function.filter(|(other, _)| snapshot < *other).count() as u32;
            let content = self.snapshots.get(snapshot).map(|kept| kept.content);
            content.is_some_and(|content| limits.are_passed_by(content, newer))
        };
        self.snapshots().filter(|of| is_over(of)).cloned().collect()
    }

    /// What is left without those of `over` that nothing keeps.
    fn without(&self, over: &BTreeSet<SnapshotRef>, layers: Layers) -> Self {
        let mut left = self.clone();
        loop {
            let unneeded = over.iter().find(|snapshot| {
                let newest = left.newest(&snapshot.function);
                left.snapshots.contains_key(snapshot)
                    && newest.is_some_and(|(newest, _)| newest != *snapshot)
                    && !left.is_tagged(snapshot)
                    && (layers == Layers::KeepNothing || !left.has_layers(snapshot))
            });
            let Some(unneeded) = unneeded.cloned() else {
                return left;
            };
            left.take(|snapshot| *snapshot == unneeded);
        }
    }

    /// The snapshots that go where a store with these limits may be of any size.
    fn must_go(&self, limits: &Limits, layers: Layers) -> BTreeSet<SnapshotRef> {
        self.gone_in(&self.without(&self.over(limits), layers))
    }

    /// The snapshots that may go.
    fn may_go(&self, limits: &Limits, layers: Layers) -> BTreeSet<SnapshotRef> {
        match limits.max_bytes {
            Some(_) => self.gone_in(&self.without(&self.snapshots().cloned().collect(), layers)),
            None => self.must_go(limits, layers),
        }
    }

    fn gone_in(&self, other: &Self) -> BTreeSet<SnapshotRef> {
        let gone = |snapshot: &&SnapshotRef| !other.snapshots.contains_key(*snapshot);
        self.snapshots().filter(gone).cloned().collect()
    }

    /// What is left after a run that says it has removed `removed`, and left so many bytes.
    pub(super) fn collected(
        &self,
        limits: &Limits,
        removed: &[SnapshotRef],
        store_bytes: u64,
    ) -> Result<Self> {
        let removed: BTreeSet<_> = removed.iter().cloned().collect();
        let (must, may) = (
            self.must_go(limits, Layers::KeepParents),
            self.may_go(limits, Layers::KeepParents),
        );
        ensure!(
            must.is_subset(&removed) && removed.is_subset(&may),
            "of {may:?}, {must:?} must go, and {removed:?} went"
        );
        let mut after = self.clone();
        after.take(|snapshot| removed.contains(snapshot));
        for snapshot in after.snapshots() {
            let layer = after
                .snapshots
                .get(snapshot)
                .and_then(|kept| kept.layer.as_ref());
            let parent = layer.map(|layer| &layer.parent);
            let is_kept = parent.is_none_or(|parent| !removed.contains(parent));
            ensure!(is_kept, "the parent of {snapshot} went");
        }
        if limits.max_bytes.is_some_and(|most| store_bytes > most) {
            let more = after.may_go(limits, Layers::KeepParents);
            ensure!(
                more.is_empty(),
                "{store_bytes} bytes are left, and {more:?}"
            );
        }
        Ok(after)
    }

    /// What `found` has left of a run that was cut off; nothing where more is gone than may be.
    pub(super) fn partly_collected(
        &self,
        limits: &Limits,
        layers: Layers,
        found: &Self,
    ) -> Option<Self> {
        let gone = self.gone_in(found);
        let mut after = self.clone();
        after.take(|snapshot| gone.contains(snapshot));
        let may = self.may_go(limits, layers);
        gone.is_subset(&may).then_some(after)
    }
}
