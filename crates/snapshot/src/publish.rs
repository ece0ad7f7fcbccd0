//! Publishing: everything is written and flushed under a temporary name, then one rename.

use std::path::Path;

use serde::Serialize;

use crate::files::{self, StoreLock, TempFolder};
use crate::header::{Header, MAX_IMAGE_BYTES};
use crate::memory_writer::write_memory;
use crate::snapshot::{IMAGE, MANIFEST};
use crate::state_file::StateFile;
use crate::{
    Digest, Error, FORMAT_VERSION, FunctionName, Manifest, MemoryDraft, MemoryImage, PAGE_BYTES,
    Result, SnapshotId, Store, codec,
};

/// What is to be published.
#[derive(Debug)]
pub struct Draft<'a, S> {
    /// When the snapshot was taken, in milliseconds since 1970 (UTC).
    pub created_unix_ms: u64,
    /// The host that it was taken on, for people.
    pub host: String,
    /// The function's configuration, free-form; comes back in [`Manifest::config`].
    pub config: serde_json::Value,
    /// The machine state. It is encoded with bincode, so its types must not use serde features
    /// that need a self-describing format (`flatten`, `untagged`, `skip_serializing_if`, …), and
    /// changing them needs a new [`FORMAT_VERSION`].
    pub state: &'a S,
    /// Guest memory.
    pub memory: MemoryDraft<'a>,
    /// The function's image, as it was deployed.
    pub image: &'a [u8],
}

/// Publishes `draft` in `store`.
pub(crate) fn publish<S: Serialize>(
    store: &Store,
    function: &FunctionName,
    draft: Draft<'_, S>,
) -> Result<SnapshotId> {
    let Draft {
        created_unix_ms,
        host,
        config,
        state,
        memory,
        image,
    } = draft;
    let refused = |reason| Error::refused("publish the snapshot", reason);
    let image_bytes = image.len() as u64;
    if image_bytes > MAX_IMAGE_BYTES {
        let reason = format!("its image has {image_bytes} bytes of at most {MAX_IMAGE_BYTES}");
        return Err(refused(reason));
    }
    let mut body = codec::encode(state)
        .map_err(|reason| refused(format!("its state cannot be encoded ({reason})")))?;
    let state_bytes = body.len() as u64;

    let temp = TempFolder::create(store.path())?;
    let table = write_memory(&temp.path().join(MemoryImage::NAME), memory)?;
    files::write(&temp.path().join(IMAGE), image)?;
    body.extend_from_slice(&table.encode());
    let (image_digest, body_digest) = (Digest::of(image), Digest::of(&body));

    // Under the lock, two publishers never take the same number, and no remover takes the folder
    // away between the steps.
    let _lock = StoreLock::acquire(store.path())?;
    let sequence = store
        .ids(function)?
        .last()
        .map_or(1, |newest| newest.sequence() + 1);
    let content = (
        &body_digest,
        &image_digest,
        function,
        created_unix_ms,
        &host,
        &config,
    );
    let id = serde_json::to_vec(&content)
        .map_err(|error| refused(format!("its configuration cannot be written ({error})")))
        .map(|content| SnapshotId::new(sequence, &Digest::of(&content)))?
        .ok_or_else(|| refused("the function has used up all sequence numbers".into()))?;

    let manifest = Manifest {
        format_version: FORMAT_VERSION,
        function: function.clone(),
        id,
        created_unix_ms,
        host,
        memory_bytes: table.pages() * PAGE_BYTES as u64,
        data_pages: table.data_pages(),
        state_bytes,
        image_bytes,
        image_digest,
        config,
    }
    .encode()?;
    let header = Header {
        memory_pages: table.pages(),
        state_bytes,
        data_ranges: table.data().len() as u64,
        data_chunks: table.chunks().len() as u64,
        manifest_bytes: manifest.len() as u64,
        image_bytes,
        manifest_digest: Digest::of(&manifest),
        image_digest,
        body_digest,
    };
    files::write(&temp.path().join(MANIFEST), &manifest)?;
    let state_file = [header.encode().as_slice(), &body].concat();
    files::write(&temp.path().join(StateFile::NAME), &state_file)?;
    put_in_place(store, function, id, temp)?;
    Ok(id)
}

/// The one rename, with the folders on disk before and after.
fn put_in_place(
    store: &Store,
    function: &FunctionName,
    id: SnapshotId,
    temp: TempFolder,
) -> Result<()> {
    files::sync_folder(temp.path())?;
    let function_folder = store.function_folder(function);
    files::create_folders(&function_folder)?;
    temp.rename(&function_folder.join(id.to_string()))?;
    [function_folder.as_path(), store.path()]
        .into_iter()
        .try_for_each(files::sync_folder)
}

/// Replaces the working set in the snapshot folder `folder` of the store at `root`.
pub(crate) fn replace_file(root: &Path, folder: &Path, name: &str, content: &[u8]) -> Result<()> {
    let temp = TempFolder::create(root)?;
    files::write(&temp.path().join(name), content)?;
    files::rename(&temp.path().join(name), &folder.join(name))?;
    files::sync_folder(folder)
}
