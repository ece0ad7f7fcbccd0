//! Which system calls a worker's threads may make, by what they are there for.

use std::io;
use std::sync::OnceLock;

use dormouse_jail::{Error, Filter, Rule};

/// What a thread is there for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Listens to the front, and starts the others.
    Front,
    /// Has a VM, and its pager.
    Vcpu,
    /// Serves page faults.
    Pager,
}

/// `ioctl` requests of KVM (Linux `include/uapi/linux/kvm.h`), by what `ioctl(2)` calls type and number:
/// those of the device, of a VM, and of a vCPU.
const KVM_TYPE: u32 = 0xae;
/// Those of userfaultfd (Linux `include/uapi/linux/userfaultfd.h`).
const UFFD_TYPE: u32 = 0xaa;
/// `PAGEMAP_SCAN`, of `/proc/self/pagemap` (Linux `include/uapi/linux/fs.h`).
const PAGEMAP_TYPE: u32 = b'f' as u32;

/// The bits of a request that are its type (Linux `include/uapi/asm-generic/ioctl.h`).
const TYPE_MASK: u64 = 0xff00;

fn ioctls_of(kind: u32) -> Rule {
    Rule::allow_masked(libc::SYS_ioctl, 1, TYPE_MASK, u64::from(kind) << 8)
}

/// Calls that make VMs and pagers, run and rewind them, and read the files that came through the socket.
const VCPU: [libc::c_long; 10] = [
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_lseek,
    libc::SYS_eventfd2,
    libc::SYS_timer_create,
    libc::SYS_timer_settime,
    libc::SYS_timer_delete,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_sched_setaffinity,
    // The C library asks for the size of memory before it sorts.
    libc::SYS_sysinfo,
];

/// What all threads together may do.
pub(super) fn process() -> Result<Filter, Error> {
    let mut rules = base();
    rules.extend(Rule::narrowing());
    rules.extend(vcpu());
    Filter::compile(&rules)
}

/// What they all may. A panic that looks for debug information finds none, and is no reason to die.
fn base() -> Vec<Rule> {
    [Rule::runtime(), Rule::no_files()].concat()
}

fn vcpu() -> Vec<Rule> {
    let mut rules: Vec<_> = VCPU.into_iter().map(Rule::allow).collect();
    // Whether a memory file can change (`fcntl(2)`, "File sealing").
    let seals = libc::F_GET_SEALS.cast_unsigned();
    rules.push(Rule::allow_values(libc::SYS_fcntl, 1, &[seals]));
    rules.extend([KVM_TYPE, UFFD_TYPE, PAGEMAP_TYPE].map(ioctls_of));
    rules
}

struct Filters {
    front: Filter,
    vcpu: Filter,
    pager: Filter,
}

static FILTERS: OnceLock<Filters> = OnceLock::new();

/// Compiles the filters of all kinds, so that threads only have to apply them.
pub(super) fn compile_ahead() -> Result<(), Error> {
    let with = |more: Vec<Rule>| {
        let mut rules = base();
        rules.extend(more);
        Filter::compile(&rules)
    };
    let mut vcpu = vcpu();
    // Its pager's thread begins as its own, and narrows itself further.
    vcpu.extend(Rule::narrowing());
    let mut pager: Vec<_> = [libc::SYS_pread64].into_iter().map(Rule::allow).collect();
    pager.extend([UFFD_TYPE, PAGEMAP_TYPE].map(ioctls_of));
    let filters = Filters {
        // What starts threads cannot be narrower than they are.
        front: process()?,
        vcpu: with(vcpu)?,
        pager: with(pager)?,
    };
    let _ = FILTERS.set(filters);
    Ok(())
}

/// Confines the calling thread. Only in workers: nothing happens elsewhere.
pub(super) fn apply(kind: Kind) -> io::Result<()> {
    let Some(filters) = FILTERS.get() else {
        return Ok(());
    };
    let filter = match kind {
        Kind::Front => &filters.front,
        Kind::Vcpu => &filters.vcpu,
        Kind::Pager => &filters.pager,
    };
    filter.apply_to_thread().map_err(io::Error::other)
}

/// Confines the calling thread to what a pager's does, in a worker.
pub(crate) fn confine_pager() -> io::Result<()> {
    apply(Kind::Pager)
}
