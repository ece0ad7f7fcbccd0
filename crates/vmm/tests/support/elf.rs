//! Hermit images made in the tests: some machine code in an ELF file with the notes that a Hermit
//! kernel has, so that they take the same way into a machine as real ones.
//!
//! ```text
//! 0x000  file header
//! 0x040  program headers: LOAD, NOTE, and what a test adds
//! 0x200  notes
//! 0x400  code                      loaded at address 0 (relocatable) or where the test says
//!        symbol table, names, section headers
//! ```

use std::sync::Arc;

use dormouse_vmm::GuestImage;
use iced_x86::IcedError;
use iced_x86::code_asm::CodeAssembler;

const NOTES_OFFSET: usize = 0x200;
const CODE_OFFSET: usize = 0x400;
const ENTRY_VERSION: u32 = 0x5a00;
const UHYVE_INTERFACE_VERSION: u32 = 0x5b00;

pub(crate) const PT_LOAD: u32 = 1;
pub(crate) const PT_NOTE: u32 = 4;

/// The parts of an image.
pub(crate) struct Elf {
    pub(crate) code: Vec<u8>,
    /// Zeros behind the code.
    pub(crate) zero_bytes: u64,
    /// The note's entry version; Hermit's is 4.
    pub(crate) entry_version: u8,
    /// Whether the kernel speaks hypercall interface v2.
    pub(crate) v2: bool,
    /// Where it must stand, if it cannot be relocated.
    pub(crate) fixed_start: Option<u64>,
    /// Mangled name, address and size.
    pub(crate) symbols: Vec<(String, u64, u64)>,
}

impl Elf {
    pub(crate) fn v1(code: Vec<u8>) -> Self {
        Self {
            code,
            zero_bytes: 0x1000,
            entry_version: 4,
            v2: false,
            fixed_start: None,
            symbols: Vec::new(),
        }
    }

    pub(crate) fn v2(code: Vec<u8>) -> Self {
        Self {
            v2: true,
            ..Self::v1(code)
        }
    }

    /// The file.
    pub(crate) fn file(&self) -> Vec<u8> {
        let mut notes = note("HERMIT", ENTRY_VERSION, &[self.entry_version]);
        if self.v2 {
            notes.extend(note(
                "UHYVEIF",
                UHYVE_INTERFACE_VERSION,
                &2u32.to_be_bytes(),
            ));
        }
        let start = self.fixed_start.unwrap_or(0);
        let mut file = vec![0; CODE_OFFSET];
        file[NOTES_OFFSET..NOTES_OFFSET + notes.len()].copy_from_slice(&notes);
        file.extend(&self.code);
        pad(&mut file, 8);

        let names_at = file.len();
        file.push(0);
        let mut symbols = vec![0; 24];
        for (name, address, size) in &self.symbols {
            const GLOBAL_OBJECT: u8 = 1 << 4 | 1;
            symbols.extend(((file.len() - names_at) as u32).to_le_bytes());
            symbols.extend([GLOBAL_OBJECT, 0, 1, 0]);
            symbols.extend(address.to_le_bytes());
            symbols.extend(size.to_le_bytes());
            file.extend(name.as_bytes());
            file.push(0);
        }
        let names_bytes = file.len() - names_at;
        pad(&mut file, 8);
        let symbols_at = file.len();
        file.extend(&symbols);
        let sections_at = file.len();
        for (kind, offset, bytes, link, info, entry_bytes) in [
            (0, 0, 0, 0, 0, 0),
            (3, names_at, names_bytes, 0, 0, 0),
            (2, symbols_at, symbols.len(), 1, 1, 24),
        ] {
            // Name, type; flags, address, offset, size; link, info; alignment, entry size.
            file.extend([0u32, kind].into_iter().flat_map(u32::to_le_bytes));
            let words = [0, 0, offset as u64, bytes as u64];
            file.extend(words.into_iter().flat_map(u64::to_le_bytes));
            file.extend([link, info].into_iter().flat_map(u32::to_le_bytes));
            file.extend([8u64, entry_bytes].into_iter().flat_map(u64::to_le_bytes));
        }

        let code_bytes = self.code.len() as u64;
        let load = segment(
            PT_LOAD,
            CODE_OFFSET,
            start,
            code_bytes,
            code_bytes + self.zero_bytes,
        );
        let notes = segment(
            PT_NOTE,
            NOTES_OFFSET,
            0,
            notes.len() as u64,
            notes.len() as u64,
        );
        file[0x40..0x78].copy_from_slice(&load);
        file[0x78..0xB0].copy_from_slice(&notes);

        let kind: u16 = if self.fixed_start.is_some() { 2 } else { 3 };
        let header = &mut file[..64];
        header[..8].copy_from_slice(b"\x7fELF\x02\x01\x01\xff");
        header[16..18].copy_from_slice(&kind.to_le_bytes());
        header[18..20].copy_from_slice(&62u16.to_le_bytes());
        header[20..24].copy_from_slice(&1u32.to_le_bytes());
        header[24..32].copy_from_slice(&start.to_le_bytes());
        header[32..40].copy_from_slice(&0x40u64.to_le_bytes());
        header[40..48].copy_from_slice(&(sections_at as u64).to_le_bytes());
        for (at, half) in [(52, 64u16), (54, 56), (56, 2), (58, 64), (60, 3), (62, 1)] {
            header[at..at + 2].copy_from_slice(&half.to_le_bytes());
        }
        file
    }

    pub(crate) fn image(&self) -> Arc<GuestImage> {
        Arc::new(GuestImage::parse(&self.file()).unwrap())
    }
}

fn pad(bytes: &mut Vec<u8>, align: usize) {
    bytes.resize(bytes.len().next_multiple_of(align), 0);
}

fn note(name: &str, kind: u32, description: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for word in [name.len() as u32 + 1, description.len() as u32, kind] {
        bytes.extend(word.to_le_bytes());
    }
    bytes.extend(name.as_bytes());
    bytes.push(0);
    pad(&mut bytes, 4);
    bytes.extend(description);
    pad(&mut bytes, 4);
    bytes
}

fn segment(kind: u32, offset: usize, address: u64, file_bytes: u64, memory_bytes: u64) -> Vec<u8> {
    const READ_WRITE_EXECUTE: u32 = 7;
    let mut bytes = Vec::new();
    bytes.extend(
        [kind, READ_WRITE_EXECUTE]
            .into_iter()
            .flat_map(u32::to_le_bytes),
    );
    let words = [offset as u64, address, address, file_bytes, memory_bytes, 4];
    bytes.extend(words.into_iter().flat_map(u64::to_le_bytes));
    bytes
}

/// Assembles 64-bit code. It must not depend on where it stands.
pub(crate) fn assemble(write: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Vec<u8> {
    let mut assembler = CodeAssembler::new(64).unwrap();
    write(&mut assembler).unwrap();
    assembler.assemble(0).unwrap()
}
