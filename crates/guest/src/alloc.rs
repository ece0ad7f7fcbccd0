//! The global allocator of a function.
//!
//! Hermit's own allocator gives every block 128 bytes at least and searches one list of gaps, so
//! its cost grows with the number of live blocks. This one cuts blocks of a few fixed sizes from
//! chunks of 256 KiB that it takes from Hermit and never gives back. A freed block goes to the
//! list of its size. Neighbours in time are neighbours in memory, so a request dirties few pages.
//! Blocks over [`LARGEST_CLASS_BYTES`] come from Hermit one by one.

use core::alloc::{GlobalAlloc, Layout};
use core::ptr::{self, NonNull};
use std::sync::{Mutex, PoisonError};

#[cfg(target_os = "hermit")]
#[global_allocator]
static ALLOCATOR: Classes<std::alloc::System> = Classes::new(std::alloc::System);

const CHUNK_BYTES: usize = 256 * 1024;
/// Alignment of chunks, and the largest that a block can have.
const PAGE_BYTES: usize = 4096;
const SMALLEST_CLASS_BYTES: usize = 16;
const LARGEST_CLASS_BYTES: usize = 32 * 1024;
/// Up to here the classes are multiples of 16 bytes, from here on there are four to each doubling.
const LINEAR_BYTES: usize = 128;
const LINEAR_CLASSES: usize = LINEAR_BYTES / SMALLEST_CLASS_BYTES;
const CLASSES: usize = LINEAR_CLASSES + 4 * (LARGEST_CLASS_BYTES / LINEAR_BYTES).ilog2() as usize;

/// Blocks of fixed sizes over chunks from `S`.
pub(crate) struct Classes<S> {
    system: S,
    // Hermit's std builds it on futexes, and it never allocates. A spinning lock would hang a
    // single CPU when a thread of higher priority needs what a sleeping one holds.
    state: Mutex<State>,
}

struct State {
    free: [Option<NonNull<FreeBlock>>; CLASSES],
    /// The unused end of the newest chunk.
    next: usize,
    end: usize,
}

struct FreeBlock {
    next: Option<NonNull<FreeBlock>>,
}

// SAFETY: the blocks that the pointers name belong to the state alone until they are handed out.
unsafe impl Send for State {}

impl<S: GlobalAlloc> Classes<S> {
    pub(crate) const fn new(system: S) -> Self {
        Self {
            system,
            state: Mutex::new(State {
                free: [None; CLASSES],
                next: 0,
                end: 0,
            }),
        }
    }

    fn allocate(&self, class: usize) -> *mut u8 {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(block) = state.free[class] {
            // SAFETY: a block in the list is unused memory that holds a `FreeBlock`.
            state.free[class] = unsafe { block.as_ref().next };
            return block.as_ptr().cast();
        }
        let bytes = class_bytes(class);
        // The largest power of two in a class's size is the alignment that its users may ask for.
        let align = (bytes & bytes.wrapping_neg()).min(PAGE_BYTES);
        let mut start = state.next.next_multiple_of(align);
        if start + bytes > state.end {
            // SAFETY: the layout's size is not zero.
            let chunk = unsafe {
                self.system
                    .alloc(Layout::from_size_align_unchecked(CHUNK_BYTES, PAGE_BYTES))
            };
            if chunk.is_null() {
                return chunk;
            }
            start = chunk.expose_provenance();
            state.end = start + CHUNK_BYTES;
        }
        state.next = start + bytes;
        ptr::with_exposed_provenance_mut(start)
    }

    /// # Safety
    /// `block` came from `allocate(class)` and nobody uses it any more.
    unsafe fn free(&self, block: *mut u8, class: usize) {
        let block = block.cast::<FreeBlock>();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let next = state.free[class];
        // SAFETY: the smallest class has room for a `FreeBlock` and is aligned to 16 bytes.
        unsafe { block.write(FreeBlock { next }) };
        state.free[class] = NonNull::new(block);
    }
}

// SAFETY: blocks of one class are disjoint parts of chunks, at least as large and aligned as the
// layout asks (`class_of`); the same layout always leads to the same class.
unsafe impl<S: GlobalAlloc> GlobalAlloc for Classes<S> {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        match class_of(layout) {
            Some(class) => self.allocate(class),
            // SAFETY: the caller keeps the same promise.
            None => unsafe { self.system.alloc(layout) },
        }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        match class_of(layout) {
            // SAFETY: the caller got the block for this layout, so from this class.
            Some(class) => unsafe { self.free(block, class) },
            // SAFETY: the block came from the system for the same layout.
            None => unsafe { self.system.dealloc(block, layout) },
        }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_bytes: usize) -> *mut u8 {
        // SAFETY: the caller promises that the new size is valid for the alignment.
        let new_layout = unsafe { Layout::from_size_align_unchecked(new_bytes, layout.align()) };
        match (class_of(layout), class_of(new_layout)) {
            (Some(old), Some(new)) if old == new => block,
            // SAFETY: the block came from the system for the same layout.
            (None, None) => unsafe { self.system.realloc(block, layout, new_bytes) },
            _ => {
                // SAFETY: both blocks are as large as the smaller size, and are not the same.
                unsafe {
                    let new_block = self.alloc(new_layout);
                    if !new_block.is_null() {
                        let bytes = layout.size().min(new_bytes);
                        ptr::copy_nonoverlapping(block, new_block, bytes);
                        self.dealloc(block, layout);
                    }
                    new_block
                }
            }
        }
    }
}

/// The class whose blocks are large and aligned enough, or none where the system must help.
#[inline]
fn class_of(layout: Layout) -> Option<usize> {
    let bytes = if layout.align() <= SMALLEST_CLASS_BYTES {
        layout.size()
    } else if layout.align() <= PAGE_BYTES {
        // The classes that are powers of two are aligned to their size.
        layout.size().max(layout.align()).next_power_of_two()
    } else {
        return None;
    };
    if bytes > LARGEST_CLASS_BYTES {
        return None;
    }
    if bytes <= LINEAR_BYTES {
        return Some(bytes.saturating_sub(1) / SMALLEST_CLASS_BYTES);
    }
    // In (2^n, 2^(n+1)] the steps are a quarter of 2^n.
    let doubling = (bytes - 1).ilog2();
    let step = (bytes - 1 - (1 << doubling)) >> (doubling - 2);
    Some(LINEAR_CLASSES + 4 * (doubling - LINEAR_BYTES.ilog2()) as usize + step)
}

/// Size of the blocks of a class.
#[inline]
fn class_bytes(class: usize) -> usize {
    match class.checked_sub(LINEAR_CLASSES) {
        None => (class + 1) * SMALLEST_CLASS_BYTES,
        Some(above) => {
            let doubling = LINEAR_BYTES << (above / 4);
            doubling + (above % 4 + 1) * (doubling / 4)
        }
    }
}

#[cfg(test)]
mod tests;
