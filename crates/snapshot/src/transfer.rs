//! Snapshots that leave a store and come into one, file by file and byte for byte.
//!
//! A snapshot keeps its function's name and its id wherever it goes, as both stand in its manifest.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::block::ENTRY_BYTES;
use crate::codec::MAX_STATE_BYTES;
use crate::files::{self, StoreLock, TempFolder};
use crate::header::{CHUNK_PAGES, HEADER_BYTES, MAX_IMAGE_BYTES};
use crate::manifest::MAX_MANIFEST_BYTES;
use crate::pack::{self, Pack};
use crate::publish::put_in_place;
use crate::removal::Brief;
use crate::snapshot::{Folder, MANIFEST, V1_IMAGE, V1_MEMORY};
use crate::state_file::StateFile;
use crate::table::{MAX_PACKS, table_bytes};
use crate::{
    CHUNK_BYTES, Error, LayerInfo, MAX_LAYER_DEPTH, MAX_MEMORY_PAGES, PAGE_BYTES, Result,
    SnapshotRef, Store, WorkingSet,
};

/// The most files that a snapshot may have: its packs, the table of its pages, its manifest and its
/// working set.
pub const MAX_SNAPSHOT_FILES: usize = MAX_PACKS as usize + 3;

/// A file of a snapshot, held open: a removal from the store does not take it away.
#[derive(Debug)]
#[non_exhaustive]
pub struct SnapshotFile {
    /// Its name in the snapshot's folder.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// The file, open for reading.
    pub file: File,
}

/// What became of a snapshot that came from elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Adopted {
    /// The store had this very snapshot before, and was not changed.
    pub already_there: bool,
    /// Bytes in the snapshot's files.
    pub bytes: u64,
    /// Bytes of those packs that the store had already, and that were linked instead of kept twice.
    pub linked_bytes: u64,
}

impl Store {
    /// The files of a snapshot, by name. All of them were read and compared with their digests. A
    /// working set that is damaged is left out, as it is only a hint.
    ///
    /// # Errors
    /// [`Error::UnknownSnapshot`] when there is none; what [`Store::verify`] says when it is not
    /// good; [`Error::Io`] when it cannot be read.
    pub fn files(&self, snapshot: &SnapshotRef) -> Result<Vec<SnapshotFile>> {
        let SnapshotRef { function, id } = snapshot;
        let mut folder = self.folder(function, *id)?;
        if folder.working_set.is_err() {
            folder.working_set = Ok(None);
        }
        let names = folder.file_names();
        folder.verify_alone()?;
        let path = self.snapshot_folder(function, *id);
        let open = |name: String| {
            let (file, bytes) = files::open(&path.join(&name))?;
            Ok(SnapshotFile { name, bytes, file })
        };
        let opened: Result<Vec<_>> = names.into_iter().map(open).collect();
        opened.map_err(|error| self.or_unknown(function, *id, error))
    }

    /// Begins to take in a snapshot from elsewhere, which says that it is `snapshot`. Nothing of it
    /// is visible before [`Adoption::finish`]; dropping the adoption ends it without a trace.
    ///
    /// # Errors
    /// [`Error::Io`] when the store cannot be written to.
    pub fn adopt(&self, snapshot: &SnapshotRef) -> Result<Adoption> {
        Ok(Adoption {
            store: self.clone(),
            snapshot: snapshot.clone(),
            temp: TempFolder::create(self.path())?,
            names: BTreeSet::new(),
            bytes: 0,
        })
    }
}

/// A snapshot that is being taken in.
pub struct Adoption {
    store: Store,
    snapshot: SnapshotRef,
    temp: TempFolder,
    names: BTreeSet<String>,
    bytes: u64,
}

impl std::fmt::Debug for Adoption {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Adoption")
            .field("snapshot", &self.snapshot)
            .field("names", &self.names)
            .finish_non_exhaustive()
    }
}

impl Adoption {
    /// Takes in the file `name`, which has to have `bytes`: all that `content` holds.
    ///
    /// # Errors
    /// [`Error::Refused`] when a snapshot has no such file, has it already, or cannot have one of
    /// this size; [`Error::Damaged`] when the content is shorter or longer; [`Error::Io`] when it
    /// cannot be read or written.
    pub fn receive(&mut self, name: &str, bytes: u64, content: &mut dyn Read) -> Result<()> {
        let Some(most) = most_bytes(name) else {
            return Err(refused(format!("a snapshot has no file {name:.80?}")));
        };
        if bytes > most {
            let reason = format!("its file {name} has {bytes} bytes of at most {most}");
            return Err(refused(reason));
        }
        if !self.names.insert(name.to_owned()) {
            return Err(refused(format!("it has two files {name}")));
        }
        let path = self.temp.path().join(name);
        write(&files::create(&path)?, bytes, content, &path)?;
        self.bytes = self.bytes.saturating_add(bytes);
        Ok(())
    }

