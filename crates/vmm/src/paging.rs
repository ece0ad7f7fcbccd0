//! The page tables that a guest starts with, and translation through the tables it has later.
//!
//! Four levels (Intel SDM vol. 3A, 4.5 "4-Level Paging"; AMD APM vol. 2, 5.3):
//!
//! | level | table | index bits | one entry maps |
//! |---|---|---|---|
//! | 4 | PML4 | 47–39 | 512 GiB |
//! | 3 | page-directory pointers | 38–30 | 1 GiB |
//! | 2 | page directory | 29–21 | 2 MiB |
//! | 1 | page table | 20–12 | 4 KiB |
//!
//! The start mapping is the identity over `[base, base + length]` in 2 MiB pages, both ends
//! included, and PML4\[511\] points back at the PML4 (the *recursive* entry), through which Hermit
//! reaches its own tables.

use std::collections::BTreeSet;
use std::convert::Infallible;

use x86_64::PhysAddr;
use x86_64::VirtAddr;
use x86_64::structures::paging::mapper::{
    MapToError, MappedPageTable, PageTableFrameMapping, Translate, TranslateResult,
};
use x86_64::structures::paging::page_table::PageTable;
use x86_64::structures::paging::{
    FrameAllocator, Mapper, Page, PageTableFlags, PhysFrame, Size2MiB, Size4KiB,
};

use crate::error::Error;
use crate::layout::{HUGE_PAGE_BYTES, PAGE_BYTES, PML4_OFFSET, TABLE_OFFSETS};
use crate::ram::GuestRam;

/// Bits of an entry (Intel SDM vol. 3A, 4.5, tables 4-15 to 4-20).
const PRESENT: u64 = 1 << 0;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const HUGE: u64 = 1 << 7;
const ADDRESS: u64 = 0x000F_FFFF_FFFF_F000;

/// More tables than this map 32 GiB in 4 KiB pages: no kernel here needs as many.
const MAX_TABLES: usize = 1 << 14;

/// Index of the recursive entry.
const RECURSIVE_INDEX: usize = 511;

/// How much is identity-mapped at the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mapping {
    /// `[base, base + length]`: Hermit 0.10 and later.
    #[default]
    Guest,
    /// From the base to the end of the 1 GiB region that holds the kernel, or to `base + length`
    /// if that is more: Hermit before 0.10, which maps nothing itself.
    Legacy,
}

/// Guest-physical addresses to the host's pointers, for the mapper.
///
/// The tables are under our own hand while a guest is built, but the addresses in them are read
/// back from guest memory, so every one is checked against the table area.
struct TableArea<'a> {
    ram: &'a GuestRam,
}

// SAFETY: the mapper asks for frames that this module put into the tables: the PML4 and those from
// `BumpAllocator`. All of them lie inside guest memory, are page aligned, and no other reference to
// them exists while the guest is built (no vCPU runs; `build` holds the only mapper).
unsafe impl PageTableFrameMapping for TableArea<'_> {
    fn frame_to_pointer(&self, frame: PhysFrame<Size4KiB>) -> *mut PageTable {
        self.ram
            .host_pointer(frame.start_address().as_u64(), PAGE_BYTES)
            .expect("table frames come from the table area, which lies inside guest memory")
            .cast()
    }
}

/// Hands out the frames of the table area, one after another.
struct BumpAllocator {
    next: u64,
    end: u64,
}

// SAFETY: `next` only grows, so every frame is handed out once; the area is used for nothing else.
unsafe impl FrameAllocator<Size4KiB> for BumpAllocator {
    fn allocate_frame(&mut self) -> Option<PhysFrame<Size4KiB>> {
        if self.next >= self.end {
            return None;
        }
        let frame = PhysFrame::from_start_address(PhysAddr::new(self.next)).ok()?;
        self.next += PAGE_BYTES;
        Some(frame)
    }
}

