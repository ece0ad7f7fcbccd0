//! The exchange hypercall and the memory that it shares with the host: the only place that does
//! port I/O.

use core::arch::asm;
use core::cell::UnsafeCell;
use std::alloc::{GlobalAlloc, Layout, System, handle_alloc_error};
use std::sync::atomic::{AtomicBool, Ordering};

use dormouse_abi::{ABI_VERSION, EXCHANGE_PORT, Mailbox, REQUEST_BUFFER_BYTES};

/// What carries messages to the host. [`Port`] is the real one; tests put a host of their own here.
///
/// The host writes to the mailbox and the request buffer during [`Host::exchange`] only, which
/// needs `&mut self`: no view of either survives it.
pub(crate) trait Host {
    /// The mailbox.
    fn mailbox(&self) -> &Mailbox;

    /// The mailbox, to write an answer into it.
    fn mailbox_mut(&mut self) -> &mut Mailbox;

    /// Address of the request buffer, [`REQUEST_BUFFER_BYTES`] long.
    fn request_buffer_address(&self) -> u64;

    /// The first bytes of the request buffer; no more than it has.
    fn request_buffer(&self, bytes: usize) -> &[u8];

    /// The CPU's time-stamp counter now.
    fn ticks(&self) -> u64;

    /// Hands the mailbox to the host and waits for the next request. False once the host has no
    /// more, which happens in tests.
    fn exchange(&mut self) -> bool;
}

/// The page lives in the image, so that its address is the same in every clone.
struct Page(UnsafeCell<Mailbox>);

// SAFETY: only the one `Port` that `OPENED` lets exist touches the page.
unsafe impl Sync for Page {}

static PAGE: Page = Page(UnsafeCell::new(Mailbox::new()));
static OPENED: AtomicBool = AtomicBool::new(false);

/// The port that the host listens on.
pub(crate) struct Port {
    buffer: *const u8,
}

impl Port {
    /// Opens the port.
    ///
    /// # Panics
    /// At the second call: a program serves once.
    pub(crate) fn open() -> Self {
        assert!(
            !OPENED.swap(true, Ordering::Relaxed),
            "dormouse_guest::serve was called twice; call it once, at the end of main"
        );
        let layout = Layout::from_size_align(REQUEST_BUFFER_BYTES, 4096).expect("a valid layout");
        // Straight from the system and never written here: pages that no request fills stay
        // zero and cost nothing in the snapshot.
        // SAFETY: the layout's size is not zero.
        let buffer = unsafe { System.alloc(layout) };
        if buffer.is_null() {
            handle_alloc_error(layout);
        }
        Self { buffer }
    }
}

impl Host for Port {
    fn mailbox(&self) -> &Mailbox {
        // SAFETY: `open` made sure that this is the only `Port`; borrowing it guards the page.
        unsafe { &*PAGE.0.get() }
    }

    fn mailbox_mut(&mut self) -> &mut Mailbox {
        // SAFETY: as in `mailbox`, and `self` is borrowed exclusively.
        unsafe { &mut *PAGE.0.get() }
    }

    fn request_buffer_address(&self) -> u64 {
        self.buffer as u64
    }

    fn request_buffer(&self, bytes: usize) -> &[u8] {
        let bytes = bytes.min(REQUEST_BUFFER_BYTES);
        // SAFETY: the allocation has that many bytes and is never freed; the host has written
        // them in the last exchange, which needed `&mut self`.
        unsafe { core::slice::from_raw_parts(self.buffer, bytes) }
    }

    #[inline]
    fn ticks(&self) -> u64 {
        // SAFETY: every x86-64 CPU has RDTSC, and a guest's kernel does not forbid it to itself.
        unsafe { core::arch::x86_64::_rdtsc() }
    }

    #[inline]
    fn exchange(&mut self) -> bool {
        if !cfg!(target_os = "hermit") {
            panic!("a function runs under Dormouse only: build it with `dormouse build`");
        }
        // SAFETY: the host reads and writes the mailbox, the request buffer and the answer
        // that the mailbox names; the assembly clobbers memory, so none of it is cached here.
        // No view of the first two exists while `self` is borrowed exclusively.
        unsafe {
            asm!(
                "out dx, eax",
                in("dx") EXCHANGE_PORT,
                in("eax") ABI_VERSION,
                in("rdi") PAGE.0.get(),
                options(nostack, preserves_flags),
            );
        }
        true
    }
}