    /// Verifies all that was received, and puts the snapshot into its place in the store, on disk
    /// when this returns. Packs that the store has already are linked.
    ///
    /// # Errors
    /// [`Error::Refused`] when the function has another snapshot of this id or with the same
    /// sequence number, or when files were received that do not belong to the snapshot; the errors
    /// of [`Store::open_id`] and [`Store::verify`] when it is not good; [`Error::Io`] when the store
    /// cannot be written to.
    pub fn finish(self) -> Result<Adopted> {
        let (linked, linked_bytes) = self.link_packs()?;
        self.verify()?;
        let adopted = |already_there| Adopted {
            already_there,
            bytes: self.bytes,
            linked_bytes: if already_there { 0 } else { linked_bytes },
        };
        if self.is_there()? {
            self.verify_there()?;
            return Ok(adopted(true));
        }
        for name in self.names.difference(&linked) {
            let path = self.temp.path().join(name);
            let (file, _) = files::open(&path)?;
            file.sync_all().map_err(Error::io("flush", &path))?;
        }
        let _lock = StoreLock::acquire(self.store.path())?;
        // Somebody may have been faster.
        if self.is_there()? {
            return Ok(adopted(true));
        }
        self.refuse_circle()?;
        let adopted = adopted(false);
        let SnapshotRef { function, id } = &self.snapshot;
        put_in_place(&self.store, function, *id, self.temp)?;
        Ok(adopted)
    }

    /// Refuses a layer whose parents lead back to it: none of them could be removed any more.
    fn refuse_circle(&self) -> Result<()> {
        let mut folder = self.temp.path().to_owned();
        for _ in 0..=MAX_LAYER_DEPTH {
            let Some(LayerInfo { parent, .. }) = Brief::read(&folder).layer else {
                return Ok(());
            };
            if parent == self.snapshot {
                let reason = format!("its parents lead back to {parent}");
                return Err(refused(reason));
            }
            folder = self.store.snapshot_folder(&parent.function, parent.id);
        }
        Ok(())
    }

    /// Makes sure that what was received is a good snapshot, with no file too many.
    fn verify(&self) -> Result<()> {
        let SnapshotRef { function, id } = &self.snapshot;
        let folder = Folder::open(self.temp.path().to_owned(), function, *id)?;
        let known = folder.file_names();
        if let Some(odd) = self.names.iter().find(|name| !known.contains(name)) {
            let reason = format!("the file {odd} does not belong to the snapshot");
            return Err(refused(reason));
        }
        folder.verify_alone()
    }

    /// Makes sure that the store's own copy is good, which need not be imported then.
    fn verify_there(&self) -> Result<()> {
        let SnapshotRef { function, id } = &self.snapshot;
        let verified = self.store.folder(function, *id).and_then(|mut folder| {
            // A hint that may be renewed at any time, and be damaged without harm.
            folder.working_set = Ok(None);
            folder.verify_alone()
        });
        // Not the error itself: what came in is good.
        verified.map_err(|error| self.not_whole(&error))
    }

    fn not_whole(&self, error: &Error) -> Error {
        let snapshot = &self.snapshot;
        refused(format!(
            "the store has {snapshot} already, but not whole ({error}): remove that one first"
        ))
    }

    /// Whether this very snapshot is in the store; an error when another has its place.
    fn is_there(&self) -> Result<bool> {
        let SnapshotRef { function, id } = &self.snapshot;
        let ids = self.store.ids(function)?;
        let Some(there) = ids.iter().find(|other| other.sequence() == id.sequence()) else {
            return Ok(false);
        };
        if there != id {
            let reason = format!(
                "the store has {function}@{there}, and {} has the same sequence number; a snapshot \
                 keeps its name and id when it moves, so remove the other one first or use another \
                 store",
                self.snapshot
            );
            return Err(refused(reason));
        }
        // The digests in this file stand for all the others.
        let theirs_in = self.store.snapshot_folder(function, *id);
        let [ours, theirs] = [self.temp.path(), &theirs_in].map(|path| path.join(StateFile::NAME));
        match have_equal_content(&ours, &theirs) {
            Ok(true) => Ok(true),
            Ok(false) | Err(Error::Damaged { .. }) => Err(refused(format!(
                "the store has another snapshot {}: remove that one first or use another store",
                self.snapshot
            ))),
            // Whoever removes it right now takes the folder, not the file.
            Err(error) if error.is_not_found() => match files::is_folder(&theirs_in)? {
                true => Err(self.not_whole(&error)),
                false => Ok(false),
            },
            Err(error) => Err(error),
        }
    }

