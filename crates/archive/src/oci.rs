//! Snapshots in an OCI image layout: a folder that registries' tools can copy.

use std::path::Path;

use dormouse_snapshot::{FORMAT_VERSION, SnapshotRef, Store};

use crate::blobs::LayoutFolder;
use crate::contents::{Identity, Incoming, Item, MANIFEST, MAX_MANIFEST_BYTES, Outgoing};
use crate::error::quoted;
use crate::layout::{
    Descriptor, ImageManifest, Index, LAYOUT_VERSION, LayoutMark, MANIFEST_TYPE, check_tag,
};
use crate::media::Media;
use crate::{Error, Existing, Exported, Imported, Progress, Result};

const LAYOUT_MARK: &str = "oci-layout";
const INDEX: &str = "index.json";

/// The most bytes of `oci-layout`.
const MAX_MARK_BYTES: u64 = 4096;

/// The most bytes of `index.json` and of an image manifest (registries' usual limit).
const MAX_DOCUMENT_BYTES: u64 = 4 << 20;

/// Exports a snapshot into the OCI image layout `folder`, which is created where it is missing and
/// added to where it is there. Blobs that it has are not written again. The snapshot's `tag` is
/// `NAME@ID` where none is given.
///
/// # Errors
/// [`Error::BadTag`]; [`Error::TagTaken`] when another snapshot has the tag and is to keep it;
/// [`Error::Occupied`], [`Error::NotAnExport`] or [`Error::Damaged`] when the folder is no layout
/// that can be added to; [`Error::Store`] when there is no such snapshot or it is not good;
/// [`Error::Io`] when it cannot be read or written.
pub fn export_oci(
    store: &Store,
    snapshot: &SnapshotRef,
    folder: &Path,
    tag: Option<&str>,
    existing: Existing,
    progress: Progress<'_>,
) -> Result<Exported> {
    let tag = tag.map_or_else(|| snapshot.to_string(), str::to_owned);
    check_tag(&tag)?;
    let layout = LayoutFolder::at(folder);
    // Nothing is created in a folder that is something else.
    check_own(&layout)?;
    let mut outgoing = Outgoing::open(store, snapshot, progress)?;
    let _lock = layout.prepare()?;
    // Somebody else may have written since.
    check_own(&layout)?;
    let mut index = match layout.read(INDEX, MAX_DOCUMENT_BYTES)? {
        Some(json) => Index::parse(&json, layout.place())?,
        None => Index::new(layout.place()),
    };

    let items = outgoing.items.clone();
    let media = media_of(&outgoing, &layout)?;
    let json = encode(&image_manifest(&items, media, &layout)?, &layout)?;
    let entry = Descriptor::of_manifest(&json, media.artifact, &tag);
    // Before anything is written: a tag that is taken leaves the layout as it is.
    index.add(&entry, existing == Existing::Replace)?;

    let mut written_bytes = 0;
    for (number, item) in items.iter().enumerate() {
        if layout.has_blob(&item.sha256, item.bytes) {
            outgoing.skip(number);
            continue;
        }
        layout.write_blob(&item.sha256, outgoing.content(number))?;
        written_bytes += item.bytes;
    }
    let mark = LayoutMark {
        image_layout_version: LAYOUT_VERSION.to_owned(),
    };
    let (mark, index) = (encode(&mark, &layout)?, index.encode());
    layout.write_blob(&entry.digest.0, json.as_slice())?;
    layout.write(LAYOUT_MARK, mark.as_slice())?;
    // Last: it is what makes the snapshot part of the layout.
    layout.write(INDEX, index.as_slice())?;
    written_bytes += (json.len() + mark.len() + index.len()) as u64;
    Ok(Exported {
        bytes: outgoing.bytes,
        written_bytes,
    })
}

/// Imports a snapshot from the OCI image layout `folder`: the one that `tag` names, which may also
/// be the digest of its image manifest, or the only one that there is.
///
/// # Errors
/// [`Error::UnknownTag`], [`Error::Ambiguous`] when the tag does not tell; otherwise as
/// [`import_from`](crate::import_from).
pub fn import_oci(
    store: &Store,
    folder: &Path,
    tag: Option<&str>,
    progress: Progress<'_>,
) -> Result<Imported> {
    let layout = LayoutFolder::at(folder);
    let place = layout.place();
    check_mark(&layout)?;
    layout.check_folders()?;
    let Some(json) = layout.read(INDEX, MAX_DOCUMENT_BYTES)? else {
        return Err(Error::not_an_export(&place, "it has no index.json"));
    };
    let entry = Index::parse(&json, place.clone())?.choose(tag)?;
    let json = layout.read_blob(&entry.digest.0, entry.size, MAX_DOCUMENT_BYTES)?;
    let manifest: ImageManifest = serde_json::from_slice(&json).map_err(|error| {
        Error::not_an_export(
            &place,
            format!("its image manifest is of no snapshot ({})", quoted(&error)),
        )
    })?;
    let media = check_manifest(&manifest, &place)?;

    let config = &manifest.config;
    let json = layout.read_blob(&config.digest.0, config.size, MAX_MANIFEST_BYTES)?;
    let identity: Identity = serde_json::from_slice(&json).map_err(|error| {
        Error::damaged(
            &place,
            format!("its manifest cannot be read ({})", quoted(&error)),
        )
    })?;
    let items = items(&manifest, media, &place)?;
    let snapshot = SnapshotRef {
        function: identity.function,
        id: identity.id,
    };
    let mut incoming = Incoming::begin(store, &place, snapshot, &items, progress)?;
    for item in &items {
        incoming.receive(item, layout.open_blob(&item.sha256, item.bytes)?)?;
    }
    incoming.finish()
}

