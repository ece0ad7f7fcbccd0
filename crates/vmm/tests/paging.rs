//! The page tables and the GDT that a guest starts with. No test here needs KVM.

mod support;

use std::collections::BTreeMap;

use dormouse_vmm::layout::{
    HUGE_PAGE_BYTES, MAX_MEMORY_BYTES, PAGE_BYTES, PML4_OFFSET, TABLE_OFFSETS,
};
use dormouse_vmm::{
    Error, GDT_TABLE, GuestRam, Mapping, build_page_tables, translate, translate_by_mapper,
};
use proptest::prelude::*;
use support::MIB;

const GIB: u64 = 1 << 30;
const BASES: [u64; 4] = [0, 0x1120_0000, 0x1100_0000, 0xE100_0000];
const LENGTHS: [u64; 5] = [2 * MIB, 16 * MIB, 62 * MIB, 512 * MIB, GIB + 2 * MIB];

const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const HUGE: u64 = 1 << 7;
const ADDRESS: u64 = 0x000F_FFFF_FFFF_F000;
const RECURSIVE_INDEX: u64 = 511;

/// What all tables together map: virtual huge page to physical, without the recursive entry, and
/// the frames that hold tables. Every entry of every table is looked at.
fn everything_mapped(ram: &GuestRam, pml4: u64) -> (BTreeMap<u64, u64>, Vec<u64>) {
    let mut leaves = BTreeMap::new();
    let mut tables = vec![pml4];
    let mut waiting = vec![(4, pml4, 0)];
    while let Some((level, table, reached)) = waiting.pop() {
        for index in 0..512 {
            let entry = ram.read_u64(table + 8 * index).unwrap();
            if entry == 0 {
                continue;
            }
            let flags = entry & !ADDRESS;
            if level == 4 && index == RECURSIVE_INDEX {
                assert_eq!(entry, pml4 | PRESENT | WRITABLE, "the recursive entry");
                continue;
            }
            let shift = 12 + 9 * (level - 1);
            let address = reached | index << shift;
            if level == 2 {
                assert_eq!(flags, PRESENT | WRITABLE | HUGE, "leaf {address:#x}");
                leaves.insert(address, entry & ADDRESS);
            } else {
                assert_eq!(flags, PRESENT | WRITABLE, "table entry {address:#x}");
                tables.push(entry & ADDRESS);
                waiting.push((level - 1, entry & ADDRESS, address));
            }
        }
    }
    (leaves, tables)
}

/// Builds tables for `[base, base + len]` and proves all that must hold of them; `last` is the last
/// huge page that must be mapped.
fn check(base: u64, len: u64, mapping: Mapping, last: u64) {
    let ram = GuestRam::new(base, len).unwrap();
    // What a shell's last guest left there must not matter.
    ram.write(base + PML4_OFFSET, &[0xFF; 4096]).unwrap();
    ram.write(base + TABLE_OFFSETS.start, &[0xFF; 4096])
        .unwrap();
    let pml4 = build_page_tables(&ram, mapping).unwrap();
    assert_eq!(pml4, base + PML4_OFFSET);

    let (leaves, tables) = everything_mapped(&ram, pml4);
    let expected: BTreeMap<u64, u64> = (base..=last)
        .step_by(HUGE_PAGE_BYTES as usize)
        .map(|page| (page, page))
        .collect();
    assert_eq!(leaves, expected, "base {base:#x}, length {len:#x}");

    let area = base + TABLE_OFFSETS.start..base + TABLE_OFFSETS.end;
    for table in &tables[1..] {
        assert!(
            area.contains(table) && table.is_multiple_of(PAGE_BYTES),
            "{table:#x}"
        );
    }
    let mut distinct = tables.clone();
    distinct.sort_unstable();
    distinct.dedup();
    assert_eq!(distinct.len(), tables.len(), "a frame was used twice");

    for page in expected.keys() {
        for offset in [0, 1, 0x1234, 0xF_FFF8, HUGE_PAGE_BYTES - 1] {
            let address = page + offset;
            assert_eq!(translate(&ram, pml4, address), Some(address));
            assert_eq!(translate_by_mapper(&ram, pml4, address), Some(address));
        }
    }
    assert_eq!(
        translate(&ram, pml4, base + len),
        Some(base + len),
        "the end belongs to it"
    );
    for outside in [
        base.wrapping_sub(1),
        last + HUGE_PAGE_BYTES,
        1 << 46,
        1 << 47,
        1 << 63,
    ] {
        if outside == u64::MAX {
            // Below base 0 lies the recursive range.
            continue;
        }
        assert_eq!(translate(&ram, pml4, outside), None, "{outside:#x}");
        assert_eq!(
            translate_by_mapper(&ram, pml4, outside),
            None,
            "{outside:#x}"
        );
    }
}

