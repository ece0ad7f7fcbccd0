//! Names for addresses, and addresses for names.

use std::fmt::{self, Write};

use object::{Object, ObjectSymbol, SymbolKind};

/// Where a name is cut.
const MAX_NAME_BYTES: usize = 512;

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
        (offset < (*size).max(1)).then(|| format!("{}+{offset:#x}", demangle(name)))
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

/// A mangled name as people read it. An image can say anything, at any length, and short names may
/// stand for very long ones: the rest is cut off, and what is no text is replaced.
#[must_use]
pub fn demangle(mangled: &str) -> String {
    struct Cut(String);

    impl Write for Cut {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            for c in text.chars() {
                let c = if c.is_control() {
                    char::REPLACEMENT_CHARACTER
                } else {
                    c
                };
                if self.0.len() + c.len_utf8() > MAX_NAME_BYTES {
                    self.0.push('…');
                    return Err(fmt::Error);
                }
                self.0.push(c);
            }
            Ok(())
        }
    }

    let mut name = Cut(String::new());
    // The error is the cut.
    let _ = write!(name, "{:#}", rustc_demangle::demangle(mangled));
    name.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_cut_and_are_text() {
        let name = demangle(&"ü".repeat(10_000));
        assert!(name.len() <= MAX_NAME_BYTES + '…'.len_utf8() && name.ends_with('…'));
        assert_eq!(
            demangle("_ZN6hermit7entropy4POOL17h9770772f6c405eb5E"),
            "hermit::entropy::POOL"
        );
        assert_eq!(demangle("a\x1b[31m\n"), "a\u{FFFD}[31m\u{FFFD}");
    }
}
