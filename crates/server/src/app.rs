//! What all requests share.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use dormouse_pool::Pool;

use crate::TokenGuard;
use crate::buffers::Buffers;
use crate::metrics::Metrics;

/// How much one client may ask of the server.
#[derive(Debug, Clone)]
pub struct Limits {
    /// The largest image that `PUT /v1/functions/{name}` takes.
    pub image_bytes: usize,
    /// The largest request body of an invocation. The function ABI carries no more than the
    /// default.
    pub body_bytes: usize,
    /// How long a connection may take to send a request's head, idle time included.
    pub header_timeout: Duration,
    /// How long an invocation's body may take to arrive.
    pub body_timeout: Duration,
    /// How long an image may take to arrive.
    pub image_timeout: Duration,
    /// How long a client may take its answer, from when it lets bytes of it wait, and how long sent
    /// bytes may stay unacknowledged, before the connection is given up.
    pub write_timeout: Duration,
    /// How many connections may be open at once. For one more, that whose client has sent nothing for
    /// the longest is closed; where all have a request that runs, it waits in the listener's backlog.
    pub connections: usize,
    /// How much the bodies of all requests and all answers may hold together, in bytes: images one half of
    /// it, at least one image; invocations the other, at least one body.
    pub buffer_bytes: usize,
    /// How long running requests may take to finish once the server is told to stop.
    pub grace: Duration,
    /// Whether a request may choose how its instance starts (`X-Dormouse-Start`): for measurements,
    /// since a client can make all others wait that way.
    pub start_choice: bool,
    /// Whether requests must have been sent to `localhost` or to an address: for a server without tokens that
    /// only this machine can reach. A web page could otherwise have a browser here ask it, by a name of
    /// its own that leads to this machine (DNS rebinding), and read what it answers.
    pub local_names_only: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            image_bytes: 64 << 20,
            body_bytes: 6 << 20,
            header_timeout: Duration::from_secs(30),
            body_timeout: Duration::from_secs(30),
            image_timeout: Duration::from_secs(300),
            write_timeout: Duration::from_secs(30),
            connections: 1024,
            buffer_bytes: 512 << 20,
            grace: Duration::from_secs(30),
            start_choice: false,
            local_names_only: false,
        }
    }
}

/// The state behind a [`router`](crate::router); a cheap handle.
#[derive(Clone)]
pub struct App {
    inner: Arc<Inner>,
}

struct Inner {
    pool: Pool,
    limits: Limits,
    guard: Option<TokenGuard>,
    metrics: Metrics,
    /// For the bodies of invocations and their answers.
    buffers: Buffers,
    /// For images: who uploads them takes minutes, and must not keep out who invokes.
    image_buffers: Buffers,
    draining: AtomicBool,
}

impl App {
    /// An application that runs functions in `pool`, for everybody.
    #[must_use]
    pub fn new(pool: Pool, limits: Limits) -> Self {
        Self::with_guard(pool, limits, None)
    }

    /// An application that does for each what the guard says that they may, if there is one.
    #[must_use]
    pub fn with_guard(pool: Pool, limits: Limits, guard: Option<TokenGuard>) -> Self {
        let metrics = Metrics::new(pool.clone());
        let half_bytes = limits.buffer_bytes / 2;
        Self {
            inner: Arc::new(Inner {
                pool,
                buffers: Buffers::new(half_bytes.max(limits.body_bytes)),
                image_buffers: Buffers::new(half_bytes.max(limits.image_bytes)),
                limits,
                guard,
                metrics,
                draining: AtomicBool::new(false),
            }),
        }
    }

    /// Answers every new request but `/livez` and `/metrics` with 503 from now on. Requests that
    /// were already taken go on.
    pub fn begin_drain(&self) {
        self.inner.draining.store(true, Ordering::Release);
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.inner.draining.load(Ordering::Acquire)
    }

    pub(crate) fn pool(&self) -> &Pool {
        &self.inner.pool
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.inner.limits
    }

    pub(crate) fn buffers(&self) -> &Buffers {
        &self.inner.buffers
    }

    pub(crate) fn image_buffers(&self) -> &Buffers {
        &self.inner.image_buffers
    }

    pub(crate) fn guard(&self) -> Option<&TokenGuard> {
        self.inner.guard.as_ref()
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.inner.metrics
    }
}

impl fmt::Debug for App {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("App")
            .field("limits", &self.inner.limits)
            .field("draining", &self.is_draining())
            .finish_non_exhaustive()
    }
}
