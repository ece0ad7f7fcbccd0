//! One attached snapshot: serves its faults, replays and populates. Always used under its lock.

mod moving;
#[cfg(test)]
mod tests;

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::thread;

use crate::faults::{Faults, Fill, Kind, Layout, Op};
use crate::fd::{CopySource, FaultEvent, Mode, Progress, Uffd};
use crate::mapping::{self, HostRange};
use crate::source::Origin;
use crate::stats::Counters;
use crate::{Error, PAGE_BYTES, Source, ranges};

/// Pages read at a time from a source that is not local.
const READ_PAGES: u64 = 64;
/// How often the kernel may say "try again" about one page before that is an error.
const MAX_RETRIES: u32 = 10_000;

/// What all parts of a session work with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tools<'a> {
    pub(crate) fd: &'a Uffd,
    pub(crate) counters: &'a Counters,
}

/// A snapshot under a guest's range.
#[derive(Debug)]
pub(crate) struct Attached {
    pub(crate) range: HostRange,
    pub(crate) source: Source,
    /// Whether faults in the range are ours.
    pub(crate) registered: bool,
    /// Whether the kernel is to note writes to copied pages.
    note_writes: bool,
    /// Whether the source failed: its pages are zero from then on.
    failed: bool,
    /// Chunks of a shared source that were moved in: what lies under them is not its file.
    pub(crate) moved: Arc<[Range<u64>]>,
}

impl Attached {
    /// The layout as a fault at `page` finds it.
    fn layout(&self, page: u64) -> Layout<'_> {
        let mut layout = self.source.layout();
        layout.local &= !self.moved.iter().any(|chunk| chunk.contains(&page));
        layout
    }

    /// Registers what lies over the source's memory file.
    fn register_file(&self, tools: Tools<'_>) -> Result<(), Error> {
        let all = 0..self.source.pages();
        for part in ranges::subtract(std::slice::from_ref(&all), &self.moved) {
            let part = self.range.part(&part)?;
            tools
                .fd
                .register(part.address(), part.bytes(), Mode::MinorAndMissing)?;
        }
        Ok(())
    }
}

/// What is attached, if anything is, and the memory that attachments reuse.
#[derive(Debug, Default)]
pub(crate) struct Session {
    attached: Option<Attached>,
    faults: Faults,
    buffer: Vec<u8>,
    /// Pages that the guest may hold alone: copied for it, or brought in by a fault, which a write
    /// may have been or may follow.
    held_pages: u64,
}

impl Session {
    pub(crate) fn attached(&self) -> Option<&Attached> {
        self.attached.as_ref()
    }

    pub(crate) fn faults(&self) -> &Faults {
        &self.faults
    }

    pub(crate) fn held_pages(&self) -> u64 {
        self.held_pages
    }

    /// Notes that so many pages were given back.
    pub(crate) fn gave_back(&mut self, pages: u64) {
        self.held_pages = self.held_pages.saturating_sub(pages);
    }

    pub(crate) fn attached_and_faults(&mut self) -> Option<(&Attached, &mut Faults)> {
        Some((self.attached.as_ref()?, &mut self.faults))
    }

    /// Whether the shared source is over the range, its faults are ours, and not one page is in.
    pub(crate) fn is_untouched(&self, range: &HostRange, source: &Source) -> bool {
        let ours = |attached: &&Attached| {
            attached.registered
                && !attached.failed
                && attached.source.id() == source.id()
                && attached.source.layout().local
                && attached.range.address() == range.address()
        };
        self.attached.as_ref().filter(ours).is_some() && self.faults.is_empty()
    }

    /// Begins anew with nothing of the source in.
    pub(crate) fn begin(&mut self, source: &Source, around_pages: u64) {
        self.faults.reset(source.pages(), around_pages);
        self.held_pages = 0;
    }

