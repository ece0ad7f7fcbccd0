//! Which system calls a worker's threads may make, by what they are there for.

use std::io;
use std::sync::OnceLock;

use dormouse_jail::{Error, Filter, Rule};

/// Threads that may do less than the process may. Those that run guests, and the one that starts them, need
/// all of that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Listens to the front: neither KVM nor page faults.
    Front,
    /// Serves page faults: no KVM.
    Pager,
}

/// The type of `ioctl` requests of userfaultfd (Linux `include/uapi/linux/userfaultfd.h`). All of them are
/// about the caller's own memory.
const UFFD_TYPE: u32 = 0xaa;
/// `PAGEMAP_SCAN`, of `/proc/self/pagemap` (Linux `include/uapi/linux/fs.h`).
const PAGEMAP_SCAN: u32 = 0xc060_6610;

/// The bits of a request that are its type (Linux `include/uapi/asm-generic/ioctl.h`).
const TYPE_MASK: u64 = 0xff00;

fn uffd() -> Rule {
    Rule::allow_masked(libc::SYS_ioctl, 1, TYPE_MASK, u64::from(UFFD_TYPE) << 8)
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
    rules.push(Rule::allow_values(
        libc::SYS_ioctl,
        1,
        &dormouse_vmm::IOCTLS,
    ));
    rules.push(uffd());
    rules.push(pagemap_scan());
    rules
}

fn pagemap_scan() -> Rule {
    Rule::allow_values(libc::SYS_ioctl, 1, &[PAGEMAP_SCAN])
}

struct Filters {
    front: Filter,
    pager: Filter,
}

static FILTERS: OnceLock<Filters> = OnceLock::new();

/// Compiles the filters of all kinds, so that threads only have to apply them.
pub(super) fn compile_ahead() -> Result<(), Error> {
    let mut pager = base();
    pager.push(Rule::allow(libc::SYS_pread64));
    pager.push(uffd());
    pager.push(pagemap_scan());
    let filters = Filters {
        front: Filter::compile(&base())?,
        pager: Filter::compile(&pager)?,
    };
    let _ = FILTERS.set(filters);
    Ok(())
}

/// Confines the calling thread. Only in workers: nothing happens elsewhere.
pub(super) fn confine(kind: Kind) -> io::Result<()> {
    let Some(filters) = FILTERS.get() else {
        return Ok(());
    };
    let filter = match kind {
        Kind::Front => &filters.front,
        Kind::Pager => &filters.pager,
    };
    filter.apply_to_thread().map_err(io::Error::other)
}

/// Confines the calling thread to what a pager's does, in a worker.
pub(crate) fn confine_pager() -> io::Result<()> {
    confine(Kind::Pager)
}
