//! The store: a folder of functions, each a folder of snapshots.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::files::{self, StoreLock};
use crate::publish::{flatten, not_newest, publish};
use crate::snapshot::{Folder, Snapshot};
use crate::state_file::StateFile;
use crate::{
    Compression, Draft, Error, FunctionName, Manifest, MemoryImage, Result, SnapshotId, WorkingSet,
};

/// How long a temporary folder must lie untouched and unused before opening a store removes it.
const LEFTOVER_IDLE: Duration = Duration::from_secs(10 * 60);

/// How often the newest snapshot is looked for again when it is removed while it is opened.
const OPEN_ATTEMPTS: u32 = 8;

/// A folder of snapshots. Cheap to clone; any number of threads and processes may use the same
/// folder at the same time.
#[derive(Clone, Debug)]
pub struct Store {
    root: Arc<Path>,
}

// Servers hand stores and memories to their threads.
const _: () = {
    const fn shared_by_threads<T: Send + Sync>() {}
    shared_by_threads::<Store>();
    shared_by_threads::<MemoryImage>();
    shared_by_threads::<Error>();
};

/// One snapshot in a [list](Store::list).
#[derive(Debug)]
#[non_exhaustive]
pub struct Entry {
    /// The function that the snapshot belongs to.
    pub function: FunctionName,
    /// The snapshot's id.
    pub id: SnapshotId,
    /// What the snapshot says about itself, or why it cannot be opened.
    pub manifest: Result<Manifest>,
}

