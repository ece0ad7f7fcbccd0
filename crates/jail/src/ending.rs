//! How a process ended.

use std::fmt;

use rustix::process::WaitIdStatus;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// By itself, with this exit code.
    Exited(i32),
    /// By this signal (`signal(7)`).
    Killed(i32),
}

impl Ending {
    pub(crate) fn of(status: &WaitIdStatus) -> Self {
        match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => Self::Exited(code),
            (None, signal) => Self::Killed(signal.unwrap_or_default()),
        }
    }
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, meaning) = match *self {
            Self::Exited(0) => return f.write_str("ended by itself"),
            Self::Exited(code) => return write!(f, "ended by itself with exit code {code}"),
            Self::Killed(signal) => match signal {
                libc::SIGSYS => ("SIGSYS", "it made a system call that its filter forbids"),
                libc::SIGKILL => (
                    "SIGKILL",
                    "it was ended from outside, or the host had no memory left",
                ),
                libc::SIGSEGV => ("SIGSEGV", "it touched memory that it does not have"),
                libc::SIGBUS => ("SIGBUS", "it touched memory that could not be brought in"),
                libc::SIGABRT => ("SIGABRT", "it gave up"),
                libc::SIGILL => ("SIGILL", "it came to an instruction that does not exist"),
                libc::SIGXFSZ => ("SIGXFSZ", "it made a file longer than its limit"),
                libc::SIGTERM => ("SIGTERM", "it was asked to end"),
                other => return write!(f, "killed by signal {other}"),
            },
        };
        write!(f, "killed by {name}: {meaning}")
    }
}
