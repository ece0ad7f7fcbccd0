//! A published snapshot, opened and checked.

use std::fs::File;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use serde::de::DeserializeOwned;

use crate::pack::Pack;
use crate::space::PageSpace;
use crate::state_file::{StateFile, Table};
use crate::table::PageTable;
use crate::verify::Verifier;
use crate::{
    Digest, Error, FunctionName, Lease, Manifest, MemoryImage, PAGE_BYTES, Result, SnapshotId,
    WorkingSet, codec, files,
};

pub(crate) const MANIFEST: &str = "manifest.json";

/// The files of format version 1.
pub(crate) const V1_MEMORY: &str = "memory";
pub(crate) const V1_IMAGE: &str = "image";

/// An opened snapshot with the machine state `S`. Its files stay open, so it stays usable when
/// the snapshot is removed from the store.
#[derive(Debug)]
pub struct Snapshot<S> {
    /// The snapshot's id.
    pub id: SnapshotId,
    /// What `manifest.json` says; verified.
    pub manifest: Manifest,
    /// The machine state; verified, but made by whoever wrote the snapshot.
    pub state: S,
    /// Guest memory; verified as it is read.
    pub memory: MemoryImage,
    /// The pages that earlier runs touched, if that was saved.
    pub working_set: Option<WorkingSet>,
    /// Why there is no working set although there is a file for it. It is only a hint, so the
    /// snapshot is good without it; whoever opens it should tell.
    pub working_set_error: Option<Error>,
    /// The function's image.
    pub image: StoredImage,
    /// Keeps the snapshot from being removed by itself; for whoever goes on using its parts.
    pub lease: Lease,
}

impl<S> Snapshot<S> {
    /// The function's image as it was deployed.
    ///
    /// # Errors
    /// As [`StoredImage::read`].
    pub fn image(&self) -> Result<Vec<u8>> {
        self.image.read()
    }
}

/// The image of a function in a snapshot. Its files are open: it can be read when the snapshot is
/// gone from the store.
#[derive(Debug)]
pub struct StoredImage {
    place: ImagePlace,
    path: PathBuf,
    bytes: u64,
    digest: Digest,
}

#[derive(Debug)]
enum ImagePlace {
    /// A file of its own, in format version 1.
    File(File),
    /// Pages behind those of the memory.
    Pages(Arc<PageSpace>, u64),
}

impl StoredImage {
    /// Reads the image as it was deployed.
    ///
    /// # Errors
    /// [`Error::Damaged`] when it does not match its digest, [`Error::Io`] when it cannot be
    /// read.
    pub fn read(&self) -> Result<Vec<u8>> {
        // The size was compared with the file's real one, or bounded by the header's limit.
        let bytes = self.bytes as usize;
        let image = match &self.place {
            ImagePlace::File(file) => files::read_start(file, bytes, &self.path)?,
            ImagePlace::Pages(space, first) => {
                let mut image = vec![0; bytes.next_multiple_of(PAGE_BYTES)];
                let end = first + (image.len() / PAGE_BYTES) as u64;
                space.read(*first..end, true, &mut |page, bytes| {
                    let at = (page - first) as usize * PAGE_BYTES;
                    image[at..at + bytes.len()].copy_from_slice(bytes);
                    Ok(())
                })?;
                image.truncate(bytes);
                image
            }
        };
        if Digest::of(&image) != self.digest {
            return Err(Error::damaged(
                &self.path,
                "its image does not match its digest",
            ));
        }
        Ok(image)
    }
}

/// A snapshot's folder: all that can be checked without reading the pages, and without knowing
/// the type of the state.
pub(crate) struct Folder {
    pub(crate) id: SnapshotId,
    pub(crate) manifest: Manifest,
    pub(crate) encoded_state: Vec<u8>,
    pub(crate) memory: MemoryImage,
    pub(crate) image: StoredImage,
    pub(crate) working_set: Result<Option<WorkingSet>>,
    path: PathBuf,
    space: Arc<PageSpace>,
}

