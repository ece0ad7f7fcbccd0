//! The userfaultfd descriptor: opening, registering, reading events, and the four fill ioctls.
//!
//! The `userfaultfd` crate does all but the fills. It does not have the move, its `copy` cannot set the write-protect mode and
//! reports a negative count as a huge positive one; its `zeropage` loses a partial count. So the
//! fills are issued here and all judged by one function, [`progress`].
//!
//! Source of constants and semantics: Linux `include/uapi/linux/userfaultfd.h`,
//! `Documentation/admin-guide/mm/userfaultfd.rst`, `ioctl_userfaultfd(2)`.

pub(crate) mod pagemap;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd};
use std::sync::OnceLock;

use userfaultfd::{Event, EventBuffer, FaultKind, FeatureFlags, RegisterMode, UffdBuilder};

use crate::Error;
use crate::faults::Kind;
use crate::huge::HugeArea;

/// Feature bits of `struct uffdio_api` that the crate does not name.
pub(crate) const FEATURE_MISSING_SHMEM: u64 = 1 << 5;
pub(crate) const FEATURE_MINOR_SHMEM: u64 = 1 << 10;
pub(crate) const FEATURE_POISON: u64 = 1 << 14;
pub(crate) const FEATURE_WP_ASYNC: u64 = 1 << 15;
pub(crate) const FEATURE_MOVE: u64 = 1 << 16;

/// `USERFAULTFD_IOC_NEW`, `_IO(0xAA, 0)`: of the device, makes a new descriptor.
const USERFAULTFD_IOC_NEW: libc::c_ulong = 0xaa00;
/// `_IOWR(0xAA, 0x3f, struct uffdio_api)`.
const UFFDIO_API: libc::c_ulong = 0xc018_aa3f;
/// `UFFD_API`, the version of the interface.
const UFFD_API: u64 = 0xaa;
/// `_IOWR(0xAA, 3, struct uffdio_copy)`.
const UFFDIO_COPY: libc::c_ulong = 0xc028_aa03;
/// `_IOWR(0xAA, 4, struct uffdio_zeropage)`.
const UFFDIO_ZEROPAGE: libc::c_ulong = 0xc020_aa04;
/// `_IOWR(0xAA, 5, struct uffdio_move)`.
const UFFDIO_MOVE: libc::c_ulong = 0xc028_aa05;
/// `_IOWR(0xAA, 7, struct uffdio_continue)`.
const UFFDIO_CONTINUE: libc::c_ulong = 0xc020_aa07;

/// The `DONTWAKE` mode bit, the same one in all fills.
const MODE_DONTWAKE: u64 = 1 << 0;
/// `UFFDIO_COPY_MODE_WP`: the page arrives write-protected.
const COPY_MODE_WP: u64 = 1 << 1;

/// Events taken out of the kernel by one read.
const EVENTS_PER_READ: usize = 16;

/// `struct uffdio_api`.
#[repr(C)]
struct ApiArg {
    api: u64,
    features: u64,
    ioctls: u64,
}

/// `struct uffdio_copy` and `struct uffdio_move`, which have one layout.
#[repr(C)]
struct CopyArg {
    dst: u64,
    src: u64,
    len: u64,
    mode: u64,
    filled: i64,
}

/// `struct uffdio_zeropage` and `struct uffdio_continue`, which have one layout.
#[repr(C)]
struct RangeArg {
    start: u64,
    len: u64,
    mode: u64,
    filled: i64,
}

/// What a fill ioctl achieved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// So many bytes from the start are in.
    Bytes(u64),
    /// The first page is in already.
    Present,
    /// The page cache does not hold the first page.
    Absent,
    /// The range is not registered (any more).
    Gone,
    /// Nothing done, try again.
    Again,
    /// Another errno.
    Failed(i32),
}

