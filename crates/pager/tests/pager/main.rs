//! The pager on real userfaultfd. Threads that read and write the mapped region stand in for the
//! guest: KVM's faults take the same way through the kernel.

#![expect(
    clippy::single_range_in_vec_init,
    reason = "tables of one range are meant"
)]

mod content;
mod cycles;
mod failures;
mod policies;
mod rig;
mod rollback;
mod staging;
mod working_set;
