//! A VM that waits for a guest: everything slow about a VM, done ahead.
//!
//! Creating a VM, its memslots, its irqchip and its vCPU takes 0.3 ms and more; none of it depends
//! on the guest but for the place of its memory. A *shell* has all of that and no content. It is
//! filled by a cold boot, or by mapping a snapshot over its memory and setting the vCPU's state,
//! and it is used again for the next restore at the same [`Placement`].

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;

use kvm_bindings::{
    KVM_CAP_PMU_CAPABILITY, KVM_CAP_SPLIT_IRQCHIP, KVM_CAP_X2APIC_API, KVM_MEM_READONLY,
    KVM_PMU_CAP_DISABLE, kvm_enable_cap, kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, SyncReg, VcpuFd, VmFd};
use vm_memory::MmapRegion;

use crate::config::Placement;
use crate::error::Error;
use crate::host::Host;
use crate::ioctls::SETUP_MCE;
use crate::kick::{self, Interrupter};
use crate::layout::LOW_MEMORY_BYTES;
use crate::ram::GuestRam;

/// A VM, its vCPU and its memory range, without a guest.
#[derive(Debug)]
pub struct Shell {
    // Order matters: the vCPU and the VM must be gone before the memory that they map.
    pub(crate) vcpu: VcpuFd,
    #[expect(dead_code, reason = "keeps the VM, which the vCPU belongs to")]
    vm: VmFd,
    pub(crate) ram: GuestRam,
    placement: Placement,
    pub(crate) interrupter: Interrupter,
    /// True after an exit whose instruction the kernel completes at the next `KVM_RUN`.
    pub(crate) io_pending: bool,
}

/// GSIs of the split irqchip: as many as an I/O APIC has pins. Nothing is routed to them.
const IRQCHIP_PINS: u64 = 24;
/// `KVM_X2APIC_API_USE_32BIT_IDS | KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK`.
const X2APIC_FLAGS: u64 = 0b11;

impl Shell {
    /// Makes a shell for guests at `placement`.
    ///
    /// # Errors
    /// [`Error::NoKvm`], or the KVM or memory call that failed.
    pub fn new(placement: Placement) -> Result<Self, Error> {
        let host = Host::open()?;
        placement.check()?;
        Self::with_host(&host, placement)
    }

    pub(crate) fn with_host(host: &Host, placement: Placement) -> Result<Self, Error> {
        let vm = host.kvm.create_vm().map_err(Error::kvm("KVM_CREATE_VM"))?;
        let enable = |cap: u32, argument: u64, name: &'static str| {
            let mut request = kvm_enable_cap {
                cap,
                ..Default::default()
            };
            request.args[0] = argument;
            vm.enable_cap(&request).map_err(Error::kvm(name))
        };
        // Both must precede the vCPU (Linux KVM API, 7.5 and 7.7).
        enable(
            KVM_CAP_SPLIT_IRQCHIP,
            IRQCHIP_PINS,
            "enabling the split irqchip",
        )?;
        enable(KVM_CAP_X2APIC_API, X2APIC_FLAGS, "enabling the x2APIC API")?;
        // No performance counters: what one guest counted would be there for the next. Where KVM
        // cannot take them away (before 5.18) guests have them.
        let _ = enable(
            KVM_CAP_PMU_CAPABILITY,
            KVM_PMU_CAP_DISABLE.into(),
            "disabling the PMU",
        );

        let ram = GuestRam::new(placement.base, placement.memory_bytes)?;
        let userspace_addr = ram.host_pointer(placement.base, placement.memory_bytes)? as u64;
        let slot = kvm_userspace_memory_region {
            slot: 0,
            guest_phys_addr: placement.base,
            memory_size: placement.memory_bytes,
            userspace_addr,
            flags: 0,
        };
        // SAFETY: the range is mapped, and stays so until the VM is gone (field order). The guest
        // may change it at any time; this process reads it only by copying.
        unsafe { vm.set_user_memory_region(slot) }
            .map_err(Error::kvm("KVM_SET_USER_MEMORY_REGION"))?;
        if placement.base >= LOW_MEMORY_BYTES && vm.check_extension(Cap::ReadonlyMem) {
            let zeros = low_memory()?;
            let slot = kvm_userspace_memory_region {
                slot: 1,
                guest_phys_addr: 0,
                memory_size: LOW_MEMORY_BYTES,
                userspace_addr: zeros.as_ptr() as u64,
                flags: KVM_MEM_READONLY,
            };
            // SAFETY: the mapping lives as long as the process and no guest can write to it.
            unsafe { vm.set_user_memory_region(slot) }
                .map_err(Error::kvm("KVM_SET_USER_MEMORY_REGION (low memory)"))?;
        }

