//! What is known of a token.

use serde::{Deserialize, Serialize};

use super::{FunctionPattern, Scope, now_unix_ms};

/// What is known of one token. The token itself is not.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenEntry {
    /// Its name, for people and logs.
    pub name: String,
    /// What it may do.
    pub scopes: Vec<Scope>,
    /// Which functions it is for; all where the list is empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub functions: Vec<FunctionPattern>,
    /// When it was made, in milliseconds since 1970 (UTC).
    pub created_unix_ms: u64,
    /// When it ends, in milliseconds since 1970 (UTC).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_unix_ms: Option<u64>,
    /// BLAKE3 of the token's text.
    #[serde(rename = "blake3", with = "hash_as_hex")]
    pub(super) hash: blake3::Hash,
}

impl TokenEntry {
    /// Whether its time is over.
    #[must_use]
    pub fn has_expired(&self) -> bool {
        self.expires_unix_ms.is_some_and(|end| now_unix_ms() >= end)
    }

    /// Whether it has this scope.
    #[must_use]
    pub fn may(&self, scope: Scope) -> bool {
        self.scopes.contains(&scope) || self.scopes.contains(&Scope::Admin)
    }

    /// Whether it is for this function.
    #[must_use]
    pub fn covers(&self, function: &str) -> bool {
        self.covers_all() || self.functions.iter().any(|p| p.matches(function))
    }

    /// Whether it is for all functions, and so for what belongs to none.
    #[must_use]
    pub fn covers_all(&self) -> bool {
        self.functions.is_empty()
    }
}

/// A token that is to be made.
#[derive(Debug, Clone)]
pub struct NewToken {
    /// Its name, which no other in the file has.
    pub name: String,
    /// What it may do.
    pub scopes: Vec<Scope>,
    /// Which functions it is for; all where the list is empty.
    pub functions: Vec<FunctionPattern>,
    /// When it ends, in milliseconds since 1970 (UTC).
    pub expires_unix_ms: Option<u64>,
}

mod hash_as_hex {
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(hash: &blake3::Hash, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&hash.to_hex())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<blake3::Hash, D::Error> {
        let text = String::deserialize(from)?;
        blake3::Hash::from_hex(text).map_err(|_| D::Error::custom("no hash"))
    }
}
