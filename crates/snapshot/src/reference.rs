//! Names of snapshots as people write them.

use std::fmt;
use std::str::FromStr;

use crate::{Error, FunctionName, Result, SnapshotId, SnapshotRef, Store, Tag};

/// One snapshot of a function, in one of the ways to name it:
///
/// | Text | Meaning |
/// |---|---|
/// | `hello` | the newest snapshot of `hello` |
/// | `hello@00000007-9f86d081884c7d65` | the one with this id |
/// | `hello@7` | the one with this sequence number |
/// | `hello:stable` | the one that has this tag |
///
/// [`Store::resolve`] says which snapshot that is now.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reference {
    /// The newest snapshot of the function.
    Newest(FunctionName),
    /// The snapshot with an id.
    Id(SnapshotRef),
    /// The snapshot with a sequence number, from 1.
    Sequence(FunctionName, u32),
    /// The snapshot that has a tag.
    Tag(FunctionName, Tag),
}

impl Reference {
    /// The function whose snapshot it is.
    #[must_use]
    pub fn function(&self) -> &FunctionName {
        match self {
            Self::Newest(function) | Self::Sequence(function, _) | Self::Tag(function, _) => {
                function
            }
            Self::Id(snapshot) => &snapshot.function,
        }
    }
}

impl FromStr for Reference {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if let Some((function, tag)) = text.split_once(':') {
            return Ok(Self::Tag(FunctionName::new(function)?, tag.parse()?));
        }
        let Some((function, which)) = text.split_once('@') else {
            return Ok(Self::Newest(FunctionName::new(text)?));
        };
        let function = FunctionName::new(function)?;
        if !which.is_empty() && which.bytes().all(|byte| byte.is_ascii_digit()) {
            let sequence = which.parse().ok().filter(|sequence| *sequence >= 1);
            let sequence = sequence.ok_or_else(|| Error::InvalidId {
                id: which.chars().take(80).collect(),
            })?;
            return Ok(Self::Sequence(function, sequence));
        }
        let id = which.parse()?;
        Ok(Self::Id(SnapshotRef { function, id }))
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Newest(function) => f.pad(function.as_str()),
            Self::Id(snapshot) => f.pad(&snapshot.to_string()),
            Self::Sequence(function, sequence) => f.pad(&format!("{function}@{sequence}")),
            Self::Tag(function, tag) => f.pad(&format!("{function}:{tag}")),
        }
    }
}

impl From<SnapshotRef> for Reference {
    fn from(snapshot: SnapshotRef) -> Self {
        Self::Id(snapshot)
    }
}

impl Store {
    /// The snapshot that `reference` names now. It may be damaged: only its folder is looked for.
    ///
    /// # Errors
    /// [`Error::UnknownFunction`], [`Error::UnknownSnapshot`], [`Error::UnknownSequence`] or
    /// [`Error::UnknownTag`] when there is none; [`Error::DanglingTag`] when the tag's snapshot is
    /// gone; [`Error::BadTags`] when the tags cannot be read.
    pub fn resolve(&self, reference: &Reference) -> Result<SnapshotRef> {
        let function = reference.function();
        let ids = self.ids(function)?;
        let newest = self.newest_folder(function, &ids);
        let newest = newest.ok_or_else(|| self.unknown(function))?;
        let id = match reference {
            Reference::Newest(_) => newest,
            Reference::Id(SnapshotRef { id, .. }) => ids
                .binary_search(id)
                .map(|_| *id)
                .map_err(|_| self.unknown_snapshot(function, *id))?,
            Reference::Sequence(_, sequence) => self.at_sequence(function, &ids, *sequence)?,
            Reference::Tag(_, tag) => {
                let tagged = self.tags(function)?.get(tag).copied();
                let id = tagged.ok_or_else(|| self.unknown_tag(function, tag))?;
                if ids.binary_search(&id).is_err() {
                    return Err(Error::DanglingTag {
                        function: function.clone(),
                        tag: tag.clone(),
                        id,
                    });
                }
                id
            }
        };
        Ok(SnapshotRef {
            function: function.clone(),
            id,
        })
    }

    fn at_sequence(
        &self,
        function: &FunctionName,
        ids: &[SnapshotId],
        sequence: u32,
    ) -> Result<SnapshotId> {
        let found = ids.iter().find(|id| id.sequence() == sequence);
        found.copied().ok_or_else(|| Error::UnknownSequence {
            function: function.clone(),
            sequence,
            store: self.path().to_path_buf(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_parse_and_print() {
        for text in [
            "hello",
            "hello@7",
            "hello@00000007-9f86d081884c7d65",
            "hello:stable",
            "a:v1.2_rc-3",
        ] {
            let reference: Reference = text.parse().unwrap();
            assert_eq!(reference.to_string(), text);
        }
        let padded: Reference = "hello@007".parse().unwrap();
        assert_eq!(padded.to_string(), "hello@7");
    }

    #[test]
    fn references_that_are_bad() {
        let long = format!("a:{}", "x".repeat(64));
        for bad in [
            "",
            "@7",
            ":tag",
            "a@",
            "a@0",
            "a@4294967296",
            "a@+7",
            "a@latest",
            "a@7:tag",
            "a:",
            "a:-x",
            "a:../x",
            "a:UP",
            "a:b:c",
            "a:b@7",
            "../a",
            long.as_str(),
        ] {
            assert!(bad.parse::<Reference>().is_err(), "{bad}");
        }
    }
}
