//! What a guest can leave in a vCPU beside what its snapshot holds.
//!
//! KVM takes values for some MSRs from any guest and keeps them, although they have no use here: what
//! one clone writes there would be read by the next in the same shell. Which of them a kernel has, and
//! what is in them at first, is seen in a vCPU that nobody has used; those values are set again before
//! every guest. So are those of the MSRs that snapshots hold: one that was made on another kernel may
//! not have all.

use std::ops::RangeInclusive;

use kvm_bindings::kvm_msr_entry;
use kvm_ioctls::VcpuFd;

use crate::vcpu::{SAVED_MSRS, get_msrs, set_msrs};

/// Where such MSRs may be (Intel SDM vol. 4; AMD APM vol. 2, A; Linux `arch/x86/kvm/x86.c`,
/// `kvm_set_msr_common`). A test looks for others.
const PLACES: [RangeInclusive<u32>; 19] = [
    0x33..=0x33,               // TEST_CTRL
    0x3A..=0x3A,               // IA32_FEAT_CTL
    0xE1..=0xE1,               // IA32_UMWAIT_CONTROL
    0x122..=0x122,             // IA32_TSX_CTRL
    0x140..=0x140,             // MISC_FEATURES_ENABLES
    0x17A..=0x17B,             // IA32_MCG_STATUS, IA32_MCG_CTL
    0x1C4..=0x1C5,             // IA32_XFD, IA32_XFD_ERR
    0x1FC..=0x1FC,             // POWER_CTL
    0x200..=0x20F,             // MTRRs of variable ranges, on kernels that do not list them
    0x250..=0x2FF,             // MTRRs of fixed ranges, likewise; IA32_MC0_CTL2 to IA32_MC31_CTL2
    0x400..=0x47F,             // IA32_MC0_CTL and on: the banks of machine checks
    0x4D0..=0x4D0,             // IA32_MCG_EXT_CTL
    0x6A0..=0x6A8,             // IA32_U_CET to IA32_INTERRUPT_SSP_TABLE_ADDR
    0x4B56_4D07..=0x4B56_4D07, // KVM migration control
    0xC000_0104..=0xC000_0104, // AMD TSC ratio
    0xC001_0015..=0xC001_0015, // AMD HWCR
    0xC001_0117..=0xC001_0117, // AMD VM_HSAVE_PA
    0xC001_011F..=0xC001_011F, // AMD VIRT_SPEC_CTRL
    0xC001_0140..=0xC001_0141, // AMD OSVW
];

/// The MSRs that a guest of this KVM may change, as they are in `vcpu`, which is to be as it was made.
pub(crate) fn find(vcpu: &VcpuFd) -> Vec<kvm_msr_entry> {
    let places = PLACES.into_iter().flatten();
    let places = places.filter(|index| !SAVED_MSRS.contains(index));
    places
        .chain(SAVED_MSRS)
        .filter_map(|index| get_msrs(vcpu, &[index]).ok()?.first().copied())
        // Some can be read only.
        .filter(|entry| set_msrs(vcpu, &[*entry]).is_ok())
        .collect()
}
