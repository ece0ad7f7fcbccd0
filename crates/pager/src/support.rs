//! What this host's userfaultfd can do, for `dormouse doctor`.

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use crate::{Error, fd};

/// One userfaultfd feature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Feature {
    /// The kernel's name for it.
    pub name: &'static str,
    /// Whether the pager cannot do without.
    pub required: bool,
    /// What it is for.
    pub purpose: &'static str,
    /// Whether this kernel has it.
    pub present: bool,
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostSupport {
    /// The features that matter, in a fixed order.
    pub features: Vec<Feature>,
}

impl HostSupport {
    /// Whether a pager can be made.
    #[must_use]
    pub fn usable(&self) -> bool {
        self.features
            .iter()
            .all(|feature| feature.present || !feature.required)
    }
}

const FEATURES: [(u64, Feature); 5] = [
    (
        fd::FEATURE_MISSING_SHMEM,
        Feature {
            name: "UFFD_FEATURE_MISSING_SHMEM",
            required: true,
            purpose: "zero pages of a shared snapshot (Linux 4.11)",
            present: false,
        },
    ),
    (
        fd::FEATURE_MINOR_SHMEM,
        Feature {
            name: "UFFD_FEATURE_MINOR_SHMEM",
            required: true,
            purpose: "snapshot pages shared without a copy (Linux 5.14)",
            present: false,
        },
    ),
    (
        fd::FEATURE_POISON,
        Feature {
            name: "UFFD_FEATURE_POISON",
            required: false,
            purpose: "marking unreadable pages (Linux 6.6)",
            present: false,
        },
    ),
    (
        fd::FEATURE_WP_ASYNC,
        Feature {
            name: "UFFD_FEATURE_WP_ASYNC",
            required: false,
            purpose: "telling written from read pages where snapshots are not local (Linux 6.7)",
            present: false,
        },
    ),
    (
        fd::FEATURE_MOVE,
        Feature {
            name: "UFFD_FEATURE_MOVE",
            required: false,
            purpose: "installing staged huge pages (Linux 6.8)",
            present: false,
        },
    ),
];

/// Finds out what userfaultfd can do here, by opening it with each feature in turn.
///
/// # Errors
/// [`Error::Unavailable`] with what was found and a remedy, if it cannot be opened at all.
pub fn probe() -> Result<HostSupport, Error> {
    fd::open(0).map_err(unavailable)?;
    let features = FEATURES
        .iter()
        .map(|&(bit, feature)| Feature {
            present: fd::open(bit).is_ok(),
            ..feature
        })
        .collect();
    Ok(HostSupport { features })
}

/// Opens, for good, all that pagers need by path: a process that cannot open files from then on can
/// still make pagers. Returns the descriptors.
///
/// # Errors
/// [`Error::Unavailable`] with a remedy where there is no `/dev/userfaultfd` for this process;
/// [`Error::Os`] for `/proc/self/pagemap`.
pub fn open_ahead() -> Result<Vec<RawFd>, Error> {
    let device = fd::keep_device()
        .map_err(|error| unavailable(userfaultfd::Error::OpenDevUserfaultfd(error)))?;
    fd::open(0).map_err(unavailable)?;
    // The first call looks for the way to do it without entering the kernel.
    let _ = rustix::thread::sched_getcpu();
    let pagemap = fd::pagemap::Pagemap::of_this_process()?;
    Ok(vec![device.as_raw_fd(), pagemap.as_raw_fd()])
}

/// Turns a failure to open userfaultfd into what to tell the operator.
pub(crate) fn unavailable(error: userfaultfd::Error) -> Error {
    let at_the_device = matches!(error, userfaultfd::Error::OpenDevUserfaultfd(_));
    let error = fd::io_error(error);
    let remedy = match error.kind() {
        io::ErrorKind::NotFound if at_the_device => {
            "/dev/userfaultfd is missing, which Linux has from 6.1 on: mknod it (major 10, minor from \
             /proc/misc), or run guests in the server's own process (`dormouse serve --isolation none`)"
        }
        io::ErrorKind::PermissionDenied if at_the_device => {
            "run as root or give this user access: chmod or chown /dev/userfaultfd"
        }
        io::ErrorKind::PermissionDenied => {
            "/dev/userfaultfd is missing: mknod it (major 10, minor from /proc/misc), \
             or run with CAP_SYS_PTRACE, or set sysctl vm.unprivileged_userfaultfd=1"
        }
        io::ErrorKind::InvalidInput => {
            "the kernel lacks UFFD_FEATURE_MINOR_SHMEM: Linux 5.14 or newer is needed"
        }
        io::ErrorKind::Unsupported => {
            "the kernel is built without CONFIG_USERFAULTFD, or a seccomp filter hides it: \
             use another kernel, or allow userfaultfd in the container's profile"
        }
        _ => "check that the kernel has CONFIG_USERFAULTFD and that /dev/userfaultfd works",
    };
    Error::Unavailable {
        reason: error.to_string(),
        remedy,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_has_its_own_remedy() {
        let denied = || io::Error::from_raw_os_error(libc::EACCES);
        let text = unavailable(userfaultfd::Error::OpenDevUserfaultfd(denied())).to_string();
        assert!(text.contains("chown /dev/userfaultfd"), "{text}");
        assert!(text.contains("denied"), "{text}");
    }
}
