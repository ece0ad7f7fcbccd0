//! A snapshot in words, as data.

use std::ops::Range;

use dormouse_snapshot::PAGE_BYTES;
use dormouse_vmm::VmDescription;
use schemars::JsonSchema;
use serde::Serialize;

use crate::class::PageClass;
use crate::inspection::Inspection;
use crate::spans;

/// The most symbols that are told, the largest ones.
const MAX_SYMBOLS: usize = 256;
/// The most pages of a working set that are told one by one, the first ones.
const MAX_TOUCHED: usize = 4096;
/// The most symbols of one page that are looked at: its smallest functions have 16 bytes each.
const MAX_SORTED: usize = 256;
/// The most symbols that are told of one page.
const MAX_NAMES: usize = 4;

/// A snapshot in words, as data; [`text`](Self::text) makes tables of it.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[non_exhaustive]
pub struct Explanation {
    /// What its manifest says.
    pub snapshot: SnapshotFacts,
    /// Registers, control state, clocks and host.
    pub machine: VmDescription,
    /// The symbol that the instruction pointer stands in.
    pub instruction: Option<String>,
    /// Guest memory by what it holds.
    pub memory: MemoryFacts,
    /// The largest symbols of the image, by the bytes they have in memory.
    pub symbols: Vec<SymbolFacts>,
    /// What the first runs touched.
    pub working_set: Option<WorkingSetFacts>,
    /// What it is a layer on.
    pub layer: Option<LayerFacts>,
    /// The files that its pages are in.
    pub packs: Vec<PackFacts>,
    /// What could not be found out, in sentences.
    pub notes: Vec<String>,
}

/// What a snapshot says about itself.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[non_exhaustive]
pub struct SnapshotFacts {
    /// The function that it belongs to.
    pub function: String,
    /// Its id.
    pub id: String,
    /// When it was taken, in milliseconds since 1970 (UTC).
    pub created_unix_ms: u64,
    /// The version of the on-disk format.
    pub format_version: u32,
    /// The version of the interface between guest and host, where the guest's mailbox tells.
    pub abi_version: Option<u32>,
    /// Guest-virtual address of the mailbox.
    pub mailbox_address: String,
    /// The host it was taken on.
    pub host: String,
    /// Size of guest memory.
    pub memory_bytes: u64,
    /// Pages of it that are not zero.
    pub data_pages: u64,
    /// Size of the encoded machine state.
    pub state_bytes: u64,
    /// Size of the function's image.
    pub image_bytes: u64,
    /// BLAKE3-256 of the image.
    pub image_digest: String,
    /// The function's configuration.
    pub config: serde_json::Value,
}

/// Guest memory by what it holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[non_exhaustive]
pub struct MemoryFacts {
    /// All pages.
    pub pages: u64,
    /// Every class; their pages add up to all.
    pub classes: Vec<ClassPages>,
}

/// The pages of one class.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[non_exhaustive]
pub struct ClassPages {
    /// The class.
    pub class: PageClass,
    /// How many pages it has.
    pub pages: u64,
    /// How many bytes.
    pub bytes: u64,
    /// Of these pages, those that are stored with the parent.
    pub shared_pages: u64,
    /// Of these pages, those that the first runs only read.
    pub read_pages: u64,
    /// Of these pages, those that the first runs wrote.
    pub written_pages: u64,
}

/// A symbol of the image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[non_exhaustive]
pub struct SymbolFacts {
    /// Its demangled name.
    pub name: String,
    /// The class of what it is.
    pub class: PageClass,
    /// Where it stands, guest-physical.
    pub address: String,
    /// Its size.
    pub bytes: u64,
    /// Pages that it is on and that are not zero.
    pub pages: u64,
    /// Of these, those that the first runs touched.
    pub touched_pages: u64,
}

/// What the first runs of a function touched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[non_exhaustive]
pub struct WorkingSetFacts {
    /// Pages that were only read.
    pub read_pages: u64,
    /// Pages that were written.
    pub written_pages: u64,
    /// The pages in the order of first touch, at most 4096.
    pub pages: Vec<TouchedPage>,
}

/// How a page was touched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Access {
    /// It was only read.
    Read,
    /// It was written.
    Written,
}

/// A page that a run touched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[non_exhaustive]
pub struct TouchedPage {
    /// Its number, from the guest's base.
    pub page: u64,
    /// Its guest-physical address.
    pub address: String,
    /// How it was touched.
    pub access: Access,
    /// What it holds.
    pub class: PageClass,
    /// The largest symbols on it.
    pub symbols: Vec<String>,
    /// How many symbols there are on it beside these.
    pub more_symbols: u64,
}

/// What a snapshot is a layer on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[non_exhaustive]
pub struct LayerFacts {
    /// The function of the parent.
    pub parent_function: String,
    /// The id of the parent.
    pub parent_id: String,
    /// How many snapshots are below.
    pub depth: u32,
    /// Pages that are stored with the parent; nothing where the parent cannot be looked at.
    pub shared_pages: Option<u64>,
    /// Pages that are not.
    pub own_pages: Option<u64>,
}

/// A file that pages are in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[non_exhaustive]
pub struct PackFacts {
    /// Its name.
    pub name: String,
    /// Pages in it.
    pub pages: u64,
    /// Pages of this snapshot, memory and image, that come from it.
    pub used_pages: u64,
    /// Size of its pages.
    pub raw_bytes: u64,
    /// Size of them as they are stored.
    pub stored_bytes: u64,
}

