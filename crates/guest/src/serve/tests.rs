use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use dormouse_abi::{HeadReader, Header, Location, MAILBOX_BYTES, Mailbox, Sizes};

use super::*;

/// A host in the same address space: gives prepared requests and keeps the answers.
struct TestHost {
    mailbox: Box<Mailbox>,
    buffer: Vec<u8>,
    requests: std::vec::IntoIter<TestRequest>,
    answers: Vec<Answer>,
}

#[derive(Clone, Default)]
struct TestRequest {
    fields: Vec<&'static [u8]>,
    body: Vec<u8>,
    in_buffer: bool,
    generation: u64,
}

#[derive(Debug, PartialEq)]
struct Answer {
    kind: Kind,
    status: u32,
    fields: Vec<Vec<u8>>,
    body: Vec<u8>,
    body_is_inline: bool,
}

impl TestHost {
    fn new(requests: Vec<TestRequest>) -> Self {
        Self {
            mailbox: Box::new(Mailbox::new()),
            buffer: vec![0; REQUEST_BUFFER_BYTES],
            requests: requests.into_iter(),
            answers: Vec::new(),
        }
    }

    fn read(&self, address: u64, bytes: u64) -> &[u8] {
        if bytes == 0 {
            return &[];
        }
        // SAFETY: the tests' guest is this process, and it names live memory only.
        unsafe { std::slice::from_raw_parts(address as *const u8, bytes as usize) }
    }

    fn write_request(&mut self, request: &TestRequest) {
        let room = if request.in_buffer {
            &mut self.buffer[..]
        } else {
            &mut self.mailbox.inline[..]
        };
        let mut writer = HeadWriter::new(room);
        for field in &request.fields {
            writer.put(field).unwrap();
        }
        let head_bytes = writer.used_bytes();
        room[head_bytes..][..request.body.len()].copy_from_slice(&request.body);
        let header = &mut self.mailbox.header;
        header.generation = request.generation;
        header.entropy = [request.generation as u8; 32];
        header.seal(Sizes {
            location: if request.in_buffer {
                Location::Buffer
            } else {
                Location::Inline
            },
            head_bytes: head_bytes as u32,
            body_bytes: request.body.len() as u64,
        });
    }
}

impl Host for TestHost {
    fn mailbox(&self) -> &Mailbox {
        &self.mailbox
    }

    fn mailbox_mut(&mut self) -> &mut Mailbox {
        &mut self.mailbox
    }

    fn request_buffer_address(&self) -> u64 {
        self.buffer.as_ptr() as u64
    }

    fn request_buffer(&self, bytes: usize) -> &[u8] {
        &self.buffer[..bytes]
    }

    fn ticks(&self) -> u64 {
        self.answers.len() as u64 + 1
    }

    fn exchange(&mut self) -> bool {
        let header: Header = self.mailbox.header;
        header.check_registration().unwrap();
        let kind = header.check_message().unwrap();
        if kind != Kind::Ready {
            let entered = if kind == Kind::InitError {
                0
            } else {
                self.ticks()
            };
            assert_eq!(header.handler_tsc, entered);
            if kind != Kind::InitError {
                assert_eq!(header.confirmed, header.confirmation());
            }
            let page = std::ptr::from_ref(&*self.mailbox) as u64;
            let head = self.read(header.answer_head_address, header.answer_head_bytes);
            self.answers.push(Answer {
                kind,
                status: header.status,
                fields: HeadReader::new(head).map(<[u8]>::to_vec).collect(),
                body: self
                    .read(header.answer_body_address, header.answer_body_bytes)
                    .to_vec(),
                body_is_inline: (page..page + MAILBOX_BYTES as u64)
                    .contains(&header.answer_body_address),
            });
        }
        match self.requests.next() {
            Some(request) => {
                self.write_request(&request);
                true
            }
            None => false,
        }
    }
}

fn request(body: &[u8], in_buffer: bool) -> TestRequest {
    TestRequest {
        fields: vec![
            b"POST",
            b"/a/b?x=1&flag&y=",
            b"X-One",
            b"1",
            b"x-two",
            b"\xff",
        ],
        body: body.to_vec(),
        in_buffer,
        generation: 1,
    }
}

