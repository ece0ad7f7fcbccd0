//! A tokens file in use.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use super::file::Fingerprint;
use super::{Token, TokenEntry, TokenError, TokenFile};

/// How long a change of the file may go unseen.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Tells who somebody is by their token, as a [`TokenFile`] has it. The file is looked at again
/// with the first request that comes a second or more after the last look; what was changed counts
/// from then on. Where it cannot be used any more, nobody is let in.
#[derive(Debug, Clone)]
pub struct TokenGuard {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    file: TokenFile,
    looked: Mutex<Instant>,
    known: RwLock<Arc<Known>>,
}

#[derive(Debug)]
struct Known {
    seen: Option<Fingerprint>,
    /// Or why the file cannot be used.
    tokens: Result<Vec<Arc<TokenEntry>>, String>,
}

impl TokenGuard {
    /// A guard by the file at `path`.
    ///
    /// # Errors
    /// Where the file is not there, is open to others, or is not a tokens file.
    pub fn open(path: &Path) -> Result<Self, TokenError> {
        let file = TokenFile::at(path);
        let known = Known::of(file.read_seen()?);
        Ok(Self {
            inner: Arc::new(Inner {
                file,
                looked: Mutex::new(Instant::now()),
                known: RwLock::new(Arc::new(known)),
            }),
        })
    }

    /// Whose token this is; nobody's where it is unknown or has expired.
    ///
    /// # Errors
    /// Why the file cannot be used, for the log.
    pub(crate) async fn identify(&self, token: &Token) -> Result<Option<Arc<TokenEntry>>, String> {
        if self.inner.is_time_to_look() {
            let inner = Arc::clone(&self.inner);
            // It touches a disk.
            let looked = tokio::task::spawn_blocking(move || inner.look()).await;
            looked.map_err(|error| format!("cannot look at the tokens file: {error}"))?;
        }
        let known = self.inner.known();
        let tokens = known.tokens.as_ref().map_err(Clone::clone)?;
        Ok(find(tokens, token))
    }
}

/// Each comparison takes the same time whatever the hashes are, and all are made.
fn find(tokens: &[Arc<TokenEntry>], token: &Token) -> Option<Arc<TokenEntry>> {
    let hash = token.hash();
    let mut found = None;
    for entry in tokens {
        if entry.hash == hash {
            found = Some(Arc::clone(entry));
        }
    }
    found.filter(|entry| !entry.has_expired())
}

impl Known {
    fn of((tokens, seen): (Vec<TokenEntry>, Fingerprint)) -> Self {
        Self {
            seen: Some(seen),
            tokens: Ok(tokens.into_iter().map(Arc::new).collect()),
        }
    }
}

impl Inner {
    fn known(&self) -> Arc<Known> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&known)
    }

    /// True for one caller in each span of [`LOOK_EVERY`].
    fn is_time_to_look(&self) -> bool {
        let mut looked = self.looked.lock().unwrap_or_else(PoisonError::into_inner);
        let is_time = looked.elapsed() >= LOOK_EVERY;
        if is_time {
            *looked = Instant::now();
        }
        is_time
    }

    fn look(&self) {
        let before = self.known();
        let seen = self.file.fingerprint();
        if seen.is_some() && seen == before.seen {
            return;
        }
        let known = match self.file.read_seen() {
            Ok(read) => Known::of(read),
            // To be read again at the next look, whether it changes or not: what was in the way may
            // be gone by then.
            Err(error) => Known {
                seen: None,
                tokens: Err(error.to_string()),
            },
        };
        match (&known.tokens, &before.tokens) {
            (Ok(tokens), _) => {
                tracing::info!(tokens = tokens.len(), "the tokens file was read again");
            }
            (Err(error), Err(known)) if error == known => {}
            (Err(error), _) => tracing::error!("nobody is let in: {error}"),
        }
        *self.known.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(known);
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::{NewToken, Scope};

    fn new(name: &str, expires_unix_ms: Option<u64>) -> NewToken {
        NewToken {
            name: name.to_owned(),
            scopes: vec![Scope::Invoke],
            functions: Vec::new(),
            expires_unix_ms,
        }
    }

    #[test]
    fn changes_of_the_file_are_seen_at_the_next_look() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokens");
        assert!(TokenGuard::open(&path).is_err());
        let file = TokenFile::at(&path);
        let (first, _) = file.create(new("first", None)).unwrap();
        let guard = TokenGuard::open(&path).unwrap();
        let whose = |token: &Token| {
            guard.inner.look();
            let known = guard.inner.known();
            let tokens = known.tokens.as_ref().map_err(Clone::clone)?;
            Ok::<_, String>(find(tokens, token).map(|entry| entry.name.clone()))
        };
        assert_eq!(whose(&first).unwrap().unwrap(), "first");
        let (second, _) = file.create(new("second", None)).unwrap();
        assert_eq!(whose(&second).unwrap().unwrap(), "second");
        file.remove("first").unwrap();
        assert_eq!(whose(&first), Ok(None));

        let (ended, _) = file.create(new("ended", Some(1))).unwrap();
        assert_eq!(whose(&ended), Ok(None));

        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(whose(&second).unwrap_err().contains("chmod"));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(whose(&second).unwrap().unwrap(), "second");
        fs::remove_file(&path).unwrap();
        assert!(whose(&second).is_err());
    }
}
