//! Messages into and out of a guest's mailbox (see [`dormouse_abi`]).
//!
//! The guest's side is hostile: its page is copied once ([`Page`]), what it says is checked in that
//! copy ([`Said`]), every length is bounded before it is used, and addresses are translated through
//! the guest's own tables. What a message names elsewhere is copied out once as well ([`Span`]).

use bytes::Bytes;
use dormouse_abi::{
    ABI_VERSION, HEADER_BYTES, HeadReader, HeadWriter, Header, INLINE_BYTES, Kind, Location,
    MAILBOX_BYTES, MAX_BODY_BYTES, MAX_HEAD_BYTES, MailboxError, REQUEST_BUFFER_BYTES, Sizes,
    field_bytes,
};
use dormouse_vmm::{Vm, VmState};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Failure};
use crate::message::{Answer, Request};

/// Where a ready guest takes its messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MailboxState {
    /// Guest-virtual address of the mailbox page.
    address: u64,
    /// Guest-virtual address of the buffer for large requests.
    request_buffer: u64,
}

// Written in every snapshot's state: a change here is a new FORMAT_VERSION, see
// snapshots/FORMAT.md, "Compatibility". A test compares the bytes.
const _: fn(&MailboxState) = |state| {
    let MailboxState {
        address,
        request_buffer,
    } = state;
    let _: (&u64, &u64) = (address, request_buffer);
};

/// What a clone is told beside its request.
pub(crate) struct Envelope {
    pub(crate) request_id: u64,
    pub(crate) generation: u64,
    pub(crate) real_time_unix_ns: u64,
    pub(crate) deadline_unix_ns: u64,
    pub(crate) entropy: [u8; 32],
}

impl Envelope {
    /// What the clone must say to be heard.
    fn confirmation(&self) -> u64 {
        let header = Header {
            generation: self.generation,
            entropy: self.entropy,
            ..Header::new()
        };
        header.confirmation()
    }
}

/// What a guest said with an exchange.
pub(crate) enum Message {
    Ready(MailboxState),
    Answer {
        answer: Answer,
        /// The guest's TSC when its handler was entered, by its own word.
        handler_tsc: u64,
    },
    InitError(String),
    Error(String),
}

/// How much of a function's own error message is passed on.
const MAX_MESSAGE_BYTES: usize = 4096;

/// A request in its encoded form, checked against the limits.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Encoded {
    head: Vec<u8>,
    body: Bytes,
}

impl Encoded {
    /// Encodes a request.
    ///
    /// # Errors
    /// [`Error::RequestTooLarge`].
    pub(crate) fn new(request: &Request) -> Result<Self, Error> {
        let too_large = |what: &'static str, bytes: usize, limit: usize| {
            Err(Error::RequestTooLarge {
                what: what.into(),
                bytes: bytes as u64,
                limit_bytes: limit as u64,
            })
        };
        if request.body.len() > MAX_BODY_BYTES {
            return too_large("body", request.body.len(), MAX_BODY_BYTES);
        }
        let fields = || {
            [request.method.as_bytes(), request.target.as_bytes()]
                .into_iter()
                .chain(
                    request
                        .headers
                        .iter()
                        .flat_map(|(name, value)| [&name[..], &value[..]]),
                )
        };
        let head_bytes: usize = fields().map(field_bytes).sum();
        if head_bytes > MAX_HEAD_BYTES {
            return too_large("head", head_bytes, MAX_HEAD_BYTES);
        }
        let mut head = vec![0; head_bytes];
        let mut writer = HeadWriter::new(&mut head);
        for field in fields() {
            writer.put(field).map_err(|_| Error::Internal {
                operation: "encoding a request".into(),
                reason: "its head is larger than computed".to_owned(),
            })?;
        }
        Ok(Self {
            head,
            body: request.body.clone(),
        })
    }
}

impl MailboxState {
    #[cfg(test)]
    pub(crate) fn at(address: u64, request_buffer: u64) -> Self {
        Self {
            address,
            request_buffer,
        }
    }

    /// Guest-virtual address of the mailbox page.
    pub(crate) fn address(&self) -> u64 {
        self.address
    }

