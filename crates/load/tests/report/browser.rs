//! The page in a real browser: it is whole, looks like something, and runs nothing of anybody's.

use std::fs;
use std::path::PathBuf;

use serde::Deserialize;
use tempfile::TempDir;

use crate::{chromium, sample};

const DESKTOP: usize = 1200;
const PHONE: usize = 400;

const SECTIONS: [&str; 8] = [
    "distribution",
    "time",
    "stages",
    "starts",
    "requests",
    "errors",
    "client",
    "facts",
];

/// What [`MEASURE`] found.
#[derive(Debug, Deserialize)]
struct Layout {
    ran: bool,
    viewport: f64,
    page_width: f64,
    page_height: f64,
    /// What sticks out of the page and is in nothing that scrolls.
    outside: Vec<String>,
    boxes: Vec<Place>,
}

/// Where a section or drawing is.
#[derive(Debug, Deserialize)]
struct Place {
    id: String,
    left: f64,
    top: f64,
    right: f64,
    bottom: f64,
}

/// Looks at the layout from within. It runs in an altered copy of the page only.
const MEASURE: &str = include_str!("measure.js");

struct Pages {
    _folder: TempDir,
    report: PathBuf,
    /// The same with scripts allowed, so that hostile text would run if it could, and [`MEASURE`].
    altered: PathBuf,
    shot: PathBuf,
}

fn pages() -> Pages {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let (report, altered, shot) = (path("report.html"), path("altered.html"), path("shot.png"));
    let page = dormouse_load::report::html(&sample::record());
    fs::write(&report, &page).unwrap();
    let allowed = page.replacen("default-src 'none'", "default-src 'unsafe-inline'", 1);
    assert_ne!(allowed, page);
    fs::write(
        &altered,
        allowed.replacen("</body>", &format!("<script>{MEASURE}</script></body>"), 1),
    )
    .unwrap();
    Pages {
        _folder: folder,
        report,
        altered,
        shot,
    }
}

/// The layout of the altered page at a width, which is that of a frame: windows have a least one.
fn layout(pages: &Pages, width: usize) -> Layout {
    let around = pages.altered.with_file_name("around.html");
    let text = format!(
        r#"<!DOCTYPE html><body>
        <iframe src="altered.html" style="border:0;width:{width}px;height:900px"></iframe>
        <script>addEventListener("message", event => {{
            const text = document.createElement("pre");
            text.textContent = JSON.stringify(event.data);
            document.body.append(text);
        }});</script>"#
    );
    fs::write(&around, text).unwrap();
    let dom = chromium::open(&around, (DESKTOP, 1000)).dom;
    let (_, found) = dom.split_once("<pre>").expect("a measured layout");
    let (found, _) = found.split_once("</pre>").expect("its end");
    let found = found
        .replace("&lt;", "<")
        .replace("&gt;", ">")
        .replace("&amp;", "&");
    serde_json::from_str(&found).expect("a layout")
}

#[test]
fn the_browser_sees_all_sections_and_has_nothing_to_complain_of() {
    let pages = pages();
    let opened = chromium::open(&pages.report, (DESKTOP, 1000));
    assert!(opened.console.is_empty(), "{:?}", opened.console);
    let dom = &opened.dom;
    for run in 0..2 {
        for section in SECTIONS {
            assert!(
                dom.contains(&format!("<section id=\"run-{run}-{section}\">")),
                "{run} {section}"
            );
        }
    }
    // An overlay of all runs; of each its distribution, time series, breakdown and start types.
    assert_eq!(dom.matches("<svg ").count(), 1 + 2 * 4);
    for id in ["client-limited", "interrupted", "warnings"] {
        assert!(dom.contains(&format!("id=\"{id}\"")), "{id}");
    }
    assert!(dom.trim_end().ends_with("</html>"));
}

#[test]
fn hostile_text_is_text_even_where_scripts_may_run() {
    let pages = pages();
    let layout = layout(&pages, DESKTOP);
    assert!(!layout.ran, "text of the record was run");
    let dom = chromium::open(&pages.report, (DESKTOP, 1000)).dom;
    assert_eq!(dom.matches("<script").count(), 0);
    assert_eq!(dom.matches("<img").count(), 0);
    for hostile in [sample::SCRIPT, sample::IMAGE, sample::CLOSING] {
        let escaped = hostile.replace('<', "&lt;").replace('>', "&gt;");
        assert!(dom.contains(&escaped), "{escaped}");
    }
}

#[test]
fn nothing_sticks_out_on_a_desktop_or_a_phone() {
    let pages = pages();
    for width in [DESKTOP, PHONE] {
        let layout = layout(&pages, width);
        assert_eq!(layout.viewport, width as f64);
        assert!(
            layout.outside.is_empty(),
            "at {width}: {:?}",
            layout.outside
        );
        assert!(
            layout.page_width <= layout.viewport,
            "at {width}: {}",
            layout.page_width
        );
    }
}

#[test]
fn every_section_and_drawing_shows_something() {
    let pages = pages();
    let layout = layout(&pages, DESKTOP);
    let height = layout.page_height.ceil() as usize;
    let shot = chromium::shoot(&pages.report, (DESKTOP, height), &pages.shot);
    assert_eq!((shot.width, shot.height), (DESKTOP, height));
    assert!(layout.boxes.len() > 20, "{:?}", layout.boxes);
    for place in &layout.boxes {
        let [left, top, right, bottom] =
            [place.left, place.top, place.right, place.bottom].map(|at| at.max(0.0) as usize);
        assert!(right > left + 100 && bottom > top + 20, "{place:?}");
        let id = &place.id;
        let colours = shot.colours(left, top, right, bottom);
        // Text alone has shades of grey; drawings have their series' colours with all between.
        assert!(colours > 15, "{colours} colours in {id}");
    }
}
