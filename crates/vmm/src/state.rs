//! All of a guest but its memory, as it is saved.

use serde::{Deserialize, Serialize};

use crate::clock::ClockState;
use crate::config::Placement;
use crate::error::Error;
use crate::host::HostProfile;
use crate::image::Interface;
use crate::layout::PAGE_BYTES;
use crate::paging;
use crate::vcpu::VcpuState;

/// All of a guest but its memory.
#[derive(Debug, Serialize, Deserialize)]
pub struct VmState {
    pub(crate) placement: Placement,
    pub(crate) interface: Interface,
    pub(crate) load_address: u64,
    pub(crate) vcpu: VcpuState,
    pub(crate) clock: ClockState,
    pub(crate) host: HostProfile,
}

impl VmState {
    /// Where the guest's memory stands.
    #[must_use]
    pub fn placement(&self) -> Placement {
        self.placement
    }

    /// The guest's clocks.
    #[must_use]
    pub fn clock(&self) -> &ClockState {
        &self.clock
    }

    /// The host it was saved on.
    #[must_use]
    pub fn host(&self) -> &HostProfile {
        &self.host
    }

    /// Where the kernel was loaded, for [`GuestImage::symbols`].
    #[must_use]
    pub fn load_address(&self) -> u64 {
        self.load_address
    }

    /// Instruction pointer, stack pointer and page-table root, for `inspect`.
    #[must_use]
    pub fn registers(&self) -> (u64, u64, u64) {
        (self.vcpu.regs.rip, self.vcpu.regs.rsp, self.vcpu.sregs.cr3)
    }

    /// Whether a guest with this state can be restored here and now.
    ///
    /// # Errors
    /// [`Error::NotRestorable`] with the reason and what to do, or what is wrong with the placement.
    pub fn check(&self, profile: &HostProfile) -> Result<(), Error> {
        let unfit = |error: Error| Error::NotRestorable {
            reason: format!("{error}; deploy the function again"),
        };
        self.placement.check().map_err(unfit)?;
        self.vcpu.check()?;
        self.host.check_restorable(profile)?;
        self.clock.check(profile)
    }

    /// The pages, counted from the guest's base and ascending, that hold the page tables which the
    /// saved guest's ring 0 walks. `read` fills a page of its memory.
    ///
    /// Who puts such a page back under a guest that is used again must ask
    /// [`translations_differ`](crate::translations_differ) first: what KVM or the CPU made of the
    /// changed table would stay in force. Nothing where there are more than any kernel needs.
    ///
    /// # Errors
    /// Whatever `read` returns.
    pub fn table_pages<E>(
        &self,
        read: impl FnMut(u64, &mut [u8; PAGE_BYTES as usize]) -> Result<(), E>,
    ) -> Result<Option<Vec<u64>>, E> {
        let Placement { base, memory_bytes } = self.placement;
        paging::table_pages(self.vcpu.sregs.cr3, base, memory_bytes / PAGE_BYTES, read)
    }
}
