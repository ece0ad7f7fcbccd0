//! What stops a build where a type that snapshots hold changes: the state is not self-describing.

/// Names every field of a struct that is part of the state, with its type. Where one is added,
/// removed, renamed or gets another type, this does not compile.
///
/// Whoever is stopped by it: **a change here is a new `FORMAT_VERSION`**; snapshots/FORMAT.md,
/// "Compatibility", says what else it asks for. What reordering does is held by a test on the bytes
/// (`state.rs`).
macro_rules! a_change_here_is_a_new_format_version {
    ($type:ident { $($field:ident: $kind:ty),* $(,)? }) => {
        const _: fn(&$type) = |value| {
            let $type { $($field),* } = value;
            $(let _: &$kind = $field;)*
        };
    };
}
