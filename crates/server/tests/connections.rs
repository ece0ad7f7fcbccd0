//! The server on a socket: shutdown, and clients that are slow or rude.

mod support;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::Request;
use dormouse_server::{App, Limits, router, serve};
use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::OwnedReadHalf;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tower::ServiceExt;

struct Server {
    app: App,
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
        let task = tokio::spawn(serve(listener, app.clone(), async move {
            let _ = stopped.await;
        }));
        Self {
            app,
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

const LIVEZ: &[u8] = b"GET /livez HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n";

/// Asks and waits for the whole reply.
async fn ask(server: &Server, request: &[u8]) -> String {
    let mut client = server.connect().await;
    client.write_all(request).await.unwrap();
    rest(client).await
}

/// Far longer than anything takes that is waited for, on however slow a host.
const PATIENCE: Duration = Duration::from_secs(60);

/// How many requests are sent ahead by a client that takes no answer: far more of it than the kernel
/// keeps.
const AHEAD: usize = 20_000;
const AHEAD_REQUEST: &[u8] = b"GET /metrics HTTP/1.1\r\nHost: h\r\n\r\n";

/// A client that has sent many requests and has taken no answer. The task that sends ends once the server
/// has closed the connection, of which there is no other sign as long as nothing is read.
async fn takes_nothing(server: &Server) -> (OwnedReadHalf, JoinHandle<()>) {
    let (reading, mut writing) = server.connect().await.into_split();
    let sending = tokio::spawn(async move {
        let mut sent = writing.write_all(&AHEAD_REQUEST.repeat(AHEAD)).await;
        // It fails where the server has had enough.
        while sent.is_ok() {
            tokio::time::sleep(Duration::from_millis(25)).await;
            sent = writing.write_all(AHEAD_REQUEST).await;
        }
    });
    (reading, sending)
}

/// How many times `/metrics` was answered. It is asked beside the connections, so that it takes no seat.
async fn metrics_answered(server: &Server) -> usize {
    let request = Request::get("/metrics").body(Body::empty()).unwrap();
    let response = router(server.app.clone()).oneshot(request).await.unwrap();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    let reply = std::str::from_utf8(&body).unwrap();
    let row = reply.lines().find_map(|line| {
        line.strip_prefix("dormouse_replies_total{route=\"/metrics\",status=\"200\"} ")
    });
    row.map_or(0, |count| count.trim().parse().unwrap())
}

/// The same, once it no longer grows but by the question itself. A single look could hit upon a moment in
/// which the server did not get to it.
async fn metrics_answered_at_last(server: &Server) -> usize {
    const LOOKS: usize = 3;
    let mut before = metrics_answered(server).await;
    let mut still = 0;
    while still < LOOKS {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let now = metrics_answered(server).await;
        still = if now == before + 1 { still + 1 } else { 0 };
        before = now;
    }
    before
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_do_not_pile_up_for_a_client_that_takes_none() {
    let server = Server::start(Limits::default()).await;
    let (mut reading, sending) = takes_nothing(&server).await;
    let answered = metrics_answered_at_last(&server).await;
    assert!(answered > 1, "none of it was answered");
    assert!(answered < AHEAD / 2, "{answered} answers are kept for it");
    // It is served on as soon as it takes them.
    let mut some = vec![0; 8 << 20];
    reading.read_exact(&mut some).await.unwrap();
    assert!(metrics_answered_at_last(&server).await > answered + 10);
    sending.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_take_an_answer_in_time_is_let_go() {
    let server = Server::start(Limits {
        write_timeout: Duration::from_millis(200),
        ..Limits::default()
    })
    .await;
    for dribbles in [false, true] {
        let (mut reading, sending) = takes_nothing(&server).await;
        let mut taken = 0;
        let mut some = [0; 64];
        let begin = Instant::now();
        while !sending.is_finished() {
            assert!(begin.elapsed() < PATIENCE, "it is not let go");
            tokio::time::sleep(Duration::from_millis(25)).await;
            if dribbles {
                // It fails where the server has closed the connection meanwhile.
                taken += reading.read(&mut some).await.unwrap_or(0);
            }
        }
        let mut left = Vec::new();
        let end = tokio::time::timeout(Duration::from_secs(10), reading.read_to_end(&mut left));
        let _ = end.await.expect("the connection ends");
        let answers = (taken + left.len()) / 1000;
        assert!(answers < AHEAD, "all was answered");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_over_the_limit_wait_for_those_that_are_served() {
    let server = Server::start(Limits {
        connections: 1,
        ..Limits::default()
    })
    .await;
    let (first, sending) = takes_nothing(&server).await;
    // Until its answers fill the kernel's buffers, so that it is never silent.
    let answered = metrics_answered_at_last(&server).await;
    assert!(answered < AHEAD, "all was answered");
    let mut second = server.connect().await;
    second.write_all(LIVEZ).await.unwrap();
    let mut byte = [0; 1];
    let early = tokio::time::timeout(Duration::from_millis(200), second.read(&mut byte)).await;
    assert!(early.is_err(), "the second connection had to wait");
    sending.abort();
    let _ = sending.await;
    drop(first);
    assert!(rest(second).await.contains("alive"));
}

#[tokio::test]
async fn a_silent_connection_makes_room_for_the_next() {
    let server = Server::start(Limits {
        connections: 1,
        ..Limits::default()
    })
    .await;
    for begun in [b"".as_slice(), b"GET /livez HT", HALF] {
        let mut silent = server.connect().await;
        silent.write_all(begun).await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(ask(&server, LIVEZ).await.starts_with("HTTP/1.1 200 "));
        assert_eq!(rest(silent).await, "", "{begun:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crowd_of_slow_clients_keeps_nobody_out() {
    let server = Server::start(Limits {
        connections: 32,
        ..Limits::default()
    })
    .await;
    let mut crowd = Vec::new();
    for round in 0..20 {
        for number in 0..16 {
            let mut slow = server.connect().await;
            let begun = if number % 2 == 0 {
                HALF
            } else {
                b"GET /livez HT"
            };
            slow.write_all(begun).await.unwrap();
            crowd.push(slow);
        }
        // They go on, each a byte at a time; those that were let go cannot.
        for slow in &mut crowd {
            let _ = slow.try_write(b"x");
        }
        let reply = ask(&server, LIVEZ).await;
        assert!(reply.starts_with("HTTP/1.1 200 "), "{round}: {reply}");
    }
}

#[tokio::test]
async fn bodies_hold_no_more_memory_together_than_they_may() {
    const BYTES: usize = 128 << 10;
    let server = Server::start(Limits {
        image_bytes: BYTES,
        body_bytes: BYTES,
        buffer_bytes: BYTES,
        ..Limits::default()
    })
    .await;
    let head = format!(
        "PUT /v1/functions/f HTTP/1.1\r\nHost: h\r\nContent-Length: {BYTES}\r\n\
         Connection: close\r\n\r\n"
    );
    let mut slow = server.connect().await;
    slow.write_all(head.as_bytes()).await.unwrap();
    slow.write_all(&[0; BYTES / 2]).await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;

    let whole = [head.as_bytes(), &[0; BYTES]].concat();
    let reply = ask(&server, &whole).await;
    assert!(reply.starts_with("HTTP/1.1 503 "), "{reply}");
    assert!(reply.contains("over-budget"), "{reply}");
    assert!(reply.to_lowercase().contains("retry-after: 1"), "{reply}");
    // Who invokes has room of its own.
    let invoke = head.replace("PUT /v1/functions/f", "POST /v1/functions/f/invoke");
    let reply = ask(&server, &[invoke.as_bytes(), &[0; BYTES]].concat()).await;
    assert!(reply.contains("unknown-function"), "{reply}");

    drop(slow);
    let begin = Instant::now();
    loop {
        let reply = ask(&server, &whole).await;
        if reply.contains("bad-image") {
            break;
        }
        assert!(begin.elapsed() < Duration::from_secs(10), "{reply}");
    }
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
