//! A userfaultfd of the floor's own: registration, the fills of a plan, and a bare handler.
//!
//! Source of constants and semantics: Linux `include/uapi/linux/userfaultfd.h`,
//! `ioctl_userfaultfd(2)`.

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::ptr;
use std::sync::Arc;
use std::thread::JoinHandle;

use dormouse_pager::PAGE_BYTES;

use super::ioctl::{self, iowr};
use super::memory::Memory;
use crate::Error;

const UFFD: u64 = 0xAA;
const USERFAULTFD_IOC_NEW: libc::c_ulong = ioctl::io(UFFD, 0x00);
const UFFDIO_API: libc::c_ulong = iowr::<Api>(UFFD, 0x3F);
const UFFDIO_REGISTER: libc::c_ulong = iowr::<Register>(UFFD, 0x00);
const UFFDIO_COPY: libc::c_ulong = iowr::<Copy>(UFFD, 0x03);
const UFFDIO_ZEROPAGE: libc::c_ulong = iowr::<Fill>(UFFD, 0x04);
const UFFDIO_CONTINUE: libc::c_ulong = iowr::<Fill>(UFFD, 0x07);

/// The only version of the API.
const API_VERSION: u64 = 0xAA;
const FEATURE_MISSING_SHMEM: u64 = 1 << 5;
const FEATURE_MINOR_SHMEM: u64 = 1 << 10;
const REGISTER_MISSING: u64 = 1 << 0;
const REGISTER_MINOR: u64 = 1 << 2;
/// Of a fault's flags: the page cache holds the page.
const FAULT_MINOR: u64 = 1 << 2;
/// `DONTWAKE`, the same bit in all fills: nobody waits for what a replay brings in.
const DONTWAKE: u64 = 1 << 0;

/// `struct uffdio_api`
#[repr(C)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

/// `struct uffdio_register`
#[repr(C)]
struct Register {
    start: u64,
    len: u64,
    mode: u64,
    ioctls: u64,
}

/// `struct uffdio_copy`
#[repr(C)]
struct Copy {
    dst: u64,
    src: u64,
    len: u64,
    mode: u64,
    copied: i64,
}

/// `struct uffdio_continue` and `struct uffdio_zeropage`, which have one layout.
#[repr(C)]
struct Fill {
    start: u64,
    len: u64,
    mode: u64,
    filled: i64,
}

/// `struct uffd_msg`, as far as a page fault fills it.
#[repr(C)]
#[derive(Default)]
struct Message {
    event: u8,
    reserved: [u8; 7],
    flags: u64,
    address: u64,
    rest: u64,
}

/// How pages come in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StepKind {
    /// Mapped from the memory file: `UFFDIO_CONTINUE`.
    Continue,
    /// The zero page: `UFFDIO_ZEROPAGE`.
    Zero,
    /// Copied from the snapshot: `UFFDIO_COPY`.
    Copy,
    /// Zeros of their own, to be written: `UFFDIO_COPY` from a page of zeros.
    CopyZero,
}

/// One call of a replay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// How.
    pub kind: StepKind,
    /// Which pages.
    pub pages: Range<u64>,
}

/// A userfaultfd that blocks when it is read.
#[derive(Debug)]
pub(super) struct Uffd {
    fd: OwnedFd,
}

