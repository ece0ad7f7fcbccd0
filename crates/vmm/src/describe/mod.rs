//! A saved guest in words: registers, control state, clocks and host, as the manuals call them.
//!
//! Nothing here decides anything. States come from files and may hold any value: each is shown as
//! it is.

mod words;

use kvm_bindings::{kvm_dtable, kvm_lapic_state, kvm_segment, kvm_vcpu_events};
use schemars::JsonSchema;
use serde::Serialize;

use crate::features;
use crate::host::HostProfile;
use crate::image::Interface;
use crate::state::VmState;
use crate::vcpu::general_registers;

/// A saved guest, but for its memory. Addresses and register values are hexadecimal text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[non_exhaustive]
pub struct VmDescription {
    /// Lowest guest-physical address.
    pub base: String,
    /// Memory size in bytes.
    pub memory_bytes: u64,
    /// Where the kernel was loaded.
    pub load_address: String,
    /// The hypercall interface that the kernel speaks: `v1` or `v2`.
    pub interface: String,
    /// What the program sees of the CPU.
    pub registers: Vec<Register>,
    /// What the kernel has set.
    pub control: ControlDescription,
    /// Time.
    pub clocks: ClockDescription,
    /// The host it was saved on.
    pub host: HostDescription,
}

/// A register and what its bits mean.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Register {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: String,
    /// The bits that are set, where they have names.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(default)]
    pub bits: Vec<String>,
}

/// Control registers and devices of a vCPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[non_exhaustive]
pub struct ControlDescription {
    /// CR0 to CR8, EFER, `APIC_BASE`, XCR0 and the debug registers.
    pub registers: Vec<Register>,
    /// Segments and descriptor tables.
    pub segments: Vec<Segment>,
    /// The local interrupt controller.
    pub lapic: LapicDescription,
    /// Whether the vCPU runs or waits.
    pub mp_state: String,
    /// Exceptions and interrupts that are under way.
    pub pending: Vec<String>,
    /// Model-specific registers.
    pub msrs: Vec<Register>,
}

/// A segment or descriptor table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Segment {
    /// Its name.
    pub name: String,
    /// Its selector; tables have none.
    pub selector: Option<String>,
    /// Where it begins.
    pub base: String,
    /// Its last valid offset.
    pub limit: String,
    /// What it is.
    pub kind: String,
}

/// The local APIC (Intel SDM vol. 3A, 12.4 and 12.5).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[non_exhaustive]
pub struct LapicDescription {
    /// Whether the kernel has switched it on.
    pub enabled: bool,
    /// `one-shot`, `periodic`, `tsc-deadline` or `reserved`.
    pub timer_mode: String,
    /// Whether the timer's interrupt is masked.
    pub timer_masked: bool,
    /// The timer's interrupt.
    pub timer_vector: u8,
    /// Where the timer counts from, in its own ticks; 0 where it is off.
    pub initial_count: u32,
    /// Interrupts that wait.
    pub requested: Vec<u8>,
    /// Interrupts that are being handled.
    pub in_service: Vec<u8>,
}

/// The clocks of a saved guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[non_exhaustive]
pub struct ClockDescription {
    /// The guest's time-stamp counter.
    pub tsc: u64,
    /// Its frequency, kHz.
    pub tsc_khz: u32,
    /// How long the guest had run by it, microseconds.
    pub uptime_us: u64,
    /// Real time when it was saved, nanoseconds since 1970 (UTC).
    pub saved_unix_ns: u64,
    /// When the timer is due, as a time-stamp; 0 where none is set.
    pub tsc_deadline: u64,
    /// Whether the guest uses KVM's clock.
    pub kvm_clock: bool,
    /// Where the kernel keeps its boot time, which is rewritten in clones.
    pub boot_time_at: Option<String>,
    /// Where the kernel keeps the time of its last reseed, which is set to 0.
    pub last_reseed_at: Option<String>,
    /// Whether clones reseed their randomness before they draw.
    pub reseeds: bool,
    /// The host's boot, as its kernel names it.
    pub host_boot_id: String,
}

/// The host that a guest was saved on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[non_exhaustive]
pub struct HostDescription {
    /// The CPU's vendor.
    pub vendor: String,
    /// The CPU's family.
    pub family: u32,
    /// The CPU's model.
    pub model: u32,
    /// The CPU's stepping.
    pub stepping: u32,
    /// The KVM module in use.
    pub kvm_flavour: String,
    /// Frequency of the guest's TSC, kHz.
    pub tsc_khz: u32,
    /// Whether ring-0 code is emulated.
    pub emulated_ring0: bool,
    /// Whether a guest's TSC can be set.
    pub tsc_settable: bool,
    /// What guests are told that the CPU can do, by the names that Linux has for it.
    pub features: Vec<String>,
}

/// A number as registers and addresses are written.
fn hex(value: u64) -> String {
    format!("{value:#x}")
}

