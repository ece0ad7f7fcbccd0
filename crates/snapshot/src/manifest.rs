//! What people read about a snapshot.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::state_file::StateFile;
use crate::{
    Digest, Error, FunctionName, MAX_LAYER_DEPTH, PAGE_BYTES, Result, SnapshotId, SnapshotRef,
};

/// The most bytes that a manifest may have.
pub(crate) const MAX_MANIFEST_BYTES: u64 = 1 << 20;

/// A snapshot's `manifest.json`: written for people and scripts, and covered by a digest, so
/// that what was read from it can be relied on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Manifest {
    /// The version of the on-disk format.
    pub format_version: u32,
    /// The function that the snapshot belongs to.
    pub function: FunctionName,
    /// The snapshot's id, also the name of its folder.
    pub id: SnapshotId,
    /// When the snapshot was taken, in milliseconds since 1970 (UTC).
    pub created_unix_ms: u64,
    /// The host that it was taken on, in the words of whoever published it.
    pub host: String,
    /// Size of the guest's memory.
    pub memory_bytes: u64,
    /// Pages of it that are not zero, and so are stored.
    pub data_pages: u64,
    /// Size of the encoded machine state.
    pub state_bytes: u64,
    /// Size of the function's image.
    pub image_bytes: u64,
    /// BLAKE3-256 of the function's image.
    pub image_digest: Digest,
    /// What the snapshot is a layer on, if it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layer: Option<LayerInfo>,
    /// The function's configuration, free-form.
    pub config: serde_json::Value,
}

/// A snapshot as a layer: what differs from its parent is stored with it, the rest with the parent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerInfo {
    /// The snapshot that it was made from.
    pub parent: SnapshotRef,
    /// How many snapshots are below it.
    pub depth: u32,
}

a_change_here_is_a_new_format_version! {
    Manifest {
        format_version: u32,
        function: FunctionName,
        id: SnapshotId,
        created_unix_ms: u64,
        host: String,
        memory_bytes: u64,
        data_pages: u64,
        state_bytes: u64,
        image_bytes: u64,
        image_digest: Digest,
        layer: Option<LayerInfo>,
        config: serde_json::Value,
    }
}
a_change_here_is_a_new_format_version! {
    LayerInfo { parent: SnapshotRef, depth: u32 }
}

impl Manifest {
    pub(crate) fn encode(&self) -> Result<Vec<u8>> {
        let refused = |reason: String| Error::refused("write the manifest", reason);
        let mut json = serde_json::to_vec_pretty(self).map_err(|e| refused(e.to_string()))?;
        json.push(b'\n');
        if json.len() as u64 > MAX_MANIFEST_BYTES {
            let bytes = json.len();
            return Err(refused(format!(
                "it takes {bytes} bytes of at most {MAX_MANIFEST_BYTES}"
            )));
        }
        Ok(json)
    }

    /// Parses `json`, whose digest was compared with the state file's, and makes sure that it
    /// tells of this very snapshot.
    pub(crate) fn decode(
        json: &[u8],
        state_file: &StateFile,
        function: &FunctionName,
        id: &SnapshotId,
        path: &Path,
    ) -> Result<Self> {
        let manifest: Self = serde_json::from_slice(json)
            .map_err(|error| Error::damaged(path, format!("it is not a manifest ({error})")))?;
        let differs = |what: &str, found: &dyn std::fmt::Display, here: &dyn std::fmt::Display| {
            Err(Error::damaged(
                path,
                format!("it tells of {what} {found}, but this is {here}"),
            ))
        };
        if manifest.function != *function {
            return differs("function", &manifest.function, function);
        }
        if manifest.id != *id {
            return differs("snapshot", &manifest.id, id);
        }
        let header = &state_file.header;
        if manifest.format_version != header.format_version {
            return differs("format", &manifest.format_version, &header.format_version);
        }
        if manifest.image_digest != header.image_digest {
            return differs("image", &manifest.image_digest, &header.image_digest);
        }
        for (what, found, here) in [
            (
                "memory bytes",
                manifest.memory_bytes,
                header.memory_pages * PAGE_BYTES as u64,
            ),
            ("data pages", manifest.data_pages, state_file.data_pages()),
            ("state bytes", manifest.state_bytes, header.state_bytes),
            ("image bytes", manifest.image_bytes, header.image_bytes),
        ] {
            if found != here {
                return differs(what, &found, &here);
            }
        }
        if let Some(LayerInfo { depth, .. }) = &manifest.layer
            && !(1..=MAX_LAYER_DEPTH).contains(depth)
        {
            let what =
                format!("it is a layer of depth {depth}, possible are 1 to {MAX_LAYER_DEPTH}");
            return Err(Error::damaged(path, what));
        }
        Ok(manifest)
    }
}
