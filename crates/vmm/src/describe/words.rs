//! The names of single bits and numbers: what manuals call what KVM saves.

/// A bit of a register and its name.
type Bit = (u32, &'static str);

/// RFLAGS (Intel SDM vol. 1, 3.4.3; AMD APM vol. 2, 3.1.6). Bits 12 and 13 are a number, the I/O
/// privilege level.
pub(super) const RFLAGS: &[Bit] = &[
    (0, "carry"),
    (2, "parity"),
    (4, "adjust"),
    (6, "zero"),
    (7, "sign"),
    (8, "trap"),
    (9, "interrupts-enabled"),
    (10, "direction"),
    (11, "overflow"),
    (14, "nested-task"),
    (16, "resume"),
    (17, "virtual-8086"),
    (18, "alignment-check"),
    (19, "virtual-interrupt"),
    (20, "virtual-interrupt-pending"),
    (21, "cpuid"),
];

/// CR0 (Intel SDM vol. 3A, 2.5; AMD APM vol. 2, 3.1.1).
pub(super) const CR0: &[Bit] = &[
    (0, "PE"),
    (1, "MP"),
    (2, "EM"),
    (3, "TS"),
    (4, "ET"),
    (5, "NE"),
    (16, "WP"),
    (18, "AM"),
    (29, "NW"),
    (30, "CD"),
    (31, "PG"),
];

/// CR4 (Intel SDM vol. 3A, 2.5; AMD APM vol. 2, 3.1.3).
pub(super) const CR4: &[Bit] = &[
    (0, "VME"),
    (1, "PVI"),
    (2, "TSD"),
    (3, "DE"),
    (4, "PSE"),
    (5, "PAE"),
    (6, "MCE"),
    (7, "PGE"),
    (8, "PCE"),
    (9, "OSFXSR"),
    (10, "OSXMMEXCPT"),
    (11, "UMIP"),
    (12, "LA57"),
    (13, "VMXE"),
    (14, "SMXE"),
    (16, "FSGSBASE"),
    (17, "PCIDE"),
    (18, "OSXSAVE"),
    (20, "SMEP"),
    (21, "SMAP"),
    (22, "PKE"),
    (23, "CET"),
    (24, "PKS"),
];

/// EFER (Intel SDM vol. 4, MSR C000_0080H; AMD APM vol. 2, 3.1.7).
pub(super) const EFER: &[Bit] = &[
    (0, "SCE"),
    (8, "LME"),
    (10, "LMA"),
    (11, "NXE"),
    (12, "SVME"),
    (13, "LMSLE"),
    (14, "FFXSR"),
    (15, "TCE"),
];

/// XCR0 (Intel SDM vol. 1, 13.3; AMD APM vol. 2, 11.5.2).
pub(super) const XCR0: &[Bit] = &[
    (0, "x87"),
    (1, "SSE"),
    (2, "AVX"),
    (3, "BNDREGS"),
    (4, "BNDCSR"),
    (5, "AVX-512-opmask"),
    (6, "AVX-512-ZMM-high"),
    (7, "AVX-512-ZMM16-31"),
    (9, "PKRU"),
    (17, "AMX-config"),
    (18, "AMX-data"),
];

/// `IA32_APIC_BASE` (Intel SDM vol. 3A, 12.4.4).
pub(super) const APIC_BASE: &[Bit] = &[(8, "bootstrap"), (10, "x2APIC"), (11, "enabled")];

/// The names of the bits that are set; those without a name by their number.
pub(super) fn names(value: u64, bits: &[Bit]) -> Vec<String> {
    (0..u64::BITS)
        .filter(|bit| value >> bit & 1 == 1)
        .map(|bit| {
            let found = bits.iter().find(|(at, _)| *at == bit);
            found.map_or_else(|| format!("bit-{bit}"), |(_, name)| (*name).to_owned())
        })
        .collect()
}

/// What an MSR is called (Intel SDM vol. 4; AMD APM vol. 2, A; Linux, Documentation/virt/kvm/x86/msr.rst).
pub(super) fn msr(index: u32) -> String {
    let name = match index {
        0x10 => "IA32_TIME_STAMP_COUNTER",
        0x3B => "IA32_TSC_ADJUST",
        0x48 => "IA32_SPEC_CTRL",
        0x174 => "IA32_SYSENTER_CS",
        0x175 => "IA32_SYSENTER_ESP",
        0x176 => "IA32_SYSENTER_EIP",
        0x1A0 => "IA32_MISC_ENABLE",
        0x1D9 => "IA32_DEBUGCTL",
        0x277 => "IA32_PAT",
        0x2FF => "IA32_MTRR_DEF_TYPE",
        0x250 => "IA32_MTRR_FIX64K_00000",
        0x258 => "IA32_MTRR_FIX16K_80000",
        0x259 => "IA32_MTRR_FIX16K_A0000",
        0x6E0 => "IA32_TSC_DEADLINE",
        0xDA0 => "IA32_XSS",
        0xC000_0081 => "STAR",
        0xC000_0082 => "LSTAR",
        0xC000_0083 => "CSTAR",
        0xC000_0084 => "FMASK",
        0xC000_0102 => "KERNEL_GS_BASE",
        0xC000_0103 => "TSC_AUX",
        0x4B56_4D00 => "KVM_WALL_CLOCK",
        0x4B56_4D01 => "KVM_SYSTEM_TIME",
        0x4B56_4D02 => "KVM_ASYNC_PF_EN",
        0x4B56_4D03 => "KVM_STEAL_TIME",
        0x4B56_4D04 => "KVM_PV_EOI_EN",
        0x4B56_4D05 => "KVM_POLL_CONTROL",
        0x4B56_4D06 => "KVM_ASYNC_PF_INT",
        0x200..=0x20F => {
            let part = if index & 1 == 0 { "BASE" } else { "MASK" };
            return format!("IA32_MTRR_PHYS{part}{}", (index - 0x200) / 2);
        }
        0x268..=0x26F => {
            let start = 0xC0000 + (index - 0x268) * 0x8000;
            return format!("IA32_MTRR_FIX4K_{start:X}");
        }
        _ => return format!("MSR {index:#x}"),
    };
    name.to_owned()
}

/// What an exception is called (Intel SDM vol. 3A, 6.3.1).
pub(super) fn exception(vector: u8) -> String {
    let name = match vector {
        0 => "divide error",
        1 => "debug exception",
        2 => "NMI",
        3 => "breakpoint",
        6 => "invalid opcode",
        8 => "double fault",
        11 => "segment not present",
        12 => "stack fault",
        13 => "general protection",
        14 => "page fault",
        16 => "x87 error",
        18 => "machine check",
        19 => "SIMD error",
        _ => return format!("exception {vector}"),
    };
    name.to_owned()
}

/// What the vCPU does (Linux KVM API, 4.38).
pub(super) fn mp_state(state: u32) -> String {
    let name = match state {
        kvm_bindings::KVM_MP_STATE_RUNNABLE => "runnable",
        kvm_bindings::KVM_MP_STATE_UNINITIALIZED => "not started",
        kvm_bindings::KVM_MP_STATE_INIT_RECEIVED => "waits for its start address",
        kvm_bindings::KVM_MP_STATE_HALTED => "halted until an interrupt",
        kvm_bindings::KVM_MP_STATE_SIPI_RECEIVED => "about to start",
        other => return format!("state {other}"),
    };
    name.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_ascend_and_have_one_name_each() {
        let registers = [RFLAGS, CR0, CR4, EFER, XCR0, APIC_BASE];
        for bits in registers {
            assert!(bits.is_sorted_by(|one, other| one.0 < other.0), "{bits:?}");
            assert!(bits.iter().all(|(bit, _)| *bit < 64));
        }
        assert_eq!(names(0x8000_0011, CR0), ["PE", "ET", "PG"]);
        assert_eq!(names(1 << 63, CR0), ["bit-63"]);
    }

    #[test]
    fn msrs_have_the_names_of_the_manuals() {
        assert_eq!(msr(0x200), "IA32_MTRR_PHYSBASE0");
        assert_eq!(msr(0x20F), "IA32_MTRR_PHYSMASK7");
        assert_eq!(msr(0x269), "IA32_MTRR_FIX4K_C8000");
        assert_eq!(msr(0x26F), "IA32_MTRR_FIX4K_F8000");
        assert_eq!(msr(0x1234), "MSR 0x1234");
    }
}
