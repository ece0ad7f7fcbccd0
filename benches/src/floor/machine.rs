//! One VM as the floors see it.

use std::io;
use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::Arc;

use dormouse_pager::PAGE_BYTES;
use dormouse_pool::Parts;

use super::kvm::{State, Vcpu};
use super::memory::Memory;
use super::uffd::{Handler, Step, Uffd};
use crate::Error;

/// A VM's vCPU and memory, with a userfaultfd of the floor's own. The VM is that of an
/// [`Engine`](dormouse_pool::Engine), which must not be in one of its calls meanwhile.
#[derive(Debug)]
pub struct Machine {
    // Order matters: no vCPU without its memory.
    vcpu: Vcpu,
    memory: Memory,
    uffd: Arc<Uffd>,
    /// For a page that is in no plan, so that the guest does not wait for ever.
    _handler: Handler,
}

impl Machine {
    /// Takes the parts of an engine's VM.
    ///
    /// # Errors
    /// [`Error::System`], also where the snapshot is not in a memory file.
    pub fn new(parts: &Parts) -> Result<Self, Error> {
        let file = parts.file.as_ref().ok_or_else(|| {
            let why = io::Error::other("the snapshot is too large to be in one");
            Error::system("looking for a memory file")(why)
        })?;
        let memory = Memory::new(parts.ram.region(), Arc::clone(file), &parts.data)?;
        let uffd = Arc::new(Uffd::new()?);
        Ok(Self {
            vcpu: Vcpu::new(parts.vcpu.as_fd())?,
            _handler: Handler::serve(Arc::clone(&uffd), &memory, 1, || ())?,
            memory,
            uffd,
        })
    }

    /// The vCPU's state as the next run would enter the guest with.
    ///
    /// # Errors
    /// [`Error::System`].
    pub fn state(&self) -> Result<State, Error> {
        self.vcpu.state()
    }

    /// Puts a pristine snapshot under the guest: one `mmap`, one registration, and the replay of
    /// `steps`.
    ///
    /// # Errors
    /// [`Error::System`], [`Error::Short`].
    pub fn attach(&self, steps: &[Step]) -> Result<(), Error> {
        self.map()?;
        self.uffd.replay(&self.memory, steps)
    }

    /// The part of [`Machine::attach`] that does not depend on the working set.
    ///
    /// # Errors
    /// [`Error::System`].
    pub fn map(&self) -> Result<(), Error> {
        self.memory.map()?;
        self.uffd.register(&self.memory)
    }

    /// The part of it that does.
    ///
    /// # Errors
    /// [`Error::System`], [`Error::Short`].
    pub fn replay(&self, steps: &[Step]) -> Result<(), Error> {
        self.uffd.replay(&self.memory, steps)
    }

    /// Copies pages back from the snapshot; they must be the guest's own by now.
    ///
    /// # Panics
    /// Where a range reaches beyond the memory.
    pub fn copy_back(&self, ranges: &[Range<u64>]) {
        self.memory.copy_back(ranges);
    }

    /// Overwrites one page of the guest's memory.
    ///
    /// # Panics
    /// Where there is no such page.
    pub fn put_page(&self, page: u64, content: &[u8; PAGE_BYTES as usize]) {
        self.memory.put_page(page, content);
    }

    /// Reads one page of the guest's memory.
    ///
    /// # Panics
    /// Where there is no such page.
    #[must_use]
    pub fn page(&self, page: u64) -> [u8; PAGE_BYTES as usize] {
        self.memory.page(page)
    }

    /// Sets the vCPU's state.
    ///
    /// # Errors
    /// As [`Vcpu::set`].
    pub fn set(&self, state: &State) -> Result<(), Error> {
        self.vcpu.set(state)
    }

    /// Runs the guest up to its exchange.
    ///
    /// # Errors
    /// [`Error::Exit`] where it stops in any other way, [`Error::System`] where KVM fails.
    pub fn run(&self) -> Result<(), Error> {
        self.vcpu.run()
    }
}

/// The host's time-stamp counter now.
#[must_use]
pub fn host_tsc() -> u64 {
    // SAFETY: RDTSC is available in ring 3 on Linux unless a process forbids it to itself.
    unsafe { std::arch::x86_64::_rdtsc() }
}
