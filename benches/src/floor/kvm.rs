//! A vCPU's state, set with as few calls as there can be, and a bare `KVM_RUN`.
//!
//! Source of structures and numbers: Linux `include/uapi/linux/kvm.h` and
//! `Documentation/virt/kvm/api.rst`.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::{self, NonNull};

use dormouse_abi::EXCHANGE_PORT;
use kvm_bindings::{
    KVM_EXIT_INTR, KVM_EXIT_IO, KVM_EXIT_IO_OUT, KVM_SYNC_X86_EVENTS, KVM_SYNC_X86_REGS,
    KVM_SYNC_X86_SREGS, kvm_debugregs, kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_regs,
    kvm_run, kvm_sregs, kvm_sync_regs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};

use super::ioctl::{self, ior, iow, iowr};
use crate::Error;

const KVMIO: u64 = kvm_bindings::KVMIO as u64;
const KVM_GET_MSR_INDEX_LIST: libc::c_ulong = iowr::<[u32; 1]>(KVMIO, 0x02);
const KVM_GET_VCPU_MMAP_SIZE: libc::c_ulong = ioctl::io(KVMIO, 0x04);
const KVM_RUN: libc::c_ulong = ioctl::io(KVMIO, 0x80);
/// Of `struct kvm_msrs`, whose entries do not count.
const KVM_GET_MSRS: libc::c_ulong = iowr::<u64>(KVMIO, 0x88);
const KVM_SET_MSRS: libc::c_ulong = iow::<u64>(KVMIO, 0x89);

/// More MSRs than KVM lists.
const MAX_MSRS: usize = 512;
const MSR_IA32_TSC: u32 = 0x10;

/// `struct kvm_msrs` with its entries.
#[repr(C)]
#[derive(Clone)]
struct Msrs {
    count: u32,
    pad: u32,
    entries: [kvm_msr_entry; MAX_MSRS],
}

impl Msrs {
    fn new(entries: &[kvm_msr_entry]) -> Box<Self> {
        let mut msrs = Box::new(Self {
            count: entries.len() as u32,
            pad: 0,
            entries: [kvm_msr_entry::default(); MAX_MSRS],
        });
        msrs.entries[..entries.len()].copy_from_slice(entries);
        msrs
    }
}

/// All of a vCPU that a guest changes or notices, in the form in which KVM takes it.
pub struct State {
    regs: kvm_regs,
    sregs: kvm_sregs,
    events: kvm_vcpu_events,
    xcrs: kvm_xcrs,
    xsave: Box<kvm_xsave>,
    debug: kvm_debugregs,
    lapic: kvm_lapic_state,
    /// Those that are not zero, but the TSC.
    msrs: Box<Msrs>,
    mp_state: kvm_mp_state,
}

/// A second handle of a vCPU: its descriptor, and its shared page mapped once more. Its owner keeps
/// the guest's memory.
#[derive(Debug)]
pub(super) struct Vcpu {
    fd: OwnedFd,
    shared: NonNull<kvm_run>,
    shared_bytes: usize,
}

/// Of each part of the state: how it is read and set.
macro_rules! parts {
    ($($get:ident, $set:ident, $kind:ty, $get_number:literal, $set_number:literal, $name:literal;)*) => {
        impl Vcpu {
            $(fn $get(&self, value: &mut $kind) -> Result<(), Error> {
                const REQUEST: libc::c_ulong = ior::<$kind>(KVMIO, $get_number);
                let operation = concat!("KVM_GET_", $name);
                // SAFETY: the request writes this struct.
                unsafe { ioctl::call(self.fd.as_fd(), operation, REQUEST, &raw mut *value) }?;
                Ok(())
            }

            fn $set(&self, value: &$kind) -> Result<(), Error> {
                const REQUEST: libc::c_ulong = iow::<$kind>(KVMIO, $set_number);
                let operation = concat!("KVM_SET_", $name);
                let value = (&raw const *value).cast_mut();
                // SAFETY: the request only reads this struct.
                unsafe { ioctl::call(self.fd.as_fd(), operation, REQUEST, value) }?;
                Ok(())
            })*
        }
    };
}

parts! {
    get_lapic, set_lapic, kvm_lapic_state, 0x8e, 0x8f, "LAPIC";
    get_mp_state, set_mp_state, kvm_mp_state, 0x98, 0x99, "MP_STATE";
    get_debug, set_debug, kvm_debugregs, 0xa1, 0xa2, "DEBUGREGS";
    get_xsave, set_xsave, kvm_xsave, 0xa4, 0xa5, "XSAVE";
    get_xcrs, set_xcrs, kvm_xcrs, 0xa6, 0xa7, "XCRS";
}