#[test]
fn the_guest_and_nothing_else_is_mapped_to_itself() {
    for base in BASES {
        for len in LENGTHS {
            check(base, len, Mapping::Guest, base + len);
        }
    }
}

#[test]
fn the_legacy_mapping_reaches_to_the_end_of_the_kernels_gigabyte() {
    for base in BASES {
        let gigabyte_end = (base / GIB + 1) * GIB - HUGE_PAGE_BYTES;
        for len in [2 * MIB, 64 * MIB] {
            check(base, len, Mapping::Legacy, gigabyte_end.max(base + len));
        }
    }
    // A guest that ends beyond that gigabyte is mapped to its own end.
    check(
        0x3FE0_0000,
        64 * MIB,
        Mapping::Legacy,
        0x3FE0_0000 + 64 * MIB,
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_aligned_base_works(
        // Up to 64 TiB, far beyond what today's CPUs address.
        base in (0..1_u64 << 25).prop_map(|page| page * HUGE_PAGE_BYTES),
        len in (1..600_u64).prop_map(|pages| pages * HUGE_PAGE_BYTES),
    ) {
        check(base, len, Mapping::Guest, base + len);
    }

    #[test]
    fn both_walkers_agree_everywhere(
        base in (0..1_u64 << 12).prop_map(|page| page * HUGE_PAGE_BYTES),
        len in (1..64_u64).prop_map(|pages| pages * HUGE_PAGE_BYTES),
        anywhere in any::<u64>(),
        near in 0..1_u64 << 31,
    ) {
        let ram = GuestRam::new(base, len).unwrap();
        let pml4 = build_page_tables(&ram, Mapping::Guest).unwrap();
        for address in [anywhere, anywhere >> 17, base + near, near] {
            prop_assert_eq!(
                translate(&ram, pml4, address),
                translate_by_mapper(&ram, pml4, address)
            );
        }
    }

    #[test]
    fn hostile_tables_are_walked_without_harm(
        entries in prop::collection::vec((0..0x20000_u64, any::<u64>()), 200),
        addresses in prop::collection::vec(any::<u64>(), 50),
        cr3 in any::<u64>(),
    ) {
        let ram = GuestRam::new(0x20_0000, 2 * MIB).unwrap();
        for (word, entry) in entries {
            ram.write(0x20_0000 + 8 * word, &entry.to_le_bytes()).unwrap();
        }
        for address in addresses {
            let _ = translate(&ram, cr3, address);
            let _ = translate(&ram, 0x20_0000, address & 0xFFFF_FFFF);
        }
    }

    #[test]
    fn an_unaligned_base_is_refused(base in 1..1_u64 << 40) {
        prop_assume!(!base.is_multiple_of(HUGE_PAGE_BYTES));
        let ram = GuestRam::new(base, 2 * MIB).unwrap();
        let refused = build_page_tables(&ram, Mapping::Guest);
        prop_assert!(
            matches!(refused, Err(Error::BaseUnaligned { base: named }) if named == base),
            "{refused:?}"
        );
    }
}

#[test]
fn the_recursive_entry_shows_the_tables_themselves() {
    let ram = GuestRam::new(0x1120_0000, 16 * MIB).unwrap();
    let pml4 = build_page_tables(&ram, Mapping::Guest).unwrap();
    // 511 four times: the PML4 as the page that its own last entry maps.
    assert_eq!(translate(&ram, pml4, 0xFFFF_FFFF_FFFF_F000), Some(pml4));
    assert_eq!(
        translate_by_mapper(&ram, pml4, 0xFFFF_FFFF_FFFF_F000),
        Some(pml4)
    );
    // 511 three times, then 0: the table behind PML4[0].
    let behind = ram.read_u64(pml4).unwrap() & ADDRESS;
    assert_eq!(translate(&ram, pml4, 0xFFFF_FFFF_FFE0_0000), Some(behind));
}

#[test]
fn the_largest_guest_fits_the_table_area_and_a_larger_one_is_an_error() {
    for base in [0, 0x1120_0000, 0xE100_0000, (512 * GIB) - 2 * MIB] {
        let ram = GuestRam::new(base, MAX_MEMORY_BYTES).unwrap();
        build_page_tables(&ram, Mapping::Guest).unwrap();
    }
    let ram = GuestRam::new(0, 40 * GIB).unwrap();
    let refused = build_page_tables(&ram, Mapping::Guest).unwrap_err();
    assert!(
        matches!(refused, Error::OutOfTableFrames { frames: 31, .. }),
        "{refused:?}"
    );
    assert_eq!(
        refused.to_string(),
        "mapping 42949672960 bytes at base 0x0 takes more than the 31 page-table frames there are; \
         use less memory"
    );
}

#[test]
fn memory_too_small_for_the_tables_is_an_error() {
    let ram = GuestRam::new(0, 0x2_0000).unwrap();
    let refused = build_page_tables(&ram, Mapping::Guest);
    assert!(
        matches!(refused, Err(Error::OutOfBounds { .. })),
        "{refused:?}"
    );
}

#[test]
fn the_gdt_has_the_three_words_that_hermit_expects() {
    assert_eq!(GDT_TABLE, [0, 0x00AF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF]);
}

#[test]
fn guest_memory_is_reached_only_inside_its_range() {
    let ram = GuestRam::new(0x20_0000, 2 * MIB).unwrap();
    let end = 0x40_0000;
    ram.write(end - 4, b"last").unwrap();
    let mut bytes = [0; 4];
    ram.read(end - 4, &mut bytes).unwrap();
    assert_eq!(&bytes, b"last");
    for address in [0, 0x1F_FFFF, end - 3, end, u64::MAX, u64::MAX - 3] {
        assert!(matches!(
            ram.read(address, &mut bytes),
            Err(Error::OutOfBounds { .. })
        ));
        assert!(matches!(
            ram.write(address, &bytes),
            Err(Error::OutOfBounds { .. })
        ));
        assert!(matches!(
            ram.zero(address, 4),
            Err(Error::OutOfBounds { .. })
        ));
    }
    ram.read(end, &mut []).unwrap();
    assert!(GuestRam::new(0x20_0000, 0).is_err());
    assert!(GuestRam::new(u64::MAX - 0xFFF, 2 * MIB).is_err());
}

#[test]
fn resident_pages_are_those_that_were_touched() {
    let ram = GuestRam::new(0x20_0000, 64 * MIB).unwrap();
    assert_eq!(ram.resident_pages().unwrap(), []);
    for page in [0, 5, 6, 7, 9000, 16383] {
        ram.write(0x20_0000 + page * PAGE_BYTES + 9, b"x").unwrap();
    }
    assert_eq!(
        ram.resident_pages().unwrap(),
        [0..1, 5..8, 9000..9001, 16383..16384]
    );
}
