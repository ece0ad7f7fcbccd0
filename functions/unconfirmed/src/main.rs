//! Speaks to the host by hand, without the SDK, so that it can leave out what the SDK always does:
//! to confirm that it took its clone's random bytes. The first letter of the request's body chooses.
//! It looks for that where the request must be, sealed or not, as a careless guest would.
//!
//! | Body | What it confirms |
//! |---|---|
//! | `y` | what it must |
//! | `n` | nothing |
//! | `g` | its generation: it did not look at the random bytes |
//! | `f` | something false, with a handler's error instead of an answer |

use core::arch::asm;
use core::cell::UnsafeCell;

use dormouse_abi::{
    ABI_VERSION, EXCHANGE_PORT, Header, Kind, MAGIC, Mailbox, REQUEST_BUFFER_BYTES,
};

#[repr(C, align(4096))]
struct Shared<T>(UnsafeCell<T>);

// SAFETY: the program has one thread.
unsafe impl<T> Sync for Shared<T> {}

static MAILBOX: Shared<Mailbox> = Shared(UnsafeCell::new(Mailbox::new()));
static BUFFER: Shared<[u8; REQUEST_BUFFER_BYTES]> =
    Shared(UnsafeCell::new([0; REQUEST_BUFFER_BYTES]));
static ANSWER: &[u8] = b"answered\n";

fn main() {
    exchange(|header, _| {
        header.magic = MAGIC;
        header.abi_version = ABI_VERSION;
        header.request_buffer_address = BUFFER.0.get() as u64;
        header.request_buffer_bytes = REQUEST_BUFFER_BYTES as u64;
        header.kind = Kind::Ready as u32;
    });
    loop {
        exchange(|header, inline| {
            let sent = inline.iter().rposition(|&byte| byte != 0);
            let letter = sent.map_or(0, |at| inline[at]);
            header.confirmed = match letter {
                b'y' => header.confirmation(),
                b'g' => header.generation,
                b'f' => header.confirmation() ^ 1,
                _ => 0,
            };
            header.kind = if letter == b'f' {
                Kind::Error
            } else {
                Kind::Answer
            } as u32;
            header.status = 200;
            header.answer_head_bytes = 0;
            header.answer_body_address = ANSWER.as_ptr() as u64;
            header.answer_body_bytes = ANSWER.len() as u64;
        });
    }
}

/// Lets `write` change the mailbox, hands it over and waits for the next request.
fn exchange(write: impl FnOnce(&mut Header, &[u8])) {
    // SAFETY: the program has one thread, and no view of the page survives this function.
    let mailbox = unsafe { &mut *MAILBOX.0.get() };
    write(&mut mailbox.header, &mailbox.inline);
    // SAFETY: the host reads and writes the mailbox and the buffer; the assembly clobbers memory, so
    // nothing of them is cached.
    unsafe {
        asm!(
            "out dx, eax",
            in("dx") EXCHANGE_PORT,
            in("eax") ABI_VERSION,
            in("rdi") MAILBOX.0.get(),
            options(nostack, preserves_flags),
        );
    }
}
