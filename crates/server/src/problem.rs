//! Errors as clients see them: RFC 9457 problem details with a stable code.
//!
//! A handler returns an [`ApiError`]; it travels to the [envelope](crate::envelope) inside the
//! reply's extensions and is written out there, where the request id is known.

use std::time::Duration;

use axum::body::Body;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, Response};
use axum::response::IntoResponse;
use dormouse_pool::{Crash, Error, Failure};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use serde::Serialize;

use crate::OptionError;
use crate::code::ErrorCode;
use crate::crash::CrashMembers;
use crate::headers::ERROR_CODE;

/// How much of a console a crash reply carries.
const CONSOLE_BYTES: usize = 4096;

/// Where the codes are explained; a problem's `type` is this and the code.
const TYPE_BASE: &str = concat!(env!("CARGO_PKG_REPOSITORY"), "/blob/main/api/errors.md#");

/// What may not stand in a URI reference; `instance` carries a client's own request id.
const NOT_IN_URI: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'#')
    .add(b'%')
    .add(b'<')
    .add(b'>')
    .add(b'[')
    .add(b'\\')
    .add(b']')
    .add(b'^')
    .add(b'`')
    .add(b'{')
    .add(b'|')
    .add(b'}');

/// An error on its way to a client.
#[derive(Debug, Clone)]
pub struct ApiError {
    code: ErrorCode,
    detail: String,
    retry_after: Option<Duration>,
    console: String,
    crash: Option<Box<Crash>>,
    /// What only the log may know.
    private: Option<String>,
}

impl ApiError {
    pub(crate) fn new(code: ErrorCode, detail: impl Into<String>) -> Self {
        Self {
            code,
            detail: detail.into(),
            retry_after: None,
            console: String::new(),
            crash: None,
            private: None,
        }
    }

    /// What went wrong.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        self.code
    }

    /// What went wrong with this request, in one sentence.
    #[must_use]
    pub fn detail(&self) -> &str {
        &self.detail
    }

    /// What the log may know and a client may not.
    pub(crate) fn private(&self) -> Option<&str> {
        self.private.as_deref()
    }

    /// A function's failure, with the end of its console.
    #[must_use]
    pub fn from_failure(failure: &Failure, console: &str) -> Self {
        let code = match failure {
            Failure::Exited { .. } => ErrorCode::FunctionExited,
            Failure::OutOfMemory { .. } => ErrorCode::OutOfMemory,
            Failure::TimedOut { .. } => ErrorCode::FunctionTimeout,
            Failure::BadAnswer { .. } => ErrorCode::BadAnswer,
            Failure::Reported { .. } => ErrorCode::FunctionError,
            Failure::Unconfirmed => ErrorCode::Unconfirmed,
            _ => ErrorCode::FunctionCrashed,
        };
        Self::new(code, sentence(failure)).of_guest(Some(failure), console)
    }

    /// With what a guest has left: its last words, and its registers where it crashed.
    fn of_guest(mut self, failure: Option<&Failure>, console: &str) -> Self {
        end_of(console).clone_into(&mut self.console);
        if let Some(Failure::Crashed { crash }) = failure {
            self.crash = Some(crash.clone());
        }
        self
    }

    pub(crate) fn retry_after(mut self, wait: Duration) -> Self {
        self.retry_after = Some(wait);
        self
    }

    /// What went wrong is for the log only.
    pub(crate) fn private_error(code: ErrorCode, error: &dyn std::fmt::Display) -> Self {
        Self {
            private: Some(error.to_string()),
            ..Self::new(
                code,
                format!("{}; its log says more under this request id.", code.title()),
            )
        }
    }

    /// The problem document for the request `request_id`.
    pub(crate) fn document(&self, request_id: &str) -> Vec<u8> {
        let problem = Problem {
            kind: format!("{TYPE_BASE}{}", self.code.as_str()),
            title: self.code.title(),
            status: self.code.status().as_u16(),
            detail: &self.detail,
            instance: utf8_percent_encode(request_id, NOT_IN_URI).to_string(),
            code: self.code.as_str(),
            console: &self.console,
            crash: self.crash.as_deref().map(CrashMembers::from),
        };
        serde_json::to_vec(&problem).unwrap_or_default()
    }
}

#[derive(Serialize)]
struct Problem<'a> {
    #[serde(rename = "type")]
    kind: String,
    title: &'a str,
    status: u16,
    detail: &'a str,
    instance: String,
    code: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    console: &'a str,
    #[serde(flatten)]
    crash: Option<CrashMembers<'a>>,
}

