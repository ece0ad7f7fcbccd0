//! Who has a snapshot open: what removal asks before it takes one away.

use std::fs::File;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::state_file::StateFile;
use crate::{Error, FunctionName, Result, SnapshotId, Store, files};

/// The sign that somebody uses a snapshot: a shared lock (flock) on its `snapshot.dms`, held as long
/// as this value lives. While there is one, in whatever process, the snapshot cannot be removed by
/// itself. A process that dies gives its leases up.
///
/// On a file system without locks it protects nothing; what is open stays readable there too.
#[derive(Debug)]
pub struct Lease {
    _file: File,
}

impl Lease {
    /// Takes a lease on the snapshot in `folder`. Waits for a remover that is about to rename it.
    fn take(folder: &Path) -> Result<Self> {
        let (file, _) = files::open(&folder.join(StateFile::NAME))?;
        let _ = rustix::io::retry_on_intr(|| flock(&file, FlockOperation::LockShared));
        Ok(Self { _file: file })
    }
}

impl Store {
    /// Takes a lease on the snapshot `id` of `function`, as opening it does.
    ///
    /// # Errors
    /// [`Error::UnknownSnapshot`] when there is none; [`Error::Damaged`] or [`Error::Io`] when its
    /// `snapshot.dms` cannot be opened.
    pub fn lease(&self, function: &FunctionName, id: SnapshotId) -> Result<Lease> {
        Lease::take(&self.snapshot_folder(function, id))
            .map_err(|error| self.or_unknown(function, id, error))
    }
}

/// The opposite of a lease: nobody can take one while it lives.
#[derive(Debug)]
pub(crate) struct Claim {
    _file: Option<File>,
}

impl Claim {
    /// Claims the snapshot in `folder`, unless somebody has a lease on it. An error where that
    /// cannot be told. To be held only as long
    /// as a rename takes, as those who open the snapshot wait for it.
    pub(crate) fn take(folder: &Path) -> Result<Option<Self>> {
        let path = folder.join(StateFile::NAME);
        let file = match files::open(&path) {
            Ok((file, _)) => file,
            // Nobody can have leased what cannot be opened: such a snapshot can be removed.
            Err(Error::Damaged { .. }) => return Ok(Some(Self { _file: None })),
            Err(error) if error.is_not_found() || error.is_not_a_folder() => {
                return Ok(Some(Self { _file: None }));
            }
            Err(error) => return Err(error),
        };
        match rustix::io::retry_on_intr(|| flock(&file, FlockOperation::NonBlockingLockExclusive)) {
            Ok(()) => Ok(Some(Self { _file: Some(file) })),
            Err(Errno::WOULDBLOCK) => Ok(None),
            // A file system without locks loses only the protection.
            Err(Errno::NOTSUP | Errno::NOSYS | Errno::NOLCK) => {
                Ok(Some(Self { _file: Some(file) }))
            }
            // NFS among them, which locks only what is open for writing (flock(2)): it has leases,
            // and cannot tell of them.
            Err(errno) => Err(Error::io("see whether somebody uses", &path)(errno)),
        }
    }
}
