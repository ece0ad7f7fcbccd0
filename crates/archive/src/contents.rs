//! What both forms have in common: a list of files with their sizes and digests, out and in.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;

use dormouse_snapshot::{
    Adoption, FunctionName, MAX_SNAPSHOT_FILES, SnapshotFile, SnapshotId, SnapshotRef, Store,
};
use serde::{Deserialize, Serialize};

use crate::sha256::{Hashing, Sha256};
use crate::{Error, Imported, Progress, Result};

/// The manifest's name among a snapshot's files.
pub(crate) const MANIFEST: &str = "manifest.json";

/// More than any manifest has.
pub(crate) const MAX_MANIFEST_BYTES: u64 = 1 << 20;

/// Bytes that are read at a time.
const BUFFER_BYTES: usize = 256 * 1024;

/// One file of a snapshot.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Item {
    pub(crate) name: String,
    pub(crate) bytes: u64,
    pub(crate) sha256: Sha256,
}

/// What a manifest says that decides where a snapshot goes and how it is called.
#[derive(Debug, Deserialize)]
pub(crate) struct Identity {
    pub(crate) format_version: u32,
    pub(crate) function: FunctionName,
    pub(crate) id: SnapshotId,
}

/// Counts the bytes that are done.
pub(crate) struct Meter<'p> {
    progress: Progress<'p>,
    done: u64,
    total: u64,
}

impl<'p> Meter<'p> {
    fn new(progress: Progress<'p>, total: u64) -> Self {
        progress(0, total);
        Self {
            progress,
            done: 0,
            total,
        }
    }

    pub(crate) fn add(&mut self, bytes: u64) {
        self.done = self.done.saturating_add(bytes).min(self.total);
        (self.progress)(self.done, self.total);
    }
}

/// Tells a meter what is read through it.
struct Metered<'m, 'p, R> {
    inner: R,
    meter: &'m mut Meter<'p>,
}

impl<R: Read> Read for Metered<'_, '_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let length = self.inner.read(buf)?;
        self.meter.add(length as u64);
        Ok(length)
    }
}

/// Reads a file from its start to the size that it had, wherever its cursor stands.
struct FromStart<'f> {
    file: &'f File,
    at: u64,
    end: u64,
}

impl Read for FromStart<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let wanted = (self.end - self.at).min(buf.len() as u64) as usize;
        if wanted == 0 {
            return Ok(0);
        }
        match self.file.read_at(&mut buf[..wanted], self.at)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            length => {
                self.at += length as u64;
                Ok(length)
            }
        }
    }
}

/// Reads all of `content` and tells its digest.
pub(crate) fn digest(content: impl Read) -> io::Result<Sha256> {
    let mut hashing = Hashing::new(content);
    io::copy(
        &mut io::BufReader::with_capacity(BUFFER_BYTES, &mut hashing),
        &mut io::sink(),
    )?;
    Ok(hashing.finish())
}

/// A snapshot on its way out.
pub(crate) struct Outgoing<'p> {
    pub(crate) items: Vec<Item>,
    pub(crate) bytes: u64,
    files: Vec<SnapshotFile>,
    meter: Meter<'p>,
}

impl<'p> Outgoing<'p> {
    /// Opens the snapshot's files and digests them.
    pub(crate) fn open(
        store: &Store,
        snapshot: &SnapshotRef,
        progress: Progress<'p>,
    ) -> Result<Self> {
        let files = store.files(snapshot)?;
        let bytes: u64 = files.iter().map(|file| file.bytes).sum();
        // Everything is read twice: to be digested, and to be written.
        let mut meter = Meter::new(progress, bytes * 2);
        let mut items = Vec::new();
        for file in &files {
            let content = Metered {
                inner: FromStart {
                    file: &file.file,
                    at: 0,
                    end: file.bytes,
                },
                meter: &mut meter,
            };
            items.push(Item {
                name: file.name.clone(),
                bytes: file.bytes,
                sha256: digest(content).map_err(Error::io("read", &file.name))?,
            });
        }
        Ok(Self {
            items,
            bytes,
            files,
            meter,
        })
    }

    /// The content of the item `number`, from its start.
    pub(crate) fn content(&mut self, number: usize) -> impl Read {
        let file = &self.files[number];
        Metered {
            inner: FromStart {
                file: &file.file,
                at: 0,
                end: file.bytes,
            },
            meter: &mut self.meter,
        }
    }

    /// The snapshot's manifest, as it is stored.
    pub(crate) fn manifest(&self) -> Result<Vec<u8>> {
        let mut json = Vec::new();
        if let Some(file) = self.files.iter().find(|file| file.name == MANIFEST) {
            let mut content = FromStart {
                file: &file.file,
                at: 0,
                end: file.bytes.min(MAX_MANIFEST_BYTES),
            };
            content
                .read_to_end(&mut json)
                .map_err(Error::io("read", MANIFEST))?;
        }
        Ok(json)
    }

    /// Counts the item `number` as done without its being read.
    pub(crate) fn skip(&mut self, number: usize) {
        self.meter.add(self.files[number].bytes);
    }
}

/// A snapshot on its way in.
pub(crate) struct Incoming<'p> {
    place: String,
    snapshot: SnapshotRef,
    adoption: Adoption,
    meter: Meter<'p>,
}

impl<'p> Incoming<'p> {
    /// Begins to take in what `place` says is `snapshot` with the files `items`.
    pub(crate) fn begin(
        store: &Store,
        place: &str,
        snapshot: SnapshotRef,
        items: &[Item],
        progress: Progress<'p>,
    ) -> Result<Self> {
        if items.len() > MAX_SNAPSHOT_FILES {
            let what = format!(
                "it lists {} files, and a snapshot has at most {MAX_SNAPSHOT_FILES}",
                items.len()
            );
            return Err(Error::damaged(place, what));
        }
        let total = items
            .iter()
            .try_fold(0u64, |sum, item| sum.checked_add(item.bytes))
            .ok_or_else(|| Error::damaged(place, "the sizes of its files are impossible"))?;
        Ok(Self {
            place: place.to_owned(),
            adoption: store.adopt(&snapshot)?,
            snapshot,
            meter: Meter::new(progress, total),
        })
    }

    /// Takes in one file: `content` has to be what the item says.
    pub(crate) fn receive(&mut self, item: &Item, content: impl Read) -> Result<()> {
        let mut content = Hashing::new(Metered {
            inner: content,
            meter: &mut self.meter,
        });
        self.adoption
            .receive(&item.name, item.bytes, &mut content)
            .map_err(|error| Error::of_content(&self.place, error))?;
        let found = content.finish();
        if found != item.sha256 {
            let what = format!(
                "its file {} has the SHA-256 {found} instead of {}",
                item.name, item.sha256
            );
            return Err(Error::damaged(&self.place, what));
        }
        Ok(())
    }

    /// Has the store verify the whole and show it.
    pub(crate) fn finish(self) -> Result<Imported> {
        let adopted = self
            .adoption
            .finish()
            .map_err(|error| Error::of_content(&self.place, error))?;
        Ok(Imported {
            function: self.snapshot.function,
            id: self.snapshot.id,
            already_there: adopted.already_there,
            bytes: adopted.bytes,
            linked_bytes: adopted.linked_bytes,
        })
    }
}
