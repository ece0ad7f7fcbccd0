//! Checks an ELF file before the loader sees it.
//!
//! hermit-entry's loader trusts its input and panics on a file that lies; this module finds every
//! lie first. It mirrors what that loader reads: file header, program headers, notes, dynamic
//! section, relocations and dynamic symbols (System V ABI, AMD64 supplement; ELF-64 Object File
//! Format 1.5).

use std::ops::Range;

/// What the check learns on the way.
pub(super) struct Facts {
    /// Where a kernel that is not relocatable must be loaded.
    pub(super) fixed_start: Option<u64>,
    /// From its first to its last loaded byte.
    pub(super) memory_bytes: u64,
}

/// No address, size or addend of an image may exceed this: sums of a few stay far from overflow.
const ADDRESS_LIMIT: u64 = 1 << 40;

/// Hermit images have about ten. The bound keeps the checks below from being made to take hours.
const MAX_PROGRAM_HEADERS: u16 = 64;

const HEADER_BYTES: usize = 64;
const PROGRAM_HEADER_BYTES: usize = 56;
const SECTION_HEADER_BYTES: usize = 64;
const RELA_BYTES: usize = 24;
const SYMBOL_BYTES: usize = 24;

const ET_EXEC: u16 = 2;
const ET_DYN: u16 = 3;
const EM_X86_64: u16 = 62;
const PT_LOAD: u32 = 1;
const PT_DYNAMIC: u32 = 2;
const PT_INTERP: u32 = 3;
const PT_NOTE: u32 = 4;
const PT_TLS: u32 = 7;
const SHT_DYNSYM: u32 = 11;
const DT_NEEDED: u64 = 1;
const DT_RELA: u64 = 7;
const DT_RELASZ: u64 = 8;
const DT_RELCOUNT: u64 = 0x6fff_fffa;
const R_X86_64_64: u32 = 1;
const R_X86_64_GLOB_DAT: u32 = 6;
const R_X86_64_RELATIVE: u32 = 8;
/// The crate hermit-entry's note type and entry version, which it keeps private.
const NT_HERMIT_ENTRY_VERSION: u32 = 0x5a00;
const HERMIT_ENTRY_VERSION: u8 = 4;

type Check<T> = Result<T, String>;

/// A file with bounds-checked little-endian reads.
struct File<'a>(&'a [u8]);

impl<'a> File<'a> {
    fn range(&self, what: &str, offset: u64, len: u64) -> Check<&'a [u8]> {
        let range = usize::try_from(offset)
            .ok()
            .zip(usize::try_from(len).ok())
            .and_then(|(offset, len)| {
                Some(Range {
                    start: offset,
                    end: offset.checked_add(len)?,
                })
            });
        range.and_then(|range| self.0.get(range)).ok_or_else(|| {
            format!(
                "the image is truncated or damaged: {what} should be {len} bytes at offset \
                 {offset}, the file has {} bytes; build it again",
                self.0.len()
            )
        })
    }

    /// A table whose entries the loader views in place, so that it must be aligned.
    fn table(&self, what: &str, offset: u64, len: u64) -> Check<&'a [u8]> {
        if !offset.is_multiple_of(8) {
            return Err(damaged(&format!(
                "{what} stands at the odd offset {offset}"
            )));
        }
        self.range(what, offset, len)
    }
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

fn damaged(what: &str) -> String {
    format!("the image is damaged: {what}; build it again")
}

/// The part of a program header that the loader uses.
struct Segment {
    kind: u32,
    offset: u64,
    address: u64,
    file_bytes: u64,
    memory_bytes: u64,
    align: u64,
}

