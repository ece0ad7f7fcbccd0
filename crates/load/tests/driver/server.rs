//! A server whose faults are known: it does what the request's path says.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use socket2::SockRef;

/// What it shares with its connections.
#[derive(Default)]
struct Shared {
    requests: AtomicU64,
    is_over: AtomicBool,
    /// While this is held, `/stalling` answers nobody.
    stall: Mutex<()>,
    /// Which request holds it, and for how long.
    stalling: OnceLock<(u64, Duration)>,
    /// Served one at a time: `/one-at-a-time`.
    one: Mutex<()>,
    /// What was answered, by connection.
    seen: Mutex<Vec<Vec<Exchange>>>,
}

/// A request that was answered.
#[derive(Clone, Copy)]
struct Exchange {
    /// When it had been read.
    came: Instant,
    /// Just before the answer was written.
    answered: Instant,
}

/// A server in this process, with a thread per connection.
pub(crate) struct Server {
    address: SocketAddr,
    shared: Arc<Shared>,
}

impl Server {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let shared = Arc::new(Shared::default());
        let server = Self {
            address,
            shared: Arc::clone(&shared),
        };
        thread::spawn(move || {
            for stream in listener.incoming() {
                if shared.is_over.load(Ordering::Relaxed) {
                    return;
                }
                let shared = Arc::clone(&shared);
                let stream = stream.expect("a connection");
                // How it ends is the client's to judge.
                thread::spawn(move || drop(serve(stream, &shared)));
            }
        });
        server
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Requests that have come.
    pub(crate) fn requests(&self) -> u64 {
        self.shared.requests.load(Ordering::Relaxed)
    }

    /// Lets nobody be answered at `/stalling` from this request on, counted from 0, for so long.
    pub(crate) fn stall(&self, request: u64, time: Duration) {
        let set = self.shared.stalling.set((request, time));
        set.expect("one stall is enough");
    }

    /// For each request that was answered, a time after which its client sent it and one before which
    /// its client had the answer, seen from here: a client that uses a connection for one request
    /// after the other had the answer before it, and had this one before the next. The first and the
    /// last of a connection came between `from` and `to`.
    pub(crate) fn around(&self, from: Instant, to: Instant) -> Vec<(Instant, Instant)> {
        let seen = self.shared.seen.lock().expect("no panic");
        let mut around = Vec::new();
        for connection in seen.iter() {
            let before = connection.iter().map(|exchange| exchange.answered);
            let after = connection.iter().skip(1).map(|exchange| exchange.came);
            let sent = std::iter::once(from).chain(before);
            around.extend(sent.zip(after.chain([to])).take(connection.len()));
        }
        around
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::Relaxed);
        // So that the listener looks.
        drop(TcpStream::connect(self.address));
    }
}

/// A connection, and its request.
struct Asked<'a> {
    stream: TcpStream,
    shared: &'a Shared,
    /// Among all connections.
    place: usize,
    came: Instant,
}

impl Asked<'_> {
    fn answer(&mut self, status: &str, headers: &str, body: &str) -> std::io::Result<()> {
        let length = body.len();
        let head = format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\n{headers}\r\n{body}");
        // Before anybody can have the answer.
        self.shared.seen.lock().expect("no panic")[self.place].push(Exchange {
            came: self.came,
            answered: Instant::now(),
        });
        self.stream.write_all(head.as_bytes())
    }
}

fn serve(stream: TcpStream, shared: &Shared) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let place = {
        let mut seen = shared.seen.lock().expect("no panic");
        seen.push(Vec::new());
        seen.len() - 1
    };
    let mut asked = Asked {
        stream,
        shared,
        place,
        came: Instant::now(),
    };
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
        let mut length = 0;
        loop {
            line.clear();
            reader.read_line(&mut line)?;
            if line.trim().is_empty() {
                break;
            }
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().unwrap_or(0);
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        asked.came = Instant::now();
        let number = shared.requests.fetch_add(1, Ordering::Relaxed);
        let timing = "x-start-type: restored\r\nserver-timing: queue;dur=0.5, run;dur=1\r\n";
        match path.as_str() {
            "/stalling" => {
                let stall = shared.stall.lock().expect("no panic");
                if let Some((_, time)) = shared.stalling.get().filter(|(at, _)| *at == number) {
                    thread::sleep(*time);
                }
                drop(stall);
                asked.answer("200 OK", timing, "there")?;
            }
            "/one-at-a-time" => {
                let _turn = shared.one.lock().expect("no panic");
                thread::sleep(Duration::from_millis(10));
                asked.answer("200 OK", "", "there")?;
            }
            "/slow" => {
                thread::sleep(Duration::from_millis(30));
                asked.answer("200 OK", timing, "there")?;
            }
            "/full" => asked.answer(
                "503 Service Unavailable",
                "x-dormouse-error: queue-full\r\n",
                "",
            )?,
            "/hang" => thread::sleep(Duration::from_secs(30)),
            "/garbage" => {
                asked
                    .stream
                    .write_all(b"\x16\x03\x01 this is no HTTP\r\n\r\n")?;
                return Ok(());
            }
            "/cut" => {
                asked
                    .stream
                    .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nnot all")?;
                return Ok(());
            }
            "/close" => return Ok(()),
            "/reset" => {
                // Closing with unsent data thrown away is a reset.
                SockRef::from(&asked.stream).set_linger(Some(Duration::ZERO))?;
                return Ok(());
            }
            // Keep-alive that ends after each answer, without saying so. The end is in the answer's own
            // packet: nobody can send a request in between.
            "/once" => {
                SockRef::from(&asked.stream).set_tcp_cork(true)?;
                asked.answer("200 OK", "", "there")?;
                return asked.stream.shutdown(Shutdown::Write);
            }
            _ => asked.answer("200 OK", timing, "there")?,
        }
    }
}