impl Progress {
    /// The errno of a fill that came to nothing; 0 for one that did not.
    pub(crate) fn errno(self) -> i32 {
        match self {
            Self::Bytes(_) => 0,
            Self::Present => libc::EEXIST,
            Self::Absent => libc::EFAULT,
            Self::Gone => libc::ENOENT,
            Self::Again => libc::EAGAIN,
            Self::Failed(errno) => errno,
        }
    }
}

/// Judges a fill: its errno (0 if it succeeded), the count it left, and the bytes asked for.
///
/// On `EAGAIN` the count is either what was done before the interruption or the negated errno;
/// only a count that is positive and not more than was asked for is believed.
fn progress(errno: i32, count: i64, asked_bytes: u64) -> Progress {
    let done = u64::try_from(count)
        .ok()
        .filter(|&done| done > 0 && done <= asked_bytes);
    match (errno, done) {
        (0 | libc::EAGAIN, Some(done)) => Progress::Bytes(done),
        (0 | libc::EAGAIN, None) => Progress::Again,
        (libc::EEXIST, _) => Progress::Present,
        (libc::EFAULT, _) => Progress::Absent,
        (libc::ENOENT | libc::ESRCH, _) => Progress::Gone,
        (other, _) => Progress::Failed(other),
    }
}

/// A range's registration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Over a shared memory file: faults on pages it holds and on pages it does not.
    MinorAndMissing,
    /// Over anonymous memory.
    Missing,
    /// Over anonymous memory, and the kernel notes which pages get written.
    MissingAndWritten,
}

/// One fault as reported by the kernel.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FaultEvent {
    pub(crate) address: u64,
    pub(crate) kind: Kind,
}

/// The descriptor and what it may do.
#[derive(Debug)]
pub(crate) struct Uffd {
    inner: userfaultfd::Uffd,
    /// Whether the kernel can note writes without raising events (Linux 6.7).
    pub(crate) notes_writes: bool,
    /// Whether the kernel can move pages in (Linux 6.8).
    pub(crate) moves: bool,
}

/// The device that descriptors are made by, once [`keep_device`] has opened it.
static DEVICE: OnceLock<File> = OnceLock::new();

/// Opens `/dev/userfaultfd` for good: no descriptor is opened by path from then on.
pub(crate) fn keep_device() -> io::Result<&'static File> {
    if let Some(device) = DEVICE.get() {
        return Ok(device);
    }
    let device = File::options()
        .read(true)
        .write(true)
        .open("/dev/userfaultfd")?;
    Ok(DEVICE.get_or_init(|| device))
}

/// Opens a descriptor with exactly `features`; faults from kernel mode (KVM's) included.
pub(crate) fn open(features: u64) -> Result<userfaultfd::Uffd, userfaultfd::Error> {
    if let Some(device) = DEVICE.get() {
        return from_device(device, features).map_err(userfaultfd::Error::OpenDevUserfaultfd);
    }
    UffdBuilder::new()
        .close_on_exec(true)
        .non_blocking(true)
        .user_mode_only(false)
        .require_features(FeatureFlags::from_bits_retain(features))
        .create()
}

/// The same, by a device that is open.
fn from_device(device: &File, features: u64) -> io::Result<userfaultfd::Uffd> {
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
    // SAFETY: the ioctl takes flags by value and returns a new descriptor, which nobody else owns; it
    // is handed to its owner before anything can fail.
    let uffd = unsafe {
        let fd = libc::ioctl(device.as_raw_fd(), USERFAULTFD_IOC_NEW, flags);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        userfaultfd::Uffd::from_raw_fd(fd)
    };
    let mut api = ApiArg {
        api: UFFD_API,
        features,
        ioctls: 0,
    };
    // SAFETY: the argument has the layout of `struct uffdio_api` and outlives the call.
    let answer = unsafe { libc::ioctl(uffd.as_raw_fd(), UFFDIO_API, &raw mut api) };
    if answer < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(uffd)
}

