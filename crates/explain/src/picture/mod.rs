//! A picture of guest memory.

mod canvas;
mod png;
mod scene;
mod svg;

use std::ops::Range;
use std::path::Path;

use crate::contents::{self, Page};
use crate::error::{Error, Result};
use crate::inspection::Inspection;
use crate::spans;

/// The most cells of a picture; larger guests have several pages in a cell.
const MAX_CELLS: u64 = 1 << 14;

/// What a picture shows of a page; of several pages in one cell, the one that comes last here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Touch {
    /// Nothing but zeros, and not touched.
    Zero,
    /// As the image or the parent has it, and not touched by the first runs.
    Untouched,
    /// Differs from the parent or the image, and not touched by the first runs.
    Dirtied,
    /// The first runs only read it.
    Read,
    /// The first runs wrote it.
    Written,
}

impl Touch {
    const ALL: [Self; 5] = [
        Self::Zero,
        Self::Untouched,
        Self::Dirtied,
        Self::Read,
        Self::Written,
    ];
}

/// A picture of guest memory: a cell for each page, coloured by what happened to it.
///
/// Pages that the first runs wrote and those that they only read are told from those that they left
/// alone: pages that are as the image, or the parent, has them, pages that differ from it, and zero
/// pages. Guests of more than 64 MiB have several pages in a cell, which shows the most remarkable.
#[derive(Debug)]
pub struct Picture {
    title: String,
    subtitle: String,
    base: u64,
    pages_per_cell: u64,
    cells: Vec<Touch>,
    /// Pages of each kind, in the order of [`Touch::ALL`].
    counts: [u64; 5],
    has_working_set: bool,
    has_parent: bool,
}

impl Picture {
    /// Draws the memory of `inspection`. What was dirtied is told by comparing with `parent`, or
    /// with the image as it was loaded where there is none.
    ///
    /// # Errors
    /// [`Error::Store`] when memory cannot be read or is damaged.
    pub fn of(inspection: &Inspection, parent: Option<&Inspection>) -> Result<Self> {
        let dirtied = match parent {
            Some(parent) => differing(inspection, parent)?,
            None => not_as_loaded(inspection)?,
        };
        let pages = inspection.memory.pages();
        let set = inspection.working_set.as_ref();
        let (read, written) = set.map_or((&[][..], &[][..]), |set| (&set.read, &set.written));
        let data = inspection.memory.data();

        let (pages_per_cell, cells) = cells(
            pages,
            &[
                (data, Touch::Untouched),
                (&dirtied, Touch::Dirtied),
                (read, Touch::Read),
                (written, Touch::Written),
            ],
        );

        let touched = spans::union(read, written);
        let within_touched = |ranges: &[Range<u64>]| -> u64 {
            let common = ranges
                .iter()
                .map(|range| spans::count_within(&touched, range));
            common.sum()
        };
        let dirtied_alone = spans::count(&dirtied) - within_touched(&dirtied);
        let data_alone = spans::count(data) - within_touched(data);
        let untouched = data_alone.saturating_sub(dirtied_alone);
        let zero = pages.saturating_sub(spans::count(&touched) + dirtied_alone + untouched);
        let counts = [
            zero,
            untouched,
            dirtied_alone,
            spans::count(read),
            spans::count(written),
        ];
        let manifest = &inspection.manifest;
        Ok(Self {
            title: format!("{}@{}", manifest.function, manifest.id),
            subtitle: format!(
                "guest memory from {:#x} on, {pages} pages of 4 KiB",
                inspection.base
            ),
            base: inspection.base,
            pages_per_cell,
            cells,
            counts,
            has_working_set: set.is_some(),
            has_parent: parent.is_some(),
        })
    }

    /// Writes the picture; the ending of the name, `.svg` or `.png`, says as what.
    ///
    /// # Errors
    /// [`Error::UnknownPicture`] for any other ending, [`Error::Write`] when the file cannot be
    /// written.
    pub fn write(&self, path: &Path) -> Result<()> {
        Self::check(path)?;
        let scene = scene::draw(self);
        let is_svg = path.extension().is_some_and(|ending| ending == "svg");
        let bytes = match is_svg {
            true => svg::render(&scene).into_bytes(),
            false => png::render(&scene).map_err(|source| Error::Write {
                path: path.to_owned(),
                source,
            })?,
        };
        std::fs::write(path, bytes).map_err(|source| Error::Write {
            path: path.to_owned(),
            source,
        })
    }

