//! The state of a vCPU, saved and set.

use std::os::fd::AsRawFd;

use kvm_bindings::{
    KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, Msrs, kvm_debugregs, kvm_device_attr, kvm_lapic_state,
    kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::{SyncReg, VcpuFd};
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::host::Host;
use crate::ioctls::SET_DEVICE_ATTR;
use crate::shell::Shell;

/// Everything of a vCPU that a guest can notice.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct VcpuState {
    pub(crate) regs: kvm_regs,
    pub(crate) sregs: kvm_sregs,
    pub(crate) xcrs: kvm_xcrs,
    xsave: kvm_xsave,
    debug: kvm_debugregs,
    lapic: kvm_lapic_state,
    /// All but the TSC, which [`crate::clock`] sets.
    msrs: Vec<kvm_msr_entry>,
    pub(crate) events: kvm_vcpu_events,
    mp_state: kvm_mp_state,
}

a_change_here_is_a_new_format_version! {
    VcpuState {
        regs: kvm_regs,
        sregs: kvm_sregs,
        xcrs: kvm_xcrs,
        xsave: kvm_xsave,
        debug: kvm_debugregs,
        lapic: kvm_lapic_state,
        msrs: Vec<kvm_msr_entry>,
        events: kvm_vcpu_events,
        mp_state: kvm_mp_state,
    }
}

/// The kernel's structures are saved as their bytes, whose meaning is a promise of the kernel's: that
/// of kvm-bindings is to keep their sizes.
const _: () = {
    macro_rules! sizes {
        ($($type:ident: $bytes:literal),* $(,)?) => {
            $(assert!(
                size_of::<$type>() == $bytes,
                "a change here is a new FORMAT_VERSION, see snapshots/FORMAT.md, Compatibility"
            );)*
        };
    }
    sizes! {
        kvm_regs: 144,
        kvm_sregs: 312,
        kvm_xcrs: 392,
        kvm_xsave: 4096,
        kvm_debugregs: 128,
        kvm_lapic_state: 1024,
        kvm_msr_entry: 16,
        kvm_vcpu_events: 64,
        kvm_mp_state: 4,
    }
};

pub(crate) const MSR_IA32_TSC: u32 = 0x10;
/// Must follow the LAPIC's state, which decides whether the timer is in deadline mode.
const MSR_IA32_TSC_DEADLINE: u32 = 0x6E0;

/// The MSRs that are saved, in the order in which they are set (Intel SDM vol. 4; AMD APM vol. 2,
/// A). `APIC_BASE` and `EFER` are part of the system registers; MSRs that tell of the host and
/// those of features that guests are not offered stay out. What else a guest may change,
/// [`crate::leftovers`] undoes.
///
/// KVM's own MSRs are all here although Hermit uses none: some name guest memory that KVM writes
/// to, so one that a guest left behind in a shell would corrupt the next.
pub(crate) const SAVED_MSRS: [u32; 51] = [
    0x174,       // IA32_SYSENTER_CS
    0x175,       // IA32_SYSENTER_ESP
    0x176,       // IA32_SYSENTER_EIP
    0x1A0,       // IA32_MISC_ENABLE
    0x3B,        // IA32_TSC_ADJUST
    0x48,        // IA32_SPEC_CTRL
    0x1D9,       // IA32_DEBUGCTL
    0xDA0,       // IA32_XSS
    0x277,       // IA32_PAT
    0x200,       // MTRR
    0x201,       // MTRR
    0x202,       // MTRR
    0x203,       // MTRR
    0x204,       // MTRR
    0x205,       // MTRR
    0x206,       // MTRR
    0x207,       // MTRR
    0x208,       // MTRR
    0x209,       // MTRR
    0x20A,       // MTRR
    0x20B,       // MTRR
    0x20C,       // MTRR
    0x20D,       // MTRR
    0x20E,       // MTRR
    0x20F,       // MTRR
    0x250,       // MTRR
    0x258,       // MTRR
    0x259,       // MTRR
    0x268,       // MTRR
    0x269,       // MTRR
    0x26A,       // MTRR
    0x26B,       // MTRR
    0x26C,       // MTRR
    0x26D,       // MTRR
    0x26E,       // MTRR
    0x26F,       // MTRR
    0x2FF,       // IA32_MTRR_DEF_TYPE
    0xC000_0081, // STAR
    0xC000_0082, // LSTAR
    0xC000_0083, // CSTAR
    0xC000_0084, // FMASK
    0xC000_0102, // KERNEL_GS_BASE
    0xC000_0103, // TSC_AUX
    0x4B56_4D00, // KVM wall clock (kvmclock)
    0x4B56_4D01, // KVM system time (kvmclock)
    0x4B56_4D06, // KVM asynchronous page faults: the interrupt
    0x4B56_4D02, // KVM asynchronous page faults
    0x4B56_4D03, // KVM steal time
    0x4B56_4D04, // KVM end of interrupt by memory
    0x4B56_4D05, // KVM poll control
    MSR_IA32_TSC_DEADLINE,
];

