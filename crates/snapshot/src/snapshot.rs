//! A published snapshot, opened and checked.

use std::fs::File;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

use crate::state_file::StateFile;
use crate::{
    Digest, Error, FunctionName, Manifest, MemoryImage, Result, SnapshotId, WorkingSet, codec,
    files,
};

pub(crate) const MANIFEST: &str = "manifest.json";
pub(crate) const IMAGE: &str = "image";

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
    image: File,
    image_path: PathBuf,
}

impl<S> Snapshot<S> {
    /// The function's image as it was deployed.
    ///
    /// # Errors
    /// [`Error::Damaged`] when it does not match its digest, [`Error::Io`] when it cannot be
    /// read.
    pub fn image(&self) -> Result<Vec<u8>> {
        read_image(&self.image, &self.image_path, &self.manifest)
    }
}

fn read_image(file: &File, path: &Path, manifest: &Manifest) -> Result<Vec<u8>> {
    // The size was compared with the file's real one when the file was opened.
    let image = files::read_start(file, manifest.image_bytes as usize, path)?;
    if Digest::of(&image) != manifest.image_digest {
        return Err(Error::damaged(path, "it does not match its digest"));
    }
    Ok(image)
}

/// A snapshot's folder: all that can be checked without reading the memory and the image, and
/// without knowing the type of the state.
pub(crate) struct Folder {
    pub(crate) id: SnapshotId,
    pub(crate) manifest: Manifest,
    path: PathBuf,
    encoded_state: Vec<u8>,
    memory: MemoryImage,
    image: File,
    working_set: Result<Option<WorkingSet>>,
}

impl Folder {
    /// Opens the snapshot `id` of `function` in the folder `path`.
    pub(crate) fn open(path: PathBuf, function: &FunctionName, id: SnapshotId) -> Result<Self> {
        let state_file = StateFile::read(&path.join(StateFile::NAME))?;
        let header = &state_file.header;

        let manifest_path = path.join(MANIFEST);
        let json = files::read_exactly(&manifest_path, header.manifest_bytes)?;
        if Digest::of(&json) != header.manifest_digest {
            let what = "it does not match the digest in the header";
            return Err(Error::damaged(&manifest_path, what));
        }
        let manifest = Manifest::decode(&json, &state_file, function, &id, &manifest_path)?;

        let image_path = path.join(IMAGE);
        let (image, image_bytes) = files::open(&image_path)?;
        files::check_size(&image_path, image_bytes, header.image_bytes)?;

        let (pages, body_digest) = (header.memory_pages, &header.body_digest);
        let working_set = WorkingSet::read(&path.join(WorkingSet::NAME), pages, body_digest);

        let encoded_state = state_file.state().to_vec();
        let memory = MemoryImage::open(path.join(MemoryImage::NAME), state_file.table)?;
        Ok(Self {
            id,
            manifest,
            path,
            encoded_state,
            memory,
            image,
            working_set,
        })
    }

    pub(crate) fn into_snapshot<S: DeserializeOwned>(self) -> Result<Snapshot<S>> {
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
            image_path: self.path.join(IMAGE),
        })
    }

    /// Verifies what opening has not; tells how many bytes of memory and image it read.
    pub(crate) fn verify(self) -> Result<u64> {
        self.working_set?;
        let image = read_image(&self.image, &self.path.join(IMAGE), &self.manifest)?;
        Ok(self.memory.verify()? + image.len() as u64)
    }
}
