//! What this host can do: KVM and its capabilities, the CPU, and the kind of virtualization.

use std::os::fd::{AsRawFd, RawFd};
use std::path::Path;
use std::sync::{Arc, OnceLock};

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_msr_entry};
use kvm_ioctls::{Cap, Kvm};
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::features;
use crate::probe;

/// KVM, opened and found able.
#[derive(Debug)]
pub struct Host {
    pub(crate) kvm: Kvm,
    pub(crate) cpuid: CpuId,
    pub(crate) msrs: Vec<u32>,
    /// The MSRs that a guest may change, as a new vCPU has them.
    pub(crate) fresh_msrs: Vec<kvm_msr_entry>,
    profile: HostProfile,
}

/// The facts of a host that decide whether a snapshot can run on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostProfile {
    /// The CPU's vendor string (CPUID leaf 0).
    pub vendor: String,
    /// Family, model and stepping word (CPUID leaf 1, EAX).
    pub signature: u32,
    /// `intel`, `amd`, `pvm` or `unknown`: the KVM module in use.
    pub kvm_flavour: String,
    /// The feature words that guests are given: leaf 1 ECX and EDX, leaf 7 EBX, ECX and EDX, leaf
    /// 0x80000001 ECX and EDX.
    pub features: [u32; 7],
    /// Guest TSC frequency, kHz.
    pub tsc_khz: u32,
    /// Whether guest ring-0 code is emulated, instruction by instruction and without SSE.
    pub emulated_ring0: bool,
    /// Whether a guest's TSC can be set; otherwise it is the host's.
    pub tsc_settable: bool,
}

a_change_here_is_a_new_format_version! {
    HostProfile {
        vendor: String,
        signature: u32,
        kvm_flavour: String,
        features: [u32; 7],
        tsc_khz: u32,
        emulated_ring0: bool,
        tsc_settable: bool,
    }
}

/// A capability that Dormouse cares about, as `doctor` shows it.
#[derive(Debug, Clone, Serialize)]
pub struct Capability {
    /// Its name.
    pub name: &'static str,
    /// Whether this host has it.
    pub present: bool,
    /// Whether nothing works without it.
    pub required: bool,
    /// What it is for.
    pub meaning: &'static str,
}

const CAPABILITIES: [(Cap, &str, bool, &str); 9] = [
    (Cap::UserMemory, "USER_MEMORY", true, "guest memory is ours"),
    (
        Cap::SplitIrqchip,
        "SPLIT_IRQCHIP",
        true,
        "a timer in the kernel and VM creation in 0.3 ms",
    ),
    (
        Cap::Xcrs,
        "XCRS",
        true,
        "extended control registers can be saved",
    ),
    (
        Cap::Xsave,
        "XSAVE",
        true,
        "FPU and vector state can be saved",
    ),
    (
        Cap::VcpuEvents,
        "VCPU_EVENTS",
        true,
        "pending events can be saved",
    ),
    (
        Cap::Debugregs,
        "DEBUGREGS",
        true,
        "debug registers can be saved",
    ),
    (
        Cap::ImmediateExit,
        "IMMEDIATE_EXIT",
        true,
        "a pending instruction can be completed",
    ),
    (
        Cap::ReadonlyMem,
        "READONLY_MEM",
        false,
        "Hermit's search for an MP table takes no exits",
    ),
    (
        Cap::SyncRegs,
        "SYNC_REGS",
        true,
        "registers pass without system calls",
    ),
];

impl Host {
    /// Opens `/dev/kvm` once per process and probes it.
    ///
    /// # Errors
    /// [`Error::NoKvm`] with what is missing and what to do.
    pub fn open() -> Result<Arc<Self>, Error> {
        static HOST: OnceLock<Arc<Host>> = OnceLock::new();
        if let Some(host) = HOST.get() {
            return Ok(Arc::clone(host));
        }
        let probed = Arc::new(Self::probe()?);
        Ok(Arc::clone(HOST.get_or_init(|| probed)))
    }

