//! Facts that no capability tells: found by running a few instructions in a scratch VM.

use kvm_bindings::kvm_msr_entry;
use kvm_ioctls::VcpuExit;

use crate::boot;
use crate::config::Placement;
use crate::error::Error;
use crate::host::Host;
use crate::layout::{HUGE_PAGE_BYTES, KERNEL_OFFSET};
use crate::leftovers;
use crate::paging::Mapping;
use crate::shell::Shell;
use crate::vcpu::{MSR_IA32_TSC, get_msrs, set_msrs};

/// What the probe found.
#[derive(Default)]
pub(crate) struct Found {
    pub(crate) emulated_ring0: bool,
    pub(crate) tsc_settable: bool,
    pub(crate) tsc_khz: u32,
    pub(crate) fresh_msrs: Vec<kvm_msr_entry>,
}

/// `paddd xmm0, xmm0; out 0xfe, al`: SSE2 integer arithmetic, which every x86-64 CPU has and KVM's
/// instruction emulator does not.
const CODE: [u8; 6] = [0x66, 0x0F, 0xFE, 0xC0, 0xE6, 0xFE];
const CR4_OSFXSR: u64 = 1 << 9;

pub(crate) fn run(host: &Host) -> Result<Found, Error> {
    let placement = Placement {
        base: 0,
        memory_bytes: HUGE_PAGE_BYTES,
    };
    let mut shell = Shell::with_host(host, placement)?;
    shell.ram.write(KERNEL_OFFSET, &CODE)?;
    let tsc_khz = shell
        .vcpu
        .get_tsc_khz()
        .map_err(Error::kvm("KVM_GET_TSC_KHZ"))?;
    let fresh_msrs = leftovers::find(&shell.vcpu);
    let tsc_settable = tsc_settable(&shell)?;

    boot::enter_long_mode(&mut shell, Mapping::Guest, KERNEL_OFFSET, 0, 0)?;
    let mut sregs = shell
        .vcpu
        .get_sregs()
        .map_err(Error::kvm("KVM_GET_SREGS"))?;
    sregs.cr4 |= CR4_OSFXSR;
    shell
        .vcpu
        .set_sregs(&sregs)
        .map_err(Error::kvm("KVM_SET_SREGS"))?;
    let emulated_ring0 = match shell.vcpu.run().map_err(Error::kvm("KVM_RUN (probe)"))? {
        VcpuExit::IoOut(0xfe, _) => false,
        VcpuExit::InternalError => true,
        other => {
            return Err(Error::NoKvm {
                reason: format!(
                    "KVM cannot run a guest here: the first instructions ended in {other:?}; see \
                     `dmesg` for what the kvm module says"
                ),
            });
        }
    };
    Ok(Found {
        emulated_ring0,
        tsc_settable,
        tsc_khz,
        fresh_msrs,
    })
}

/// Moves the TSC an hour ahead and looks whether it moved.
fn tsc_settable(shell: &Shell) -> Result<bool, Error> {
    let before = get_msrs(&shell.vcpu, &[MSR_IA32_TSC])?[0].data;
    let hour = 3600 * 1_000_000_000;
    let ahead = before + hour;
    let entry = kvm_msr_entry {
        index: MSR_IA32_TSC,
        data: ahead,
        ..Default::default()
    };
    set_msrs(&shell.vcpu, &[entry])?;
    let after = get_msrs(&shell.vcpu, &[MSR_IA32_TSC])?[0].data;
    Ok(after >= ahead)
}
