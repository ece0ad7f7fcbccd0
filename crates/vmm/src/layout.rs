//! Where things stand in guest-physical memory.
//!
//! ```text
//! base + 0x00000  (unused)
//!      + 0x01000  GDT                                 one page
//!      + 0x02000  device tree (FDT)                   up to boot info
//!      + 0x09000  boot info (hermit-entry)            one page
//!      + 0x10000  PML4                                one page
//!      + 0x11000  further page tables                 bump-allocated, up to 0x30000
//!      + 0x30000  boot stack, grows down from 0x40000
//!      + 0x40000  kernel image
//! ```
//! The offsets are uhyve's, which Hermit is written against; Hermit finds everything but the kernel
//! through its boot info.

use std::ops::Range;

/// Size of a page.
pub const PAGE_BYTES: u64 = 4096;
/// Size of the pages of the identity map, and the alignment of the guest's base.
pub const HUGE_PAGE_BYTES: u64 = 2 << 20;

/// Offset of the global descriptor table.
pub const GDT_OFFSET: u64 = 0x1000;
/// Offsets of the flattened device tree.
pub const FDT_OFFSETS: Range<u64> = 0x2000..BOOT_INFO_OFFSET;
/// Offset of Hermit's raw boot info.
pub const BOOT_INFO_OFFSET: u64 = 0x9000;
/// Offset of the top-level page table.
pub const PML4_OFFSET: u64 = 0x1_0000;
/// Offsets from which further page tables are taken.
pub const TABLE_OFFSETS: Range<u64> = 0x1_1000..0x3_0000;
/// Offset of the lowest byte of the 32 KiB boot stack; Hermit's entry adds the stack's size itself.
pub const BOOT_STACK_OFFSET: u64 = 0x3_4000;
/// Offset at which a relocatable kernel is loaded.
pub const KERNEL_OFFSET: u64 = 0x4_0000;

/// The smallest guest that is accepted: Hermit itself needs about 14 MiB.
pub const MIN_MEMORY_BYTES: u64 = 16 << 20;
/// With hypercall interface v1 parameter addresses have 32 bits and MMIO begins at 3 GiB.
pub const V1_END: u64 = 3 << 30;
/// With hypercall interface v2 the limit is what CPUs of today address and what four levels of page
/// tables reach in the lower half, whichever is less.
pub const V2_END: u64 = 1 << 46;
/// Where the interrupt controllers and the firmware of a PC stand; guest memory cannot.
pub const DEVICES: Range<u64> = 0xfec0_0000..1 << 32;
/// Where random bases end: below the hole that PC hardware keeps under 4 GiB.
pub const RANDOM_BASE_END: u64 = V1_END;
/// The largest guest: what the table area can map (28 page directories of 1 GiB, rounded down).
pub const MAX_MEMORY_BYTES: u64 = 24 << 30;

/// Hermit searches the first MiB for an MP table. Where guest memory starts higher, a read-only
/// zero page range stands there, or every probe would be an MMIO exit (17 408 of them).
pub const LOW_MEMORY_BYTES: u64 = 1 << 20;

/// The I/O APIC's registers (Intel 82093AA; the address is fixed on PCs).
pub const IOAPIC: Range<u64> = 0xfec0_0000..0xfec0_1000;