/// The general registers by name, without the flags.
pub(crate) fn general_registers(regs: &kvm_regs) -> [(&'static str, u64); 17] {
    [
        ("rip", regs.rip),
        ("rsp", regs.rsp),
        ("rbp", regs.rbp),
        ("rax", regs.rax),
        ("rbx", regs.rbx),
        ("rcx", regs.rcx),
        ("rdx", regs.rdx),
        ("rsi", regs.rsi),
        ("rdi", regs.rdi),
        ("r8", regs.r8),
        ("r9", regs.r9),
        ("r10", regs.r10),
        ("r11", regs.r11),
        ("r12", regs.r12),
        ("r13", regs.r13),
        ("r14", regs.r14),
        ("r15", regs.r15),
    ]
}

/// Reads MSRs.
///
/// # Errors
/// [`Error::Short`] names the first MSR that KVM does not read.
pub(crate) fn get_msrs(vcpu: &VcpuFd, indices: &[u32]) -> Result<Vec<kvm_msr_entry>, Error> {
    let entries: Vec<_> = indices
        .iter()
        .map(|&index| kvm_msr_entry {
            index,
            ..Default::default()
        })
        .collect();
    let mut msrs = msr_list("KVM_GET_MSRS", &entries)?;
    let done = vcpu
        .get_msrs(&mut msrs)
        .map_err(Error::kvm("KVM_GET_MSRS"))?;
    all_taken("KVM_GET_MSRS", done, &entries)?;
    Ok(msrs.as_slice().to_vec())
}

/// Writes MSRs, in order.
///
/// # Errors
/// [`Error::Short`] names the first MSR that KVM does not write.
pub(crate) fn set_msrs(vcpu: &VcpuFd, entries: &[kvm_msr_entry]) -> Result<(), Error> {
    let msrs = msr_list("KVM_SET_MSRS", entries)?;
    let done = vcpu.set_msrs(&msrs).map_err(Error::kvm("KVM_SET_MSRS"))?;
    all_taken("KVM_SET_MSRS", done, entries)
}

fn msr_list(operation: &'static str, entries: &[kvm_msr_entry]) -> Result<Msrs, Error> {
    Msrs::from_entries(entries).map_err(|_| Error::Short {
        operation,
        done: 0,
        wanted: entries.len(),
        item: "too many MSRs".to_owned(),
    })
}

fn all_taken(operation: &'static str, done: usize, entries: &[kvm_msr_entry]) -> Result<(), Error> {
    match entries.get(done) {
        None => Ok(()),
        Some(refused) => Err(Error::Short {
            operation,
            done,
            wanted: entries.len(),
            item: format!("MSR {:#x}", refused.index),
        }),
    }
}

impl VcpuState {
    /// The debug registers.
    pub(crate) fn debug(&self) -> &kvm_debugregs {
        &self.debug
    }

    /// The local interrupt controller.
    pub(crate) fn lapic(&self) -> &kvm_lapic_state {
        &self.lapic
    }

    /// The MSRs, in the order in which they are set.
    pub(crate) fn msrs(&self) -> &[kvm_msr_entry] {
        &self.msrs
    }

    /// Whether it runs or waits, as KVM numbers it.
    pub(crate) fn mp_state(&self) -> u32 {
        self.mp_state.mp_state
    }

    /// What a guest may change and this does not hold, as a new vCPU has it.
    fn unsaved_msrs<'a>(&self, host: &'a Host) -> impl Iterator<Item = kvm_msr_entry> + use<'a> {
        let mut saved: Vec<u32> = self.msrs.iter().map(|entry| entry.index).collect();
        saved.sort_unstable();
        let fresh = host.fresh_msrs.iter().copied();
        fresh.filter(move |entry| saved.binary_search(&entry.index).is_err())
    }

    /// Reads the state. Pending I/O must be complete.
    pub(crate) fn save(host: &Host, shell: &Shell) -> Result<Self, Error> {
        let vcpu = &shell.vcpu;
        let indices: Vec<u32> = SAVED_MSRS
            .into_iter()
            .filter(|index| host.msrs.contains(index))
            .collect();
        Ok(Self {
            // First: reading it settles a wait-for-interrupt state (Linux KVM API, 4.38).
            mp_state: vcpu
                .get_mp_state()
                .map_err(Error::kvm("KVM_GET_MP_STATE"))?,
            regs: vcpu.get_regs().map_err(Error::kvm("KVM_GET_REGS"))?,
            sregs: vcpu.get_sregs().map_err(Error::kvm("KVM_GET_SREGS"))?,
            xcrs: vcpu.get_xcrs().map_err(Error::kvm("KVM_GET_XCRS"))?,
            // 4 KiB hold all state but AMX tiles, which guests are offered only where this process
            // asked the kernel for them; it does not.
            xsave: vcpu.get_xsave().map_err(Error::kvm("KVM_GET_XSAVE"))?,
            debug: vcpu
                .get_debug_regs()
                .map_err(Error::kvm("KVM_GET_DEBUGREGS"))?,
            lapic: vcpu.get_lapic().map_err(Error::kvm("KVM_GET_LAPIC"))?,
            msrs: get_msrs(vcpu, &indices)?,
            events: vcpu
                .get_vcpu_events()
                .map_err(Error::kvm("KVM_GET_VCPU_EVENTS"))?,
        })
    }

    /// Names the parts of a vCPU that this state was set in, and that has not run since, that differ
    /// from it. Registers and events that still wait in the shared page are taken from there. The
    /// LAPIC's current count is left out, which runs.
    pub(crate) fn differences(
        &self,
        host: &Host,
        shell: &Shell,
    ) -> Result<Vec<&'static str>, Error> {
        /// Intel SDM vol. 3A, 12.4.1: the register's offset in the LAPIC's page.
        const CURRENT_COUNT: usize = 0x390;
        let lapic = |state: &kvm_lapic_state| {
            let mut regs = state.regs;
            regs[CURRENT_COUNT..CURRENT_COUNT + 4].fill(0);
            regs
        };
        let now = Self::save(host, shell)?;
        let shared = shell.vcpu.sync_regs();
        let msrs = |entries: &[kvm_msr_entry]| -> Vec<(u32, u64)> {
            let entries = entries.iter();
            entries.map(|entry| (entry.index, entry.data)).collect()
        };
        let unsaved: Vec<_> = self.unsaved_msrs(host).collect();
        let unsaved_indices: Vec<u32> = unsaved.iter().map(|entry| entry.index).collect();
        let unsaved_now = get_msrs(&shell.vcpu, &unsaved_indices)?;
        let parts = [
            ("registers", shared.regs == self.regs),
            ("system registers", now.sregs == self.sregs),
            ("XCRs", now.xcrs == self.xcrs),
            ("XSAVE area", now.xsave.region == self.xsave.region),
            ("debug registers", now.debug == self.debug),
            ("LAPIC", lapic(&now.lapic) == lapic(&self.lapic)),
            ("MSRs", msrs(&now.msrs) == msrs(&self.msrs)),
            ("other MSRs", msrs(&unsaved_now) == msrs(&unsaved)),
            ("events", shared.events == self.events),
            ("MP state", now.mp_state == self.mp_state),
        ];
        let differs = parts.into_iter().filter(|(_, is_equal)| !is_equal);
        Ok(differs.map(|(name, _)| name).collect())
    }

    /// Checks what KVM would not refuse: a snapshot file may name only MSRs that are ever saved.
    ///
    /// # Errors
    /// [`Error::NotRestorable`] names the first other one.
    pub(crate) fn check(&self) -> Result<(), Error> {
        match self
            .msrs
            .iter()
            .find(|entry| !SAVED_MSRS.contains(&entry.index))
        {
            None => Ok(()),
            Some(entry) => Err(Error::NotRestorable {
                reason: format!(
                    "it sets MSR {:#x}, which no snapshot holds, so it was tampered with; deploy \
                     the function again",
                    entry.index
                ),
            }),
        }
    }

    /// Sets the state. Ordering requirements:
    ///
    /// 1. CPUID before everything (done when the shell was made): it decides which MSRs, XCR0 bits
    ///    and CR4 bits KVM accepts.
    /// 2. System registers before the LAPIC: `APIC_BASE` decides its mode (xAPIC or x2APIC).
    /// 3. XCRs before XSAVE: the enabled components decide what is loaded.
    /// 4. The LAPIC before `IA32_TSC_DEADLINE`: a deadline is taken only in deadline mode. The TSC
    ///    itself before both ([`crate::clock`] did so), or the timer would be armed against a
    ///    counter that is about to move.
    /// 5. Events after the registers, whose interrupt flag and shadow they refine.
    /// 6. MP state last: it lets the vCPU run.
    ///
    /// MSRs that the snapshot does not hold get the values that they have in a new vCPU.
    ///
    /// Registers and events are left in the shared page, where the next `KVM_RUN` takes them in that
    /// order before it enters the guest (`KVM_CAP_SYNC_REGS`): two system calls less.
    pub(crate) fn set(&self, host: &Host, shell: &mut Shell) -> Result<(), Error> {
        let vcpu = &mut shell.vcpu;
        vcpu.set_sregs(&self.sregs)
            .map_err(Error::kvm("KVM_SET_SREGS"))?;
        vcpu.set_xcrs(&self.xcrs)
            .map_err(Error::kvm("KVM_SET_XCRS"))?;
        // SAFETY: KVM reads 4 KiB (or the size of KVM_CAP_XSAVE2 where AMX was enabled for this
        // process, which it never is), the size of `kvm_xsave`.
        unsafe { vcpu.set_xsave(&self.xsave) }.map_err(Error::kvm("KVM_SET_XSAVE"))?;
        vcpu.set_debug_regs(&self.debug)
            .map_err(Error::kvm("KVM_SET_DEBUGREGS"))?;
        vcpu.set_lapic(&self.lapic)
            .map_err(Error::kvm("KVM_SET_LAPIC"))?;
        let msrs: Vec<_> = self.unsaved_msrs(host).chain(self.msrs.clone()).collect();
        set_msrs(vcpu, &msrs)?;
        vcpu.set_mp_state(self.mp_state)
            .map_err(Error::kvm("KVM_SET_MP_STATE"))?;

        let shared = vcpu.sync_regs_mut();
        shared.regs = self.regs;
        // Not marked as dirty: set above; here for those who walk the page tables before the run.
        shared.sregs = self.sregs;
        shared.events = self.events;
        vcpu.set_sync_dirty_reg(SyncReg::Register);
        vcpu.set_sync_dirty_reg(SyncReg::VcpuEvents);
        Ok(())
    }
}

