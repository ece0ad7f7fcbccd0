//! A clone in a VM of its own that has nothing but what it cannot run without.
//!
//! Source of structures and numbers: Linux `include/uapi/linux/kvm.h` and
//! `Documentation/virt/kvm/api.rst`.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;
use std::sync::Arc;

use dormouse_pager::PAGE_BYTES;
use dormouse_pool::Parts;
use kvm_bindings::{
    KVM_CAP_SPLIT_IRQCHIP, KVM_CAP_X2APIC_API, kvm_cpuid_entry2, kvm_enable_cap,
    kvm_userspace_memory_region,
};
use vm_memory::{FileOffset, MmapRegion, VolatileMemory};

use super::ioctl::{self, iow, iowr};
use super::kvm::{KVMIO, State, Vcpu};
use crate::Error;

const KVM_CREATE_VM: libc::c_ulong = ioctl::io(KVMIO, 0x01);
const KVM_CREATE_VCPU: libc::c_ulong = ioctl::io(KVMIO, 0x41);
const KVM_SET_USER_MEMORY_REGION: libc::c_ulong = iow::<kvm_userspace_memory_region>(KVMIO, 0x46);
/// Of `struct kvm_cpuid2`, whose entries do not count.
const KVM_SET_CPUID2: libc::c_ulong = iow::<u64>(KVMIO, 0x90);
const KVM_GET_CPUID2: libc::c_ulong = iowr::<u64>(KVMIO, 0x91);
const KVM_ENABLE_CAP: libc::c_ulong = iow::<kvm_enable_cap>(KVMIO, 0xa3);

/// Pins of the split irqchip, as Dormouse's VMs have.
const IRQCHIP_PINS: u64 = 24;
/// `KVM_X2APIC_API_USE_32BIT_IDS | KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK`.
const X2APIC_FLAGS: u64 = 0b11;

/// More entries than KVM keeps.
const MAX_CPUID_ENTRIES: usize = 256;

/// `struct kvm_cpuid2` with its entries.
#[repr(C)]
struct Cpuid {
    count: u32,
    padding: u32,
    entries: [kvm_cpuid_entry2; MAX_CPUID_ENTRIES],
}

/// A VM with one memslot over a private mapping of the snapshot, and one vCPU. No userfaultfd and no
/// thread.
#[derive(Debug)]
pub struct BareClone {
    // Order matters: no vCPU and no VM without the memory.
    vcpu: Vcpu,
    _vm: OwnedFd,
    memory: MmapRegion,
}

impl BareClone {
    /// Makes a clone of the snapshot that an engine's VM belongs to.
    ///
    /// # Errors
    /// [`Error::System`].
    pub fn new(parts: &Parts) -> Result<Self, Error> {
        let kvm = File::open("/dev/kvm").map_err(Error::system("opening /dev/kvm"))?;
        let vm = new_descriptor(kvm.as_fd(), "KVM_CREATE_VM", KVM_CREATE_VM)?;
        enable(&vm, KVM_CAP_SPLIT_IRQCHIP, IRQCHIP_PINS)?;
        enable(&vm, KVM_CAP_X2APIC_API, X2APIC_FLAGS)?;
        let failed =
            |what: String| Error::system("mapping the snapshot")(std::io::Error::other(what));
        let file = parts
            .file
            .as_ref()
            .ok_or_else(|| failed("it is in no memory file".to_owned()))?;
        let memory = MmapRegion::build(
            Some(FileOffset::from_arc(Arc::clone(file), 0)),
            parts.ram.len() as usize,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_NORESERVE,
        )
        .map_err(|error| failed(error.to_string()))?;
        let mut slot = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: parts.ram.base(),
            memory_size: parts.ram.len(),
            userspace_addr: memory.as_ptr() as u64,
        };
        // SAFETY: the request reads this struct. The range is mapped as long as the VM lives (field
        // order), and this process makes no reference into it.
        unsafe {
            ioctl::call(
                vm.as_fd(),
                "KVM_SET_USER_MEMORY_REGION",
                KVM_SET_USER_MEMORY_REGION,
                &raw mut slot,
            )
        }?;
        let vcpu = new_descriptor(vm.as_fd(), "KVM_CREATE_VCPU", KVM_CREATE_VCPU)?;
        copy_cpuid(parts.vcpu.as_fd(), vcpu.as_fd())?;
        Ok(Self {
            vcpu: Vcpu::new(vcpu.as_fd())?,
            _vm: vm,
            memory,
        })
    }

    /// Sets the vCPU's state, overwrites the mailbox's page, and runs the guest up to its exchange.
    ///
    /// # Errors
    /// As [`Machine::set`](super::Machine::set) and [`Machine::run`](super::Machine::run), or
    /// [`Error::System`] where there is no such page.
    pub fn run(
        &self,
        state: &State,
        mailbox_page: u64,
        mailbox: &[u8; PAGE_BYTES as usize],
    ) -> Result<(), Error> {
        self.vcpu.set(state)?;
        let offset = (mailbox_page * PAGE_BYTES) as usize;
        let page = self.memory.get_slice(offset, mailbox.len());
        page.map_err(|error| Error::system("looking for a page")(std::io::Error::other(error)))?
            .copy_from(mailbox);
        self.vcpu.run()
    }
}

/// Makes a VM or its first vCPU.
fn new_descriptor(
    fd: BorrowedFd<'_>,
    operation: &'static str,
    request: libc::c_ulong,
) -> Result<OwnedFd, Error> {
    // SAFETY: the request's argument is a number, 0.
    let made = unsafe { ioctl::call(fd, operation, request, ptr::null_mut::<u8>()) }?;
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(made) })
}

fn enable(vm: &OwnedFd, cap: u32, argument: u64) -> Result<(), Error> {
    let mut request = kvm_enable_cap {
        cap,
        ..Default::default()
    };
    request.args[0] = argument;
    // SAFETY: the request reads this struct.
    unsafe {
        ioctl::call(
            vm.as_fd(),
            "KVM_ENABLE_CAP",
            KVM_ENABLE_CAP,
            &raw mut request,
        )
    }?;
    Ok(())
}

/// Gives one vCPU the CPUID of another.
fn copy_cpuid(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<(), Error> {
    let mut cpuid = Box::new(Cpuid {
        count: MAX_CPUID_ENTRIES as u32,
        padding: 0,
        entries: [kvm_cpuid_entry2::default(); MAX_CPUID_ENTRIES],
    });
    let argument = &raw mut *cpuid;
    // SAFETY: the first request reads the count, and writes it and at most as many entries; the
    // second reads both.
    unsafe {
        ioctl::call(from, "KVM_GET_CPUID2", KVM_GET_CPUID2, argument)?;
        ioctl::call(to, "KVM_SET_CPUID2", KVM_SET_CPUID2, argument)?;
    }
    Ok(())
}
