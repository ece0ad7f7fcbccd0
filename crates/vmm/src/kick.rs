//! Getting a vCPU out of the guest: from another thread, or when a deadline passes.
//!
//! One signal does both. It is blocked in vCPU threads, and `KVM_SET_SIGNAL_MASK` unblocks it
//! atomically while `KVM_RUN` is in the guest (Linux KVM API, 4.21): a kick that comes just before
//! `KVM_RUN` stays pending and ends it at once, so none is ever lost, whatever the guest does,
//! spinning with interrupts off included. The handler does nothing; ending `KVM_RUN` is the point.

use std::cell::OnceCell;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::time::{Duration, Instant};

use kvm_ioctls::VcpuFd;

use crate::error::Error;
use crate::ioctls::SET_SIGNAL_MASK;

/// The signal: the first that the C library leaves to programs.
fn kick_signal() -> libc::c_int {
    libc::SIGRTMIN()
}

/// Ends the current run of one [`crate::Vm`] from any thread; see [`crate::Vm::interrupter`].
#[derive(Debug, Clone, Default)]
pub struct Interrupter {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    requested: AtomicBool,
    /// Kernel thread id of the thread in `run`, 0 while there is none.
    thread: AtomicI32,
}

impl Interrupter {
    /// Makes the running `Vm::run` (or the next one) return [`crate::Stop::Interrupted`].
    pub fn interrupt(&self) {
        self.shared.requested.store(true, Ordering::SeqCst);
        let thread = self.shared.thread.load(Ordering::SeqCst);
        if thread != 0 {
            // SAFETY: tgkill takes plain numbers. Should the thread have ended meanwhile, the call
            // fails, or the signal meets its empty handler in another thread of this process.
            unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, kick_signal()) };
        }
    }

    /// Takes the request, if there is one.
    pub(crate) fn take(&self) -> bool {
        self.shared.requested.swap(false, Ordering::SeqCst)
    }

    /// Marks the calling thread as the one to kick, until the guard is dropped.
    pub(crate) fn enter(&self, thread: &VcpuThread) -> Entered {
        self.shared.thread.store(thread.id, Ordering::SeqCst);
        Entered {
            shared: Arc::clone(&self.shared),
        }
    }
}

pub(crate) struct Entered {
    shared: Arc<Shared>,
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.shared.thread.store(0, Ordering::SeqCst);
    }
}

/// What a thread needs to run vCPUs: the signal blocked, and a timer that sends it.
pub(crate) struct VcpuThread {
    id: libc::pid_t,
    timer: libc::timer_t,
}

thread_local! {
    static THREAD: OnceCell<VcpuThread> = const { OnceCell::new() };
}

/// Runs `action` with this thread prepared as a vCPU thread.
pub(crate) fn on_vcpu_thread<T>(
    action: impl FnOnce(&VcpuThread) -> Result<T, Error>,
) -> Result<T, Error> {
    THREAD.with(|cell| {
        if cell.get().is_none() {
            let made = VcpuThread::new().map_err(|source| Error::System {
                operation: "preparing a vCPU thread",
                source,
            })?;
            let _ = cell.set(made);
        }
        action(cell.get().expect("set above"))
    })
}

extern "C" fn nothing(_: libc::c_int) {}

impl VcpuThread {
    fn new() -> io::Result<Self> {
        // SAFETY: plain libc calls; every struct is zeroed (valid for these C types) and then
        // filled in, and outlives its call. The handler is async-signal-safe: it is empty.
        unsafe {
            let mut action: libc::sigaction = MaybeUninit::zeroed().assume_init();
            action.sa_sigaction = nothing as extern "C" fn(libc::c_int) as libc::sighandler_t;
            check(libc::sigaction(
                kick_signal(),
                &action,
                std::ptr::null_mut(),
            ))?;

            let mut set: libc::sigset_t = MaybeUninit::zeroed().assume_init();
            libc::sigaddset(&mut set, kick_signal());
            let blocked = libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
            if blocked != 0 {
                return Err(io::Error::from_raw_os_error(blocked));
            }

            let id = libc::gettid();
            let mut event: libc::sigevent = MaybeUninit::zeroed().assume_init();
            event.sigev_notify = libc::SIGEV_THREAD_ID;
            event.sigev_signo = kick_signal();
            event.sigev_notify_thread_id = id;
            let mut timer: libc::timer_t = std::ptr::null_mut();
            check(libc::timer_create(
                libc::CLOCK_MONOTONIC,
                &mut event,
                &mut timer,
            ))?;
            Ok(Self { id, timer })
        }
    }

