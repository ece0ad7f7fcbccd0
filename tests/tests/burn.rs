//! The function that touches as many pages and takes as much time as it is told.

use dormouse_tests::{Server, eventually, unix_ms};

#[test]
fn burn_does_what_it_is_told_and_says_so() {
    let Some(server) = Server::start() else {
        return;
    };
    server.deploy("burn");
    let burn = |query: &str| server.client().invoke("burn", &format!("/{query}"));

    let json = burn("").ok().json();
    for name in ["ms", "read", "write", "sum"] {
        assert_eq!(json[name], 0, "{name}");
    }
    let json = burn("?write=2000&read=4000").ok().json();
    assert_eq!(
        (&json["read"], &json["write"]),
        (&4000.into(), &2000.into())
    );
    // The pages' words are the numbers from 1 on; another clone wrote none of them.
    assert_eq!(json["sum"], 4000 * 4001 / 2);

    let before = unix_ms();
    assert_eq!(burn("?ms=50").ok().json()["ms"], 50);
    assert!(unix_ms() - before >= 50, "it answered too soon");

    for (query, sentence) in [
        ("?ms=-1", "ms must be a number from 0 to 60000.\n"),
        ("?read=6001", "read must be a number from 0 to 6000.\n"),
        ("?write=many", "write must be a number from 0 to 6000.\n"),
        (
            "?read=5000&write=1001",
            "read and write together must be at most 6000.\n",
        ),
        (
            "?pages=1",
            "There is no \"pages\": ask for ms, read, write or seed.\n",
        ),
    ] {
        let reply = burn(query);
        assert_eq!((reply.status, reply.text()), (400, sentence.to_owned()));
    }
}

#[test]
fn burn_touches_the_pages_that_it_is_told_to() {
    let Some(server) = Server::start() else {
        return;
    };
    let pages_touched = |name: &str, query: &str| {
        server.deploy_as(name, "burn", "");
        // The working set is known after a few requests that agree.
        for _ in 0..5 {
            let _ = server.client().invoke(name, query).ok();
        }
        // What a run touched is noted only some time after its answer.
        let mut pages = 0;
        eventually("it has a working set, and nothing runs", || {
            let is_at_rest = server.stats().running == 0;
            let function = server.client().get(&format!("/v1/functions/{name}")).ok();
            let noted = &function.json()["working_set_pages"];
            pages = noted.as_u64().expect("a number");
            is_at_rest && pages > 0
        });
        pages
    };
    let few = pages_touched("few", "/");
    let many = pages_touched("many", "/?read=700&write=300");
    // A few pages more or less hold stack and heap.
    let more = many - few;
    assert!((990..1010).contains(&more), "{few} and {many} pages");
}
