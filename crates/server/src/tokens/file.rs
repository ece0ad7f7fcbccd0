//! The tokens file: read whole and distrusted, replaced whole.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, OFlags, flock};
use serde::{Deserialize, Serialize};

use super::{NewToken, Token, TokenEntry, TokenError, now_unix_ms};

/// Of the file's layout.
const VERSION: u32 = 1;
const MAX_FILE_BYTES: u64 = 1 << 20;
const MAX_TOKENS: usize = 4096;
const NAME_BYTES: usize = 63;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    version: u32,
    tokens: Vec<TokenEntry>,
}

/// What tells one state of a file from another without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fingerprint {
    device: u64,
    inode: u64,
    size_bytes: u64,
    mode: u32,
    changed: (i64, i64),
    modified: (i64, i64),
}

impl Fingerprint {
    fn of(metadata: &std::fs::Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size_bytes: metadata.size(),
            mode: metadata.mode(),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        }
    }
}

/// A file with the hashes of tokens, in JSON. Only its owner may have any right to it.
#[derive(Debug, Clone)]
pub struct TokenFile {
    path: PathBuf,
}

impl TokenFile {
    /// The file at `path`, which need not exist yet.
    #[must_use]
    pub fn at(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
        }
    }

    /// All tokens, in the order in which they were made.
    ///
    /// # Errors
    /// Where the file is not there, is open to others, or is not a tokens file.
    pub fn read(&self) -> Result<Vec<TokenEntry>, TokenError> {
        Ok(self.read_seen()?.0)
    }

    /// Adds a token, and the file where there is none. This is the only time that the token is seen.
    ///
    /// # Errors
    /// As [`read`](Self::read); where the name is taken or is none; where the file cannot be written.
    pub fn create(&self, new: NewToken) -> Result<(Token, TokenEntry), TokenError> {
        if !is_name(&new.name) {
            return Err(TokenError::BadName {
                name: shortened(&new.name),
            });
        }
        if new.scopes.is_empty() {
            return Err(TokenError::NoScope { name: new.name });
        }
        let _lock = self.lock()?;
        let mut tokens = self.read_or_none()?;
        if tokens.iter().any(|entry| entry.name == new.name) {
            return Err(TokenError::Exists { name: new.name });
        }
        let token = Token::random().map_err(TokenError::Random)?;
        let entry = TokenEntry {
            name: new.name,
            scopes: new.scopes,
            functions: new.functions,
            created_unix_ms: now_unix_ms(),
            expires_unix_ms: new.expires_unix_ms,
            hash: token.hash(),
        };
        tokens.push(entry.clone());
        self.replace(tokens)?;
        Ok((token, entry))
    }

    /// Takes a token away: no server that uses this file knows it any more.
    ///
    /// # Errors
    /// As [`read`](Self::read); where there is no such token; where the file cannot be written.
    pub fn remove(&self, name: &str) -> Result<TokenEntry, TokenError> {
        let _lock = self.lock()?;
        let mut tokens = self.read()?;
        let place = tokens.iter().position(|entry| entry.name == name);
        let removed = tokens.remove(place.ok_or_else(|| TokenError::Unknown {
            name: shortened(name),
            path: self.path.clone(),
        })?);
        self.replace(tokens)?;
        Ok(removed)
    }

    /// What can be told of the file without reading it.
    pub(super) fn fingerprint(&self) -> Option<Fingerprint> {
        let metadata = std::fs::metadata(&self.path).ok()?;
        Some(Fingerprint::of(&metadata))
    }

    /// All tokens, and of which state of the file they are.
    pub(super) fn read_seen(&self) -> Result<(Vec<TokenEntry>, Fingerprint), TokenError> {
        // Not blocking: opening a pipe would wait for its writer.
        let flags = (OFlags::NONBLOCK | OFlags::CLOEXEC).bits().cast_signed();
        let mut options = OpenOptions::new();
        let file = options.read(true).custom_flags(flags).open(&self.path);
        let file = file.map_err(|e| self.io("open", e))?;
        let metadata = file.metadata().map_err(|e| self.io("look at", e))?;
        if !metadata.is_file() {
            return Err(TokenError::NotAFile {
                path: self.path.clone(),
            });
        }
        let mode = metadata.mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(TokenError::OpenToOthers {
                path: self.path.clone(),
                mode,
            });
        }
        let mut text = Vec::new();
        let mut bounded = file.take(MAX_FILE_BYTES + 1);
        let read = bounded.read_to_end(&mut text);
        read.map_err(|e| self.io("read", e))?;
        if text.len() as u64 > MAX_FILE_BYTES {
            return Err(TokenError::TooLarge {
                path: self.path.clone(),
                limit_bytes: MAX_FILE_BYTES,
            });
        }
        Ok((self.parse(&text)?, Fingerprint::of(&metadata)))
    }

    fn parse(&self, text: &[u8]) -> Result<Vec<TokenEntry>, TokenError> {
        let invalid = |reason: String| TokenError::Invalid {
            path: self.path.clone(),
            reason,
        };
        let document: Document = serde_json::from_slice(text).map_err(|error| {
            // The parser's own words may quote what stands there, and somebody may have put a token
            // there.
            let (line, column) = (error.line(), error.column());
            invalid(format!(
                "line {line}, column {column} is not what is expected there"
            ))
        })?;
        if document.version != VERSION {
            let found = document.version;
            return Err(invalid(format!(
                "its version is {found}, and this is for {VERSION}"
            )));
        }
        if document.tokens.len() > MAX_TOKENS {
            return Err(invalid(format!("it has more than {MAX_TOKENS} tokens")));
        }
        let mut names = BTreeSet::new();
        for entry in &document.tokens {
            if !is_name(&entry.name) {
                return Err(invalid("a name in it is none".to_owned()));
            }
            if !names.insert(&entry.name) {
                return Err(invalid(format!("two tokens are named {}", entry.name)));
            }
        }
        Ok(document.tokens)
    }

    fn read_or_none(&self) -> Result<Vec<TokenEntry>, TokenError> {
        match self.read() {
            Err(TokenError::Io { cause, .. }) if cause.kind() == io::ErrorKind::NotFound => {
                Ok(Vec::new())
            }
            other => other,
        }
    }

    /// Keeps two commands from losing each other's change. The file itself cannot be locked: it is
    /// replaced.
    fn lock(&self) -> Result<File, TokenError> {
        let folder = File::open(folder_of(&self.target())).map_err(|e| self.io("reach", e))?;
        let locked = flock(&folder, FlockOperation::LockExclusive);
        locked.map_err(|error| self.io("lock", error.into()))?;
        Ok(folder)
    }

    /// In one rename, so that a server never reads half of it.
    fn replace(&self, tokens: Vec<TokenEntry>) -> Result<(), TokenError> {
        let document = Document {
            version: VERSION,
            tokens,
        };
        let mut text =
            serde_json::to_vec_pretty(&document).map_err(|error| self.io("write", error.into()))?;
        text.push(b'\n');
        // What could not be read back is not written.
        if document.tokens.len() > MAX_TOKENS || text.len() as u64 > MAX_FILE_BYTES {
            return Err(TokenError::TooLarge {
                path: self.path.clone(),
                limit_bytes: MAX_FILE_BYTES,
            });
        }
        let target = self.target();
        let write = || -> io::Result<()> {
            let folder = folder_of(&target);
            // Its mode is 600 from the start.
            let mut half = tempfile::NamedTempFile::new_in(folder)?;
            keep_owner(&target, half.as_file())?;
            half.write_all(&text)?;
            half.as_file().sync_all()?;
            half.persist(&target)?;
            File::open(folder)?.sync_all()
        };
        write().map_err(|e| self.io("write", e))
    }

    /// Where the path is a link, what it leads to is replaced and the link stays.
    fn target(&self) -> PathBuf {
        let target = self.path.canonicalize();
        target.unwrap_or_else(|_| self.path.clone())
    }

    fn io(&self, operation: &'static str, cause: io::Error) -> TokenError {
        TokenError::Io {
            operation,
            path: self.path.clone(),
            cause,
        }
    }
}

