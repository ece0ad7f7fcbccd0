//! The image that a guest was booted from: what of it stands where, and what it is called.

use std::collections::BTreeMap;
use std::ops::Range;

use dormouse_snapshot::PAGE_BYTES;
use dormouse_vmm::GuestImage;
use object::{
    Object, ObjectSection, ObjectSegment, ObjectSymbol, RelocationFlags, SectionFlags, SectionKind,
    SymbolKind,
};

use crate::class::PageClass;
use crate::owner::{self, Owner};

/// Honest images have some thousand symbols, some ten sections and a few segments.
const MAX_SYMBOLS: usize = 1 << 18;
const MAX_SECTIONS: usize = 128;
const MAX_SEGMENTS: usize = 32;
/// The most pages that sections are laid over (4 GiB).
const MAX_SECTION_PAGES: u64 = 1 << 20;

/// Classes that pages of an image may have.
const IMAGE_CLASSES: [PageClass; 5] = [
    PageClass::KernelText,
    PageClass::KernelData,
    PageClass::FunctionText,
    PageClass::FunctionData,
    PageClass::Constants,
];

/// A named piece of an image.
#[derive(Debug)]
pub(crate) struct Symbol {
    /// Guest-physical, where it was loaded.
    pub(crate) address: u64,
    pub(crate) bytes: u64,
    pub(crate) name: String,
    pub(crate) class: PageClass,
}

/// A piece of a section that one owner has, in guest-physical addresses.
#[derive(Debug)]
struct Part {
    range: Range<u64>,
    class: PageClass,
}

/// A piece of the file that is loaded.
#[derive(Debug)]
struct Loaded {
    address: u64,
    memory_bytes: u64,
    file: Range<usize>,
}

/// An image where it was loaded.
#[derive(Debug, Default)]
pub(crate) struct ImageMap {
    file: Vec<u8>,
    segments: Vec<Loaded>,
    /// Words that the loader writes: address and value, ascending.
    relocations: Vec<(u64, u64)>,
    /// By address.
    parts: Vec<Part>,
    /// By address.
    symbols: Vec<Symbol>,
}

impl ImageMap {
    /// Reads an image that was loaded at the guest-physical `load_address`.
    ///
    /// # Errors
    /// Why it is no image, as text: a snapshot can be explained without one.
    pub(crate) fn read(file: Vec<u8>, load_address: u64) -> Result<Self, String> {
        let image = GuestImage::parse(&file).map_err(|error| error.to_string())?;
        let offset = match image.fixed_base() {
            Some(_) => 0,
            None => load_address,
        };
        let mut map = Self::default();
        let elf = object::File::parse(&*file).map_err(|error| error.to_string())?;
        map.segments = segments(&elf, offset, file.len());
        map.relocations = relocations(&elf, offset, file.len());
        let (mut symbols, owners) = symbols(&elf, offset, file.len());
        map.parts = parts(&elf, offset, &symbols, &owners);
        for symbol in &mut symbols {
            symbol.class = map.class_at(symbol.address);
        }
        map.symbols = symbols;
        map.file = file;
        Ok(map)
    }

    fn class_at(&self, address: u64) -> PageClass {
        let after = self
            .parts
            .partition_point(|part| part.range.start <= address);
        let part = after.checked_sub(1).map(|at| &self.parts[at]);
        let part = part.filter(|part| part.range.contains(&address));
        part.map_or(PageClass::Constants, |part| part.class)
    }

    pub(crate) fn symbols(&self) -> &[Symbol] {
        &self.symbols
    }

    /// The symbol that `address` lies in, by its place in [`symbols`](Self::symbols).
    pub(crate) fn symbol_at(&self, address: u64) -> Option<usize> {
        let after = self
            .symbols
            .partition_point(|symbol| symbol.address <= address);
        let at = after.checked_sub(1)?;
        let symbol = &self.symbols[at];
        (address - symbol.address < symbol.bytes.max(1)).then_some(at)
    }