    /// Opens, for good, all that VMs need by path: a process that cannot open files from then on can
    /// still make them. Returns the descriptors.
    ///
    /// # Errors
    /// As [`Host::open`]; [`Error::System`] for what is under `/proc`.
    pub fn open_ahead() -> Result<Vec<RawFd>, Error> {
        let host = Self::open()?;
        crate::clock::boot_id();
        let pagemap = crate::ram::pagemap().map_err(|source| Error::System {
            operation: "opening /proc/self/pagemap",
            source,
        })?;
        Ok(vec![host.kvm.as_raw_fd(), pagemap.as_raw_fd()])
    }

    fn probe() -> Result<Self, Error> {
        let kvm = Kvm::new().map_err(|e| Error::NoKvm {
            reason: no_kvm(e.errno()),
        })?;
        let version = kvm.get_api_version();
        if version != 12 {
            return Err(Error::NoKvm {
                reason: format!("/dev/kvm speaks API version {version}, not 12; update the kernel"),
            });
        }
        let missing: Vec<_> = capabilities(&kvm)
            .into_iter()
            .filter(|capability| capability.required && !capability.present)
            .map(|capability| capability.name)
            .collect();
        if !missing.is_empty() {
            return Err(Error::NoKvm {
                reason: format!(
                    "this host's KVM lacks {}; a Linux kernel from 5.10 has them",
                    missing.join(", ")
                ),
            });
        }
        let cpuid = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(Error::kvm("KVM_GET_SUPPORTED_CPUID"))?;
        let msrs = kvm
            .get_msr_index_list()
            .map_err(Error::kvm("KVM_GET_MSR_INDEX_LIST"))?
            .as_slice()
            .to_vec();
        let mut host = Self {
            kvm,
            cpuid,
            msrs,
            fresh_msrs: Vec::new(),
            profile: HostProfile::empty(),
        };
        let found = probe::run(&host)?;
        host.cpuid = guest_cpuid(&host.cpuid, found.emulated_ring0)?;
        host.profile = HostProfile::read(&host.cpuid, &found);
        host.fresh_msrs = found.fresh_msrs;
        Ok(host)
    }

    /// The facts that snapshots are tied to.
    #[must_use]
    pub fn profile(&self) -> &HostProfile {
        &self.profile
    }

    /// What KVM can do here.
    #[must_use]
    pub fn capabilities(&self) -> Vec<Capability> {
        capabilities(&self.kvm)
    }
}

fn capabilities(kvm: &Kvm) -> Vec<Capability> {
    CAPABILITIES
        .iter()
        .map(|&(cap, name, required, meaning)| Capability {
            name,
            present: kvm.check_extension(cap),
            required,
            meaning,
        })
        .collect()
}

fn no_kvm(errno: i32) -> String {
    let error = std::io::Error::from_raw_os_error(errno);
    let remedy = match errno {
        libc::ENOENT => {
            "load the module for your CPU (`modprobe kvm_intel` or `modprobe kvm_amd`), enable \
             virtualization in the firmware, or, in a VM, nested virtualization"
        }
        libc::EACCES | libc::EPERM => {
            "run as root or join the group that owns /dev/kvm (`usermod -aG kvm $USER`)"
        }
        _ => "see `dmesg` for what the kvm module says",
    };
    format!("/dev/kvm cannot be opened ({error}): {remedy}")
}

/// CPUID leaves with meaning here (Intel SDM vol. 2A, CPUID; AMD APM vol. 3, E).
mod leaf {
    pub(super) const FEATURES: u32 = 1;
    pub(super) const STRUCTURED: u32 = 7;
    pub(super) const TSC_RATIO: u32 = 0x15;
    pub(super) const FREQUENCY: u32 = 0x16;
    pub(super) const HYPERVISOR_TIMING: u32 = 0x4000_0010;
    pub(super) const EXTENDED: u32 = 0x8000_0001;
}

