//! A file system that promises no more than `fsync(2)` does.
//!
//! Content lasts once its file was flushed; a name, once its folder was. All else may be lost or
//! not, whatever came before or after it. Only a rename is one thing.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use rand::RngExt;
use rand::rngs::ChaCha8Rng;

/// A file or folder, by number.
pub(super) type Inode = usize;

/// The folder that was there and on disk before.
pub(super) const ROOT: Inode = 0;

/// A name in a folder.
pub(super) type Name = (Inode, String);

/// One thing that a process did.
#[derive(Debug)]
enum Step {
    Write {
        file: Inode,
        offset: usize,
        bytes: Vec<u8>,
    },
    Resize {
        file: Inode,
        bytes: usize,
    },
    Names {
        gone: Option<Name>,
        new: Option<(Name, Inode)>,
    },
    Flush(Inode),
    /// Somebody was told that an operation is done.
    Done,
}

/// All that happened to a disk, and how it looks to processes now.
#[derive(Debug)]
pub(super) struct Disk {
    steps: Vec<Step>,
    /// The names in each inode; none for files.
    folders: Vec<Option<BTreeMap<String, Inode>>>,
}

/// What is on a disk when the power is back.
#[derive(Default)]
struct Remains {
    names: BTreeMap<Name, Inode>,
    files: HashMap<Inode, Vec<u8>>,
}

impl Disk {
    pub(super) fn new() -> Self {
        Self {
            steps: Vec::new(),
            folders: vec![Some(BTreeMap::new())],
        }
    }

    /// How many steps there were.
    pub(super) fn steps(&self) -> usize {
        self.steps.len()
    }

    /// The moment just after the next time somebody was told that something is done.
    pub(super) fn next_done(&self, moment: usize) -> usize {
        let rest = self.steps[moment..].iter();
        let until = rest.take_while(|step| !matches!(step, Step::Done)).count();
        (moment + until + 1).min(self.steps.len())
    }

    /// How many operations were done before a moment.
    pub(super) fn done_before(&self, moment: usize) -> usize {
        let done = |step: &&Step| matches!(step, Step::Done);
        self.steps[..moment].iter().filter(done).count()
    }

    pub(super) fn find(&self, (folder, name): &Name) -> Option<Inode> {
        self.folders[*folder].as_ref()?.get(name).copied()
    }

    pub(super) fn create(&mut self, name: Name, is_folder: bool) -> Inode {
        let inode = self.folders.len();
        self.folders.push(is_folder.then(BTreeMap::new));
        self.names(None, Some((name, inode)));
        inode
    }

    pub(super) fn names(&mut self, gone: Option<Name>, new: Option<(Name, Inode)>) {
        if let Some((folder, name)) = &gone
            && let Some(names) = &mut self.folders[*folder]
        {
            names.remove(name);
        }
        if let Some(((folder, name), inode)) = &new
            && let Some(names) = &mut self.folders[*folder]
        {
            names.insert(name.clone(), *inode);
        }
        self.steps.push(Step::Names { gone, new });
    }

    pub(super) fn write(&mut self, file: Inode, offset: usize, bytes: Vec<u8>) {
        self.steps.push(Step::Write {
            file,
            offset,
            bytes,
        });
    }

    pub(super) fn resize(&mut self, file: Inode, bytes: usize) {
        self.steps.push(Step::Resize { file, bytes });
    }

    pub(super) fn flush(&mut self, inode: Inode) {
        self.steps.push(Step::Flush(inode));
    }

    pub(super) fn done(&mut self) {
        self.steps.push(Step::Done);
    }

    /// Makes in `folder` what may be left of the disk where the power goes away at `moment`: of what
    /// was not flushed, this `share`.
    pub(super) fn lose_power(
        &self,
        moment: usize,
        folder: &Path,
        share: f64,
        rng: &mut ChaCha8Rng,
    ) -> Result<()> {
        let mut remains = Remains::default();
        for (number, step) in self.steps[..moment].iter().enumerate() {
            let later = &self.steps[number..moment];
            let was_flushed = |inode: Inode| {
                let flushes =
                    |step: &Step| matches!(step, Step::Flush(flushed) if *flushed == inode);
                later.iter().any(flushes)
            };
            match step {
                Step::Write {
                    file,
                    offset,
                    bytes,
                } => {
                    if was_flushed(*file) {
                        remains.write(*file, *offset, bytes);
                    } else if rng.random_bool(share) {
                        let most = rng.random_range(0..=bytes.len());
                        remains.write(*file, *offset, &bytes[..most]);
                    }
                }
                Step::Resize { file, bytes } => {
                    if was_flushed(*file) || rng.random_bool(share) {
                        remains.files.entry(*file).or_default().resize(*bytes, 0);
                    }
                }
                Step::Names { gone, new } => {
                    // A rename lasts by the folder that it leads to: to flush the other one only
                    // is a mistake that must show.
                    let decides = new.as_ref().map(|(name, _)| name).or(gone.as_ref());
                    let lasts = decides.is_some_and(|(folder, _)| was_flushed(*folder));
                    // What was itself lost cannot be renamed by chance.
                    let can_be = gone
                        .as_ref()
                        .is_none_or(|gone| remains.names.contains_key(gone));
                    if lasts || can_be && rng.random_bool(share) {
                        self.rename(&mut remains, gone.as_ref(), new.as_ref());
                    }
                }
                Step::Flush(_) | Step::Done => {}
            }
        }
        self.make(ROOT, folder, &remains, &mut HashMap::new())
    }

    fn rename(&self, remains: &mut Remains, gone: Option<&Name>, new: Option<&(Name, Inode)>) {
        if let Some(gone) = gone {
            remains.names.remove(gone);
        }
        if let Some((name, inode)) = new {
            if self.folders[*inode].is_some() {
                // A folder is in one place only.
                remains.names.retain(|_, other| other != inode);
            }
            remains.names.insert(name.clone(), *inode);
        }
    }

    fn make(
        &self,
        inode: Inode,
        folder: &Path,
        remains: &Remains,
        made: &mut HashMap<Inode, PathBuf>,
    ) -> Result<()> {
        let names = remains.names.iter();
        for ((_, name), inode) in names.filter(|((parent, _), _)| *parent == inode) {
            let path = folder.join(name);
            if self.folders[*inode].is_some() {
                ensure!(
                    made.insert(*inode, path.clone()).is_none(),
                    "{name} is twice"
                );
                fs::create_dir(&path)?;
                self.make(*inode, &path, remains, made)?;
            } else if let Some(first) = made.get(inode) {
                fs::hard_link(first, &path)?;
            } else {
                fs::write(
                    &path,
                    remains.files.get(inode).map_or(&[][..], Vec::as_slice),
                )?;
                made.insert(*inode, path);
            }
        }
        Ok(())
    }
}

impl Remains {
    fn write(&mut self, file: Inode, offset: usize, bytes: &[u8]) {
        let content = self.files.entry(file).or_default();
        let end = offset + bytes.len();
        if content.len() < end {
            content.resize(end, 0);
        }
        content[offset..end].copy_from_slice(bytes);
    }
}
