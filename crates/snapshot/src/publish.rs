//! Publishing: everything is written and flushed under a temporary name, then one rename.

use std::collections::HashMap;
use std::path::Path;

use serde::Serialize;

use crate::draft::DraftPages;
use crate::files::{self, StoreLock, TempFolder};
use crate::header::{Header, MAX_IMAGE_BYTES};
use crate::manifest::LayerInfo;
use crate::pack::{Pack, PageKey};
use crate::pack_writer::PackWriter;
use crate::ranges;
use crate::sharing::{Known, Lent};
use crate::snapshot::{Folder, MANIFEST};
use crate::state_file::StateFile;
use crate::table::PageTable;
use crate::{
    Compression, Digest, Draft, Error, FORMAT_VERSION, FunctionName, MAX_LAYER_DEPTH, Manifest,
    MemoryDraft, PAGE_BYTES, Result, SnapshotId, SnapshotRef, Store, WorkingSet, codec,
};

/// A draft whose state is encoded.
struct Encoded<'a> {
    created_unix_ms: u64,
    host: String,
    config: serde_json::Value,
    state: Vec<u8>,
    pages: DraftPages<'a>,
    compression: Compression,
    working_set: Option<&'a WorkingSet>,
}

/// Publishes `draft` in `store`.
pub(crate) fn publish<S: Serialize>(
    store: &Store,
    function: &FunctionName,
    draft: Draft<'_, S>,
) -> Result<SnapshotId> {
    let state = codec::encode(draft.state)
        .map_err(|reason| refused(format!("its state cannot be encoded ({reason})")))?;
    let image_bytes = draft.image.len() as u64;
    if image_bytes > MAX_IMAGE_BYTES {
        let reason = format!("its image has {image_bytes} bytes of at most {MAX_IMAGE_BYTES}");
        return Err(refused(reason));
    }
    let encoded = Encoded {
        created_unix_ms: draft.created_unix_ms,
        host: draft.host,
        config: draft.config,
        state,
        pages: DraftPages::new(draft.memory, draft.image)?,
        compression: draft.compression,
        working_set: None,
    };
    // The parent must stay until the layer is there.
    let lease = draft.parent.as_ref();
    let lease = lease.map(|parent| store.lease(&parent.function, parent.id));
    let _lease = lease.transpose()?;
    let layer = draft.parent.map(|parent| layer_on(store, parent));
    match layer.transpose()? {
        Some(layer) if layer.depth > MAX_LAYER_DEPTH => {
            write(store, function, encoded, Sharing::Nothing)
        }
        Some(layer) => write(store, function, encoded, Sharing::Layer(layer)),
        None => write(store, function, encoded, Sharing::Equal),
    }
}

/// Publishes the content of `folder` anew, with all its pages and no layer.
pub(crate) fn flatten(
    store: &Store,
    folder: Folder,
    compression: Compression,
) -> Result<SnapshotId> {
    let function = folder.manifest.function.clone();
    let (memory, image) = (&folder.memory, folder.image.read()?);
    let mut read = |first_page: u64, buf: &mut [u8]| {
        let read = memory.read_verified(first_page, buf);
        read.map_err(std::io::Error::other)
    };
    let memory = MemoryDraft {
        pages: memory.pages(),
        resident: memory.data().to_vec(),
        read: &mut read,
    };
    let encoded = Encoded {
        created_unix_ms: folder.manifest.created_unix_ms,
        host: folder.manifest.host,
        config: folder.manifest.config,
        state: folder.encoded_state,
        pages: DraftPages::new(memory, &image)?,
        compression,
        working_set: folder.working_set.as_ref().ok().and_then(Option::as_ref),
    };
    write(store, &function, encoded, Sharing::Flat(folder.id))
}

/// Why a snapshot that is not the newest of its function is not flattened.
pub(crate) fn not_newest(function: &FunctionName, id: SnapshotId) -> Error {
    let reason = format!("{id} is not the newest snapshot of {function}: flatten that one");
    Error::refused("flatten the snapshot", reason)
}

fn refused(reason: String) -> Error {
    Error::refused("publish the snapshot", reason)
}

/// What a layer on `parent` says of itself.
fn layer_on(store: &Store, parent: SnapshotRef) -> Result<LayerInfo> {
    let folder = store.folder(&parent.function, parent.id)?;
    let below = folder.manifest.layer.map_or(0, |layer| layer.depth);
    let depth = below.saturating_add(1);
    Ok(LayerInfo { parent, depth })
}

/// What a snapshot may take from others.
enum Sharing {
    /// Whatever is equal.
    Equal,
    /// Whatever is equal, the parent's pages first.
    Layer(LayerInfo),
    Nothing,
    /// Nothing, and it takes the place of this snapshot of the function, which must be the newest.
    Flat(SnapshotId),
}

