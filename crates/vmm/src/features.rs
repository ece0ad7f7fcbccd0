//! The names of CPU features, as Linux has them in `/proc/cpuinfo`
//! (`arch/x86/include/asm/cpufeatures.h`): for those who must find a host that has them.

/// Names by bit, from 0 on; `-` where a bit has none.
type Word = (&'static str, &'static str);

/// The words of [`crate::HostProfile::features`] (Intel SDM vol. 2A, CPUID; AMD APM vol. 3, E), each
/// with what a bit without a name is called by.
const WORDS: [Word; 7] = [
    (
        "leaf 1 ECX",
        "pni pclmulqdq dtes64 monitor ds_cpl vmx smx est tm2 ssse3 cid sdbg fma cx16 xtpr pdcm - \
         pcid dca sse4_1 sse4_2 x2apic movbe popcnt tsc_deadline_timer aes xsave osxsave avx f16c \
         rdrand hypervisor",
    ),
    (
        "leaf 1 EDX",
        "fpu vme de pse tsc msr pae mce cx8 apic - sep mtrr pge mca cmov pat pse36 pn clflush - dts \
         acpi mmx fxsr sse sse2 ss ht tm ia64 pbe",
    ),
    (
        "leaf 7 EBX",
        "fsgsbase tsc_adjust sgx bmi1 hle avx2 fdp_excptn_only smep bmi2 erms invpcid rtm cqm \
         zero_fcs_fds mpx rdt_a avx512f avx512dq rdseed adx smap avx512ifma - clflushopt clwb \
         intel_pt avx512pf avx512er avx512cd sha_ni avx512bw avx512vl",
    ),
    (
        "leaf 7 ECX",
        "- avx512vbmi umip pku ospke waitpkg avx512_vbmi2 shstk gfni vaes vpclmulqdq avx512_vnni \
         avx512_bitalg tme avx512_vpopcntdq - la57 - - - - - rdpid - bus_lock_detect cldemote - \
         movdiri movdir64b enqcmd sgx_lc pks",
    ),
    (
        "leaf 7 EDX",
        "- - avx512_4vnniw avx512_4fmaps fsrm - - - avx512_vp2intersect srbds_ctrl md_clear \
         rtm_always_abort - tsx_force_abort serialize hybrid_cpu tsxldtrk - pconfig arch_lbr ibt - \
         amx_bf16 avx512_fp16 amx_tile amx_int8 ibrs_ibpb stibp flush_l1d arch_capabilities \
         core_capabilities ssbd",
    ),
    (
        "leaf 0x80000001 ECX",
        "lahf_lm cmp_legacy svm extapic cr8_legacy abm sse4a misalignsse 3dnowprefetch osvw ibs xop \
         skinit wdt - lwp fma4 tce - nodeid_msr - tbm topoext perfctr_core perfctr_nb - bpext ptsc \
         perfctr_llc mwaitx - -",
    ),
    (
        "leaf 0x80000001 EDX",
        "fpu vme de pse tsc msr pae mce cx8 apic - syscall mtrr pge mca cmov pat pse36 - mp nx - \
         mmxext mmx fxsr fxsr_opt pdpe1gb rdtscp - lm 3dnowext 3dnow",
    ),
];

/// The names of the features that a host has; those without a name by their place. Each once: AMD's
/// leaf repeats some of leaf 1.
pub(crate) fn names(features: &[u32; 7]) -> Vec<String> {
    missing(features, &[0; 7])
}

/// The names of the features that `there` has and `here` has not, likewise.
pub(crate) fn missing(there: &[u32; 7], here: &[u32; 7]) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for (((place, names), there), here) in WORDS.iter().zip(there).zip(here) {
        for (bit, name) in names.split(' ').enumerate() {
            if (there & !here) >> bit & 1 == 0 {
                continue;
            }
            let name = match name {
                "-" => format!("bit {bit} of CPUID {place}"),
                name => name.to_owned(),
            };
            if !found.contains(&name) {
                found.push(name);
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bit_has_a_name_or_a_place() {
        for (place, names) in WORDS {
            assert_eq!(names.split(' ').count(), 32, "{place}");
        }
        let all = missing(&[u32::MAX; 7], &[0; 7]);
        for name in [
            "avx512f",
            "sha_ni",
            "rdpid",
            "lm",
            "nx",
            "hypervisor",
            "ssbd",
        ] {
            assert!(all.iter().any(|found| found == name), "{name}");
        }
        assert!(all.contains(&"bit 16 of CPUID leaf 1 ECX".to_owned()));
        assert!(missing(&[0; 7], &[u32::MAX; 7]).is_empty());
    }

    /// Linux tells the names itself where it has the features.
    #[test]
    fn the_names_are_those_of_linux() {
        let info = std::fs::read_to_string("/proc/cpuinfo").unwrap();
        let flags = info.lines().find(|line| line.starts_with("flags"));
        let flags: Vec<&str> = flags.unwrap().split_whitespace().collect();
        // What every CPU that runs Linux in 64 bits has.
        for name in [
            "fpu", "tsc", "msr", "pae", "cx8", "cmov", "sse2", "lm", "nx",
        ] {
            assert!(flags.contains(&name), "{name}");
            let known = WORDS
                .iter()
                .any(|(_, names)| names.split(' ').any(|n| n == name));
            assert!(known, "{name}");
        }
    }
}