impl Vcpu {
    /// Takes a vCPU's descriptor.
    ///
    /// # Errors
    /// [`Error::System`].
    pub(super) fn new(fd: BorrowedFd<'_>) -> Result<Self, Error> {
        let fd = fd
            .try_clone_to_owned()
            .map_err(Error::system("dup(vCPU)"))?;
        let kvm = File::open("/dev/kvm").map_err(Error::system("opening /dev/kvm"))?;
        let none = ptr::null_mut::<u8>();
        // SAFETY: the request takes no argument.
        let bytes = unsafe {
            ioctl::call(
                kvm.as_fd(),
                "KVM_GET_VCPU_MMAP_SIZE",
                KVM_GET_VCPU_MMAP_SIZE,
                none,
            )
        }?;
        let shared_bytes = (bytes as usize).max(size_of::<kvm_run>());
        // SAFETY: a new mapping at an address of the kernel's choice.
        let shared = unsafe {
            libc::mmap(
                ptr::null_mut(),
                shared_bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                fd.as_raw_fd(),
                0,
            )
        };
        match NonNull::new(shared.cast()) {
            Some(address) if shared != libc::MAP_FAILED => Ok(Self {
                fd,
                shared: address,
                shared_bytes,
            }),
            _ => Err(Error::system("mmap(vCPU)")(io::Error::last_os_error())),
        }
    }

    /// Reads the state that the next `KVM_RUN` would enter the guest with.
    ///
    /// # Errors
    /// [`Error::System`].
    pub(super) fn state(&self) -> Result<State, Error> {
        self.take_pending_registers()?;
        let mut state = State {
            regs: kvm_regs::default(),
            sregs: kvm_sregs::default(),
            events: kvm_vcpu_events::default(),
            xcrs: kvm_xcrs::default(),
            xsave: Box::default(),
            debug: kvm_debugregs::default(),
            lapic: kvm_lapic_state::default(),
            msrs: self.msrs()?,
            mp_state: kvm_mp_state::default(),
        };
        let shared = self.shared_registers();
        (state.regs, state.sregs, state.events) = (shared.regs, shared.sregs, shared.events);
        self.get_mp_state(&mut state.mp_state)?;
        self.get_xcrs(&mut state.xcrs)?;
        self.get_xsave(&mut state.xsave)?;
        self.get_debug(&mut state.debug)?;
        self.get_lapic(&mut state.lapic)?;
        Ok(state)
    }

    /// Has KVM take registers that wait in the shared page, and give all that it can give there.
    fn take_pending_registers(&self) -> Result<(), Error> {
        let all = KVM_SYNC_X86_REGS | KVM_SYNC_X86_SREGS | KVM_SYNC_X86_EVENTS;
        let run = self.shared.as_ptr();
        // SAFETY: the shared page is mapped, and no thread is in KVM_RUN of this vCPU, so nobody
        // else looks at it. An immediate exit does not enter the guest (KVM API, `immediate_exit`).
        let result = unsafe {
            let valid = (*run).kvm_valid_regs;
            (*run).kvm_valid_regs = u64::from(all);
            (*run).immediate_exit = 1;
            let result = libc::ioctl(self.fd.as_raw_fd(), KVM_RUN, 0);
            (*run).immediate_exit = 0;
            (*run).kvm_valid_regs = valid;
            result
        };
        match io::Error::last_os_error() {
            error if result < 0 && error.kind() != io::ErrorKind::Interrupted => {
                Err(Error::system("KVM_RUN (immediate exit)")(error))
            }
            _ => Ok(()),
        }
    }

    fn shared_registers(&self) -> kvm_sync_regs {
        // SAFETY: the shared page is mapped and its registers are plain numbers.
        unsafe { (*self.shared.as_ptr()).s.regs }
    }

