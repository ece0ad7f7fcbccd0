//! What one run does.

use std::time::Duration;

use bytes::Bytes;
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Uri};

use crate::arrivals::{Arrivals, Rate};
use crate::{Error, Target};

/// One run, ready to be made.
#[derive(Debug, Clone)]
pub struct Plan {
    /// What tells the run from others.
    pub name: String,
    /// When requests are sent.
    pub pattern: Pattern,
    /// What is sent.
    pub requests: Vec<Request>,
    /// How often each of the requests is sent, in relation to the others.
    pub weights: Vec<f64>,
    /// What is sent first and not measured.
    pub warmup: Duration,
    /// What is measured, after the warm-up.
    pub measured: Duration,
    /// Connections that may be open at once.
    pub connections: u32,
    /// Threads that send.
    pub threads: u32,
    /// From a request's intended time of sending to the last byte of its answer; what takes longer
    /// has failed.
    pub timeout: Duration,
    /// What random choices depend on.
    pub seed: u64,
}

/// When requests are sent.
#[derive(Debug, Clone, PartialEq)]
pub enum Pattern {
    /// At times of their own, whether or not others have been answered.
    Open(Arrivals),
    /// Each after the answer to the one before.
    Closed {
        /// Clients that do so side by side.
        concurrency: u32,
        /// How long each waits between an answer and its next request.
        think: Duration,
        /// How many requests all of them send in the measured time, at most.
        requests: Option<u64>,
    },
}

/// A request that is sent again and again.
#[derive(Debug, Clone)]
pub struct Request {
    /// What reports call it.
    pub name: String,
    /// Its method.
    pub method: Method,
    /// Its path and query, below the target's.
    pub uri: Uri,
    /// Its headers, `Host` among them.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
    /// The status of a good answer; any below 400 where there is none.
    pub expected_status: Option<u16>,
    /// What the body of a good answer contains.
    pub expected_body: Option<Bytes>,
}

impl Request {
    /// A request to a path (and query) of a target.
    ///
    /// # Errors
    /// [`Error::Setting`] where HTTP does not allow it.
    pub fn new(
        name: impl Into<String>,
        method: &str,
        target: &Target,
        path: &str,
        headers: &[(String, String)],
        body: Bytes,
    ) -> Result<Self, Error> {
        let name = name.into();
        let wrong = |what: &str, reason: String| {
            Error::setting(format!("the {what} of request {name:?}"), reason)
        };
        let parsed_method = Method::from_bytes(method.as_bytes())
            .map_err(|_| wrong("method", format!("{method:?} is none in HTTP")))?;
        let slash = if path.starts_with('/') { "" } else { "/" };
        let uri = format!("{}{slash}{path}", target.path())
            .parse()
            .map_err(|error| wrong("path", format!("{path:?} is none in HTTP: {error}")))?;
        let mut map = HeaderMap::new();
        map.insert(hyper::header::HOST, target.host_header().clone());
        for (key, value) in headers {
            let key = HeaderName::from_bytes(key.as_bytes())
                .map_err(|_| wrong("headers", format!("{key:?} is no header's name")))?;
            let value = HeaderValue::from_str(value)
                .map_err(|_| wrong("headers", format!("{value:?} is no header's value")))?;
            map.insert(key, value);
        }
        Ok(Self {
            name,
            method: parsed_method,
            uri,
            headers: map,
            body,
            expected_status: None,
            expected_body: None,
        })
    }
}

impl Plan {
    /// From the first request to the end of the measured time.
    #[must_use]
    pub fn length(&self) -> Duration {
        self.warmup.saturating_add(self.measured)
    }

    /// How requests come, in one line.
    #[must_use]
    pub fn describe(&self) -> String {
        match &self.pattern {
            Pattern::Open(arrivals) => format!("open loop, {}", describe(arrivals)),
            Pattern::Closed {
                concurrency, think, ..
            } => {
                let plural = if *concurrency == 1 { "" } else { "s" };
                let think = if think.is_zero() {
                    String::new()
                } else {
                    format!(", {think:?} between requests")
                };
                format!("closed loop, {concurrency} client{plural}{think}")
            }
        }
    }

    /// # Errors
    /// [`Error::Setting`] where it cannot be run.
    pub(crate) fn check(&self) -> Result<(), Error> {
        const DAY: Duration = Duration::from_secs(24 * 3600);
        let setting = |what: &str, reason: &str| {
            Err(Error::setting(
                format!("{what} of run {:?}", self.name),
                reason,
            ))
        };
        if self.requests.is_empty() {
            return setting("the requests", "there are none");
        }
        if self.measured.is_zero() || self.length() > 30 * DAY {
            return setting("the duration", "between a moment and 30 days");
        }
        if self.timeout.is_zero() || self.timeout > DAY {
            return setting("the timeout", "between a moment and a day");
        }
        if !(1..=64).contains(&self.threads) {
            return setting("threads", "between 1 and 64");
        }
        if !(self.threads..=100_000).contains(&self.connections) {
            return setting("connections", "one per thread at least, 100000 at most");
        }
        match &self.pattern {
            Pattern::Open(arrivals) => arrivals.check(),
            Pattern::Closed {
                concurrency,
                requests,
                ..
            } => {
                if !(self.threads..=self.connections).contains(concurrency) {
                    return setting(
                        "concurrency",
                        "one per thread at least, and no more than connections",
                    );
                }
                if *requests == Some(0) {
                    return setting("requests", "0 measure nothing");
                }
                Ok(())
            }
        }
    }
}

fn describe(arrivals: &Arrivals) -> String {
    match arrivals {
        Arrivals::Rated { rate, is_poisson } => {
            let how = if *is_poisson { "poisson" } else { "even" };
            match rate {
                Rate::Constant(rate) => format!("{how}, {}/s", round(*rate)),
                Rate::Steps(rates, each) => {
                    let rates: Vec<_> = rates.iter().map(|rate| round(*rate)).collect();
                    format!("{how}, steps of {each:?} at {}/s", rates.join(", "))
                }
                Rate::Ramp(from, to) => {
                    format!("{how}, ramp from {} to {}/s", round(*from), round(*to))
                }
            }
        }
        Arrivals::Burst { size, every } => format!("bursts of {size} every {every:?}"),
        Arrivals::Listed(list) => format!("trace of {} invocations", list.len()),
    }
}

/// Three digits say enough of a rate.
fn round(rate: f64) -> String {
    if rate >= 100.0 {
        format!("{rate:.0}")
    } else {
        format!("{}", (rate * 100.0).round() / 100.0)
    }
}
