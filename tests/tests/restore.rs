//! A snapshot is good in another process, in another place, and gives the answers that a cold boot
//! gives.

use dormouse_tests::{Client, Dormouse, Server, copy_folder};

/// Answers that depend on all that `wordfreq` computed before its snapshot.
#[track_caller]
fn answers(client: &Client, function: &str) -> Vec<(u16, String)> {
    [
        "/top?n=1000",
        "/?word=babe",
        "/words",
        "/?word=none",
        "/nowhere",
    ]
    .iter()
    .map(|target| {
        let reply = client.invoke(function, target);
        (reply.status, reply.text())
    })
    .collect()
}

#[test]
fn the_commands_snapshot_is_served_here_and_after_a_copy() {
    let folder = tempfile::tempdir().expect("a folder");
    let Some(dormouse) = Dormouse::over(folder.path()) else {
        return;
    };
    dormouse.deploy_sample("wordfreq");
    let Some(server) = Server::over(folder.path()) else {
        return;
    };
    let first = server.client().invoke("wordfreq", "/words").ok();
    assert_eq!(first.header("x-start-type"), "restored");
    let here = answers(server.client(), "wordfreq");
    assert_eq!(here[2].1, "{\"words\":10000}\n");

    let elsewhere = tempfile::tempdir().expect("a folder");
    copy_folder(folder.path(), elsewhere.path());
    let Some(copy) = Server::over(elsewhere.path()) else {
        return;
    };
    assert_eq!(answers(copy.client(), "wordfreq"), here);

    // A cold boot, at another address.
    server.deploy_as("again", "wordfreq", "");
    assert_eq!(answers(server.client(), "again"), here);
}

#[test]
fn a_snapshot_from_here_is_served_by_the_command() {
    let Some(server) = Server::start() else {
        return;
    };
    server.deploy("wordfreq");
    let here = answers(server.client(), "wordfreq");
    server.deploy("echo");

    let dormouse = Dormouse::over(server.store()).expect("guests run here");
    let printed = dormouse
        .run(&["invoke", "wordfreq", "-p", "/top?n=1000"])
        .ok();
    assert_eq!(String::from_utf8_lossy(&printed), here[0].1);
    let printed = dormouse.run(&["invoke", "echo", "-d", "to and fro"]).ok();
    assert_eq!(printed, b"to and fro");

    let serving = dormouse.serve();
    assert_eq!(answers(serving.client(), "wordfreq"), here);
    assert_eq!(serving.client().functions(), ["echo", "wordfreq"]);
}

#[test]
fn two_processes_serve_one_store_at_once() {
    let Some(server) = Server::start() else {
        return;
    };
    server.deploy("hello");
    let dormouse = Dormouse::over(server.store()).expect("guests run here");
    let serving = dormouse.serve();
    for client in [server.client(), serving.client(), server.client()] {
        let reply = client.invoke("hello", "/").ok();
        assert_eq!(reply.text(), "Hello from Dormouse!\n");
    }
    // What one publishes or removes the other sees.
    dormouse.deploy_sample("echo");
    assert_eq!(serving.client().post("echo", "/", b"new").ok().body, b"new");
    assert_eq!(server.client().post("echo", "/", b"new").ok().body, b"new");
    let _ = dormouse.run(&["snapshot", "rm", "echo"]).ok();
    assert_eq!(server.client().functions(), ["hello"]);
    assert_eq!(serving.client().functions(), ["hello"]);
}