impl Uffd {
    /// Opens one that also sees the faults of the kernel (KVM's).
    ///
    /// # Errors
    /// [`Error::System`] where the process may not, or the kernel cannot.
    pub(super) fn new() -> Result<Self, Error> {
        let device = std::fs::File::open("/dev/userfaultfd");
        let device = device.map_err(Error::system("opening /dev/userfaultfd"))?;
        // SAFETY: the request takes flags and gives a new descriptor.
        let fd = unsafe { libc::ioctl(device.as_raw_fd(), USERFAULTFD_IOC_NEW, libc::O_CLOEXEC) };
        if fd < 0 {
            return Err(Error::system("USERFAULTFD_IOC_NEW")(
                io::Error::last_os_error(),
            ));
        }
        // SAFETY: the descriptor is new and nobody else's.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let mut api = Api {
            api: API_VERSION,
            features: FEATURE_MISSING_SHMEM | FEATURE_MINOR_SHMEM,
            ioctls: 0,
        };
        // SAFETY: the request reads and writes this struct.
        unsafe { ioctl::call(fd.as_fd(), "UFFDIO_API", UFFDIO_API, &raw mut api) }?;
        Ok(Self { fd })
    }

    /// Registers a guest's whole memory, for pages that the snapshot holds and that it does not.
    ///
    /// # Errors
    /// [`Error::System`].
    pub(super) fn register(&self, memory: &Memory) -> Result<(), Error> {
        self.register_range(
            memory.address(0),
            memory.bytes(),
            REGISTER_MISSING | REGISTER_MINOR,
        )
    }

    fn register_range(&self, start: u64, len: u64, mode: u64) -> Result<(), Error> {
        let mut register = Register {
            start,
            len,
            mode,
            ioctls: 0,
        };
        // SAFETY: the request reads and writes this struct. Registering changes no content.
        unsafe {
            ioctl::call(
                self.fd.as_fd(),
                "UFFDIO_REGISTER",
                UFFDIO_REGISTER,
                &raw mut register,
            )
        }?;
        Ok(())
    }

    /// Brings in the pages of a plan, one call for each step.
    ///
    /// # Errors
    /// [`Error::System`], or [`Error::Short`] where a call brings in less than its step.
    pub(super) fn replay(&self, memory: &Memory, steps: &[Step]) -> Result<(), Error> {
        for step in steps {
            self.fill(memory, step, DONTWAKE)?;
        }
        Ok(())
    }

    fn fill(&self, memory: &Memory, step: &Step, mode: u64) -> Result<(), Error> {
        let start = memory.address(step.pages.start);
        let len = (step.pages.end - step.pages.start) * PAGE_BYTES;
        let source = match step.kind {
            StepKind::Continue => {
                return self.map(("UFFDIO_CONTINUE", UFFDIO_CONTINUE), start, len, mode);
            }
            StepKind::Zero => {
                return self.map(("UFFDIO_ZEROPAGE", UFFDIO_ZEROPAGE), start, len, mode);
            }
            StepKind::Copy => memory.view_address(step.pages.start),
            StepKind::CopyZero => ZEROS.as_ptr() as u64,
        };
        if step.kind == StepKind::CopyZero && len > ZEROS.len() as u64 {
            for page in step.pages.clone() {
                let kind = step.kind;
                let pages = page..page + 1;
                self.fill(memory, &Step { kind, pages }, mode)?;
            }
            return Ok(());
        }
        let mut copy = Copy {
            dst: start,
            src: source,
            len,
            mode,
            copied: 0,
        };
        let fd = self.fd.as_fd();
        // SAFETY: the request reads and writes this struct. The kernel checks both ranges and fills
        // only absent pages of the registered range, which is guest memory.
        unsafe { ioctl::call(fd, "UFFDIO_COPY", UFFDIO_COPY, &raw mut copy) }?;
        whole("UFFDIO_COPY", copy.copied, len)
    }

    fn map(
        &self,
        (name, request): (&'static str, libc::c_ulong),
        start: u64,
        len: u64,
        mode: u64,
    ) -> Result<(), Error> {
        let mut fill = Fill {
            start,
            len,
            mode,
            filled: 0,
        };
        // SAFETY: the request reads and writes this struct. It fills only absent pages of the
        // registered range, which is guest memory.
        unsafe { ioctl::call(self.fd.as_fd(), name, request, &raw mut fill) }?;
        whole(name, fill.filled, len)
    }

    /// Waits for one fault.
    fn read(&self) -> Result<Message, Error> {
        let mut message = Message::default();
        // SAFETY: the kernel writes one message of 32 bytes at most, the size of the struct.
        let read = unsafe {
            libc::read(
                self.fd.as_raw_fd(),
                (&raw mut message).cast(),
                size_of::<Message>(),
            )
        };
        if read < 0 {
            return Err(Error::system("read(userfaultfd)")(
                io::Error::last_os_error(),
            ));
        }
        Ok(message)
    }
}

/// What zero pages are copied from.
static ZEROS: [u8; 16 * PAGE_BYTES as usize] = [0; 16 * PAGE_BYTES as usize];

