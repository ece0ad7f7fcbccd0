//! Cold boot: from an image to a vCPU at the kernel's entry point.

use std::num::{NonZeroU16, NonZeroU32, NonZeroU64};

use hermit_entry::boot_info::{BootInfo, HardwareInfo, PlatformInfo, RawBootInfo};
use kvm_bindings::{kvm_dtable, kvm_regs, kvm_segment};
use vm_fdt::FdtWriter;

use crate::clock::ClockOrigin;
use crate::config::MachineConfig;
use crate::error::Error;
use crate::gdt;
use crate::image::GuestImage;
use crate::layout::{BOOT_INFO_OFFSET, BOOT_STACK_OFFSET, FDT_OFFSETS, GDT_OFFSET, KERNEL_OFFSET};
use crate::paging::{self, Mapping};
use crate::shell::Shell;

/// Control-register bits (Intel SDM vol. 3A, 2.5; AMD APM vol. 2, 3.1).
mod control {
    pub(super) const CR0_PE: u64 = 1 << 0;
    pub(super) const CR0_ET: u64 = 1 << 4;
    pub(super) const CR0_NE: u64 = 1 << 5;
    pub(super) const CR0_WP: u64 = 1 << 16;
    pub(super) const CR0_PG: u64 = 1 << 31;
    pub(super) const CR4_PAE: u64 = 1 << 5;
    pub(super) const EFER_LME: u64 = 1 << 8;
    pub(super) const EFER_LMA: u64 = 1 << 10;
    pub(super) const EFER_NXE: u64 = 1 << 11;
    /// Bit 1 of RFLAGS is always set.
    pub(super) const RFLAGS_RESERVED: u64 = 1 << 1;
}

/// Hermit's console talks to the VMM, not to this port, but wants one to be named: COM1.
const SERIAL_PORT: u16 = 0x3F8;

/// What a cold boot leaves behind for the rest of the guest's life.
pub(crate) struct Booted {
    pub(crate) clock: ClockOrigin,
    /// Where the kernel was loaded.
    pub(crate) load_address: u64,
}

/// Loads `image` into the shell and points its vCPU at the kernel.
pub(crate) fn boot(
    shell: &mut Shell,
    image: &GuestImage,
    config: &MachineConfig,
    tsc_khz: u32,
) -> Result<Booted, Error> {
    let base = shell.ram.base();
    if image.memory_bytes() + KERNEL_OFFSET > shell.ram.len() {
        return Err(Error::ImageTooLarge {
            image_bytes: image.memory_bytes(),
            memory_bytes: shell.ram.len(),
        });
    }
    let loaded = image.load(&shell.ram)?;
    let load_address = loaded.load_info.kernel_image_addr_range.start;

    let device_tree = device_tree(shell, config, tsc_khz)?;
    shell.ram.write(base + FDT_OFFSETS.start, &device_tree)?;

    let clock = ClockOrigin::boot(shell, tsc_khz)?;
    let boot_info = BootInfo {
        hardware_info: HardwareInfo {
            phys_addr_range: base..base + shell.ram.len(),
            serial_port_base: NonZeroU16::new(SERIAL_PORT),
            device_tree: NonZeroU64::new(base + FDT_OFFSETS.start),
        },
        load_info: loaded.load_info,
        platform_info: PlatformInfo::Uhyve {
            has_pci: false,
            num_cpus: NonZeroU64::MIN,
            cpu_freq: NonZeroU32::new(tsc_khz),
            boot_time: time::OffsetDateTime::from_unix_timestamp_nanos(
                i128::from(clock.boot_time_us()) * 1000,
            )
            .map_err(|_| Error::System {
                operation: "telling the guest the time",
                source: std::io::Error::other("the host's clock is out of range"),
            })?,
        },
    };
    write_boot_info(shell, RawBootInfo::from(boot_info))?;

    let boot_info_address = base + BOOT_INFO_OFFSET;
    let stack = base + BOOT_STACK_OFFSET;
    enter_long_mode(
        shell,
        config.mapping,
        loaded.entry,
        boot_info_address,
        stack,
    )?;
    Ok(Booted {
        clock,
        load_address,
    })
}

fn write_boot_info(shell: &Shell, boot_info: RawBootInfo) -> Result<(), Error> {
    let address = shell.ram.base() + BOOT_INFO_OFFSET;
    let pointer = shell
        .ram
        .host_pointer(address, size_of::<RawBootInfo>() as u64)?;
    // SAFETY: the range is inside guest memory, page aligned (so aligned for the struct), and no
    // vCPU runs while the guest is built. Written as a whole, since its fields are private and its
    // padding has no defined bytes to copy.
    unsafe { pointer.cast::<RawBootInfo>().write(boot_info) };
    Ok(())
}

