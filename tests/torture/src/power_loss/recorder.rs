//! Follows what a worker does to files, system call by system call.

use std::collections::HashMap;
use std::path::{Component, Path, PathBuf};
use std::process::Child;

use anyhow::{Context, Result, bail};
use nix::libc::{self, c_long};

use super::disk::{Disk, Inode, Name, ROOT};
use crate::tracee::{self, Call, Tracer, Verdict};
use crate::worker::Ended;

/// System calls that would change files behind the recorder's back.
const UNKNOWN: &[c_long] = &[
    libc::SYS_writev,
    libc::SYS_pwritev,
    libc::SYS_pwritev2,
    libc::SYS_copy_file_range,
    libc::SYS_sendfile,
    libc::SYS_splice,
    libc::SYS_symlink,
    libc::SYS_symlinkat,
    libc::SYS_truncate,
    libc::SYS_fallocate,
    libc::SYS_io_uring_enter,
    libc::SYS_creat,
];

/// An open file.
#[derive(Clone, Copy)]
struct Open {
    inode: Inode,
    at: usize,
}

/// Keeps what workers do below a folder, one after the other.
pub(super) struct Recorder {
    root: PathBuf,
    open: HashMap<u64, Open>,
    /// System calls that the worker makes before it is killed; nothing where it lives.
    life: Option<usize>,
    pub(super) disk: Disk,
}

impl Recorder {
    /// Records what happens below `root`, which is there, is empty, and has no links in its path.
    pub(super) fn new(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
            open: HashMap::new(),
            life: None,
            disk: Disk::new(),
        }
    }

    /// Runs the worker `child` to its end; with a `life`, it is killed after so many system calls.
    pub(super) fn follow(&mut self, child: Child, life: Option<usize>) -> Result<Ended> {
        self.open.clear();
        self.life = life;
        tracee::run(child, self)
    }

    /// The name that a call means; nothing where it is not below the folder.
    fn name(&self, call: &Call, folder: Option<usize>, path: usize) -> Result<Option<Name>> {
        let path = PathBuf::from(call.path(path)?);
        let (mut inode, inner) = match (path.strip_prefix(&self.root), folder) {
            (Ok(inner), _) => (ROOT, inner),
            (Err(_), Some(folder)) if path.is_relative() => {
                match self.open.get(&call.arguments[folder]) {
                    Some(open) => (open.inode, path.as_path()),
                    None => return Ok(None),
                }
            }
            _ => return Ok(None),
        };
        let mut parts: Vec<String> = Vec::new();
        for part in inner.components() {
            match part {
                Component::Normal(part) => parts.push(part.to_string_lossy().into_owned()),
                Component::CurDir => {}
                _ => bail!("{} leads upwards", path.display()),
            }
        }
        let Some(last) = parts.pop() else {
            return Ok(None); // the folder itself, whose name does not change
        };
        for part in parts {
            let Some(next) = self.disk.find(&(inode, part)) else {
                return Ok(None); // the call has failed
            };
            inode = next;
        }
        Ok(Some((inode, last)))
    }

    fn opened(&mut self, call: &Call, folder: Option<usize>, path: usize, fd: u64) -> Result<()> {
        let flags = call.arguments[path + 1];
        let is_set = |flag: i32| flags & flag as u64 != 0;
        let inode = match self.name(call, folder, path)? {
            Some(name) => match self.disk.find(&name) {
                Some(inode) => inode,
                None if is_set(libc::O_CREAT) => self.disk.create(name, false),
                None => bail!("{name:?} was opened and is not known"),
            },
            None if Path::new(&call.path(path)?) == self.root => ROOT,
            None => return Ok(()),
        };
        if is_set(libc::O_TRUNC) {
            self.disk.resize(inode, 0);
        }
        self.open.insert(fd, Open { inode, at: 0 });
        Ok(())
    }

    fn renamed(&mut self, from: Option<Name>, to: Option<Name>) -> Result<()> {
        let (Some(from), Some(to)) = (from, to) else {
            return Ok(());
        };
        let inode = self
            .disk
            .find(&from)
            .context("an unknown file was renamed")?;
        self.disk.names(Some(from), Some((to, inode)));
        Ok(())
    }

    fn linked(&mut self, from: Option<Name>, to: Option<Name>) -> Result<()> {
        let (Some(from), Some(to)) = (from, to) else {
            return Ok(());
        };
        let inode = self
            .disk
            .find(&from)
            .context("an unknown file was linked")?;
        self.disk.names(None, Some((to, inode)));
        Ok(())
    }
}