impl From<Error> for ApiError {
    fn from(error: Error) -> Self {
        let detail = sentence(&error);
        match error {
            Error::UnknownFunction { .. } => Self::new(ErrorCode::UnknownFunction, detail),
            Error::UnknownSnapshot { .. } => Self::new(ErrorCode::UnknownSnapshot, detail),
            Error::BadOption { option, .. } if option == "name" => {
                Self::new(ErrorCode::BadName, detail)
            }
            Error::BadOption { .. } => Self::new(ErrorCode::BadOption, detail),
            Error::BadImage { .. } => Self::new(ErrorCode::BadImage, detail),
            Error::Init { failure, console } => {
                let code = if matches!(failure, Failure::TimedOut { .. }) {
                    ErrorCode::InitTimeout
                } else {
                    ErrorCode::InitFailed
                };
                Self::new(code, detail).of_guest(Some(&failure), &console)
            }
            Error::Warming { console, .. } => {
                Self::new(ErrorCode::WarmFailed, detail).of_guest(None, &console)
            }
            Error::RequestTooLarge { what, .. } if what == "head" => {
                Self::new(ErrorCode::HeadTooLarge, detail)
            }
            Error::RequestTooLarge { .. } => Self::new(ErrorCode::TooLarge, detail),
            Error::QueueFull { retry_after, .. } => {
                Self::new(ErrorCode::QueueFull, detail).retry_after(retry_after)
            }
            Error::DeploysFull { retry_after, .. } => {
                Self::new(ErrorCode::QueueFull, detail).retry_after(retry_after)
            }
            Error::QueueTimeout { retry_after, .. } => {
                Self::new(ErrorCode::QueueTimeout, detail).retry_after(retry_after)
            }
            Error::OverBudget { retry_after, .. } | Error::LowMemory { retry_after, .. } => {
                Self::new(ErrorCode::OverBudget, detail).retry_after(retry_after)
            }
            Error::CrashLoop { retry_after, .. } | Error::BootLoop { retry_after, .. } => {
                Self::new(ErrorCode::CrashLoop, detail).retry_after(retry_after)
            }
            Error::WorkerLost { .. } => {
                Self::new(ErrorCode::WorkerLost, detail).retry_after(Duration::from_secs(1))
            }
            Error::Draining => {
                Self::new(ErrorCode::Draining, detail).retry_after(Duration::from_secs(1))
            }
            Error::HasLayers { .. } => Self::new(ErrorCode::HasLayers, detail),
            Error::Host { .. } | Error::OtherAbi { .. } => Self::new(ErrorCode::HostCannot, detail),
            Error::Store(_) => Self::private_error(ErrorCode::StoreFailed, &error),
            _ => Self::private_error(ErrorCode::Internal, &error),
        }
    }
}

impl From<OptionError> for ApiError {
    fn from(error: OptionError) -> Self {
        Self::new(ErrorCode::BadOption, sentence(&error))
    }
}

impl std::fmt::Display for ApiError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.detail)
    }
}

impl std::error::Error for ApiError {}

impl IntoResponse for ApiError {
    /// The reply without its body: the envelope writes that.
    fn into_response(self) -> Response<Body> {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = self.code.status();
        let headers = response.headers_mut();
        headers.insert(ERROR_CODE, HeaderValue::from_static(self.code.as_str()));
        headers.insert(
            CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if self.code == ErrorCode::Unauthenticated {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(wait) = self.retry_after {
            // Whole seconds, rounded up: a client that obeys must not come too early.
            let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds.max(1)));
        }
        response.extensions_mut().insert(self);
        response
    }
}

/// The last [`CONSOLE_BYTES`] of a console.
fn end_of(console: &str) -> &str {
    let mut start = console.len().saturating_sub(CONSOLE_BYTES);
    while !console.is_char_boundary(start) {
        start += 1;
    }
    &console[start..]
}