    /// Sends the signal to this thread at `deadline`, and again every 10 ms until disarmed.
    pub(crate) fn arm(&self, deadline: Instant) {
        // Zero would disarm; a deadline that has passed fires at once.
        let first = deadline
            .saturating_duration_since(Instant::now())
            .max(Duration::from_nanos(1));
        self.set_timer(first, Duration::from_millis(10));
    }

    /// Stops the timer and forgets a signal that is pending.
    pub(crate) fn disarm(&self) {
        self.set_timer(Duration::ZERO, Duration::ZERO);
        self.consume();
    }

    /// Forgets a pending signal.
    pub(crate) fn consume(&self) {
        // SAFETY: as in `new`; a zero timeout makes this a poll.
        unsafe {
            let mut set: libc::sigset_t = MaybeUninit::zeroed().assume_init();
            libc::sigaddset(&mut set, kick_signal());
            let zero: libc::timespec = MaybeUninit::zeroed().assume_init();
            while libc::sigtimedwait(&set, std::ptr::null_mut(), &zero) > 0 {}
        }
    }

    fn set_timer(&self, first: Duration, interval: Duration) {
        let spec = libc::itimerspec {
            it_value: timespec(first),
            it_interval: timespec(interval),
        };
        // SAFETY: the timer was made by `new` and lives as long as `self`; the struct outlives the
        // call. It cannot fail: timer and values are valid.
        unsafe { libc::timer_settime(self.timer, 0, &spec, std::ptr::null_mut()) };
    }
}

impl Drop for VcpuThread {
    fn drop(&mut self) {
        // SAFETY: made by `new`, deleted once.
        unsafe { libc::timer_delete(self.timer) };
    }
}

fn timespec(duration: Duration) -> libc::timespec {
    libc::timespec {
        tv_sec: duration.as_secs().try_into().unwrap_or(libc::time_t::MAX),
        tv_nsec: duration.subsec_nanos().into(),
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Waits until `input` can be read without waiting, or has ended; false where a kick came first.
pub(crate) fn wait_for_input(input: BorrowedFd<'_>) -> bool {
    let mut poll = libc::pollfd {
        fd: input.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: the set is zeroed, then filled in by pthread_sigmask; all structs outlive the calls.
    // The signal is let through for the call only, as in `KVM_RUN`.
    unsafe {
        let mut set: libc::sigset_t = MaybeUninit::zeroed().assume_init();
        libc::pthread_sigmask(libc::SIG_BLOCK, std::ptr::null(), &mut set);
        libc::sigdelset(&mut set, kick_signal());
        let ready = libc::ppoll(&mut poll, 1, std::ptr::null(), &set);
        // Another failure than a signal is for the read to report.
        ready >= 0 || io::Error::last_os_error().kind() != io::ErrorKind::Interrupted
    }
}

/// Lets the kick signal through while `vcpu` is in the guest.
///
/// # Errors
/// [`Error::Kvm`] where the call fails.
pub(crate) fn unblock_in_guest(vcpu: &VcpuFd) -> Result<(), Error> {
    /// `struct kvm_signal_mask` with the kernel's 64-bit signal set.
    #[repr(C, packed)]
    struct SignalMask {
        len: u32,
        blocked: u64,
    }

    // All others as this thread has them, so that ^C ends a program whose guest spins.
    let mut blocked = 0u64;
    // SAFETY: the set is zeroed, then filled in by pthread_sigmask, and outlives the calls.
    unsafe {
        let mut set: libc::sigset_t = MaybeUninit::zeroed().assume_init();
        libc::pthread_sigmask(libc::SIG_BLOCK, std::ptr::null(), &mut set);
        for signal in 1..=64 {
            if libc::sigismember(&set, signal) == 1 {
                blocked |= 1 << (signal - 1);
            }
        }
    }
    let mask = SignalMask {
        len: 8,
        blocked: blocked & !(1u64 << (kick_signal() - 1)),
    };
    // SAFETY: the kernel reads `len` bytes of the set behind the struct's first field; both live
    // until the call returns.
    let result = unsafe { libc::ioctl(vcpu.as_raw_fd(), SET_SIGNAL_MASK.into(), &mask) };
    check(result).map_err(|source| Error::Kvm {
        operation: "KVM_SET_SIGNAL_MASK",
        source,
    })
}
