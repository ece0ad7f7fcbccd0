//! A snapshot that was opened to be looked at.

use std::collections::BTreeMap;
use std::ops::Range;

use dormouse_abi::{HEADER_BYTES, Header};
use dormouse_pool::SavedFunction;
use dormouse_snapshot::{
    FunctionName, LayerInfo, Manifest, MemoryImage, PAGE_BYTES, Snapshot, SnapshotId, Store,
    WorkingSet,
};
use dormouse_vmm::{VmDescription, VmState, layout};

use crate::class::{Classes, PageClass};
use crate::contents::{Page, Pages};
use crate::error::Result;
use crate::explanation::Explanation;
use crate::image::ImageMap;
use crate::spans;

/// The most pages of a stack on either side of the stack pointer (2 MiB; Hermit's have 1 MiB).
const MAX_STACK_PAGES: u64 = 512;

/// A snapshot that was opened to be looked at. Its files stay open.
#[derive(Debug)]
pub struct Inspection {
    pub(crate) manifest: Manifest,
    pub(crate) machine: VmDescription,
    /// The ABI version of the guest's mailbox, where it has one.
    pub(crate) abi_version: Option<u32>,
    pub(crate) mailbox_address: u64,
    /// Guest-physical address of the first page.
    pub(crate) base: u64,
    pub(crate) memory: MemoryImage,
    pub(crate) working_set: Option<WorkingSet>,
    pub(crate) image: ImageMap,
    pub(crate) classes: Classes,
    /// Where the instruction pointer stands, by name.
    pub(crate) instruction: Option<String>,
    /// What of the parent's pages is used; nothing where there is no parent, or it is gone.
    pub(crate) shared: Option<Vec<Range<u64>>>,
    /// What could not be found out, in sentences.
    pub(crate) notes: Vec<String>,
}

impl Inspection {
    /// Opens the snapshot `id` of `function`. What is read of its memory and image is verified.
    ///
    /// # Errors
    /// [`Error::Store`](crate::Error::Store) when it is not there, cannot be read, or is damaged. A
    /// state, an image or page tables that make no sense are no error: what they would tell is
    /// missing.
    pub fn of(store: &Store, function: &FunctionName, id: &SnapshotId) -> Result<Self> {
        let snapshot: Snapshot<SavedFunction> = store.open_id(function, id)?;
        let (state, memory) = (&snapshot.state, &snapshot.memory);
        let vm = state.vm();
        let mut notes = Vec::new();

        let load_address = vm.load_address();
        let image = ImageMap::read(snapshot.image()?, load_address).unwrap_or_else(|reason| {
            notes.push(format!("its image tells nothing: {reason}"));
            ImageMap::default()
        });
        let base = vm.placement().base;
        let mut pages = Pages::new(memory);
        let known = known_pages(vm, memory, &image, &mut pages, &mut notes)?;
        let classes = Classes::new(memory.data(), &known);
        let instruction = {
            let (rip, ..) = vm.registers();
            let mapped = vm.translate(rip, |page, bytes| pages.read(page, bytes))?;
            mapped.and_then(|mapped| image.name(mapped.address))
        };
        let abi_version = abi_version(state, &mut pages)?;
        let shared = snapshot.manifest.layer.as_ref().and_then(|layer| {
            let parent = &layer.parent;
            let opened: Result<Snapshot<SavedFunction>, _> =
                store.open_id(&parent.function, &parent.id);
            match opened {
                Ok(parent) => Some(memory.stored_once_with(&parent.memory)),
                Err(error) => {
                    notes.push(format!("its parent cannot be looked at: {error}"));
                    None
                }
            }
        });
        if let Some(error) = &snapshot.working_set_error {
            notes.push(format!("its working set is unusable: {error}"));
        }
        Ok(Self {
            machine: vm.describe(),
            abi_version,
            mailbox_address: state.mailbox_address(),
            base,
            working_set: snapshot.working_set,
            image,
            classes,
            instruction,
            shared,
            notes,
            manifest: snapshot.manifest,
            memory: snapshot.memory,
        })
    }

    /// What the snapshot is a layer on, if it is one.
    #[must_use]
    pub fn layer(&self) -> Option<&LayerInfo> {
        self.manifest.layer.as_ref()
    }

