//! Taking snapshots away, and what keeps them.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

use crate::files::{self, StoreLock, TempFolder};
use crate::layout::complete;
use crate::lease::Claim;
use crate::manifest::MAX_MANIFEST_BYTES;
use crate::snapshot::MANIFEST;
use crate::{Error, FunctionName, LayerInfo, Layout, Result, SnapshotId, SnapshotRef, Store, Tag};

/// What [`Store::remove_id`] does with a snapshot that has tags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IfTagged {
    /// It stays.
    Refuse,
    /// Its tags go with it.
    DropTags,
}

/// What retention needs to know of a snapshot, damaged or not.
#[derive(Debug, Default)]
pub(crate) struct Brief {
    pub(crate) created_unix_ms: Option<u64>,
    pub(crate) memory_bytes: u64,
    pub(crate) image_bytes: u64,
    pub(crate) layer: Option<LayerInfo>,
    pub(crate) layout: Option<Layout>,
}

impl Brief {
    /// Reads it from the manifest in `folder`, of whatever format version and without comparing its
    /// digest: snapshots that a newer Dormouse wrote keep their parents, too. A member that cannot
    /// be read says nothing, and leaves the others their say.
    pub(crate) fn read(folder: &Path) -> Self {
        let read = || -> Option<serde_json::Value> {
            let path = folder.join(MANIFEST);
            let (file, file_bytes) = files::open(&path).ok()?;
            let bytes = (file_bytes <= MAX_MANIFEST_BYTES).then_some(file_bytes as usize)?;
            serde_json::from_slice(&files::read_start(&file, bytes, &path).ok()?).ok()
        };
        let manifest = read().unwrap_or_default();
        Self {
            created_unix_ms: manifest["created_unix_ms"].as_u64(),
            memory_bytes: manifest["memory_bytes"].as_u64().unwrap_or_default(),
            image_bytes: manifest["image_bytes"].as_u64().unwrap_or_default(),
            layer: LayerInfo::deserialize(&manifest["layer"]).ok(),
            layout: Layout::of_config(&manifest["config"]),
        }
    }
}

impl Store {
    /// Removes all snapshots of `function` with their tags, at once for whoever looks. Snapshots
    /// that are open stay usable.
    ///
    /// # Errors
    /// [`Error::UnknownFunction`] when there is none, [`Error::HasLayers`] when a snapshot of
    /// another function is a layer on one of them, [`Error::Io`] when the store cannot be changed.
    pub fn remove(&self, function: &FunctionName) -> Result<()> {
        let lock = StoreLock::acquire(self.path())?;
        if self.ids(function)?.is_empty() {
            return Err(self.unknown(function));
        }
        for (parent, mut layers) in self.layers()? {
            layers.retain(|layer| layer.function != *function);
            if parent.function == *function && !layers.is_empty() {
                return Err(has_layers(parent, &layers));
            }
        }
        let removed = TempFolder::take(self.path(), &self.function_folder(function))?;
        files::sync_folder(self.path())?;
        drop(lock);
        // The files themselves are deleted here; what cannot be is cleared away later.
        drop(removed);
        Ok(())
    }