    /// Checks that a saved guest speaks this host's ABI, which it wrote into its mailbox itself. `read`
    /// fills a page of its memory. A mailbox that is no such thing is left to the first run to refuse.
    ///
    /// # Errors
    /// [`Error::OtherAbi`], or whatever `read` returns.
    pub(crate) fn check_abi(
        &self,
        vm: &VmState,
        read: impl FnMut(u64, &mut [u8; MAILBOX_BYTES]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let page = vm.page_at(self.address, read)?;
        let header = page.as_ref().and_then(|page| page.first_chunk());
        match header.map(|bytes| Header::decode(bytes).check_registration()) {
            Some(Err(MailboxError::Version(found))) => Err(Error::OtherAbi {
                found,
                here: ABI_VERSION,
            }),
            _ => Ok(()),
        }
    }

    /// Checks that every page of the buffer for large requests is memory of the guest. Its clones have
    /// the same page tables, so that requests fit into them as well.
    pub(crate) fn check(&self, vm: &Vm) -> Result<(), Failure> {
        let ram = vm.shell().ram();
        let is_memory = |address| {
            let offset = vm.translate(address)?.checked_sub(ram.base())?;
            (offset < ram.len()).then_some(())
        };
        let last = REQUEST_BUFFER_BYTES - 1;
        for offset in (0..last).step_by(MAILBOX_BYTES).chain([last]) {
            let address = self.request_buffer.wrapping_add(offset as u64);
            if is_memory(address).is_none() {
                return Err(bad(format!(
                    "its request buffer: nothing is mapped at guest-virtual address {address:#x}"
                )));
            }
        }
        Ok(())
    }

    /// Writes a request for a guest that waits in its exchange.
    ///
    /// # Errors
    /// [`Failure::BadAnswer`] where the guest's buffers are not all mapped: it may have registered one
    /// that stands over its own page tables, which the request then changes.
    pub(crate) fn put(
        &self,
        vm: &Vm,
        request: &Encoded,
        envelope: &Envelope,
    ) -> Result<(), Failure> {
        self.write(vm, request, envelope)
            .map_err(|e| bad(format!("its mailbox takes no request: {e}")))
    }

    fn write(
        &self,
        vm: &Vm,
        request: &Encoded,
        envelope: &Envelope,
    ) -> Result<(), dormouse_vmm::Error> {
        let mut page = [0; MAILBOX_BYTES];
        let mut bytes = [0; HEADER_BYTES];
        vm.read_virtual(self.address, &mut bytes)?;
        let mut header = Header::decode(&bytes);

        let length = request.head.len() + request.body.len();
        let (location, used) = if length <= INLINE_BYTES {
            let (head, body) = page[HEADER_BYTES..][..length].split_at_mut(request.head.len());
            head.copy_from_slice(&request.head);
            body.copy_from_slice(&request.body);
            (Location::Inline, HEADER_BYTES + length)
        } else {
            vm.write_virtual(self.request_buffer, &request.head)?;
            let body_address = self.request_buffer.wrapping_add(request.head.len() as u64);
            vm.write_virtual(body_address, &request.body)?;
            (Location::Buffer, HEADER_BYTES)
        };
        header.request_id = envelope.request_id;
        header.generation = envelope.generation;
        header.real_time_unix_ns = envelope.real_time_unix_ns;
        header.deadline_unix_ns = envelope.deadline_unix_ns;
        header.entropy = envelope.entropy;
        header.seal(Sizes {
            location,
            head_bytes: request.head.len() as u32,
            body_bytes: request.body.len() as u64,
        });
        page[..HEADER_BYTES].copy_from_slice(&header.encode());
        vm.write_virtual(self.address, &page[..used])
    }

    /// Takes `request`, which was put last, its answer and its random bytes out of the buffers of a
    /// guest that waits for the next one. What the function keeps in memory of its own stays.
    ///
    /// # Errors
    /// Where the guest's buffers are not all mapped.
    pub(crate) fn clear(&self, vm: &Vm, request: &Encoded) -> Result<(), dormouse_vmm::Error> {
        let mut bytes = [0; HEADER_BYTES];
        vm.read_virtual(self.address, &mut bytes)?;
        let last = Header::decode(&bytes);
        let header = Header {
            magic: last.magic,
            abi_version: last.abi_version,
            request_buffer_address: last.request_buffer_address,
            request_buffer_bytes: last.request_buffer_bytes,
            kind: Kind::Ready as u32,
            ..Header::default()
        };
        let mut page = [0; MAILBOX_BYTES];
        page[..HEADER_BYTES].copy_from_slice(&header.encode());
        vm.write_virtual(self.address, &page)?;
        let length = request.head.len() + request.body.len();
        if length > INLINE_BYTES {
            vm.write_virtual(self.request_buffer, &vec![0; length])?;
        }
        Ok(())
    }
}

/// A mailbox page as it was when it was copied out of the guest, whatever the guest does to it since.
struct Page {
    address: u64,
    bytes: [u8; MAILBOX_BYTES],
}

/// What the header of a [`Page`] says, within the limits of the ABI.
struct Said {
    kind: Kind,
    status: u16,
    request_buffer: u64,
    head: Span,
    body: Span,
    handler_tsc: u64,
    /// What it says of this clone's random bytes.
    confirmed: u64,
}

/// Memory that a guest names, of a length that is allowed. Taking it uses it up.
struct Span {
    what: &'static str,
    address: u64,
    length_bytes: usize,
}

impl Page {
    fn fetch(vm: &Vm, address: u64) -> Result<Self, Failure> {
        if !address.is_multiple_of(MAILBOX_BYTES as u64) {
            return Err(bad(format!(
                "its mailbox at {address:#x} is not page aligned"
            )));
        }
        let mut bytes = [0; MAILBOX_BYTES];
        vm.read_virtual(address, &mut bytes)
            .map_err(|e| bad(format!("its mailbox: {e}")))?;
        Ok(Self { address, bytes })
    }

