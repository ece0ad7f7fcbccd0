//! Removing what a store need not keep.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use crate::files::{self, StoreLock, TempFolder};
use crate::lease::Claim;
use crate::usage::Inventory;
use crate::{
    FunctionName, GcReport, Kept, Layout, Limit, Protection, Reference, Removed, Result,
    RetentionConfig, SnapshotId, SnapshotRef, Store, Tag,
};

/// How long a temporary folder must lie untouched and unused before it counts as left over here:
/// more than a publisher needs between making it and locking it.
const LEFTOVER_IDLE: Duration = Duration::from_secs(60);

impl Store {
    /// Removes snapshots that are over the limits of `config` at the time `now`, and what processes
    /// that died have left. With `dry_run` it changes nothing, and tells what it would do.
    ///
    /// The newest snapshot of each function stays in any case; so do those that have tags, that
    /// somebody has a [`Lease`](crate::Lease) on, and the parents of layers that stay. Of several
    /// layouts of one deployment all are newest, and all have the tags of each. Publishers wait while
    /// it decides, but not while files are deleted.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io) when the store can be neither looked through nor changed.
    /// What it has removed until then is removed.
    pub fn gc(&self, config: &RetentionConfig, now: SystemTime, dry_run: bool) -> Result<GcReport> {
        let leftovers = if dry_run {
            files::leftovers(self.path(), LEFTOVER_IDLE)?.len() as u64
        } else {
            files::clean_leftovers(self.path(), LEFTOVER_IDLE)?
        };
        let lock = StoreLock::acquire(self.path())?;
        let mut sweep = Sweep {
            store: self,
            // What is going already must not make others go.
            inventory: Inventory::read(self, false)?,
            tags: BTreeMap::new(),
            newest: BTreeMap::new(),
            layers: BTreeMap::new(),
            groups: BTreeMap::new(),
            gone: BTreeSet::new(),
            bin: None,
            report: GcReport::default(),
        };
        if !dry_run {
            sweep.bin = Some(TempFolder::create(self.path())?);
        }
        let enforced = sweep.enforce(config, now);
        // Also what was removed before a failure has to be on disk before its files go.
        let finished = sweep.finish();
        enforced?;
        let (mut report, bin) = finished?;
        drop(lock);
        // The files themselves are deleted here; what cannot be is cleared away later.
        drop(bin);
        report.leftovers = leftovers;
        Ok(report)
    }
}

/// The tags of a function by snapshot, or why they cannot be read.
type TagsById = Result<BTreeMap<SnapshotId, Vec<Tag>>, String>;

/// What counts as one in a function's history.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Deployment<'a> {
    Snapshot(SnapshotId),
    /// All layouts with this group.
    Layouts(&'a str),
}

/// One run. All of it is done under the store's lock.
struct Sweep<'a> {
    store: &'a Store,
    inventory: Inventory,
    tags: BTreeMap<FunctionName, TagsById>,
    newest: BTreeMap<FunctionName, SnapshotId>,
    /// The layers that are still there, by parent.
    layers: BTreeMap<SnapshotRef, BTreeSet<SnapshotRef>>,
    /// The layouts of one deployment, by function and group.
    groups: BTreeMap<(FunctionName, String), Vec<SnapshotId>>,
    /// Indexes of the snapshots that are removed.
    gone: BTreeSet<usize>,
    /// Where removed snapshots go; nothing in a dry run.
    bin: Option<TempFolder>,
    report: GcReport,
}

