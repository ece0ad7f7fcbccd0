//! The calls that Rust cannot prove.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::process::setsid;
use rustix::thread::{UnshareFlags, unshare_unsafe};

/// The first descriptor after standard input, output and error (`stdin(3)`).
const FIRST_AFTER_STANDARD: libc::c_uint = 3;

/// Has the command's process leave the caller's session, so that neither the terminal nor its keys
/// reach it, and has every descriptor but the standard three closed as it becomes the program:
/// also those that somebody opened without `O_CLOEXEC`.
pub(crate) fn leave_everything_at_exec(command: &mut Command) {
    let hook = || {
        setsid()?;
        // CLOSE_RANGE_CLOEXEC (`close_range(2)`, Linux 5.11) and not closing at once: the standard
        // library reports a failed `exec` through a descriptor of its own.
        // SAFETY: no pointers are passed, and nothing is closed in the process as it is: the
        // descriptors only do not outlive an `exec`, which no Rust value does either.
        let answer = unsafe {
            libc::syscall(
                libc::SYS_close_range,
                FIRST_AFTER_STANDARD,
                libc::c_uint::MAX,
                libc::CLOSE_RANGE_CLOEXEC,
            )
        };
        if answer == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    };
    // SAFETY: between `fork` and `exec` the hook makes two system calls and reads `errno`, all of
    // them async-signal-safe (`signal-safety(7)`); it takes no lock and does not allocate.
    unsafe { command.pre_exec(hook) };
}

/// Moves the calling thread, which is the only one, into new namespaces (`unshare(2)`).
pub(crate) fn unshare(namespace: Namespace) -> io::Result<()> {
    let flags = match namespace {
        Namespace::User => UnshareFlags::NEWUSER,
        Namespace::Mount => UnshareFlags::NEWNS,
        Namespace::Network => UnshareFlags::NEWNET,
        Namespace::Ipc => UnshareFlags::NEWIPC,
        Namespace::Uts => UnshareFlags::NEWUTS,
        Namespace::Cgroup => UnshareFlags::NEWCGROUP,
    };
    // SAFETY: the one flag that is unsafe, CLONE_FILES, cannot be asked for through `Namespace`.
    unsafe { unshare_unsafe(flags) }.map_err(io::Error::from)
}

/// What a thread can leave for one of its own.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Namespace {
    User,
    Mount,
    Network,
    Ipc,
    Uts,
    Cgroup,
}
