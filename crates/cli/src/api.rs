//! The API, served by a server or by this very process over a store: commands cannot tell which.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use axum::Router;
use axum::body::Body;
use axum::http::header::{AUTHORIZATION, HOST};
use axum::http::{HeaderValue, Method, Request, Response, Uri};
use bytes::Bytes;
use clap::Args;
use dormouse_pool::{Pool, PoolConfig, Verify};
use dormouse_server::{App, ErrorCode, Limits, Token, router};
use dormouse_snapshot::Store;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;
use tokio::net::TcpStream;
use tower::ServiceExt;

use crate::exit::{Exit, Failed};
use crate::output;
use crate::token::Given;
use crate::worker::IsolationArg;

const DEFAULT_STORE: &str = "snapshots/store";

/// All but RFC 3986's unreserved characters, so that any name is one path segment.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// Where the functions are
#[derive(Debug, Args)]
pub(crate) struct Place {
    /// The store to work on without a server [env: DORMOUSE_STORE] [default: snapshots/store]
    #[arg(long, value_name = "DIR")]
    store: Option<PathBuf>,

    /// The server to ask instead, for example http://127.0.0.1:8080 [env: DORMOUSE_SERVER]
    #[arg(long, value_name = "URL", conflicts_with = "store")]
    server: Option<String>,

    /// The token for the server, which others on this machine can see in the list of processes, so
    /// rather put it into a variable or a file [env: DORMOUSE_TOKEN]
    #[arg(long, value_name = "TOKEN")]
    token: Option<Given>,

    /// The file that holds the token for the server
    #[arg(long, value_name = "FILE", conflicts_with = "token")]
    token_file: Option<PathBuf>,
}

impl Place {
    /// An option on the command line counts more than any variable.
    pub(crate) fn server(&self) -> Option<String> {
        if self.store.is_some() {
            return None;
        }
        let variable = || std::env::var("DORMOUSE_SERVER").ok();
        self.server
            .clone()
            .or_else(variable)
            .filter(|url| !url.is_empty())
    }

    /// As above.
    fn token(&self) -> Result<Option<Token>, Failed> {
        if let Some(file) = &self.token_file {
            return Given::read(file)?.token().map(Some);
        }
        let given = self.token.clone().or_else(Given::from_environment);
        given.map(|given| given.token()).transpose()
    }

    pub(crate) fn open_store(&self) -> Result<Store> {
        open_store(self.store.clone())
    }
}

/// Opens the store in `folder`, in `$DORMOUSE_STORE` or in the default place.
pub(crate) fn open_store(folder: Option<PathBuf>) -> Result<Store> {
    let folder = folder
        .or_else(|| std::env::var_os("DORMOUSE_STORE").map(PathBuf::from))
        .unwrap_or_else(|| DEFAULT_STORE.into());
    Store::open(&folder).with_context(|| format!("cannot open the store {}", folder.display()))
}

/// A reply: its status, headers and body, whole.
pub(crate) type Reply = Response<Bytes>;

/// A way to the API.
pub(crate) enum Api {
    /// Over HTTP.
    Server(Server),
    /// In this process.
    Store { router: Router, pool: Pool },
}

impl Api {
    pub(crate) fn open(place: &Place) -> Result<Self> {
        if let Some(url) = place.server() {
            return Ok(Self::Server(Server::new(&url, place.token()?)?));
        }
        let config = PoolConfig {
            // One command is one request: nothing comes after it that a shell could serve.
            shells_ahead: 0,
            // And no later one that could profit from what is found beside it.
            verify: Verify::Always,
            // Nor does anybody wait for its end but the user.
            warm_timeout: Duration::MAX,
            isolation: IsolationArg::default().isolation(),
            ..PoolConfig::default()
        };
        let pool = Pool::new(place.open_store()?, config);
        let limits = Limits {
            // The image is a local file, of whatever size its owner likes.
            image_bytes: usize::MAX,
            ..Limits::default()
        };
        Ok(Self::Store {
            router: router(App::new(pool.clone(), limits)),
            pool,
        })
    }

    /// The API of a server that wants no token.
    pub(crate) fn at(url: &str) -> Result<Self> {
        Ok(Self::Server(Server::new(url, None)?))
    }

    /// Sends a request and reads the whole reply.
    ///
    /// # Errors
    /// Where there is no reply. A reply that is an error is a reply; see [`problem`].
    pub(crate) async fn send(&self, request: Request<Bytes>) -> Result<Reply> {
        match self {
            Self::Server(server) => server.send(request).await,
            Self::Store { router, .. } => {
                let response = router.clone().oneshot(request.map(Body::from)).await?;
                let (parts, body) = response.into_parts();
                Ok(Response::from_parts(
                    parts,
                    body.collect().await?.to_bytes(),
                ))
            }
        }
    }

    /// Asks for JSON.
    ///
    /// # Errors
    /// Where the reply is an error.
    pub(crate) async fn json(&self, method: Method, path: &str, body: Bytes) -> Result<Value> {
        let request = Request::builder().method(method).uri(path).body(body);
        let reply = self.send(request.context("this makes no URL")?).await?;
        if let Some(failed) = problem(&reply) {
            return Err(failed.into());
        }
        if reply.body().is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(reply.body()).map_err(|_| stranger("its reply is not JSON").into())
    }

    /// Lets go of what runs in this process.
    pub(crate) async fn close(self) {
        if let Self::Store { pool, .. } = self {
            pool.drain(Duration::from_secs(1)).await;
        }
    }
}