    /// The MSRs of KVM's list that can be read and are not zero.
    fn msrs(&self) -> Result<Box<Msrs>, Error> {
        let kvm = File::open("/dev/kvm").map_err(Error::system("opening /dev/kvm"))?;
        let mut list = [0_u32; 1 + MAX_MSRS];
        list[0] = MAX_MSRS as u32;
        // SAFETY: the request reads the count, and writes it and at most as many numbers.
        unsafe {
            ioctl::call(
                kvm.as_fd(),
                "KVM_GET_MSR_INDEX_LIST",
                KVM_GET_MSR_INDEX_LIST,
                list.as_mut_ptr(),
            )
        }?;
        let mut entries = Vec::new();
        for &index in &list[1..=list[0] as usize] {
            let entry = kvm_msr_entry {
                index,
                ..Default::default()
            };
            let mut one = Msrs::new(&[entry]);
            // SAFETY: the request reads the count and writes as many entries.
            let read = unsafe {
                ioctl::call(self.fd.as_fd(), "KVM_GET_MSRS", KVM_GET_MSRS, &raw mut *one)
            }?;
            let entry = one.entries[0];
            if read == 1 && entry.data != 0 && index != MSR_IA32_TSC && self.takes(&one)? {
                entries.push(entry);
            }
        }
        Ok(Msrs::new(&entries))
    }

    /// Whether KVM lets these MSRs be written.
    fn takes(&self, msrs: &Msrs) -> Result<bool, Error> {
        let argument = (&raw const *msrs).cast_mut();
        // SAFETY: the request only reads the struct.
        let set = unsafe { ioctl::call(self.fd.as_fd(), "KVM_SET_MSRS", KVM_SET_MSRS, argument) }?;
        Ok(set == msrs.count as libc::c_int)
    }

    /// Sets the state: six calls; the registers go along with the next `KVM_RUN`.
    ///
    /// # Errors
    /// [`Error::System`], or [`Error::Short`] where KVM does not take all MSRs.
    pub(super) fn set(&self, state: &State) -> Result<(), Error> {
        self.set_xcrs(&state.xcrs)?;
        self.set_xsave(&state.xsave)?;
        self.set_debug(&state.debug)?;
        self.set_lapic(&state.lapic)?;
        if !self.takes(&state.msrs)? {
            return Err(Error::Short {
                operation: "KVM_SET_MSRS",
                done: 0,
                wanted: u64::from(state.msrs.count),
            });
        }
        self.set_mp_state(&state.mp_state)?;
        self.set_registers(state);
        Ok(())
    }

    /// Leaves the registers for the next `KVM_RUN`: no call at all.
    pub(super) fn set_registers(&self, state: &State) {
        let run = self.shared.as_ptr();
        // SAFETY: the shared page is mapped, and no thread is in KVM_RUN of this vCPU, so nobody
        // else looks at it.
        unsafe {
            (*run).s.regs = kvm_sync_regs {
                regs: state.regs,
                sregs: state.sregs,
                events: state.events,
            };
            (*run).kvm_dirty_regs =
                u64::from(KVM_SYNC_X86_REGS | KVM_SYNC_X86_SREGS | KVM_SYNC_X86_EVENTS);
        }
    }

    /// Runs the guest up to its exchange.
    ///
    /// # Errors
    /// [`Error::Exit`] where it stops in any other way, [`Error::System`] where KVM fails.
    pub(super) fn run(&self) -> Result<(), Error> {
        /// More signals than come by chance.
        const MAX_SIGNALS: u32 = 1000;
        for _ in 0..MAX_SIGNALS {
            // SAFETY: KVM_RUN takes no argument; the guest's memory is mapped as long as its VM.
            let result = unsafe { libc::ioctl(self.fd.as_raw_fd(), KVM_RUN, 0) };
            if result < 0 {
                match io::Error::last_os_error() {
                    error if error.kind() == io::ErrorKind::Interrupted => continue,
                    error => return Err(Error::system("KVM_RUN")(error)),
                }
            }
            // SAFETY: the shared page is mapped; the exit's reason says which part of the union
            // KVM filled in.
            let (reason, is_exchange) = unsafe {
                let run = self.shared.as_ptr();
                let io = (*run).__bindgen_anon_1.io;
                (
                    (*run).exit_reason,
                    u32::from(io.direction) == KVM_EXIT_IO_OUT && io.port == EXCHANGE_PORT,
                )
            };
            match reason {
                KVM_EXIT_IO if is_exchange => return Ok(()),
                KVM_EXIT_INTR => {}
                _ => return Err(Error::Exit { reason }),
            }
        }
        Err(Error::Exit {
            reason: KVM_EXIT_INTR,
        })
    }
}

impl Drop for Vcpu {
    fn drop(&mut self) {
        // SAFETY: our own mapping; no reference into it was ever made. Failure leaves it mapped,
        // which harms nobody.
        unsafe { libc::munmap(self.shared.as_ptr().cast(), self.shared_bytes) };
    }
}
