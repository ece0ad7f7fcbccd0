//! Bad input of every kind: one clear sentence, no panic, nothing half-published, and the server
//! serves on.

use std::path::{Path, PathBuf};

use dormouse_pool::{PoolConfig, Verify};
use dormouse_tests::{
    Client, Dormouse, Server, Setup, copy_folder, eventually, files_below, image,
};

/// Deploys must leave no trace; this sees any that they leave.
struct Untouched<'a> {
    server: &'a Server,
    functions: Vec<String>,
    files: Vec<PathBuf>,
}

impl<'a> Untouched<'a> {
    fn by_now(server: &'a Server) -> Self {
        Self {
            server,
            functions: server.client().functions(),
            files: files_below(server.store()),
        }
    }

    #[track_caller]
    fn check(&self, after: &str) {
        assert_eq!(self.server.client().functions(), self.functions, "{after}");
        assert_eq!(files_below(self.server.store()), self.files, "{after}");
        greets(self.server.client());
    }
}

#[track_caller]
fn greets(client: &Client) {
    assert_eq!(
        client.invoke("hello", "/").ok().text(),
        "Hello from Dormouse!\n"
    );
}

/// Waits until a function's working set is in its place, which is so some time after an answer.
fn keeps_working_set(server: &Server, function: &str) {
    eventually("the working set is stored", || {
        let files = files_below(&server.store().join(function));
        files.iter().any(|file| file.ends_with("working-set"))
    });
}

/// A server with one good function that has learnt its working set, so that its files rest.
fn server_with_hello() -> Option<Server> {
    let server = Server::start()?;
    server.deploy("hello");
    for _ in 0..4 {
        greets(server.client());
    }
    keeps_working_set(&server, "hello");
    Some(server)
}

fn patched(image: &[u8], offset: usize, bytes: &[u8]) -> Vec<u8> {
    let mut image = image.to_vec();
    image[offset..offset + bytes.len()].copy_from_slice(bytes);
    image
}

/// The sample with the ABI version that it announces changed: `mov dx, PORT; mov eax, VERSION`.
fn of_another_abi_version(image: &[u8]) -> Vec<u8> {
    let mut exchange = vec![0x66, 0xBA];
    exchange.extend_from_slice(&dormouse_abi::EXCHANGE_PORT.to_le_bytes());
    exchange.push(0xB8);
    let version_at = exchange.len();
    exchange.extend_from_slice(&dormouse_abi::ABI_VERSION.to_le_bytes());
    let mut image = image.to_vec();
    let places: Vec<usize> = (0..image.len() - exchange.len())
        .filter(|at| image[*at..].starts_with(&exchange))
        .collect();
    assert!(
        !places.is_empty(),
        "the compiler writes the exchange otherwise now"
    );
    for place in places {
        image[place + version_at..][..4].copy_from_slice(&77u32.to_le_bytes());
    }
    image
}

/// What is no image for this host, and a word that its sentence must have.
fn bad_images() -> Vec<(String, Vec<u8>, &'static str)> {
    const MACHINE: usize = 18;
    const CLASS: usize = 4;
    const BYTE_ORDER: usize = 5;
    const AARCH64: [u8; 2] = [183, 0];
    let hello = image("hello");
    let mut bad = vec![
        ("nothing".to_owned(), Vec::new(), "ELF"),
        (
            "a script".to_owned(),
            b"#!/bin/sh\necho hello\n".to_vec(),
            "ELF",
        ),
        ("zeros".to_owned(), vec![0; 1 << 16], "ELF"),
        ("an ELF's first bytes".to_owned(), b"\x7fELF".to_vec(), ""),
        (
            "another machine".to_owned(),
            patched(&hello, MACHINE, &AARCH64),
            "x86",
        ),
        ("32 bits".to_owned(), patched(&hello, CLASS, &[1]), ""),
        (
            "big-endian".to_owned(),
            patched(&hello, BYTE_ORDER, &[2]),
            "",
        ),
        (
            "another ABI".to_owned(),
            of_another_abi_version(&hello),
            "ABI version 77",
        ),
        ("a program, not a function".to_owned(), image("plain"), ""),
    ];
    let linux = std::fs::read("/bin/ls").expect("an ordinary Linux program");
    bad.push(("/bin/ls".to_owned(), linux, "Hermit"));
    let whole = hello.len();
    for length in [
        1,
        3,
        4,
        16,
        63,
        64,
        65,
        120,
        512,
        4096,
        65536,
        whole / 2,
        whole - 4096,
        whole - 1,
    ] {
        bad.push((
            format!("its first {length} bytes"),
            hello[..length].to_vec(),
            "",
        ));
    }
    bad
}

#[test]
fn what_is_no_image_is_refused() {
    let Some(server) = server_with_hello() else {
        return;
    };
    let untouched = Untouched::by_now(&server);
    for (what, image, word) in bad_images() {
        let reply = server.client().put("bad", "", &image);
        let problem = reply.problem();
        assert_eq!(
            problem.kind(),
            (400, "bad-image"),
            "{what}: {}",
            problem.detail
        );
        assert!(problem.detail.contains(word), "{what}: {}", problem.detail);
        untouched.check(&what);
    }
}