    /// Replaces packs that the store has, to the byte, by links to them. Tells which and how many
    /// bytes they have.
    fn link_packs(&self) -> Result<(BTreeSet<String>, u64)> {
        let mut folders = Vec::new();
        for function in self.store.functions()? {
            // What cannot be read lends nothing.
            let ids = self.store.ids(&function).unwrap_or_default().into_iter();
            folders.extend(ids.map(|id| self.store.snapshot_folder(&function, id)));
        }
        let (mut linked, mut bytes) = (BTreeSet::new(), 0);
        for name in self.names.iter().filter(|name| Pack::is_name(name)) {
            let there = folders.iter().map(|folder| folder.join(name));
            for path in there.filter(|path| path.exists()) {
                if self.link(&path, name)? {
                    bytes += files::open(&self.temp.path().join(name))?.1;
                    linked.insert(name.clone());
                    break;
                }
            }
        }
        Ok((linked, bytes))
    }

    fn link(&self, from: &Path, name: &str) -> Result<bool> {
        let link = self.temp.path().join(".link");
        // It may be gone by now, or the file system may have no links left or none at all.
        if fs::hard_link(from, &link).is_err() {
            return Ok(false);
        }
        let own = self.temp.path().join(name);
        // What was linked is compared by its new name: it is what the snapshot will use. One that
        // cannot be read is left to whoever has it.
        if have_equal_content(&own, &link).unwrap_or(false) {
            files::rename(&link, &own)?;
            return Ok(true);
        }
        fs::remove_file(&link).map_err(Error::io("remove", &link))?;
        Ok(false)
    }
}

fn refused(reason: String) -> Error {
    Error::refused("import the snapshot", reason)
}

/// The most bytes that the file `name` of a snapshot may have; nothing for other names.
fn most_bytes(name: &str) -> Option<u64> {
    const PAGES: u64 = MAX_MEMORY_PAGES + MAX_IMAGE_BYTES / PAGE_BYTES as u64;
    Some(match name {
        StateFile::NAME => {
            HEADER_BYTES as u64 + MAX_STATE_BYTES as u64 + table_bytes(PAGES, MAX_PACKS)
        }
        MANIFEST => MAX_MANIFEST_BYTES,
        WorkingSet::NAME => WorkingSet::MAX_FILE_BYTES,
        V1_MEMORY => MAX_MEMORY_PAGES * PAGE_BYTES as u64,
        V1_IMAGE => MAX_IMAGE_BYTES,
        _ if Pack::is_name(name) => {
            let page_bytes = PAGES * (PAGE_BYTES + pack::KEY_BYTES) as u64;
            pack::BLOCKS_AT + page_bytes + PAGES.div_ceil(CHUNK_PAGES) * ENTRY_BYTES as u64
        }
        _ => return None,
    })
}

/// Writes `content`, which has to have `bytes`. Zeros take no room: memories of version 1 are
/// mostly holes.
fn write(file: &File, bytes: u64, content: &mut dyn Read, path: &Path) -> Result<()> {
    let io = |operation| move |error: io::Error| Error::io(operation, path)(error);
    let mut buf = vec![0; CHUNK_BYTES];
    let mut at = 0;
    loop {
        let length = fill(content, &mut buf).map_err(io("receive the content of"))?;
        let chunk = &buf[..length];
        if at + length as u64 > bytes {
            return Err(Error::damaged(
                path,
                format!("it has more than {bytes} bytes"),
            ));
        }
        if chunk.iter().any(|byte| *byte != 0) {
            file.write_all_at(chunk, at).map_err(io("write"))?;
        }
        at += length as u64;
        if length < buf.len() {
            break;
        }
    }
    files::check_size(path, at, bytes)?;
    file.set_len(bytes).map_err(io("write"))
}

/// Reads until `buf` is full or there is no more, and tells how much there was.
fn fill(content: &mut dyn Read, buf: &mut [u8]) -> io::Result<usize> {
    let mut length = 0;
    while length < buf.len() {
        match content.read(&mut buf[length..]) {
            Ok(0) => break,
            Ok(more) => length += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(length)
}

fn have_equal_content(a: &Path, b: &Path) -> Result<bool> {
    let [(a_file, a_bytes), (b_file, b_bytes)] = [files::open(a)?, files::open(b)?];
    if a_bytes != b_bytes {
        return Ok(false);
    }
    let (mut of_a, mut of_b) = (vec![0; CHUNK_BYTES], vec![0; CHUNK_BYTES]);
    let mut at = 0;
    while at < a_bytes {
        let length = (a_bytes - at).min(CHUNK_BYTES as u64) as usize;
        files::read_at(&a_file, &mut of_a[..length], at, a)?;
        files::read_at(&b_file, &mut of_b[..length], at, b)?;
        if of_a[..length] != of_b[..length] {
            return Ok(false);
        }
        at += length as u64;
    }
    Ok(true)
}
