//! Snapshots in words and pictures: what is in one ([`Explanation`], [`Picture`]) and what differs
//! between two ([`Difference`]).
//!
//! Everything is read from an [`Inspection`], which opens a snapshot and finds out what each page
//! of its memory holds. The rules, in the order in which they are asked; a page has one class:
//!
//! 1. **zero**: a page that the snapshot does not store.
//! 2. **page tables**: what the saved CR3 leads to.
//! 3. **stack**: the pages that the saved page tables map, one by one and without a gap, around the
//!    saved stack pointer, and the boot stack.
//! 4. **boot data**: what the loader has put below the kernel: descriptor table, device tree, boot
//!    info.
//! 5. **kernel and function, text and data**: what the image's sections cover; of a page with
//!    several, what has most of it. Hermit and the function are one ELF file, which the linker
//!    builds from one part after the other: from a symbol that names the crate `hermit` on, a
//!    section is the kernel's; from one that names `std` or `dormouse_guest` on, the function's. A
//!    symbol that names neither belongs to what stands before it.
//! 6. **constants**: sections in which no symbol tells the two apart, such as `.rodata`.
//! 7. **heap**: all other pages.
//!
//! All of a snapshot is hostile: registers point anywhere, page tables loop, symbols lie. What is
//! done for one is bounded by its stored pages and by the limits in this crate.
#![forbid(unsafe_code)]

mod class;
mod contents;
mod difference;
mod error;
mod explanation;
mod image;
mod inspection;
mod owner;
mod picture;
mod spans;
mod text;

pub use class::PageClass;
pub use difference::{
    Change, ClassChange, Difference, MemoryDifference, SymbolChange, TouchChange,
};
pub use error::{Error, Result};
pub use explanation::{
    Access, ClassPages, Explanation, LayerFacts, MemoryFacts, PackFacts, SnapshotFacts,
    SymbolFacts, TouchedPage, WorkingSetFacts,
};
pub use inspection::Inspection;
pub use picture::Picture;
pub use text::Section;