    /// Maps the source over the range, instead of what is there. The kernel serves its faults until
    /// it is registered; each fault brings in up to `around_pages` from then on.
    pub(crate) fn map(
        &mut self,
        tools: Tools<'_>,
        range: HostRange,
        source: &Source,
        around_pages: u64,
    ) -> Result<(), Error> {
        if let Some(old) = self
            .attached
            .take_if(|old| old.range.address() != range.address())
        {
            old.range.map_blank()?;
            tools.fd.wake(old.range.address(), old.range.bytes())?;
        }
        match source.origin() {
            Origin::Shared(file) => range.map_file(file)?,
            Origin::NotLocal(_) => range.map_blank()?,
        }
        // Whoever waited on the old mapping takes the fault again, on the new one.
        tools.fd.wake(range.address(), range.bytes())?;
        self.begin(source, around_pages);
        self.attached = Some(Attached {
            range,
            source: source.clone(),
            registered: false,
            note_writes: false,
            failed: false,
            moved: Arc::default(),
        });
        Ok(())
    }

    /// Registers the mapped range; faults are ours from now on.
    pub(crate) fn register(&mut self, tools: Tools<'_>, record: bool) -> Result<(), Error> {
        let attached = self.attached.as_mut().ok_or(Error::NotAttached)?;
        attached.note_writes = record && tools.fd.notes_writes;
        let mode = match attached.source.origin() {
            Origin::Shared(_) => Mode::MinorAndMissing,
            Origin::NotLocal(_) if attached.note_writes => Mode::MissingAndWritten,
            Origin::NotLocal(_) => Mode::Missing,
        };
        attached.note_writes = mode == Mode::MissingAndWritten;
        tools
            .fd
            .register(attached.range.address(), attached.range.bytes(), mode)?;
        attached.registered = true;
        if !attached.source.layout().local {
            // A host reader that came between mapping and registration was given zero pages.
            attached.range.drop_pages()?;
        }
        Ok(())
    }

    /// Brings in a plan's pages; returns how many.
    pub(crate) fn replay(&mut self, tools: Tools<'_>, steps: &[Fill]) -> Result<u64, Error> {
        let mut pages = 0;
        for step in steps {
            let filled = self.fill(tools, step, false)?;
            pages += filled;
            if matches!(step.op, Op::Copy | Op::CopyZero) {
                self.held_pages += filled;
            }
        }
        tools.counters.replayed_pages(pages);
        Ok(pages)
    }

    /// Brings in all that is not in yet and unregisters the range.
    pub(crate) fn populate(&mut self, tools: Tools<'_>) -> Result<(), Error> {
        let attached = self.attached.as_ref().ok_or(Error::NotAttached)?;
        if attached.registered {
            // Should it fail, the rest still comes in when it is asked for.
            self.fill_absent(tools)?;
            return self.release(tools);
        }
        if self.faults.absent(0).is_none() {
            return Ok(());
        }
        // Mapped only, or released by `give_up`. Pages of a memory file were served right by the
        // kernel since then; pages that are not local were not.
        if !attached.source.layout().local {
            return Err(Error::HandlerDead);
        }
        let registered = attached.register_file(tools);
        let filled = registered.and_then(|()| self.fill_absent(tools));
        // In any case: nobody would serve who faults now.
        filled.and(self.release(tools))
    }

    /// Brings in all that is not in yet.
    fn fill_absent(&mut self, tools: Tools<'_>) -> Result<(), Error> {
        let attached = self.attached.as_ref().ok_or(Error::NotAttached)?;
        let source = attached.source.clone();
        let layout = source.layout();
        let data_op = if layout.local { Op::Continue } else { Op::Copy };
        let mut from = 0;
        while let Some(run) = self.faults.absent(from) {
            from = run.end;
            let mut result = Ok(0);
            ranges::split(layout.data, run, layout.pages, |pages, is_data| {
                if result.is_ok() {
                    let op = if is_data { data_op } else { Op::Zero };
                    result = self.fill(tools, &Fill { op, pages }, true);
                }
            });
            result?;
        }
        Ok(())
    }

