//! One request and its answer.

use std::error::Error as _;
use std::io;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::Version;
use hyper::body::Incoming;
use hyper::header::HeaderName;

use super::connections::Connection;
use crate::plan::Request;
use crate::recorder::{Answer, Failure};

/// Where Dormouse says which error of its own a reply is.
const ERROR_CODE: HeaderName = HeaderName::from_static("x-dormouse-error");
/// Longer bodies are no answers to a benchmark.
const MAX_BODY_BYTES: u64 = 1 << 30;
/// Of a body that is looked into, so much is kept.
const MAX_KEPT_BYTES: usize = 16 << 20;

/// Sends a request and reads the whole answer. `None` where the connection had been closed before
/// anything was sent, so that another one may be tried.
pub(crate) async fn exchange(
    connection: &mut Connection,
    request: &Request,
) -> Option<Result<Answer, Failure>> {
    let mut sent = hyper::Request::new(Full::new(request.body.clone()));
    *sent.method_mut() = request.method.clone();
    *sent.uri_mut() = request.uri.clone();
    *sent.version_mut() = Version::HTTP_11;
    *sent.headers_mut() = request.headers.clone();
    match connection.send_request(sent).await {
        Ok(reply) => Some(read(reply, request).await),
        Err(error) if error.is_canceled() => None,
        Err(error) => Some(Err(Failure::exchanging(&error))),
    }
}

async fn read(reply: hyper::Response<Incoming>, request: &Request) -> Result<Answer, Failure> {
    let (parts, mut body) = reply.into_parts();
    let mut body_bytes = 0;
    let mut kept = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Failure::exchanging(&error))?;
        let Some(data) = frame.data_ref() else {
            continue;
        };
        body_bytes += data.len() as u64;
        if body_bytes > MAX_BODY_BYTES {
            let example = format!("the body has more than {MAX_BODY_BYTES} bytes");
            return Err(Failure::new("body-too-large", example));
        }
        if request.expected_body.is_some() && kept.len() < MAX_KEPT_BYTES {
            kept.extend_from_slice(data);
        }
    }
    let status = parts.status.as_u16();
    let is_expected = request
        .expected_status
        .map_or(status < 400, |expected| status == expected);
    if !is_expected {
        let code = parts.headers.get(ERROR_CODE);
        let code = code
            .and_then(|code| code.to_str().ok())
            .filter(|code| code.len() <= 40)
            .map(|code| format!("/{code}"));
        let code = code.unwrap_or_default();
        return Err(Failure {
            kind: format!("status-{status}{code}"),
            example: format!("the answer had status {status}"),
            status: Some(status),
        });
    }
    if let Some(expected) = &request.expected_body
        && !contains(&kept, expected)
    {
        let begin = String::from_utf8_lossy(&kept[..kept.len().min(80)]).into_owned();
        return Err(Failure {
            kind: "wrong-answer".to_owned(),
            example: format!("the answer lacks what is expected; it begins with {begin:?}"),
            status: Some(status),
        });
    }
    Ok(Answer {
        status,
        headers: parts.headers,
        body_bytes,
    })
}

fn contains(body: &[u8], expected: &Bytes) -> bool {
    expected.is_empty()
        || body
            .windows(expected.len())
            .any(|window| window == expected.as_ref())
}

impl Failure {
    pub(crate) fn new(kind: &str, example: impl Into<String>) -> Self {
        Self {
            kind: kind.to_owned(),
            example: example.into(),
            status: None,
        }
    }

    /// No connection.
    pub(crate) fn connecting(error: &io::Error) -> Self {
        let kind = match error.kind() {
            io::ErrorKind::ConnectionRefused => "connection-refused",
            io::ErrorKind::TimedOut => "connection-timeout",
            _ => "no-connection",
        };
        Self::new(kind, format!("connecting: {error}"))
    }

    /// No whole answer.
    pub(crate) fn exchanging(error: &hyper::Error) -> Self {
        let io = error
            .source()
            .and_then(|source| source.downcast_ref::<io::Error>());
        let kind = if error.is_parse() {
            "not-http"
        } else if error.is_incomplete_message() {
            "closed"
        } else {
            match io.map(io::Error::kind) {
                Some(io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe) => "reset",
                Some(io::ErrorKind::UnexpectedEof) => "closed",
                _ if error.is_body_write_aborted() || error.is_closed() => "closed",
                _ => "broken",
            }
        };
        let cause = error.source().map(|source| format!(": {source}"));
        Self::new(kind, format!("{error}{}", cause.unwrap_or_default()))
    }
}
