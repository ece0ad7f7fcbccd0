//! The folder of an OCI image layout: blobs by their digests, and few files beside them.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use tempfile::NamedTempFile;

use crate::contents;
use crate::sha256::Sha256;
use crate::{Error, Result};

/// The folder that blobs lie in.
const BLOBS: &str = "blobs/sha256";

/// What the names of files begin with that are being written.
const TEMPORARY: &str = ".tmp";

/// A folder that may have come from anywhere.
pub(crate) struct LayoutFolder {
    path: PathBuf,
}

impl LayoutFolder {
    pub(crate) fn at(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// How errors call it.
    pub(crate) fn place(&self) -> String {
        self.path.display().to_string()
    }

    /// Whether nothing is there yet, or only what a first export leaves that was interrupted.
    pub(crate) fn is_fresh(&self) -> Result<bool> {
        let entries = match fs::read_dir(&self.path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
            Err(error) => return Err(Error::io("list", &self.path)(error)),
        };
        for entry in entries {
            let entry = entry.map_err(Error::io("list", &self.path))?;
            let kind = entry.file_type();
            let kind = kind.map_err(Error::io("inspect", entry.path()))?;
            let name = entry.file_name();
            let is_own = match name.to_str() {
                Some("blobs") => kind.is_dir(),
                Some(name) => kind.is_file() && name.starts_with(TEMPORARY),
                None => false,
            };
            if !is_own {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Creates the folder and the one for blobs where they are missing, and keeps others who add
    /// to the layout out until the lock is dropped.
    pub(crate) fn prepare(&self) -> Result<File> {
        // Blobs are parts of guest memory: for their owner's eyes only.
        let blobs = self.path.join(BLOBS);
        let missing = |folder: &&Path| !folder.as_os_str().is_empty() && !folder.exists();
        let created: Vec<_> = blobs.ancestors().take_while(missing).collect();
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&blobs)
            .map_err(Error::io("create the folder", &blobs))?;
        // A folder is there after a power loss once the one that it is in was flushed.
        for folder in created {
            let parent = folder.parent().filter(|path| !path.as_os_str().is_empty());
            let parent = parent.unwrap_or(Path::new("."));
            let flushed = File::open(parent).and_then(|parent| parent.sync_all());
            flushed.map_err(Error::io("flush the folder", parent))?;
        }
        self.check_folders()?;
        let lock = File::open(&self.path).map_err(Error::io("open", &self.path))?;
        rustix::io::retry_on_intr(|| flock(&lock, FlockOperation::LockExclusive))
            .map_err(Error::io("lock", &self.path))?;
        Ok(lock)
    }

    /// Makes sure that the folders of blobs are folders, and not links that lead elsewhere.
    pub(crate) fn check_folders(&self) -> Result<()> {
        for name in ["blobs", BLOBS] {
            let is_folder = fs::symlink_metadata(self.path.join(name)).map(|found| found.is_dir());
            if !is_folder.unwrap_or(false) {
                let reason = format!("it has no folder {name}");
                return Err(Error::not_an_export(&self.place(), reason));
            }
        }
        Ok(())
    }

    /// The content of the file `name`, which has at most `most_bytes`; nothing where there is none.
    pub(crate) fn read(&self, name: &str, most_bytes: u64) -> Result<Option<Vec<u8>>> {
        let Some((file, bytes)) = self.open(name)? else {
            return Ok(None);
        };
        if bytes > most_bytes {
            let what = format!("its file {name} has {bytes} bytes of at most {most_bytes}");
            return Err(Error::damaged(&self.place(), what));
        }
        let mut content = Vec::new();
        file.take(most_bytes)
            .read_to_end(&mut content)
            .map_err(Error::io("read", self.path.join(name)))?;
        Ok(Some(content))
    }

    /// The content of a blob, compared with its digest.
    pub(crate) fn read_blob(
        &self,
        digest: &Sha256,
        bytes: u64,
        most_bytes: u64,
    ) -> Result<Vec<u8>> {
        if bytes > most_bytes {
            let what = format!("it claims {bytes} bytes for the blob {digest}");
            return Err(Error::damaged(&self.place(), what));
        }
        let mut content = Vec::new();
        self.open_blob(digest, bytes)?
            .take(bytes)
            .read_to_end(&mut content)
            .map_err(Error::io("read", self.path.join(blob_name(digest))))?;
        if Sha256::of(&content) != *digest {
            let what = format!("the blob {digest} does not match its digest");
            return Err(Error::damaged(&self.place(), what));
        }
        Ok(content)
    }

    /// Opens a blob, which has to have `bytes`. Its content is not compared with its digest yet.
    pub(crate) fn open_blob(&self, digest: &Sha256, bytes: u64) -> Result<File> {
        let Some((file, found)) = self.open(&blob_name(digest))? else {
            let what = format!("the blob {digest} is missing");
            return Err(Error::damaged(&self.place(), what));
        };
        if found != bytes {
            let what = format!("the blob {digest} has {found} bytes instead of {bytes}");
            return Err(Error::damaged(&self.place(), what));
        }
        Ok(file)
    }

    /// Whether a good blob of this digest is there.
    pub(crate) fn has_blob(&self, digest: &Sha256, bytes: u64) -> bool {
        let found = self.open_blob(digest, bytes).ok();
        found.is_some_and(|file| contents::digest(file).is_ok_and(|found| found == *digest))
    }

    /// Writes a blob.
    pub(crate) fn write_blob(&self, digest: &Sha256, content: impl Read) -> Result<()> {
        self.write(&blob_name(digest), content)
    }

    /// Writes the file `name`, which is there in full or as it was.
    pub(crate) fn write(&self, name: &str, mut content: impl Read) -> Result<()> {
        let path = self.path.join(name);
        let mut write = || {
            let temp = NamedTempFile::with_prefix_in(TEMPORARY, &self.path)?;
            let mut writer = io::BufWriter::with_capacity(256 * 1024, temp.as_file());
            io::copy(&mut content, &mut writer)?;
            writer.flush()?;
            drop(writer);
            temp.as_file().sync_all()?;
            temp.persist(&path)?;
            let folder = path.parent().unwrap_or(&self.path);
            File::open(folder)?.sync_all()
        };
        write().map_err(Error::io("write", &path))
    }

    /// Opens the regular file `name` and tells its size; nothing where there is none.
    fn open(&self, name: &str) -> Result<Option<(File, u64)>> {
        let path = self.path.join(name);
        let not_regular =
            || Error::damaged(&self.place(), format!("its {name} is not a regular file"));
        // A symbolic link could lead anywhere, and opening a FIFO would block.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = match rustix::fs::open(&path, flags, Mode::empty()) {
            Ok(fd) => File::from(fd),
            Err(rustix::io::Errno::NOENT) => return Ok(None),
            Err(rustix::io::Errno::LOOP) => return Err(not_regular()),
            Err(errno) => return Err(Error::io("open", &path)(errno)),
        };
        let metadata = file.metadata().map_err(Error::io("inspect", &path))?;
        if !metadata.is_file() {
            return Err(not_regular());
        }
        Ok(Some((file, metadata.len())))
    }
}

fn blob_name(digest: &Sha256) -> String {
    format!("{BLOBS}/{digest}")
}