impl Uffd {
    /// Opens the descriptor for a pager.
    pub(crate) fn new() -> Result<Self, userfaultfd::Error> {
        // A kernel that lacks a feature refuses all, and the younger came after the older.
        Self::with(FEATURE_WP_ASYNC | FEATURE_MOVE)
            .or_else(|_| Self::with(FEATURE_WP_ASYNC))
            .or_else(|_| Self::with(0))
    }

    /// Opens the descriptor with what is needed and more.
    fn with(more_features: u64) -> Result<Self, userfaultfd::Error> {
        Ok(Self {
            inner: open(FEATURE_MISSING_SHMEM | FEATURE_MINOR_SHMEM | more_features)?,
            notes_writes: more_features & FEATURE_WP_ASYNC != 0,
            moves: more_features & FEATURE_MOVE != 0,
        })
    }

    /// Registers a mapped range.
    pub(crate) fn register(&self, address: u64, bytes: u64, mode: Mode) -> Result<(), Error> {
        let bits = match mode {
            Mode::MinorAndMissing => RegisterMode::MISSING | RegisterMode::MINOR,
            Mode::Missing => RegisterMode::MISSING,
            Mode::MissingAndWritten => RegisterMode::MISSING | RegisterMode::WRITE_PROTECT,
        };
        self.inner
            .register_with_mode(address as *mut libc::c_void, bytes as usize, bits)
            .map(drop)
            .map_err(|error| uffd_error("UFFDIO_REGISTER", address, bytes, error))
    }

    /// Unregisters a range; wakes all who wait in it.
    pub(crate) fn unregister(&self, address: u64, bytes: u64) -> Result<(), Error> {
        self.inner
            .unregister(address as *mut libc::c_void, bytes as usize)
            .map_err(|error| uffd_error("UFFDIO_UNREGISTER", address, bytes, error))
    }

    /// Wakes all who wait in a range; they take their faults again.
    pub(crate) fn wake(&self, address: u64, bytes: u64) -> Result<(), Error> {
        self.inner
            .wake(address as *mut libc::c_void, bytes as usize)
            .map_err(|error| uffd_error("UFFDIO_WAKE", address, bytes, error))
    }

    /// Takes events out of the kernel until none is left; never blocks.
    pub(crate) fn read_events(
        &self,
        buffer: &mut EventBuffer,
        mut each: impl FnMut(FaultEvent),
    ) -> Result<(), Error> {
        loop {
            let mut count = 0;
            let events = self.inner.read_events(buffer);
            for event in events.map_err(|error| uffd_error("read(userfaultfd)", 0, 0, error))? {
                count += 1;
                // Only page faults can come: no other event was negotiated.
                if let Ok(Event::Pagefault { kind, addr, .. }) = event {
                    let kind = match kind {
                        FaultKind::Minor => Kind::Minor,
                        FaultKind::Missing | FaultKind::WriteProtected => Kind::Missing,
                    };
                    each(FaultEvent {
                        address: addr as u64,
                        kind,
                    });
                }
            }
            if count < EVENTS_PER_READ {
                return Ok(());
            }
        }
    }

    /// Maps pages that the page cache holds.
    pub(crate) fn fill_continue(&self, address: u64, bytes: u64, wake: bool) -> Progress {
        self.fill_range(UFFDIO_CONTINUE, address, bytes, wake)
    }

    /// Maps the zero page.
    pub(crate) fn fill_zero(&self, address: u64, bytes: u64, wake: bool) -> Progress {
        self.fill_range(UFFDIO_ZEROPAGE, address, bytes, wake)
    }

    fn fill_range(&self, request: libc::c_ulong, address: u64, bytes: u64, wake: bool) -> Progress {
        let mode = if wake { 0 } else { MODE_DONTWAKE };
        let mut arg = RangeArg {
            start: address,
            len: bytes,
            mode,
            filled: 0,
        };
        // SAFETY: both requests take this struct and write it only. They change nothing but absent
        // pages of ranges registered with this descriptor, which are guest memory.
        let result = unsafe { libc::ioctl(self.inner.as_raw_fd(), request, &raw mut arg) };
        progress(errno_of(result), arg.filled, bytes)
    }

