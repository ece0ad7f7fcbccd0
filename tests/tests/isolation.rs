//! What one request leaves behind is never seen by the next.
//!
//! One test, because it looks at the memory of all guests of this process.

use std::thread;

use dormouse_tests::{Client, GuestMemory, Server, eventually, files_below, in_parallel};

fn secret() -> [u8; 32] {
    let mut secret = [0; 32];
    getrandom::fill(&mut secret).expect("random bytes");
    // Every zero in memory would be looked at for one that begins with zero, which takes far longer.
    secret[0] |= 1;
    secret
}

/// Sends a request and looks at the guests' memory while it runs: when `marker`, which stands in
/// the request, is found there. The memory of the request before is gone or replaced by then.
fn during<T>(
    server: &Server,
    marker: &[u8],
    request: impl FnOnce(&Client) + Send,
    look: impl FnOnce(&GuestMemory) -> T,
) -> T {
    thread::scope(|scope| {
        let request = scope.spawn(|| request(server.client()));
        let mut memory = GuestMemory::find();
        eventually("the request is in a guest's memory", || {
            memory = GuestMemory::find();
            memory.count(marker) > 0
        });
        let seen = look(&memory);
        assert!(!request.is_finished(), "looked too late");
        request.join().expect("the request is answered");
        seen
    })
}

#[test]
fn a_secret_is_gone_when_its_request_is() {
    let Some(server) = Server::start() else {
        return;
    };
    // One instance, so that the next request runs where the last one did.
    server.deploy_as("whoami", "whoami", "?concurrency=1");
    server.deploy_as("faulty", "faulty", "?concurrency=1&timeout_ms=8000");
    finds_what_is_there(&server);
    is_not_found_afterwards(&server);
    is_never_told(&server);
}

/// The control: while a request runs, its body is found.
fn finds_what_is_there(server: &Server) {
    let secret = secret();
    during(
        server,
        &secret,
        |client| {
            let reply = client.post("faulty", "/no-answer", &secret);
            assert_eq!(reply.problem().kind(), (504, "function-timeout"));
        },
        |memory| assert!(memory.bytes() >= 64 << 20),
    );
}

fn is_not_found_afterwards(server: &Server) {
    let client = server.client();
    let mut last = [0; 32];
    // So often that later rounds run on a replayed working set.
    for round in 0..6 {
        let secret = secret();
        let reply = client.post("whoami", "/secret", &secret);
        assert_eq!(reply.ok().status, 204);
        let marker = format!("marker-of-round-{round:04}");
        let found = during(
            server,
            marker.as_bytes(),
            |client| {
                let reply = client.invoke("whoami", &format!("/?sleep_ms=3000&{marker}"));
                assert_eq!(reply.ok().json()["requests"], 1);
            },
            |memory| memory.count(&secret),
        );
        assert_eq!(found, 0, "the next guest has the last one's secret");
        last = secret;
    }
    for file in files_below(server.store()) {
        let bytes = std::fs::read(&file).unwrap_or_default();
        let found = bytes.windows(last.len()).any(|window| window == last);
        assert!(!found, "the secret is in {}", file.display());
    }
}

/// Neither from the guest's static nor in any answer.
fn is_never_told(server: &Server) {
    server.deploy_as("crowd", "whoami", "");
    in_parallel(300, 8, |number| {
        let client = server.client();
        if number % 2 == 0 {
            assert_eq!(client.post("crowd", "/secret", &secret()).ok().status, 204);
        } else {
            let told = client.invoke("crowd", "/secret").ok();
            assert!(told.body.is_empty(), "told a secret: {:?}", told.body);
        }
    });
}
