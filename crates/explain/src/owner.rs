//! Whose a symbol is: the kernel's or the function's, which the linker puts into one file.

use std::fmt::{self, Write};

/// Who wrote a part of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Owner {
    Kernel,
    Function,
}

/// The most that is shown of a name, in bytes.
const MAX_NAME_BYTES: usize = 512;

/// Crates that are in kernels only. Their own dependencies may be in functions as well.
const KERNEL_CRATES: [&str; 2] = ["hermit", "hermit_kernel"];
/// Crates that are in functions only: the kernel has no standard library.
const FUNCTION_CRATES: [&str; 3] = ["std", "dormouse_guest", "panic_abort"];

/// Whose the symbol with this demangled name is. Nothing where the name does not tell: both have
/// their own copies of `core` and others.
pub(crate) fn of(name: &str) -> Option<Owner> {
    match name {
        "_start" => return Some(Owner::Kernel),
        "main" | "runtime_entry" => return Some(Owner::Function),
        _ => {}
    }
    let paths = name.split(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':'));
    let roots: Vec<&str> = paths
        .filter(|path| path.contains("::"))
        .filter_map(|path| path.split("::").next())
        .collect();
    let any = |crates: &[&str]| roots.iter().any(|root| crates.contains(root));
    if any(&KERNEL_CRATES) {
        Some(Owner::Kernel)
    } else if any(&FUNCTION_CRATES) {
        Some(Owner::Function)
    } else {
        None
    }
}

/// A mangled name as people read it. Short names may stand for very long ones: the rest is cut off.
pub(crate) fn demangle(mangled: &str) -> String {
    struct Cut(String);

    impl Write for Cut {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            let room = MAX_NAME_BYTES.saturating_sub(self.0.len());
            if text.len() <= room {
                self.0.push_str(text);
                return Ok(());
            }
            let fits = |(at, c): &(usize, char)| at + c.len_utf8() <= room;
            let kept = text.char_indices().take_while(fits).map(|(_, c)| c);
            self.0.extend(kept);
            self.0.push('…');
            Err(fmt::Error)
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
    fn crates_tell_whose_a_symbol_is() {
        for (name, owner) in [
            ("hermit::entropy::POOL", Some(Owner::Kernel)),
            (
                "<hermit::fs::File as core::fmt::Debug>::fmt",
                Some(Owner::Kernel),
            ),
            (
                "<&mut hermit::fs::File as core::fmt::Debug>::fmt",
                Some(Owner::Kernel),
            ),
            ("std::sys::pal::hermit::args::ARGV", Some(Owner::Function)),
            ("dormouse_guest::serve::run", Some(Owner::Function)),
            ("hermit_abi::write", None),
            ("core::ptr::drop_in_place", None),
            ("<char as core::fmt::Display>::fmt", None),
            ("memcpy", None),
            ("hermit", None),
            ("main", Some(Owner::Function)),
            ("", None),
        ] {
            assert_eq!(of(name), owner, "{name}");
        }
    }

    #[test]
    fn names_are_cut() {
        let name = demangle(&"ü".repeat(10_000));
        assert!(name.len() <= MAX_NAME_BYTES + '…'.len_utf8() && name.ends_with('…'));
        assert_eq!(
            demangle("_ZN6hermit7entropy4POOL17h9770772f6c405eb5E"),
            "hermit::entropy::POOL"
        );
    }
}
