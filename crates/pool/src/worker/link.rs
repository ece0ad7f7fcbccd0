//! How the two sides of an instance tell each other things: through channels within a process, through a
//! socket between two.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};

use super::wire;
use crate::desk::Desk;
use crate::instance::{Said, Told};

/// The most that an instance says at once: an answer of the largest size with all that is told of it, or a
/// working set.
const MAX_SAID_BYTES: usize = 16 << 20;

/// The front's side.
pub(crate) enum Link {
    Thread {
        to: mpsc::Sender<Told>,
        from: UnboundedReceiver<Said>,
    },
    Process {
        stream: tokio::net::UnixStream,
        came: BytesMut,
    },
}

/// The instance's side, within a process.
pub(crate) struct ThreadDesk {
    from: mpsc::Receiver<Told>,
    to: UnboundedSender<Said>,
}

/// The instance's side, in a worker process.
pub(super) struct ProcessDesk(UnixStream);

/// A link within this process.
pub(crate) fn within() -> (Link, ThreadDesk) {
    let (to, inbox) = mpsc::channel();
    let (outbox, from) = tokio::sync::mpsc::unbounded_channel();
    let desk = ThreadDesk {
        from: inbox,
        to: outbox,
    };
    (Link::Thread { to, from }, desk)
}

/// A link to another process, which is to be given the second end. Only where there is a runtime.
pub(super) fn between() -> std::io::Result<(Link, UnixStream)> {
    let (here, there) = UnixStream::pair()?;
    here.set_nonblocking(true)?;
    let stream = tokio::net::UnixStream::from_std(here)?;
    let came = BytesMut::new();
    Ok((Link::Process { stream, came }, there))
}

impl Link {
    /// Tells the instance something.
    ///
    /// # Errors
    /// What was to be told, where the instance is gone.
    pub(crate) async fn tell(&mut self, told: Told) -> Result<(), Told> {
        match self {
            Self::Thread { to, .. } => to.send(told).map_err(|unsent| unsent.0),
            Self::Process { stream, .. } => {
                let sent = match wire::encode(&told) {
                    Ok(bytes) => stream.write_all(&bytes).await,
                    Err(error) => Err(error),
                };
                sent.map_err(|_| told)
            }
        }
    }

    /// Waits for what the instance says. Nothing where it is gone, or says nothing that makes sense.
    pub(crate) async fn hear(&mut self) -> Option<Said> {
        match self {
            Self::Thread { from, .. } => from.recv().await,
            Self::Process { stream, came } => loop {
                if let Some(said) = wire::take(came, MAX_SAID_BYTES).ok()? {
                    return Some(said);
                }
                // Nothing is kept of the large answer before.
                if came.is_empty() {
                    *came = BytesMut::with_capacity(4096);
                }
                if stream.read_buf(came).await.ok()? == 0 {
                    return None;
                }
            },
        }
    }

    /// Tells an idle instance something, without waiting. False where that cannot be done.
    pub(crate) fn tell_soon(&self, told: Told) -> bool {
        match self {
            Self::Thread { to, .. } => to.send(told).is_ok(),
            Self::Process { stream, .. } => {
                let Ok(bytes) = wire::encode(&told) else {
                    return false;
                };
                // There is room for it in the socket of one that waits.
                matches!(stream.try_write(&bytes), Ok(sent) if sent == bytes.len())
            }
        }
    }

    /// Whether anybody is at the other end of an idle instance's link.
    pub(crate) fn is_open(&self) -> bool {
        match self {
            Self::Thread { from, .. } => !from.is_closed(),
            Self::Process { stream, came } => {
                let mut byte = [0];
                // It has nothing to say unasked: what can be read is its end, or nonsense.
                let read = stream.try_read(&mut byte);
                came.is_empty()
                    && matches!(read, Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
            }
        }
    }

    /// Lets the instance end, and waits until it has: for as long as that may take.
    pub(crate) async fn end(mut self) {
        /// A VM is gone in milliseconds.
        const LONG_ENOUGH: Duration = Duration::from_secs(5);
        match &mut self {
            Self::Thread { to, .. } => {
                let (nobody, _) = mpsc::channel();
                *to = nobody;
            }
            Self::Process { stream, .. } => {
                // An error says that it has ended.
                let _ = stream.shutdown().await;
            }
        }
        let ended = async { while self.hear().await.is_some() {} };
        if tokio::time::timeout(LONG_ENOUGH, ended).await.is_err() {
            tracing::warn!("an instance does not end");
        }
    }
}

impl Desk for ThreadDesk {
    fn next(&mut self) -> Option<Told> {
        self.from.recv().ok()
    }

    fn say(&mut self, said: Said) {
        // Nobody listens to an instance whose request nobody waits for any more.
        let _ = self.to.send(said);
    }
}

impl ProcessDesk {
    pub(super) fn new(socket: UnixStream) -> Self {
        Self(socket)
    }
}

impl Desk for ProcessDesk {
    fn next(&mut self) -> Option<Told> {
        let (told, _) = wire::receive(&self.0).ok()??;
        Some(told)
    }

    fn say(&mut self, said: Said) {
        let sent = wire::encode(&said).and_then(|bytes| self.0.write_all(&bytes));
        if let Err(error) = sent {
            tracing::debug!(%error, "nobody listens to an instance");
        }
    }
}
