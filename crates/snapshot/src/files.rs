//! Files and folders as a store needs them: bounded reads of regular files only, writes that are
//! on disk when they return, folders that are complete when they appear.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use rustix::fs::{FlockOperation, Mode, OFlags, flock};

use crate::{Error, Result};

/// What temporary folders in a store start with.
const TEMP_PREFIX: &str = ".tmp-";

/// Opens the regular file `path` for reading and tells its size.
pub(crate) fn open(path: &Path) -> Result<(File, u64)> {
    // A store may have come from elsewhere: a symbolic link could lead anywhere, and opening a
    // FIFO would block.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(fd) => File::from(fd),
        // A symbolic link; a socket.
        Err(rustix::io::Errno::LOOP | rustix::io::Errno::NXIO) => return Err(not_regular(path)),
        Err(errno) => return Err(Error::io("open", path)(errno)),
    };
    let metadata = file.metadata().map_err(Error::io("inspect", path))?;
    if !metadata.is_file() {
        return Err(not_regular(path));
    }
    Ok((file, metadata.len()))
}

fn not_regular(path: &Path) -> Error {
    Error::damaged(path, "it is not a regular file")
}

/// The error for a file of another size than it should have, if it has.
pub(crate) fn check_size(path: &Path, found_bytes: u64, expected_bytes: u64) -> Result<()> {
    if found_bytes == expected_bytes {
        return Ok(());
    }
    let what = format!("it has {found_bytes} bytes, but should have {expected_bytes}");
    Err(Error::damaged(path, what))
}

/// Fills `buf` from `file` at `offset`; a file that ends before is damaged.
pub(crate) fn read_at(file: &File, buf: &mut [u8], offset: u64, path: &Path) -> Result<()> {
    file.read_exact_at(buf, offset)
        .map_err(|source| match source.kind() {
            io::ErrorKind::UnexpectedEof => {
                let what = format!("it ends before byte {}", offset + buf.len() as u64);
                Error::damaged(path, what)
            }
            _ => Error::io("read", path)(source),
        })
}

/// The first `bytes` of `file`. The caller has bounded `bytes` by the file's size.
pub(crate) fn read_start(file: &File, bytes: usize, path: &Path) -> Result<Vec<u8>> {
    let mut content = vec![0; bytes];
    read_at(file, &mut content, 0, path)?;
    Ok(content)
}

/// The content of the file `path`, which must have `expected_bytes`.
pub(crate) fn read_exactly(path: &Path, expected_bytes: u64) -> Result<Vec<u8>> {
    let (file, file_bytes) = open(path)?;
    check_size(path, file_bytes, expected_bytes)?;
    read_start(&file, file_bytes as usize, path)
}

/// Creates the file `path`. It can be read by its owner only, who finds it read-only from now
/// on: guest memory holds secrets, and published files never change.
pub(crate) fn create(path: &Path) -> Result<File> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o400)
        .open(path)
        .map_err(Error::io("create", path))
}

/// Creates the file `path` with `content`, on disk when this returns.
pub(crate) fn write(path: &Path, content: &[u8]) -> Result<()> {
    let mut file = create(path)?;
    file.write_all(content).map_err(Error::io("write", path))?;
    file.sync_all().map_err(Error::io("flush", path))
}

/// Flushes the entries of the folder `path` to disk.
pub(crate) fn sync_folder(path: &Path) -> Result<()> {
    let folder = File::open(path).map_err(Error::io("open", path))?;
    folder.sync_all().map_err(Error::io("flush", path))
}

/// Creates the folder `path` and those above it, on disk when this returns; those that exist are
/// fine, and on disk as well then.
pub(crate) fn create_folders(path: &Path) -> Result<()> {
    if path.is_dir() {
        return keep_found_folder(path);
    }
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    create_folders(parent)?;
    match DirBuilder::new().mode(0o700).create(path) {
        // Somebody made it just now.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => {}
        created => created.map_err(Error::io("create the folder", path))?,
    }
    // What is published in a folder is lost with the folder's own entry.
    sync_folder(parent)
}