/// An error's text as a sentence: first letter large, full stop at the end.
fn sentence(error: &dyn std::fmt::Display) -> String {
    let text = error.to_string();
    let mut characters = text.chars();
    let mut sentence: String = characters
        .next()
        .into_iter()
        .flat_map(char::to_uppercase)
        .chain(characters)
        .collect();
    if !sentence.ends_with(['.', '!', '?']) {
        sentence.push('.');
    }
    sentence
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_error_of_the_pool_has_its_code() {
        let name = || "f".to_owned();
        let second = Duration::from_secs(1);
        let init = |failure| Error::Init {
            failure,
            console: "booting".into(),
        };
        let bad = |option: &'static str| Error::BadOption {
            option: option.into(),
            value: "x".into(),
            reason: "no".into(),
        };
        let large = |what: &'static str| Error::RequestTooLarge {
            what: what.into(),
            bytes: 2,
            limit_bytes: 1,
        };
        let timed_out = Failure::TimedOut { limit: second };
        for (error, code) in [
            (Error::UnknownFunction { name: name() }, "unknown-function"),
            (bad("name"), "bad-name"),
            (bad("memory"), "bad-option"),
            (Error::BadImage { reason: name() }, "bad-image"),
            (init(timed_out), "init-timeout"),
            (init(Failure::Exited { code: 1 }), "init-failed"),
            (large("body"), "too-large"),
            (large("head"), "head-too-large"),
            (
                Error::QueueFull {
                    name: name(),
                    waiting: 1,
                    retry_after: second,
                },
                "queue-full",
            ),
            (
                Error::QueueTimeout {
                    name: name(),
                    waited: second,
                    retry_after: second,
                },
                "queue-timeout",
            ),
            (
                Error::OverBudget {
                    name: name(),
                    needed_bytes: 2,
                    budget_bytes: 1,
                    retry_after: second,
                },
                "over-budget",
            ),
            (
                Error::CrashLoop {
                    name: name(),
                    retry_after: second,
                },
                "crash-loop",
            ),
            (
                Error::BootLoop {
                    name: name(),
                    reason: name(),
                    retry_after: second,
                },
                "crash-loop",
            ),
            (Error::HasLayers { reason: name() }, "has-layers"),
            (Error::WorkerLost { how: name() }, "worker-lost"),
            (Error::Draining, "draining"),
            (Error::Host { reason: name() }, "host-cannot"),
            (Error::OtherAbi { found: 2, here: 1 }, "host-cannot"),
        ] {
            let api = ApiError::from(error);
            assert_eq!(api.code().as_str(), code);
            assert!(api.detail().ends_with('.'), "{}", api.detail());
            assert_eq!(ErrorCode::from_text(code), Some(api.code()));
        }
    }

    #[test]
    fn who_failed_shows_in_the_status() {
        let limit = Duration::from_secs(1);
        let text = String::new;
        for (failure, code, status) in [
            (crate::crash::example(), "function-crashed", 502),
            (
                Failure::OutOfMemory {
                    wanted_bytes: 1,
                    memory_bytes: 2,
                },
                "out-of-memory",
                502,
            ),
            (Failure::Exited { code: -1 }, "function-exited", 502),
            (Failure::Reported { message: text() }, "function-error", 502),
            (Failure::BadAnswer { reason: text() }, "bad-answer", 502),
            (Failure::Unconfirmed, "unconfirmed-clone", 502),
            (Failure::TimedOut { limit }, "function-timeout", 504),
        ] {
            let api = ApiError::from_failure(&failure, "");
            assert_eq!(api.code().as_str(), code);
            assert_eq!(api.code().status().as_u16(), status);
        }
    }

    #[test]
    fn a_client_waits_long_enough() {
        let error = ApiError::from(Error::QueueFull {
            name: "f".into(),
            waiting: 3,
            retry_after: Duration::from_millis(1500),
        });
        let response = error.into_response();
        assert_eq!(response.status(), 429);
        assert_eq!(response.headers()[RETRY_AFTER], "2");
    }

    #[test]
    fn inner_details_stay_inside() {
        let error = ApiError::from(Error::Internal {
            operation: "KVM_RUN".into(),
            reason: "ENOMEM".into(),
        });
        let document = String::from_utf8(error.document("id")).unwrap();
        assert!(!document.contains("ENOMEM"), "{document}");
        assert!(error.private().unwrap().contains("ENOMEM"));
    }

    #[test]
    fn a_long_console_is_cut_at_a_character() {
        let failure = Failure::Exited { code: 1 };
        let error = ApiError::from_failure(&failure, &"ä".repeat(CONSOLE_BYTES));
        assert!(error.console.len() <= CONSOLE_BYTES);
        let odd = format!("{}x", "ä".repeat(CONSOLE_BYTES));
        let error = ApiError::from_failure(&failure, &odd);
        assert_eq!(error.console.len(), CONSOLE_BYTES - 1);
    }

    #[test]
    fn the_document_is_json_whatever_the_request_id() {
        let error = ApiError::new(ErrorCode::UnknownRoute, "No.");
        let document = error.document("a \"b\"");
        let value: serde_json::Value = serde_json::from_slice(&document).unwrap();
        assert_eq!(value["instance"], "a%20%22b%22");
        assert_eq!(value["status"], 404);
        assert!(value.get("console").is_none());
        assert!(value["type"].as_str().unwrap().ends_with("#unknown-route"));
    }
}