/// Makes sure that `layout` is one that can be added to.
fn check_own(layout: &LayoutFolder) -> Result<()> {
    if layout.is_fresh()? {
        return Ok(());
    }
    if layout.read(LAYOUT_MARK, MAX_MARK_BYTES)?.is_none() {
        return Err(Error::Occupied {
            path: layout.path().to_owned(),
        });
    }
    check_mark(layout)
}

fn check_mark(layout: &LayoutFolder) -> Result<()> {
    let place = layout.place();
    let Some(json) = layout.read(LAYOUT_MARK, MAX_MARK_BYTES)? else {
        return Err(Error::not_an_export(&place, "it has no file oci-layout"));
    };
    match serde_json::from_slice::<LayoutMark>(&json) {
        Ok(mark) if mark.image_layout_version == LAYOUT_VERSION => Ok(()),
        Ok(mark) => {
            let found = mark.image_layout_version;
            let reason = format!("its layout version is {found:.20?} instead of {LAYOUT_VERSION}");
            Err(Error::not_an_export(&place, reason))
        }
        Err(error) => {
            let reason = format!("its oci-layout cannot be read ({})", quoted(&error));
            Err(Error::not_an_export(&place, reason))
        }
    }
}

/// The media types for a snapshot that is exported, by what its manifest says.
fn media_of(outgoing: &Outgoing<'_>, layout: &LayoutFolder) -> Result<&'static Media> {
    let json = outgoing.manifest()?;
    let version = serde_json::from_slice::<Identity>(&json).map(|found| found.format_version);
    let media = version.ok().and_then(Media::of_version);
    media.ok_or_else(|| Error::damaged(&layout.place(), "the snapshot's manifest is unknown"))
}

fn image_manifest(items: &[Item], media: &Media, layout: &LayoutFolder) -> Result<ImageManifest> {
    let descriptor = |item: &Item| {
        Descriptor::of_file(
            media.of_file(&item.name),
            item.sha256,
            item.bytes,
            &item.name,
        )
    };
    let (config, layers): (Vec<_>, Vec<_>) = items.iter().partition(|item| item.name == MANIFEST);
    let config = config.first().map(|item| descriptor(item));
    Ok(ImageManifest {
        schema_version: 2,
        media_type: MANIFEST_TYPE.to_owned(),
        artifact_type: media.artifact.to_owned(),
        config: config
            .ok_or_else(|| Error::damaged(&layout.place(), "the snapshot has no manifest"))?,
        layers: layers.into_iter().map(descriptor).collect(),
    })
}

fn encode<T: serde::Serialize>(document: &T, layout: &LayoutFolder) -> Result<Vec<u8>> {
    let mut json = serde_json::to_vec_pretty(document).map_err(|error| {
        let what = format!("its documents cannot be written ({})", quoted(&error));
        Error::damaged(&layout.place(), what)
    })?;
    json.push(b'\n');
    Ok(json)
}

/// Makes sure that an image manifest is one of a snapshot, and tells the media types of its parts.
fn check_manifest(manifest: &ImageManifest, place: &str) -> Result<&'static Media> {
    let artifact = &manifest.artifact_type;
    if manifest.schema_version != 2 || manifest.media_type != MANIFEST_TYPE {
        return Err(Error::not_an_export(
            place,
            "its image manifest is of no known kind",
        ));
    }
    let Some(media) = Media::of_artifact(artifact) else {
        return Err(match Media::version_of(artifact) {
            Some(found) if found > FORMAT_VERSION => Error::TooNew {
                place: place.to_owned(),
                found,
                newest: FORMAT_VERSION,
            },
            _ => Error::not_an_export(place, format!("it holds a {artifact:.80?}")),
        });
    };
    if manifest.config.media_type != media.manifest {
        let what = format!("its config is a {:.80?}", manifest.config.media_type);
        return Err(Error::damaged(place, what));
    }
    Ok(media)
}

/// The files that an image manifest lists, with names and types that go together.
fn items(manifest: &ImageManifest, media: &Media, place: &str) -> Result<Vec<Item>> {
    let layers = manifest.layers.iter().map(|layer| {
        let Some(title) = layer.title() else {
            return Err(Error::damaged(place, "one of its layers has no title"));
        };
        if media.of_file(title) != layer.media_type {
            let what = format!("its file {title:.80?} is a {:.80?}", layer.media_type);
            return Err(Error::damaged(place, what));
        }
        Ok(item(layer, title))
    });
    std::iter::once(Ok(item(&manifest.config, MANIFEST)))
        .chain(layers)
        .collect()
}

fn item(descriptor: &Descriptor, name: &str) -> Item {
    Item {
        name: name.to_owned(),
        bytes: descriptor.size,
        sha256: descriptor.digest.0,
    }
}