/// Whether there is a folder at `path`, and no link to one.
pub(crate) fn is_folder(path: &Path) -> Result<bool> {
    match fs::symlink_metadata(path) {
        Ok(metadata) => Ok(metadata.is_dir()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Error::io("inspect", path)(error)),
    }
}

/// Makes sure that the folder `path`, which was there, is on disk: whoever made it may not have
/// flushed it yet, or have died before. The folders above it are: each is on disk before anything is
/// created in it.
fn keep_found_folder(path: &Path) -> Result<()> {
    // Where `path` leads over symbolic links, it is the folder that must last, not the link.
    let path = fs::canonicalize(path).map_err(Error::io("find", path))?;
    let Some(parent) = path.parent() else {
        return Ok(()); // the root of all
    };
    match sync_folder(parent) {
        // Nobody can have made it in a folder that cannot be flushed, as they would have failed too.
        Err(Error::Io { source, .. })
            if matches!(
                source.kind(),
                io::ErrorKind::PermissionDenied
                    | io::ErrorKind::ReadOnlyFilesystem
                    | io::ErrorKind::InvalidInput
            ) =>
        {
            Ok(())
        }
        flushed => flushed,
    }
}

/// Renames, which is how everything in a store appears and disappears.
pub(crate) fn rename(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).map_err(Error::io("put the finished file or folder at", to))
}

/// Lets the file `path` go from the page cache (`posix_fadvise(2)`, `POSIX_FADV_DONTNEED`), written
/// back before: what is not on disk yet stays.
pub(crate) fn evict(path: &Path) -> Result<()> {
    let (file, _) = open(path)?;
    file.sync_data().map_err(Error::io("flush", path))?;
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)
        .map_err(Error::io("evict", path))
}

/// The names in the folder `path` that are text; nothing else in a store has other names.
pub(crate) fn names(path: &Path) -> Result<Vec<String>> {
    let read = || {
        let names = fs::read_dir(path)?.map(|entry| Ok(entry?.file_name().into_string().ok()));
        names
            .filter_map(io::Result::transpose)
            .collect::<io::Result<_>>()
    };
    read().map_err(Error::io("list", path))
}

/// An exclusive lock on a store, for the short steps that change which snapshots there are.
pub(crate) struct StoreLock {
    _file: File,
}

impl StoreLock {
    pub(crate) fn acquire(root: &Path) -> Result<Self> {
        let path = root.join(".lock");
        // As in `open`: a store may have come from elsewhere.
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(flags.bits() as i32)
            .open(&path)
            .map_err(Error::io("open the lock", &path))?;
        rustix::io::retry_on_intr(|| flock(&file, FlockOperation::LockExclusive))
            .map_err(Error::io("take the lock", &path))?;
        Ok(Self { _file: file })
    }
}

/// A temporary folder in a store, removed with its content when dropped unless it was renamed.
/// It is locked while it is in use, so that it never counts as left over.
pub(crate) struct TempFolder {
    path: PathBuf,
    /// Nothing where the folder cannot be opened: then only its age protects it.
    _lock: Option<File>,
}

impl TempFolder {
    pub(crate) fn create(root: &Path) -> Result<Self> {
        let path = Self::unused_path(root);
        DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .map_err(Error::io("create the folder", &path))?;
        Ok(Self::adopt(path))
    }

    /// Makes the folder `from` a temporary one: it is gone from its place at once.
    pub(crate) fn take(root: &Path, from: &Path) -> Result<Self> {
        let path = Self::unused_path(root);
        fs::rename(from, &path).map_err(Error::io("remove", from))?;
        Ok(Self::adopt(path))
    }