fn register(name: &str, value: u64) -> Register {
    Register {
        name: name.to_owned(),
        value: hex(value),
        bits: Vec::new(),
    }
}

impl Register {
    fn with(mut self, bits: Vec<String>) -> Self {
        self.bits = bits;
        self
    }
}

impl VmState {
    /// The guest in words.
    #[must_use]
    pub fn describe(&self) -> VmDescription {
        VmDescription {
            base: hex(self.placement.base),
            memory_bytes: self.placement.memory_bytes,
            load_address: hex(self.load_address),
            interface: match self.interface {
                Interface::V1 => "v1".to_owned(),
                Interface::V2 => "v2".to_owned(),
            },
            registers: self.describe_registers(),
            control: self.describe_control(),
            clocks: self.describe_clocks(),
            host: self.host.describe(),
        }
    }

    fn describe_registers(&self) -> Vec<Register> {
        let regs = &self.vcpu.regs;
        let mut flags = words::names(regs.rflags & !(1 << 1 | 3 << 12), words::RFLAGS);
        let io_level = regs.rflags >> 12 & 3;
        if io_level != 0 {
            flags.push(format!("io-privilege-{io_level}"));
        }
        let plain = general_registers(regs).into_iter();
        let mut registers: Vec<_> = plain.map(|(name, value)| register(name, value)).collect();
        registers.push(register("rflags", regs.rflags).with(flags));
        registers
    }

    fn describe_control(&self) -> ControlDescription {
        let (vcpu, sregs) = (&self.vcpu, &self.vcpu.sregs);
        let mut registers = vec![
            register("cr0", sregs.cr0).with(words::names(sregs.cr0, words::CR0)),
            register("cr2", sregs.cr2),
            register("cr3", sregs.cr3),
            register("cr4", sregs.cr4).with(words::names(sregs.cr4, words::CR4)),
            register("cr8", sregs.cr8),
            register("efer", sregs.efer).with(words::names(sregs.efer, words::EFER)),
            // Bits from 12 on are an address.
            register("apic_base", sregs.apic_base)
                .with(words::names(sregs.apic_base & 0xFFF, words::APIC_BASE)),
        ];
        let used = (vcpu.xcrs.nr_xcrs as usize).min(vcpu.xcrs.xcrs.len());
        registers.extend(vcpu.xcrs.xcrs[..used].iter().map(|xcr| {
            let named = register(&format!("xcr{}", xcr.xcr), xcr.value);
            match xcr.xcr {
                0 => named.with(words::names(xcr.value, words::XCR0)),
                _ => named,
            }
        }));
        let debug = vcpu.debug();
        registers.extend((0..).zip(debug.db).map(|(number, value)| {
            let number: u32 = number;
            register(&format!("dr{number}"), value)
        }));
        registers.push(register("dr6", debug.dr6));
        registers.push(register("dr7", debug.dr7));

        let segments = [
            ("cs", &sregs.cs),
            ("ds", &sregs.ds),
            ("es", &sregs.es),
            ("fs", &sregs.fs),
            ("gs", &sregs.gs),
            ("ss", &sregs.ss),
            ("tr", &sregs.tr),
            ("ldt", &sregs.ldt),
        ];
        let mut segments: Vec<_> = segments.map(|(name, found)| segment(name, found)).into();
        segments.push(table("gdt", &sregs.gdt));
        segments.push(table("idt", &sregs.idt));

        ControlDescription {
            registers,
            segments,
            lapic: lapic(vcpu.lapic()),
            mp_state: words::mp_state(vcpu.mp_state()),
            pending: pending(&vcpu.events, &sregs.interrupt_bitmap),
            msrs: vcpu
                .msrs()
                .iter()
                .map(|entry| register(&words::msr(entry.index), entry.data))
                .collect(),
        }
    }

    fn describe_clocks(&self) -> ClockDescription {
        /// Linux, Documentation/virt/kvm/x86/msr.rst.
        const MSR_KVM_SYSTEM_TIME: u32 = 0x4B56_4D01;
        const MSR_IA32_TSC_DEADLINE: u32 = 0x6E0;
        let msr = |index| {
            let entries = self.vcpu.msrs().iter();
            let mut found = entries.filter(|entry| entry.index == index);
            found.next().map_or(0, |entry| entry.data)
        };
        let mut clocks = self.clock.describe();
        clocks.kvm_clock = msr(MSR_KVM_SYSTEM_TIME) & 1 == 1;
        clocks.tsc_deadline = msr(MSR_IA32_TSC_DEADLINE);
        clocks
    }
}

