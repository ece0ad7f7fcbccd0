//! What the snapshots of a store take up on disk, with what several use counted once.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use crate::removal::Brief;
use crate::{Error, FunctionName, Result, SnapshotId, SnapshotRef, Store, files};

/// `stat(2)`: `st_blocks` counts 512 bytes, whatever the file system's own blocks are.
const STAT_BLOCK_BYTES: u64 = 512;

/// Nothing of a store lies deeper: `<store>/.tmp-…/<snapshot>/<file>`.
const MAX_DEPTH: u32 = 3;

/// What a store takes up. See [`Store::usage`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct StoreUsage {
    /// The snapshots by function, from old to new.
    pub snapshots: Vec<SnapshotUsage>,
    /// Bytes on disk of all files in the store, each file counted once however many snapshots use
    /// it. Files that are being written or deleted are among them.
    pub total_bytes: u64,
}

/// What one snapshot takes up.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SnapshotUsage {
    /// The snapshot.
    pub snapshot: SnapshotRef,
    /// Guest memory and image in full; 0 where the manifest cannot be read.
    pub apparent_bytes: u64,
    /// Bytes on disk of the files that only this snapshot uses.
    pub own_bytes: u64,
    /// Bytes on disk of the packs that other snapshots use, too.
    pub shared_bytes: u64,
}

/// Device and number.
type Inode = (u64, u64);

struct FileUse {
    bytes: u64,
    /// Links in all of the file system.
    links: u64,
    /// Links in the store.
    users: u64,
}

/// A snapshot's folder, as it lies in the store.
pub(crate) struct Stored {
    pub(crate) snapshot: SnapshotRef,
    pub(crate) brief: Brief,
    modified: SystemTime,
    files: Vec<Inode>,
}

impl Stored {
    /// When the snapshot was taken; where its manifest does not say, when its folder changed.
    pub(crate) fn created(&self) -> SystemTime {
        let since = self.brief.created_unix_ms.map(Duration::from_millis);
        since
            .and_then(|since| SystemTime::UNIX_EPOCH.checked_add(since))
            .unwrap_or(self.modified)
    }
}

/// All files of a store, and who uses them.
#[derive(Default)]
pub(crate) struct Inventory {
    /// By function, from old to new. Only real folders: what a symbolic link leads to is not the
    /// store's.
    pub(crate) snapshots: Vec<Stored>,
    pub(crate) total_bytes: u64,
    files: HashMap<Inode, FileUse>,
}

impl Inventory {
    /// What is in `store`; what is being written or deleted only where it is `with_temporary`.
    pub(crate) fn read(store: &Store, with_temporary: bool) -> Result<Self> {
        let mut inventory = Self::default();
        for name in files::names(store.path())? {
            let path = store.path().join(&name);
            let function = FunctionName::new(&name).ok();
            match function.filter(|_| real_folder(&path).is_some()) {
                Some(function) => inventory.add_function(&path, &function)?,
                None if with_temporary || !files::is_temporary(&name) => {
                    inventory.count(&path, 1)?;
                }
                None => {}
            }
        }
        let by_name = |stored: &Stored| stored.snapshot.clone();
        inventory.snapshots.sort_by_cached_key(by_name);
        Ok(inventory)
    }

    fn add_function(&mut self, path: &Path, function: &FunctionName) -> Result<()> {
        for name in names_if_there(path)? {
            let path = path.join(&name);
            let modified = real_folder(&path);
            let files = self.count(&path, 2)?;
            if let (Ok(id), Some(modified)) = (name.parse::<SnapshotId>(), modified) {
                let function = function.clone();
                self.snapshots.push(Stored {
                    snapshot: SnapshotRef { function, id },
                    brief: Brief::read(&path),
                    modified,
                    files,
                });
            }
        }
        Ok(())
    }

    /// Counts the file `path`, or the files below it.
    fn count(&mut self, path: &Path, depth: u32) -> Result<Vec<Inode>> {
        let metadata = match fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            metadata => metadata.map_err(Error::io("inspect", path))?,
        };
        if metadata.is_dir() && depth < MAX_DEPTH {
            let mut files = Vec::new();
            for name in names_if_there(path)? {
                files.extend(self.count(&path.join(name), depth + 1)?);
            }
            return Ok(files);
        }
        if !metadata.is_file() {
            return Ok(Vec::new());
        }
        let inode = (metadata.dev(), metadata.ino());
        let bytes = metadata.blocks() * STAT_BLOCK_BYTES;
        let file = self.files.entry(inode).or_insert_with(|| {
            self.total_bytes += bytes;
            let links = metadata.nlink();
            FileUse {
                bytes,
                links,
                users: 0,
            }
        });
        file.users += 1;
        Ok(vec![inode])
    }

    /// Takes the snapshot at `at` in the list of snapshots out of the count. Tells how many bytes
    /// that frees: those of the files that have no other link, in the store or elsewhere.
    pub(crate) fn release_snapshot(&mut self, at: usize) -> u64 {
        let files = std::mem::take(&mut self.snapshots[at].files);
        self.release(&files)
    }

    fn release(&mut self, files: &[Inode]) -> u64 {
        let mut freed_bytes = 0;
        for inode in files {
            if let Some(file) = self.files.get_mut(inode) {
                file.links = file.links.saturating_sub(1);
                file.users -= 1;
                if file.users == 0 {
                    self.total_bytes -= file.bytes;
                    freed_bytes += if file.links == 0 { file.bytes } else { 0 };
                    self.files.remove(inode);
                }
            }
        }
        freed_bytes
    }
}

/// When the folder `path` changed; nothing where it is not a folder, or a link to one.
fn real_folder(path: &Path) -> Option<SystemTime> {
    let metadata = fs::symlink_metadata(path).ok()?;
    metadata.is_dir().then(|| metadata.modified().ok())?
}

fn names_if_there(path: &Path) -> Result<Vec<String>> {
    match files::names(path) {
        Err(error) if error.is_not_found() => Ok(Vec::new()),
        names => names,
    }
}

impl Store {
    /// What the snapshots take up on disk. Reads no more than manifests and sizes.
    ///
    /// # Errors
    /// [`Error::Io`] when the store cannot be looked through.
    pub fn usage(&self) -> Result<StoreUsage> {
        let inventory = Inventory::read(self, true)?;
        let snapshots = inventory.snapshots.iter().map(|stored| {
            let (mut own_bytes, mut shared_bytes) = (0, 0);
            for file in stored.files.iter().filter_map(|f| inventory.files.get(f)) {
                if file.users == 1 {
                    own_bytes += file.bytes;
                } else {
                    shared_bytes += file.bytes;
                }
            }
            let Brief {
                memory_bytes,
                image_bytes,
                ..
            } = stored.brief;
            SnapshotUsage {
                snapshot: stored.snapshot.clone(),
                apparent_bytes: memory_bytes.saturating_add(image_bytes),
                own_bytes,
                shared_bytes,
            }
        });
        Ok(StoreUsage {
            snapshots: snapshots.collect(),
            total_bytes: inventory.total_bytes,
        })
    }
}
