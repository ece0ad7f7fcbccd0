//! What a guest may ask of its host: output, exit, arguments, files.
//!
//! [`v1`] and [`v2`] decode the two interfaces of Hermit; both end in the operations of [`GuestIo`].
//! All addresses, lengths and descriptors come from the guest and are checked; a call that cannot
//! be decoded ends the guest. What is read of its memory is read once: see [`guest`].

mod files;
mod guest;
mod v1;
mod v2;

use std::io::Read;
use std::os::fd::AsFd;
use std::path::Path;

use crate::config::MachineConfig;
use crate::console::{ExceptionWatch, GuestOutput, Stream};
use crate::error::Error;
use crate::image::Interface;
use crate::kick;
use crate::ram::GuestRam;
use files::FileServer;
use guest::{Buffer, COPY_BYTES, Guest};

/// Errors that guests are told, as Hermit numbers them (the crate hermit-abi, `errno`).
pub(crate) mod errno {
    pub(crate) const ENOENT: i32 = 2;
    pub(crate) const EIO: i32 = 5;
    pub(crate) const EBADF: i32 = 9;
    pub(crate) const EACCES: i32 = 13;
    pub(crate) const EISDIR: i32 = 21;
    pub(crate) const EINVAL: i32 = 22;
    pub(crate) const EMFILE: i32 = 24;
    pub(crate) const EROFS: i32 = 30;
    pub(crate) const ENAMETOOLONG: i32 = 36;
    pub(crate) const ENOSYS: i32 = 38;
}

/// How a hypercall ends.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Done {
    /// The guest goes on.
    Continue,
    /// The guest has ended with this code.
    Exit(i32),
    /// A kick came while the call waited for input: it must be made again.
    Again,
}

/// Why a hypercall cannot be served, in one sentence.
#[derive(Debug)]
pub(crate) struct BadHypercall(pub(crate) String);

impl From<Error> for BadHypercall {
    fn from(error: Error) -> Self {
        Self(format!("a hypercall's parameters are unusable: {error}"))
    }
}

type Answer = Result<Done, BadHypercall>;

/// The registers that carry a hypercall.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Call {
    pub(crate) port: u16,
    /// What the OUT instruction wrote.
    pub(crate) value: u32,
    pub(crate) rdi: u64,
    pub(crate) cr3: u64,
}

/// The most that one call may write. No deadline ends a call, so each must be short.
const MAX_WRITE_BYTES: u64 = 16 << 20;

/// The host's side of one guest.
pub(crate) struct GuestIo {
    interface: Interface,
    output: Box<dyn GuestOutput>,
    files: FileServer,
    stdin: bool,
    args: Vec<String>,
    env: Vec<(String, String)>,
    pub(crate) watch: ExceptionWatch,
}

impl GuestIo {
    pub(crate) fn new(
        interface: Interface,
        output: Box<dyn GuestOutput>,
        config: &MachineConfig,
    ) -> Result<Self, Error> {
        Ok(Self {
            interface,
            output,
            files: FileServer::new(config.files.as_deref())?,
            stdin: config.stdin,
            args: config.args.clone(),
            env: config.env.clone(),
            watch: ExceptionWatch::default(),
        })
    }

    pub(crate) fn interface(&self) -> Interface {
        self.interface
    }

    /// How many files the guest has open.
    pub(crate) fn open_files(&self) -> usize {
        self.files.open_count()
    }

    /// Serves a call, or says that the port is none of the guest's interface.
    pub(crate) fn call(&mut self, ram: &GuestRam, call: Call) -> Option<Answer> {
        let guest = Guest::new(ram, call.cr3);
        match self.interface {
            Interface::V1 => v1::call(self, guest, call),
            Interface::V2 => v2::call(self, guest, call),
        }
    }

    /// Console output of the kernel.
    fn serial(&mut self, bytes: &[u8]) {
        self.output.write(Stream::Kernel, bytes);
        self.watch.feed(bytes);
    }

    /// Copies `len` bytes out of a guest buffer to the console or to a file descriptor.
    fn write_out(&mut self, stream: Stream, buffer: Buffer<'_>, len: u64) -> Result<(), Error> {
        if len > MAX_WRITE_BYTES {
            return Err(Error::OutOfBounds {
                address: buffer.address(),
                length_bytes: len,
            });
        }
        buffer.copy_out(len, |piece| match stream {
            Stream::Kernel => self.serial(piece),
            stream => self.output.write(stream, piece),
        })
    }

    /// `write`: only standard output and standard error can be written to.
    fn write(&mut self, fd: i32, buffer: Buffer<'_>, len: u64) -> Result<i64, BadHypercall> {
        let stream = match fd {
            1 => Stream::Stdout,
            2 => Stream::Stderr,
            _ => return Ok(-i64::from(errno::EBADF)),
        };
        self.write_out(stream, buffer, len)?;
        Ok(i64::try_from(len).unwrap_or(i64::MAX))
    }

    /// `read`: from an open file, or from standard input where the guest may.
    fn read(&mut self, fd: i32, buffer: Buffer<'_>, len: u64) -> Result<i64, BadHypercall> {
        let mut bytes = vec![0; COPY_BYTES.min(usize::try_from(len).unwrap_or(COPY_BYTES))];
        let result = if fd == 0 {
            if self.stdin {
                // Not by `std::io::stdin`, whose buffer the wait before would not know of.
                rustix::io::read(std::io::stdin(), &mut bytes).map_err(Into::into)
            } else {
                Ok(0)
            }
        } else {
            match self.files.get(fd) {
                Some(file) => file.read(&mut bytes),
                None => return Ok(-i64::from(errno::EBADF)),
            }
        };
        match result {
            Ok(count) => {
                buffer.fill(&bytes[..count])?;
                Ok(count as i64)
            }
            Err(error) => Ok(-i64::from(files::guest_errno(&error))),
        }
    }

    /// Whether a read from `fd` must wait no longer: there is input, or its end, or no wait for it.
    fn is_readable(&self, fd: i32) -> bool {
        fd != 0 || !self.stdin || kick::wait_for_input(std::io::stdin().as_fd())
    }

    fn open(&mut self, path: Option<&[u8]>, flags: i32) -> i32 {
        match path {
            Some(path) => self.files.open(path, flags).unwrap_or_else(|errno| -errno),
            None => -errno::ENAMETOOLONG,
        }
    }
}

/// The folder of a guest, for messages.
fn display(path: &Path) -> String {
    path.display().to_string()
}
