//! Word statistics: the function whose start a snapshot saves.
//!
//! Initialisation makes up a text of 22 000 words over a vocabulary of 10 500 and builds an index
//! of counts and ranks: seconds on a host that emulates ring 0. Requests only look things up.
//!
//! - `GET /?word=W` answers `{"word":"W","count":C,"rank":R}`, or 404 where the text has no W
//! - `GET /top?n=N` answers the N most frequent words (10 unless told, at most 1000)
//! - `GET /words` answers the number of different words

use std::collections::HashMap;
use std::fmt::Write;
use std::hash::{BuildHasherDefault, Hasher};

use dormouse_guest::{Request, Response};

const VOCABULARY: u64 = 10_500;
const TEXT_WORDS: u64 = 22_000;

fn main() {
    dormouse_guest::serve_with_init(|| {
        let index = Index::build();
        if index.by_rank.len() < 10_000 {
            return Err(format!("only {} words in the index", index.by_rank.len()));
        }
        Ok(move |request: Request<'_>| index.answer(request))
    });
}

struct Entry {
    count: u32,
    /// From 1, the most frequent word.
    rank: u32,
}

struct Index {
    entries: HashMap<String, Entry, BuildHasherDefault<Fnv1a>>,
    by_rank: Vec<String>,
}

impl Index {
    fn build() -> Self {
        let mut entries: HashMap<String, Entry, BuildHasherDefault<Fnv1a>> =
            HashMap::with_capacity_and_hasher(VOCABULARY as usize, Default::default());
        let mut word = String::new();
        let mut count = |number| {
            spell(number, &mut word);
            match entries.get_mut(&word) {
                Some(entry) => entry.count += 1,
                None => {
                    entries.insert(word.clone(), Entry { count: 1, rank: 0 });
                }
            }
        };
        // Every word once, so that the vocabulary is whole; the rest as natural text has it.
        (0..VOCABULARY).for_each(&mut count);
        let mut state = 0x2545_F491_4F6C_DD1D;
        for _ in VOCABULARY..TEXT_WORDS {
            count(zipf(&mut state));
        }

        let mut ranking: Vec<(u32, &String)> = entries
            .iter()
            .map(|(word, entry)| (entry.count, word))
            .collect();
        // Words of equal count stand in alphabetical order, so that every build ranks alike.
        ranking.sort_unstable_by(|(count, word), (other_count, other_word)| {
            (other_count.cmp(count)).then_with(|| word.cmp(other_word))
        });
        let by_rank: Vec<String> = ranking.into_iter().map(|(_, word)| word.clone()).collect();
        for (rank, word) in (1..).zip(&by_rank) {
            if let Some(entry) = entries.get_mut(word) {
                entry.rank = rank;
            }
        }
        Self { entries, by_rank }
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
            "/words" => Response::json(format!("{{\"words\":{}}}\n", self.by_rank.len())),
            _ => Response::new(404).with_text("no such page; try /?word=WORD or /top?n=10\n"),
        }
    }

    fn word(&self, word: &str) -> Response {
        match self.entries.get(word) {
            Some(entry) => {
                let mut json = String::new();
                self.write_entry(&mut json, word, entry);
                json.push('\n');
                Response::json(json)
            }
            None => Response::new(404).with_text("no such word\n"),
        }
    }

    fn top(&self, n: usize) -> Response {
        let mut json = String::from("[");
        for word in self.by_rank.iter().take(n) {
            if json.len() > 1 {
                json.push(',');
            }
            self.write_entry(&mut json, word, &self.entries[word]);
        }
        json.push_str("]\n");
        Response::json(json)
    }

    /// The index has words of a to z only, so JSON needs no escapes.
    fn write_entry(&self, json: &mut String, word: &str, entry: &Entry) {
        let Entry { count, rank } = entry;
        let written = write!(
            json,
            "{{\"word\":\"{word}\",\"count\":{count},\"rank\":{rank}}}"
        );
        debug_assert!(written.is_ok(), "writing to a String cannot fail");
    }
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
        self.0 ^ self.0 >> 32
    }
}

/// A word number whose chance falls with the number: a uniform bound, then a uniform number below
/// it, twice.
fn zipf(state: &mut u64) -> u64 {
    let mut bound = VOCABULARY;
    for _ in 0..3 {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        // The high half of the product is uniform below the bound.
        bound = ((*state >> 32) * bound >> 32) + 1;
    }
    bound - 1
}

/// The pronounceable word of a number: syllables of a consonant and a vowel.
fn spell(number: u64, word: &mut String) {
    const CONSONANTS: &[u8] = b"bdfgklmnprstvz";
    const VOWELS: &[u8] = b"aeiou";
    const SYLLABLES: u64 = (CONSONANTS.len() * VOWELS.len()) as u64;
    word.clear();
    let mut rest = number + SYLLABLES;
    while rest > 0 {
        let syllable = (rest % SYLLABLES) as usize;
        word.push(char::from(CONSONANTS[syllable / VOWELS.len()]));
        word.push(char::from(VOWELS[syllable % VOWELS.len()]));
        rest /= SYLLABLES;
    }
}
