//! Files that nothing may write into any more.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use dormouse_snapshot::Digest;

use crate::content::Differs;

/// A file of a store, as it was when it was first seen.
#[derive(Debug)]
struct Sealed {
    path: PathBuf,
    /// Open, so that no other file gets its number.
    file: File,
    content: Digest,
}

/// All published files that were ever seen in a store, by their number (inode): packs are in several
/// snapshots, and those that are removed may still be in use.
#[derive(Debug, Default)]
pub(crate) struct Seals {
    files: BTreeMap<u64, Sealed>,
}

impl Seals {
    /// Seals all that is published in the store in `folder`.
    pub(crate) fn of(folder: &Path) -> Result<Self> {
        let mut seals = Self::default();
        seals.add(folder)?;
        Ok(seals)
    }

    /// Checks that nobody has written into a file that was seen before, and seals those that are new.
    pub(crate) fn check(&mut self, folder: &Path) -> Result<()> {
        for sealed in self.files.values() {
            let content = digest(&sealed.file)
                .with_context(|| format!("cannot read {} again", sealed.path.display()))?;
            ensure!(content == sealed.content, Differs("published file"));
        }
        self.add(folder)
    }

    fn add(&mut self, folder: &Path) -> Result<()> {
        for path in published(folder)? {
            // Somebody may remove it while we look, and where files are damaged it may be no file.
            let Ok(file) = File::open(&path) else {
                continue;
            };
            let metadata = file.metadata()?;
            if !metadata.is_file() || self.files.contains_key(&metadata.ino()) {
                continue;
            }
            let content = digest(&file)?;
            let sealed = Sealed {
                path,
                file,
                content,
            };
            self.files.insert(metadata.ino(), sealed);
        }
        Ok(())
    }
}

fn digest(file: &File) -> io::Result<Digest> {
    let mut content = vec![0; file.metadata()?.len() as usize];
    file.read_exact_at(&mut content, 0)?;
    Ok(Digest::of(&content))
}

/// The files of all snapshots, and the tags: what is complete from the moment at which it has its
/// name. Only locks and what nobody can see yet is left out.
fn published(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for path in paths(&folder)? {
            let name = path.file_name().unwrap_or_default();
            if name.to_string_lossy().starts_with('.') {
                continue;
            }
            match path.is_dir() {
                true => folders.push(path),
                false => files.push(path),
            }
        }
    }
    Ok(files)
}

fn paths(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.with_context(|| format!("cannot list {}", folder.display()))?,
    };
    let paths = entries.map(|entry| Ok(entry?.path()));
    Ok(paths.collect::<io::Result<_>>()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_into_a_published_file_is_found_even_where_its_name_is_gone() {
        let store = tempfile::tempdir().expect("a folder");
        let [old, new] = ["old", "new"].map(|name| store.path().join(name));
        fs::write(&old, "published").expect("a file");
        let mut seals = Seals::of(store.path()).expect("seals");
        fs::write(&new, "another file").expect("a file");
        fs::hard_link(&old, store.path().join("again")).expect("a link");
        seals.check(store.path()).expect("nothing was written into");

        let writer = File::options().write(true).open(&old).expect("a file");
        fs::rename(&new, &old).expect("another file in its place");
        fs::remove_file(store.path().join("again")).expect("no link");
        seals.check(store.path()).expect("nothing was written into");
        writer.write_all_at(b"P", 0).expect("a write");
        seals.check(store.path()).expect_err("it was written into");
    }
}