    /// Copies into private pages. `note_writes` has them arrive write-protected, for a range that
    /// was registered as [`Mode::MissingAndWritten`].
    pub(crate) fn fill_copy(
        &self,
        address: u64,
        from: CopySource<'_>,
        bytes: u64,
        wake: bool,
        note_writes: bool,
    ) -> Progress {
        let mode =
            if wake { 0 } else { MODE_DONTWAKE } | if note_writes { COPY_MODE_WP } else { 0 };
        let (src, available) = match from {
            CopySource::Bytes(bytes) => (bytes.as_ptr() as u64, bytes.len() as u64),
            CopySource::Mapped { address, bytes } => (address, bytes),
        };
        let bytes = bytes.min(available);
        let mut arg = CopyArg {
            dst: address,
            src,
            len: bytes,
            mode,
            filled: 0,
        };
        // SAFETY: the request takes this struct and writes it only. The kernel checks the source
        // itself (EFAULT) and fills nothing but absent pages of ranges registered with this
        // descriptor, which are guest memory.
        let result = unsafe { libc::ioctl(self.inner.as_raw_fd(), UFFDIO_COPY, &raw mut arg) };
        progress(errno_of(result), arg.filled, bytes)
    }

    /// Moves pages of `area`, from `offset_bytes` on, into absent pages of anonymous memory; they
    /// are absent from the area then. Wakes nobody. Whole huge pages move as such.
    pub(crate) fn fill_move(
        &self,
        address: u64,
        area: &HugeArea,
        offset_bytes: u64,
        bytes: u64,
    ) -> Progress {
        let bytes = bytes.min(area.bytes().saturating_sub(offset_bytes));
        let mut arg = CopyArg {
            dst: address,
            src: area.address() + offset_bytes,
            len: bytes,
            mode: MODE_DONTWAKE,
            filled: 0,
        };
        // SAFETY: the request takes this struct and writes it only. The source lies within the
        // area, whose content nobody borrows while it is borrowed here. The kernel fills nothing
        // but absent pages of ranges registered with this descriptor, which are guest memory.
        let result = unsafe { libc::ioctl(self.inner.as_raw_fd(), UFFDIO_MOVE, &raw mut arg) };
        progress(errno_of(result), arg.filled, bytes)
    }
}

impl AsFd for Uffd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inner.as_fd()
    }
}

/// Where `UFFDIO_COPY` reads from.
#[derive(Clone, Copy, Debug)]
pub(crate) enum CopySource<'a> {
    /// A buffer.
    Bytes(&'a [u8]),
    /// Part of a mapping: its address and what is left of it.
    Mapped {
        /// Host address to read from.
        address: u64,
        /// Bytes from there to the mapping's end.
        bytes: u64,
    },
}

/// A buffer for [`Uffd::read_events`].
pub(crate) fn event_buffer() -> EventBuffer {
    EventBuffer::new(EVENTS_PER_READ)
}

fn errno_of(result: libc::c_int) -> i32 {
    if result == 0 {
        0
    } else {
        io::Error::last_os_error()
            .raw_os_error()
            .unwrap_or(libc::EIO)
    }
}

/// The I/O error inside an error of the userfaultfd crate.
pub(crate) fn io_error(error: userfaultfd::Error) -> io::Error {
    match error {
        userfaultfd::Error::SystemError(errno) | userfaultfd::Error::CopyFailed(errno) => {
            io::Error::from_raw_os_error(errno as i32)
        }
        userfaultfd::Error::OpenDevUserfaultfd(error) => error,
        other => io::Error::other(other),
    }
}

fn uffd_error(
    operation: &'static str,
    address: u64,
    length_bytes: u64,
    error: userfaultfd::Error,
) -> Error {
    Error::io(operation, address, length_bytes, io_error(error))
}
