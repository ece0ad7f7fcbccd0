//! Who may do what: bearer tokens, kept as hashes in a file.
//!
//! A [`Token`] is a secret that a client sends with each request. Of each, a [`TokenFile`] has a
//! [`TokenEntry`]: its hash, what it may do ([`Scope`]) and to which functions
//! ([`FunctionPattern`]). A [`TokenGuard`] is that file in use: it sees within about a second what
//! was changed there.

mod entry;
mod error;
mod file;
mod guard;

pub use entry::{NewToken, TokenEntry};
pub use error::TokenError;
pub use file::TokenFile;
pub use guard::TokenGuard;

use std::fmt;
use std::str::FromStr;
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use glob::Pattern;
use serde::{Deserialize, Serialize};

const PREFIX: &str = "dmt_";
const SECRET_BYTES: usize = 32;
/// Longer than any name that it could match, with room for classes of characters.
const PATTERN_BYTES: usize = 256;

/// What a token is good for. Each route asks for one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Send requests to functions.
    Invoke,
    /// Deploy, warm and remove functions.
    Deploy,
    /// Everything, which includes lists, settings and metrics.
    Admin,
}

impl Scope {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Invoke, Self::Deploy, Self::Admin];

    /// As it is written.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Invoke => "invoke",
            Self::Deploy => "deploy",
            Self::Admin => "admin",
        }
    }
}

impl FromStr for Scope {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|scope| scope.as_str() == text);
        found.ok_or_else(|| format!("{text:?} is no scope; write invoke, deploy or admin"))
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A token as a client sends it: `dmt_` and 32 random bytes in base64url. It has no `Display`, and
/// its `Debug` does not show it.
#[derive(Clone)]
pub struct Token(String);

impl Token {
    /// A new one.
    pub(crate) fn random() -> Result<Self, getrandom::Error> {
        let mut secret = [0; SECRET_BYTES];
        getrandom::fill(&mut secret)?;
        Ok(Self(format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(secret))))
    }

    /// The secret itself.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// A fast hash is enough: slow ones protect secrets that can be guessed, and nobody guesses 256
    /// random bits. Two of these are compared in constant time.
    pub(crate) fn hash(&self) -> blake3::Hash {
        blake3::hash(self.0.as_bytes())
    }
}

impl FromStr for Token {
    type Err = NotAToken;

    fn from_str(text: &str) -> Result<Self, NotAToken> {
        let secret = text.strip_prefix(PREFIX).ok_or(NotAToken)?;
        let mut bytes = [0; SECRET_BYTES];
        match URL_SAFE_NO_PAD.decode_slice(secret, &mut bytes) {
            Ok(SECRET_BYTES) => Ok(Self(text.to_owned())),
            _ => Err(NotAToken),
        }
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(not shown)")
    }
}

/// A text is no [`Token`]. It is not said which, since it may be a secret all the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this is not a token, which is {PREFIX} and 43 more characters: copy the whole of it")]
pub struct NotAToken;

/// Which functions a token is for, as a glob: `web-*`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct FunctionPattern(Pattern);

impl FunctionPattern {
    fn matches(&self, function: &str) -> bool {
        self.0.matches(function)
    }
}

impl FromStr for FunctionPattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.is_empty() || text.len() > PATTERN_BYTES {
            return Err(format!("write 1 to {PATTERN_BYTES} characters"));
        }
        let pattern = Pattern::new(text).map_err(|error| {
            format!("{text:?} is no pattern of names ({error}); write for example web-*")
        })?;
        Ok(Self(pattern))
    }
}

impl TryFrom<String> for FunctionPattern {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<FunctionPattern> for String {
    fn from(pattern: FunctionPattern) -> Self {
        pattern.to_string()
    }
}

impl fmt::Display for FunctionPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.as_str())
    }
}

/// Milliseconds since 1970.
fn now_unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    u64::try_from(since.unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_what_it_is_and_shows_nothing() {
        let token = Token::random().unwrap();
        assert_eq!(token.reveal().len(), 47);
        let again: Token = token.reveal().parse().unwrap();
        assert_eq!(again.hash(), token.hash());
        assert_ne!(Token::random().unwrap().hash(), token.hash());
        let shown = format!("{token:?} {NotAToken:?} {NotAToken}");
        assert!(!shown.contains(&token.reveal()[4..]), "{shown}");
    }

    #[test]
    fn what_is_no_token_is_refused() {
        let whole = Token::random().unwrap();
        let whole = whole.reveal();
        for text in [
            "",
            "dmt_",
            &whole[..46],
            &whole[4..],
            &format!("{whole}A"),
            &format!("{whole}="),
            &format!(" {whole}"),
            &format!("{}\n", &whole[..46]),
            &format!("dmt_{}", "/".repeat(43)),
            &"dmt_A".repeat(100_000),
        ] {
            assert_eq!(text.parse::<Token>().unwrap_err(), NotAToken);
        }
    }

    #[test]
    fn patterns_match_whole_names() {
        let pattern: FunctionPattern = "web-*".parse().unwrap();
        assert!(pattern.matches("web-") && pattern.matches("web-shop"));
        assert!(!pattern.matches("web") && !pattern.matches("a-web-b"));
        for text in ["", "a**b", "[", &"*".repeat(257)] {
            assert!(text.parse::<FunctionPattern>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_pattern_that_fails_late_fails_soon() {
        let pattern: FunctionPattern = format!("{}b", "*a".repeat(127)).parse().unwrap();
        assert!(!pattern.matches(&"a".repeat(63)));
        assert!(!pattern.matches(&"a".repeat(4096)));
    }
}