impl Store {
    /// Opens the store in the folder `dir`, which is created if it does not exist. Clears away
    /// what publishers that died have left there.
    ///
    /// # Errors
    /// [`Error::Io`] when the folder can be neither found nor created.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self> {
        let root = dir.as_ref();
        files::create_folders(root)?;
        let store = Self { root: root.into() };
        // A store that may only be read is still good for reading.
        let _ = store.clean_leftovers(LEFTOVER_IDLE);
        Ok(store)
    }

    /// The store's folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.root
    }

    /// Publishes a snapshot, which becomes the newest one of `function`. When this returns it is
    /// on disk; when it fails or the process dies, nothing of it is visible.
    ///
    /// # Errors
    /// [`Error::Refused`] when the draft does not fit the format, [`Error::Io`] when reading
    /// guest memory or writing fails.
    pub fn publish<S: Serialize>(
        &self,
        function: &FunctionName,
        draft: Draft<'_, S>,
    ) -> Result<SnapshotId> {
        publish(self, function, draft)
    }

    /// Opens the newest snapshot of `function`. Everything but memory and image is verified now,
    /// these two as they are read.
    ///
    /// # Errors
    /// [`Error::UnknownFunction`] when there is none; [`Error::TooNew`], [`Error::TooOld`],
    /// [`Error::UnknownCodec`], [`Error::WrongMagic`], [`Error::Damaged`] or [`Error::Decode`]
    /// when it cannot be used; [`Error::Io`] when it cannot be read.
    pub fn open_newest<S: DeserializeOwned>(&self, function: &FunctionName) -> Result<Snapshot<S>> {
        self.at_newest(function, |id| self.open_id(function, &id))
    }

    /// Opens the snapshot `id` of `function`.
    ///
    /// # Errors
    /// [`Error::UnknownSnapshot`] when there is none, otherwise as
    /// [`open_newest`](Self::open_newest).
    pub fn open_id<S: DeserializeOwned>(
        &self,
        function: &FunctionName,
        id: &SnapshotId,
    ) -> Result<Snapshot<S>> {
        // Before the files are opened, so that what is open is leased.
        let lease = self.lease(function, *id)?;
        self.folder(function, *id)?.into_snapshot(lease)
    }

    /// What the newest snapshot of `function` says about itself.
    ///
    /// # Errors
    /// As [`open_newest`](Self::open_newest), but the state is not decoded.
    pub fn manifest(&self, function: &FunctionName) -> Result<Manifest> {
        Ok(self.newest(function)?.manifest)
    }

    /// All snapshots, by function and from old to new. One that cannot be opened has its error in
    /// its entry.
    ///
    /// # Errors
    /// [`Error::Io`] when the store's folder itself cannot be read.
    pub fn list(&self) -> Result<Vec<Entry>> {
        let mut entries = Vec::new();
        for function in self.functions()? {
            for id in self.ids(&function)? {
                let manifest = match self.folder(&function, id) {
                    Err(Error::UnknownSnapshot { .. }) => continue, // removed just now
                    opened => opened.map(|folder| folder.manifest),
                };
                entries.push(Entry {
                    function: function.clone(),
                    id,
                    manifest,
                });
            }
        }
        Ok(entries)
    }

    /// Publishes the snapshot `id` of `function` anew, as its newest one: with all its pages, no
    /// layer, and nothing shared with other snapshots. It must be the newest already, as flattening
    /// is not meant to change what is served.
    ///
    /// # Errors
    /// [`Error::UnknownSnapshot`] when there is none, [`Error::Refused`] when there is a newer one,
    /// [`Error::Damaged`] when it cannot be read, otherwise as [`publish`](Self::publish).
    pub fn flatten(
        &self,
        function: &FunctionName,
        id: &SnapshotId,
        compression: Compression,
    ) -> Result<SnapshotId> {
        let folder = self.folder(function, *id)?;
        if self.newest_folder(function, &self.ids(function)?) != Some(*id) {
            return Err(not_newest(function, *id));
        }
        flatten(self, folder, compression)
    }

    /// Saves the working set of the snapshot `id`, in place of an earlier one.
    ///
    /// # Errors
    /// [`Error::Refused`] when it has pages that the snapshot's memory has not, or repeats some;
    /// [`Error::UnknownSnapshot`], [`Error::Damaged`] or [`Error::Io`] when the snapshot is not
    /// there, not good, or cannot be written to.
    pub fn save_working_set(
        &self,
        function: &FunctionName,
        id: &SnapshotId,
        working_set: &WorkingSet,
    ) -> Result<()> {
        // Under the lock the folder is not taken away between the steps.
        let _lock = StoreLock::acquire(&self.root)?;
        let folder = self.snapshot_folder(function, *id);
        let state_file = StateFile::read(&folder.join(StateFile::NAME))
            .map_err(|error| self.or_unknown(function, *id, error))?;
        let header = &state_file.header;
        let content = working_set.encode(header.memory_pages, &header.body_digest)?;
        files::replace(&self.root, &folder, WorkingSet::NAME, &content)
    }

    /// Lets the snapshots that `function` is [served](Self::served) with go from the page cache, so
    /// that they are next read from the disk: for measurements. Pages that somebody has mapped may
    /// stay, and so do all on file systems that have no disk.
    ///
    /// # Errors
    /// [`Error::UnknownFunction`] when there is none, [`Error::Io`] when its files cannot be opened.
    pub fn evict(&self, function: &FunctionName) -> Result<()> {
        for id in self.served(function)? {
            let folder = self.snapshot_folder(function, id);
            for name in files::names(&folder)? {
                files::evict(&folder.join(name))?;
            }
        }
        Ok(())
    }

    /// Clears away what publishers and removers that died have left: temporary folders that
    /// nobody has locked and that did not change for `idle`. Tells how many.
    ///
    /// # Errors
    /// [`Error::Io`] when the store's folder cannot be read.
    pub fn clean_leftovers(&self, idle: Duration) -> Result<u64> {
        files::clean_leftovers(&self.root, idle)
    }

    pub(crate) fn function_folder(&self, function: &FunctionName) -> PathBuf {
        self.root.join(function.as_str())
    }

    pub(crate) fn snapshot_folder(&self, function: &FunctionName, id: SnapshotId) -> PathBuf {
        self.function_folder(function).join(id.to_string())
    }

    /// What may be functions, by name.
    pub(crate) fn functions(&self) -> Result<Vec<FunctionName>> {
        let mut functions: Vec<_> = files::names(&self.root)?
            .iter()
            .filter_map(|name| FunctionName::new(name).ok())
            .collect();
        functions.sort_unstable();
        Ok(functions)
    }

    /// The ids of the function's snapshots, from old to new; none when there is no such folder.
    pub(crate) fn ids(&self, function: &FunctionName) -> Result<Vec<SnapshotId>> {
        // Only what is surely not there counts as nothing: a number would be given out twice.
        let names = match files::names(&self.function_folder(function)) {
            Err(error) if error.is_not_found() || error.is_not_a_folder() => return Ok(Vec::new()),
            names => names?,
        };
        let mut ids: Vec<SnapshotId> = names.iter().filter_map(|name| name.parse().ok()).collect();
        ids.sort_unstable();
        Ok(ids)
    }

    /// The newest of `ids` that is a folder: a stray file with such a name is no snapshot.
    pub(crate) fn newest_folder(
        &self,
        function: &FunctionName,
        ids: &[SnapshotId],
    ) -> Option<SnapshotId> {
        let is_folder = |id: &SnapshotId| {
            // One that cannot be looked at fails where it is opened.
            files::is_folder(&self.snapshot_folder(function, *id)).unwrap_or(true)
        };
        ids.iter().rev().copied().find(is_folder)
    }

    fn newest(&self, function: &FunctionName) -> Result<Folder> {
        self.at_newest(function, |id| self.folder(function, id))
    }

    /// Opens the newest snapshot of `function` with `open`.
    fn at_newest<T>(
        &self,
        function: &FunctionName,
        open: impl Fn(SnapshotId) -> Result<T>,
    ) -> Result<T> {
        for _ in 0..OPEN_ATTEMPTS {
            let Some(id) = self.newest_folder(function, &self.ids(function)?) else {
                break;
            };
            match open(id) {
                Err(Error::UnknownSnapshot { .. }) => {} // removed just now: there may be a newer
                opened => return opened,
            }
        }
        Err(self.unknown(function))
    }

    pub(crate) fn folder(&self, function: &FunctionName, id: SnapshotId) -> Result<Folder> {
        Folder::open(self.snapshot_folder(function, id), function, id)
            .map_err(|error| self.or_unknown(function, id, error))
    }

    /// Tells a snapshot that is not there from one that lacks a file.
    pub(crate) fn or_unknown(
        &self,
        function: &FunctionName,
        id: SnapshotId,
        error: Error,
    ) -> Error {
        let folder = self.snapshot_folder(function, id);
        if (error.is_not_found() || error.is_not_a_folder())
            && files::is_folder(&folder).is_ok_and(|is_there| !is_there)
        {
            return self.unknown_snapshot(function, id);
        }
        error
    }

    pub(crate) fn unknown_snapshot(&self, function: &FunctionName, id: SnapshotId) -> Error {
        Error::UnknownSnapshot {
            function: function.clone(),
            id,
            store: self.root.to_path_buf(),
        }
    }

    pub(crate) fn unknown(&self, function: &FunctionName) -> Error {
        Error::UnknownFunction {
            function: function.clone(),
            store: self.root.to_path_buf(),
        }
    }
}
