//! What a child is told to do, and what it tells.

use std::env;
use std::ffi::OsString;
use std::path::PathBuf;

use dormouse_jail::{Layers, ResourceLimits};
use serde::{Deserialize, Serialize};

use crate::deed::Deed;

/// The argument before an order.
const CHILD: &str = "child";

/// What a child is told to do.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Order {
    pub(crate) host: Host,
    pub(crate) filter: Strictness,
    pub(crate) limits: ResourceLimits,
    /// Whether a panic prints where it was.
    pub(crate) backtrace: bool,
    pub(crate) deed: Deed,
    pub(crate) targets: Targets,
}

/// What the child's host is like. All of them are this host; where it is to have less, a filter
/// below the jail's answers in the kernel's place, or a privilege is given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Host {
    AsItIs,
    /// `unshare` is refused.
    WithoutNamespaces,
    /// There is no landlock.
    WithoutLandlock,
    /// The child is somebody without privileges.
    Unprivileged,
    /// Both.
    UnprivilegedWithoutNamespaces,
    /// The child has a second thread.
    WithThreads,
    /// The child has a descriptor that is not to be kept.
    WithLeak,
    /// Where there is no user id to be had, as in a container with few.
    WithoutIds,
}

/// Which system calls the jail leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Strictness {
    /// What the standard library needs.
    Strict,
    /// As strict, but threads may narrow themselves.
    Narrowable,
    /// As strict, but files are not there instead of death.
    Forgiving,
    /// All there are, so that the other layers are seen.
    Lenient,
}

/// Outside of the jail, what there is to be reached.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Targets {
    /// Another process, of the test or of another jail.
    pub(crate) process: i32,
    /// In the test's memory.
    pub(crate) address: u64,
    /// On loopback, listened on.
    pub(crate) tcp_port: u16,
    /// In the abstract namespace, listened on.
    pub(crate) unix_name: String,
    /// In a folder that anybody may write to, and not there.
    pub(crate) new_file: PathBuf,
}

/// What a child tells.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Report {
    /// It is in.
    Entered(Layers),
    /// It could not get in.
    Failed(String),
    /// It did what it was told.
    Done,
    /// It was not let, by this errno.
    Refused(i32),
}

impl Order {
    pub(crate) fn arguments(&self) -> Vec<OsString> {
        let order = serde_json::to_string(self).expect("an order is JSON");
        vec![CHILD.into(), order.into()]
    }
}

/// The order that this process was given.
pub(crate) fn given() -> Option<Order> {
    let mut arguments = env::args().skip(1);
    if arguments.next()? != CHILD {
        return None;
    }
    serde_json::from_str(&arguments.next()?).ok()
}