pub(super) fn check(file: &[u8]) -> Check<Facts> {
    let header = check_header(file)?;
    let file = File(file);
    let segments = segments(&file, header)?;
    if segments.iter().any(|segment| segment.kind == PT_INTERP) {
        return Err(
            "this is a program for an operating system with a dynamic linker (Linux?), \
             not a Hermit image; build it with `dormouse build`"
                .to_owned(),
        );
    }
    check_notes(&file, &segments)?;
    let relocatable = u16_at(header, 16) == ET_DYN;
    let loads: Vec<&Segment> = segments
        .iter()
        .filter(|segment| segment.kind == PT_LOAD)
        .collect();
    let (Some(first), Some(last)) = (loads.first(), loads.last()) else {
        return Err(damaged("it has no segment to load"));
    };
    let start = first.address;
    if relocatable && start != 0 {
        return Err(damaged("a relocatable image must start at address 0"));
    }
    let memory_bytes = (last.address + last.memory_bytes)
        .checked_sub(start)
        .filter(|&bytes| bytes > 0)
        .ok_or_else(|| damaged("its segments are not in order"))?;
    for load in &loads {
        file.range("a segment", load.offset, load.file_bytes)?;
        let inside = load.address >= start
            && load.address - start + load.memory_bytes <= memory_bytes
            && load.file_bytes <= load.memory_bytes;
        if !inside {
            return Err(damaged("a segment lies outside the image"));
        }
    }
    let entry = u64_at(header, 24);
    if entry < start || entry - start >= memory_bytes {
        return Err(damaged("its entry point lies outside the image"));
    }
    let symbols = dynamic_symbols(&file, header)?;
    check_dynamic(&file, &segments, symbols, memory_bytes, relocatable)?;
    Ok(Facts {
        fixed_start: (!relocatable).then_some(start),
        memory_bytes,
    })
}

/// The file header: is this an x86-64 ELF program at all?
fn check_header(file: &[u8]) -> Check<&[u8]> {
    if !file.starts_with(b"\x7fELF") {
        return Err(
            "this is not an ELF file; a function is a Hermit image as made by \
             `dormouse build`"
                .to_owned(),
        );
    }
    let header = file.get(..HEADER_BYTES).ok_or_else(|| {
        format!(
            "the image is truncated: it has only {} bytes; build it again",
            file.len()
        )
    })?;
    let (class, encoding, version) = (header[4], header[5], header[6]);
    if class != 2 || encoding != 1 || version != 1 {
        return Err(
            "this ELF file is not a 64-bit little-endian one; Dormouse runs x86-64 Hermit \
             images"
                .to_owned(),
        );
    }
    let machine = u16_at(header, 18);
    if machine != EM_X86_64 {
        return Err(format!(
            "this ELF file is for another machine ({}), not for x86-64; build it for x86-64",
            machine_name(machine)
        ));
    }
    let kind = u16_at(header, 16);
    if kind != ET_EXEC && kind != ET_DYN {
        return Err("this ELF file is not an executable (an object file or a core dump?)".into());
    }
    Ok(header)
}

fn machine_name(machine: u16) -> String {
    match machine {
        3 => "x86, 32-bit".to_owned(),
        40 => "Arm, 32-bit".to_owned(),
        183 => "AArch64".to_owned(),
        243 => "RISC-V".to_owned(),
        other => format!("e_machine {other}"),
    }
}

fn segments(file: &File<'_>, header: &[u8]) -> Check<Vec<Segment>> {
    let count = u16_at(header, 56);
    if count > 0 && usize::from(u16_at(header, 54)) != PROGRAM_HEADER_BYTES {
        return Err(damaged("its program headers have an unknown size"));
    }
    if count > MAX_PROGRAM_HEADERS {
        return Err(damaged("it has more program headers than any image needs"));
    }
    let bytes = PROGRAM_HEADER_BYTES * usize::from(count);
    let table = file.table("its program header table", u64_at(header, 32), bytes as u64)?;
    let mut segments = Vec::with_capacity(usize::from(count));
    for entry in table.chunks_exact(PROGRAM_HEADER_BYTES) {
        let segment = Segment {
            kind: u32_at(entry, 0),
            offset: u64_at(entry, 8),
            address: u64_at(entry, 16),
            file_bytes: u64_at(entry, 32),
            memory_bytes: u64_at(entry, 40),
            align: u64_at(entry, 48),
        };
        let matters = matches!(segment.kind, PT_LOAD | PT_DYNAMIC | PT_NOTE | PT_TLS);
        let largest = segment
            .address
            .max(segment.file_bytes)
            .max(segment.memory_bytes);
        if matters && largest.max(segment.offset) > ADDRESS_LIMIT {
            return Err(damaged("a segment has an impossible address or size"));
        }
        segments.push(segment);
    }
    Ok(segments)
}