    fn adopt(path: PathBuf) -> Self {
        // What is done is done: a folder that was taken away must not seem to be there still.
        let lock = File::open(&path).ok();
        if let Some(lock) = &lock {
            // Nobody waits for this lock, and a file system without locks loses only the protection.
            let _ = flock(lock, FlockOperation::NonBlockingLockExclusive);
        }
        Self { path, _lock: lock }
    }

    /// A path that no other process and no other thread comes up with.
    fn unused_path(root: &Path) -> PathBuf {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let now = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        let (process, nanos) = (std::process::id(), now.as_nanos());
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        root.join(format!("{TEMP_PREFIX}{process}-{nanos}-{number}"))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Moves the folder to its place `to`; nothing is removed on drop then, as its own path is
    /// gone.
    pub(crate) fn rename(self, to: &Path) -> Result<()> {
        rename(&self.path, to)
    }
}

impl Drop for TempFolder {
    fn drop(&mut self) {
        // What cannot be removed now is found by `clean_leftovers` later.
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// Whether this is the name of a temporary folder.
pub(crate) fn is_temporary(name: &str) -> bool {
    name.starts_with(TEMP_PREFIX)
}

/// Removes temporary folders in `root` that nobody uses and that did not change for `idle`, and
/// tells how many there were.
pub(crate) fn clean_leftovers(root: &Path, idle: Duration) -> Result<u64> {
    let mut removed = 0;
    for path in temp_folders(root)? {
        let Ok(Some(_lock)) = lock_leftover(&path, idle) else {
            continue;
        };
        removed += u64::from(fs::remove_dir_all(&path).is_ok());
    }
    Ok(removed)
}

/// The temporary folders that [`clean_leftovers`] would remove.
pub(crate) fn leftovers(root: &Path, idle: Duration) -> Result<Vec<PathBuf>> {
    let mut paths = temp_folders(root)?;
    paths.retain(|path| matches!(lock_leftover(path, idle), Ok(Some(_))));
    Ok(paths)
}

fn temp_folders(root: &Path) -> Result<Vec<PathBuf>> {
    let mut names = names(root)?;
    names.retain(|name| name.starts_with(TEMP_PREFIX));
    Ok(names.iter().map(|name| root.join(name)).collect())
}

/// Locks the temporary folder `path` if nobody uses it and it did not change for `idle`. Both
/// conditions: a folder is not locked yet when it is just made.
fn lock_leftover(path: &Path, idle: Duration) -> io::Result<Option<File>> {
    let metadata = fs::symlink_metadata(path)?;
    // A time in the future gives no age: such a folder waits until the clock has caught up.
    let age = metadata.modified()?.elapsed().unwrap_or_default();
    if age < idle || !metadata.is_dir() {
        return Ok(None);
    }
    let folder = File::open(path)?;
    let locked = flock(&folder, FlockOperation::NonBlockingLockExclusive).is_ok();
    Ok(locked.then_some(folder))
}

/// Replaces the file `name` in `folder`, which is in the store at `root`, by one rename.
pub(crate) fn replace(root: &Path, folder: &Path, name: &str, content: &[u8]) -> Result<()> {
    let temp = TempFolder::create(root)?;
    write(&temp.path().join(name), content)?;
    rename(&temp.path().join(name), &folder.join(name))?;
    sync_folder(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The folder above is flushed where it can be; where it cannot be, nobody has made one in it.
    #[test]
    fn a_folder_that_is_there_is_fine_wherever_it_is() {
        let place = tempfile::tempdir().unwrap();
        let folder = place.path().join("folder");
        fs::create_dir(&folder).unwrap();
        let link = place.path().join("link");
        std::os::unix::fs::symlink(&folder, &link).unwrap();
        // Nothing below /proc can be flushed (EINVAL).
        let others = [".", "..", "/", "/proc/self"].map(Path::new);
        for path in [folder.as_path(), &link].into_iter().chain(others) {
            if let Err(error) = create_folders(path) {
                panic!("{}: {error}", path.display());
            }
        }
    }
}
