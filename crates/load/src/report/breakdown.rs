//! Where the time went, and which starts there were: bars of shares.

use maud::{Markup, html};

use super::chart::{COLOURS, drawing, legend, px};
use super::numbers::{band, count, mean_ms, percent, tame};
use super::text::part_names;
use crate::{Band, Run};

const WIDTH: f64 = 960.0;
const LEFT: f64 = 110.0;
const BAR: f64 = 690.0;
const ROW: f64 = 38.0;
const THICK: f64 = 26.0;
/// What a number within a bar needs, in a drawing's units.
const ROOM: f64 = 46.0;

/// A piece of a bar.
struct Piece<'a> {
    class: &'a str,
    /// Of the whole bar.
    share: f64,
    inside: String,
    note: String,
}

/// A bar for each band of percentiles, of the shares of its parts, and the same in numbers.
pub(super) fn breakdown(id: &str, run: &Run) -> Markup {
    let names = part_names(run);
    if names.is_empty() {
        return html! { p.none { "Nothing is known of where the time went." } };
    }
    let classes = classes(&names);
    let bars = html! {
        @for (index, found) in run.breakdown.iter().enumerate() {
            @let top = ROW * index as f64 + 4.0;
            text class="label" x=(px(LEFT - 10.0)) y=(px(top + THICK / 2.0)) {
                (band(found.from, found.to))
            }
            (bar(top, &pieces(found, &names, &classes)))
            text class="total" x=(px(LEFT + BAR + 10.0)) y=(px(top + THICK / 2.0)) {
                (mean_ms(found.mean_us)) " ms on average"
            }
        }
    };
    let size = (WIDTH, ROW * run.breakdown.len() as f64);
    html! {
        figure {
            (legend(classes.iter().cloned().zip(names.iter().copied())))
            (drawing(id, size, "Where the time went",
                "A bar for each band of answers, fastest first: the shares of the parts of their mean \
                 latency. The table has the numbers.", &bars))
        }
        div.scroll tabindex="0" { table {
            caption { "Mean time of each part, ms" }
            thead { tr {
                th scope="col" { "answers by latency" }
                th.n scope="col" { "count" }
                @for name in &names { th.n scope="col" { (tame(name)) } }
                th.n scope="col" { "all" }
            } }
            tbody { @for found in &run.breakdown { tr {
                th scope="row" { (band(found.from, found.to)) }
                td.n { (count(found.count)) }
                @for name in &names { td.n { (part(found, name).map_or_else(String::new, mean_ms)) } }
                td.n { strong { (mean_ms(found.mean_us)) } }
            } } }
        } }
    }
}

fn part(band: &Band, name: &str) -> Option<f64> {
    let found = band.parts.iter().find(|part| part.name == name);
    found.map(|part| part.mean_us)
}

/// The client's parts and what is left are grey, the target's stages have colours.
fn classes(names: &[&str]) -> Vec<String> {
    let mut stages = 0;
    let class = |name: &&str| match *name {
        "lag" => "lag".to_owned(),
        "connection" => "connection".to_owned(),
        "rest" => "rest".to_owned(),
        _ => {
            stages += 1;
            format!("c{}", (stages - 1) % COLOURS)
        }
    };
    names.iter().map(class).collect()
}

fn pieces<'a>(found: &Band, names: &[&str], classes: &'a [String]) -> Vec<Piece<'a>> {
    // Of what is there, so that no bar is longer than the others whatever the record says.
    let time = |name: &str| {
        let time = part(found, name).unwrap_or(0.0);
        if time.is_finite() { time.max(0.0) } else { 0.0 }
    };
    let all: f64 = names.iter().map(|name| time(name)).sum();
    let shown = names.iter().zip(classes);
    let shown = shown.filter(|(name, _)| all > 0.0 && time(name) > 0.0);
    let piece = |(name, class): (&&str, &'a String)| {
        let (share, time) = (time(name) / all, mean_ms(time(name)));
        Piece {
            class,
            share,
            note: format!("{}: {time} ms, {} %", tame(name), percent(share)),
            inside: time,
        }
    };
    shown.map(piece).collect()
}

/// A bar of how many answers started in which way.
pub(super) fn starts(id: &str, run: &Run) -> Markup {
    let counts = run.starts.iter();
    let counts = counts.map(|(name, share)| (name, share.latency.count()));
    let counts: Vec<_> = counts.filter(|(_, count)| *count > 0).collect();
    let all = counts
        .iter()
        .fold(0u64, |all, (_, count)| all.saturating_add(*count));
    if all == 0 {
        return html! {};
    }
    let classes: Vec<String> = (0..counts.len())
        .map(|index| format!("c{}", index % COLOURS))
        .collect();
    let pieces: Vec<Piece<'_>> = counts
        .iter()
        .zip(&classes)
        .map(|((name, answers), class)| {
            let share = *answers as f64 / all as f64;
            Piece {
                class,
                share,
                inside: format!("{} %", percent(share)),
                note: format!(
                    "{}: {} answers, {} %",
                    tame(name),
                    count(*answers),
                    percent(share)
                ),
            }
        })
        .collect();
    let inside = html! {
        text class="label" x=(px(LEFT - 10.0)) y=(px(4.0 + THICK / 2.0)) { "all answers" }
        (bar(4.0, &pieces))
        text class="total" x=(px(LEFT + BAR + 10.0)) y=(px(4.0 + THICK / 2.0)) { (count(all)) }
    };
    let described: Vec<&str> = pieces.iter().map(|piece| piece.note.as_str()).collect();
    html! {
        figure {
            (legend(counts.iter().zip(&classes).map(|((name, _), class)| (class.clone(), name.as_str()))))
            (drawing(id, (WIDTH, ROW), "How answers started", &described.join("; "), &inside))
        }
    }
}

fn bar(top: f64, pieces: &[Piece<'_>]) -> Markup {
    let lefts = pieces.iter().scan(LEFT, |left, piece| {
        let here = *left;
        *left += piece.share * BAR;
        Some(here)
    });
    html! {
        @for (piece, left) in pieces.iter().zip(lefts) {
            @let width = piece.share * BAR;
            g class=(piece.class) {
                rect class="piece" x=(px(left)) y=(px(top)) width=(px(width)) height=(px(THICK)) {
                    title { (piece.note) }
                }
                @if width > ROOM {
                    text class="inside" x=(px(left + width / 2.0)) y=(px(top + THICK / 2.0)) {
                        (piece.inside)
                    }
                }
            }
        }
    }
}
