//! A real server and a client that costs as little as one can: blocking, one connection that stays
//! open, one write and few reads a request.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::Error;

/// How long a server may take to listen, or a reply to come.
const PATIENCE: Duration = Duration::from_secs(60);

/// `dormouse serve` in a process of its own; it ends with this value.
#[derive(Debug)]
pub(crate) struct Server {
    process: Child,
    address: String,
}

impl Server {
    /// Starts `dormouse` as a server over `store`, with further arguments.
    ///
    /// # Errors
    /// [`Error::System`] where it does not start.
    pub(crate) fn start(dormouse: &Path, store: &Path, more: &[&str]) -> Result<Self, Error> {
        let folder = tempfile::tempdir().map_err(Error::system("creating a folder"))?;
        let url_file: PathBuf = folder.path().join("url");
        let process = Command::new(dormouse)
            .args(["serve", "--listen", "127.0.0.1:0", "--url-file"])
            .arg(&url_file)
            .arg("--store")
            .arg(store)
            .args(more)
            .env("RUST_LOG", "error")
            .env_remove("DORMOUSE_TOKENS")
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(Error::system("starting dormouse serve"))?;
        // From here on it ends with the value.
        let mut server = Self {
            process,
            address: String::new(),
        };
        let begun = Instant::now();
        loop {
            if let Ok(url) = std::fs::read_to_string(&url_file) {
                server.address = url.trim().trim_start_matches("http://").to_owned();
                return Ok(server);
            }
            let ended = server.process.try_wait();
            if let Some(status) = ended.map_err(Error::system("waiting for dormouse serve"))? {
                return Err(wrong("dormouse serve", format!("it ended with {status}")));
            }
            if begun.elapsed() > PATIENCE {
                return Err(wrong("dormouse serve", "it does not listen"));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// A new connection.
    ///
    /// # Errors
    /// [`Error::System`].
    pub(crate) fn connect(&self) -> Result<Connection, Error> {
        let failed = |source| Error::System {
            operation: "connecting to dormouse serve",
            source,
        };
        let stream = TcpStream::connect(&self.address).map_err(failed)?;
        stream.set_nodelay(true).map_err(failed)?;
        stream.set_read_timeout(Some(PATIENCE)).map_err(failed)?;
        Ok(Connection {
            stream,
            host: self.address.clone(),
            received: Vec::with_capacity(16 << 10),
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // A server that is gone already is as good.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// One connection to a server.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: TcpStream,
    host: String,
    received: Vec<u8>,
}

/// What of a reply is looked at.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) start_type: String,
    server_timing: String,
    pub(crate) body: Vec<u8>,
}

impl Connection {
    /// A request that must succeed.
    ///
    /// # Errors
    /// [`Error::Answer`] where it does not, [`Error::System`] where the connection fails.
    pub(crate) fn get(&mut self, path: &str) -> Result<Reply, Error> {
        let request = format!("GET {path} HTTP/1.1\r\nhost: {}\r\n\r\n", self.host);
        self.stream
            .write_all(request.as_bytes())
            .map_err(Error::system("sending a request"))?;
        let reply = self.receive(path)?;
        if !(200..300).contains(&reply.status) {
            let text = String::from_utf8_lossy(&reply.body).into_owned();
            return Err(wrong(path, format!("{}: {text}", reply.status)));
        }
        Ok(reply)
    }

    fn receive(&mut self, path: &str) -> Result<Reply, Error> {
        self.received.clear();
        let mut part = [0; 16 << 10];
        loop {
            if let Some((reply, bytes)) =
                parse(&self.received).map_err(|error| wrong(path, error))?
                && self.received.len() >= bytes
            {
                return Ok(reply);
            }
            let read = self.stream.read(&mut part);
            match read.map_err(Error::system("receiving a reply"))? {
                0 => return Err(wrong(path, "the connection ended")),
                bytes => self.received.extend_from_slice(&part[..bytes]),
            }
        }
    }
}

/// A reply and its length with its body, once its head is there. The body is what of it is there.
fn parse(received: &[u8]) -> Result<Option<(Reply, usize)>, String> {
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut head = httparse::Response::new(&mut headers);
    let parsed = head.parse(received).map_err(|error| error.to_string())?;
    let httparse::Status::Complete(head_bytes) = parsed else {
        return Ok(None);
    };
    let mut reply = Reply {
        status: head.code.unwrap_or(0),
        ..Reply::default()
    };
    let mut body_bytes = None;
    for header in head.headers.iter() {
        let value = || String::from_utf8_lossy(header.value).into_owned();
        match header.name.to_ascii_lowercase().as_str() {
            "content-length" => body_bytes = value().parse().ok(),
            "server-timing" => reply.server_timing = value(),
            "x-start-type" => reply.start_type = value(),
            _ => {}
        }
    }
    let body_bytes: usize = body_bytes.ok_or("it does not say how long it is")?;
    let end = head_bytes.saturating_add(body_bytes);
    reply.body = received[head_bytes..end.min(received.len())].to_vec();
    Ok(Some((reply, end)))
}

impl Reply {
    /// The duration `name` of its `Server-Timing`, in microseconds.
    pub(crate) fn timing_us(&self, name: &str) -> Option<f64> {
        self.server_timing.split(", ").find_map(|entry| {
            let mut fields = entry.split(';');
            if fields.next()?.trim() != name {
                return None;
            }
            let ms: f64 = fields
                .find_map(|field| field.strip_prefix("dur="))?
                .parse()
                .ok()?;
            Some(ms * 1e3)
        })
    }
}

fn wrong(what: &str, answer: impl Into<String>) -> Error {
    Error::Answer {
        what: what.to_owned(),
        answer: answer.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPLY: &str = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nx-start-type: restored\r\n\
        server-timing: queue;dur=0.054, faults;dur=0.200;desc=\"2\", run;dur=1.5\r\n\r\nhello";

    #[test]
    fn a_reply_is_whole_or_not_yet() {
        let (reply, bytes) = parse(REPLY.as_bytes()).unwrap().unwrap();
        assert_eq!(bytes, REPLY.len());
        assert_eq!((reply.status, &reply.body[..]), (200, &b"hello"[..]));
        assert_eq!(reply.start_type, "restored");
        let (_, bytes) = parse(&REPLY.as_bytes()[..REPLY.len() - 1])
            .unwrap()
            .unwrap();
        assert_eq!(bytes, REPLY.len());
        assert_eq!(parse(&REPLY.as_bytes()[..20]), Ok(None));
        assert!(parse(b"HTTP/1.1 200 OK\r\n\r\n").is_err(), "no length");
        assert!(parse(b"nonsense\r\n\r\n").is_err());
    }

    #[test]
    fn timings_are_found_by_name() {
        let (reply, _) = parse(REPLY.as_bytes()).unwrap().unwrap();
        let timing = |name| reply.timing_us(name);
        assert_eq!(timing("queue"), Some(54.0));
        assert_eq!(timing("faults"), Some(200.0));
        assert_eq!(timing("run"), Some(1500.0));
        assert_eq!(timing("restore"), None);
    }
}
