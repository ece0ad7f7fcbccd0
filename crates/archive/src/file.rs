//! A snapshot as one file: a tar whose first entry lists the others.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::Path;

use dormouse_snapshot::{FunctionName, SnapshotId, SnapshotRef, Store};
use serde::{Deserialize, Serialize};
use tempfile::NamedTempFile;

use crate::contents::{Incoming, Item, Outgoing};
use crate::error::quoted;
use crate::{Error, Existing, Exported, Imported, Progress, Result};

/// The version of the file's layout.
pub const FILE_VERSION: u32 = 1;

/// The name of the first entry.
const LIST: &str = "dormouse-export.json";

/// The most bytes that the list may have: a snapshot has few files.
const MAX_LIST_BYTES: u64 = 64 * 1024;

/// Bytes that are read or written at a time.
const BUFFER_BYTES: usize = 256 * 1024;

/// What the first entry says.
#[derive(Debug, Serialize, Deserialize)]
struct List {
    version: u32,
    function: FunctionName,
    id: SnapshotId,
    files: Vec<Item>,
}

/// What the first entry says in every version to come.
#[derive(Deserialize)]
struct Version {
    version: u32,
}

/// Exports a snapshot into the file `path`, which is there in full or not at all.
///
/// # Errors
/// [`Error::Exists`] when there is such a file and it is to be kept, otherwise as [`export_to`].
pub fn export_file(
    store: &Store,
    snapshot: &SnapshotRef,
    path: &Path,
    existing: Existing,
    progress: Progress<'_>,
) -> Result<Exported> {
    let exists = || Error::Exists {
        path: path.to_owned(),
    };
    if existing == Existing::Keep && path.symlink_metadata().is_ok() {
        return Err(exists());
    }
    let folder = match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    let temp = NamedTempFile::new_in(folder).map_err(Error::io("write to", folder))?;
    let exported = export_to(store, snapshot, temp.as_file(), progress)?;
    temp.as_file()
        .sync_all()
        .map_err(Error::io("write", path))?;
    match existing {
        Existing::Replace => temp.persist(path),
        Existing::Keep => temp.persist_noclobber(path),
    }
    .map_err(|error| match error.error.kind() {
        io::ErrorKind::AlreadyExists => exists(),
        _ => Error::io("write", path)(error.error),
    })?;
    let synced = File::open(folder).and_then(|folder| folder.sync_all());
    synced.map_err(Error::io("flush", folder))?;
    Ok(exported)
}

/// Exports a snapshot to `writer`: the same bytes for the same snapshot, always.
///
/// # Errors
/// [`Error::Store`] when there is no such snapshot or it is not good, [`Error::Io`] when it cannot
/// be read or written.
pub fn export_to(
    store: &Store,
    snapshot: &SnapshotRef,
    writer: impl Write,
    progress: Progress<'_>,
) -> Result<Exported> {
    let mut outgoing = Outgoing::open(store, snapshot, progress)?;
    let items = outgoing.items.clone();
    let list = List {
        version: FILE_VERSION,
        function: snapshot.function.clone(),
        id: snapshot.id,
        files: items,
    };
    let written = write(&list, &mut outgoing, writer);
    Ok(Exported {
        bytes: outgoing.bytes,
        written_bytes: written.map_err(Error::io("write", format!("the export of {snapshot}")))?,
    })
}

fn write(list: &List, outgoing: &mut Outgoing<'_>, writer: impl Write) -> io::Result<u64> {
    let counting = Counting {
        inner: BufWriter::with_capacity(BUFFER_BYTES, writer),
        bytes: 0,
    };
    let mut tar = tar::Builder::new(counting);
    let mut json = serde_json::to_vec_pretty(list)?;
    json.push(b'\n');
    tar.append(&header(LIST, json.len() as u64)?, json.as_slice())?;
    for (number, item) in list.files.iter().enumerate() {
        tar.append(&header(&item.name, item.bytes)?, outgoing.content(number))?;
    }
    let mut counting = tar.into_inner()?;
    counting.inner.flush()?;
    Ok(counting.bytes)
}

/// The header of an entry: nothing of who exports and when is in it.
fn header(name: &str, bytes: u64) -> io::Result<tar::Header> {
    let mut header = tar::Header::new_ustar();
    header.set_path(name)?;
    header.set_entry_type(tar::EntryType::Regular);
    header.set_mode(0o400);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(bytes);
    header.set_cksum();
    Ok(header)
}