    /// Whether `path` has an ending that says which kind of picture it is to be, for those who
    /// want to know before they draw it.
    ///
    /// # Errors
    /// [`Error::UnknownPicture`].
    pub fn check(path: &Path) -> Result<()> {
        match path.extension() {
            Some(ending) if ending == "svg" || ending == "png" => Ok(()),
            _ => Err(Error::UnknownPicture {
                path: path.to_owned(),
            }),
        }
    }
}

/// How many pages there are in a cell, and what every cell shows of a memory of `pages`.
fn cells(pages: u64, kinds: &[(&[Range<u64>], Touch)]) -> (u64, Vec<Touch>) {
    let pages_per_cell = pages.div_ceil(MAX_CELLS).max(1).next_power_of_two();
    let mut cells = vec![Touch::Zero; pages.div_ceil(pages_per_cell) as usize];
    for (ranges, touch) in kinds {
        for range in *ranges {
            let first = (range.start / pages_per_cell) as usize;
            let end = (range.end.div_ceil(pages_per_cell) as usize).min(cells.len());
            for cell in cells.get_mut(first..end).unwrap_or_default() {
                *cell = (*cell).max(*touch);
            }
        }
    }
    (pages_per_cell, cells)
}

/// Pages that differ from the parent's, in ranges.
fn differing(inspection: &Inspection, parent: &Inspection) -> Result<Vec<Range<u64>>> {
    let mut found = Vec::new();
    let compare = |page: u64, ours: &Page, theirs: &Page| {
        if ours != theirs && spans::contains(inspection.memory.data(), page) {
            spans::push(&mut found, page);
        }
    };
    contents::for_each_pair(&inspection.memory, &parent.memory, compare)?;
    let end = parent.memory.pages();
    for range in inspection.memory.data() {
        (range.start.max(end)..range.end).for_each(|page| spans::push(&mut found, page));
    }
    Ok(found)
}

/// Stored pages that are not as the loader has put them there, in ranges.
fn not_as_loaded(inspection: &Inspection) -> Result<Vec<Range<u64>>> {
    let mut found = Vec::new();
    let mut loaded = [0; dormouse_snapshot::PAGE_BYTES];
    let memory = &inspection.memory;
    contents::for_each_page(memory, memory.data(), |page, bytes| {
        let address = inspection.addresses(page).start;
        inspection.image.loaded_page(address, &mut loaded);
        if *bytes != loaded {
            spans::push(&mut found, page);
        }
    })?;
    Ok(found)
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::single_range_in_vec_init,
        reason = "lists of one range are meant"
    )]
    use super::*;

    #[test]
    fn the_largest_guest_has_as_many_cells_as_one_of_64_mib() {
        let data = [0..1, 5000..5001];
        let kinds = [
            (&data[..], Touch::Untouched),
            (&[4096..4097], Touch::Written),
        ];
        let (pages_per_cell, large) = cells(dormouse_snapshot::MAX_MEMORY_PAGES, &kinds);
        assert_eq!((pages_per_cell, large.len()), (4096, 1 << 14));
        assert_eq!(large[..3], [Touch::Untouched, Touch::Written, Touch::Zero]);
        let (pages_per_cell, small) = cells(1 << 14, &kinds);
        assert_eq!((pages_per_cell, small.len()), (1, 1 << 14));
        assert_eq!(small[4096], Touch::Written);
        assert_eq!(small[5000], Touch::Untouched);
        // Ranges beyond the end are nowhere.
        assert_eq!(cells(3, &[(&[2..9], Touch::Read)]).1[2], Touch::Read);
        assert_eq!(cells(3, &[(&[7..9], Touch::Read)]).1, [Touch::Zero; 3]);
    }
}
