//! What a Dormouse guest and its host agree on.
//!
//! A function exchanges messages with its host through **one hypercall** and **one page**.
//! The hypercall is `out EXCHANGE_PORT, eax` with EAX = [`ABI_VERSION`] and RDI = the
//! guest-virtual address of the page-aligned [`Mailbox`]. Each call hands over the answer to the
//! last request and returns with the next one, so an invocation costs one VM exit. The first call
//! means *ready* and is the snapshot point: everything before it runs once per function, everything
//! after it runs in every clone.
//!
//! ```text
//! guest                                   host
//!   init, before-snapshot hooks
//!   header.kind = Ready, OUT  ─────────►  check magic, version and buffers; snapshot
//!                                         (later, in a clone) write the request into the mailbox
//!   reseed, after-restore hooks,  ◄─────  KVM_RUN
//!   header.confirmed, handler
//!   header.kind = Answer, OUT  ────────►  check the confirmation, copy the answer out;
//!                                         throw the clone's memory away
//! ```
//!
//! **No request without a reseed.** Where a request stands and how long it is are sealed with
//! [`Header::confirmation`], which follows from the random bytes of this very clone
//! ([`Header::seal`]). A guest finds its request only once it has taken those bytes and written the
//! confirmation into its mailbox ([`Header::opened`]); the host discards what a guest says without
//! it. That costs no exit: both happen on the way to the answer.
//!
//! A message that fits stands in [`Mailbox::inline`]. A larger request stands in the request buffer
//! that the guest named when it became ready; a larger answer stands wherever the guest has it: the
//! host walks the guest's page tables. All integers are little-endian, all addresses guest-virtual.
//!
//! The host treats every byte of the mailbox as hostile: it copies the header once and checks the
//! copy ([`Header::decode`]), so nothing is fetched twice.

#![no_std]
#![forbid(unsafe_code)]

mod head;
mod mailbox;

pub use head::{Field, Full, HeadReader, HeadWriter, field_bytes};
pub use mailbox::{Header, Kind, Location, Mailbox, MailboxError, Sizes};

/// The version of everything in this crate. A host refuses an image of any other version.
pub const ABI_VERSION: u32 = 2;

/// The I/O port of the exchange hypercall. It lies outside the ports of the Hermit hypercall
/// interfaces (0x400–0x8FF and 0x1010–0x1190) and of the hardware that Hermit probes.
pub const EXCHANGE_PORT: u16 = 0x0D00;

/// [`Header::magic`]: the letters `DORM`.
pub const MAGIC: u32 = u32::from_le_bytes(*b"DORM");

/// Size of a mailbox: one page of the x86-64 base page size.
pub const MAILBOX_BYTES: usize = 4096;

/// Size of the encoded [`Header`] at the start of a mailbox.
pub const HEADER_BYTES: usize = 192;

/// Room for a message inside the mailbox page.
pub const INLINE_BYTES: usize = MAILBOX_BYTES - HEADER_BYTES;

/// The largest request or answer body.
pub const MAX_BODY_BYTES: usize = 6 * 1024 * 1024;

/// The largest encoded head (method, target and headers) of a request or an answer.
pub const MAX_HEAD_BYTES: usize = 64 * 1024;

/// The smallest request buffer that a guest may register.
pub const REQUEST_BUFFER_BYTES: usize = MAX_HEAD_BYTES + MAX_BODY_BYTES;
