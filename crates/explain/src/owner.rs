//! Whose a symbol is: the kernel's or the function's, which the linker puts into one file.

/// Who wrote a part of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Owner {
    Kernel,
    Function,
}

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
}