fn whole(operation: &'static str, done: i64, wanted: u64) -> Result<(), Error> {
    if done == wanted as i64 {
        return Ok(());
    }
    Err(Error::Short {
        operation,
        done: u64::try_from(done).unwrap_or(0),
        wanted,
    })
}

/// A thread that does nothing but read a fault and continue the block of pages around it.
#[derive(Debug)]
pub struct Handler {
    thread: Option<JoinHandle<Result<(), Error>>>,
    /// A page whose fault ends the thread: so that it needs no second thing to wait for.
    last: LastPage,
}

/// One page of its own, registered with the handler's userfaultfd.
#[derive(Debug)]
struct LastPage {
    address: *mut libc::c_void,
}

impl Handler {
    /// Registers `memory`, which holds a mapped snapshot ([`Memory::map`]), with a userfaultfd of
    /// the handler's own, and serves its faults on a new thread: `block_pages` at a time.
    ///
    /// `prepare` is called on that thread first, to pin it.
    ///
    /// # Errors
    /// [`Error::System`].
    pub fn spawn(
        memory: &Memory,
        block_pages: u64,
        prepare: impl FnOnce() + Send + 'static,
    ) -> Result<Self, Error> {
        let uffd = Arc::new(Uffd::new()?);
        uffd.register(memory)?;
        Self::serve(uffd, memory, block_pages, prepare)
    }

    /// The same for a userfaultfd that `memory` is, or will be, registered with.
    pub(super) fn serve(
        uffd: Arc<Uffd>,
        memory: &Memory,
        block_pages: u64,
        prepare: impl FnOnce() + Send + 'static,
    ) -> Result<Self, Error> {
        let last = LastPage::new()?;
        uffd.register_range(last.address as u64, PAGE_BYTES, REGISTER_MISSING)?;
        let (base, bytes, last_address) = (memory.address(0), memory.bytes(), last.address as u64);
        let block_bytes = block_pages.max(1) * PAGE_BYTES;
        let serve = move || {
            prepare();
            loop {
                let fault = uffd.read()?;
                let page = fault.address & !(PAGE_BYTES - 1);
                if fault.flags & FAULT_MINOR == 0 {
                    uffd.map(("UFFDIO_ZEROPAGE", UFFDIO_ZEROPAGE), page, PAGE_BYTES, 0)?;
                    if page == last_address {
                        return Ok(());
                    }
                } else {
                    let offset = (page - base) / block_bytes * block_bytes;
                    let len = block_bytes.min(bytes - offset);
                    uffd.map(("UFFDIO_CONTINUE", UFFDIO_CONTINUE), base + offset, len, 0)?;
                }
            }
        };
        let thread = std::thread::Builder::new()
            .name("floor".to_owned())
            .spawn(serve)
            .map_err(Error::system("spawn(floor)"))?;
        Ok(Self {
            thread: Some(thread),
            last,
        })
    }

    /// Ends the thread and says how it fared.
    ///
    /// # Errors
    /// What kept it from serving a fault.
    pub fn stop(mut self) -> Result<(), Error> {
        self.end().unwrap_or(Ok(()))
    }

    fn end(&mut self) -> Option<Result<(), Error>> {
        let thread = self.thread.take()?;
        if !thread.is_finished() {
            // SAFETY: the page is mapped; the thread serves this one fault, or has closed its
            // userfaultfd, and the kernel serves it.
            unsafe { ptr::read_volatile(self.last.address.cast::<u8>()) };
        }
        let ended = thread.join();
        Some(ended.unwrap_or_else(|_| {
            let panicked = io::Error::other("it panicked");
            Err(Error::system("the floor's handler")(panicked))
        }))
    }
}

impl Drop for Handler {
    fn drop(&mut self) {
        self.end();
    }
}

impl LastPage {
    fn new() -> Result<Self, Error> {
        // SAFETY: a new mapping at an address of the kernel's choice.
        let address = unsafe {
            libc::mmap(
                ptr::null_mut(),
                PAGE_BYTES as usize,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(Error::system("mmap(a page)")(io::Error::last_os_error()));
        }
        Ok(Self { address })
    }
}

impl Drop for LastPage {
    fn drop(&mut self) {
        // SAFETY: our own mapping, made by `new`.
        unsafe { libc::munmap(self.address, PAGE_BYTES as usize) };
    }
}