    fn check(&self) -> Result<Said, Failure> {
        let header = self.bytes.first_chunk().map(Header::decode);
        let header = header.unwrap_or_default();
        header
            .check_registration()
            .map_err(|e| bad(e.to_string()))?;
        let kind = header.check_message().map_err(|e| bad(e.to_string()))?;
        let span = |what, address, bytes: u64| {
            let length_bytes = usize::try_from(bytes).map_err(|e| bad(e.to_string()))?;
            Ok::<_, Failure>(Span {
                what,
                address,
                length_bytes,
            })
        };
        Ok(Said {
            kind,
            // Of answers only `check_message` says that it is a status.
            status: u16::try_from(header.status).unwrap_or(0),
            request_buffer: header.request_buffer_address,
            head: span(
                "headers",
                header.answer_head_address,
                header.answer_head_bytes,
            )?,
            body: span("body", header.answer_body_address, header.answer_body_bytes)?,
            handler_tsc: header.handler_tsc,
            confirmed: header.confirmed,
        })
    }

    /// What `span` names: from this copy where it is in it, else out of the guest.
    fn take(&self, vm: &Vm, span: Span) -> Result<Bytes, Failure> {
        let offset = usize::try_from(span.address.wrapping_sub(self.address)).ok();
        let range = offset.and_then(|from| Some(from..from.checked_add(span.length_bytes)?));
        if let Some(inline) = range.and_then(|range| self.bytes.get(range)) {
            return Ok(Bytes::copy_from_slice(inline));
        }
        let mut bytes = vec![0; span.length_bytes];
        vm.read_virtual(span.address, &mut bytes)
            .map_err(|e| bad(format!("its {}: {e}", span.what)))?;
        Ok(Bytes::from(bytes))
    }
}

/// Reads what a guest says with the exchange that it just made with the mailbox at `address`. `asked`
/// is what it was told with its request; nothing where it had none yet.
///
/// # Errors
/// [`Failure::Unconfirmed`] where it answers without having taken this clone's random bytes; nothing
/// of the answer is read then. [`Failure::BadAnswer`] for anything that the ABI does not allow.
pub(crate) fn take(vm: &Vm, address: u64, asked: Option<&Envelope>) -> Result<Message, Failure> {
    let page = Page::fetch(vm, address)?;
    let said = page.check()?;
    if said.kind == Kind::Ready {
        return Ok(Message::Ready(MailboxState {
            address,
            request_buffer: said.request_buffer,
        }));
    }
    if said.kind != Kind::InitError
        && let Some(asked) = asked
        && said.confirmed != asked.confirmation()
    {
        return Err(Failure::Unconfirmed);
    }
    let body = page.take(vm, said.body)?;
    let text = || String::from_utf8_lossy(&body[..body.len().min(MAX_MESSAGE_BYTES)]).into_owned();
    match said.kind {
        Kind::Ready | Kind::Answer => {}
        Kind::InitError => return Ok(Message::InitError(text())),
        Kind::Error => return Ok(Message::Error(text())),
    }
    let head = page.take(vm, said.head)?;
    let mut fields = HeadReader::new(&head);
    let mut headers = Vec::new();
    while let Some(name) = fields.next() {
        let value = fields
            .next()
            .ok_or_else(|| bad("a header has no value".to_owned()))?;
        headers.push((head.slice_ref(name), head.slice_ref(value)));
    }
    if !fields.is_complete() {
        return Err(bad("its headers are cut off".to_owned()));
    }
    Ok(Message::Answer {
        answer: Answer {
            status: said.status,
            headers,
            body,
        },
        handler_tsc: said.handler_tsc,
    })
}

fn bad(reason: String) -> Failure {
    Failure::BadAnswer { reason }
}