impl Folder {
    /// Opens the snapshot `id` of `function` in the folder `path`.
    pub(crate) fn open(path: PathBuf, function: &FunctionName, id: SnapshotId) -> Result<Self> {
        let state_path = path.join(StateFile::NAME);
        let state_file = StateFile::read(&state_path)?;
        let header = &state_file.header;

        let manifest_path = path.join(MANIFEST);
        let json = files::read_exactly(&manifest_path, header.manifest_bytes)?;
        if Digest::of(&json) != header.manifest_digest {
            let what = "it does not match the digest in the header";
            return Err(Error::damaged(&manifest_path, what));
        }
        let manifest = Manifest::decode(&json, &state_file, function, &id, &manifest_path)?;

        let (pages, body_digest) = (header.memory_pages, &header.body_digest);
        let working_set = WorkingSet::read(&path.join(WorkingSet::NAME), pages, body_digest);

        let (packs, table) = match &state_file.table {
            Table::Chunks(chunks) => {
                let memory_path = path.join(V1_MEMORY);
                let (file, file_bytes) = files::open(&memory_path)?;
                files::check_size(&memory_path, file_bytes, pages * PAGE_BYTES as u64)?;
                let chunk_digests = chunks.chunks.iter().copied();
                let pack = Pack::of_chunks(file, memory_path, pages, chunk_digests);
                (vec![pack], PageTable::of_whole_file(&chunks.data))
            }
            Table::Pages(table) => {
                let open = |digest| Pack::open(path.join(Pack::name(digest)), Some(digest));
                let packs = table.packs.iter().map(open).collect::<Result<_>>()?;
                (packs, table.clone())
            }
        };
        let space = Arc::new(PageSpace::new(table, packs, &state_path)?);
        let (image_path, place) = match &state_file.table {
            Table::Chunks(_) => {
                let image_path = path.join(V1_IMAGE);
                let (file, file_bytes) = files::open(&image_path)?;
                files::check_size(&image_path, file_bytes, header.image_bytes)?;
                (image_path, ImagePlace::File(file))
            }
            Table::Pages(_) => (path.clone(), ImagePlace::Pages(Arc::clone(&space), pages)),
        };
        let image = StoredImage {
            place,
            path: image_path,
            bytes: header.image_bytes,
            digest: header.image_digest,
        };
        let data = state_file.data();
        Ok(Self {
            id,
            manifest,
            encoded_state: state_file.state().to_vec(),
            memory: MemoryImage::new(Arc::clone(&space), path.clone(), pages, data),
            image,
            working_set,
            path,
            space,
        })
    }

    pub(crate) fn into_snapshot<S: DeserializeOwned>(self, lease: Lease) -> Result<Snapshot<S>> {
        let state = codec::decode(&self.encoded_state).map_err(|reason| Error::Decode {
            path: self.path.join(StateFile::NAME),
            reason,
        })?;
        let (working_set, working_set_error) = match self.working_set {
            Ok(working_set) => (working_set, None),
            Err(error) => (None, Some(error)),
        };
        Ok(Snapshot {
            id: self.id,
            manifest: self.manifest,
            state,
            memory: self.memory,
            working_set,
            working_set_error,
            image: self.image,
            lease,
        })
    }

    /// The names of the snapshot's files, sorted.
    pub(crate) fn file_names(&self) -> Vec<String> {
        let mut names = vec![StateFile::NAME.to_owned(), MANIFEST.to_owned()];
        let packs = self
            .space
            .packs()
            .iter()
            .filter_map(|pack| pack.path().file_name());
        names.extend(packs.map(|name| name.to_string_lossy().into_owned()));
        if matches!(self.image.place, ImagePlace::File(_)) {
            names.push(V1_IMAGE.to_owned());
        }
        if !matches!(self.working_set, Ok(None)) {
            names.push(WorkingSet::NAME.to_owned());
        }
        names.sort_unstable();
        names.dedup();
        names
    }

    /// Verifies what opening has not.
    pub(crate) fn verify_alone(self) -> Result<()> {
        self.verify(&mut Verifier::new(&mut |_| ()))
    }

    /// Verifies what opening has not. What `verifier` has read for another snapshot is not read
    /// again.
    pub(crate) fn verify(self, verifier: &mut Verifier<'_>) -> Result<()> {
        let mut used = None;
        for (number, pack) in self.space.packs().iter().enumerate() {
            let damages = verifier.pack(pack)?;
            if damages.is_empty() {
                continue;
            }
            let used = &used.get_or_insert_with(|| self.space.used_slots())[number];
            let is_used = |slots: &Range<u64>| {
                let after = used.partition_point(|used| used.end <= slots.start);
                used.get(after).is_some_and(|used| used.start < slots.end)
            };
            if let Some((_, what)) = damages.iter().find(|(slots, _)| is_used(slots)) {
                return Err(Error::damaged(pack.path(), what.as_str()));
            }
        }
        self.verify_image(verifier)?;
        // A hint: what matters is told of first.
        self.working_set?;
        verifier.found.snapshots += 1;
        Ok(())
    }

    fn verify_image(&self, verifier: &mut Verifier<'_>) -> Result<()> {
        let ImagePlace::Pages(space, first) = &self.image.place else {
            verifier.found.bytes += self.image.read()?.len() as u64;
            return Ok(());
        };
        // Its pages are in blocks that were read just now, and are good.
        let places = space.places_from(*first).map(|(page, pack, slot, pages)| {
            let (device, inode) = space.packs()[pack as usize].inode()?;
            Ok([page - first, device, inode, slot, pages])
        });
        let image = (self.image.digest, places.collect::<Result<Vec<_>>>()?);
        if !verifier.has_seen_image(&image) {
            self.image.read()?;
            verifier.remember_image(image);
        }
        Ok(())
    }
}
