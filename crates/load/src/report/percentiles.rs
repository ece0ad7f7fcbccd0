//! How latencies are distributed: curves over percentiles.

use maud::{Markup, html};

use super::axis::{Axis, nines, nines_of};
use super::chart::{Area, drawing, legend, px, through};
use super::numbers::{ms, plain_percent, tame};
use crate::Histogram;

const SIZE: (f64, f64) = (960.0, 372.0);
const AREA: Area = Area {
    left: 64.0,
    top: 18.0,
    width: 872.0,
    height: 300.0,
};
/// Points on a curve.
const POINTS: u32 = 240;
/// Which of them are marked and say what they are.
const MARKED: [f64; 6] = [0.5, 0.9, 0.99, 0.999, 0.9999, 0.99999];

/// A distribution with its name and the class of its colour.
pub(super) struct Curve<'a> {
    pub(super) name: &'a str,
    pub(super) class: String,
    pub(super) times: &'a Histogram,
}

/// The curves over percentiles, both axes logarithmic; a sentence where there are none.
pub(super) fn chart(id: &str, title: &str, curves: &[Curve<'_>]) -> Markup {
    let full = || curves.iter().filter(|curve| !curve.times.is_empty());
    let count = full().map(|curve| curve.times.count()).max();
    let Some(count) = count else {
        return html! { p.none { "No good answer, hence no latency." } };
    };
    let least = full().map(|curve| curve.times.min_us()).min();
    let most = full().map(|curve| curve.times.max_us()).max();
    let (x, y) = (
        Axis::nines(count),
        Axis::log_ms(least.unwrap_or(1), most.unwrap_or(1)),
    );
    let inside = html! {
        (AREA.grid(&x, &y, true))
        text class="axis" x=(px(AREA.left)) y="10" { "ms" }
        text class="axis end" x=(px(AREA.right())) y=(px(AREA.bottom() + 44.0)) {
            "share of answers that took no longer"
        }
        @for curve in full() {
            g class=(curve.class) {
                path class="line" d=(through(points(curve.times, &x, &y))) {}
                @for (at, us, name) in marks(curve.times) {
                    circle class="mark" r="3.5" cx=(px(AREA.x(&x, at))) cy=(px(AREA.y(&y, us as f64))) {
                        title { (tame(curve.name)) ", " (name) ": " (ms(us)) " ms" }
                    }
                }
            }
        }
    };
    let described = full().map(|curve| {
        let at = |share| ms(curve.times.quantile_us(share));
        format!(
            "{}: 50 % within {} ms, 99 % within {} ms, all within {} ms.",
            tame(curve.name),
            at(0.5),
            at(0.99),
            at(1.0)
        )
    });
    let described = described.collect::<Vec<_>>().join(" ");
    html! {
        figure {
            (legend(curves.iter().map(|curve| (curve.class.clone(), curve.name))))
            (drawing(id, SIZE, title, &described, &inside))
        }
    }
}

/// Where the curve goes: to the greatest time, which is as rare as one in all.
fn points(times: &Histogram, x: &Axis, y: &Axis) -> Vec<(f64, f64)> {
    let end = nines_of(times.count());
    let inner = (0..POINTS).map(|index| {
        let at = end * f64::from(index) / f64::from(POINTS);
        (at, times.quantile_us(1.0 - 10f64.powf(-at)))
    });
    inner
        .chain([(end, times.max_us())])
        .map(|(at, us)| (AREA.x(x, at), AREA.y(y, us as f64)))
        .collect()
}

/// The percentiles that so many times can tell apart, and the greatest time.
fn marks(times: &Histogram) -> Vec<(f64, u64, String)> {
    let end = nines_of(times.count());
    let told = MARKED.into_iter().filter(|share| nines(*share) < end);
    let told = told.map(|share| {
        let name = format!("{} %", plain_percent(share));
        (nines(share), times.quantile_us(share), name)
    });
    told.chain([(end, times.max_us(), "longest".to_owned())])
        .collect()
}
