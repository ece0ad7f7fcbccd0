//! What can go wrong with one machine. A guest that crashes is no error: see [`crate::Stop`].

use std::io;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file is not a program that can run here.
    #[error("{reason}")]
    Image {
        /// What is wrong and what to do.
        reason: String,
    },
    /// The memory size cannot work.
    #[error("a guest with {} MiB ({memory_bytes} bytes) of memory is not possible: {reason}", memory_bytes >> 20)]
    MemorySize {
        /// As requested.
        memory_bytes: u64,
        /// What is possible.
        reason: String,
    },
    /// The base is not a multiple of 2 MiB.
    #[error("the guest base {base:#x} is not a multiple of 2 MiB (0x200000)")]
    BaseUnaligned {
        /// As requested.
        base: u64,
    },
    /// The guest would end beyond what its hypercall interface can address.
    #[error(
        "a guest of {memory_bytes} bytes at base {base:#x} ends above {end:#x}; choose a lower base or less memory"
    )]
    BaseTooHigh {
        /// As requested.
        base: u64,
        /// As requested.
        memory_bytes: u64,
        /// The limit.
        end: u64,
    },
    /// The guest's memory would cover addresses of devices.
    #[error(
        "a guest of {memory_bytes} bytes at base {base:#x} covers the devices from {start:#x} to {end:#x}; choose a base from {end:#x}, or less memory",
        start = crate::layout::DEVICES.start,
        end = crate::layout::DEVICES.end
    )]
    OverDevices {
        /// As requested.
        base: u64,
        /// As requested.
        memory_bytes: u64,
    },
    /// The page tables do not fit into their area.
    #[error(
        "mapping {length_bytes} bytes at base {base:#x} takes more than the {frames} page-table frames there are; use less memory"
    )]
    OutOfTableFrames {
        /// The guest's base.
        base: u64,
        /// The guest's memory size.
        length_bytes: u64,
        /// How many frames the area has.
        frames: u64,
    },
    /// The kernel and its stack do not fit into the guest's memory.
    #[error(
        "the image takes {image_bytes} bytes in memory, the guest has {memory_bytes}; give it more memory"
    )]
    ImageTooLarge {
        /// What the image needs.
        image_bytes: u64,
        /// What the guest has.
        memory_bytes: u64,
    },
    /// Arguments and environment do not fit into the device tree's area.
    #[error(
        "arguments and environment take {bytes} bytes with the device tree, at most {limit_bytes} fit"
    )]
    ArgumentsTooLarge {
        /// The device tree's size.
        bytes: usize,
        /// The area's size.
        limit_bytes: usize,
    },
    /// An argument or environment variable has characters that cannot be passed on.
    #[error("{what} {value:?} cannot be passed to the guest: {reason}")]
    Argument {
        /// `argument` or `environment variable`.
        what: &'static str,
        /// Its text.
        value: String,
        /// Why not.
        reason: &'static str,
    },
    /// An address that is not guest memory.
    #[error("{length_bytes} bytes at guest-physical {address:#x} are not guest memory")]
    OutOfBounds {
        /// Where it starts.
        address: u64,
        /// How long it is.
        length_bytes: u64,
    },
    /// A guest-virtual address that the guest's page tables do not map.
    #[error("guest-virtual address {address:#x} is not mapped")]
    Unmapped {
        /// The address.
        address: u64,
    },
    /// The host does not give the memory.
    #[error("cannot reserve {length_bytes} bytes for guest memory at {base:#x}: {reason}")]
    Memory {
        /// The guest's base.
        base: u64,
        /// The size.
        length_bytes: u64,
        /// What the system said.
        reason: String,
    },
    /// KVM cannot be used at all.
    #[error("{reason}")]
    NoKvm {
        /// Why, and what to do.
        reason: String,
    },
    /// A KVM call failed.
    #[error("KVM: {operation} failed: {source}")]
    Kvm {
        /// The call.
        operation: &'static str,
        /// The system's error.
        source: io::Error,
    },
    /// KVM took fewer items than it was given.
    #[error("KVM: {operation} took {done} of {wanted}; item {done} is {item}")]
    Short {
        /// The call.
        operation: &'static str,
        /// How many it took.
        done: usize,
        /// How many there were.
        wanted: usize,
        /// The first one that it did not take.
        item: String,
    },
    /// A file of the guest's folder cannot be served.
    #[error("cannot open {path} for the guest: {source}")]
    Files {
        /// The folder.
        path: String,
        /// The system's error.
        source: io::Error,
    },
    /// The machine cannot be saved as it is.
    #[error("the guest cannot be snapshotted now: {reason}")]
    NotSavable {
        /// Why, and what to do.
        reason: String,
    },
    /// A saved machine cannot run on this host.
    #[error("this snapshot cannot be restored here: {reason}")]
    NotRestorable {
        /// Why, and what to do.
        reason: String,
    },
    /// A saved machine is of a CPU of another vendor, whose state and instructions differ.
    #[error(
        "this snapshot cannot be restored here: it was made on a CPU by {there}, this one is by \
         {here}; deploy the function again here, or restore it on a host with a CPU by {there}"
    )]
    OtherVendor {
        /// The vendor string of the CPU it was made on.
        there: String,
        /// That of this host's CPU.
        here: String,
    },
    /// A saved machine is of another kind of KVM, which keeps state in ways of its own.
    #[error(
        "this snapshot cannot be restored here: it was made with the KVM flavour {there}, this host \
         has {here}; deploy the function again here, or load the module kvm_{there}"
    )]
    OtherKvm {
        /// The flavour it was made with.
        there: String,
        /// That of this host.
        here: String,
    },
    /// A saved machine was offered CPU features that this host does not have.
    #[error(
        "this snapshot cannot be restored here: its guest was offered CPU features that this host \
         lacks: {}; deploy the function again here, or restore it on a host that has them",
        missing.join(", ")
    )]
    MissingFeatures {
        /// Their names, as Linux has them in `/proc/cpuinfo`.
        missing: Vec<String>,
    },
    /// A saved machine counts time by a TSC of another frequency.
    #[error(
        "this snapshot cannot be restored here: it was made on a host whose TSC runs at {there_khz} \
         kHz, this one's runs at {here_khz} kHz; deploy the function again here"
    )]
    OtherTsc {
        /// The frequency there.
        there_khz: u32,
        /// The frequency here.
        here_khz: u32,
    },
    /// Another system call failed.
    #[error("{operation} failed: {source}")]
    System {
        /// What was being done.
        operation: &'static str,
        /// The system's error.
        source: io::Error,
    },
}

impl Error {
    /// Wraps the errno of a KVM call.
    pub(crate) fn kvm(operation: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Self {
        move |errno| Self::Kvm {
            operation,
            source: io::Error::from_raw_os_error(errno.errno()),
        }
    }
}
