//! The documents of an OCI image layout (image-spec 1.1), as far as they concern snapshots.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::error::quoted;
use crate::sha256::Sha256;
use crate::{Error, Result};

/// The version that `oci-layout` has to name: it is the layout's, and 1.0.0 in image-spec 1.1 too.
pub(crate) const LAYOUT_VERSION: &str = "1.0.0";

pub(crate) const INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";

/// The annotation that names a file.
pub(crate) const TITLE: &str = "org.opencontainers.image.title";

/// The annotation that has a tag.
const TAG: &str = "org.opencontainers.image.ref.name";

/// The most characters of a tag.
const MAX_TAG_CHARS: usize = 128;

/// How many tags an error names.
const MOST_TOLD_TAGS: usize = 10;

/// What `oci-layout` says.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct LayoutMark {
    pub(crate) image_layout_version: String,
}

/// What points to a blob.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    pub(crate) media_type: String,
    pub(crate) digest: OciDigest,
    pub(crate) size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) artifact_type: Option<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) annotations: BTreeMap<String, String>,
}

impl Descriptor {
    pub(crate) fn tag(&self) -> Option<&str> {
        self.annotations.get(TAG).map(String::as_str)
    }

    /// The name of the file that it points to.
    pub(crate) fn title(&self) -> Option<&str> {
        self.annotations.get(TITLE).map(String::as_str)
    }

    /// One of a file.
    pub(crate) fn of_file(media_type: &str, digest: Sha256, size: u64, title: &str) -> Self {
        Self {
            media_type: media_type.to_owned(),
            digest: OciDigest(digest),
            size,
            artifact_type: None,
            annotations: BTreeMap::from([(TITLE.to_owned(), title.to_owned())]),
        }
    }

    /// One of an image manifest, for an index.
    pub(crate) fn of_manifest(manifest: &[u8], artifact_type: &str, tag: &str) -> Self {
        Self {
            media_type: MANIFEST_TYPE.to_owned(),
            digest: OciDigest(Sha256::of(manifest)),
            size: manifest.len() as u64,
            artifact_type: Some(artifact_type.to_owned()),
            annotations: BTreeMap::from([(TAG.to_owned(), tag.to_owned())]),
        }
    }
}

/// A SHA-256 digest with its algorithm before it, the only one that is understood.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct OciDigest(pub(crate) Sha256);

impl TryFrom<String> for OciDigest {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.strip_prefix("sha256:")
            .and_then(Sha256::from_hex)
            .map(Self)
            .ok_or_else(|| format!("{text:.80?} is not a SHA-256 digest"))
    }
}

impl From<OciDigest> for String {
    fn from(digest: OciDigest) -> Self {
        format!("sha256:{}", digest.0)
    }
}

/// An image manifest.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ImageManifest {
    pub(crate) schema_version: u32,
    pub(crate) media_type: String,
    pub(crate) artifact_type: String,
    pub(crate) config: Descriptor,
    pub(crate) layers: Vec<Descriptor>,
}

/// Checks that `tag` can be one.
pub(crate) fn check_tag(tag: &str) -> Result<()> {
    let is_good = |c: char| c.is_ascii_alphanumeric() || "._:@+/-".contains(c);
    if (1..=MAX_TAG_CHARS).contains(&tag.len())
        && tag.chars().all(is_good)
        && tag.starts_with(|c: char| c.is_ascii_alphanumeric())
    {
        return Ok(());
    }
    Err(Error::BadTag {
        tag: tag.chars().take(80).collect(),
    })
}

/// `index.json`, in which others may have things that are unknown here.
pub(crate) struct Index {
    place: String,
    document: Value,
}

impl Index {
    pub(crate) fn new(place: String) -> Self {
        let document = json!({ "schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": [] });
        Self { place, document }
    }

    pub(crate) fn parse(json: &[u8], place: String) -> Result<Self> {
        let document: Value = serde_json::from_slice(json).map_err(|error| {
            Error::not_an_export(
                &place,
                format!("its index.json cannot be read ({})", quoted(&error)),
            )
        })?;
        if document["schemaVersion"] != 2 || !document["manifests"].is_array() {
            let reason = "its index.json is no image index";
            return Err(Error::not_an_export(&place, reason));
        }
        Ok(Self { place, document })
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        format!("{:#}\n", self.document).into_bytes()
    }

    fn entries(&self) -> impl Iterator<Item = Descriptor> {
        let entries = self.document["manifests"].as_array().into_iter().flatten();
        // What is not understood belongs to others.
        entries.filter_map(|entry| Descriptor::deserialize(entry).ok())
    }

    /// Has the tag of `added` point to it.
    pub(crate) fn add(&mut self, added: &Descriptor, replace: bool) -> Result<()> {
        let tag = added.tag().unwrap_or_default();
        let is_tagged_so = |entry: &Value| entry["annotations"][TAG] == tag;
        let place = self.place.clone();
        let Some(entries) = self.document["manifests"].as_array_mut() else {
            return Ok(()); // as was made sure of
        };
        if let Some(there) = entries.iter().find(|entry| is_tagged_so(entry)) {
            if there["digest"] == String::from(added.digest) {
                return Ok(());
            }
            if !replace {
                let tag = tag.to_owned();
                return Err(Error::TagTaken { place, tag });
            }
            entries.retain(|entry| !is_tagged_so(entry));
        }
        let entry = serde_json::to_value(added).map_err(|error| {
            Error::damaged(&place, format!("it takes no entry ({})", quoted(&error)))
        })?;
        entries.push(entry);
        Ok(())
    }

    /// The manifest that `tag` names, which may be a digest; without a tag, the only one.
    pub(crate) fn choose(&self, tag: Option<&str>) -> Result<Descriptor> {
        let entries: Vec<_> = self
            .entries()
            .filter(|entry| entry.media_type == MANIFEST_TYPE)
            .collect();
        let place = self.place.clone();
        let Some(tag) = tag else {
            // One snapshot may have several tags.
            let Some(first) = entries.first() else {
                return Err(Error::not_an_export(
                    &place,
                    "its index.json names no snapshot",
                ));
            };
            if entries.iter().any(|entry| entry.digest != first.digest) {
                return Err(Error::Ambiguous {
                    place,
                    snapshots: entries.len(),
                    tags: tags(&entries),
                });
            }
            return Ok(first.clone());
        };
        let mut found = entries
            .iter()
            .filter(|entry| entry.tag() == Some(tag) || String::from(entry.digest) == tag);
        let first = found.next().ok_or_else(|| Error::UnknownTag {
            place: place.clone(),
            tag: tag.chars().take(80).collect(),
            tags: tags(&entries),
        })?;
        if found.any(|other| other.digest != first.digest) {
            let what = format!("its index.json has several snapshots tagged {tag}");
            return Err(Error::damaged(&place, what));
        }
        Ok(first.clone())
    }
}

/// Which tags there are, as the end of a sentence.
fn tags(entries: &[Descriptor]) -> String {
    let mut tags: Vec<_> = entries
        .iter()
        .filter_map(Descriptor::tag)
        .filter(|tag| check_tag(tag).is_ok())
        .collect();
    tags.sort_unstable();
    tags.dedup();
    match tags.len() {
        0 => "are no tags".to_owned(),
        1 => format!("is {}", tags[0]),
        count if count > MOST_TOLD_TAGS => {
            format!(
                "are {} and {} more",
                tags[..MOST_TOLD_TAGS].join(", "),
                count - MOST_TOLD_TAGS
            )
        }
        _ => format!("are {}", tags.join(", ")),
    }
}