impl Tracer for Recorder {
    fn enter(&mut self, _call: &Call) -> Result<Verdict> {
        Ok(match &mut self.life {
            Some(0) => Verdict::Kill,
            Some(calls) => {
                *calls -= 1;
                Verdict::Pass
            }
            None => Verdict::Pass,
        })
    }

    fn leave(&mut self, call: &Call, returned: i64) -> Result<()> {
        let Ok(value) = u64::try_from(returned) else {
            return Ok(()); // it has failed
        };
        let arguments = &call.arguments;
        match call.number {
            libc::SYS_open => self.opened(call, None, 0, value)?,
            libc::SYS_openat => self.opened(call, Some(0), 1, value)?,
            libc::SYS_close => drop(self.open.remove(&arguments[0])),
            libc::SYS_dup | libc::SYS_fcntl => {
                let commands = [libc::F_DUPFD, libc::F_DUPFD_CLOEXEC];
                let copies = call.number == libc::SYS_dup
                    || commands
                        .iter()
                        .any(|command| *command as u64 == arguments[1]);
                if copies && let Some(open) = self.open.get(&arguments[0]).copied() {
                    self.open.insert(value, open);
                }
            }
            libc::SYS_mkdir | libc::SYS_mkdirat => {
                let at = usize::from(call.number == libc::SYS_mkdirat);
                if let Some(name) = self.name(call, (at == 1).then_some(0), at)? {
                    self.disk.create(name, true);
                }
            }
            libc::SYS_rename => {
                let (from, to) = (self.name(call, None, 0)?, self.name(call, None, 1)?);
                self.renamed(from, to)?;
            }
            libc::SYS_renameat | libc::SYS_renameat2 => {
                let (from, to) = (self.name(call, Some(0), 1)?, self.name(call, Some(2), 3)?);
                self.renamed(from, to)?;
            }
            libc::SYS_link => {
                let (from, to) = (self.name(call, None, 0)?, self.name(call, None, 1)?);
                self.linked(from, to)?;
            }
            libc::SYS_linkat => {
                let (from, to) = (self.name(call, Some(0), 1)?, self.name(call, Some(2), 3)?);
                self.linked(from, to)?;
            }
            libc::SYS_unlink | libc::SYS_rmdir => {
                if let Some(name) = self.name(call, None, 0)? {
                    self.disk.names(Some(name), None);
                }
            }
            libc::SYS_unlinkat => {
                if let Some(name) = self.name(call, Some(0), 1)? {
                    self.disk.names(Some(name), None);
                }
            }
            libc::SYS_write if arguments[0] == 1 => self.disk.done(),
            libc::SYS_write => {
                if let Some(open) = self.open.get_mut(&arguments[0]) {
                    let bytes = call.bytes(1, value)?;
                    self.disk.write(open.inode, open.at, bytes);
                    open.at += value as usize;
                }
            }
            libc::SYS_pwrite64 => {
                if let Some(open) = self.open.get(&arguments[0]) {
                    let bytes = call.bytes(1, value)?;
                    self.disk.write(open.inode, arguments[3] as usize, bytes);
                }
            }
            libc::SYS_fsync | libc::SYS_fdatasync => {
                if let Some(open) = self.open.get(&arguments[0]) {
                    self.disk.flush(open.inode);
                }
            }
            libc::SYS_ftruncate => {
                if let Some(open) = self.open.get(&arguments[0]) {
                    self.disk.resize(open.inode, arguments[1] as usize);
                }
            }
            // A lock or a lease says who uses a file, and goes with its process.
            libc::SYS_flock => {}
            number if UNKNOWN.contains(&number) => {
                bail!("system call {number} is not known to the recorder")
            }
            _ => {}
        }
        Ok(())
    }
}
