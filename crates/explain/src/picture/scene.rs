//! Where everything stands in a picture, whatever it is written as.

use super::{Picture, Touch};

/// Cells in a row.
const COLUMNS: usize = 128;
/// A cell with the gap behind it, and without.
const PITCH: u32 = 7;
const CELL: u32 = 6;
/// Room around the cells: addresses stand on the left, the title above.
const LEFT: u32 = 128;
const RIGHT: u32 = 28;
const TOP: u32 = 76;
/// Below the cells: a line for each kind.
const LEGEND_TOP: u32 = 26;
const LEGEND_LINE: u32 = 22;
const BOTTOM: u32 = 28;
/// Rows between two addresses.
const ROWS_PER_LABEL: usize = 16;

/// A colour, red, green and blue.
pub(super) type Colour = [u8; 3];

const PAPER: Colour = [0xFF, 0xFF, 0xFF];
const INK: Colour = [0x1F, 0x29, 0x33];
const FAINT_INK: Colour = [0x66, 0x72, 0x7F];

/// A rectangle, in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Area {
    pub(super) left: u32,
    pub(super) top: u32,
    pub(super) width: u32,
    pub(super) height: u32,
}

/// How large a text is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Size {
    Title,
    Body,
}

/// A line of text.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) left: u32,
    /// Where the letters stand.
    pub(super) baseline: u32,
    pub(super) size: Size,
    pub(super) colour: Colour,
    pub(super) text: String,
}

/// A whole picture.
#[derive(Debug)]
pub(super) struct Scene {
    pub(super) width: u32,
    pub(super) height: u32,
    pub(super) paper: Colour,
    pub(super) title: String,
    /// Areas by colour, drawn one after the other.
    pub(super) areas: Vec<(Colour, Vec<Area>)>,
    pub(super) lines: Vec<Line>,
}

/// Told apart by brightness as well, for those who see few colours.
fn colour(touch: Touch) -> Colour {
    match touch {
        Touch::Zero => [0xEE, 0xF1, 0xF4],
        Touch::Untouched => [0xB4, 0xC0, 0xCC],
        Touch::Dirtied => [0xF2, 0xB1, 0x34],
        Touch::Read => [0x2F, 0x80, 0xC9],
        Touch::Written => [0xB8, 0x1D, 0x4F],
    }
}

fn meaning(picture: &Picture, touch: Touch) -> String {
    let origin = match picture.has_parent {
        true => "the parent",
        false => "the loaded image",
    };
    match touch {
        Touch::Zero => "zero: stored nowhere".to_owned(),
        Touch::Untouched => format!("untouched: as in {origin}"),
        Touch::Dirtied => format!("dirtied: differs from {origin}, not in the working set"),
        Touch::Read => "read set: only read by the first runs".to_owned(),
        Touch::Written => "write set: written by the first runs".to_owned(),
    }
}

/// Puts everything in its place.
pub(super) fn draw(picture: &Picture) -> Scene {
    let rows = picture.cells.len().div_ceil(COLUMNS);
    // Cells are few: see `MAX_CELLS`.
    let cells_height = rows as u32 * PITCH;
    let width = LEFT + COLUMNS as u32 * PITCH + RIGHT;
    let legend = TOP + cells_height + LEGEND_TOP;
    let height = legend + (Touch::ALL.len() as u32 + 1) * LEGEND_LINE + BOTTOM;

    let mut areas = Vec::new();
    for touch in Touch::ALL {
        let cells = picture.cells.iter().enumerate();
        let here = cells.filter(|(_, found)| **found == touch);
        let here: Vec<_> = here.map(|(at, _)| cell(at)).collect();
        areas.push((colour(touch), here));
    }

    let line = |left, baseline, colour, text: String| Line {
        left,
        baseline,
        size: Size::Body,
        colour,
        text,
    };
    let mut lines = vec![
        Line {
            left: LEFT,
            baseline: 34,
            size: Size::Title,
            colour: INK,
            text: picture.title.clone(),
        },
        line(LEFT, 56, FAINT_INK, picture.subtitle.clone()),
    ];
    for row in (0..rows).step_by(ROWS_PER_LABEL) {
        let offset = (row * COLUMNS) as u64 * picture.pages_per_cell * 4096;
        let address = format!("{:#x}", picture.base.saturating_add(offset));
        let shown = address.chars().count() as u32 * 7;
        let left = (LEFT - 12).saturating_sub(shown);
        lines.push(line(left, TOP + row as u32 * PITCH + 9, FAINT_INK, address));
    }
    // The most remarkable first.
    for (place, touch) in Touch::ALL.into_iter().rev().enumerate() {
        let top = legend + place as u32 * LEGEND_LINE;
        let swatch = Area {
            left: LEFT,
            top,
            width: 12,
            height: 12,
        };
        areas.push((colour(touch), vec![swatch]));
        let count = picture.counts[touch as usize];
        let meaning = meaning(picture, touch);
        let text = format!("{count:>9} pages  {meaning}");
        lines.push(line(LEFT + 20, top + 10, INK, text));
    }
    let note = legend + Touch::ALL.len() as u32 * LEGEND_LINE + 16;
    let mut about = match picture.pages_per_cell {
        1 => "a cell is a page".to_owned(),
        pages => format!("a cell is {pages} pages and shows the most remarkable"),
    };
    if !picture.has_working_set {
        about += "; nothing has run yet, so there is no working set";
    }
    lines.push(line(LEFT, note, FAINT_INK, about));
    Scene {
        width,
        height,
        paper: PAPER,
        title: picture.title.clone(),
        areas,
        lines,
    }
}

fn cell(at: usize) -> Area {
    let (row, column) = ((at / COLUMNS) as u32, (at % COLUMNS) as u32);
    Area {
        left: LEFT + column * PITCH,
        top: TOP + row * PITCH,
        width: CELL,
        height: CELL,
    }
}
