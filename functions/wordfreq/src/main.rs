//! Word statistics: the function whose start a snapshot saves.
//!
//! Initialisation makes up a text of 18 000 words over a vocabulary of 10 000 and builds an index
//! of counts and ranks: seconds on a host that emulates ring 0. Requests only look things up.
//!
//! - `GET /?word=W` answers `{"word":"W","count":C,"rank":R}`, or 404 where the text has no W
//! - `GET /top?n=N` answers the N most frequent words (10 unless told, at most 1000)
//! - `GET /words` answers the number of different words
//! - `GET /letter?is=L` answers how many words begin with L, and whether this request had to sort
//!   them by letter first: the first one of an instance does, unless its snapshot was warmed

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt::Write;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::OnceLock;

use dormouse_guest::{Request, Response};

const VOCABULARY: u32 = 10_000;
const TEXT_WORDS: u32 = 18_000;
const LETTERS: usize = 26;

fn main() {
    dormouse_guest::serve_with_init(|| {
        let index = Index::build();
        let words = index.words.len();
        if words < VOCABULARY as usize {
            return Err(format!("only {words} words in the index"));
        }
        Ok(move |request: Request<'_>| index.answer(request))
    });
}

struct Word {
    /// Leaked: the index lives as long as the function.
    text: &'static str,
    count: u32,
    /// From 1, the most frequent word.
    rank: u32,
}

struct Index {
    /// In the order of their first use.
    words: Vec<Word>,
    /// From a word to its place in `words`.
    places: HashMap<&'static str, u32, BuildHasherDefault<Fnv1a>>,
    /// Places in the order of rank.
    by_rank: Vec<u32>,
    /// Places by first letter, sorted when they are first asked for.
    by_letter: OnceLock<[Vec<u32>; LETTERS]>,
}

impl Index {
    fn build() -> Self {
        let mut index = Self {
            words: Vec::with_capacity(VOCABULARY as usize),
            places: HashMap::with_capacity_and_hasher(VOCABULARY as usize, Default::default()),
            by_rank: Vec::new(),
            by_letter: OnceLock::new(),
        };
        // Every word once, so that the vocabulary is whole; the rest as natural text has it.
        for number in 0..VOCABULARY {
            index.count(number);
        }
        let mut state = 0x2545_F491_4F6C_DD1D;
        for _ in VOCABULARY..TEXT_WORDS {
            index.count(draw(&mut state));
        }
        index.rank();
        index
    }

    fn count(&mut self, number: u32) {
        let mut buffer = [0; MAX_WORD_BYTES];
        let spelled = spell(number, &mut buffer);
        if let Some(&place) = self.places.get(spelled) {
            self.words[place as usize].count += 1;
            return;
        }
        let text: &'static str = Box::leak(Box::from(spelled));
        if let Entry::Vacant(entry) = self.places.entry(text) {
            entry.insert(self.words.len() as u32);
            self.words.push(Word {
                text,
                count: 1,
                rank: 0,
            });
        }
    }

    fn rank(&mut self) {
        // Words of equal count stand in the order of their first use, so every build ranks alike.
        let mut keys: Vec<u64> = (0..)
            .zip(&self.words)
            .map(|(place, word)| (u64::from(!word.count) << 32) | place)
            .collect();
        keys.sort_unstable();
        self.by_rank = keys.into_iter().map(|key| key as u32).collect();
        for (rank, &place) in (1..).zip(&self.by_rank) {
            self.words[place as usize].rank = rank;
        }
    }

    fn answer(&self, request: Request<'_>) -> Response {
        match request.path() {
            "/" | "" => match request.query_value("word") {
                Some(word) => self.word(word),
                None => Response::new(400).with_text("ask for /?word=WORD or /top?n=10\n"),
            },
            "/top" => match request.query_value("n").unwrap_or("10").parse() {
                Ok(n) if n <= 1000 => self.top(n),
                _ => Response::new(400).with_text("n must be a number from 0 to 1000\n"),
            },
            "/words" => Response::json(format!("{{\"words\":{}}}\n", self.words.len())),
            "/letter" => match request.query_value("is").map(str::as_bytes) {
                Some(&[letter @ b'a'..=b'z']) => self.letter(letter),
                _ => Response::new(400).with_text("is must be a letter from a to z\n"),
            },
            _ => Response::new(404).with_text("no such page; try /?word=WORD or /top?n=10\n"),
        }
    }

    fn word(&self, word: &str) -> Response {
        match self.places.get(word) {
            Some(&place) => {
                let mut json = String::new();
                write_word(&mut json, &self.words[place as usize]);
                json.push('\n');
                Response::json(json)
            }
            None => Response::new(404).with_text("no such word\n"),
        }
    }

    fn top(&self, n: usize) -> Response {
        let mut json = String::from("[");
        for &place in self.by_rank.iter().take(n) {
            if json.len() > 1 {
                json.push(',');
            }
            write_word(&mut json, &self.words[place as usize]);
        }
        json.push_str("]\n");
        Response::json(json)
    }

    fn letter(&self, letter: u8) -> Response {
        let is_first = self.by_letter.get().is_none();
        let by_letter = self.by_letter.get_or_init(|| {
            let mut sorted = [const { Vec::new() }; LETTERS];
            for (place, word) in (0..).zip(&self.words) {
                sorted[alphabetical(word.text.as_bytes()[0])].push(place);
            }
            sorted
        });
        let words = by_letter[alphabetical(letter)].len();
        Response::json(format!("{{\"words\":{words},\"sorted\":{is_first}}}\n"))
    }
}

/// The place of a letter in the alphabet.
fn alphabetical(letter: u8) -> usize {
    usize::from(letter - b'a')
}

/// Words have letters from a to z only, so JSON needs no escapes.
fn write_word(json: &mut String, word: &Word) {
    let Word { text, count, rank } = word;
    let written = write!(
        json,
        "{{\"word\":\"{text}\",\"count\":{count},\"rank\":{rank}}}"
    );
    debug_assert!(written.is_ok(), "writing to a String cannot fail");
}

/// The number of a word; small numbers come more often, as in natural text: each bound is drawn
/// below the last.
fn draw(state: &mut u64) -> u32 {
    let mut bound = u64::from(VOCABULARY);
    for _ in 0..2 {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        // The high half of the product is uniform below the bound.
        bound = (((*state >> 32) * bound) >> 32) + 1;
    }
    bound as u32 - 1
}

const CONSONANTS: &[u8; 16] = b"bdfghjklmnprstvz";
const VOWELS: &[u8; 4] = b"aeio";
/// Syllables are a consonant and a vowel.
const SYLLABLES: u32 = (CONSONANTS.len() * VOWELS.len()) as u32;
const MAX_WORD_BYTES: usize = 12;

/// The pronounceable word of a number.
fn spell(number: u32, buffer: &mut [u8; MAX_WORD_BYTES]) -> &str {
    let mut bytes = 0;
    let mut rest = number + SYLLABLES;
    while rest > 0 && bytes < MAX_WORD_BYTES {
        let syllable = (rest % SYLLABLES) as usize;
        buffer[bytes] = CONSONANTS[syllable / VOWELS.len()];
        buffer[bytes + 1] = VOWELS[syllable % VOWELS.len()];
        bytes += 2;
        rest /= SYLLABLES;
    }
    std::str::from_utf8(&buffer[..bytes]).unwrap_or_default()
}

/// FNV-1a: fewer instructions than the default hash, and nobody can choose the index's words.
#[derive(Default)]
struct Fnv1a(u64);

impl Hasher for Fnv1a {
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3);
        }
    }

    fn finish(&self) -> u64 {
        // The map takes its buckets from the low bits and its tags from the high ones.
        self.0 ^ (self.0 >> 32)
    }
}
