//! A run over time: rates, latency, and what was under way.

use maud::{Markup, html};

use super::axis::Axis;
use super::chart::{Area, drawing, px, steps};
use super::numbers::{ms, seconds, short};
use crate::{Histogram, Run, Slice};

/// More columns than this cannot be told apart.
const MAX_COLUMNS: usize = 300;
const SIZE: (f64, f64) = (960.0, 598.0);
const RATES: Area = panel(26.0, 140.0);
const LATENCY: Area = panel(214.0, 210.0);
const IN_FLIGHT: Area = panel(472.0, 80.0);
/// Shades of the heat map.
const SHADES: usize = 4;
/// Rows of the heat map.
const ROWS: usize = 42;

const fn panel(top: f64, height: f64) -> Area {
    Area {
        left: 64.0,
        top,
        width: 872.0,
        height,
    }
}

/// One or more slices, as wide as they are long.
struct Column {
    from_us: u64,
    to_us: u64,
    slice: Slice,
}

impl Column {
    fn per_second(&self, count: u64) -> f64 {
        count as f64 * 1e6 / (self.to_us - self.from_us).max(1) as f64
    }

    fn quantile_us(&self, share: f64) -> Option<f64> {
        let times = &self.slice.latency;
        (!times.is_empty()).then(|| times.quantile_us(share) as f64)
    }
}

/// The run's slices, so many together that they can be told apart.
fn columns(run: &Run) -> Vec<Column> {
    let slice_us = run.slice_us.max(1);
    let at_once = run.slices.len().div_ceil(MAX_COLUMNS).max(1);
    let mut columns = Vec::new();
    let mut from_us = 0u64;
    for phase in run.slices.chunk_by(|a, b| a.is_warmup == b.is_warmup) {
        for slices in phase.chunks(at_once) {
            let to_us = from_us.saturating_add(slice_us.saturating_mul(slices.len() as u64));
            let slice = together(slices);
            columns.push(Column {
                from_us,
                to_us,
                slice,
            });
            from_us = to_us;
        }
    }
    columns
}

fn together(slices: &[Slice]) -> Slice {
    let mut all = Slice::default();
    for slice in slices {
        all.is_warmup = slice.is_warmup;
        all.offered = all.offered.saturating_add(slice.offered);
        all.failed = all.failed.saturating_add(slice.failed);
        all.arrived = all.arrived.saturating_add(slice.arrived);
        all.in_flight_max = all.in_flight_max.max(slice.in_flight_max);
        all.latency.add(&slice.latency);
    }
    all
}

/// Three panels over the same time; a sentence where there is nothing to show.
pub(super) fn chart(id: &str, run: &Run) -> Markup {
    let columns = columns(run);
    let Some(last) = columns.last() else {
        return html! { p.none { "The run has no time series." } };
    };
    let x = Axis::seconds(last.to_us);
    let inside = html! {
        (warmup(&columns, &x))
        (rates(&columns, &x))
        (latency(&columns, &x))
        (in_flight(&columns, &x))
        text class="axis end" x=(px(RATES.right())) y=(px(SIZE.1 - 6.0)) {
            "seconds after the run began"
        }
        (notes(&columns, &x))
    };
    let described = format!(
        "{} columns of {} each, from the beginning of the run.",
        columns.len(),
        seconds(columns.first().map_or(0, |first| first.to_us))
    );
    drawing(id, SIZE, "The run over time", &described, &inside)
}

/// The part of the drawing in which nothing was measured yet.
fn warmup(columns: &[Column], x: &Axis) -> Markup {
    let warm = columns.iter().take_while(|column| column.slice.is_warmup);
    let Some(end_us) = warm.last().map(|column| column.to_us) else {
        return html! {};
    };
    html! {
        @for area in [RATES, LATENCY, IN_FLIGHT] {
            rect class="warmup" x=(px(area.left)) y=(px(area.top))
                width=(px(area.x(x, end_us as f64) - area.left)) height=(px(area.height)) {}
        }
        text class="axis" x=(px(RATES.left + 6.0)) y=(px(RATES.top + RATES.height / 2.0)) { "warm-up" }
    }
}

fn rates(columns: &[Column], x: &Axis) -> Markup {
    let offered = |column: &Column| column.per_second(column.slice.offered);
    let arrived = |column: &Column| column.per_second(column.slice.arrived);
    let failed = |column: &Column| column.per_second(column.slice.failed);
    let most = columns
        .iter()
        .map(|column| offered(column).max(arrived(column)))
        .fold(0.0, f64::max);
    let y = Axis::linear(most);
    let path = |value: &dyn Fn(&Column) -> f64| line(columns, x, &y, RATES, &|c| Some(value(c)));
    html! {
        (RATES.grid(x, &y, false))
        (heading(RATES, "Requests per second", &[("c1 dashed", "meant to be sent"), ("c0", "answered"), ("c3", "failed")]))
        path class="c1 line dashed" d=(path(&offered)) {}
        path class="c0 line" d=(path(&arrived)) {}
        path class="c3 line" d=(path(&failed)) {}
    }
}

