//! Puts snapshot pages under a running guest, and records and replays working sets.
//!
//! ```text
//!  pager     the face: attach, detach, touched, populate          (caller's thread)
//!    │
//!  handler   one thread per pager: wait, read events, serve them  (its own thread)
//!    │
//!  session   carries fills out on the attached range; replay      (whoever holds the lock)
//!    ├── faults   pure: which pages does a fault at page p bring in, and how
//!    ├── rollback what was written is made as in the snapshot again
//!    ├── plan     pure: what to bring in ahead, in which steps
//!    │   stage    dense chunks of it, copied ahead for the next attach
//!    └── fd       userfaultfd and pagemap ioctls       (unsafe)
//!        mapping  what lies under the guest's range    (unsafe)
//!        huge     what chunks are staged in            (unsafe)
//! ```
//!
//! A pager belongs to one VM shell and outlives many snapshots. Its descriptor and its thread are
//! made once; an attach is one `mmap`, one registration and the replay.
//!
//! # The life of a range
//!
//! ```text
//!            attach                            detach
//!  blank ──────────────► snapshot, registered ────────► blank
//!    ▲                     │    ▲      │
//!    │                     └────┘      │ populate, or the handler died
//!    │              attach, roll_back  ▼
//!    └──────────────────────────── snapshot, not registered
//! ```
//!
//! [`Policy::Map`] leads from blank to *snapshot, not registered* at once.
//!
//! *Blank* is anonymous zero memory: reading a detached guest is harmless and shows nothing.
//!
//! # Invariant: no event outlives its mapping
//!
//! The session lock is held by the handler from *reading* an event until it is served, and by
//! attach and detach from before the mapping changes until its waiters are woken (waking takes a
//! waiter's message out of the kernel's queue). So an event that was raised on one mapping is never
//! served on the next one. The guest does not run during attach and detach; other readers of the
//! range may, and then see the old or the new content, never a mixture within one page.

#![deny(unsafe_code)]

mod error;
mod faults;
#[allow(unsafe_code)]
mod fd;
mod handler;
#[allow(unsafe_code)]
mod huge;
#[allow(unsafe_code)]
mod mapping;
mod pager;
mod plan;
mod policy;
mod ranges;
mod rollback;
mod session;
mod source;
mod stage;
mod stats;
mod support;

pub use error::Error;
pub use pager::{OnError, OnGrowth, OnStart, Pager, PagerConfig, Touched};
pub use plan::WorkingSetPlan;
pub use policy::Policy;
pub use rollback::{Differs, Rollback, RollbackStats, Rolled};
pub use source::{ReadPages, Source};
pub use stage::Stage;
pub use stats::{AttachStats, Stats};
pub use support::{Feature, HostSupport, open_ahead, probe};

/// Size of the pages that this crate counts in, in bytes.
pub const PAGE_BYTES: u64 = 4096;
