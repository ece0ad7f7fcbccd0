//! Burns time and touches memory, as much as it is asked to: what load tests and measurements of
//! page handling need.
//!
//! `GET /?ms=N&read=PAGES&write=PAGES` reads one word of each of the first `read` pages of a buffer,
//! writes one word of each of its last `write` pages, and does not answer before `ms` milliseconds
//! have passed. Each value is 0 unless told. The sets never overlap: both together have 6000 pages
//! at most. With `seed=S`, other than 0, the pages that are written are strewn over the buffer
//! instead, by chance but the same for the same seed. The answer is `{"ms":N,"read":PAGES,"write":PAGES,"sum":S}`, where `sum` adds up what
//! was read: each page's word is its number, from 1 on.
//!
//! There are few instructions per page, so that hosts that emulate them measure pages.

use std::hint::{black_box, spin_loop};
use std::time::{Duration, Instant};

use dormouse_guest::{Request, Response};

/// 24 MiB: fits guests of 64 MiB.
const BUFFER_PAGES: usize = 6000;
/// A minute.
const MAX_MS: usize = 60_000;

/// One page of memory. Most of it is padding, which nobody has to initialise.
#[repr(align(4096))]
struct Page {
    /// Never zero: a page that holds nothing else would not be part of the snapshot.
    number: u64,
    written: u64,
}

/// What a request asks for.
#[derive(Default)]
struct Burn {
    ms: usize,
    read: usize,
    write: usize,
    seed: usize,
}

fn main() {
    let numbers = 1..=BUFFER_PAGES as u64;
    let page = |number| Page { number, written: 0 };
    let mut buffer: Vec<Page> = numbers.map(page).collect();
    dormouse_guest::serve(move |request: Request<'_>| {
        Burn::parse(request.query()).map_or_else(
            |sentence| Response::new(400).with_text(sentence),
            |burn| burn.run(&mut buffer),
        )
    });
}

impl Burn {
    fn parse(query: &str) -> Result<Self, String> {
        let mut burn = Self::default();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let (place, most) = match name {
                "ms" => (&mut burn.ms, MAX_MS),
                "read" => (&mut burn.read, BUFFER_PAGES),
                "write" => (&mut burn.write, BUFFER_PAGES),
                "seed" => (&mut burn.seed, usize::MAX),
                _ => {
                    return Err(format!(
                        "There is no {name:?}: ask for ms, read, write or seed.\n"
                    ));
                }
            };
            *place = match value.parse() {
                Ok(number) if number <= most => number,
                _ => return Err(format!("{name} must be a number from 0 to {most}.\n")),
            };
        }
        if burn.read + burn.write > BUFFER_PAGES {
            return Err(format!(
                "read and write together must be at most {BUFFER_PAGES}.\n"
            ));
        }
        Ok(burn)
    }

    fn run(&self, buffer: &mut [Page]) -> Response {
        // A clock that is not asked for costs nothing.
        let until = (self.ms > 0).then(|| Instant::now() + Duration::from_millis(self.ms as u64));
        let pages = buffer.iter().take(self.read);
        let sum: u64 = pages.map(|page| black_box(page.number)).sum();
        if self.seed == 0 {
            for page in buffer.iter_mut().rev().take(self.write) {
                page.written = black_box(sum);
            }
        } else {
            strew(buffer, self.write, self.seed as u64);
        }
        if let Some(until) = until {
            while Instant::now() < until {
                spin_loop();
            }
        }
        let mut answer = String::with_capacity(96);
        add(&mut answer, "{\"ms\":", self.ms as u64);
        add(&mut answer, ",\"read\":", self.read as u64);
        add(&mut answer, ",\"write\":", self.write as u64);
        add(&mut answer, ",\"sum\":", sum);
        answer.push_str("}\n");
        Response::json(answer)
    }
}

/// Writes to as many pages, picked by xorshift; some may be picked twice.
fn strew(buffer: &mut [Page], pages: usize, seed: u64) {
    let mut state = seed;
    for _ in 0..pages {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        buffer[state as usize % BUFFER_PAGES].written = state;
    }
}

/// Appends a number in decimal digits. The formatting machinery would take thousands of
/// instructions for an answer.
fn add(text: &mut String, label: &str, number: u64) {
    text.push_str(label);
    let mut place = 1;
    while number / place >= 10 {
        place *= 10;
    }
    while place > 0 {
        text.push(char::from(b'0' + (number / place % 10) as u8));
        place /= 10;
    }
}
