//! What is asked of each function, drawn from a seed, and what its answer must be.

use anyhow::{Context, Result, ensure};
use rand::rngs::ChaCha8Rng;
use rand::seq::IndexedRandom;
use rand::{Rng, RngExt, SeedableRng};
use serde::Deserialize;
use ureq::http::Method;

use super::client::{Client, Failure};

/// A function under load: its name, which is its sample's, and the options of its deployment.
#[derive(Debug)]
pub(super) struct Function {
    pub(super) name: &'static str,
    pub(super) options: &'static str,
}

/// The functions, in the order of the summary.
pub(super) const FUNCTIONS: [Function; 6] = [
    Function {
        name: "echo",
        options: "",
    },
    Function {
        name: "hello",
        options: "",
    },
    Function {
        name: "wordfreq",
        options: "",
    },
    Function {
        name: "burn",
        options: "",
    },
    Function {
        name: "whoami",
        options: "",
    },
    // Loops without end shall not have a core for long.
    Function {
        name: FAULTY,
        options: "timeout_ms=2000",
    },
];
/// The function that may fail.
pub(super) const FAULTY: &str = "faulty";
/// What `hello` says.
pub(super) const GREETING: &str = "Hello from Dormouse!\n";

/// Ways to fail that are found at once, each with its code in api/errors.md.
const AT_ONCE: [(&str, &str); 13] = [
    ("/panic", "function-exited"),
    ("/exit", "function-exited"),
    ("/exit?code=3", "function-exited"),
    ("/oom", "out-of-memory"),
    ("/stack-overflow", "function-crashed"),
    ("/write-unmapped", "function-crashed"),
    ("/invalid-opcode", "function-crashed"),
    ("/triple-fault", "function-crashed"),
    ("/bad-hypercall", "function-crashed"),
    ("/huge-answer", "bad-answer"),
    ("/huge-head", "bad-answer"),
    ("/bad-status", "bad-answer"),
    ("/error", "function-error"),
];
/// Ways to fail that only the function's time-out ends.
const IN_TIME: [&str; 2] = ["/spin", "/no-answer"];
/// One failure in so many is of the second kind: each holds a place, or a core, until its time is out.
const IN_TIME_ONE_IN: u32 = 200;
/// Bodies are short, but for one in so many.
const LONG_BODY_ONE_IN: u32 = 50;
const SHORT_BODY_BYTES: usize = 4 << 10;
const LONG_BODY_BYTES: usize = 256 << 10;
/// Words of `wordfreq` that are asked for: as many as it tells at once.
const WORDS: usize = 1000;

/// A request, and what must come of it.
#[derive(Debug)]
pub(super) struct Asked {
    /// Which of [`FUNCTIONS`].
    pub(super) function: usize,
    pub(super) method: Method,
    /// Path and query, as the function sees them.
    pub(super) target: String,
    pub(super) body: Vec<u8>,
    pub(super) expected: Expected,
}

/// What must come of a request that is not refused.
#[derive(Debug)]
pub(super) enum Expected {
    /// This status and this body, to the byte.
    Exactly { status: u16, body: Vec<u8> },
    /// What a clone knows of itself, and no other clone ever knew.
    Itself,
    /// The function fails with this code.
    Fails(&'static str),
}

impl Asked {
    /// The path of the API.
    pub(super) fn path(&self) -> String {
        let Function { name, .. } = FUNCTIONS[self.function];
        format!("/v1/functions/{name}/invoke{}", self.target)
    }
}

/// A word of the text, as `wordfreq` tells of it.
#[derive(Debug, Deserialize)]
struct Word {
    word: String,
    count: u64,
    rank: u64,
}

/// Draws requests.
pub(super) struct Requests {
    rng: ChaCha8Rng,
    /// Pairs of a word and the whole answer on it.
    words: Vec<(String, String)>,
}

impl Requests {
    /// Requests that follow from a seed. What `wordfreq` knows is asked for here, in peace.
    pub(super) fn new(seed: u64, client: &Client) -> Result<Self> {
        let path = format!("/v1/functions/wordfreq/invoke/top?n={WORDS}");
        let reply = match client.send(&Method::GET, &path, b"") {
            Ok(reply) => reply,
            Err(Failure::Hung) => anyhow::bail!("wordfreq did not answer"),
            Err(Failure::Broken(why)) => anyhow::bail!("wordfreq was not reached: {why}"),
        };
        let words: Vec<Word> = serde_json::from_slice(&reply.body)
            .with_context(|| format!("wordfreq answered {}", reply.describe()))?;
        let is_ranked = (1..).zip(&words).all(|(rank, word)| word.rank == rank);
        ensure!(words.len() == WORDS && is_ranked, "wordfreq ranks wrongly");
        let words = words.into_iter().map(|Word { word, count, rank }| {
            let answer = format!("{{\"word\":\"{word}\",\"count\":{count},\"rank\":{rank}}}\n");
            (word, answer)
        });
        Ok(Self {
            rng: ChaCha8Rng::seed_from_u64(seed),
            words: words.collect(),
        })
    }

