//! An HTTP client, and replies that are easy to ask.

use std::time::Duration;

use serde_json::Value;
use ureq::http::{HeaderMap, Method, Request};

/// A client of one server. Clones share their connections.
#[derive(Debug, Clone)]
pub struct Client {
    agent: ureq::Agent,
    url: String,
}

impl Client {
    pub(crate) fn new(url: &str) -> Self {
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .allow_non_standard_methods(true)
            .max_idle_connections_per_host(16)
            .timeout_global(Some(Duration::from_secs(120)))
            .build();
        Self {
            agent: config.into(),
            url: url.to_owned(),
        }
    }

    /// The server's URL, without a slash at its end.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Sends any request; nothing where the connection failed.
    ///
    /// # Panics
    /// Where this is no request.
    pub fn try_send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &[u8])],
        body: &[u8],
    ) -> Option<Reply> {
        let mut request = Request::builder()
            .method(Method::from_bytes(method.as_bytes()).expect("a method"))
            .uri(format!("{}{path}", self.url));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let reply = if body.is_empty() && !matches!(method, "POST" | "PUT" | "PATCH") {
            self.agent.run(request.body(()).expect("a request"))
        } else {
            self.agent.run(request.body(body).expect("a request"))
        };
        let (parts, mut body) = reply.ok()?.into_parts();
        let body = body.with_config().limit(64 << 20).read_to_vec().ok()?;
        Some(Reply {
            status: parts.status.as_u16(),
            headers: parts.headers,
            body,
        })
    }

    /// Sends any request.
    ///
    /// # Panics
    /// Where no reply comes.
    #[track_caller]
    pub fn send(&self, method: &str, path: &str, headers: &[(&str, &[u8])], body: &[u8]) -> Reply {
        self.try_send(method, path, headers, body)
            .unwrap_or_else(|| panic!("no reply to {method} {path}"))
    }

    /// `GET path`
    #[track_caller]
    pub fn get(&self, path: &str) -> Reply {
        self.send("GET", path, &[], b"")
    }

    /// Deploys an image; `options` is the query, with its question mark.
    #[track_caller]
    pub fn put(&self, function: &str, options: &str, image: &[u8]) -> Reply {
        let path = format!("/v1/functions/{function}{options}");
        self.send("PUT", &path, &[], image)
    }

    /// `GET` on a function; `target` is the path and the query that it sees.
    #[track_caller]
    pub fn invoke(&self, function: &str, target: &str) -> Reply {
        self.get(&format!("/v1/functions/{function}/invoke{target}"))
    }

    /// `POST` on a function.
    #[track_caller]
    pub fn post(&self, function: &str, target: &str, body: &[u8]) -> Reply {
        let path = format!("/v1/functions/{function}/invoke{target}");
        self.send("POST", &path, &[], body)
    }

    /// The names of the functions that there are.
    #[track_caller]
    pub fn functions(&self) -> Vec<String> {
        let list = self.get("/v1/functions").ok().json();
        let functions = list["functions"].as_array().expect("a list").clone();
        functions
            .iter()
            .map(|function| function["name"].as_str().expect("a name").to_owned())
            .collect()
    }
}

/// A whole reply.
#[derive(Debug, Clone)]
pub struct Reply {
    /// The HTTP status.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: Vec<u8>,
}

impl Reply {
    /// This reply, which is a success.
    ///
    /// # Panics
    /// Where it is none.
    #[track_caller]
    #[must_use]
    pub fn ok(self) -> Self {
        assert!(
            (200..300).contains(&self.status),
            "{}: {}",
            self.status,
            self.text()
        );
        self
    }

    /// The body as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    ///
    /// # Panics
    /// Where it is not.
    #[track_caller]
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    /// A header that stands there once; empty where there is none.
    ///
    /// # Panics
    /// Where it stands there twice or is not text.
    #[track_caller]
    #[must_use]
    pub fn header(&self, name: &str) -> &str {
        let mut values = self.headers.get_all(name).iter();
        let value = values.next();
        assert!(values.next().is_none(), "{name} stands there twice");
        value.map_or("", |value| value.to_str().expect("text"))
    }

    /// The error that this reply is, after a look at all that an error must have.
    ///
    /// # Panics
    /// Where it is not one, or not a whole one.
    #[track_caller]
    #[must_use]
    pub fn problem(&self) -> Problem {
        let document = self.json();
        assert_eq!(self.header("content-type"), "application/problem+json");
        let member = |name: &str| document[name].as_str().unwrap_or_default().to_owned();
        let problem = Problem {
            status: self.status,
            code: member("code"),
            detail: member("detail"),
            console: member("console"),
        };
        assert_eq!(document["status"], self.status);
        assert_eq!(self.header("x-dormouse-error"), problem.code);
        assert_eq!(self.header("x-request-id"), member("instance"));
        assert!(member("type").ends_with(&format!("#{}", problem.code)));
        assert!(!member("title").is_empty());
        let detail = &problem.detail;
        assert!(
            detail.ends_with(['.', '!', '?']) && !detail.contains('\n') && detail.len() > 10,
            "not a sentence: {detail:?}"
        );
        problem
    }
}

/// What a problem document says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The HTTP status.
    pub status: u16,
    /// The stable word.
    pub code: String,
    /// One sentence.
    pub detail: String,
    /// The end of the function's console.
    pub console: String,
}

impl Problem {
    /// Status and code, as `api/errors.md` has them.
    #[must_use]
    pub fn kind(&self) -> (u16, &str) {
        (self.status, &self.code)
    }
}