fn latency(columns: &[Column], x: &Axis) -> Markup {
    let full = || columns.iter().map(|column| &column.slice.latency);
    let full = || full().filter(|times| !times.is_empty());
    let least = full().map(Histogram::min_us).min();
    let most = full().map(Histogram::max_us).max();
    let y = Axis::log_ms(least.unwrap_or(1000), most.unwrap_or(1000));
    let quantiles = [
        ("c3", "longest", 1.0),
        ("c4", "p99", 0.99),
        ("c0", "p50", 0.5),
    ];
    let names = quantiles.map(|(class, name, _)| (class, name));
    html! {
        (LATENCY.grid(x, &y, false))
        @for (shade, path) in heat(columns, x, &y).iter().enumerate() {
            @if !path.is_empty() {
                path class=(format!("heat heat{shade}")) d=(path) {}
            }
        }
        (heading(LATENCY, "Latency, ms (shaded where the answers are)", &names))
        @for (class, _, share) in quantiles {
            path class=(format!("{class} line"))
                d=(line(columns, x, &y, LATENCY, &|column| column.quantile_us(share))) {}
        }
    }
}

fn in_flight(columns: &[Column], x: &Axis) -> Markup {
    let most = columns.iter().map(|column| column.slice.in_flight_max);
    let y = Axis::linear(most.max().unwrap_or(0) as f64);
    let at_once = |column: &Column| Some(column.slice.in_flight_max as f64);
    html! {
        (IN_FLIGHT.grid(x, &y, true))
        (heading(IN_FLIGHT, "Requests under way at once, at most", &[]))
        path class="c2 line" d=(line(columns, x, &y, IN_FLIGHT, &at_once)) {}
    }
}

fn line(
    columns: &[Column],
    x: &Axis,
    y: &Axis,
    area: Area,
    value: &dyn Fn(&Column) -> Option<f64>,
) -> String {
    steps(columns.iter().map(|column| {
        (
            area.x(x, column.from_us as f64),
            area.x(x, column.to_us as f64),
            value(column).map(|value| area.y(y, value)),
        )
    }))
}

/// A panel's name, and at its right end the names of its lines.
fn heading(area: Area, name: &str, lines: &[(&str, &str)]) -> Markup {
    const WIDTH: f64 = 150.0;
    let y = area.top - 10.0;
    let left = |index: usize| area.right() - WIDTH * (lines.len() - index) as f64;
    html! {
        text class="panel" x=(px(area.left)) y=(px(y)) { (name) }
        @for (index, (class, name)) in lines.iter().enumerate() {
            path class=(format!("{class} line key")) d=(format!("M{} {}h16", px(left(index)), px(y - 4.0))) {}
            text class="axis" x=(px(left(index) + 22.0)) y=(px(y)) { (name) }
        }
    }
}

/// A path for each shade: where many answers were, by time and latency. Each column is compared
/// with its own fullest row, so that load does not look like latency.
fn heat(columns: &[Column], x: &Axis, y: &Axis) -> [String; SHADES] {
    let mut paths: [String; SHADES] = Default::default();
    let height = LATENCY.height / ROWS as f64;
    for column in columns {
        let mut rows = [0u64; ROWS];
        for (us, count) in column.slice.latency.counts() {
            let row = (y.share(us as f64) * ROWS as f64) as usize;
            if let Some(row) = rows.get_mut(row.min(ROWS - 1)) {
                *row = row.saturating_add(count);
            }
        }
        let fullest = rows.iter().copied().max().unwrap_or(0);
        let left = LATENCY.x(x, column.from_us as f64);
        let width = LATENCY.x(x, column.to_us as f64) - left;
        for (index, count) in rows.into_iter().enumerate().filter(|(_, count)| *count > 0) {
            let share = ((count as f64).ln_1p() / (fullest as f64).ln_1p()).min(1.0);
            let shade = ((share * SHADES as f64).ceil() as usize).clamp(1, SHADES) - 1;
            let top = LATENCY.bottom() - height * (index + 1) as f64;
            if let Some(path) = paths.get_mut(shade) {
                let (left, top) = (px(left), px(top));
                let (width, height) = (px(width), px(height));
                path.push_str(&format!("M{left} {top}h{width}v{height}h-{width}z"));
            }
        }
    }
    paths
}

/// Invisible columns that say their numbers to a pointer.
fn notes(columns: &[Column], x: &Axis) -> Markup {
    let time = |times: &Histogram, share| match times.count() {
        0 => "–".to_owned(),
        _ => ms(times.quantile_us(share)),
    };
    html! {
        @for column in columns {
            @let (left, right) = (RATES.x(x, column.from_us as f64), RATES.x(x, column.to_us as f64));
            @let slice = &column.slice;
            rect class="note" x=(px(left)) y=(px(RATES.top))
                width=(px(right - left)) height=(px(IN_FLIGHT.bottom() - RATES.top)) {
                title {
                    (seconds(column.from_us)) " to " (seconds(column.to_us)) "\n"
                    "meant to be sent " (short(column.per_second(slice.offered))) "/s, answered "
                    (short(column.per_second(slice.arrived))) "/s, failed "
                    (short(column.per_second(slice.failed))) "/s\n"
                    "p50 " (time(&slice.latency, 0.5)) " ms, p99 " (time(&slice.latency, 0.99))
                    " ms, longest " (time(&slice.latency, 1.0)) " ms\n"
                    "at most " (slice.in_flight_max) " under way"
                }
            }
        }
    }
}
