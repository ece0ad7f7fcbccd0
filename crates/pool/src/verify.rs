//! When a snapshot's pages are compared with their digests, as a user says it.

use serde::{Deserialize, Serialize};

/// When a snapshot's pages are compared with their digests.
///
/// Of a snapshot's other files all is compared when it is opened, whatever is chosen here, and so
/// are pages of snapshots over 1 GiB when they are first touched, but with [`Verify::Off`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verify {
    /// Before any of them is used: the first request waits for it.
    Always,
    /// As soon as the snapshot is loaded, beside the first requests. Where it then turns out to be
    /// damaged, no later request is answered from it; those before may have been.
    #[default]
    Background,
    /// Never: the disk is trusted.
    Off,
}

impl Verify {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Always, Self::Background, Self::Off];

    /// The word for it: `always`, `background` or `off`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Always => "always",
            Self::Background => "background",
            Self::Off => "off",
        }
    }
}

impl std::fmt::Display for Verify {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::str::FromStr for Verify {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|known| known.as_str() == text);
        found.ok_or_else(|| {
            let known = Self::ALL.map(Self::as_str).join(", ");
            format!("{text:?} is no time to verify at; there are {known}")
        })
    }
}
