//! All of a guest but its memory, as it is saved.

use serde::{Deserialize, Serialize};

use crate::clock::ClockState;
use crate::config::Placement;
use crate::error::Error;
use crate::host::HostProfile;
use crate::image::Interface;
use crate::layout::PAGE_BYTES;
use crate::paging::{self, Mapped};
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

a_change_here_is_a_new_format_version! {
    VmState {
        placement: Placement,
        interface: Interface,
        load_address: u64,
        vcpu: VcpuState,
        clock: ClockState,
        host: HostProfile,
    }
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

    /// Where the saved guest's page tables map a guest-virtual address to. `read` fills a page of
    /// its memory, counted from the guest's base. Nothing where it is not mapped, or a table lies
    /// outside memory.
    ///
    /// # Errors
    /// Whatever `read` returns.
    pub fn translate<E>(
        &self,
        virtual_address: u64,
        mut read: impl FnMut(u64, &mut [u8; PAGE_BYTES as usize]) -> Result<(), E>,
    ) -> Result<Option<Mapped>, E> {
        paging::walk(self.vcpu.sregs.cr3, virtual_address, |entry| {
            let table = self.physical_page(entry, &mut read)?;
            let index = (entry % PAGE_BYTES / 8) as usize;
            let word = table.and_then(|table| table.as_chunks().0.get(index).copied());
            Ok(word.map(u64::from_le_bytes))
        })
    }

    /// The saved guest's page that the guest-virtual `address` lies in, as its ring 0 sees it;
    /// nothing where none is mapped there. `read` as for [`translate`](Self::translate).
    ///
    /// # Errors
    /// Whatever `read` returns.
    pub fn page_at<E>(
        &self,
        address: u64,
        mut read: impl FnMut(u64, &mut [u8; PAGE_BYTES as usize]) -> Result<(), E>,
    ) -> Result<Option<[u8; PAGE_BYTES as usize]>, E> {
        match self.translate(address, &mut read)? {
            Some(mapped) => self.physical_page(mapped.address, read),
            None => Ok(None),
        }
    }

    /// The page of memory that a guest-physical address lies in; nothing outside memory.
    fn physical_page<E>(
        &self,
        physical: u64,
        mut read: impl FnMut(u64, &mut [u8; PAGE_BYTES as usize]) -> Result<(), E>,
    ) -> Result<Option<[u8; PAGE_BYTES as usize]>, E> {
        let Placement { base, memory_bytes } = self.placement;
        let Some(at) = physical.checked_sub(base).filter(|at| *at < memory_bytes) else {
            return Ok(None);
        };
        let mut bytes = [0; PAGE_BYTES as usize];
        read(at / PAGE_BYTES, &mut bytes)?;
        Ok(Some(bytes))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::{Path, PathBuf};

    use super::*;

    /// The codec of the snapshot format.
    const CODEC: bincode::config::Configuration = bincode::config::standard();

    fn golden() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../snapshots/golden/vm-state")
    }

    fn example() -> VmState {
        VmState {
            placement: Placement {
                base: 0x20_0000,
                memory_bytes: 32 << 20,
            },
            interface: Interface::V2,
            load_address: 0x24_0000,
            vcpu: VcpuState::example(),
            clock: ClockState::example(),
            host: HostProfile::example(),
        }
    }

    fn encode(state: &VmState) -> Vec<u8> {
        bincode::serde::encode_to_vec(state, CODEC).unwrap()
    }

    #[test]
    fn the_encoded_state_is_that_of_the_format() {
        let golden = fs::read(golden()).unwrap();
        assert!(
            encode(&example()) == golden,
            "the state is written in other bytes than before: a change of what is saved is a new \
             FORMAT_VERSION, see snapshots/FORMAT.md, \"Compatibility\""
        );
        let (state, used): (VmState, _) =
            bincode::serde::decode_from_slice(&golden, CODEC).unwrap();
        assert_eq!(used, golden.len());
        assert!(encode(&state) == golden);
        assert_eq!(state.placement, example().placement);
        assert_eq!(state.interface, example().interface);
        assert_eq!(state.load_address, example().load_address);
        assert_eq!(state.clock, example().clock);
        assert_eq!(state.host, example().host);
        assert_eq!(state.registers(), example().registers());
        state.check(&HostProfile::example()).unwrap();
    }

    #[test]
    #[ignore = "writes snapshots/golden: `cargo xtask golden` runs it"]
    fn write_golden() {
        fs::write(golden(), encode(&example())).unwrap();
    }

    #[test]
    fn a_page_is_found_through_the_saved_tables() {
        let state = example();
        let base = state.placement.base;
        // Four levels of tables in the pages from that of CR3 on, entry 0 of each.
        let root = (state.vcpu.sregs.cr3 - base) / PAGE_BYTES;
        let read = |page: u64, bytes: &mut [u8; PAGE_BYTES as usize]| {
            bytes.fill(0);
            let next = base + (page + 1) * PAGE_BYTES;
            bytes[..8].copy_from_slice(&(next | 1).to_le_bytes());
            bytes[8] = page as u8;
            Ok::<_, ()>(())
        };
        let page = state.page_at(0x123, read).unwrap().unwrap();
        assert_eq!(u64::from(page[8]), (root + 4) & 0xff);
        assert!(state.page_at(0x1000, read).unwrap().is_none());
        assert!(state.page_at(1 << 47, read).unwrap().is_none());
        assert_eq!(state.page_at(0, |_, _| Err(7)), Err(7));
    }
}
