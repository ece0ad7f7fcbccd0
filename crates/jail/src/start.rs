//! Starts programs with nothing but a socket, and sees how they end.

use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{ChildStderr, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid,
};

use crate::ending::Ending;
use crate::error::Error;
use crate::group::{Group, GroupLimits};
use crate::kernel;

/// What to start.
#[derive(Debug, Clone)]
pub struct Program {
    /// The executable. `/proc/self/exe` is the caller's own, also where another file has its name now.
    pub path: PathBuf,
    /// The name that it sees, and that is seen of it.
    pub name: OsString,
    /// Its arguments, without its own name.
    pub args: Vec<OsString>,
    /// Its whole environment.
    pub environment: Vec<(OsString, OsString)>,
    /// Where what it says on standard error goes.
    pub stderr: ProgramStderr,
}

/// Where what a program says on standard error goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProgramStderr {
    /// To the caller's own, which it shares then, with all that can be done to that.
    Shared,
    /// Into a pipe, which [`Jailed::take_stderr`] has the other end of.
    Piped,
}

/// Starts a program: one end of a stream socket as its descriptor 0, `/dev/null` as 1, standard error as
/// asked for as 2, no other descriptor, `/` as its directory, and a session of its own.
///
/// # Errors
///
/// The kernel's, where the program cannot be started. Nothing is left behind then.
pub fn spawn(program: &Program) -> Result<Jailed, Error> {
    let (socket, theirs) = UnixStream::pair().map_err(Error::os("socketpair(AF_UNIX)"))?;
    let failed = |source| Error::Start {
        path: program.path.clone(),
        source,
    };
    let mut command = Command::new(&program.path);
    command
        .args(&program.args)
        .env_clear()
        .envs(
            program
                .environment
                .iter()
                .map(|(name, value)| (name, value)),
        )
        .current_dir("/")
        .stdin(OwnedFd::from(theirs))
        .stdout(Stdio::null())
        .arg0(&program.name)
        .stderr(match program.stderr {
            ProgramStderr::Shared => Stdio::inherit(),
            ProgramStderr::Piped => Stdio::piped(),
        });
    kernel::leave_everything_at_exec(&mut command);
    let mut child = command.spawn().map_err(failed)?;
    // The child is not reaped before its pidfd is used for that, so the number stays its own.
    let pid = Pid::from_child(&child);
    match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(pidfd) => Ok(Jailed {
            pid,
            pidfd,
            socket: Some(socket),
            stderr: child.stderr.take(),
            ending: Mutex::new(None),
            group: None,
        }),
        Err(errno) => {
            // What cannot be watched is not left to itself. It fails only where it is gone.
            let _ = child.kill();
            let _ = child.wait();
            Err(failed(errno.into()))
        }
    }
}

/// A process that was started by [`spawn`]. Dropping it kills the process and reaps it, which takes
/// as long as the kernel needs to free its memory.
///
/// All of it may be used from several threads at once. Its descriptor ([`AsFd`]) becomes readable
/// when the process has ended (`pidfd_open(2)`).
#[derive(Debug)]
pub struct Jailed {
    pid: Pid,
    pidfd: OwnedFd,
    socket: Option<UnixStream>,
    stderr: Option<ChildStderr>,
    /// Set once the process is reaped.
    ending: Mutex<Option<Ending>>,
    /// Dropped, and with that removed, after the process is reaped.
    group: Option<Group>,
}

impl Jailed {
    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// The front's end of its socket; nothing the second time. Once it is closed, and all its
    /// copies are, the worker reads end of file.
    pub fn take_socket(&mut self) -> Option<UnixStream> {
        self.socket.take()
    }

    /// What it says on standard error, where that was asked for; nothing the second time. It is a hostile
    /// text, and the process waits where nobody reads it.
    pub fn take_stderr(&mut self) -> Option<ChildStderr> {
        self.stderr.take()
    }

    /// Puts the process into a control group of its own, which goes when this does. What it holds by
    /// then is charged elsewhere, so this comes first.
    ///
    /// # Errors
    ///
    /// Where this host gives no control group away; nothing has changed then, and the process may
    /// well go on without. Where it has one already.
    pub fn limit(&mut self, limits: &GroupLimits) -> Result<(), Error> {
        let group = match self.group {
            None => Group::around(self.pid(), limits),
            Some(_) => Err("it has one already".into()),
        };
        self.group = Some(group.map_err(|reason| Error::Group { reason })?);
        Ok(())
    }

    /// Ends the process with SIGKILL. It is well where it has ended before.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn kill(&self) -> Result<(), Error> {
        match pidfd_send_signal(&self.pidfd, Signal::KILL) {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(errno) => Err(Error::os("pidfd_send_signal(SIGKILL)")(errno)),
        }
    }

    /// How it has ended; nothing while it runs.
    ///
    /// # Errors
    ///
    /// The kernel's, also where somebody else in this process has reaped it.
    pub fn try_wait(&self) -> Result<Option<Ending>, Error> {
        let mut ending = self.ending.lock().unwrap_or_else(PoisonError::into_inner);
        if ending.is_none() {
            let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
            let status = waitid(WaitId::PidFd(self.pidfd.as_fd()), options)
                .map_err(Error::os("waitid(P_PIDFD)"))?;
            *ending = status.as_ref().map(Ending::of);
        }
        Ok(*ending)
    }

    /// Waits until it has ended.
    ///
    /// # Errors
    ///
    /// As of [`Jailed::try_wait`].
    pub fn wait(&self) -> Result<Ending, Error> {
        loop {
            if let Some(ending) = self.wait_at_most(None)? {
                return Ok(ending);
            }
        }
    }

    /// Waits until it has ended, but not longer than `timeout`; nothing where it runs still.
    ///
    /// # Errors
    ///
    /// As of [`Jailed::try_wait`].
    pub fn wait_timeout(&self, timeout: Duration) -> Result<Option<Ending>, Error> {
        // What the kernel's type does not hold is for ever (292 billion years).
        self.wait_at_most(Timespec::try_from(timeout).ok().as_ref())
    }

    fn wait_at_most(&self, timeout: Option<&Timespec>) -> Result<Option<Ending>, Error> {
        let mut watched = [PollFd::new(&self.pidfd, PollFlags::IN)];
        match poll(&mut watched, timeout) {
            Ok(_) | Err(Errno::INTR) => self.try_wait(),
            Err(errno) => Err(Error::os("poll(pidfd)")(errno)),
        }
    }
}

impl AsFd for Jailed {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

impl Drop for Jailed {
    fn drop(&mut self) {
        let ended = matches!(self.try_wait(), Ok(Some(_)) | Err(_));
        // Where it cannot be killed there is nobody to tell; waiting for it then would be for ever.
        if !ended && self.kill().is_ok() {
            let _ = self.wait();
        }
    }
}
