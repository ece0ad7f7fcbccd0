//! The life of a function: initialise, be snapshotted, answer.

use std::fmt::Display;

use dormouse_abi::{
    ABI_VERSION, HeadWriter, INLINE_BYTES, Kind, MAGIC, REQUEST_BUFFER_BYTES, field_bytes,
};

use crate::hooks::{Hook, Hooks};
use crate::port::{Host, Port};
use crate::random;
use crate::request::Request;
use crate::response::{Body, IntoResponse, Response};

/// A body up to this size is copied into the mailbox: the host finds everything in one page. A
/// larger one is read where it lies, which is cheaper than a copy by emulated instructions.
const INLINE_BODY_BYTES: usize = 1024;

/// Answers requests with `handler`, for ever. What `main` did before this call is part of the
/// snapshot.
pub fn serve<H, R>(handler: H) -> !
where
    H: FnMut(Request<'_>) -> R,
    R: IntoResponse,
{
    run(&mut Port::open(), Hooks::take(), handler);
    std::process::exit(0)
}

/// Initialises with `init`, then answers requests with the handler that it returned. An `Err` is
/// reported to the host, which does not publish the function and shows the message.
pub fn serve_with_init<I, H, R, E>(init: I) -> !
where
    I: FnOnce() -> Result<H, E>,
    H: FnMut(Request<'_>) -> R,
    R: IntoResponse,
    E: Display,
{
    let mut port = Port::open();
    match init() {
        Ok(handler) => {
            run(&mut port, Hooks::take(), handler);
            std::process::exit(0)
        }
        Err(error) => {
            refuse(&mut port, &error.to_string());
            std::process::exit(1)
        }
    }
}

fn refuse(host: &mut impl Host, message: &str) {
    register(host);
    send_message(host, Kind::InitError, message.as_bytes());
}

fn run<T, H, R>(host: &mut T, mut hooks: Hooks, mut handler: H)
where
    T: Host,
    H: FnMut(Request<'_>) -> R,
    R: IntoResponse,
{
    register(host);
    for mut hook in hooks.before_snapshot.drain(..) {
        hook();
    }

    let mut confirmed = 0;
    host.mailbox_mut().header.kind = Kind::Ready as u32;
    let mut more = host.exchange();
    while more {
        let header = &host.mailbox().header;
        let confirmation = header.confirmation();
        if confirmation != confirmed {
            awake(&header.entropy, &mut hooks.after_restore);
            confirmed = confirmation;
        }
        let ticks = host.ticks();
        let header = &mut host.mailbox_mut().header;
        header.handler_tsc = ticks;
        // Not before the hooks have run: it opens the request.
        header.confirmed = confirmed;
        more = match handler(Request::new(host)).into_response() {
            Ok(response) => send_answer(host, &response),
            Err(message) => send_message(host, Kind::Error, message.as_bytes()),
        };
    }
}

fn register(host: &mut impl Host) {
    let address = host.request_buffer_address();
    let header = &mut host.mailbox_mut().header;
    header.magic = MAGIC;
    header.abi_version = ABI_VERSION;
    header.request_buffer_address = address;
    header.request_buffer_bytes = REQUEST_BUFFER_BYTES as u64;
}

fn awake(entropy: &[u8; 32], after_restore: &mut [Hook]) {
    random::reseed(entropy);
    for hook in after_restore {
        hook();
    }
}

/// Sends a message that is neither status nor headers.
fn send_message(host: &mut impl Host, kind: Kind, message: &[u8]) -> bool {
    let header = &mut host.mailbox_mut().header;
    header.kind = kind as u32;
    header.status = 0;
    header.answer_head_bytes = 0;
    header.answer_body_address = message.as_ptr() as u64;
    header.answer_body_bytes = message.len() as u64;
    host.exchange()
}

fn send_answer(host: &mut impl Host, response: &Response) -> bool {
    let head_bytes = response
        .fields()
        .map(|(name, value)| field_bytes(name) + field_bytes(value))
        .sum();
    let mut spilled_head = Vec::new();

    // The request's body stays where it is, and the head must not overwrite it there.
    let (body, keep_inline): (&[u8], bool) = match &response.body {
        Body::Static(body) => (body, false),
        Body::Owned(body) => (body, false),
        Body::OfRequest => (&[], true),
    };
    let (mut body_address, mut body_bytes) = (body.as_ptr() as u64, body.len() as u64);
    if keep_inline {
        let of_request = Request::new(host).body();
        (body_address, body_bytes) = (of_request.as_ptr() as u64, of_request.len() as u64);
    }

    let mailbox = host.mailbox_mut();
    let head = if keep_inline || head_bytes > INLINE_BYTES {
        spilled_head.resize(head_bytes, 0);
        &mut spilled_head[..]
    } else {
        &mut mailbox.inline[..head_bytes]
    };
    let head_address = head.as_ptr() as u64;
    write_head(head, response);
    if !keep_inline && body.len() <= INLINE_BODY_BYTES {
        let room = mailbox.inline.get_mut(head_bytes..).unwrap_or_default();
        if let Some(room) = room.get_mut(..body.len()) {
            room.copy_from_slice(body);
            body_address = room.as_ptr() as u64;
        }
    }

    let header = &mut mailbox.header;
    header.kind = Kind::Answer as u32;
    header.status = u32::from(response.status);
    header.answer_head_address = head_address;
    header.answer_head_bytes = head_bytes as u64;
    header.answer_body_address = body_address;
    header.answer_body_bytes = body_bytes;
    host.exchange()
}

/// `head` has just the room that the response's fields need.
fn write_head(head: &mut [u8], response: &Response) {
    let mut writer = HeadWriter::new(head);
    for (name, value) in response.fields() {
        let written = writer.put(name).and_then(|()| writer.put(value));
        debug_assert!(written.is_ok(), "the head was measured before");
    }
}

#[cfg(test)]
mod tests;