    /// Blanks the range and forgets the snapshot.
    pub(crate) fn detach(&mut self, tools: Tools<'_>) -> Result<(), Error> {
        let Some(attached) = self.attached.take() else {
            return Ok(());
        };
        let range = &attached.range;
        range.map_blank().inspect_err(|_| {
            // The next attach replaces the mapping; until then the kernel serves it.
            let _ = tools.fd.unregister(range.address(), range.bytes());
        })?;
        tools.fd.wake(range.address(), range.bytes())
    }

    /// Serves one fault. `report` learns of an error before the guest runs on.
    pub(crate) fn serve(&mut self, tools: Tools<'_>, event: FaultEvent, report: impl Fn(Error)) {
        let Some(page) = self.page_of(event.address) else {
            // Not ours any more: let it fault again.
            let _ = tools.fd.wake(event.address & !(PAGE_BYTES - 1), PAGE_BYTES);
            return;
        };
        match event.kind {
            Kind::Minor => tools.counters.faults_minor(1),
            Kind::Missing => tools.counters.faults_missing(1),
        }
        let Some(attached) = &self.attached else {
            return;
        };
        let mut fill = self.faults.fault(attached.layout(page), page, event.kind);
        if attached.failed && fill.op == Op::Copy {
            fill.op = Op::Zero;
        }
        let filled = self.fill(tools, &fill, true);
        self.held_pages += filled.as_ref().map_or(0, |pages| *pages);
        if let Err(error) = filled {
            report(error);
            if let Some(attached) = &mut self.attached {
                attached.failed = true;
            }
            // The invocation is void now; all that matters is that nobody hangs in it.
            let zero = Fill {
                op: Op::Zero,
                pages: page..page + 1,
            };
            if self.fill(tools, &zero, true).is_err() {
                let _ = self.release(tools);
            }
        }
    }

    /// The page of an address in the attached range, while its faults are ours.
    fn page_of(&self, address: u64) -> Option<u64> {
        let attached = self
            .attached
            .as_ref()
            .filter(|attached| attached.registered)?;
        let offset = address.checked_sub(attached.range.address())?;
        (offset < attached.range.bytes()).then_some(offset / PAGE_BYTES)
    }

    /// Unregisters the range: the kernel serves it from now on, and all who wait are woken.
    pub(crate) fn release(&mut self, tools: Tools<'_>) -> Result<(), Error> {
        let Some(attached) = &mut self.attached else {
            return Ok(());
        };
        attached.registered = false;
        let (address, bytes) = (attached.range.address(), attached.range.bytes());
        let unregistered = tools.fd.unregister(address, bytes);
        unregistered.and(tools.fd.wake(address, bytes))
    }

    /// Carries out one step; returns how many pages came in.
    fn fill(&mut self, tools: Tools<'_>, fill: &Fill, wake: bool) -> Result<u64, Error> {
        let Self {
            attached,
            faults,
            buffer,
            ..
        } = self;
        let attached = attached.as_ref().ok_or(Error::NotAttached)?;
        let mut filler = Filler {
            tools,
            attached,
            faults,
            wake,
        };
        match (fill.op, attached.source.origin()) {
            (Op::Copy, Origin::NotLocal(read)) => {
                let mut filled = 0;
                let mut at = fill.pages.start;
                while at < fill.pages.end {
                    let pages = (fill.pages.end - at).min(READ_PAGES);
                    buffer.resize((pages * PAGE_BYTES) as usize, 0);
                    read(at, buffer).map_err(|source| Error::ReadPages {
                        first_page: at,
                        pages,
                        source,
                    })?;
                    let chunk = Fill {
                        op: Op::Copy,
                        pages: at..at + pages,
                    };
                    filled += filler.run(&chunk, |page| {
                        CopySource::Bytes(&buffer[((page - at) * PAGE_BYTES) as usize..])
                    })?;
                    at += pages;
                }
                Ok(filled)
            }
            (Op::Copy, Origin::Shared(file)) => filler.run(fill, |page| {
                let (address, bytes) = file.view(page);
                CopySource::Mapped { address, bytes }
            }),
            _ => {
                let (address, bytes) = mapping::zero_buffer()?;
                filler.run(fill, |_| CopySource::Mapped { address, bytes })
            }
        }
    }
}