    /// `name+0x12` for an address inside a symbol.
    pub(crate) fn name(&self, address: u64) -> Option<String> {
        let symbol = &self.symbols[self.symbol_at(address)?];
        Some(format!("{}+{:#x}", symbol.name, address - symbol.address))
    }

    /// The symbols in `range`, and the one that reaches into it.
    pub(crate) fn symbols_in(&self, range: Range<u64>) -> &[Symbol] {
        let inside = self
            .symbols
            .partition_point(|symbol| symbol.address < range.start);
        let first = self.symbol_at(range.start).unwrap_or(inside).min(inside);
        let end = self
            .symbols
            .partition_point(|symbol| symbol.address < range.end);
        &self.symbols[first..end.max(first)]
    }

    /// What the image has on pages of a guest at `base`: of each, the class that has most of it.
    /// Only pages that `wanted` says are told.
    pub(crate) fn pages(
        &self,
        base: u64,
        wanted: impl Fn(u64) -> bool,
    ) -> BTreeMap<u64, PageClass> {
        let page_bytes = PAGE_BYTES as u64;
        let mut weights: BTreeMap<u64, [u64; IMAGE_CLASSES.len()]> = BTreeMap::new();
        let mut budget = MAX_SECTION_PAGES;
        for part in &self.parts {
            let kind = IMAGE_CLASSES.iter().position(|class| *class == part.class);
            let (Some(kind), Some(start), Some(end)) = (
                kind,
                part.range.start.checked_sub(base),
                part.range.end.checked_sub(base),
            ) else {
                continue;
            };
            for page in start / page_bytes..end.div_ceil(page_bytes) {
                budget = budget.saturating_sub(1);
                if budget == 0 {
                    break;
                }
                if wanted(page) {
                    let bytes = end.min((page + 1) * page_bytes) - start.max(page * page_bytes);
                    let all = &mut weights.entry(page).or_default()[kind];
                    *all = all.saturating_add(bytes);
                }
            }
        }
        let heaviest = |weights: [u64; IMAGE_CLASSES.len()]| {
            let classes = IMAGE_CLASSES.into_iter().zip(weights);
            classes
                .max_by_key(|(_, bytes)| *bytes)
                .map(|(class, _)| class)
        };
        weights
            .into_iter()
            .filter_map(|(page, weights)| Some((page, heaviest(weights)?)))
            .collect()
    }

    /// Fills `page` with what the loader has put at the guest-physical `address`, page aligned;
    /// says whether any of the image is there.
    pub(crate) fn loaded_page(&self, address: u64, page: &mut [u8; PAGE_BYTES]) -> bool {
        page.fill(0);
        let Some(end) = address.checked_add(PAGE_BYTES as u64) else {
            return false;
        };
        let mut is_there = false;
        for segment in &self.segments {
            // The ends were checked.
            let (start, stop) = (segment.address, segment.address + segment.memory_bytes);
            is_there |= start < end && stop > address;
            let stop = start + segment.file.len() as u64;
            let (from, to) = (start.max(address), stop.min(end));
            if from < to {
                let file = segment.file.start + (from - start) as usize;
                let length = (to - from) as usize;
                let at = (from - address) as usize;
                page[at..at + length].copy_from_slice(&self.file[file..file + length]);
            }
        }
        let first = address.saturating_sub(7);
        let first = self.relocations.partition_point(|(at, _)| *at < first);
        for (at, value) in &self.relocations[first..] {
            if *at >= end {
                break;
            }
            for (byte, at) in value.to_le_bytes().into_iter().zip(*at..) {
                if let Some(at) = at.checked_sub(address)
                    && let Some(place) = page.get_mut(at as usize)
                {
                    *place = byte;
                }
            }
        }
        is_there
    }
}

fn segments(elf: &object::File<'_>, offset: u64, file_bytes: usize) -> Vec<Loaded> {
    elf.segments()
        .take(MAX_SEGMENTS)
        .filter_map(|segment| {
            let (start, length) = segment.file_range();
            let start = usize::try_from(start).ok()?;
            let end = start.checked_add(usize::try_from(length).ok()?)?;
            let address = segment.address().checked_add(offset)?;
            let memory_bytes = segment.size().max(length);
            address.checked_add(memory_bytes)?;
            (end <= file_bytes).then_some(Loaded {
                address,
                memory_bytes,
                file: start..end,
            })
        })
        .collect()
}

