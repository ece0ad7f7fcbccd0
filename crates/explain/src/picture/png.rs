//! Pictures as PNG.

use std::convert::Infallible;
use std::io;

use embedded_graphics::Drawable;
use embedded_graphics::draw_target::DrawTarget;
use embedded_graphics::geometry::{Point, Size};
use embedded_graphics::mono_font::MonoTextStyle;
use embedded_graphics::mono_font::ascii::{FONT_7X13, FONT_9X18_BOLD};
use embedded_graphics::pixelcolor::Rgb888;
use embedded_graphics::primitives::Rectangle;
use embedded_graphics::text::Text;

use super::canvas::Canvas;
use super::scene::{self, Colour, Scene};

/// The picture as the bytes of a PNG file.
///
/// # Errors
/// What the encoder says.
pub(super) fn render(scene: &Scene) -> io::Result<Vec<u8>> {
    let mut canvas = Canvas::new(scene.width, scene.height);
    match paint(scene, &mut canvas) {
        Ok(()) => {}
        Err(never) => match never {},
    }
    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, scene.width, scene.height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.add_text_chunk("Title".to_owned(), scene.title.clone())?;
    let mut writer = encoder.write_header()?;
    writer.write_image_data(&canvas.into_bytes())?;
    writer.finish()?;
    Ok(file)
}

fn paint(scene: &Scene, canvas: &mut Canvas) -> Result<(), Infallible> {
    canvas.clear(rgb(scene.paper))?;
    for (colour, areas) in &scene.areas {
        for area in areas {
            let corner = point(area.left, area.top);
            let size = Size::new(area.width, area.height);
            canvas.fill_solid(&Rectangle::new(corner, size), rgb(*colour))?;
        }
    }
    for line in &scene.lines {
        let font = match line.size {
            scene::Size::Title => &FONT_9X18_BOLD,
            scene::Size::Body => &FONT_7X13,
        };
        let style = MonoTextStyle::new(font, rgb(line.colour));
        Text::new(&line.text, point(line.left, line.baseline), style).draw(canvas)?;
    }
    Ok(())
}

fn rgb([red, green, blue]: Colour) -> Rgb888 {
    Rgb888::new(red, green, blue)
}

/// Pictures are some thousand pixels wide and high.
fn point(left: u32, top: u32) -> Point {
    Point::new(left.cast_signed(), top.cast_signed())
}
