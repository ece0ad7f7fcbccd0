//! The sample functions' images.

use std::path::{Path, PathBuf};

/// The image of a sample function.
///
/// # Panics
/// Where it is not built, with the command that builds it.
#[must_use]
pub fn image(function: &str) -> Vec<u8> {
    let path = path(function);
    std::fs::read(&path).unwrap_or_else(|error| {
        panic!(
            "cannot read {}: {error}; `cargo xtask functions` builds the images, and \
             DORMOUSE_TEST_IMAGES names another folder that has them",
            path.display()
        )
    })
}

/// Where it is.
pub(crate) fn path(function: &str) -> PathBuf {
    folder().join(function)
}

/// Where all of them are.
pub(crate) fn folder() -> PathBuf {
    std::env::var_os("DORMOUSE_TEST_IMAGES").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../functions/target/images"),
        PathBuf::from,
    )
}
