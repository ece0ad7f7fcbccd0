//! One Hermit microVM under KVM: guest memory, page tables and GDT, the loader, the vCPU,
//! hypercalls, save and restore.
//!
//! A [`Shell`] is a VM without a guest. [`Vm::boot`] fills it from a [`GuestImage`], [`Vm::restore`]
//! from a [`VmState`] whose memory the caller has put into the shell's [`GuestRam`]. This crate
//! knows nothing of snapshots on disk or of how memory gets there.
//!
//! Everything that a guest says is hostile: addresses, lengths, descriptors, page tables. `unsafe`
//! stands only where memory and KVM need it: `ram`, `paging`, `image`, `boot`, `shell`, `vcpu`,
//! `clock`, `kick` and `config` (one `sysconf`).

#[macro_use]
mod written;

mod boot;
mod clock;
mod config;
mod console;
mod describe;
mod emulation;
mod error;
mod features;
mod gdt;
mod host;
mod hypercall;
mod image;
mod ioctls;
mod kick;
pub mod layout;
mod leftovers;
mod paging;
mod probe;
mod ram;
mod shell;
mod state;
mod stop;
mod vcpu;
mod vm;

pub use clock::ClockState;
pub use config::{MachineConfig, Placement};
pub use console::{GuestOutput, Stream};
pub use describe::{
    ClockDescription, ControlDescription, HostDescription, LapicDescription, Register, Segment,
    VmDescription,
};
pub use error::Error;
pub use gdt::TABLE as GDT_TABLE;
pub use host::{Capability, Host, HostProfile};
pub use image::{GuestImage, Interface, Symbols, demangle};
pub use ioctls::IOCTLS;
pub use kick::Interrupter;
pub use paging::{
    Mapped, Mapping, build as build_page_tables, translate, translate_by_mapper,
    translations_differ,
};
pub use ram::GuestRam;
pub use shell::Shell;
pub use state::VmState;
pub use stop::{Crash, CrashKind, Stop};
pub use vm::{Namer, Vm, real_time_unix_ns};
