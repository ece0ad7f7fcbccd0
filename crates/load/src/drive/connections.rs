//! Connections to the target, kept open between requests.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::recorder::Failure;

pub(crate) type Connection = SendRequest<Full<Bytes>>;

/// The connections of one thread.
#[derive(Debug)]
pub(crate) struct Connections {
    address: SocketAddr,
    turns: Semaphore,
    idle: Mutex<Vec<Connection>>,
    opened: AtomicU64,
}

/// The right to use a connection.
#[derive(Debug)]
pub(crate) struct Turn<'a> {
    connections: &'a Connections,
    _permit: SemaphorePermit<'a>,
    /// Whether it had to be waited for.
    pub(crate) waited: bool,
}

impl Connections {
    /// So many at most, to there. None is opened yet.
    pub(crate) fn new(address: SocketAddr, most: u32) -> Arc<Self> {
        Arc::new(Self {
            address,
            turns: Semaphore::new(most as usize),
            idle: Mutex::default(),
            opened: AtomicU64::new(0),
        })
    }

    /// How many were opened.
    pub(crate) fn opened(&self) -> u64 {
        self.opened.load(Ordering::Relaxed)
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Connection>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the right to use one, in the order of asking.
    pub(crate) async fn turn(&self) -> Turn<'_> {
        let (permit, waited) = match self.turns.try_acquire() {
            Ok(permit) => (permit, false),
            // It is never closed.
            Err(_) => match self.turns.acquire().await {
                Ok(permit) => (permit, true),
                Err(_) => std::future::pending().await,
            },
        };
        Turn {
            connections: self,
            _permit: permit,
            waited,
        }
    }
}

impl Turn<'_> {
    /// An open connection that is ready, and whether it is new.
    ///
    /// # Errors
    /// Why there is none.
    pub(crate) async fn connect(&self) -> Result<(Connection, bool), Failure> {
        loop {
            let kept = self.connections.idle().pop();
            let Some(mut kept) = kept else {
                return self.open().await.map(|connection| (connection, true));
            };
            // One that the target has closed meanwhile is no failure.
            if kept.ready().await.is_ok() {
                return Ok((kept, false));
            }
        }
    }

    /// A new connection.
    ///
    /// # Errors
    /// Why there is none.
    pub(crate) async fn open(&self) -> Result<Connection, Failure> {
        let stream = TcpStream::connect(self.connections.address)
            .await
            .map_err(|error| Failure::connecting(&error))?;
        // A request goes out at once, whatever its size.
        stream
            .set_nodelay(true)
            .map_err(|error| Failure::connecting(&error))?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| Failure::exchanging(&error))?;
        // Its errors reach whoever waits for an answer.
        tokio::spawn(connection);
        self.connections.opened.fetch_add(1, Ordering::Relaxed);
        Ok(sender)
    }

    /// Keeps a connection for the next request.
    pub(crate) fn keep(self, connection: Connection) {
        if !connection.is_closed() {
            self.connections.idle().push(connection);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn one_that_was_closed_while_it_was_idle_is_no_failure() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let connections = Connections::new(listener.local_addr().unwrap(), 1);
        let turn = connections.turn().await;
        let (connection, is_new) = turn.connect().await.unwrap();
        assert!(is_new);
        let (peer, _) = listener.accept().await.unwrap();
        turn.keep(connection);
        let turn = connections.turn().await;
        let (connection, is_new) = turn.connect().await.unwrap();
        assert!(!is_new);
        turn.keep(connection);
        drop(peer);
        // Its own task sees it.
        while !connections.idle()[0].is_closed() {
            tokio::task::yield_now().await;
        }
        let (_, is_new) = connections.turn().await.connect().await.unwrap();
        assert!(is_new);
        assert_eq!(connections.opened(), 2);
    }
}
