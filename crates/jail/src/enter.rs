//! A process shuts the door behind itself.

use std::fs;
use std::os::fd::{AsFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::net::SocketType;
use rustix::net::sockopt::socket_type;
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use rustix::thread::set_no_new_privs;

use crate::error::Error;
use crate::filter::Filter;
use crate::layers::{LayerName, Layers, Standing};
use crate::limits::ResourceLimits;
use crate::{access, capabilities, identity, namespaces};

/// What a process keeps, and what it may do.
#[derive(Debug)]
pub struct Confinement<'a> {
    /// The descriptors that it has besides the standard three. Where anything else is open, it is
    /// an error: a jail with a leak says so instead of closing what somebody may think is his.
    pub keep: &'a [RawFd],
    /// How much it may have.
    pub limits: ResourceLimits,
    /// All that any of its threads may do from now on.
    pub system_calls: &'a Filter,
}

/// The socket that this process was started with. It has it as descriptor 0 as well.
///
/// # Errors
///
/// Where there is none: the process was started by something else.
pub fn socket() -> Result<UnixStream, Error> {
    let stdin = std::io::stdin();
    match socket_type(&stdin) {
        Ok(SocketType::STREAM) => {}
        _ => return Err(Error::NoSocket),
    }
    let copy = stdin.as_fd().try_clone_to_owned();
    copy.map(UnixStream::from)
        .map_err(Error::os("fcntl(F_DUPFD_CLOEXEC)"))
}

/// Confines this process, for good: its limits, its ids, its namespaces, its capabilities, its
/// access to files and ports, its system calls. It is called while there is one thread, once
/// everything is open that it needs; `/proc/self` is root's afterwards, and not to be seen.
///
/// # Errors
///
/// Where `no_new_privs`, not being dumpable, a resource limit or the filter cannot be had, where
/// there are several threads, and where something is open that is not to be kept. The process should end
/// then: part of the rest may be in place.
pub fn enter(confinement: &Confinement<'_>) -> Result<Layers, Error> {
    has_one_thread()?;
    has_only(confinement.keep)?;
    let mut layers = Layers::default();

    set_no_new_privs(true).map_err(Error::os("prctl(PR_SET_NO_NEW_PRIVS)"))?;
    layers.note(LayerName::NoNewPrivileges, Standing::InPlace);

    layers.note(LayerName::HostUser, identity::become_nobody_else());
    namespaces::leave_the_hosts(&mut layers);

    // After the namespaces: the maps of its ids could not be written any more.
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(Error::os("prctl(PR_SET_DUMPABLE)"))?;
    layers.note(LayerName::NotDumpable, Standing::InPlace);
    layers.note(LayerName::NoCapabilities, capabilities::drop_all());
    layers.note(LayerName::Landlock, access::refuse_all());

    let in_place = |name| layers.standing(name) == Some(&Standing::InPlace);
    let alone = in_place(LayerName::HostUser) || in_place(LayerName::UserNamespace);
    confinement.limits.apply(alone)?;
    let standing = match confinement.limits.threads {
        Some(_) if !alone => Standing::Weaker("its threads are counted with its user's".into()),
        _ => Standing::InPlace,
    };
    layers.note(LayerName::ResourceLimits, standing);

    confinement.system_calls.apply_to_thread()?;
    layers.note(LayerName::SystemCalls, Standing::InPlace);
    Ok(layers)
}

/// How long a thread that is about to end may take: those that the kernel puts beside a process, as
/// KVM does for a VM, end a moment after what they were there for.
const LAST_MOMENTS: Duration = Duration::from_secs(1);

fn has_one_thread() -> Result<(), Error> {
    let begun = Instant::now();
    loop {
        let threads = fs::read_dir("/proc/self/task");
        let count = threads.map_err(Error::os("open(/proc/self/task)"))?.count();
        if count == 1 {
            return Ok(());
        }
        if begun.elapsed() > LAST_MOMENTS {
            return Err(Error::Threads { count });
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn has_only(keep: &[RawFd]) -> Result<(), Error> {
    let folder = "/proc/self/fd";
    let open = fs::read_dir(folder).map_err(Error::os("open(/proc/self/fd)"))?;
    let numbers: Vec<RawFd> = open
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    let kept = |number: RawFd| number <= libc::STDERR_FILENO || keep.contains(&number);
    // The folder's own descriptor is closed by now, and leads nowhere.
    let found: Vec<_> = numbers
        .into_iter()
        .filter(|number| !kept(*number))
        .filter_map(|number| {
            let target = fs::read_link(format!("{folder}/{number}")).ok()?;
            Some(format!("{number} ({})", target.display()))
        })
        .collect();
    if found.is_empty() {
        Ok(())
    } else {
        Err(Error::Descriptors {
            found: found.join(", "),
        })
    }
}