    /// The next request.
    pub(super) fn draw(&mut self) -> Asked {
        let function = self.rng.random_range(0..FUNCTIONS.len());
        let (method, target, body, expected) = match FUNCTIONS[function].name {
            "echo" => self.echo(),
            "hello" => get("/".to_owned(), 200, GREETING),
            "wordfreq" => self.wordfreq(),
            "burn" => self.burn(),
            "whoami" => self.whoami(),
            _ => self.faulty(),
        };
        Asked {
            function,
            method,
            target,
            body,
            expected,
        }
    }

    fn one_in(&mut self, many: u32) -> bool {
        self.rng.random_ratio(1, many)
    }

    fn echo(&mut self) -> Drawn {
        let longest = if self.one_in(LONG_BODY_ONE_IN) {
            LONG_BODY_BYTES
        } else {
            SHORT_BODY_BYTES
        };
        let mut body = vec![0; self.rng.random_range(0..=longest)];
        self.rng.fill_bytes(&mut body);
        let expected = Expected::Exactly {
            status: 200,
            body: body.clone(),
        };
        (Method::POST, "/".to_owned(), body, expected)
    }

    fn wordfreq(&mut self) -> Drawn {
        if self.one_in(20) {
            return get("/words".to_owned(), 200, "{\"words\":10000}\n");
        }
        if self.one_in(20) {
            return get("/?word=qqqq".to_owned(), 404, "no such word\n");
        }
        match self.words.choose(&mut self.rng) {
            Some((word, answer)) => get(format!("/?word={word}"), 200, answer),
            None => get("/?word=qqqq".to_owned(), 404, "no such word\n"),
        }
    }

    fn burn(&mut self) -> Drawn {
        let read: u64 = self.rng.random_range(0..200);
        let write: u64 = self.rng.random_range(0..100);
        let seed: u32 = self.rng.random();
        let target = format!("/?read={read}&write={write}&seed={seed}");
        // The word of each page is its number, from 1 on.
        let sum = read * (read + 1) / 2;
        let answer = format!("{{\"ms\":0,\"read\":{read},\"write\":{write},\"sum\":{sum}}}\n");
        get(target, 200, &answer)
    }

    fn whoami(&mut self) -> Drawn {
        match self.rng.random_range(0..8) {
            0 => {
                let secret: u64 = self.rng.random();
                let expected = Expected::Exactly {
                    status: 204,
                    body: Vec::new(),
                };
                let secret = format!("{secret:016x}").into_bytes();
                (Method::POST, "/secret".to_owned(), secret, expected)
            }
            // Whatever others kept.
            1 => get("/secret".to_owned(), 200, ""),
            // A thread: page tables change, so that this clone is not rolled back.
            2 => itself("/?thread=1"),
            _ => itself("/"),
        }
    }

    fn faulty(&mut self) -> Drawn {
        if self.one_in(2) {
            return get("/".to_owned(), 200, "fine\n");
        }
        let (target, code) = if self.one_in(IN_TIME_ONE_IN) {
            (
                IN_TIME[self.rng.random_range(0..IN_TIME.len())],
                "function-timeout",
            )
        } else {
            AT_ONCE[self.rng.random_range(0..AT_ONCE.len())]
        };
        (
            Method::GET,
            target.to_owned(),
            Vec::new(),
            Expected::Fails(code),
        )
    }
}

/// Method, target, body and what is expected.
type Drawn = (Method, String, Vec<u8>, Expected);

fn get(target: String, status: u16, answer: &str) -> Drawn {
    let expected = Expected::Exactly {
        status,
        body: answer.as_bytes().to_vec(),
    };
    (Method::GET, target, Vec::new(), expected)
}

fn itself(target: &str) -> Drawn {
    (Method::GET, target.to_owned(), Vec::new(), Expected::Itself)
}