/// Builds the start mapping into `ram` and returns the guest-physical address of the PML4 (CR3).
///
/// # Errors
/// [`Error::BaseUnaligned`] where the guest's base is not a multiple of 2 MiB, and
/// [`Error::OutOfTableFrames`] where the range needs more tables than the table area holds.
pub fn build(ram: &GuestRam, mapping: Mapping) -> Result<u64, Error> {
    let base = ram.base();
    if !base.is_multiple_of(HUGE_PAGE_BYTES) {
        return Err(Error::BaseUnaligned { base });
    }
    let end = base + ram.len();
    let last = match mapping {
        Mapping::Guest => end,
        Mapping::Legacy => end.max((base | ((1 << 30) - 1)) - (HUGE_PAGE_BYTES - 1)),
    };
    ram.zero(base + PML4_OFFSET, TABLE_OFFSETS.end - PML4_OFFSET)?;

    let pml4_address = base + PML4_OFFSET;
    let pml4_pointer: *mut PageTable = ram.host_pointer(pml4_address, PAGE_BYTES)?.cast();
    // SAFETY: the pointer is page aligned and valid for a page of guest memory that was zeroed
    // above (an empty table); nothing else refers to it while the guest is built.
    let pml4 = unsafe { &mut *pml4_pointer };
    let table_flags = PageTableFlags::PRESENT | PageTableFlags::WRITABLE;
    pml4[RECURSIVE_INDEX].set_addr(PhysAddr::new(pml4_address), table_flags);

    let mut frames = BumpAllocator {
        next: base + TABLE_OFFSETS.start,
        end: base + TABLE_OFFSETS.end,
    };
    // SAFETY: `pml4` is a valid table and `TableArea` translates every frame it refers to.
    let mut mapper = unsafe { MappedPageTable::new(pml4, TableArea { ram }) };
    let mut address = base;
    while address <= last {
        let frame = PhysFrame::<Size2MiB>::containing_address(PhysAddr::new(address));
        let page = Page::<Size2MiB>::containing_address(VirtAddr::new(address));
        // SAFETY: this is a table of the guest, not of this process: mapping into it cannot break
        // the host's memory safety.
        let mapped = unsafe {
            mapper.map_to_with_table_flags(page, frame, table_flags, table_flags, &mut frames)
        };
        match mapped {
            Ok(flush) => flush.ignore(),
            Err(MapToError::FrameAllocationFailed) => {
                return Err(Error::OutOfTableFrames {
                    base,
                    length_bytes: ram.len(),
                    frames: (TABLE_OFFSETS.end - TABLE_OFFSETS.start) / PAGE_BYTES,
                });
            }
            Err(other) => unreachable!("a fresh mapping has no collisions: {other:?}"),
        }
        address += HUGE_PAGE_BYTES;
    }
    Ok(pml4_address)
}

/// Translates a guest-virtual address through the tables at `cr3`, which the guest controls.
/// `None` where it is not mapped or a table lies outside guest memory.
///
/// `gbytes` and the other leaf bits follow the SDM; permissions are not checked: the host acts for
/// the guest's ring 0.
#[must_use]
pub fn translate(ram: &GuestRam, cr3: u64, virtual_address: u64) -> Option<u64> {
    let entry = |address| Ok::<_, Infallible>(ram.read_u64(address).ok());
    let Ok(mapped) = walk(cr3, virtual_address, entry);
    mapped.map(|mapped| mapped.address)
}

/// Where a guest-virtual address is mapped to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mapped {
    /// The guest-physical address.
    pub address: u64,
    /// Size of the page that maps it, in bytes: 4 KiB, 2 MiB or 1 GiB.
    pub page_bytes: u64,
}

/// As [`translate`], with the tables' entries from wherever `entry` has them: nothing where there is
/// none.
pub(crate) fn walk<E>(
    cr3: u64,
    virtual_address: u64,
    mut entry: impl FnMut(u64) -> Result<Option<u64>, E>,
) -> Result<Option<Mapped>, E> {
    let canonical = (virtual_address as i64) << 16 >> 16;
    if canonical as u64 != virtual_address {
        return Ok(None);
    }
    let mut table = cr3 & ADDRESS;
    for level in (1..=4).rev() {
        let shift = 12 + 9 * (level - 1);
        let index = virtual_address >> shift & 0x1FF;
        let Some(entry) = entry(table + 8 * index)?.filter(|entry| entry & PRESENT != 0) else {
            return Ok(None);
        };
        if is_leaf(entry, level) {
            let page_bytes = 1u64 << shift;
            let address = entry & ADDRESS & !(page_bytes - 1) | virtual_address & (page_bytes - 1);
            return Ok(Some(Mapped {
                address,
                page_bytes,
            }));
        }
        table = entry & ADDRESS;
    }
    Ok(None)
}

fn is_leaf(entry: u64, level: u32) -> bool {
    level == 1 || (entry & HUGE != 0 && level <= 3)
}

