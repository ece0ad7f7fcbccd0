//! Pictures as SVG.

use std::fmt::Write;

use super::scene::{Colour, Scene, Size};

/// The picture as the text of an SVG file.
pub(super) fn render(scene: &Scene) -> String {
    let mut svg = String::new();
    // Writing into text does not fail.
    let _ = write(scene, &mut svg);
    svg
}

fn write(scene: &Scene, svg: &mut String) -> std::fmt::Result {
    let (width, height) = (scene.width, scene.height);
    writeln!(
        svg,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" \
         width=\"{width}\" height=\"{height}\" role=\"img\" \
         font-family=\"ui-monospace, Menlo, Consolas, monospace\">"
    )?;
    writeln!(svg, "<title>{}</title>", escape(&scene.title))?;
    let paper = hex(scene.paper);
    writeln!(
        svg,
        "<rect width=\"{width}\" height=\"{height}\" fill=\"{paper}\"/>"
    )?;
    for (colour, areas) in &scene.areas {
        if areas.is_empty() {
            continue;
        }
        write!(svg, "<path fill=\"{}\" d=\"", hex(*colour))?;
        for area in areas {
            let (width, height) = (area.width, area.height);
            let (left, top) = (area.left, area.top);
            write!(svg, "M{left} {top}h{width}v{height}h-{width}z")?;
        }
        writeln!(svg, "\"/>")?;
    }
    for line in &scene.lines {
        let size = match line.size {
            Size::Title => "font-size=\"17\" font-weight=\"bold\"",
            Size::Body => "font-size=\"12\"",
        };
        writeln!(
            svg,
            "<text x=\"{}\" y=\"{}\" {size} fill=\"{}\" xml:space=\"preserve\">{}</text>",
            line.left,
            line.baseline,
            hex(line.colour),
            escape(&line.text)
        )?;
    }
    svg.push_str("</svg>\n");
    Ok(())
}

fn hex([red, green, blue]: Colour) -> String {
    format!("#{red:02x}{green:02x}{blue:02x}")
}

fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            // XML 1.0, 2.2: no other control characters may be in a document at all.
            c if c.is_control() && !matches!(c, '\t' | '\n' | '\r') => escaped.push('\u{FFFD}'),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_means_something_in_xml_is_escaped() {
        assert_eq!(
            escape("<a b=\"c\">&\0"),
            "&lt;a b=&quot;c&quot;&gt;&amp;\u{FFFD}"
        );
    }
}
