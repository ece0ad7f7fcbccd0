//! Two thousand invocations leave nothing behind.
//!
//! One test, because it counts what the whole process holds.

use dormouse_tests::{Server, Usage, eventually, in_parallel};

/// Mappings come and go in the allocator and in the cache of thread stacks, whatever guests do.
const MAPPINGS: usize = 12;
/// So do pages. 1800 invocations that kept a page each would hold 7200 KiB.
const RESIDENT_KIB: u64 = 4096;

/// A client of its own for each phase: its connections go with it.
fn invoke(server: &Server, count: usize) {
    let client = server.new_client();
    // One that has answered a moment ago is not left to rest for its crashes.
    assert_eq!(client.invoke("faulty", "/").ok().text(), "fine\n");
    in_parallel(count, 8, |number| match number % 50 {
        0 => {
            let crashed = client.invoke("faulty", "/invalid-opcode");
            assert_eq!(crashed.problem().kind(), (502, "function-crashed"));
        }
        25 => {
            let exited = client.invoke("faulty", "/exit?code=1");
            assert_eq!(exited.problem().kind(), (502, "function-exited"));
        }
        _ => assert_eq!(
            client.invoke("hello", "/").ok().text(),
            "Hello from Dormouse!\n"
        ),
    });
}

/// Once instances that were retired are gone and new ones stand ready.
fn usage_at_rest(server: &Server) -> Usage {
    let mut last = Usage::now();
    let mut equal = 0;
    eventually("nothing changes any more", || {
        std::thread::sleep(std::time::Duration::from_millis(20));
        let now = Usage::now();
        let same = (now.descriptors, now.threads) == (last.descriptors, last.threads);
        equal = if same && server.stats().running == 0 {
            equal + 1
        } else {
            0
        };
        last = now;
        equal == 20
    });
    last
}

#[test]
fn after_2000_invocations_everything_is_as_after_200() {
    let Some(server) = Server::start() else {
        return;
    };
    // As many instances as there are at rest anyway, so that chance decides nothing.
    server.deploy_as("hello", "hello", "?concurrency=2");
    server.deploy_as("faulty", "faulty", "?concurrency=2");
    invoke(&server, 200);
    let early = usage_at_rest(&server);
    invoke(&server, 1800);
    let late = usage_at_rest(&server);
    println!("after 200: {early:?}\nafter 2000: {late:?}");
    assert_eq!(late.descriptors, early.descriptors);
    assert_eq!(late.threads, early.threads);
    assert!(
        late.mappings <= early.mappings + MAPPINGS,
        "{early:?} {late:?}"
    );
    assert!(
        late.resident_kib <= early.resident_kib + RESIDENT_KIB,
        "{early:?} {late:?}"
    );
}
