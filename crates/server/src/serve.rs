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
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;

use crate::{App, Limits, router};

/// How long to wait after `accept` failed; it fails for want of descriptors or memory, which need
/// time to come back.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
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
        listener,
        router: router(app.clone()),
        builder: connection_builder(app.limits()),
        write_timeout: app.limits().write_timeout,
        room: Arc::new(Semaphore::new(app.limits().connections)),
    };

    let graceful = GracefulShutdown::new();
    let mut connections = JoinSet::new();
    tokio::pin!(shutdown);
    loop {
        tokio::select! {
            () = &mut shutdown => break,
            accepted = server.accept() => {
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
            accepted = server.accept() => server.start(accepted, None, &mut connections),
            Some(_) = connections.join_next() => {}
        }
    }
    drop(server);
    connections.shutdown().await;
    app.pool().drain(LAST_GRACE).await;
    tracing::debug!("stopped");
    Ok(())
}

struct Server {
    listener: TcpListener,
    router: Router,
    builder: http1::Builder,
    write_timeout: Duration,
    room: Arc<Semaphore>,
}

type Accepted = (TcpStream, Option<OwnedSemaphorePermit>);

impl Server {
    /// The next connection, once there is room for one.
    async fn accept(&self) -> Accepted {
        // The semaphore is never closed, so there is always a permit in the end.
        let permit = Arc::clone(&self.room).acquire_owned().await.ok();
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => return (stream, permit),
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn start(
        &self,
        (stream, permit): Accepted,
        graceful: Option<&GracefulShutdown>,
        connections: &mut JoinSet<()>,
    ) {
        // Both only tune the connection: it works without.
        let _ = stream.set_nodelay(true);
        let patience_ms = u32::try_from(self.write_timeout.as_millis()).unwrap_or(u32::MAX);
        let _ = set_tcp_user_timeout(&stream, patience_ms);

        let service = TowerToHyperService::new(self.router.clone());
        let connection = self.builder.serve_connection(TokioIo::new(stream), service);
        let watcher = graceful.map(GracefulShutdown::watcher);
        connections.spawn(async move {
            let result = match watcher {
                Some(watcher) => watcher.watch(connection).await,
                None => connection.await,
            };
            if let Err(error) = result {
                tracing::debug!(%error, "a connection ended early");
            }
            drop(permit);
        });
    }
}

fn connection_builder(limits: &Limits) -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_timeout);
    builder
}
