//! Moves staged chunks under the guest.

use std::sync::Arc;
use std::thread;

use super::{MAX_RETRIES, Session, Tools, fill_error};
use crate::fd::{Mode, Progress};
use crate::huge::{HUGE_BYTES, HugeArea};
use crate::mapping::HostRange;
use crate::stage::Stage;
use crate::{Error, PAGE_BYTES};

impl Session {
    /// Moves a stage's chunks in, if it has a set ready and this range can take it; returns how many
    /// pages that were. After an error the range must be mapped and registered anew.
    pub(crate) fn move_in(&mut self, tools: Tools<'_>, stage: &Stage) -> Result<u64, Error> {
        let attached = self.attached.as_mut().ok_or(Error::NotAttached)?;
        // Only whole huge pages are worth it.
        let is_aligned = attached.range.address().is_multiple_of(HUGE_BYTES);
        if !(is_aligned && tools.fd.moves) {
            return Ok(0);
        }
        let Some(set) = stage.take() else {
            return Ok(0);
        };
        let chunks = stage.chunks();
        let mut offset_bytes = 0;
        for chunk in chunks.iter() {
            let range = attached.range.part(chunk)?;
            if attached.source.layout().local {
                // The kernel moves from anonymous to anonymous memory only.
                range.map_blank()?;
                // Whoever waited on the file's mapping takes the fault again, on this one.
                tools.fd.wake(range.address(), range.bytes())?;
                tools
                    .fd
                    .register(range.address(), range.bytes(), Mode::Missing)?;
                // A host reader that came between the two was given zero pages.
                range.drop_pages()?;
            }
            move_pages(tools, &range, &set, offset_bytes)?;
            self.faults.filled(chunk.clone());
            offset_bytes += range.bytes();
        }
        attached.moved = Arc::clone(chunks);
        stage.give_back(set);
        tools.counters.pages_moved(offset_bytes / PAGE_BYTES);
        Ok(offset_bytes / PAGE_BYTES)
    }
}

/// Moves as much of a set as the range is long.
///
/// A page that is there already is an error, since nobody knows what it holds. Most likely it was
/// moved just now: where a host reader faults in the range meanwhile, Linux 6.18 may report EEXIST
/// for pages of the same call.
pub(super) fn move_pages(
    tools: Tools<'_>,
    range: &HostRange,
    set: &HugeArea,
    offset_bytes: u64,
) -> Result<(), Error> {
    let (mut done, mut retries) = (0, 0);
    while done < range.bytes() {
        let (address, bytes) = (range.address() + done, range.bytes() - done);
        match tools.fd.fill_move(address, set, offset_bytes + done, bytes) {
            Progress::Bytes(bytes) => (done, retries) = (done + bytes, 0),
            Progress::Again if retries < MAX_RETRIES => {
                tools.counters.retries(1);
                retries += 1;
                thread::yield_now();
            }
            failed => return Err(fill_error("UFFDIO_MOVE", address, bytes, failed)),
        }
    }
    Ok(())
}
