//! Read-only files from one folder.
//!
//! Every path is opened by the kernel *beneath* the folder (`openat2` with `RESOLVE_BENEATH`), so
//! neither `..` nor symbolic links lead out of it. The guest sees its own descriptors, from 3.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{Mode, OFlags, ResolveFlags};

use super::{display, errno};
use crate::error::Error;

/// Access modes and flags as Hermit numbers them (the crate hermit-abi): Linux's values.
const O_ACCMODE: i32 = 0o3;
const O_CREAT: i32 = 0o100;
const O_TRUNC: i32 = 0o1000;
const O_APPEND: i32 = 0o2000;

/// Where Hermit mounts the host's files; it sends paths with this prefix.
const MOUNT_POINT: &[u8] = b"/root";

const FIRST_FD: i32 = 3;
const MAX_OPEN: usize = 64;

pub(super) struct FileServer {
    folder: Option<OwnedFd>,
    open: BTreeMap<i32, File>,
}

impl FileServer {
    pub(super) fn new(folder: Option<&Path>) -> Result<Self, Error> {
        let folder = folder
            .map(|path| {
                let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
                rustix::fs::open(path, flags, Mode::empty()).map_err(|e| Error::Files {
                    path: display(path),
                    source: e.into(),
                })
            })
            .transpose()?;
        Ok(Self {
            folder,
            open: BTreeMap::new(),
        })
    }

    pub(super) fn open_count(&self) -> usize {
        self.open.len()
    }

    /// Opens a file for reading; the error is an errno.
    pub(super) fn open(&mut self, path: &[u8], flags: i32) -> Result<i32, i32> {
        if flags & (O_ACCMODE | O_CREAT | O_TRUNC | O_APPEND) != 0 {
            return Err(errno::EROFS);
        }
        if self.open.len() >= MAX_OPEN {
            return Err(errno::EMFILE);
        }
        // Non-blocking, so that opening a FIFO cannot hang the guest.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
        let file = self
            .open_beneath(path, flags)
            .map_err(|e| guest_errno(&e))?;
        if file.metadata().is_ok_and(|metadata| metadata.is_dir()) {
            return Err(errno::EISDIR);
        }
        let fd = (FIRST_FD..)
            .find(|fd| !self.open.contains_key(fd))
            .unwrap_or(FIRST_FD);
        self.open.insert(fd, file);
        Ok(fd)
    }

    fn open_beneath(&self, path: &[u8], flags: OFlags) -> io::Result<File> {
        let folder = self.folder.as_ref().ok_or(io::ErrorKind::NotFound)?;
        let below = match path.strip_prefix(MOUNT_POINT) {
            Some(rest) if rest.is_empty() || rest.starts_with(b"/") => rest,
            _ => path,
        };
        let start = below
            .iter()
            .position(|&byte| byte != b'/')
            .unwrap_or(below.len());
        let relative = match &below[start..] {
            [] => Path::new("."),
            relative => Path::new(std::ffi::OsStr::from_bytes(relative)),
        };
        let flags = flags | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        let fd = rustix::fs::openat2(folder, relative, flags, Mode::empty(), resolve)?;
        Ok(File::from(fd))
    }

    pub(super) fn get(&mut self, fd: i32) -> Option<&mut File> {
        self.open.get_mut(&fd)
    }

    pub(super) fn close(&mut self, fd: i32) -> i32 {
        // Closing a standard stream is fine and does nothing.
        let known = (0..FIRST_FD).contains(&fd) || self.open.remove(&fd).is_some();
        if known { 0 } else { -errno::EBADF }
    }

    /// The new position, or a negative errno.
    pub(super) fn seek(&mut self, fd: i32, offset: i64, whence: i64) -> i64 {
        let Some(file) = self.open.get_mut(&fd) else {
            return -i64::from(errno::EBADF);
        };
        let to = match (whence, u64::try_from(offset)) {
            (0, Ok(offset)) => SeekFrom::Start(offset),
            (1, _) => SeekFrom::Current(offset),
            (2, _) => SeekFrom::End(offset),
            _ => return -i64::from(errno::EINVAL),
        };
        match file.seek(to) {
            Ok(position) => i64::try_from(position).unwrap_or(i64::MAX),
            Err(error) => -i64::from(guest_errno(&error)),
        }
    }

    /// Metadata of a path or of an open file.
    pub(super) fn metadata(&mut self, what: What<'_>) -> Result<std::fs::Metadata, i32> {
        let metadata = match what {
            What::Path { path, follow } => {
                let no_follow = OFlags::NOFOLLOW;
                let flags = OFlags::PATH | if follow { OFlags::empty() } else { no_follow };
                self.open_beneath(path, flags)
                    .and_then(|file| file.metadata())
            }
            What::Open(fd) => match self.open.get(&fd) {
                Some(file) => file.metadata(),
                None => return Err(errno::EBADF),
            },
        };
        metadata.map_err(|e| guest_errno(&e))
    }
}

/// Whose metadata are asked for.
pub(super) enum What<'a> {
    Path {
        path: &'a [u8],
        /// Whether a symbolic link stands for what it points to.
        follow: bool,
    },
    Open(i32),
}

/// The errno that a guest is told for a host error. Paths that lead out of the folder are told
/// as what they are to the guest: not there.
pub(super) fn guest_errno(error: &io::Error) -> i32 {
    match error.raw_os_error() {
        Some(libc::EXDEV | libc::ELOOP | libc::ENOENT) => errno::ENOENT,
        Some(libc::EACCES | libc::EPERM) => errno::EACCES,
        Some(libc::EISDIR) => errno::EISDIR,
        Some(libc::EINVAL) => errno::EINVAL,
        Some(libc::ENAMETOOLONG) => errno::ENAMETOOLONG,
        Some(_) => errno::EIO,
        None if error.kind() == io::ErrorKind::NotFound => errno::ENOENT,
        None => errno::EIO,
    }
}