/// Drives the ioctl of one step to its end.
struct Filler<'a> {
    tools: Tools<'a>,
    attached: &'a Attached,
    faults: &'a mut Faults,
    wake: bool,
}

impl Filler<'_> {
    fn run<'s>(&mut self, fill: &Fill, from: impl Fn(u64) -> CopySource<'s>) -> Result<u64, Error> {
        let Fill { op, pages } = fill;
        let mut at = pages.start;
        let mut filled = 0;
        let mut retries = 0;
        let mut skipped = false;
        while at < pages.end {
            let progress = self.step(*op, at, pages.end, &from);
            match progress {
                Progress::Bytes(bytes) => {
                    let count = bytes / PAGE_BYTES;
                    self.count(*op, count);
                    self.faults.filled(at..at + count);
                    filled += count;
                    at += count;
                    retries = 0;
                }
                // Somebody else brought it in; its content is the same.
                Progress::Present => {
                    self.faults.filled(at..at + 1);
                    skipped = true;
                    at += 1;
                }
                // A page that the table calls data and the file does not hold is zero.
                Progress::Absent if *op == Op::Continue => {
                    let zero = Fill {
                        op: Op::Zero,
                        pages: at..at + 1,
                    };
                    filled += self.run(&zero, &from as &dyn Fn(u64) -> CopySource<'s>)?;
                    at += 1;
                }
                Progress::Again if retries < MAX_RETRIES => {
                    self.tools.counters.retries(1);
                    retries += 1;
                    thread::yield_now();
                }
                failed => return Err(self.error(*op, at..pages.end, failed)),
            }
        }
        if skipped && self.wake {
            let bytes = (pages.end - pages.start) * PAGE_BYTES;
            self.tools
                .fd
                .wake(self.attached.range.page(pages.start), bytes)?;
        }
        Ok(filled)
    }

    fn step<'s>(
        &self,
        op: Op,
        at: u64,
        end: u64,
        from: impl Fn(u64) -> CopySource<'s>,
    ) -> Progress {
        let Tools { fd, .. } = self.tools;
        let address = self.attached.range.page(at);
        let bytes = (end - at) * PAGE_BYTES;
        match op {
            Op::Continue => fd.fill_continue(address, bytes, self.wake),
            Op::Zero => fd.fill_zero(address, bytes, self.wake),
            Op::Copy | Op::CopyZero => fd.fill_copy(
                address,
                from(at),
                bytes,
                self.wake,
                self.attached.note_writes,
            ),
        }
    }

    fn count(&self, op: Op, pages: u64) {
        match op {
            Op::Continue => self.tools.counters.pages_continued(pages),
            Op::Zero => self.tools.counters.pages_zeroed(pages),
            Op::Copy | Op::CopyZero => self.tools.counters.pages_copied(pages),
        }
    }

    fn error(&self, op: Op, pages: Range<u64>, failed: Progress) -> Error {
        let operation = match op {
            Op::Continue => "UFFDIO_CONTINUE",
            Op::Zero => "UFFDIO_ZEROPAGE",
            Op::Copy | Op::CopyZero => "UFFDIO_COPY",
        };
        let address = self.attached.range.page(pages.start);
        let bytes = (pages.end - pages.start) * PAGE_BYTES;
        fill_error(operation, address, bytes, failed)
    }
}

fn fill_error(operation: &'static str, address: u64, bytes: u64, failed: Progress) -> Error {
    let error = io::Error::from_raw_os_error(failed.errno());
    Error::io(operation, address, bytes, error)
}
