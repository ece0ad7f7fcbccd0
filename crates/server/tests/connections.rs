//! The server on a socket: shutdown, and clients that are slow or rude.

mod support;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use dormouse_server::{Limits, serve};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

struct Server {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<std::io::Result<()>>,
    _folder: tempfile::TempDir,
}

impl Server {
    async fn start(limits: Limits) -> Self {
        let (app, folder) = support::app(limits);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(serve(listener, app, async move {
            let _ = stopped.await;
        }));
        Self {
            address,
            stop: Some(stop),
            task,
            _folder: folder,
        }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    fn stop(&mut self) {
        self.stop.take().unwrap().send(()).unwrap();
    }

    async fn ended(self) {
        let limit = Duration::from_secs(10);
        let result = tokio::time::timeout(limit, self.task).await;
        result.expect("the server ends").unwrap().unwrap();
    }
}

async fn rest(mut stream: TcpStream) -> String {
    let mut reply = String::new();
    let reading = stream.read_to_string(&mut reply);
    let limit = Duration::from_secs(10);
    let _ = tokio::time::timeout(limit, reading)
        .await
        .expect("the connection ends");
    reply
}

/// The half of a request that is missing its body.
const HALF: &[u8] =
    b"PUT /v1/functions/f HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\nConnection: close\r\n\r\nno";

#[tokio::test]
async fn shutdown_finishes_what_runs_and_refuses_what_comes() {
    let mut server = Server::start(Limits::default()).await;
    let mut running = server.connect().await;
    running.write_all(HALF).await.unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;

    server.stop();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let mut late = server.connect().await;
    late.write_all(b"GET /readyz HTTP/1.1\r\nHost: h\r\n\r\n")
        .await
        .unwrap();
    let reply = rest(late).await;
    assert!(reply.starts_with("HTTP/1.1 503 "), "{reply}");
    assert!(reply.contains("\"code\":\"draining\""), "{reply}");

    running.write_all(b"pe").await.unwrap();
    let reply = rest(running).await;
    assert!(reply.starts_with("HTTP/1.1 400 "), "{reply}");
    assert!(reply.contains("bad-image"), "{reply}");
    server.ended().await;
}

#[tokio::test]
async fn an_idle_connection_does_not_hold_up_shutdown() {
    let mut server = Server::start(Limits::default()).await;
    let mut idle = server.connect().await;
    idle.write_all(b"GET /livez HTTP/1.1\r\nHost: h\r\n\r\n")
        .await
        .unwrap();
    let mut some = [0; 16];
    idle.read_exact(&mut some).await.unwrap();
    server.stop();
    server.ended().await;
}

#[tokio::test]
async fn the_grace_period_has_an_end() {
    let mut server = Server::start(Limits {
        grace: Duration::from_millis(100),
        ..Limits::default()
    })
    .await;
    let mut running = server.connect().await;
    running.write_all(HALF).await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    server.stop();
    server.ended().await;
    assert_eq!(rest(running).await, "");
}

#[tokio::test]
async fn slow_clients_are_let_go() {
    let patience = Duration::from_millis(200);
    let server = Server::start(Limits {
        header_timeout: patience,
        image_timeout: patience,
        ..Limits::default()
    })
    .await;
    let begin = Instant::now();
    let mut slow_head = server.connect().await;
    slow_head.write_all(b"GET /livez HT").await.unwrap();
    let mut slow_body = server.connect().await;
    slow_body.write_all(HALF).await.unwrap();

    let reply = rest(slow_head).await;
    assert!(!reply.contains("200"), "{reply}");
    let reply = rest(slow_body).await;
    assert!(reply.starts_with("HTTP/1.1 408 "), "{reply}");
    assert!(begin.elapsed() < Duration::from_secs(8));
}

#[tokio::test]
async fn a_client_that_sends_too_much_gets_to_read_why() {
    let server = Server::start(Limits::default()).await;
    let mut client = server.connect().await;
    let body = vec![b'x'; (6 << 20) + 1];
    let head = format!(
        "POST /v1/functions/f/invoke HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n",
        body.len()
    );
    client.write_all(head.as_bytes()).await.unwrap();
    client.write_all(&body).await.unwrap();
    let reply = rest(client).await;
    assert!(reply.starts_with("HTTP/1.1 413 "), "{reply}");
    assert!(reply.contains("too-large"), "{reply}");
}

#[tokio::test]
async fn connections_over_the_limit_wait_for_room() {
    let server = Server::start(Limits {
        connections: 1,
        ..Limits::default()
    })
    .await;
    let first = server.connect().await;
    let mut second = server.connect().await;
    let request = b"GET /livez HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n";
    second.write_all(request).await.unwrap();
    let mut byte = [0; 1];
    let early = tokio::time::timeout(Duration::from_millis(200), second.read(&mut byte)).await;
    assert!(early.is_err(), "the second connection had to wait");
    drop(first);
    assert!(rest(second).await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn what_is_not_http_harms_nobody() {
    let server = Server::start(Limits::default()).await;
    for garbage in [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".as_slice(),
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /v1/functions/f/invoke HTTP/1.1\r\nHost: h\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/functions/f/invoke HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
        b"\r\n\r\n\0\0\0\0",
    ] {
        let mut client = server.connect().await;
        client.write_all(garbage).await.unwrap();
        client.shutdown().await.unwrap();
        let reply = rest(client).await;
        assert!(!reply.starts_with("HTTP/1.1 5"), "{reply}");
    }
    let mut client = server.connect().await;
    client
        .write_all(b"GET /livez HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
        .await
        .unwrap();
    assert!(rest(client).await.starts_with("HTTP/1.1 200 "));
}