fn answers<R: IntoResponse>(
    requests: Vec<TestRequest>,
    handler: impl FnMut(Request<'_>) -> R,
) -> Vec<Answer> {
    let mut host = TestHost::new(requests);
    let hooks = Hooks {
        before_snapshot: Vec::new(),
        after_restore: Vec::new(),
    };
    run(&mut host, hooks, handler);
    host.answers
}

#[test]
fn a_request_is_seen_as_it_was_sent() {
    for in_buffer in [false, true] {
        let all = answers(vec![request(b"body", in_buffer)], |request| {
            assert_eq!(request.method(), "POST");
            assert_eq!(request.target(), "/a/b?x=1&flag&y=");
            assert_eq!(request.path(), "/a/b");
            assert_eq!(request.query(), "x=1&flag&y=");
            assert_eq!(request.query_value("x"), Some("1"));
            assert_eq!(request.query_value("flag"), Some(""));
            assert_eq!(request.query_value("y"), Some(""));
            assert_eq!(request.query_value("z"), None);
            assert_eq!(request.header("x-one"), Some(b"1".as_slice()));
            assert_eq!(request.header("X-Two"), Some(b"\xff".as_slice()));
            assert_eq!(request.header("x-three"), None);
            assert_eq!(request.headers().count(), 2);
            assert_eq!(request.body(), b"body");
            assert_eq!(request.generation(), 1);
        });
        assert_eq!(all[0].status, 204);
    }
}

#[test]
fn a_small_answer_stays_in_the_mailbox() {
    let all = answers(vec![request(b"", false)], |_| "hello");
    assert_eq!(
        all,
        [Answer {
            kind: Kind::Answer,
            status: 200,
            fields: vec![
                b"content-type".to_vec(),
                b"text/plain; charset=utf-8".to_vec()
            ],
            body: b"hello".to_vec(),
            body_is_inline: true,
        }]
    );
}

#[test]
fn answers_of_every_size_arrive_whole() {
    for head_bytes in [0, 100, INLINE_BYTES - 9, INLINE_BYTES, 50_000] {
        for body_bytes in [
            0,
            1,
            INLINE_BODY_BYTES,
            INLINE_BODY_BYTES + 1,
            4096,
            1 << 20,
        ] {
            let value: Vec<u8> = (0..head_bytes).map(|at| at as u8).collect();
            let body: Vec<u8> = (0..body_bytes).map(|at| (at >> 3) as u8).collect();
            let response = Response::new(418)
                .with_header("v", value.clone())
                .with_body(body.clone());
            let all = answers(vec![request(b"", false)], |_| response.clone());
            assert_eq!(all[0].status, 418);
            assert_eq!(all[0].fields, [b"v".to_vec(), value]);
            assert_eq!(all[0].body, body);
        }
    }
}

#[test]
fn the_requests_body_goes_back_without_a_copy() {
    for (bytes, in_buffer) in [(0, false), (3000, false), (5 << 20, true)] {
        let body: Vec<u8> = (0..bytes).map(|at| (at * 7) as u8).collect();
        let all = answers(vec![request(&body, in_buffer)], |_| {
            Response::new(200)
                .with_body_of_request()
                .with_header("x-long", vec![b'v'; 600])
        });
        assert_eq!(all[0].body, body);
        assert_eq!(all[0].fields[1].len(), 600);
    }
}

#[test]
fn errors_are_no_answers() {
    let all = answers(vec![request(b"", false); 2], |_| {
        Err::<Response, _>("no such luck")
    });
    assert_eq!(all.len(), 2);
    assert_eq!(all[0].kind, Kind::Error);
    assert_eq!(all[0].body, b"no such luck");
}

#[test]
fn a_failed_init_is_reported() {
    let mut host = TestHost::new(Vec::new());
    refuse(&mut host, "the dictionary is missing");
    assert_eq!(host.answers[0].kind, Kind::InitError);
    assert_eq!(host.answers[0].body, b"the dictionary is missing");
}

#[test]
fn hooks_run_once_before_the_snapshot_and_once_per_generation() {
    let (before, after) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (counted_before, counted_after) = (before.clone(), after.clone());
    crate::before_snapshot(move || {
        counted_before.fetch_add(1, Ordering::Relaxed);
    });
    crate::after_restore(move || {
        counted_after.fetch_add(1, Ordering::Relaxed);
    });
    let requests = [1, 1, 2].map(|generation| TestRequest {
        generation,
        ..request(b"", false)
    });
    let mut host = TestHost::new(requests.to_vec());
    run(&mut host, Hooks::take(), |_| {
        format!(
            "{} {}",
            before.load(Ordering::Relaxed),
            after.load(Ordering::Relaxed)
        )
    });
    let all = host.answers;
    let bodies: Vec<_> = all.iter().map(|answer| answer.body.as_slice()).collect();
    assert_eq!(bodies, [b"1 1", b"1 1", b"1 2"]);
}
