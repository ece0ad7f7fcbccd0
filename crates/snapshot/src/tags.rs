//! Tags: names that people give to snapshots of a function, kept in the function's `tags.json`.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::files::{self, StoreLock};
use crate::{Digest, Error, FunctionName, Result, SnapshotId, SnapshotRef, Store};

/// The file in a function's folder.
const TAGS: &str = "tags.json";

/// The version of that file's layout.
const VERSION: u32 = 1;

/// How many tags a function may have.
const MAX_TAGS: usize = 256;

/// The most bytes that the file may have: more than it takes for as many tags as there may be.
const MAX_TAGS_BYTES: u64 = 1 << 16;

/// A name for one snapshot of a function: 1 to 63 of `a`–`z`, `0`–`9`, `.`, `-` and `_`, starting
/// with a letter or a digit.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Tag(String);

impl Tag {
    /// The most characters a tag may have.
    pub const MAX_CHARS: usize = 63;

    /// Checks `tag`.
    ///
    /// # Errors
    /// [`Error::InvalidTag`] when it breaks one of the rules.
    pub fn new(tag: &str) -> Result<Self> {
        let is_good = |c: char| matches!(c, 'a'..='z' | '0'..='9' | '.' | '-' | '_');
        if tag.is_empty()
            || tag.chars().count() > Self::MAX_CHARS
            || !tag.chars().all(is_good)
            || tag.starts_with(['.', '-', '_'])
        {
            return Err(Error::InvalidTag {
                tag: tag.chars().take(80).collect(),
            });
        }
        Ok(Self(tag.to_owned()))
    }

    /// The tag as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for Tag {
    type Err = Error;

    fn from_str(tag: &str) -> Result<Self> {
        Self::new(tag)
    }
}

impl TryFrom<String> for Tag {
    type Error = Error;

    fn try_from(tag: String) -> Result<Self> {
        Self::new(&tag)
    }
}

impl From<Tag> for String {
    fn from(tag: Tag) -> Self {
        tag.0
    }
}

/// The content of `tags.json`.
#[derive(Serialize, Deserialize)]
struct TagsFile {
    version: u32,
    tags: BTreeMap<Tag, SnapshotId>,
    /// Of the tags, as [`digest_of`] has it.
    digest: Digest,
}

/// The digest of a line `TAG ID` for each tag, by tag.
fn digest_of(tags: &BTreeMap<Tag, SnapshotId>) -> Digest {
    let lines: String = tags
        .iter()
        .map(|(tag, id)| format!("{tag} {id}\n"))
        .collect();
    Digest::of(lines.as_bytes())
}

fn read(path: &Path) -> Result<BTreeMap<Tag, SnapshotId>> {
    let bad = |reason: String| Error::BadTags {
        path: path.to_owned(),
        reason,
    };
    let (file, file_bytes) = match files::open(path) {
        Err(error) if error.is_not_found() => return Ok(BTreeMap::new()),
        Err(Error::Damaged { what, .. }) => return Err(bad(what)),
        opened => opened?,
    };
    if file_bytes > MAX_TAGS_BYTES {
        let reason = format!("it has {file_bytes} bytes of at most {MAX_TAGS_BYTES}");
        return Err(bad(reason));
    }
    let json = files::read_start(&file, file_bytes as usize, path)?;
    let content: TagsFile = serde_json::from_slice(&json)
        .map_err(|error| bad(format!("not a list of tags: {error}")))?;
    if content.version != VERSION {
        let version = content.version;
        return Err(bad(format!("its version is {version}, not {VERSION}")));
    }
    if content.tags.len() > MAX_TAGS {
        let tags = content.tags.len();
        return Err(bad(format!("it has {tags} tags of at most {MAX_TAGS}")));
    }
    if content.digest != digest_of(&content.tags) {
        return Err(bad("its tags do not match its digest".into()));
    }
    Ok(content.tags)
}

impl Store {
    /// The tags of `function`, those included whose snapshot is gone.
    ///
    /// # Errors
    /// [`Error::BadTags`] when the file is not what it should be, [`Error::Io`] when it cannot be
    /// read. A function without tags, or one that is not there, has none.
    pub fn tags(&self, function: &FunctionName) -> Result<BTreeMap<Tag, SnapshotId>> {
        read(&self.function_folder(function).join(TAGS))
    }

    /// Gives `tag` to `snapshot`, and tells which snapshot of the function had it before. A
    /// snapshot may have any number of tags.
    ///
    /// # Errors
    /// [`Error::UnknownSnapshot`] when there is none, [`Error::Refused`] when the function has as
    /// many tags as it may have, 256; [`Error::BadTags`] or [`Error::Io`] when the tags can be
    /// neither read nor written.
    pub fn tag(&self, snapshot: &SnapshotRef, tag: &Tag) -> Result<Option<SnapshotId>> {
        let _lock = StoreLock::acquire(self.path())?;
        let SnapshotRef { function, id } = snapshot;
        if self.ids(function)?.binary_search(id).is_err() {
            return Err(self.unknown_snapshot(function, *id));
        }
        let mut tags = self.tags(function)?;
        let before = tags.insert(tag.clone(), *id);
        if tags.len() > MAX_TAGS {
            let reason = format!("{function} has {MAX_TAGS} tags already: remove one first");
            return Err(Error::refused("set the tag", reason));
        }
        self.write_tags(function, tags)?;
        Ok(before)
    }

    /// Takes `tag` away from the snapshot that has it, and tells which that was.
    ///
    /// # Errors
    /// [`Error::UnknownTag`] when there is none, otherwise as [`tag`](Self::tag).
    pub fn untag(&self, function: &FunctionName, tag: &Tag) -> Result<SnapshotId> {
        let _lock = StoreLock::acquire(self.path())?;
        let mut tags = self.tags(function)?;
        let removed = tags.remove(tag);
        let id = removed.ok_or_else(|| self.unknown_tag(function, tag))?;
        self.write_tags(function, tags)?;
        Ok(id)
    }

    /// Replaces the tags of `function`. Only for the holder of the store's lock.
    pub(crate) fn write_tags(
        &self,
        function: &FunctionName,
        tags: BTreeMap<Tag, SnapshotId>,
    ) -> Result<()> {
        let file = TagsFile {
            version: VERSION,
            digest: digest_of(&tags),
            tags,
        };
        let mut json = serde_json::to_vec_pretty(&file)
            .map_err(|error| Error::refused("write the tags", error.to_string()))?;
        json.push(b'\n');
        files::replace(self.path(), &self.function_folder(function), TAGS, &json)
    }

    pub(crate) fn unknown_tag(&self, function: &FunctionName, tag: &Tag) -> Error {
        Error::UnknownTag {
            function: function.clone(),
            tag: tag.clone(),
            store: self.path().to_path_buf(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_in_the_format_is_right() {
        let format = include_str!("../../../snapshots/FORMAT.md");
        let example = format.split("```json").nth(1).unwrap();
        let example = example.split("```").next().unwrap();
        let file: TagsFile = serde_json::from_str(example).unwrap();
        assert_eq!(file.version, VERSION);
        assert_eq!(file.digest, digest_of(&file.tags));
    }
}