fn write(
    store: &Store,
    function: &FunctionName,
    mut draft: Encoded<'_>,
    sharing: Sharing,
) -> Result<SnapshotId> {
    let temp = TempFolder::create(store.path())?;
    let known = match &sharing {
        Sharing::Equal => Known::find(store, function, None)?,
        Sharing::Layer(layer) => Known::find(store, function, Some(&layer.parent))?,
        Sharing::Nothing | Sharing::Flat(_) => Known::default(),
    };
    let lent = known.lend(temp.path(), &mut draft.pages)?;
    let table = write_pages(temp.path(), &mut draft.pages, lent, draft.compression)?;

    let memory_pages = draft.pages.memory_pages();
    let image = draft.pages.image();
    let state_bytes = draft.state.len() as u64;
    let mut body = draft.state;
    body.extend_from_slice(&table.encode());
    let (image_digest, body_digest) = (Digest::of(image), Digest::of(&body));

    // Under the lock, two publishers never take the same number, and no remover takes the folder
    // or the parent away between the steps.
    let _lock = StoreLock::acquire(store.path())?;
    let ids = store.ids(function)?;
    let layer = match sharing {
        Sharing::Equal | Sharing::Nothing => None,
        Sharing::Layer(layer) => {
            let LayerInfo { parent, .. } = &layer;
            let folder = store.snapshot_folder(&parent.function, parent.id);
            if !files::is_folder(&folder)? {
                return Err(store.unknown_snapshot(&parent.function, parent.id));
            }
            Some(layer)
        }
        // What was published or removed meanwhile must not be undone.
        Sharing::Flat(source) if store.newest_folder(function, &ids) != Some(source) => {
            return Err(not_newest(function, source));
        }
        Sharing::Flat(_) => None,
    };
    let sequence = ids.last().map_or(1, |last| last.sequence() + 1);
    let content = (
        &body_digest,
        &image_digest,
        function,
        draft.created_unix_ms,
        &draft.host,
        &draft.config,
    );
    let id = serde_json::to_vec(&content)
        .map_err(|error| refused(format!("its configuration cannot be written ({error})")))
        .map(|content| SnapshotId::new(sequence, &Digest::of(&content)))?
        .ok_or_else(|| refused("the function has used up all sequence numbers".into()))?;

    let manifest = Manifest {
        format_version: FORMAT_VERSION,
        function: function.clone(),
        id,
        created_unix_ms: draft.created_unix_ms,
        host: draft.host,
        memory_bytes: memory_pages * PAGE_BYTES as u64,
        data_pages: ranges::count(&table.data(memory_pages)),
        state_bytes,
        image_bytes: image.len() as u64,
        image_digest,
        layer,
        config: draft.config,
    }
    .encode()?;
    let header = Header {
        format_version: FORMAT_VERSION,
        memory_pages,
        state_bytes,
        table_entries: table.runs.len() as u64,
        table_digests: table.packs.len() as u64,
        manifest_bytes: manifest.len() as u64,
        image_bytes: image.len() as u64,
        manifest_digest: Digest::of(&manifest),
        image_digest,
        body_digest,
    };
    files::write(&temp.path().join(MANIFEST), &manifest)?;
    let state_file = [header.encode().as_slice(), &body].concat();
    files::write(&temp.path().join(StateFile::NAME), &state_file)?;
    if let Some(set) = draft.working_set {
        let content = set.encode(memory_pages, &body_digest)?;
        files::write(&temp.path().join(WorkingSet::NAME), &content)?;
    }
    put_in_place(store, function, id, temp)?;
    Ok(id)
}

/// Writes the pages that `lent` does not have into a pack of their own, and drops the links that
/// were not needed.
fn write_pages(
    folder: &Path,
    pages: &mut DraftPages<'_>,
    mut lent: Lent,
    compression: Compression,
) -> Result<PageTable> {
    let own = lent.digests().len() as u32;
    let mut own_slots: HashMap<Digest, u64> = HashMap::new();
    let mut writer = PackWriter::new(folder, compression);
    let mut table = PageTable::default();
    pages.for_each(folder, |page, bytes| {
        let digest = Digest::of(bytes);
        let key = PageKey::from(&digest);
        let (pack, slot) = if let Some(place) = lent.find(&key, bytes) {
            place
        } else if let Some(slot) = own_slots.get(&digest) {
            (own, *slot)
        } else {
            let slot = writer.add(bytes, key)?;
            own_slots.insert(digest, slot);
            (own, slot)
        };
        table.push(page, pack, slot);
        Ok(())
    })?;

    let digests: Vec<Option<Digest>> = lent.digests().copied().map(Some).collect();
    let digests = [digests, vec![writer.finish()?]].concat();
    // Numbers are given anew: some packs may have lent nothing.
    let mut numbers = vec![None; digests.len()];
    for run in &mut table.runs {
        let place = run.pack as usize;
        run.pack = match numbers[place] {
            Some(number) => number,
            None => {
                let number = table.packs.len() as u32;
                table.packs.extend(digests[place]);
                *numbers[place].insert(number)
            }
        };
    }
    // A pack of our own may have replaced the link to a damaged one with the same pages.
    for digest in digests.iter().flatten() {
        if !table.packs.contains(digest) {
            let path = folder.join(Pack::name(digest));
            std::fs::remove_file(&path).map_err(Error::io("remove", &path))?;
        }
    }
    Ok(table)
}

/// The one rename, with the folders on disk before and after.
pub(crate) fn put_in_place(
    store: &Store,
    function: &FunctionName,
    id: SnapshotId,
    temp: TempFolder,
) -> Result<()> {
    files::sync_folder(temp.path())?;
    let function_folder = store.function_folder(function);
    files::create_folders(&function_folder)?;
    let place = function_folder.join(id.to_string());
    temp.rename(&place)?;
    let flushed = [function_folder.as_path(), store.path()]
        .into_iter()
        .try_for_each(files::sync_folder);
    if flushed.is_err() {
        // Whoever is told of a failure must not find the snapshot later.
        let _ = TempFolder::take(store.path(), &place);
    }
    flushed
}
