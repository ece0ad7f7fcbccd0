//! Snapshots that come from another store, as the files that they have there.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, ensure};
use dormouse_snapshot::{FunctionName, SnapshotRef, Store};

use crate::content::Content;

/// What makes one parcel unlike another.
type Key = (FunctionName, u64, u32);

/// One snapshot, in memory.
#[derive(Debug)]
pub(crate) struct Parcel {
    snapshot: SnapshotRef,
    files: Vec<(String, Vec<u8>)>,
}

impl Parcel {
    /// The parcel of the snapshot of `function` with this content and this number. The first time, it
    /// is published in a store below the folder `place`, which goes away again.
    pub(crate) fn get(
        place: &Path,
        function: &FunctionName,
        content: Content,
        sequence: u32,
    ) -> Result<Arc<Self>> {
        static MADE: Mutex<BTreeMap<Key, Arc<Parcel>>> = Mutex::new(BTreeMap::new());
        let key = (function.clone(), content.0, sequence);
        let mut made = MADE.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(parcel) = made.get(&key) {
            return Ok(parcel.clone());
        }
        let parcel = Self::make(place, function, content, sequence);
        let parcel = Arc::new(parcel.context("cannot make a snapshot to import")?);
        made.insert(key, parcel.clone());
        Ok(parcel)
    }

    fn make(
        place: &Path,
        function: &FunctionName,
        content: Content,
        sequence: u32,
    ) -> Result<Self> {
        let elsewhere = tempfile::tempdir_in(place)?;
        let store = Store::open(elsewhere.path())?;
        for _ in 1..sequence {
            content.publish(&store, function, None)?;
        }
        let snapshot = SnapshotRef {
            id: content.publish(&store, function, None)?,
            function: function.clone(),
        };
        ensure!(snapshot.id.sequence() == sequence, "it became {snapshot}");
        let mut files = Vec::new();
        for mut file in store.files(&snapshot)? {
            let mut bytes = Vec::new();
            file.file.read_to_end(&mut bytes)?;
            files.push((file.name, bytes));
        }
        Ok(Self { snapshot, files })
    }

    /// What it says it is.
    pub(crate) fn snapshot(&self) -> &SnapshotRef {
        &self.snapshot
    }

    /// Imports it; tells whether it was there already.
    pub(crate) fn import(&self, store: &Store) -> dormouse_snapshot::Result<bool> {
        let mut adoption = store.adopt(&self.snapshot)?;
        for (name, bytes) in &self.files {
            adoption.receive(name, bytes.len() as u64, &mut bytes.as_slice())?;
        }
        Ok(adoption.finish()?.already_there)
    }
}