    /// The snapshot in words.
    #[must_use]
    pub fn explain(&self) -> Explanation {
        Explanation::of(self)
    }

    /// Guest-physical addresses of `page`.
    pub(crate) fn addresses(&self, page: u64) -> Range<u64> {
        let start = self.base.saturating_add(page * PAGE_BYTES as u64);
        start..start.saturating_add(PAGE_BYTES as u64)
    }
}

/// What is known of stored pages, by the rules of the crate's page; those that come first win.
fn known_pages(
    vm: &VmState,
    memory: &MemoryImage,
    image: &ImageMap,
    pages: &mut Pages<'_>,
    notes: &mut Vec<String>,
) -> Result<BTreeMap<u64, PageClass>> {
    let is_stored = |page: u64| spans::contains(memory.data(), page);
    let base = vm.placement().base;
    let mut known = image.pages(base, is_stored);
    let mut put = |range: Range<u64>, class| {
        let stored = range.filter(|page| is_stored(*page));
        known.extend(stored.map(|page| (page, class)));
    };
    let whole = |bytes: Range<u64>| {
        bytes.start / layout::PAGE_BYTES..bytes.end.div_ceil(layout::PAGE_BYTES)
    };
    put(
        whole(layout::GDT_OFFSET..layout::PML4_OFFSET),
        PageClass::BootData,
    );
    put(
        whole(layout::BOOT_STACK_OFFSET..layout::KERNEL_OFFSET),
        PageClass::Stack,
    );
    for page in stack_pages(vm, pages)? {
        put(page..page.saturating_add(1), PageClass::Stack);
    }
    match vm.table_pages(|page, bytes| pages.read(page, bytes))? {
        Some(tables) => tables
            .into_iter()
            .for_each(|page| put(page..page.saturating_add(1), PageClass::PageTables)),
        None => notes.push("its page tables are more than any kernel needs".to_owned()),
    }
    Ok(known)
}

/// The pages that are mapped one by one around the stack pointer.
fn stack_pages(vm: &VmState, pages: &mut Pages<'_>) -> Result<Vec<u64>> {
    let base = vm.placement().base;
    let (_, stack_pointer, _) = vm.registers();
    let start = stack_pointer & !(layout::PAGE_BYTES - 1);
    let mut found = Vec::new();
    let mut page_at = |address: Option<u64>| -> Result<bool> {
        let Some(address) = address else {
            return Ok(false);
        };
        let mapped = vm.translate(address, |page, bytes: &mut Page| pages.read(page, bytes))?;
        let mapped = mapped.filter(|mapped| mapped.page_bytes == layout::PAGE_BYTES);
        let Some(offset) = mapped.and_then(|mapped| mapped.address.checked_sub(base)) else {
            return Ok(false);
        };
        found.push(offset / layout::PAGE_BYTES);
        Ok(true)
    };
    for distance in 0..MAX_STACK_PAGES {
        if !page_at(start.checked_add(distance * layout::PAGE_BYTES))? {
            break;
        }
    }
    for distance in 1..MAX_STACK_PAGES {
        if !page_at(start.checked_sub(distance * layout::PAGE_BYTES))? {
            break;
        }
    }
    Ok(found)
}

/// What the guest's mailbox says of itself, if it is one.
fn abi_version(state: &SavedFunction, pages: &mut Pages<'_>) -> Result<Option<u32>> {
    let vm = state.vm();
    let address = state.mailbox_address();
    let mapped = vm.translate(address, |page, bytes| pages.read(page, bytes))?;
    let base = vm.placement().base;
    let Some(offset) = mapped.and_then(|mapped| mapped.address.checked_sub(base)) else {
        return Ok(None);
    };
    let mut page = [0; PAGE_BYTES];
    pages.read(offset / layout::PAGE_BYTES, &mut page)?;
    let at = (offset % layout::PAGE_BYTES) as usize;
    let header = page[at..].first_chunk::<HEADER_BYTES>().map(Header::decode);
    let header = header.filter(|header| header.check_registration().is_ok());
    Ok(header.map(|header| header.abi_version))
}
