//! One invocation by bare system calls, on the VM of an engine.

use std::ops::Range;

use dormouse_abi::{
    HEADER_BYTES, HeadWriter, Header, INLINE_BYTES, Kind, Location, Sizes, field_bytes,
};
use dormouse_pager::PAGE_BYTES;
use dormouse_pool::{Engine, Parts, Request};

use super::plan;
use crate::Error;
use crate::floor::{BareClone, Machine, State, Step};

type Page = [u8; PAGE_BYTES as usize];

/// What a floor needs to answer one certain request again and again: everything is known beforehand.
pub(super) struct Bare {
    machine: Machine,
    parts: Parts,
    state: State,
    /// What brings in the working set.
    steps: Vec<Step>,
    /// What the request changes in memory.
    written: Vec<Range<u64>>,
    /// The mailbox with the request in it.
    mailbox: Page,
}

impl Bare {
    /// Looks at an engine that has learned `request`. A fresh clone is restored and run for that.
    pub(super) fn new(engine: &mut Engine, request: &Request) -> Result<Self, Error> {
        let missing = |what: &str| Error::Answer {
            what: "the engine".to_owned(),
            answer: format!("it has no {what}"),
        };
        let set = engine.working_set().ok_or_else(|| missing("working set"))?;
        engine.restore()?;
        let parts = engine.parts()?.ok_or_else(|| missing("clone at hand"))?;
        let machine = Machine::new(&parts)?;
        let state = machine.state()?;
        let mailbox = with_request(&machine.page(parts.mailbox_page), request)
            .ok_or_else(|| missing("room for the request in its mailbox"))?;

        engine.restore()?;
        super::lab::good("the engine", engine.run(request)?)?;
        let changed = engine.changed_pages()?;
        // That look brought in all of the guest's memory.
        engine.restore()?;
        let written: Vec<u64> = set.written.iter().cloned().flatten().collect();
        let pages = parts.ram.len() / PAGE_BYTES;
        Ok(Self {
            machine,
            state,
            steps: plan::steps(&set.read, &set.written, &parts.data, pages),
            written: plan::ranges(changed.into_iter().chain(written)),
            mailbox,
            parts,
        })
    }

    /// The VM.
    pub(super) fn machine(&self) -> &Machine {
        &self.machine
    }

    /// What brings in the working set.
    pub(super) fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// How many pages a rollback copies.
    pub(super) fn written_pages(&self) -> u64 {
        self.written
            .iter()
            .map(|pages| pages.end - pages.start)
            .sum()
    }

    /// A pristine snapshot under the guest, with the working set.
    pub(super) fn attach(&self) -> Result<(), Error> {
        self.machine.attach(&self.steps)
    }

    /// What was written is as in the snapshot.
    pub(super) fn roll_back(&self) {
        self.machine.copy_back(&self.written);
    }

    /// The vCPU's state is the snapshot's.
    pub(super) fn set_state(&self) -> Result<(), Error> {
        self.machine.set(&self.state)
    }

    /// The request is in the mailbox.
    pub(super) fn put_request(&self) {
        self.machine
            .put_page(self.parts.mailbox_page, &self.mailbox);
    }

    /// The guest's run.
    pub(super) fn run(&self) -> Result<(), Error> {
        self.machine.run()
    }

    /// Another clone, in a VM of its own, that has answered the request.
    pub(super) fn another(&self) -> Result<BareClone, Error> {
        let clone = BareClone::new(&self.parts)?;
        clone.run(&self.state, self.parts.mailbox_page, &self.mailbox)?;
        Ok(clone)
    }

    /// The answer's header; not part of any measurement.
    pub(super) fn answer(&self) -> Result<Header, Error> {
        let page = self.machine.page(self.parts.mailbox_page);
        let header = page.first_chunk().map(Header::decode).unwrap_or_default();
        if header.check_message() == Ok(Kind::Answer) && header.status == 200 {
            return Ok(header);
        }
        Err(Error::Answer {
            what: "a floor's guest".to_owned(),
            answer: format!("kind {}, status {}", header.kind, header.status),
        })
    }
}

/// The mailbox of a ready guest with a request in it, which must fit into the page.
fn with_request(pristine: &Page, request: &Request) -> Option<Page> {
    let fields = [request.method.as_bytes(), request.target.as_bytes()];
    let head_bytes = fields.into_iter().map(field_bytes).sum::<usize>();
    let mut header = Header::decode(pristine.first_chunk()?);
    header.request_id = 1;
    // Another one than in the snapshot: the guest does what it does after every restore.
    header.generation += 1;
    header.real_time_unix_ns = dormouse_vmm::real_time_unix_ns();
    header.deadline_unix_ns = u64::MAX;
    header.entropy = [7; 32];
    header.seal(Sizes {
        location: Location::Inline,
        head_bytes: head_bytes as u32,
        body_bytes: 0,
    });

    let mut page = [0; PAGE_BYTES as usize];
    let inline = page.get_mut(HEADER_BYTES..HEADER_BYTES + INLINE_BYTES)?;
    let mut writer = HeadWriter::new(inline.get_mut(..head_bytes)?);
    for field in fields {
        writer.put(field).ok()?;
    }
    page[..HEADER_BYTES].copy_from_slice(&header.encode());
    Some(page)
}