/// Descriptor types (Intel SDM vol. 3A, 3.4.5.1 and 3.5).
fn segment(name: &str, found: &kvm_segment) -> Segment {
    let kind = if found.unusable != 0 || found.present == 0 {
        "unusable".to_owned()
    } else if found.s == 0 {
        match found.type_ {
            2 => "LDT".to_owned(),
            9 => "TSS, available".to_owned(),
            11 => "TSS, busy".to_owned(),
            other => format!("system segment of type {other}"),
        }
    } else {
        let is_code = found.type_ & 8 != 0;
        let what = match (is_code, found.l != 0, found.db != 0) {
            (true, true, _) => "64-bit code",
            (true, false, true) => "32-bit code",
            (true, false, false) => "16-bit code",
            (false, ..) if found.type_ & 2 != 0 => "data",
            (false, ..) => "read-only data",
        };
        format!("{what}, ring {}", found.dpl)
    };
    Segment {
        name: name.to_owned(),
        selector: Some(hex(found.selector.into())),
        base: hex(found.base),
        limit: hex(found.limit.into()),
        kind,
    }
}

fn table(name: &str, found: &kvm_dtable) -> Segment {
    let descriptor_bytes = if name == "idt" { 16 } else { 8 };
    let entries = (u64::from(found.limit) + 1) / descriptor_bytes;
    Segment {
        name: name.to_owned(),
        selector: None,
        base: hex(found.base),
        limit: hex(found.limit.into()),
        kind: format!("table of {entries} entries"),
    }
}

fn lapic(state: &kvm_lapic_state) -> LapicDescription {
    /// Offsets in the LAPIC's page (Intel SDM vol. 3A, table 12-1).
    const SPURIOUS: usize = 0xF0;
    const IN_SERVICE: usize = 0x100;
    const REQUESTED: usize = 0x200;
    const TIMER: usize = 0x320;
    const INITIAL_COUNT: usize = 0x380;
    let word = |offset: usize| {
        let bytes = state.regs.iter().skip(offset).take(4);
        bytes.rev().fold(0, |word: u32, byte| {
            word << 8 | u32::from(byte.cast_unsigned())
        })
    };
    let vectors = |offset: usize| {
        let is_set = |vector: &u8| {
            let (register, bit) = (usize::from(vector / 32), vector % 32);
            word(offset + 0x10 * register) >> bit & 1 == 1
        };
        (0..=u8::MAX).filter(is_set).collect()
    };
    let timer = word(TIMER);
    LapicDescription {
        enabled: word(SPURIOUS) >> 8 & 1 == 1,
        timer_mode: match timer >> 17 & 3 {
            0 => "one-shot",
            1 => "periodic",
            2 => "tsc-deadline",
            _ => "reserved",
        }
        .to_owned(),
        timer_masked: timer >> 16 & 1 == 1,
        timer_vector: (timer & 0xFF) as u8,
        initial_count: word(INITIAL_COUNT),
        requested: vectors(REQUESTED),
        in_service: vectors(IN_SERVICE),
    }
}

fn pending(events: &kvm_vcpu_events, bitmap: &[u64; 4]) -> Vec<String> {
    let mut pending = Vec::new();
    let exception = &events.exception;
    if exception.injected != 0 || exception.pending != 0 {
        pending.push(words::exception(exception.nr));
    }
    if events.interrupt.injected != 0 {
        pending.push(format!("interrupt {}", events.interrupt.nr));
    }
    if events.interrupt.shadow != 0 {
        pending.push("interrupts held off for one instruction".to_owned());
    }
    if events.nmi.injected != 0 || events.nmi.pending != 0 {
        pending.push("NMI".to_owned());
    }
    if events.nmi.masked != 0 {
        pending.push("NMIs masked".to_owned());
    }
    if events.smi.pending != 0 {
        pending.push("SMI".to_owned());
    }
    if events.triple_fault.pending != 0 {
        pending.push("triple fault".to_owned());
    }
    let queued = (0..256).filter(|vector| bitmap[vector / 64] >> (vector % 64) & 1 == 1);
    pending.extend(queued.map(|vector| format!("external interrupt {vector}")));
    pending
}

impl HostProfile {
    /// The host in words.
    fn describe(&self) -> HostDescription {
        // Intel SDM vol. 2A, CPUID leaf 1, EAX: extended family and model count for some families.
        let nibble = |shift: u32| self.signature >> shift & 0xF;
        let (base_family, base_model) = (nibble(8), nibble(4));
        let family = match base_family {
            0xF => 0xF + (self.signature >> 20 & 0xFF),
            family => family,
        };
        let model = match base_family {
            0x6 | 0xF => nibble(16) << 4 | base_model,
            _ => base_model,
        };
        HostDescription {
            vendor: self.vendor.clone(),
            family,
            model,
            stepping: nibble(0),
            kvm_flavour: self.kvm_flavour.clone(),
            tsc_khz: self.tsc_khz,
            emulated_ring0: self.emulated_ring0,
            tsc_settable: self.tsc_settable,
            features: features::names(&self.features),
        }
    }
}