impl Explanation {
    pub(crate) fn of(inspection: &Inspection) -> Self {
        let manifest = &inspection.manifest;
        let snapshot = SnapshotFacts {
            function: manifest.function.to_string(),
            id: manifest.id.to_string(),
            created_unix_ms: manifest.created_unix_ms,
            format_version: manifest.format_version,
            abi_version: inspection.abi_version,
            mailbox_address: format!("{:#x}", inspection.mailbox_address),
            host: manifest.host.clone(),
            memory_bytes: manifest.memory_bytes,
            data_pages: manifest.data_pages,
            state_bytes: manifest.state_bytes,
            image_bytes: manifest.image_bytes,
            image_digest: manifest.image_digest.to_string(),
            config: manifest.config.clone(),
        };
        let layer = manifest.layer.as_ref().map(|layer| {
            let shared_pages = inspection.shared.as_deref().map(spans::count);
            LayerFacts {
                parent_function: layer.parent.function.to_string(),
                parent_id: layer.parent.id.to_string(),
                depth: layer.depth,
                shared_pages,
                own_pages: shared_pages
                    .map(|shared| inspection.memory.data_pages().saturating_sub(shared)),
            }
        });
        let packs = inspection.memory.packs().into_iter().map(|pack| PackFacts {
            raw_bytes: pack.pages.saturating_mul(PAGE_BYTES as u64),
            name: pack.name,
            pages: pack.pages,
            used_pages: pack.used_pages,
            stored_bytes: pack.stored_bytes,
        });
        Self {
            snapshot,
            machine: inspection.machine.clone(),
            instruction: inspection.instruction.clone(),
            memory: memory(inspection),
            symbols: symbols(inspection),
            working_set: working_set(inspection),
            layer,
            packs: packs.collect(),
            notes: inspection.notes.clone(),
        }
    }
}

/// Pages that were only read, and pages that were written.
fn touched(inspection: &Inspection) -> (&[Range<u64>], &[Range<u64>]) {
    let set = inspection.working_set.as_ref();
    set.map_or((&[], &[]), |set| (&set.read, &set.written))
}

fn memory(inspection: &Inspection) -> MemoryFacts {
    let (read, written) = touched(inspection);
    let shared = inspection.shared.as_deref().unwrap_or_default();
    let mut classes: Vec<ClassPages> = PageClass::ALL
        .map(|class| ClassPages {
            class,
            pages: 0,
            bytes: 0,
            shared_pages: 0,
            read_pages: 0,
            written_pages: 0,
        })
        .into();
    let mut count = |class: PageClass, range: &Range<u64>| {
        if let Some(all) = classes.iter_mut().find(|all| all.class == class) {
            all.pages += range.end - range.start;
            all.shared_pages += spans::count_within(shared, range);
            all.read_pages += spans::count_within(read, range);
            all.written_pages += spans::count_within(written, range);
        }
    };
    let pages = inspection.memory.pages();
    let mut next = 0;
    for (range, class) in inspection.classes.runs() {
        count(PageClass::Zero, &(next..range.start));
        count(*class, range);
        next = range.end;
    }
    count(PageClass::Zero, &(next..pages));
    for class in &mut classes {
        class.bytes = class.pages * PAGE_BYTES as u64;
    }
    MemoryFacts { pages, classes }
}

fn symbols(inspection: &Inspection) -> Vec<SymbolFacts> {
    let mut largest: Vec<_> = inspection.image.symbols().iter().collect();
    largest.sort_by_key(|symbol| std::cmp::Reverse(symbol.bytes));
    let (read, written) = touched(inspection);
    let page_bytes = PAGE_BYTES as u64;
    largest
        .into_iter()
        .filter(|symbol| symbol.bytes > 0)
        .filter_map(|symbol| {
            let start = symbol.address.checked_sub(inspection.base)?;
            let pages = start / page_bytes..(start + symbol.bytes).div_ceil(page_bytes);
            let touched = spans::count_within(read, &pages) + spans::count_within(written, &pages);
            Some(SymbolFacts {
                name: symbol.name.clone(),
                class: symbol.class,
                address: format!("{:#x}", symbol.address),
                bytes: symbol.bytes,
                pages: spans::count_within(inspection.memory.data(), &pages),
                touched_pages: touched,
            })
        })
        .take(MAX_SYMBOLS)
        .collect()
}

fn working_set(inspection: &Inspection) -> Option<WorkingSetFacts> {
    let set = inspection.working_set.as_ref()?;
    let pages = set.order.iter().take(MAX_TOUCHED).map(|&page| {
        let addresses = inspection.addresses(page);
        let here = inspection.image.symbols_in(addresses.clone());
        let all = here.len();
        let mut here: Vec<_> = here.iter().take(MAX_SORTED).collect();
        here.sort_by_key(|symbol| std::cmp::Reverse(symbol.bytes));
        here.truncate(MAX_NAMES);
        TouchedPage {
            page,
            address: format!("{:#x}", addresses.start),
            access: match spans::contains(&set.written, page) {
                true => Access::Written,
                false => Access::Read,
            },
            class: inspection.classes.of(page),
            more_symbols: (all - here.len()) as u64,
            symbols: here.into_iter().map(|symbol| symbol.name.clone()).collect(),
        }
    });
    Some(WorkingSetFacts {
        read_pages: spans::count(&set.read),
        written_pages: spans::count(&set.written),
        pages: pages.collect(),
    })
}