/// Root may make a token for a server that runs as somebody else, who has to read the file still.
fn keep_owner(old: &Path, new: &File) -> io::Result<()> {
    let old = match std::fs::metadata(old) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    let made = new.metadata()?;
    if (old.uid(), old.gid()) == (made.uid(), made.gid()) {
        return Ok(());
    }
    fchown(new, Some(old.uid()), Some(old.gid()))
}

fn folder_of(path: &Path) -> &Path {
    path.parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or(Path::new("."))
}

fn is_name(name: &str) -> bool {
    (1..=NAME_BYTES).contains(&name.len())
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

fn shortened(name: &str) -> String {
    name.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::super::Scope;
    use super::*;

    fn new(name: &str) -> NewToken {
        NewToken {
            name: name.to_owned(),
            scopes: vec![Scope::Invoke, Scope::Deploy],
            functions: vec!["web-*".parse().unwrap()],
            expires_unix_ms: Some(now_unix_ms() + 60_000),
        }
    }

    #[test]
    fn what_is_made_is_there_and_what_is_removed_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokens");
        let file = TokenFile::at(&path);
        let (token, entry) = file.create(new("ci")).unwrap();
        file.create(new("other")).unwrap();
        assert!(matches!(
            file.create(new("ci")),
            Err(TokenError::Exists { .. })
        ));
        let read = file.read().unwrap();
        assert_eq!(read.len(), 2);
        assert_eq!(read[0].hash, token.hash());
        assert!(read[0].may(Scope::Deploy) && !read[0].may(Scope::Admin));
        assert!(read[0].covers("web-1") && !read[0].covers("db"));
        assert!(!read[0].covers_all() && !read[0].has_expired());
        assert_eq!(read[0].functions, entry.functions);

        let text = fs::read_to_string(&path).unwrap();
        assert!(!text.contains(&token.reveal()[4..]), "the token itself");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);

        assert_eq!(file.remove("ci").unwrap().name, "ci");
        assert!(matches!(file.remove("ci"), Err(TokenError::Unknown { .. })));
        assert_eq!(file.read().unwrap()[0].name, "other");
        // Nothing half done is left beside it.
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_link_stays_one_and_an_owner_stays_the_owner() {
        let folder = tempfile::tempdir().unwrap();
        let (path, link) = (folder.path().join("tokens"), folder.path().join("link"));
        TokenFile::at(&path).create(new("a")).unwrap();
        std::os::unix::fs::symlink(&path, &link).unwrap();
        // Only root can give a file away; others see here that their own stays theirs.
        let given = std::os::unix::fs::chown(&path, Some(65_534), Some(65_534)).is_ok();
        let owner = fs::metadata(&path).unwrap().uid();
        assert_eq!(owner == 65_534, given);
        TokenFile::at(&link).create(new("b")).unwrap();
        assert!(link.is_symlink());
        let metadata = fs::metadata(&path).unwrap();
        assert_eq!((metadata.uid(), metadata.mode() & 0o7777), (owner, 0o600));
        assert_eq!(TokenFile::at(&path).read().unwrap().len(), 2);
    }

    #[test]
    fn two_who_change_it_lose_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let file = TokenFile::at(&folder.path().join("tokens"));
        std::thread::scope(|scope| {
            for number in 0..8 {
                let file = &file;
                scope.spawn(move || file.create(new(&format!("t{number}"))).unwrap());
            }
        });
        assert_eq!(file.read().unwrap().len(), 8);
    }

    #[test]
    fn names_are_names() {
        let folder = tempfile::tempdir().unwrap();
        let file = TokenFile::at(&folder.path().join("tokens"));
        for name in ["", ".a", "a b", "a/b", "ä", "a\n", &"x".repeat(64)] {
            let made = file.create(new(name));
            assert!(matches!(made, Err(TokenError::BadName { .. })), "{name:?}");
        }
        let scopes = Vec::new();
        let made = file.create(NewToken { scopes, ..new("a") });
        assert!(matches!(made, Err(TokenError::NoScope { .. })));
        assert!(!folder.path().join("tokens").exists());
    }

    #[test]
    fn who_else_may_read_or_write_it_makes_it_useless() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokens");
        let file = TokenFile::at(&path);
        file.create(new("a")).unwrap();
        for mode in [0o640, 0o604, 0o620, 0o602, 0o610, 0o666] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let error = file.read().unwrap_err();
            assert!(matches!(error, TokenError::OpenToOthers { .. }), "{error}");
            assert!(error.to_string().contains("chmod 600"));
            assert!(file.create(new("b")).is_err() && file.remove("a").is_err());
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).unwrap();
        assert_eq!(file.read().unwrap().len(), 1);
    }

    #[test]
    fn what_is_no_tokens_file_is_refused_and_not_quoted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokens");
        let file = TokenFile::at(&path);
        file.create(new("a")).unwrap();
        let good = fs::read_to_string(&path).unwrap();
        let hash = file.read().unwrap()[0].hash.to_hex();
        for text in [
            String::new(),
            "secret".to_owned(),
            "{\"version\":1,\"tokens\":[\"secret\"]}".to_owned(),
            good.replace("\"invoke\"", "\"secret\""),
            good.replace("\"version\": 1", "\"version\": 2"),
            good.replace("\"scopes\"", "\"secret\""),
            good.replace(hash.as_str(), "secret"),
            good.replace("\"web-*\"", "\"a**secret\""),
            good.replace("\"a\"", "\"secret/../\""),
            good.replace("\"tokens\": [", "\"tokens\": [{},"),
            "[".repeat(100_000),
            " ".repeat((1 << 20) + 1),
        ] {
            fs::write(&path, &text).unwrap();
            let error = file.read().unwrap_err().to_string();
            assert!(!error.contains("secret") && error.len() < 500, "{error}");
        }
        let entry = good.split_once('[').unwrap().1.rsplit_once(']').unwrap().0;
        fs::write(&path, good.replace(entry, &format!("{entry},{entry}"))).unwrap();
        let error = file.read().unwrap_err().to_string();
        assert!(error.contains("two tokens are named a"), "{error}");
    }

    #[test]
    fn folders_and_pipes_are_refused_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let error = TokenFile::at(folder.path()).read().unwrap_err();
        assert!(matches!(error, TokenError::NotAFile { .. }), "{error}");
        let pipe = folder.path().join("pipe");
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        let kind = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, kind, mode, 0).unwrap();
        let error = TokenFile::at(&pipe).read().unwrap_err();
        assert!(matches!(error, TokenError::NotAFile { .. }), "{error}");
        let nothing = TokenFile::at(&folder.path().join("none")).read();
        assert!(matches!(nothing, Err(TokenError::Io { .. })));
    }
}