/// The notes of the first note segment: the loader reads names and descriptions from there.
fn check_notes(file: &File<'_>, segments: &[Segment]) -> Check<()> {
    const NOT_HERMIT: &str = "this ELF file is not a Hermit program (it has no Hermit entry note); \
         build it with `dormouse build`";
    let segment = segments
        .iter()
        .find(|segment| segment.kind == PT_NOTE)
        .ok_or(NOT_HERMIT)?;
    let align = segment.align;
    if !matches!(align, 1 | 4 | 8) || !segment.offset.is_multiple_of(4) {
        return Err(damaged("its notes are not aligned"));
    }
    let mut notes = file.range("its note segment", segment.offset, segment.file_bytes)?;
    let mut is_hermit = false;
    while notes.len() >= 12 {
        let (name_bytes, description_bytes, kind) = (
            u64::from(u32_at(notes, 0)),
            u64::from(u32_at(notes, 4)),
            u32_at(notes, 8),
        );
        let description_at = (12 + name_bytes).next_multiple_of(align.max(4));
        let next = (description_at + description_bytes).next_multiple_of(align.max(4));
        if align == 1 || name_bytes == 0 || next > notes.len() as u64 {
            return Err(damaged("a note runs past its segment"));
        }
        let name = &notes[12..12 + name_bytes as usize - 1];
        if std::str::from_utf8(name).is_err() {
            return Err(damaged("a note's name is not text"));
        }
        if name == b"HERMIT" && kind == NT_HERMIT_ENTRY_VERSION {
            let version = notes[description_at as usize..next as usize]
                .first()
                .copied();
            let supported = HERMIT_ENTRY_VERSION;
            match version {
                Some(version) if version == supported => is_hermit = true,
                Some(version) => {
                    return Err(format!(
                        "this Hermit image has entry version {version}, Dormouse boots version \
                         {supported}; build it with a matching Hermit kernel"
                    ));
                }
                None => return Err(damaged("its Hermit note is empty")),
            }
        }
        notes = &notes[next as usize..];
    }
    if is_hermit {
        Ok(())
    } else {
        Err(NOT_HERMIT.to_owned())
    }
}

fn dynamic_symbols<'a>(file: &File<'a>, header: &[u8]) -> Check<&'a [u8]> {
    let count = u16_at(header, 60);
    if count > 0 && usize::from(u16_at(header, 58)) != SECTION_HEADER_BYTES {
        return Err(damaged("its section headers have an unknown size"));
    }
    let bytes = SECTION_HEADER_BYTES * usize::from(count);
    let sections = file.table("its section header table", u64_at(header, 40), bytes as u64)?;
    for section in sections.chunks_exact(SECTION_HEADER_BYTES) {
        if u32_at(section, 4) == SHT_DYNSYM {
            return file.table(
                "its dynamic symbols",
                u64_at(section, 24),
                u64_at(section, 32),
            );
        }
    }
    Ok(&[])
}

