use std::alloc::System;

use super::*;

fn layout(bytes: usize, align: usize) -> Layout {
    Layout::from_size_align(bytes, align).unwrap()
}

#[test]
fn every_size_has_the_smallest_class_that_holds_it() {
    for bytes in 1..=LARGEST_CLASS_BYTES {
        let class = class_of(layout(bytes, 1)).unwrap();
        assert!(class_bytes(class) >= bytes, "{bytes}");
        assert!(class == 0 || class_bytes(class - 1) < bytes, "{bytes}");
        assert_eq!(class_of(layout(class_bytes(class), 16)), Some(class));
    }
    assert_eq!(class_of(layout(LARGEST_CLASS_BYTES, 1)), Some(CLASSES - 1));
    assert_eq!(class_of(layout(LARGEST_CLASS_BYTES + 1, 1)), None);
    assert_eq!(class_of(layout(1, 2 * PAGE_BYTES)), None);
}

#[test]
fn blocks_are_aligned_disjoint_and_keep_their_bytes() {
    let heap = Classes::new(System);
    let mut blocks = Vec::new();
    let mut random = 1u32;
    for round in 0..20_000u32 {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let align = 1 << (random >> 28);
        let bytes = 1 + (random >> 8) as usize % if round % 50 == 0 { 50_000 } else { 500 };
        let layout = layout(bytes, align);
        // SAFETY: the size is not zero.
        let block = unsafe { heap.alloc(layout) };
        assert_eq!(block as usize % align, 0);
        let mark = round as u8;
        // SAFETY: the block has that many bytes.
        unsafe { block.write_bytes(mark, bytes) };
        blocks.push((block, layout, mark));
        if blocks.len() > 300 {
            let (block, layout, mark) = blocks.swap_remove(random as usize % 300);
            assert_marked(block, layout.size(), mark);
            // SAFETY: the block came from this heap for this layout.
            unsafe { heap.dealloc(block, layout) };
        }
    }
    for (block, layout, mark) in blocks {
        assert_marked(block, layout.size(), mark);
        // SAFETY: as above.
        unsafe { heap.dealloc(block, layout) };
    }
}

#[test]
fn growing_and_shrinking_keeps_the_bytes() {
    let heap = Classes::new(System);
    let mut bytes = 1;
    // SAFETY: the size is not zero.
    let mut block = unsafe { heap.alloc(layout(bytes, 8)) };
    // SAFETY: the block has one byte.
    unsafe { block.write(42) };
    for new_bytes in [10, 16, 17, 500, 40_000, 100_000, 3_000, 2] {
        // SAFETY: the block came from this heap for this layout, and the new size is not zero.
        block = unsafe { heap.realloc(block, layout(bytes, 8), new_bytes) };
        bytes = new_bytes;
        assert_marked(block, 1, 42);
    }
    // SAFETY: as above.
    unsafe { heap.dealloc(block, layout(bytes, 8)) };
}

#[test]
fn a_freed_block_is_the_next_of_its_class() {
    let heap = Classes::new(System);
    // SAFETY: sizes are not zero; blocks are freed with their own layouts.
    unsafe {
        let first = heap.alloc(layout(100, 8));
        let second = heap.alloc(layout(100, 8));
        assert_eq!(second as usize - first as usize, 112);
        heap.dealloc(first, layout(100, 8));
        assert_eq!(heap.alloc(layout(97, 4)), first);
    }
}

#[test]
fn threads_share_one_heap() {
    let heap = &Classes::new(System);
    std::thread::scope(|scope| {
        for mark in 1..=4 {
            scope.spawn(move || {
                for _ in 0..2_000 {
                    let layout = layout(64, 8);
                    // SAFETY: the size is not zero, the block has that many bytes, and it is freed
                    // with its own layout.
                    unsafe {
                        let block = heap.alloc(layout);
                        block.write_bytes(mark, 64);
                        std::thread::yield_now();
                        assert_marked(block, 64, mark);
                        heap.dealloc(block, layout);
                    }
                }
            });
        }
    });
}

fn assert_marked(block: *const u8, bytes: usize, mark: u8) {
    // SAFETY: callers pass a live block of this size, all of it written.
    let bytes = unsafe { core::slice::from_raw_parts(block, bytes) };
    assert!(bytes.iter().all(|&byte| byte == mark));
}