/// The relocations that only depend on where an image was loaded.
fn relocations(elf: &object::File<'_>, offset: u64, file_bytes: usize) -> Vec<(u64, u64)> {
    /// System V ABI, AMD64 supplement, table 4.10.
    const R_X86_64_RELATIVE: u32 = 8;
    /// Size of `Elf64_Rela`.
    const ENTRY_BYTES: usize = 24;
    let mut relocations: Vec<_> = elf
        .dynamic_relocations()
        .into_iter()
        .flatten()
        // Sections of a hostile file may all be the same table.
        .take(file_bytes / ENTRY_BYTES)
        .filter_map(|(at, relocation)| {
            let RelocationFlags::Elf { r_type } = relocation.flags() else {
                return None;
            };
            (r_type == R_X86_64_RELATIVE).then_some(())?;
            let value = offset.wrapping_add_signed(relocation.addend());
            Some((at.checked_add(offset)?, value))
        })
        .collect();
    relocations.sort_unstable();
    relocations
}

/// The symbols by address, and of each whose it says that it is.
fn symbols(
    elf: &object::File<'_>,
    offset: u64,
    file_bytes: usize,
) -> (Vec<Symbol>, Vec<Option<Owner>>) {
    // Every entry of a hostile table may name the same long string; in an honest one names share
    // little.
    let mut name_bytes = file_bytes;
    let mut symbols: Vec<_> = elf
        .symbols()
        .take(MAX_SYMBOLS)
        .filter(|symbol| symbol.is_definition() || symbol.kind() == SymbolKind::Text)
        .filter(|symbol| matches!(symbol.kind(), SymbolKind::Text | SymbolKind::Data))
        .filter_map(|symbol| {
            let mangled = symbol.name().ok()?;
            name_bytes = name_bytes.checked_sub(mangled.len())?;
            let address = symbol.address().checked_add(offset)?;
            address.checked_add(symbol.size())?;
            Some(Symbol {
                address,
                bytes: symbol.size(),
                name: dormouse_vmm::demangle(mangled),
                class: PageClass::Constants,
            })
        })
        .collect();
    symbols.sort_unstable_by(|one, other| {
        (one.address, one.bytes, &one.name).cmp(&(other.address, other.bytes, &other.name))
    });
    let owners = symbols.iter().map(|symbol| owner::of(&symbol.name));
    let owners = owners.collect();
    (symbols, owners)
}