#[cfg(test)]
impl VcpuState {
    /// One in which every field has a value of its own.
    pub(crate) fn example() -> Self {
        let entry = |index| kvm_msr_entry {
            index,
            data: u64::from(index) << 20 | 5,
            ..Default::default()
        };
        let mut example = Self {
            regs: kvm_regs::default(),
            sregs: kvm_sregs::default(),
            xcrs: kvm_xcrs::default(),
            xsave: kvm_xsave::default(),
            debug: kvm_debugregs::default(),
            lapic: kvm_lapic_state::default(),
            msrs: SAVED_MSRS.into_iter().map(entry).collect(),
            events: kvm_vcpu_events::default(),
            mp_state: kvm_mp_state { mp_state: 3 },
        };
        (example.regs.rip, example.regs.rsp) = (0x30_1000, 0x33_f000);
        (example.sregs.cr3, example.sregs.efer) = (0x31_0000, 0xd01);
        (example.xcrs.nr_xcrs, example.xcrs.xcrs[0].value) = (1, 7);
        (example.xsave.region[6], example.xsave.region[128]) = (0x1f80, 3);
        example.debug.dr6 = 0xffff_0ff0;
        example.lapic.regs[0x20] = 1;
        example.events.interrupt.shadow = 1;
        example
    }
}

/// Sets the guest's TSC to the host's plus `offset` (Linux KVM API, 4.81 and vcpu device attribute
/// `KVM_VCPU_TSC_OFFSET`). False where the kernel does not have the attribute (before 5.16).
pub(crate) fn set_tsc_offset(vcpu: &VcpuFd, offset: u64) -> bool {
    let attribute = kvm_device_attr {
        flags: 0,
        group: KVM_VCPU_TSC_CTRL,
        attr: u64::from(KVM_VCPU_TSC_OFFSET),
        addr: &raw const offset as u64,
    };
    // SAFETY: the kernel reads the struct and the eight bytes at `addr`; both outlive the call.
    unsafe { libc::ioctl(vcpu.as_raw_fd(), SET_DEVICE_ATTR.into(), &attribute) == 0 }
}