struct Counting<W> {
    inner: W,
    bytes: u64,
}

impl<W: Write> Write for Counting<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let length = self.inner.write(buf)?;
        self.bytes += length as u64;
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Reads on after interruptions, which the tar library takes for the end.
struct Patient<R>(R);

impl<R: Read> Read for Patient<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.0.read(buf) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => return other,
            }
        }
    }
}

/// Imports the snapshot in the file `path`.
///
/// # Errors
/// As [`import_from`].
pub fn import_file(store: &Store, path: &Path, progress: Progress<'_>) -> Result<Imported> {
    let file = File::open(path).map_err(Error::io("read", path))?;
    import_from(store, file, &path.display().to_string(), progress)
}

/// Imports the snapshot that `reader` gives; errors call it `place`. When this returns, it is in the
/// store and on disk; when it fails, nothing of it is.
///
/// # Errors
/// [`Error::NotAnExport`], [`Error::Damaged`] or [`Error::TooNew`] when it cannot be read;
/// [`Error::Unusable`] when the snapshot in it is nothing for this build or this store;
/// [`Error::Io`] or [`Error::Store`] when reading or writing fails.
pub fn import_from(
    store: &Store,
    reader: impl Read,
    place: &str,
    progress: Progress<'_>,
) -> Result<Imported> {
    let mut tar = tar::Archive::new(BufReader::with_capacity(BUFFER_BYTES, Patient(reader)));
    // Raw: extensions of the format are refused, not followed.
    let mut entries = tar.entries().map_err(Error::io("read", place))?.raw(true);
    let mut next = |number: usize| match entries.next() {
        None => Ok(None),
        Some(Ok(entry)) => Ok(Some(entry)),
        Some(Err(error)) if error.raw_os_error().is_some() => Err(Error::io("read", place)(error)),
        Some(Err(error)) if number == 0 => Err(Error::not_an_export(
            place,
            format!("it is no tar file ({})", quoted(&error)),
        )),
        Some(Err(error)) => {
            let what = format!("behind {number} of its files, {}", quoted(&error));
            Err(Error::damaged(place, what))
        }
    };

    let list = match next(0)? {
        Some(mut entry) if is_file(&entry, LIST) => read_list(&mut entry, place)?,
        _ => {
            let reason = format!("it does not begin with {LIST}");
            return Err(Error::not_an_export(place, reason));
        }
    };
    let snapshot = SnapshotRef {
        function: list.function,
        id: list.id,
    };
    let mut incoming = Incoming::begin(store, place, snapshot, &list.files, progress)?;
    for (number, item) in (1..).zip(&list.files) {
        match next(number)? {
            Some(mut entry) if is_file(&entry, &item.name) => {
                if entry.size() != item.bytes {
                    let name = &item.name;
                    let what = format!("its list and its header differ in the size of {name}");
                    return Err(Error::damaged(place, what));
                }
                incoming.receive(item, &mut entry)?;
            }
            _ => {
                let what = format!("its file {number} should be {:.80?}", item.name);
                return Err(Error::damaged(place, what));
            }
        }
    }
    if next(list.files.len() + 1)?.is_some() {
        let what = "it has more files than it lists";
        return Err(Error::damaged(place, what));
    }
    incoming.finish()
}

fn is_file<R: Read>(entry: &tar::Entry<'_, R>, name: &str) -> bool {
    entry.header().entry_type() == tar::EntryType::Regular
        && *entry.path_bytes() == *name.as_bytes()
}

fn read_list<R: Read>(entry: &mut tar::Entry<'_, R>, place: &str) -> Result<List> {
    let bytes = entry.size();
    if bytes > MAX_LIST_BYTES {
        let reason = format!("its list has {bytes} bytes of at most {MAX_LIST_BYTES}");
        return Err(Error::not_an_export(place, reason));
    }
    let mut json = Vec::new();
    entry
        .read_to_end(&mut json)
        .map_err(Error::io("read", place))?;
    let wrong = |error: serde_json::Error| {
        Error::not_an_export(
            place,
            format!("its list cannot be read ({})", quoted(&error)),
        )
    };
    let Version { version } = serde_json::from_slice(&json).map_err(wrong)?;
    if version > FILE_VERSION {
        return Err(Error::TooNew {
            place: place.to_owned(),
            found: version,
            newest: FILE_VERSION,
        });
    }
    serde_json::from_slice(&json).map_err(wrong)
}