/// The sections in memory, cut where the owner changes.
fn parts(
    elf: &object::File<'_>,
    offset: u64,
    symbols: &[Symbol],
    owners: &[Option<Owner>],
) -> Vec<Part> {
    let mut parts = Vec::new();
    // As many as there can be where no two sections overlap.
    let most = MAX_SECTIONS + symbols.len();
    for section in elf.sections().take(MAX_SECTIONS) {
        let is_loaded = match section.flags() {
            SectionFlags::Elf { sh_flags } => sh_flags & u64::from(object::elf::SHF_ALLOC) != 0,
            _ => false,
        };
        let is_thread_local = matches!(
            section.kind(),
            SectionKind::Tls | SectionKind::UninitializedTls | SectionKind::TlsVariables
        );
        let Some(start) = section.address().checked_add(offset) else {
            continue;
        };
        let Some(end) = start.checked_add(section.size()) else {
            continue;
        };
        if !is_loaded || is_thread_local {
            continue;
        }
        let is_text = section.kind() == SectionKind::Text;
        let class = |owner| match (owner, is_text) {
            (Owner::Kernel, true) => PageClass::KernelText,
            (Owner::Kernel, false) => PageClass::KernelData,
            (Owner::Function, true) => PageClass::FunctionText,
            (Owner::Function, false) => PageClass::FunctionData,
        };
        let first = symbols.partition_point(|symbol| symbol.address < start);
        let last = symbols.partition_point(|symbol| symbol.address < end);
        let (first, last) = (first, last.max(first));
        let known = symbols[first..last].iter().zip(&owners[first..last]);
        let mut known = known.filter_map(|(symbol, owner)| Some((symbol.address, (*owner)?)));
        let Some((_, mut owner)) = known.next() else {
            let class = match is_text {
                true => PageClass::FunctionText,
                false => PageClass::Constants,
            };
            parts.push(Part {
                range: start..end,
                class,
            });
            continue;
        };
        let mut begin = start;
        for (address, next) in known {
            if next != owner && parts.len() < most {
                parts.push(Part {
                    range: begin..address,
                    class: class(owner),
                });
                (begin, owner) = (address, next);
            }
        }
        parts.push(Part {
            range: begin..end,
            class: class(owner),
        });
    }
    parts.sort_by_key(|part| part.range.start);
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER_BYTES: usize = 64;
    const SECTION_BYTES: usize = 64;

    /// An ELF file of `sections` section headers, all the same but the first, and of `content`. It has
    /// no names that anybody reads.
    fn elf(sections: u16, kind: u32, flags: u64, content: &[u8]) -> Vec<u8> {
        let mut file = b"\x7fELF\x02\x01\x01".to_vec();
        file.resize(16, 0);
        for half in [3_u16, 62] {
            file.extend(half.to_le_bytes());
        }
        file.extend(1_u32.to_le_bytes());
        for word in [0, 0, HEADER_BYTES as u64] {
            file.extend(word.to_le_bytes());
        }
        file.extend(0_u32.to_le_bytes());
        let header = HEADER_BYTES as u16;
        for half in [header, 56, 0, SECTION_BYTES as u16, sections, 1] {
            file.extend(half.to_le_bytes());
        }
        let begin = HEADER_BYTES + SECTION_BYTES * usize::from(sections);
        file.resize(HEADER_BYTES + SECTION_BYTES, 0);
        for _ in 1..sections {
            file.extend(0_u32.to_le_bytes());
            file.extend(kind.to_le_bytes());
            for word in [flags, 0, begin as u64, content.len() as u64] {
                file.extend(word.to_le_bytes());
            }
            file.extend([0; 8]);
            for word in [8_u64, 24] {
                file.extend(word.to_le_bytes());
            }
        }
        file.extend(content);
        file
    }

    #[test]
    fn one_table_under_many_sections_is_not_read_for_each() {
        let mut table = Vec::new();
        for at in 0..1000_u64 {
            table.extend([at * 8, 8, at].map(u64::to_le_bytes).concat());
        }
        let read = |sections| {
            let file = elf(sections, object::elf::SHT_RELA, 0, &table);
            let parsed = object::File::parse(&*file).expect("an ELF file");
            (relocations(&parsed, 0, file.len()).len(), file.len())
        };
        assert_eq!(read(2).0, 1000);
        let (found, bytes) = read(2000);
        assert!(found <= bytes / 24, "{found} of {bytes} bytes");
    }

    #[test]
    fn overlapping_sections_are_not_cut_without_end() {
        const SYMBOLS: u64 = 4000;
        let sections = MAX_SECTIONS as u16;
        let flags = u64::from(object::elf::SHF_ALLOC | object::elf::SHF_EXECINSTR);
        let file = elf(sections, object::elf::SHT_PROGBITS, flags, &[0; 4096]);
        let parsed = object::File::parse(&*file).expect("an ELF file");
        let symbols: Vec<_> = (0..SYMBOLS)
            .map(|address| Symbol {
                address,
                bytes: 1,
                name: String::new(),
                class: PageClass::Constants,
            })
            .collect();
        let owners: Vec<_> = (0..SYMBOLS)
            .map(|number| match number % 2 {
                0 => Some(Owner::Kernel),
                _ => Some(Owner::Function),
            })
            .collect();
        let parts = parts(&parsed, 0, &symbols, &owners);
        let most = 2 * MAX_SECTIONS + symbols.len();
        assert!(
            (symbols.len()..=most).contains(&parts.len()),
            "{}",
            parts.len()
        );
    }
}