/// What guests are told of the CPU.
///
/// Hermit takes the TSC frequency from the first source that answers; leaves 0x15, 0x16 and
/// 0x40000010 are emptied so that this is the boot info, whose value we know.
///
/// Of virtualization, which KVM offers on most hosts, guests get none: what a guest leaves in its own
/// guests and their control structures stands in the kernel, where no restore reaches it.
fn guest_cpuid(supported: &CpuId, emulated_ring0: bool) -> Result<CpuId, Error> {
    const MONITOR: u32 = 1 << 3;
    const VMX_AND_SMX: u32 = 0b11 << 5;
    const SVM: u32 = 1 << 2;
    const X2APIC: u32 = 1 << 21;
    const TSC_DEADLINE: u32 = 1 << 24;
    const HYPERVISOR: u32 = 1 << 31;
    const RDTSCP: u32 = 1 << 27;

    let mut entries = supported.as_slice().to_vec();
    for entry in &mut entries {
        match entry.function {
            leaf::FEATURES => {
                entry.ecx &= !(MONITOR | VMX_AND_SMX);
                entry.ecx |= X2APIC | TSC_DEADLINE | HYPERVISOR;
                // One logical processor with APIC id 0.
                entry.ebx = entry.ebx & 0xFFFF | 1 << 16;
            }
            leaf::TSC_RATIO | leaf::FREQUENCY | leaf::HYPERVISOR_TIMING => {
                (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0);
            }
            leaf::EXTENDED => {
                entry.ecx &= !SVM;
                if emulated_ring0 {
                    entry.edx &= !RDTSCP;
                }
            }
            _ => {}
        }
    }
    CpuId::from_entries(&entries).map_err(|_| Error::NoKvm {
        reason: "this CPU has more CPUID leaves than KVM takes".into(),
    })
}

impl HostProfile {
    fn empty() -> Self {
        Self {
            vendor: String::new(),
            signature: 0,
            kvm_flavour: String::new(),
            features: [0; 7],
            tsc_khz: 0,
            emulated_ring0: false,
            tsc_settable: false,
        }
    }

    fn read(cpuid: &CpuId, found: &probe::Found) -> Self {
        let entry = |function: u32| {
            cpuid
                .as_slice()
                .iter()
                .find(|entry| entry.function == function && entry.index == 0)
                .copied()
                .unwrap_or_default()
        };
        let vendor = entry(0);
        let vendor: Vec<u8> = [vendor.ebx, vendor.edx, vendor.ecx]
            .into_iter()
            .flat_map(u32::to_le_bytes)
            .collect();
        let (basic, structured, extended) = (
            entry(leaf::FEATURES),
            entry(leaf::STRUCTURED),
            entry(leaf::EXTENDED),
        );
        let flavour = ["pvm", "intel", "amd"]
            .into_iter()
            .find(|name| Path::new(&format!("/sys/module/kvm_{name}")).exists())
            .unwrap_or("unknown");
        Self {
            vendor: String::from_utf8_lossy(&vendor).into_owned(),
            signature: basic.eax,
            kvm_flavour: flavour.to_owned(),
            features: [
                basic.ecx,
                basic.edx,
                structured.ebx,
                structured.ecx,
                structured.edx,
                extended.ecx,
                extended.edx,
            ],
            tsc_khz: found.tsc_khz,
            emulated_ring0: found.emulated_ring0,
            tsc_settable: found.tsc_settable,
        }
    }

    /// Whether a guest that was saved on `self` can go on on `here`.
    ///
    /// # Errors
    /// The first difference that matters: [`Error::OtherVendor`], [`Error::OtherKvm`],
    /// [`Error::MissingFeatures`] or [`Error::OtherTsc`].
    pub fn check_restorable(&self, here: &Self) -> Result<(), Error> {
        if self.vendor != here.vendor {
            return Err(Error::OtherVendor {
                there: told(&self.vendor),
                here: told(&here.vendor),
            });
        }
        if self.kvm_flavour != here.kvm_flavour {
            return Err(Error::OtherKvm {
                there: told(&self.kvm_flavour),
                here: told(&here.kvm_flavour),
            });
        }
        let missing = features::missing(&self.features, &here.features);
        if !missing.is_empty() {
            return Err(Error::MissingFeatures { missing });
        }
        // Guests divide the TSC by whole MHz; a host of another frequency would run their clock
        // wrong, and few hosts scale the TSC.
        if self.tsc_khz / 1000 != here.tsc_khz / 1000 {
            return Err(Error::OtherTsc {
                there_khz: self.tsc_khz,
                here_khz: here.tsc_khz,
            });
        }
        Ok(())
    }
}

