//! The program of a guest: a Hermit ELF image.

mod check;
mod symbols;

use hermit_entry::boot_info::LoadInfo;
use hermit_entry::elf::KernelObject;

pub use symbols::{Symbols, demangle};

use crate::error::Error;
use crate::ram::GuestRam;

/// The hypercall interface that a kernel speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub enum Interface {
    /// 32-bit parameter addresses to ports 0x400–0x880 (Hermit up to 0.11).
    V1,
    /// 64-bit parameter addresses in RDI, ports from 0x1010 (the ELF has an `UHYVEIF` note).
    V2,
}

// Saved by number: a change here is a new FORMAT_VERSION, see snapshots/FORMAT.md, "Compatibility".
const _: fn(Interface) -> u32 = |interface| match interface {
    Interface::V1 => 0,
    Interface::V2 => 1,
};
const _: () = assert!(
    Interface::V1 as u32 == 0 && Interface::V2 as u32 == 1,
    "a change here is a new FORMAT_VERSION, see snapshots/FORMAT.md, Compatibility"
);

/// A checked image. Everything that the loader will touch was found to be inside the file, so that
/// loading cannot fail on hostile bytes.
#[derive(Debug)]
pub struct GuestImage {
    /// The file, eight-byte aligned as the loader's view of its tables needs it.
    words: Vec<u64>,
    len: usize,
    interface: Interface,
    /// Where an image that is not relocatable must be loaded.
    fixed_start: Option<u64>,
    memory_bytes: u64,
}

/// Where a loaded kernel stands.
pub(crate) struct Loaded {
    pub(crate) load_info: LoadInfo,
    pub(crate) entry: u64,
}

impl GuestImage {
    /// Checks a file's bytes.
    ///
    /// # Errors
    /// [`Error::Image`]: not an ELF, for another machine, not a Hermit program, truncated, or
    /// malformed.
    pub fn parse(file: &[u8]) -> Result<Self, Error> {
        let facts = check::check(file).map_err(|reason| Error::Image { reason })?;
        let mut words = vec![0u64; file.len().div_ceil(8)];
        for (word, bytes) in words.iter_mut().zip(file.chunks(8)) {
            let mut padded = [0; 8];
            padded[..bytes.len()].copy_from_slice(bytes);
            *word = u64::from_ne_bytes(padded);
        }
        let mut image = Self {
            words,
            len: file.len(),
            interface: Interface::V1,
            fixed_start: facts.fixed_start,
            memory_bytes: facts.memory_bytes,
        };
        let object = image.object()?;
        if object.uhyve_interface_version().is_some() {
            image.interface = Interface::V2;
        }
        Ok(image)
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: `words` holds at least `len` initialised bytes; any byte is a valid u8, and the
        // borrow keeps the vector alive and unchanged.
        unsafe { std::slice::from_raw_parts(self.words.as_ptr().cast(), self.len) }
    }

    fn object(&self) -> Result<KernelObject<'_>, Error> {
        KernelObject::parse(self.bytes()).map_err(|e| Error::Image {
            reason: format!("this is not a Hermit image that can be loaded: {e}"),
        })
    }

    /// The hypercall interface that the kernel speaks.
    #[must_use]
    pub fn interface(&self) -> Interface {
        self.interface
    }

    /// The guest base that a kernel linked for fixed addresses needs.
    #[must_use]
    pub fn fixed_base(&self) -> Option<u64> {
        self.fixed_start
            .map(|start| start & !(crate::layout::HUGE_PAGE_BYTES - 1))
    }

    /// How much memory the loaded image takes.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        self.memory_bytes
    }

    /// The image's function and data names, for a kernel loaded at guest-physical `load_address`.
    #[must_use]
    pub fn symbols(&self, load_address: u64) -> Symbols {
        let offset = if self.fixed_start.is_some() {
            0
        } else {
            load_address
        };
        Symbols::read(self.bytes(), offset)
    }

    /// Copies the kernel into guest memory and relocates it.
    pub(crate) fn load(&self, ram: &GuestRam) -> Result<Loaded, Error> {
        let lowest = ram.base() + crate::layout::KERNEL_OFFSET;
        let start = self.fixed_start.unwrap_or(lowest);
        if start < lowest {
            // It would overwrite the page tables that it starts with, or lies outside.
            return Err(Error::Image {
                reason: format!(
                    "the image must stand at {start:#x}, but in a guest at {:#x} it can stand from \
                     {lowest:#x}; choose a lower base, or link it elsewhere",
                    ram.base()
                ),
            });
        }
        let object = self.object()?;
        let too_large = Error::ImageTooLarge {
            image_bytes: self.memory_bytes,
            memory_bytes: ram.len(),
        };
        // SAFETY: the caller builds the guest: no vCPU runs yet and nothing else uses its memory.
        let memory =
            unsafe { ram.exclusive_slice(start, self.memory_bytes) }.map_err(|_| too_large)?;
        let loaded = object.load_kernel(memory, start);
        Ok(Loaded {
            load_info: loaded.load_info,
            entry: loaded.entry_point,
        })
    }
}
