//! Whether this host can run guests.

/// True where guests can run, false where the tests that need them are to be skipped.
///
/// # Panics
/// Where guests cannot run and nobody said that this is all right.
pub(crate) fn runs_guests() -> bool {
    let Some(missing) = missing() else {
        return true;
    };
    assert!(
        std::env::var_os("DORMOUSE_TEST_NO_KVM").is_some_and(|value| value == "1"),
        "this host cannot run guests: {missing}; set DORMOUSE_TEST_NO_KVM=1 to skip these tests"
    );
    println!("skipped: this host cannot run guests: {missing}");
    false
}

/// What keeps guests from running here.
fn missing() -> Option<String> {
    if let Err(error) = dormouse_vmm::Host::open() {
        return Some(error.to_string());
    }
    match dormouse_pager::probe() {
        Err(error) => Some(error.to_string()),
        Ok(support) if !support.usable() => Some("userfaultfd lacks features".to_owned()),
        Ok(_) => None,
    }
}
