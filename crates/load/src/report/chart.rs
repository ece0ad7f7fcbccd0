//! What all charts are drawn with: SVG that the page's style sheet colours.

use maud::{Markup, html};

use super::axis::Axis;

/// Colours that the style sheet has for series.
pub(super) const COLOURS: usize = 7;

/// A rectangle of a drawing in which values are shown, in the drawing's units.
#[derive(Debug, Clone, Copy)]
pub(super) struct Area {
    pub(super) left: f64,
    pub(super) top: f64,
    pub(super) width: f64,
    pub(super) height: f64,
}

impl Area {
    pub(super) fn x(&self, axis: &Axis, value: f64) -> f64 {
        self.left + axis.share(value) * self.width
    }

    pub(super) fn y(&self, axis: &Axis, value: f64) -> f64 {
        self.bottom() - axis.share(value) * self.height
    }

    pub(super) fn right(&self) -> f64 {
        self.left + self.width
    }

    pub(super) fn bottom(&self) -> f64 {
        self.top + self.height
    }

    /// Lines and names of both axes; those of x only where they are wanted.
    pub(super) fn grid(&self, x: &Axis, y: &Axis, with_x: bool) -> Markup {
        html! {
            g class="grid" aria-hidden="true" {
                @for (value, name) in &y.ticks {
                    @let at = px(self.y(y, *value));
                    path d=(format!("M{} {at}H{}", px(self.left), px(self.right()))) {}
                    text class="tick y" x=(px(self.left - 8.0)) y=(at) { (name) }
                }
                @for (value, name) in &x.ticks {
                    @let at = px(self.x(x, *value));
                    path d=(format!("M{at} {}V{}", px(self.top), px(self.bottom()))) {}
                    @if with_x {
                        text class="tick x" x=(at) y=(px(self.bottom() + 18.0)) { (name) }
                    }
                }
            }
        }
    }
}

/// A drawing that scales with the page, and says what it shows to those who cannot see it.
pub(super) fn drawing(
    id: &str,
    (width, height): (f64, f64),
    title: &str,
    description: &str,
    inside: &Markup,
) -> Markup {
    let (title_id, description_id) = (format!("{id}-title"), format!("{id}-desc"));
    html! {
        div.scroll tabindex="0" {
            svg id=(id) role="img" aria-labelledby=(format!("{title_id} {description_id}"))
                viewBox=(format!("0 0 {} {}", px(width), px(height))) {
                title id=(title_id) { (title) }
                desc id=(description_id) { (description) }
                (inside)
            }
        }
    }
}

/// The names of colours, above or below a drawing. Each is a colour's class and a name.
pub(super) fn legend<'a>(names: impl IntoIterator<Item = (String, &'a str)>) -> Markup {
    html! {
        ul.legend {
            @for (class, name) in names {
                li { span class=(format!("swatch {class}")) {} (super::numbers::tame(name)) }
            }
        }
    }
}

/// The class of the series with this number. Colours come again where there are more series.
pub(super) fn colour(index: usize) -> String {
    match index / COLOURS {
        0 => format!("c{index}"),
        again => format!("c{} again{}", index % COLOURS, again.min(2)),
    }
}

/// The path through points.
pub(super) fn through(points: impl IntoIterator<Item = (f64, f64)>) -> String {
    let mut path = String::new();
    for (x, y) in points {
        let to = if path.is_empty() { 'M' } else { 'L' };
        path.push_str(&format!("{to}{} {}", px(x), px(y)));
    }
    path
}

/// The path along steps, each from one x to another at a height; it breaks where there is none.
pub(super) fn steps(steps: impl IntoIterator<Item = (f64, f64, Option<f64>)>) -> String {
    let mut path = String::new();
    let mut is_drawing = false;
    for (from, to, height) in steps {
        if let Some(y) = height {
            if is_drawing {
                path.push_str(&format!("V{}", px(y)));
            } else {
                path.push_str(&format!("M{} {}", px(from), px(y)));
            }
            path.push_str(&format!("H{}", px(to)));
        }
        is_drawing = height.is_some();
    }
    path
}

/// A length in a drawing, to a tenth of its unit.
pub(super) fn px(value: f64) -> String {
    if !value.is_finite() {
        return "0".to_owned();
    }
    let text = format!("{value:.1}");
    text.strip_suffix(".0").unwrap_or(&text).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_break_where_there_is_nothing() {
        let path = steps([
            (0.0, 1.0, Some(5.0)),
            (1.0, 2.0, Some(7.0)),
            (2.0, 3.0, None),
            (3.0, 4.0, Some(6.25)),
        ]);
        assert_eq!(path, "M0 5H1V7H2M3 6.2H4");
        assert_eq!(steps([(0.0, 1.0, None)]), "");
    }

    #[test]
    fn lengths_are_always_numbers() {
        assert_eq!(
            [f64::NAN, f64::INFINITY, 1.26, -3.0].map(px),
            ["0", "0", "1.3", "-3"]
        );
        assert_eq!(through([(1.0, 2.0), (3.0, 4.5)]), "M1 2L3 4.5");
    }

    #[test]
    fn text_in_drawings_is_text() {
        let hostile = "\"><script>alert(1)</script>";
        let svg = drawing(
            "a",
            (10.0, 10.0),
            hostile,
            hostile,
            &legend([(colour(8), hostile)]),
        );
        let svg = svg.into_string();
        assert!(!svg.contains("<script"), "{svg}");
        assert_eq!(svg.matches("&lt;script&gt;").count(), 3, "{svg}");
        assert!(svg.contains("swatch c1 again1"), "{svg}");
    }
}
