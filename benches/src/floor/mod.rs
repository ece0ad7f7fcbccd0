//! Floors: what a stage of the restore engine costs when nothing is done but what cannot be left
//! out.
//!
//! Each floor works on the raw parts of a real VM (its vCPU's descriptor, its memory, its
//! snapshot's memory file), through bare system calls of its own. It keeps no books, checks nothing
//! beyond each call's result, and knows the pages and the state that it needs beforehand. So a floor
//! is not a restore engine; it is what the engine is measured against.
//!
//! This is the only module of the crate with `unsafe` code.

mod ioctl;
mod kvm;
mod machine;
mod memory;
mod uffd;

pub use kvm::State;
pub use machine::{Machine, host_tsc};
pub use memory::Memory;
pub use uffd::{Handler, Step, StepKind};
