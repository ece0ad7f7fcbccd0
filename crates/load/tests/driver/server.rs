//! A server whose faults are known: it does what the request's path says.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
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
    /// Served one at a time: `/one-at-a-time`.
    one: Mutex<()>,
    first: Mutex<Option<Instant>>,
    begun: Condvar,
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

    /// Lets nobody be answered at `/stalling` from a time after the first request on, for so long.
    pub(crate) fn stall(&self, after: Duration, time: Duration) -> thread::JoinHandle<()> {
        let shared = Arc::clone(&self.shared);
        thread::spawn(move || {
            let first = shared.first.lock().expect("no panic");
            let first = shared
                .begun
                .wait_while(first, |first| first.is_none())
                .expect("no panic");
            let begun = first.expect("it has begun");
            drop(first);
            thread::sleep((begun + after).saturating_duration_since(Instant::now()));
            let _stalled = shared.stall.lock().expect("no panic");
            thread::sleep(time);
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::Relaxed);
        // So that the listener looks.
        drop(TcpStream::connect(self.address));
    }
}

fn answer(stream: &mut TcpStream, status: &str, headers: &str, body: &str) -> std::io::Result<()> {
    let length = body.len();
    let head = format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\n{headers}\r\n{body}");
    stream.write_all(head.as_bytes())
}

fn serve(mut stream: TcpStream, shared: &Shared) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream.try_clone()?);
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
        let number = shared.requests.fetch_add(1, Ordering::Relaxed);
        if number == 0 {
            *shared.first.lock().expect("no panic") = Some(Instant::now());
            shared.begun.notify_all();
        }
        let timing = "x-start-type: restored\r\nserver-timing: queue;dur=0.5, run;dur=1\r\n";
        match path.as_str() {
            "/stalling" => {
                drop(shared.stall.lock().expect("no panic"));
                answer(&mut stream, "200 OK", timing, "there")?;
            }
            "/one-at-a-time" => {
                let _turn = shared.one.lock().expect("no panic");
                thread::sleep(Duration::from_millis(10));
                answer(&mut stream, "200 OK", "", "there")?;
            }
            "/slow" => {
                thread::sleep(Duration::from_millis(30));
                answer(&mut stream, "200 OK", timing, "there")?;
            }
            "/full" => answer(
                &mut stream,
                "503 Service Unavailable",
                "x-dormouse-error: queue-full\r\n",
                "",
            )?,
            "/hang" => thread::sleep(Duration::from_secs(30)),
            "/garbage" => {
                stream.write_all(b"\x16\x03\x01 this is no HTTP\r\n\r\n")?;
                return Ok(());
            }
            "/cut" => {
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nnot all")?;
                return Ok(());
            }
            "/close" => return Ok(()),
            "/reset" => {
                // Closing with unsent data thrown away is a reset.
                SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
                return Ok(());
            }
            // Keep-alive that ends after each answer, without saying so.
            "/once" => {
                answer(&mut stream, "200 OK", "", "there")?;
                return Ok(());
            }
            _ => answer(&mut stream, "200 OK", timing, "there")?,
        }
    }
}