    /// Removes one snapshot, at once for whoever looks. The function goes with its last snapshot.
    ///
    /// # Errors
    /// [`Error::UnknownSnapshot`] when there is none; [`Error::InUse`] when somebody has a
    /// [`Lease`](crate::Lease) on it; [`Error::HasLayers`] when another snapshot is a layer on it;
    /// [`Error::OneLayout`] when it is one of the several that its function is served with;
    /// [`Error::Tagged`] when it, or another layout of its deployment, has tags that are not to be
    /// dropped; [`Error::BadTags`] when that cannot be told; [`Error::Io`] when the store cannot be
    /// changed.
    pub fn remove_id(&self, snapshot: &SnapshotRef, if_tagged: IfTagged) -> Result<()> {
        let lock = StoreLock::acquire(self.path())?;
        let SnapshotRef { function, id } = snapshot;
        let ids = self.ids(function)?;
        if ids.binary_search(id).is_err() {
            return Err(self.unknown_snapshot(function, *id));
        }
        if let Some(layers) = self.layers()?.get(snapshot) {
            return Err(has_layers(snapshot.clone(), layers));
        }
        let together = self.together_with(snapshot, &ids)?;
        let mut tags = self.tags(function)?;
        let tagged: Vec<Tag> = tags
            .iter()
            .filter(|(_, tagged)| together.contains(tagged))
            .map(|(tag, _)| tag.clone())
            .collect();
        if !tagged.is_empty() && if_tagged == IfTagged::Refuse {
            return Err(Error::Tagged {
                snapshot: snapshot.clone(),
                tags: tagged,
            });
        }
        let folder = self.snapshot_folder(function, *id);
        let claim = Claim::take(&folder)?.ok_or_else(|| Error::InUse {
            snapshot: snapshot.clone(),
        })?;
        let is_last = ids.len() == 1;
        let known = tags.len();
        tags.retain(|_, tagged| tagged != id && ids.binary_search(tagged).is_ok());
        if tags.len() < known && !is_last {
            // Before the snapshot: whoever dies in between has left no tag of nothing.
            self.write_tags(function, tags)?;
        }
        let removed = if is_last {
            TempFolder::take(self.path(), &self.function_folder(function))?
        } else {
            let removed = TempFolder::take(self.path(), &folder)?;
            files::sync_folder(&self.function_folder(function))?;
            removed
        };
        files::sync_folder(self.path())?;
        drop((claim, lock));
        drop(removed);
        Ok(())
    }

    /// The snapshot and, where it is one of several layouts, the others of its deployment.
    ///
    /// # Errors
    /// [`Error::OneLayout`] where these are what the function is served with.
    fn together_with(&self, snapshot: &SnapshotRef, ids: &[SnapshotId]) -> Result<Vec<SnapshotId>> {
        let SnapshotRef { function, id } = snapshot;
        let Some(layout) = Brief::read(&self.snapshot_folder(function, *id)).layout else {
            return Ok(vec![*id]);
        };
        let mut layouts = self.layouts(function)?;
        let newest = self.newest_folder(function, ids);
        let served = complete(&layouts, &layout)
            .filter(|served| newest.is_some_and(|newest| served.contains(&newest)));
        if served.is_some_and(|served| served.contains(id)) {
            return Err(Error::OneLayout {
                snapshot: snapshot.clone(),
                layouts: layout.of,
            });
        }
        layouts.retain(|(_, other)| other.group == layout.group);
        Ok(layouts.into_iter().map(|(id, _)| id).collect())
    }

    /// Whether somebody, in whatever process, has a [`Lease`](crate::Lease) on `snapshot`.
    ///
    /// # Errors
    /// [`Error::Io`] when that cannot be told, as in a store that may only be read.
    pub fn is_in_use(&self, snapshot: &SnapshotRef) -> Result<bool> {
        // Two who ask at once would take each other for a user.
        let _lock = StoreLock::acquire(self.path())?;
        let folder = self.snapshot_folder(&snapshot.function, snapshot.id);
        Ok(Claim::take(&folder)?.is_none())
    }

    /// The snapshots that are parents, each with the layers on it. Parents need not be there.
    pub(crate) fn layers(&self) -> Result<BTreeMap<SnapshotRef, Vec<SnapshotRef>>> {
        let mut layers: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for function in self.functions()? {
            for id in self.ids(&function)? {
                let folder = self.snapshot_folder(&function, id);
                let function = function.clone();
                let layer = SnapshotRef { function, id };
                let parent = Brief::read(&folder).layer.map(|layer| layer.parent);
                // What says that it is its own parent must not stay for ever.
                if let Some(parent) = parent.filter(|parent| *parent != layer) {
                    layers.entry(parent).or_default().push(layer);
                }
            }
        }
        Ok(layers)
    }
}

fn has_layers(snapshot: SnapshotRef, layers: &[SnapshotRef]) -> Error {
    Error::HasLayers {
        snapshot,
        layers: layers.to_vec(),
    }
}
