//! The HTTP API of Dormouse: the only crate that knows HTTP and JSON bodies.
//!
//! [`router`] turns an [`App`] (a [`dormouse_pool::Pool`] and [`Limits`]) into an
//! [`axum::Router`]; [`serve`] runs it on a listener until it is told to stop. What the API says is
//! written down in `api/openapi.yaml` and `api/errors.md`; tests keep both equal to [`ROUTES`] and
//! [`ErrorCode::ALL`].
//!
//! ```text
//! request ─► envelope ─► route ─► access ─► handler ─► pool
//!            │  request id, draining gate,
//!            ▼  metrics
//! reply   ◄─ envelope ◄── answer of the function, JSON, or an ApiError (problem+json)
//! ```
#![forbid(unsafe_code)]

mod access;
mod app;
mod body;
mod buffers;
mod code;
mod connection;
mod crash;
mod envelope;
mod functions;
mod headers;
mod invoke;
mod metrics;
mod options;
mod problem;
mod routes;
mod seats;
mod serve;
mod tokens;
mod warm;

pub use access::Access;
pub use app::{App, Limits};
pub use code::ErrorCode;
pub use options::{OptionError, bytes_from_text, config_from_options, query_from_config};
pub use problem::ApiError;
pub use routes::{ROUTES, Route, Verb, router};
pub use serve::serve;
pub use tokens::{
    FunctionPattern, NewToken, NotAToken, Scope, Token, TokenEntry, TokenError, TokenFile,
    TokenGuard,
};
