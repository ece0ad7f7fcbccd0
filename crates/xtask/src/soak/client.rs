//! An HTTP client that tells a hang from a broken connection.

use std::time::Duration;

use serde_json::Value;
use ureq::http::{Method, Request};

/// A client with connections of its own.
pub(super) struct Client {
    agent: ureq::Agent,
    url: String,
}

/// What came back, whoever said it.
#[derive(Debug, Clone, Default)]
pub(super) struct Reply {
    pub(super) status: u16,
    /// The code of the server's error, where it is one and not the function's own answer.
    pub(super) error: Option<String>,
    pub(super) has_retry_after: bool,
    pub(super) body: Vec<u8>,
}

/// Why nothing came back.
#[derive(Debug)]
pub(super) enum Failure {
    /// Nothing came for as long as the client waits.
    Hung,
    /// The connection was refused, reset, or spoke something else.
    Broken(String),
}

impl Client {
    /// A client that takes a server without an answer for hung after `patience`.
    pub(super) fn new(url: &str, patience: Duration) -> Self {
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .max_idle_connections_per_host(1)
            .timeout_global(Some(patience))
            .build();
        Self {
            agent: config.into(),
            url: url.to_owned(),
        }
    }

    /// Sends a request. A body is sent with the methods that have one only.
    pub(super) fn send(&self, method: &Method, path: &str, body: &[u8]) -> Result<Reply, Failure> {
        let request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.url));
        let broken = |error: &dyn std::fmt::Display| Failure::Broken(error.to_string());
        let failed = |error: ureq::Error| match error {
            ureq::Error::Timeout(_) => Failure::Hung,
            error => broken(&error),
        };
        let sent = if matches!(*method, Method::POST | Method::PUT) {
            let request = request.body(body).map_err(|error| broken(&error))?;
            self.agent.run(request)
        } else {
            let request = request.body(()).map_err(|error| broken(&error))?;
            self.agent.run(request)
        };
        let mut reply = sent.map_err(failed)?;
        let header = |name: &str| {
            let value = reply.headers().get(name)?;
            value.to_str().ok().map(str::to_owned)
        };
        Ok(Reply {
            status: reply.status().as_u16(),
            error: header("x-dormouse-error"),
            has_retry_after: header("retry-after")
                .is_some_and(|value| value.parse::<u32>().is_ok()),
            body: reply.body_mut().read_to_vec().map_err(failed)?,
        })
    }
}

impl Reply {
    /// The code in the problem document's own words.
    pub(super) fn problem(&self) -> Option<String> {
        let document: Value = serde_json::from_slice(&self.body).ok()?;
        document["code"].as_str().map(str::to_owned)
    }

    /// For a sentence: status, code and the beginning of the body.
    pub(super) fn describe(&self) -> String {
        const SHOWN_BYTES: usize = 200;
        let shown = &self.body[..self.body.len().min(SHOWN_BYTES)];
        format!(
            "{} {} and {} bytes: {:?}",
            self.status,
            self.error.as_deref().unwrap_or("without an error's code"),
            self.body.len(),
            String::from_utf8_lossy(shown)
        )
    }
}