/// Builds page tables and GDT and sets the vCPU to 64-bit mode at `entry`.
pub(crate) fn enter_long_mode(
    shell: &mut Shell,
    mapping: Mapping,
    entry: u64,
    boot_info: u64,
    stack: u64,
) -> Result<(), Error> {
    use control::{
        CR0_ET, CR0_NE, CR0_PE, CR0_PG, CR0_WP, CR4_PAE, EFER_LMA, EFER_LME, EFER_NXE,
        RFLAGS_RESERVED,
    };
    let base = shell.ram.base();
    let gdt_bytes: Vec<u8> = gdt::TABLE
        .iter()
        .flat_map(|word| word.to_le_bytes())
        .collect();
    shell.ram.write(base + GDT_OFFSET, &gdt_bytes)?;
    let pml4 = paging::build(&shell.ram, mapping)?;

    let mut sregs = shell
        .vcpu
        .get_sregs()
        .map_err(Error::kvm("KVM_GET_SREGS"))?;
    sregs.cr0 = CR0_PE | CR0_ET | CR0_NE | CR0_WP | CR0_PG;
    sregs.cr3 = pml4;
    sregs.cr4 = CR4_PAE;
    sregs.efer = EFER_LME | EFER_LMA | EFER_NXE;
    sregs.gdt = kvm_dtable {
        base: base + GDT_OFFSET,
        limit: gdt_bytes.len() as u16 - 1,
        padding: [0; 3],
    };
    sregs.cs = gdt::code_segment();
    (sregs.ds, sregs.es, sregs.ss) = (
        gdt::data_segment(),
        gdt::data_segment(),
        gdt::data_segment(),
    );
    // FS and GS hold core-local data in Hermit; it expects their bases to start at 0.
    (sregs.fs, sregs.gs) = (
        gdt::data_segment(),
        kvm_segment {
            base: 0,
            ..gdt::data_segment()
        },
    );
    shell
        .vcpu
        .set_sregs(&sregs)
        .map_err(Error::kvm("KVM_SET_SREGS"))?;

    let regs = kvm_regs {
        rip: entry,
        rsp: stack,
        rdi: boot_info,
        rsi: 0, // CPU number
        rflags: RFLAGS_RESERVED,
        ..Default::default()
    };
    shell
        .vcpu
        .set_regs(&regs)
        .map_err(Error::kvm("KVM_SET_REGS"))
}

/// The flattened device tree: memory, TSC frequency, arguments and environment.
fn device_tree(shell: &Shell, config: &MachineConfig, tsc_khz: u32) -> Result<Vec<u8>, Error> {
    let arguments = boot_arguments(config)?;
    let base = shell.ram.base();
    let build = || -> Result<Vec<u8>, vm_fdt::Error> {
        let mut fdt = FdtWriter::new()?;
        let root = fdt.begin_node("")?;
        // v1 kernels only require that there is one; v2 kernels recognise their platform by it.
        fdt.property_string_list("compatible", vec!["hermit,uhyve".to_owned()])?;
        fdt.property_u32("#address-cells", 2)?;
        fdt.property_u32("#size-cells", 2)?;

        let chosen = fdt.begin_node("chosen")?;
        fdt.property_string("bootargs", &arguments)?;
        fdt.end_node(chosen)?;

        let memory = fdt.begin_node(&format!("memory@{base:x}"))?;
        fdt.property_string("device_type", "memory")?;
        fdt.property_array_u64("reg", &[base, shell.ram.len()])?;
        fdt.end_node(memory)?;

        let tsc = fdt.begin_node("hermit,tsc")?;
        fdt.property_u32("khz", tsc_khz)?;
        fdt.end_node(tsc)?;

        fdt.end_node(root)?;
        fdt.finish()
    };
    let tree = build().map_err(|e| Error::System {
        operation: "writing the device tree",
        source: std::io::Error::other(e.to_string()),
    })?;
    let limit_bytes = (FDT_OFFSETS.end - FDT_OFFSETS.start) as usize;
    if tree.len() > limit_bytes {
        return Err(Error::ArgumentsTooLarge {
            bytes: tree.len(),
            limit_bytes,
        });
    }
    Ok(tree)
}

/// `env=KEY=VALUE … -- ARGUMENT …`, quoted as shell words.
fn boot_arguments(config: &MachineConfig) -> Result<String, Error> {
    let refused = |what, value: &str, reason| {
        Err(Error::Argument {
            what,
            value: value.to_owned(),
            reason,
        })
    };
    let mut words = Vec::new();
    for (key, value) in &config.env {
        if key.is_empty() || key.contains('=') || key.contains('\0') || value.contains('\0') {
            return refused(
                "environment variable",
                key,
                "names need letters and no `=` or NUL",
            );
        }
        words.push(format!("env={key}={value}"));
    }
    words.push("--".to_owned());
    for argument in &config.args {
        if argument.contains('\0') {
            return refused("argument", argument, "it contains a NUL byte");
        }
        words.push(argument.clone());
    }
    Ok(shell_words::join(words))
}
