//! Counters of one attachment.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// What an attach did. Part of it is also in [`Stats`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AttachStats {
    /// Mapping the snapshot over the range.
    pub map_us: u64,
    /// Registering the range with userfaultfd.
    pub register_us: u64,
    /// Moving staged chunks in.
    pub move_us: u64,
    /// Replaying the working set.
    pub replay_us: u64,
    /// All of it.
    pub attach_us: u64,
    /// Pages of staged chunks that were moved in; 0 where none were ready or could be moved.
    pub moved_pages: u64,
    /// Pages that the replay brought in.
    pub replayed_pages: u64,
}

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// What happened since the attach.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Stats {
            $($(#[$doc])* pub $name: u64,)*
            /// Time that the handler spent serving faults.
            pub fault_service_us: u64,
            /// Duration of the attach.
            pub attach_us: u64,
            /// Part of it that the replay took.
            pub replay_us: u64,
        }

        /// The live counters. They are statistics only: nothing is synchronised by them.
        #[derive(Debug, Default)]
        pub(crate) struct Counters {
            $($name: AtomicU64,)*
            fault_service_ns: AtomicU64,
            attach_ns: AtomicU64,
            replay_ns: AtomicU64,
        }

        impl Counters {
            pub(crate) fn reset(&self) {
                $(self.$name.store(0, Relaxed);)*
                self.fault_service_ns.store(0, Relaxed);
                self.attach_ns.store(0, Relaxed);
                self.replay_ns.store(0, Relaxed);
            }

            pub(crate) fn snapshot(&self) -> Stats {
                Stats {
                    $($name: self.$name.load(Relaxed),)*
                    fault_service_us: self.fault_service_ns.load(Relaxed) / 1000,
                    attach_us: self.attach_ns.load(Relaxed) / 1000,
                    replay_us: self.replay_ns.load(Relaxed) / 1000,
                }
            }

            $(pub(crate) fn $name(&self, more: u64) {
                self.$name.fetch_add(more, Relaxed);
            })*
        }
    };
}

counters! {
    /// Faults on pages that the page cache held.
    faults_minor,
    /// Faults on pages that nothing held.
    faults_missing,
    /// Pages mapped from the page cache, without a copy.
    pages_continued,
    /// Pages copied into private memory.
    pages_copied,
    /// Pages mapped to the zero page.
    pages_zeroed,
    /// Pages of staged chunks, moved in.
    pages_moved,
    /// Pages that the replay brought in; they count above as well.
    replayed_pages,
    /// Fills that the kernel asked to repeat (EAGAIN).
    retries,
}

impl Counters {
    pub(crate) fn fault_service(&self, time: Duration) {
        self.fault_service_ns
            .fetch_add(time.as_nanos() as u64, Relaxed);
    }

    pub(crate) fn attached(&self, attach: Duration, replay: Duration) {
        self.attach_ns.store(attach.as_nanos() as u64, Relaxed);
        self.replay_ns.store(replay.as_nanos() as u64, Relaxed);
    }
}