/// A name out of a snapshot as it may stand in a sentence: a file can say anything, at any length.
fn told(name: &str) -> String {
    const MOST_CHARS: usize = 32;
    let name = name.chars().filter(|c| !c.is_control());
    name.take(MOST_CHARS).collect()
}

#[cfg(test)]
impl HostProfile {
    pub(crate) fn example() -> Self {
        Self {
            vendor: "GenuineIntel".into(),
            signature: 0x606a6,
            kvm_flavour: "intel".into(),
            features: [u32::MAX; 7],
            tsc_khz: 2_100_000,
            emulated_ring0: false,
            tsc_settable: true,
        }
    }
}

#[cfg(test)]
mod tests {
    use kvm_bindings::kvm_cpuid_entry2;

    use super::*;
    use crate::probe::Found;

    fn profile() -> HostProfile {
        HostProfile::example()
    }

    fn refusal(change: impl FnOnce(&mut HostProfile)) -> (Error, String) {
        let mut here = profile();
        change(&mut here);
        let error = profile().check_restorable(&here).unwrap_err();
        let text = error.to_string();
        (error, text)
    }

    #[test]
    fn guests_are_offered_no_virtualization_of_their_own() {
        let entries = [leaf::FEATURES, leaf::EXTENDED].map(|function| kvm_cpuid_entry2 {
            function,
            ecx: u32::MAX,
            ..Default::default()
        });
        let all = CpuId::from_entries(&entries).unwrap();
        let found = Found::default();
        let told = HostProfile::read(&guest_cpuid(&all, false).unwrap(), &found);
        let names = features::names(&told.features);
        for name in ["vmx", "smx", "svm"] {
            assert!(!names.iter().any(|found| found == name), "{name}");
        }
        assert!(names.iter().any(|found| found == "rdrand"), "the rest is");
    }

    #[test]
    fn a_host_that_has_as_much_and_more_will_do() {
        let mut there = profile();
        there.features = [1; 7];
        there.signature = 1;
        there.tsc_khz = 2_100_900;
        there.check_restorable(&profile()).unwrap();
    }

    #[test]
    fn each_difference_that_matters_is_said_in_its_own_words() {
        let (error, text) = refusal(|here| here.vendor = "AuthenticAMD".into());
        assert!(matches!(error, Error::OtherVendor { .. }));
        assert_eq!(
            text,
            "this snapshot cannot be restored here: it was made on a CPU by GenuineIntel, this one \
             is by AuthenticAMD; deploy the function again here, or restore it on a host with a CPU \
             by GenuineIntel"
        );

        let (error, text) = refusal(|here| here.kvm_flavour = "pvm".into());
        assert!(matches!(error, Error::OtherKvm { .. }));
        assert_eq!(
            text,
            "this snapshot cannot be restored here: it was made with the KVM flavour intel, this \
             host has pvm; deploy the function again here, or load the module kvm_intel"
        );

        let (error, text) = refusal(|here| {
            here.features[2] &= !(1 << 16 | 1 << 5);
            here.features[0] &= !(1 << 26);
        });
        assert!(matches!(error, Error::MissingFeatures { .. }));
        assert_eq!(
            text,
            "this snapshot cannot be restored here: its guest was offered CPU features that this \
             host lacks: xsave, avx2, avx512f; deploy the function again here, or restore it on a \
             host that has them"
        );

        let (error, text) = refusal(|here| here.tsc_khz = 2_600_000);
        assert!(matches!(error, Error::OtherTsc { .. }));
        assert!(text.contains("2100000 kHz, this one's runs at 2600000 kHz; deploy"));
    }

    #[test]
    fn names_out_of_a_file_stay_short_and_on_one_line() {
        let mut there = profile();
        there.vendor = "evil\n\x1b[31m".repeat(1000);
        let text = there.check_restorable(&profile()).unwrap_err().to_string();
        assert!(text.len() < 400 && !text.contains(['\n', '\x1b']), "{text}");
    }
}
