//! Names for addresses, and addresses for names.

use object::{Object, ObjectSymbol, SymbolKind};

/// The symbols of a loaded image, sorted by guest address.
#[derive(Debug, Default)]
pub struct Symbols {
    /// Start, size and mangled name.
    entries: Vec<(u64, u64, String)>,
}

impl Symbols {
    /// Reads the symbol table of an ELF file that was loaded at `offset`. A file without a (valid)
    /// symbol table has no symbols.
    pub(super) fn read(file: &[u8], offset: u64) -> Self {
        let Ok(elf) = object::File::parse(file) else {
            return Self::default();
        };
        // Every entry of a hostile table may name the same long string; in an honest one names
        // share little.
        let mut name_bytes = file.len();
        let mut entries: Vec<_> = elf
            .symbols()
            .filter(|symbol| matches!(symbol.kind(), SymbolKind::Text | SymbolKind::Data))
            .filter_map(|symbol| {
                let name = symbol.name().ok()?;
                name_bytes = name_bytes.checked_sub(name.len())?;
                let address = symbol.address().checked_add(offset)?;
                Some((address, symbol.size(), name.to_owned()))
            })
            .collect();
        entries.sort_unstable();
        Self { entries }
    }

    /// `name+0x12` for an address inside a symbol.
    #[must_use]
    pub fn name(&self, address: u64) -> Option<String> {
        let after = self
            .entries
            .partition_point(|(start, ..)| *start <= address);
        let (start, size, name) = self.entries.get(after.checked_sub(1)?)?;
        let offset = address - start;
        (offset < (*size).max(1))
            .then(|| format!("{:#}+{offset:#x}", rustc_demangle::demangle(name)))
    }

    /// Address and size of the first symbol whose demangled path is `path`.
    #[must_use]
    pub fn find(&self, path: &str) -> Option<(u64, u64)> {
        // Demangling is slow; every part of the path stands in the mangled name as it is.
        let last = path.rsplit("::").next().unwrap_or(path);
        self.entries
            .iter()
            .filter(|(.., name)| name.contains(last))
            .find(|(.., name)| format!("{:#}", rustc_demangle::demangle(name)) == path)
            .map(|(start, size, _)| (*start, *size))
    }
}
