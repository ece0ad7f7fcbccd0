//! Commands on a terminal.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::process::{Command, Stdio};

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

/// Runs a command whose stdout and stderr are one terminal, and returns all that it wrote there.
pub(crate) fn watch(command: &mut Command) -> io::Result<Vec<u8>> {
    let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY)?;
    grantpt(&ours)?;
    unlockpt(&ours)?;
    let name = ptsname(&ours, Vec::new())?;
    let path = std::ffi::OsStr::from_bytes(name.as_bytes());
    let theirs = OpenOptions::new().read(true).write(true).open(path)?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(theirs.try_clone()?)
        .stderr(theirs)
        .spawn()?;
    // The command keeps descriptors of the terminal's other end, without which reading ends.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut seen = Vec::new();
    // Linux ends it with an error, where the last who had the other end is gone.
    let _ = File::from(ours).read_to_end(&mut seen);
    child.wait()?;
    Ok(seen)
}