        let mut vcpu = vm.create_vcpu(0).map_err(Error::kvm("KVM_CREATE_VCPU"))?;
        // CPUID comes first: it decides which MSRs and which LAPIC mode KVM accepts later.
        vcpu.set_cpuid2(&host.cpuid)
            .map_err(Error::kvm("KVM_SET_CPUID2"))?;
        keep_one_machine_check_bank(&vcpu);
        kick::unblock_in_guest(&vcpu)?;
        vcpu.set_sync_valid_reg(SyncReg::Register);
        vcpu.set_sync_valid_reg(SyncReg::SystemRegister);
        Ok(Self {
            vcpu,
            vm,
            ram,
            placement,
            interrupter: Interrupter::default(),
            io_pending: false,
        })
    }

    /// The guest's memory, for the pager.
    #[must_use]
    pub fn ram(&self) -> &GuestRam {
        &self.ram
    }

    /// A second descriptor of the vCPU, for measurements beside it. It keeps the VM, but not its
    /// memory: who runs the vCPU must keep [`Shell::ram`] as well.
    ///
    /// # Errors
    /// [`Error::System`] where there are no descriptors left.
    pub fn vcpu_descriptor(&self) -> Result<OwnedFd, Error> {
        // SAFETY: the descriptor is open as long as the shell lives, so until the call is over.
        let vcpu = unsafe { BorrowedFd::borrow_raw(self.vcpu.as_raw_fd()) };
        vcpu.try_clone_to_owned().map_err(|source| Error::System {
            operation: "copying a vCPU's descriptor",
            source,
        })
    }

    /// Where the guest's memory stands.
    #[must_use]
    pub fn placement(&self) -> Placement {
        self.placement
    }

    /// Ends the current or next run from any thread.
    #[must_use]
    pub fn interrupter(&self) -> Interrupter {
        self.interrupter.clone()
    }

    /// Lets the kernel finish the instruction behind the last exit (Linux KVM API, 5, `kvm_run`:
    /// "the corresponding operations are only complete after userspace has re-entered the kernel
    /// with `KVM_RUN`"), without running the guest any further.
    ///
    /// # Errors
    /// [`Error::Kvm`] where `KVM_RUN` fails in another way than it must.
    pub(crate) fn complete_io(&mut self) -> Result<(), Error> {
        if !self.io_pending {
            return Ok(());
        }
        self.vcpu.set_kvm_immediate_exit(1);
        let result = match self.vcpu.run() {
            Err(errno) if errno.errno() == libc::EINTR => Ok(()),
            Err(errno) => Err(Error::kvm("KVM_RUN (completing an instruction)")(errno)),
            Ok(_) => Ok(()),
        };
        self.vcpu.set_kvm_immediate_exit(0);
        self.io_pending = false;
        result
    }
}

/// Leaves a guest one bank of machine-check registers of the 32 that it would have (Linux KVM API, 4.107,
/// "KVM_X86_SETUP_MCE"; it must have one): what guests write there is undone for the next, register by
/// register ([`crate::leftovers`]). Where this fails there are only more of them.
fn keep_one_machine_check_bank(vcpu: &VcpuFd) {
    // `IA32_MCG_CAP` (Intel SDM vol. 3B, 16.3.1.1): the number of banks, and nothing else.
    let capabilities: u64 = 1;
    // SAFETY: the kernel reads the eight bytes at the address, which outlive the call.
    let _ = unsafe { libc::ioctl(vcpu.as_raw_fd(), SETUP_MCE.into(), &raw const capabilities) };
}

/// One MiB of zeros that all guests share.
fn low_memory() -> Result<&'static MmapRegion, Error> {
    static ZEROS: OnceLock<MmapRegion> = OnceLock::new();
    if let Some(region) = ZEROS.get() {
        return Ok(region);
    }
    let region = MmapRegion::build(
        None,
        LOW_MEMORY_BYTES as usize,
        libc::PROT_READ,
        libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
    )
    .map_err(|e| Error::Memory {
        base: 0,
        length_bytes: LOW_MEMORY_BYTES,
        reason: e.to_string(),
    })?;
    Ok(ZEROS.get_or_init(|| region))
}
