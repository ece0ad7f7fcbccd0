//! The sample functions, built.

use std::path::PathBuf;

use bytes::Bytes;

/// The image of a sample function; `None` where the host has no KVM and the user knows.
pub(crate) fn image(name: &str) -> Option<Bytes> {
    if std::env::var_os("DORMOUSE_TEST_NO_KVM").is_some_and(|value| value == "1") {
        eprintln!("skipped: DORMOUSE_TEST_NO_KVM=1 is set, and this test needs KVM");
        return None;
    }
    let folder = std::env::var_os("DORMOUSE_TEST_IMAGES").expect("set by `cargo xtask test`");
    Some(
        std::fs::read(PathBuf::from(folder).join(name))
            .unwrap()
            .into(),
    )
}