/// The pages of a guest's memory (from `base`, `pages` long) that hold the tables at `cr3`,
/// ascending; see [`crate::VmState::table_pages`]. The tables are the guest's word: what they say
/// of places outside memory is ignored, and a table is looked at once for each level.
pub(crate) fn table_pages<E>(
    cr3: u64,
    base: u64,
    pages: u64,
    mut read: impl FnMut(u64, &mut [u8; PAGE_BYTES as usize]) -> Result<(), E>,
) -> Result<Option<Vec<u64>>, E> {
    let page_of = |address: u64| {
        let page = (address & ADDRESS).checked_sub(base)? / PAGE_BYTES;
        (page < pages).then_some(page)
    };
    let mut seen: BTreeSet<(u64, u32)> = BTreeSet::new();
    let mut todo: Vec<_> = page_of(cr3).map(|root| (root, 4)).into_iter().collect();
    let mut table = [0; PAGE_BYTES as usize];
    while let Some((page, level)) = todo.pop() {
        if !seen.insert((page, level)) {
            continue;
        }
        if seen.len() > MAX_TABLES {
            return Ok(None);
        }
        if level == 1 {
            continue;
        }
        read(page, &mut table)?;
        let entries = table.as_chunks().0.iter().copied().map(u64::from_le_bytes);
        todo.extend(
            entries
                .filter(|&entry| entry & PRESENT != 0 && !is_leaf(entry, level))
                .filter_map(|entry| Some((page_of(entry)?, level - 1))),
        );
    }
    let mut found: Vec<u64> = seen.into_iter().map(|(page, _)| page).collect();
    found.dedup();
    Ok(Some(found))
}

/// Whether two contents of a page table translate differently: whether any entry differs in more
/// than its *accessed* and *dirty* bits, which the CPU sets when a page is used (Intel SDM vol. 3A,
/// 4.8) and which nothing is translated by.
#[must_use]
pub fn translations_differ(
    one: &[u8; PAGE_BYTES as usize],
    other: &[u8; PAGE_BYTES as usize],
) -> bool {
    let entries = |table: &[u8; PAGE_BYTES as usize]| -> [u64; 512] {
        let words = table.as_chunks().0;
        std::array::from_fn(|index| u64::from_le_bytes(words[index]))
    };
    let differ = |(one, other): (u64, u64)| (one ^ other) & !(ACCESSED | DIRTY) != 0;
    entries(one).into_iter().zip(entries(other)).any(differ)
}

/// What `virtual_address` maps to by the `x86_64` crate's walker; used by tests as a second opinion.
#[doc(hidden)]
#[must_use]
pub fn translate_by_mapper(ram: &GuestRam, cr3: u64, virtual_address: u64) -> Option<u64> {
    let pml4_pointer: *mut PageTable = ram.host_pointer(cr3, PAGE_BYTES).ok()?.cast();
    // SAFETY: as in `build`; the caller runs no vCPU meanwhile (this is for tests of fresh tables).
    let mapper = unsafe { MappedPageTable::new(&mut *pml4_pointer, TableArea { ram }) };
    match mapper.translate(VirtAddr::try_new(virtual_address).ok()?) {
        TranslateResult::Mapped { frame, offset, .. } => {
            Some(frame.start_address().as_u64() + offset)
        }
        _ => None,
    }
}

/// Splits `[address, address + length)` at page boundaries and translates each part.
fn for_each_part(
    ram: &GuestRam,
    cr3: u64,
    address: u64,
    length: usize,
    mut part: impl FnMut(u64, std::ops::Range<usize>) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut done = 0;
    while done < length {
        let here = address.wrapping_add(done as u64);
        let in_page = (PAGE_BYTES - here % PAGE_BYTES) as usize;
        let next = length.min(done + in_page);
        let physical = translate(ram, cr3, here).ok_or(Error::Unmapped { address: here })?;
        part(physical, done..next)?;
        done = next;
    }
    Ok(())
}

/// Copies from guest-virtual memory, page by page.
///
/// # Errors
/// [`Error::Unmapped`] or [`Error::OutOfBounds`] for the first page that is not guest memory.
pub(crate) fn read_virtual(
    ram: &GuestRam,
    cr3: u64,
    address: u64,
    buffer: &mut [u8],
) -> Result<(), Error> {
    for_each_part(ram, cr3, address, buffer.len(), |physical, range| {
        ram.read(physical, &mut buffer[range])
    })
}

/// Copies to guest-virtual memory, page by page. Pages before one that is not mapped are written.
///
/// # Errors
/// [`Error::Unmapped`] or [`Error::OutOfBounds`] for the first page that is not guest memory.
pub(crate) fn write_virtual(
    ram: &GuestRam,
    cr3: u64,
    address: u64,
    bytes: &[u8],
) -> Result<(), Error> {
    for_each_part(ram, cr3, address, bytes.len(), |physical, range| {
        ram.write(physical, &bytes[range])
    })
}
