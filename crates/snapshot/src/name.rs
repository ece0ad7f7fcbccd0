//! Names that become folder names: functions and snapshots.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{Digest, Error};

/// The name of a function: 1 to 63 of `a`–`z`, `0`–`9`, `-` and `_`, starting with a letter or a
/// digit. Safe as a folder name and as a URL path segment.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct FunctionName(String);

impl FunctionName {
    /// The most characters a name may have.
    pub const MAX_CHARS: usize = 63;

    /// Checks `name`.
    ///
    /// # Errors
    /// [`Error::InvalidName`] says which rule the name breaks.
    pub fn new(name: &str) -> Result<Self, Error> {
        let invalid = |reason: String| {
            // The name is echoed to people: bounded, and escaped by the message's {:?}.
            Err(Error::InvalidName {
                name: name.chars().take(80).collect(),
                reason,
            })
        };
        if name.is_empty() {
            return invalid("it is empty".into());
        }
        let chars = name.chars().count();
        if chars > Self::MAX_CHARS {
            return invalid(format!("it has {chars} characters"));
        }
        if let Some(odd) = name
            .chars()
            .find(|c| !matches!(c, 'a'..='z' | '0'..='9' | '-' | '_'))
        {
            return invalid(format!("it contains {odd:?}"));
        }
        if name.starts_with(['-', '_']) {
            return invalid("it starts with neither a letter nor a digit".into());
        }
        Ok(Self(name.to_owned()))
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for FunctionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl AsRef<str> for FunctionName {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl FromStr for FunctionName {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        Self::new(name)
    }
}

impl TryFrom<String> for FunctionName {
    type Error = Error;

    fn try_from(name: String) -> Result<Self, Error> {
        Self::new(&name)
    }
}

impl From<FunctionName> for String {
    fn from(name: FunctionName) -> Self {
        name.0
    }
}

/// One snapshot of a function: its sequence number within the function and a prefix of a digest
/// of its content, printed as `00000007-9f86d081884c7d65`. Later snapshots order after earlier
/// ones.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SnapshotId {
    sequence: u32,
    digest_prefix: u64,
}

const SEQUENCE_DIGITS: usize = 8;
const PREFIX_DIGITS: usize = 16;
const MAX_SEQUENCE: u32 = 99_999_999;

impl SnapshotId {
    /// The id for `digest` at `sequence`, or nothing when all sequence numbers are used up.
    pub(crate) fn new(sequence: u32, digest: &Digest) -> Option<Self> {
        let mut prefix = [0; 8];
        prefix.copy_from_slice(&digest.as_bytes()[..8]);
        (1..=MAX_SEQUENCE).contains(&sequence).then_some(Self {
            sequence,
            digest_prefix: u64::from_be_bytes(prefix),
        })
    }

    /// The position among the function's snapshots, from 1.
    #[must_use]
    pub fn sequence(&self) -> u32 {
        self.sequence
    }
}

impl fmt::Display for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{:08}-{:016x}", self.sequence, self.digest_prefix))
    }
}

impl fmt::Debug for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SnapshotId({self})")
    }
}

impl FromStr for SnapshotId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let parse = || {
            let (sequence, prefix) = text.split_once('-')?;
            let hex = |b: u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
            if sequence.len() != SEQUENCE_DIGITS
                || prefix.len() != PREFIX_DIGITS
                || !sequence.bytes().all(|b| b.is_ascii_digit())
                || !prefix.bytes().all(hex)
            {
                return None;
            }
            let sequence = sequence.parse().ok().filter(|sequence| *sequence >= 1)?;
            Some(Self {
                sequence,
                digest_prefix: u64::from_str_radix(prefix, 16).ok()?,
            })
        };
        parse().ok_or_else(|| Error::InvalidId {
            id: text.chars().take(80).collect(),
        })
    }
}

/// One snapshot of one function, printed as `hello@00000007-9f86d081884c7d65`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SnapshotRef {
    /// The function.
    pub function: FunctionName,
    /// Its snapshot.
    pub id: SnapshotId,
}

a_change_here_is_a_new_format_version! {
    SnapshotRef { function: FunctionName, id: SnapshotId }
}

impl fmt::Display for SnapshotRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.function, self.id)
    }
}

impl FromStr for SnapshotRef {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        // Without an id the rest is empty, which is none.
        let (function, id) = text.split_once('@').unwrap_or((text, ""));
        Ok(Self {
            function: function.parse()?,
            id: id.parse()?,
        })
    }
}

impl TryFrom<String> for SnapshotId {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

impl From<SnapshotId> for String {
    fn from(id: SnapshotId) -> Self {
        id.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_good() {
        for good in ["a", "0", "hello", "word-freq_2", &"x".repeat(63)] {
            assert_eq!(FunctionName::new(good).unwrap().as_str(), good);
        }
    }

    #[test]
    fn names_that_are_bad_say_why() {
        let long = "x".repeat(300);
        for (bad, why) in [
            ("", "empty"),
            (".", "'.'"),
            ("..", "'.'"),
            (".tmp-1", "'.'"),
            ("a/b", "'/'"),
            ("../x", "'.'"),
            ("a\\b", "'\\\\'"),
            ("Hello", "'H'"),
            ("hällo", "'ä'"),
            ("а", "'а'"),
            ("a b", "' '"),
            ("a\0", "'\\0'"),
            ("a\n", "'\\n'"),
            ("-a", "neither a letter nor a digit"),
            ("_a", "neither a letter nor a digit"),
            (long.as_str(), "300 characters"),
        ] {
            let error = FunctionName::new(bad).unwrap_err().to_string();
            assert!(error.contains(why), "{bad:?}: {error}");
            assert!(
                error.len() < 400 && !error.contains(['\n', '\0']),
                "{error:?}"
            );
        }
    }

    #[test]
    fn ids_print_parse_and_order() {
        let digest = Digest::of(b"x");
        let seventh = SnapshotId::new(7, &digest).unwrap();
        assert_eq!(seventh.to_string().parse::<SnapshotId>().unwrap(), seventh);
        assert!(seventh.to_string().starts_with("00000007-"));
        assert!(seventh < SnapshotId::new(8, &Digest::of(b"y")).unwrap());
        assert!(SnapshotId::new(0, &digest).is_none());
        assert!(SnapshotId::new(MAX_SEQUENCE + 1, &digest).is_none());
    }

    #[test]
    fn references_print_and_parse() {
        let text = "hello@00000007-9f86d081884c7d65";
        assert_eq!(text.parse::<SnapshotRef>().unwrap().to_string(), text);
        for bad in ["", "hello", "hello@", "@00000007-9f86d081884c7d65", "a@b@c"] {
            assert!(bad.parse::<SnapshotRef>().is_err(), "{bad}");
        }
    }

    #[test]
    fn ids_that_are_bad() {
        for bad in [
            "",
            "7-9f86d081884c7d65",
            "00000007",
            "00000000-9f86d081884c7d65",
            "00000007-9F86D081884C7D65",
            "00000007-9f86d081884c7d6",
            "00000007-9f86d081884c7d655",
            "+0000007-9f86d081884c7d65",
            "00000007-+f86d081884c7d65",
            "../00007-9f86d081884c7d65",
            "00000007/9f86d081884c7d65",
        ] {
            assert!(bad.parse::<SnapshotId>().is_err(), "{bad}");
        }
    }
}
