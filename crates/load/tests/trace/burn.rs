//! What the sample function `burn` is asked for.

use std::collections::BTreeSet;

use dormouse_load::trace::{BurnCaps, burn_path};

/// Milliseconds and pages of a path.
fn parse(path: &str) -> (u64, u64) {
    let (ms, pages) = path
        .strip_prefix("/?ms=")
        .and_then(|rest| rest.split_once("&write="))
        .unwrap();
    (ms.parse().unwrap(), pages.parse().unwrap())
}

fn all() -> BurnCaps {
    BurnCaps {
        touched_share: 1.0,
        ..BurnCaps::default()
    }
}

#[test]
fn time_and_memory_become_milliseconds_and_pages() {
    assert_eq!(burn_path(7_000, 0.0625, &all()), "/?ms=7&write=16");
    assert_eq!(burn_path(0, 0.0625, &all()), "/?ms=0&write=16");
    // A twentieth of 2 MiB is 25.6 pages, and the step next to it is 20 × 1.05⁵.
    assert_eq!(
        burn_path(1_400, 2.0, &BurnCaps::default()),
        "/?ms=1&write=26"
    );
    let unknown = burn_path(1_000, 0.0, &BurnCaps::default());
    assert_eq!(unknown, burn_path(1_000, 170.0, &BurnCaps::default()));
}

#[test]
fn nothing_beyond_the_caps_is_asked_for() {
    let (ms, pages) = parse(&burn_path(u64::MAX, f64::MAX, &all()));
    assert_eq!((ms, pages), (60_000, 6000));
    let caps = BurnCaps {
        max_ms: 100,
        max_pages: 50,
        ..all()
    };
    assert_eq!(burn_path(1_000_000, 64.0, &caps), "/?ms=100&write=50");
    assert_eq!(
        burn_path(5_000, f64::NAN, &all()),
        burn_path(5_000, 0.0, &all())
    );
}

#[test]
fn steps_are_small_and_few() {
    let mut distinct = BTreeSet::new();
    for tenth_ms in 1..600_000_u64 {
        let (ms, _) = parse(&burn_path(tenth_ms * 100, 1.0, &all()));
        let wanted = tenth_ms as f64 / 10.0;
        // Half a step, and half a millisecond for the rounding.
        let allowed = wanted * 0.025 + 0.5;
        assert!(
            (ms as f64 - wanted).abs() <= allowed,
            "{wanted} became {ms}"
        );
        distinct.insert(ms);
    }
    // From 0 to 20 by one, and ln(60000 / 20) / ln(1.05) = 164 steps.
    assert!(distinct.len() <= 21 + 165, "{}", distinct.len());
}