/// The path of a function, whatever its name.
pub(crate) fn function_path(name: &str) -> String {
    format!("/v1/functions/{}", utf8_percent_encode(name, ESCAPED))
}

/// The error in a reply that is one of Dormouse's own; its console goes to stderr at once.
pub(crate) fn problem(reply: &Reply) -> Option<Failed> {
    let code = reply.headers().get("x-dormouse-error");
    let Some(code) = code else {
        // Only `…/invoke` gives other errors, and its caller looks at the status itself.
        let of_function = reply.headers().contains_key("x-start-type");
        return (!of_function && !reply.status().is_success())
            .then(|| stranger(&format!("it says {}", reply.status())));
    };
    let document: Value = serde_json::from_slice(reply.body()).unwrap_or_default();
    let console = document["console"].as_str().unwrap_or_default();
    if !console.is_empty() {
        eprintln!("{}", output::shown(console.trim_end()));
    }
    let detail = document["detail"].as_str().unwrap_or("it does not say why");
    let code = code.to_str().ok().and_then(ErrorCode::from_text);
    Some(code.map_or_else(
        || stranger(&format!("its error is unknown: {detail}")),
        |code| Failed::of_code(code, detail),
    ))
}

fn stranger(what: &str) -> Failed {
    Failed::new(
        Exit::Protocol,
        format!("what answers is not a Dormouse server of this version: {what}"),
    )
    .hint("check the URL and the server's version")
}

/// A server at a URL.
pub(crate) struct Server {
    url: String,
    /// Host and port.
    authority: String,
    /// The host as the `Host` header has it.
    host: HeaderValue,
    /// What the `Authorization` header has, where there is a token.
    bearer: Option<HeaderValue>,
}

impl Server {
    fn new(url: &str, token: Option<Token>) -> Result<Self, Failed> {
        let wrong = || {
            Failed::new(Exit::Usage, format!("{url:?} is not a server's URL"))
                .hint("write for example http://127.0.0.1:8080")
        };
        let uri: Uri = url.parse().map_err(|_| wrong())?;
        let plain = uri.scheme_str() == Some("http") && uri.path() == "/" && uri.query().is_none();
        let (Some(host), true) = (uri.host(), plain) else {
            return Err(wrong());
        };
        let port = uri.port_u16().unwrap_or(80);
        let bearer = token.and_then(|token| {
            // A token's characters are all allowed in a header value.
            let mut value = HeaderValue::from_str(&format!("Bearer {}", token.reveal())).ok()?;
            value.set_sensitive(true);
            Some(value)
        });
        Ok(Self {
            url: url.to_owned(),
            authority: format!("{host}:{port}"),
            host: HeaderValue::from_str(&format!("{host}:{port}")).map_err(|_| wrong())?,
            bearer,
        })
    }

    async fn send(&self, mut request: Request<Bytes>) -> Result<Reply> {
        let unreachable = |reason: &dyn std::fmt::Display| {
            Failed::new(
                Exit::Unavailable,
                format!("the server {} does not answer: {reason}", self.url),
            )
            .hint("start one with `dormouse serve`, or leave --server out to work on the store")
        };
        let stream = TcpStream::connect(&self.authority)
            .await
            .map_err(|error| unreachable(&error))?;
        // Only delay is at stake.
        let _ = stream.set_nodelay(true);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| unreachable(&error))?;
        let connection = tokio::spawn(connection);
        let headers = request.headers_mut();
        headers.entry(HOST).or_insert_with(|| self.host.clone());
        if let Some(bearer) = &self.bearer {
            // What was given with --header is meant.
            headers.entry(AUTHORIZATION).or_insert(bearer.clone());
        }
        let response = sender
            .send_request(request.map(Full::new))
            .await
            .map_err(|error| unreachable(&error))?;
        let (parts, body) = response.into_parts();
        let body = body.collect().await.map_err(|error| unreachable(&error))?;
        connection.abort();
        Ok(Response::from_parts(parts, body.to_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        let authority = |url| Server::new(url, None).map(|server| server.authority);
        assert_eq!(
            authority("http://127.0.0.1:8080").unwrap(),
            "127.0.0.1:8080"
        );
        assert_eq!(authority("http://[::1]:8080/").unwrap(), "[::1]:8080");
        assert_eq!(authority("http://host").unwrap(), "host:80");
        for url in [
            "",
            "host",
            "https://host",
            "http://",
            "http://h/api",
            "http://h/?q",
        ] {
            assert_eq!(authority(url).unwrap_err().exit, Exit::Usage, "{url}");
        }
    }

    #[test]
    fn a_name_is_one_segment() {
        assert_eq!(function_path("a/b?ü"), "/v1/functions/a%2Fb%3F%C3%BC");
    }

    #[test]
    fn replies_of_strangers_are_told_apart() {
        let reply = |status: u16, header: Option<(&str, &str)>, body: &str| {
            let mut builder = Response::builder().status(status);
            if let Some((name, value)) = header {
                builder = builder.header(name, value);
            }
            problem(&builder.body(Bytes::from(body.to_owned())).unwrap()).map(|p| p.exit)
        };
        let start = Some(("x-start-type", "restored"));
        assert_eq!(reply(200, None, "{}"), None);
        assert_eq!(reply(500, start, "the function's own"), None);
        assert_eq!(reply(502, None, "<html>"), Some(Exit::Protocol));
        let code = |code| Some(("x-dormouse-error", code));
        assert_eq!(reply(429, code("queue-full"), "{}"), Some(Exit::Temporary));
        assert_eq!(reply(418, code("teapot"), "-"), Some(Exit::Protocol));
    }
}
