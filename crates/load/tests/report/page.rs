//! The page as text: what a browser must never get to see.

use dormouse_load::report::html;
use dormouse_load::{Histogram, Run};

use crate::sample;

fn page_of(run: Run) -> String {
    let mut record = sample::record();
    record.runs = vec![run];
    html(&record)
}

#[test]
fn the_page_asks_for_nothing_and_runs_nothing() {
    let page = html(&sample::record());
    assert!(page.contains("default-src 'none'"));
    let lower = page.to_lowercase();
    for forbidden in [
        "<script",
        "<img",
        "<link",
        "<iframe",
        "src=",
        "url(",
        "@import",
        " onload=",
        "javascript:",
    ] {
        let found = lower.match_indices(forbidden).map(|(at, _)| at);
        // In text there may be anything, but never within a tag: no `<` before the next `>`.
        for at in found {
            let opened = lower[..at].rfind('<').unwrap_or(0);
            let closed = lower[..at].rfind('>').unwrap_or(0);
            assert!(
                closed > opened && !forbidden.starts_with('<'),
                "{}",
                &page[opened..at + 40]
            );
        }
    }
    assert_eq!(page.matches("</style>").count(), 1);
    assert_eq!(page.matches("</title></style>").count(), 0);
}

#[test]
fn no_number_in_it_is_none() {
    let mut run = sample::record().runs.remove(1);
    run.client.busiest_thread = f64::NAN;
    run.client.cpu_percent_per_1000_per_s = f64::INFINITY;
    run.capacity_per_s = Some(f64::NAN);
    run.breakdown[0].mean_us = f64::NAN;
    run.breakdown[1].parts[0].mean_us = f64::NEG_INFINITY;
    run.breakdown[2].parts[0].mean_us = -5.0;
    run.breakdown[3].from = f64::NAN;
    let page = page_of(run);
    assert!(!page.contains("NaN") && !page.contains("inf "), "{page}");
    assert!(!page.contains("width=\"-"));
}

#[test]
fn a_run_in_which_nothing_happened_has_a_page() {
    let page = page_of(sample::nothing());
    for wanted in [
        "No good answer, hence no latency.",
        "The run has no time series.",
        "Nothing is known of where the time went.",
        "No request failed.",
    ] {
        assert!(page.contains(wanted), "{wanted}");
    }
    assert!(!page.contains("NaN"));
}

#[test]
fn a_record_without_runs_has_a_page() {
    let mut record = sample::record();
    record.runs.clear();
    assert!(html(&record).contains("The record has no runs."));
}

#[test]
fn one_slice_and_one_answer_are_drawn() {
    let mut latency = Histogram::default();
    latency.record_us(0);
    let mut run = sample::record().runs.remove(0);
    run.slices.truncate(1);
    run.slices[0].latency = latency.clone();
    run.latency = latency.clone();
    run.service = latency;
    let page = page_of(run);
    assert_eq!(page.matches("class=\"note\"").count(), 1);
    assert!(
        page.contains("longest: 0 ms"),
        "the mark of the greatest time"
    );
    assert!(!page.contains("NaN"));
}

#[test]
fn a_long_run_is_drawn_in_columns_that_can_be_told_apart() {
    let mut run = sample::record().runs.remove(0);
    let slice = run.slices[10].clone();
    run.slices.resize(4000, slice);
    let page = page_of(run);
    let columns = page.matches("class=\"note\"").count();
    assert!((200..=310).contains(&columns), "{columns}");
}

#[test]
fn absurd_numbers_are_drawn_too() {
    let mut run = sample::record().runs.remove(0);
    run.slice_us = u64::MAX;
    run.measured_us = 1;
    run.offered = u64::MAX;
    for slice in &mut run.slices {
        (slice.offered, slice.failed, slice.in_flight_max) = (u64::MAX, u64::MAX, u64::MAX);
    }
    let page = page_of(run);
    assert!(!page.contains("NaN"));
}

#[test]
fn tables_and_drawings_say_what_they_are() {
    let page = html(&sample::record());
    let count = |part: &str| page.matches(part).count();
    assert_eq!(count("<svg "), count("role=\"img\""));
    assert_eq!(count("<svg "), count("<desc "));
    assert_eq!(count("<th "), count(" scope=\""));
    assert_eq!(count("<th>"), 0);
    for id in page.split(" id=\"").skip(1) {
        let id = id.split('"').next().unwrap();
        assert_eq!(count(&format!(" id=\"{id}\"")), 1, "{id}");
    }
}
