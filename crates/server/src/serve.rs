//! The connections: accepted one by one, bounded in number and in patience, and let go gently.
//!
//! ```text
//! accepting ──shutdown──► draining ──connections done, or grace over──► pool.drain() ──► end
//!                         still answers, but only /livez, /metrics and 503
//! ```

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use rustix::net::sockopt::set_tcp_user_timeout;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::connection::{Served, Socket};
use crate::seats::{Seat, Seats};
use crate::{App, Limits, router};

/// How long to wait after `accept` failed; it fails for want of descriptors or memory, which need
/// time to come back.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How much of what a client sends ahead is read before its turn, and so the longest head: above what
/// an invocation may have, so that a head that is a little too long is refused with a document.
const READ_AHEAD_BYTES: usize = 128 << 10;
/// How long invocations and boots that nobody waits for any more may still take at the end.
const LAST_GRACE: Duration = Duration::from_secs(1);

/// Serves `app` on `listener` until `shutdown` resolves, then finishes the requests that run (for
/// at most [`Limits::grace`]) and drains the pool.
///
/// # Errors
/// Where the listener has no address, so that it cannot be a listening socket. Failures of single
/// connections end those connections only.
pub async fn serve(
    listener: TcpListener,
    app: App,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    let address = listener.local_addr()?;
    tracing::debug!(%address, "listening");
    let server = Server {
        routes: TowerToHyperService::new(router(app.clone())),
        builder: connection_builder(app.limits()),
        write_timeout: app.limits().write_timeout,
    };
    let mut door = Door {
        listener,
        seats: Seats::new(app.limits().connections),
        arrived: None,
    };

    let graceful = GracefulShutdown::new();
    let mut connections = JoinSet::new();
    tokio::pin!(shutdown);
    loop {
        tokio::select! {
            () = &mut shutdown => break,
            accepted = door.next() => {
                server.start(accepted, Some(&graceful), &mut connections);
            }
            Some(_) = connections.join_next() => {}
        }
    }

    tracing::debug!("draining");
    app.begin_drain();
    let grace_over = tokio::time::sleep(app.limits().grace);
    let finished = graceful.shutdown();
    tokio::pin!(grace_over, finished);
    loop {
        tokio::select! {
            () = &mut finished => break,
            () = &mut grace_over => {
                tracing::warn!("the grace period is over; closing connections that still run");
                break;
            }
            accepted = door.next() => server.start(accepted, None, &mut connections),
            Some(_) = connections.join_next() => {}
        }
    }
    drop(door);
    connections.shutdown().await;
    app.pool().drain(LAST_GRACE).await;
    tracing::debug!("stopped");
    Ok(())
}

/// Where connections come in.
struct Door {
    listener: TcpListener,
    seats: Seats,
    /// One that has come and has no seat yet.
    arrived: Option<TcpStream>,
}

type Accepted = (TcpStream, Arc<Seat>);

impl Door {
    /// The next connection, once there is a seat for it. Nothing is lost where this is dropped.
    async fn next(&mut self) -> Accepted {
        loop {
            if self.arrived.is_none() {
                self.arrived = Some(self.accept().await);
            }
            let seat = self.seats.take().await;
            if let Some(stream) = self.arrived.take() {
                return (stream, seat);
            }
        }
    }

    async fn accept(&self) -> TcpStream {
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => return stream,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

struct Server {
    routes: TowerToHyperService<Router>,
    builder: http1::Builder,
    write_timeout: Duration,
}

impl Server {
    fn start(
        &self,
        (stream, seat): Accepted,
        graceful: Option<&GracefulShutdown>,
        connections: &mut JoinSet<()>,
    ) {
        // Both only tune the connection: it works without.
        let _ = stream.set_nodelay(true);
        let patience_ms = u32::try_from(self.write_timeout.as_millis()).unwrap_or(u32::MAX);
        let _ = set_tcp_user_timeout(&stream, patience_ms);

        let service = Served {
            routes: self.routes.clone(),
            seat: Arc::clone(&seat),
        };
        let socket = Socket::new(stream, Arc::clone(&seat), self.write_timeout);
        let connection = self.builder.serve_connection(TokioIo::new(socket), service);
        let watcher = graceful.map(GracefulShutdown::watcher);
        connections.spawn(async move {
            let connection = async {
                match watcher {
                    Some(watcher) => watcher.watch(connection).await,
                    None => connection.await,
                }
            };
            tokio::pin!(connection);
            loop {
                tokio::select! {
                    // First what the client has sent, then whether it may be let go.
                    biased;
                    result = &mut connection => {
                        if let Err(error) = result {
                            tracing::debug!(%error, "a connection ended early");
                        }
                        break;
                    }
                    () = seat.asked_to_leave() => {
                        if seat.may_leave() {
                            tracing::debug!("a silent connection made room for another");
                            break;
                        }
                    }
                }
            }
        });
    }
}

fn connection_builder(limits: &Limits) -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .max_buf_size(READ_AHEAD_BYTES)
        .header_read_timeout(limits.header_timeout);
    builder
}