#[test]
fn a_function_that_fails_at_its_start_is_not_published() {
    let Some(server) = server_with_hello() else {
        return;
    };
    let untouched = Untouched::by_now(&server);
    let reply = server
        .client()
        .put("late", "?init_timeout_ms=1", &image("hello"));
    assert_eq!(reply.problem().kind(), (504, "init-timeout"));
    untouched.check("too late");
}

#[test]
fn impossible_names_are_refused() {
    let Some(server) = server_with_hello() else {
        return;
    };
    let untouched = Untouched::by_now(&server);
    let long = "x".repeat(300);
    let good_image = image("hello");
    for name in [
        "a%2Fb",
        "%2Fetc",
        "..",
        ".",
        "...",
        ".hidden",
        "..%2F..%2Fx",
        "a%20b",
        "%C3%BCber",
        "%F0%9F%90%AD",
        "%FF",
        "a%00b",
        "-x",
        long.as_str(),
    ] {
        let reply = server.client().put(name, "", &good_image);
        assert_eq!(
            reply.problem().kind(),
            (400, "bad-name"),
            "{name}: {}",
            reply.text()
        );
        let reply = server.client().invoke(name, "/");
        assert_eq!(
            reply.problem().kind(),
            (400, "bad-name"),
            "{name}: {}",
            reply.text()
        );
        untouched.check(name);
    }
    let reply = server.client().put("", "", &good_image);
    assert_eq!(reply.problem().kind(), (404, "unknown-route"));
    let reply = server.client().put("a/b", "", &good_image);
    assert_eq!(reply.problem().kind(), (404, "unknown-route"));
    untouched.check("no name");
}

#[test]
fn impossible_options_are_refused() {
    let Some(server) = server_with_hello() else {
        return;
    };
    let untouched = Untouched::by_now(&server);
    let good_image = image("hello");
    for (options, word) in [
        ("memory=0", "memory"),
        ("memory=1MiB", "memory"),
        ("memory=17MiB", "memory"),
        ("memory=64MB2", "memory"),
        ("memory=2000GiB", "memory"),
        ("memory=18446744073709551615", "memory"),
        ("memory=99999999999999999999", "memory"),
        ("base=0x1000", "base"),
        ("base=0xFFFFFFFFFFE00000", "base"),
        ("timeout_ms=0", "timeout_ms"),
        ("init_timeout_ms=99999999999", "init_timeout_ms"),
        ("concurrency=0", "concurrency"),
        ("concurrency=100000", "concurrency"),
        ("layouts=0", "layouts"),
        ("layouts=17", "layouts"),
        ("layouts=2&base=0x11200000", "layouts"),
        ("env=NOVALUE", "env"),
        ("config=%5B", "config"),
    ] {
        let reply = server
            .client()
            .put("bad", &format!("?{options}"), &good_image);
        let problem = reply.problem();
        assert_eq!(
            problem.kind(),
            (400, "bad-option"),
            "{options}: {}",
            problem.detail
        );
        assert!(
            problem.detail.to_lowercase().contains(word),
            "{options}: {}",
            problem.detail
        );
        untouched.check(options);
    }
}

/// The damages that a file can take: cut off, or one bit of it wrong.
fn damages(file: &[u8]) -> Vec<(String, Vec<u8>)> {
    let mut damages = Vec::new();
    for length in [0, 1, file.len() / 2, file.len() - 1] {
        damages.push((format!("cut to {length}"), file[..length].to_vec()));
    }
    for at in [0, 8, 40, file.len() / 3, file.len() / 2, file.len() - 1] {
        damages.push((
            format!("bit at {at}"),
            patched(file, at, &[file[at] ^ 0x10]),
        ));
    }
    damages
}

#[test]
fn damaged_snapshots_are_refused_and_others_served() {
    let Some(server) = server_with_hello() else {
        return;
    };
    server.deploy_as("victim", "echo", "?memory=32MiB");
    for _ in 0..4 {
        let _ = server.client().post("victim", "/", b"x").ok();
    }
    keeps_working_set(&server, "victim");
    let good = server.store().to_owned();
    for file in files_below(&good.join("victim")) {
        let name = file
            .file_name()
            .expect("a name")
            .to_string_lossy()
            .into_owned();
        let bytes = std::fs::read(&file).expect("a file");
        let mut damages = damages(&bytes);
        if name.starts_with("pack-") {
            // The first page that is stored is one that the guest needs.
            let at = bytes[4096..].iter().position(|byte| *byte != 0);
            let at = 4096 + at.expect("something");
            damages.push((
                "bit of its first page".into(),
                patched(&bytes, at, &[bytes[at] ^ 1]),
            ));
        }
        for (what, bytes) in damages {
            let what = format!("{name}, {what}");
            let folder = tempfile::tempdir().expect("a folder");
            copy_folder(&good, folder.path());
            let target = folder
                .path()
                .join(file.strip_prefix(&good).expect("below it"));
            std::fs::write(&target, bytes).expect("the damage is done");
            refuses_or_does_not_need_it(folder.path(), &name, &what);
        }
    }
}