impl Sweep<'_> {
    fn enforce(&mut self, config: &RetentionConfig, now: SystemTime) -> Result<()> {
        self.prepare();
        self.enforce_history(config, now)?;
        if let Some(max_bytes) = config.max_bytes {
            self.enforce_size(max_bytes)?;
        }
        self.drop_dangling_tags()
    }

    fn prepare(&mut self) {
        for stored in &self.inventory.snapshots {
            let SnapshotRef { function, id } = &stored.snapshot;
            // They are sorted: the last one stays.
            self.newest.insert(function.clone(), *id);
            if let Some(layer) = &stored.brief.layer {
                let layers = self.layers.entry(layer.parent.clone()).or_default();
                layers.insert(stored.snapshot.clone());
            }
            if let Some(layout) = &stored.brief.layout {
                let group = (function.clone(), layout.group.clone());
                self.groups.entry(group).or_default().push(*id);
            }
        }
        for function in self.newest.keys() {
            let tags = self.store.tags(function).map(|tags| {
                let mut by_id: BTreeMap<_, Vec<_>> = BTreeMap::new();
                for (tag, id) in tags {
                    by_id.entry(id).or_default().push(tag);
                }
                by_id
            });
            let tags = tags.map_err(|error| error.to_string());
            self.tags.insert(function.clone(), tags);
        }
    }

    /// The limits that hold for each function.
    fn enforce_history(&mut self, config: &RetentionConfig, now: SystemTime) -> Result<()> {
        let mut over = Vec::new();
        let mut counted = BTreeMap::new();
        for (at, stored) in self.inventory.snapshots.iter().enumerate().rev() {
            let deployment = match &stored.brief.layout {
                Some(layout) => Deployment::Layouts(&layout.group),
                None => Deployment::Snapshot(stored.snapshot.id),
            };
            let counted: &mut BTreeMap<_, _> =
                counted.entry(&stored.snapshot.function).or_default();
            let known = counted.len();
            let newer = *counted.entry(deployment).or_insert(known);
            let age = now.duration_since(stored.created()).unwrap_or_default();
            if config.keep_last.is_some_and(|most| newer >= most as usize) {
                over.push((at, Limit::KeepLast));
            } else if config.max_age.is_some_and(|most| age > most) {
                over.push((at, Limit::MaxAge));
            }
        }
        // From new to old, as layers are newer than their parents; those of other functions may be
        // met later, so it is done until nothing more goes.
        loop {
            let before = over.len();
            let mut kept = Vec::new();
            let mut stay = Vec::new();
            for (at, limit) in over {
                let protections = self.try_remove(at, limit)?;
                if !protections.is_empty() {
                    kept.push(self.kept(at, limit, protections));
                    stay.push((at, limit));
                }
            }
            over = stay;
            if over.len() == before || over.is_empty() {
                self.report.kept.extend(kept);
                return Ok(());
            }
        }
    }

    /// The limit of the whole store: the oldest go first.
    fn enforce_size(&mut self, max_bytes: u64) -> Result<()> {
        let mut oldest: Vec<usize> = (0..self.inventory.snapshots.len()).collect();
        oldest.sort_by_cached_key(|at| {
            let stored = &self.inventory.snapshots[*at];
            (stored.created(), stored.snapshot.clone())
        });
        oldest.retain(|at| !self.gone.contains(at));
        let mut kept: BTreeMap<usize, Kept> = BTreeMap::new();
        let mut next = 0;
        while self.inventory.total_bytes > max_bytes && next < oldest.len() {
            let at = oldest[next];
            let protections = self.try_remove(at, Limit::MaxBytes)?;
            if !protections.is_empty() {
                kept.insert(at, self.kept(at, Limit::MaxBytes, protections));
                next += 1;
                continue;
            }
            oldest.remove(next);
            // Its parent is older, and may have stayed only for it.
            if self.inventory.snapshots[at].brief.layer.is_some() {
                kept.clear();
                next = 0;
            }
        }
        if self.inventory.total_bytes > max_bytes {
            // Whoever is over another limit too has been told of already.
            let told: BTreeSet<_> = self.report.kept.iter().map(|k| &k.snapshot).collect();
            kept.retain(|_, kept| !told.contains(&kept.snapshot));
            self.report.kept.extend(kept.into_values());
        }
        Ok(())
    }

    fn kept(&self, at: usize, limit: Limit, protections: Vec<Protection>) -> Kept {
        Kept {
            snapshot: self.inventory.snapshots[at].snapshot.clone(),
            limit,
            protections,
        }
    }

    /// Removes a snapshot, or tells what keeps it.
    fn try_remove(&mut self, at: usize, limit: Limit) -> Result<Vec<Protection>> {
        let stored = &self.inventory.snapshots[at];
        let snapshot = stored.snapshot.clone();
        let layout = stored.brief.layout.clone();
        let parent = stored
            .brief
            .layer
            .as_ref()
            .map(|layer| layer.parent.clone());
        let protections = self.protections(&snapshot, layout.as_ref());
        if !protections.is_empty() {
            return Ok(protections);
        }
        let folder = self.store.snapshot_folder(&snapshot.function, snapshot.id);
        let claim = match Claim::take(&folder) {
            Ok(Some(claim)) => claim,
            Ok(None) => return Ok(vec![Protection::InUse]),
            Err(error) => return Ok(vec![Protection::UnknownUse(error.to_string())]),
        };
        if let Some(bin) = &self.bin {
            files::rename(&folder, &bin.path().join(at.to_string()))?;
        }
        drop(claim);
        self.gone.insert(at);
        if let Some(layers) = parent.and_then(|parent| self.layers.get_mut(&parent)) {
            layers.remove(&snapshot);
        }
        let freed_bytes = self.inventory.release_snapshot(at);
        self.report.freed_bytes += freed_bytes;
        self.report.removed.push(Removed {
            snapshot,
            limit,
            freed_bytes,
        });
        Ok(Vec::new())
    }

    /// What keeps `snapshot`, but for leases.
    fn protections(&self, snapshot: &SnapshotRef, layout: Option<&Layout>) -> Vec<Protection> {
        let SnapshotRef { function, id } = snapshot;
        let mut protections = Vec::new();
        if self.newest.get(function) == Some(id) {
            protections.push(Protection::Newest);
        }
        match self.tags.get(function) {
            Some(Ok(tags)) => {
                let tags = tags.get(id).cloned();
                protections.extend(tags.map(Protection::Tagged));
            }
            Some(Err(reason)) => protections.push(Protection::UnknownTags(reason.clone())),
            None => {}
        }
        protections.extend(layout.and_then(|layout| self.layout_beside(snapshot, layout)));
        if let Some(layers) = self
            .layers
            .get(snapshot)
            .filter(|layers| !layers.is_empty())
        {
            let layers = layers.iter().cloned().collect();
            protections.push(Protection::Parent(layers));
        }
        protections
    }

    /// Another layout of the same deployment that is the newest or has tags.
    fn layout_beside(&self, snapshot: &SnapshotRef, layout: &Layout) -> Option<Protection> {
        let SnapshotRef { function, id } = snapshot;
        let group = self.groups.get(&(function.clone(), layout.group.clone()))?;
        let has_tags = |other: &SnapshotId| match self.tags.get(function) {
            Some(Ok(tags)) => tags.contains_key(other),
            // Those that cannot be read keep every snapshot by themselves.
            _ => false,
        };
        let keeps = |other: &&SnapshotId| {
            *other != id && (self.newest.get(function) == Some(*other) || has_tags(other))
        };
        let id = *group.iter().find(keeps)?;
        let function = function.clone();
        Some(Protection::LayoutOf(SnapshotRef { function, id }))
    }

    fn drop_dangling_tags(&mut self) -> Result<()> {
        for (function, tags) in &self.tags {
            let Ok(tags) = tags else { continue };
            let ids = self.store.ids(function)?;
            let mut dangling = Vec::new();
            for (_, tags) in tags.iter().filter(|(id, _)| !ids.contains(id)) {
                dangling.extend(tags.iter().cloned());
            }
            if dangling.is_empty() {
                continue;
            }
            if self.bin.is_some() {
                let mut left = self.store.tags(function)?;
                left.retain(|tag, _| !dangling.contains(tag));
                self.store.write_tags(function, left)?;
            }
            let dangling = dangling.into_iter();
            let dangling = dangling.map(|tag| Reference::Tag(function.clone(), tag));
            self.report.dangling_tags.extend(dangling);
        }
        Ok(())
    }

    /// Makes it last.
    fn finish(mut self) -> Result<(GcReport, Option<TempFolder>)> {
        if let Some(bin) = &self.bin {
            let removed = self.report.removed.iter();
            let functions: BTreeSet<_> = removed.map(|gone| &gone.snapshot.function).collect();
            if !functions.is_empty() {
                // A rename need not last before the folder that it leads to is flushed.
                files::sync_folder(bin.path())?;
            }
            for function in functions {
                files::sync_folder(&self.store.function_folder(function))?;
            }
            files::sync_folder(self.store.path())?;
        }
        self.report.store_bytes = self.inventory.total_bytes;
        self.report.kept.sort_by(|a, b| a.snapshot.cmp(&b.snapshot));
        Ok((self.report, self.bin))
    }
}