/// The dynamic section and the relocations that it names.
fn check_dynamic(
    file: &File<'_>,
    segments: &[Segment],
    symbols: &[u8],
    memory_bytes: u64,
    relocatable: bool,
) -> Check<()> {
    let Some(segment) = segments.iter().find(|segment| segment.kind == PT_DYNAMIC) else {
        return Ok(());
    };
    let dynamic = file.table("its dynamic section", segment.offset, segment.file_bytes)?;
    let (mut rela_offset, mut rela_bytes) = (0, 0);
    for entry in dynamic.chunks_exact(16) {
        let (tag, value) = (u64_at(entry, 0), u64_at(entry, 8));
        match tag {
            DT_NEEDED => {
                return Err(
                    "this program needs shared libraries (a Linux program?), it is not a \
                     Hermit image; build it with `dormouse build`"
                        .to_owned(),
                );
            }
            // A second one is another lie; looking both up could be made to take long.
            DT_RELA if rela_offset != 0 => return Err(damaged("it has two relocation tables")),
            DT_RELA => rela_offset = file_offset(segments, value),
            DT_RELASZ => rela_bytes = value,
            DT_RELCOUNT if value != 0 => {
                return Err(damaged("it has relocations without addends"));
            }
            _ => {}
        }
    }
    let relocations = file.table("its relocations", rela_offset, rela_bytes)?;
    if relocatable {
        check_relocations(file, segments, relocations, symbols, memory_bytes)
    } else {
        Ok(())
    }
}

/// Where the byte that is loaded at `address` stands in the file.
fn file_offset(segments: &[Segment], address: u64) -> u64 {
    segments
        .iter()
        .filter(|segment| segment.kind == PT_LOAD)
        .find(|segment| {
            address
                .checked_sub(segment.address)
                .is_some_and(|at| at < segment.memory_bytes)
        })
        .map_or(0, |segment| segment.offset + (address - segment.address))
}

fn check_relocations(
    file: &File<'_>,
    segments: &[Segment],
    relocations: &[u8],
    symbols: &[u8],
    memory_bytes: u64,
) -> Check<()> {
    let mut targets = Vec::with_capacity(relocations.len() / RELA_BYTES);
    for relocation in relocations.chunks_exact(RELA_BYTES) {
        let target = u64_at(relocation, 0);
        let (kind, symbol) = (u32_at(relocation, 8), u32_at(relocation, 12));
        let addend = u64_at(relocation, 16) as i64;
        if target.checked_add(8).is_none_or(|end| end > memory_bytes)
            || addend.unsigned_abs() > ADDRESS_LIMIT
        {
            return Err(damaged("a relocation lies outside the image"));
        }
        targets.push(target);
        match kind {
            R_X86_64_RELATIVE => {}
            R_X86_64_64 | R_X86_64_GLOB_DAT => {
                let entry = symbols
                    .chunks_exact(SYMBOL_BYTES)
                    .nth(symbol as usize)
                    .ok_or_else(|| damaged("a relocation names no symbol"))?;
                if u64_at(entry, 8) > ADDRESS_LIMIT || (kind == R_X86_64_GLOB_DAT && addend != 0) {
                    return Err(damaged("a relocation's value is impossible"));
                }
                let is_weak = entry[4] >> 4 == 2;
                let is_undefined = u16_at(entry, 6) == 0;
                if is_weak && is_undefined && !is_zero_in_file(file, segments, target) {
                    return Err(damaged("a weak symbol's place is not empty"));
                }
            }
            other => return Err(damaged(&format!("relocation type {other} is unknown"))),
        }
    }
    targets.sort_unstable();
    if targets.windows(2).any(|pair| pair[1] - pair[0] < 8) {
        return Err(damaged("two relocations overlap"));
    }
    Ok(())
}

fn is_zero_in_file(file: &File<'_>, segments: &[Segment], address: u64) -> bool {
    (address..address + 8).all(|address| {
        let loaded = segments.iter().rfind(|segment| {
            segment.kind == PT_LOAD
                && address
                    .checked_sub(segment.address)
                    .is_some_and(|at| at < segment.memory_bytes)
        });
        loaded.is_some_and(|segment| {
            let at = address - segment.address;
            at >= segment.file_bytes
                || file
                    .range("", segment.offset + at, 1)
                    .is_ok_and(|byte| byte == [0])
        })
    })
}