/// The working set and some pages of a pack are not needed to answer; their damage may go unnoticed
/// until they are.
#[track_caller]
fn refuses_or_does_not_need_it(folder: &Path, name: &str, what: &str) {
    let Some(server) = Server::with(Setup {
        store: Some(folder.to_owned()),
        pool: PoolConfig {
            verify: Verify::Always,
            ..PoolConfig::default()
        },
        ..Setup::default()
    }) else {
        return;
    };
    let client = server.client();
    let reply = client.post("victim", "/", b"good");
    let is_pack = name.starts_with("pack-");
    let can_answer = name == "working-set" || is_pack && !what.contains("first page");
    let answers = can_answer && reply.status == 200;
    if answers {
        assert_eq!(reply.body, b"good", "{what}");
    } else {
        assert_eq!(reply.problem().kind(), (500, "store-failed"), "{what}");
        assert_ne!(name, "working-set", "{what}: it is only a hint");
    }
    assert!(client.functions().contains(&"hello".to_owned()), "{what}");
    greets(client);
    // The remedy that the errors name.
    let deployed = client.put("victim", "?memory=32MiB", &image("echo")).ok();
    assert_eq!(deployed.json()["created"], !answers, "{what}");
    assert_eq!(
        client.post("victim", "/", b"mended").ok().body,
        b"mended",
        "{what}"
    );
}

#[test]
fn the_command_says_what_is_wrong_and_leaves_nothing() {
    const FUNCTION: i32 = 1;
    const USAGE: i32 = 2;
    const DATA: i32 = 65;
    const NO_INPUT: i32 = 66;
    let folder = tempfile::tempdir().expect("a folder");
    let Some(dormouse) = Dormouse::over(&folder.path().join("store")) else {
        return;
    };
    let file = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).expect("a file");
        path.to_str().expect("text").to_owned()
    };
    let hello = image("hello");
    let good = file("good", &hello);
    let half = file("half", &hello[..hello.len() / 2]);
    let text = file("text", b"no image");
    let other_abi = file("abi", &of_another_abi_version(&hello));
    let long = "x".repeat(300);
    for (arguments, code) in [
        (&["deploy", "f", "/bin/ls"][..], DATA),
        (&["deploy", "f", &half], DATA),
        (&["deploy", "f", &text], DATA),
        (&["deploy", "f", &other_abi], DATA),
        (&["deploy", "f", "/no/such/file"], NO_INPUT),
        (&["deploy", "a/b", &good], USAGE),
        (&["deploy", "..", &good], USAGE),
        (&["deploy", "über", &good], USAGE),
        (&["deploy", &long, &good], USAGE),
        (&["deploy", "f", &good, "--memory", "0"], USAGE),
        (&["deploy", "f", &good, "--memory", "1MiB"], USAGE),
        (&["deploy", "f", &good, "--memory", "2000GiB"], USAGE),
        (&["deploy", "f", &good, "--init-timeout", "1ms"], FUNCTION),
        (&["invoke", "f"], NO_INPUT),
        (&["snapshot", "inspect", "f"], NO_INPUT),
        (&["snapshot", "rm", "f"], NO_INPUT),
    ] {
        let ended = dormouse.run(arguments);
        assert_eq!(ended.code, code, "{arguments:?}: {}", ended.stderr);
        assert!(ended.error().len() > 10, "{arguments:?}: {}", ended.stderr);
        let kept = files_below(&folder.path().join("store"));
        let kept: Vec<_> = kept
            .iter()
            .filter(|file| !file.ends_with(".lock"))
            .collect();
        assert!(kept.is_empty(), "{arguments:?} left {kept:?}");
    }
}

#[test]
fn what_functions_say_does_not_speak_to_a_terminal() {
    const HOSTILE: &str = "\x1b]0;mine\x07\u{9b}2J\tend\n";
    const SEEN: &str = "\\u{1b}]0;mine\\u{7}\\u{9b}2J\tend";
    let folder = tempfile::tempdir().expect("a folder");
    let Some(dormouse) = Dormouse::over(&folder.path().join("store")) else {
        return;
    };
    dormouse.deploy_sample("echo");
    let invoke = ["invoke", "echo", "--data", HOSTILE];
    assert_eq!(dormouse.run(&invoke).ok(), HOSTILE.as_bytes(), "a pipe");
    let seen = dormouse.on_terminal(&invoke);
    assert!(seen.contains(SEEN), "{seen:?}");

    let plain = folder.path().join("plain");
    std::fs::write(&plain, image("plain")).expect("a file");
    let plain = plain.to_str().expect("text");
    // The program writes the first to stdout, the second to stderr.
    let greeting = format!("GREETING={HOSTILE}");
    let seen = dormouse.on_terminal(&[
        "run", "--quiet", "--env", &greeting, plain, "--", "--read", HOSTILE,
    ]);
    assert!(seen.contains(&format!("GREETING: {SEEN}")), "{seen:?}");
    assert!(seen.contains(&format!("cannot read {SEEN}")), "{seen:?}");
    assert!(!seen.contains(['\x1b', '\x07', '\u{9b}']), "{seen:?}");
}
