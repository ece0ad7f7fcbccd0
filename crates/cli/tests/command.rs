//! The binary from outside, where no guest is needed: exit codes, and what goes where.

use std::path::Path;
use std::process::{Command, Output};

const BINARY: &str = env!("CARGO_BIN_EXE_dormouse");

fn dormouse(folder: &Path, line: &[&str]) -> Output {
    Command::new(BINARY)
        .args(line)
        .current_dir(folder)
        .env_remove("DORMOUSE_SERVER")
        .env_remove("DORMOUSE_STORE")
        .env_remove("DORMOUSE_TOKEN")
        .env_remove("DORMOUSE_TOKENS")
        .env_remove("DORMOUSE_TEST_IMAGES")
        .env_remove("RUST_LOG")
        .output()
        .unwrap()
}

/// Runs a command that must fail: with this code, with words on stderr and nothing on stdout.
#[track_caller]
fn fails(line: &[&str], code: i32, words: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("text"), "this is no image").unwrap();
    let output = dormouse(folder.path(), line);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{line:?}: {stderr}");
    assert!(output.stdout.is_empty(), "{line:?}");
    // What was begun may stand before it.
    let mut said = stderr.lines();
    assert!(
        said.any(|line| line.starts_with("error: ")),
        "{line:?}: {stderr}"
    );
    for word in words {
        assert!(stderr.contains(word), "{line:?}: {stderr}");
    }
}

#[test]
fn the_command_line_is_checked() {
    fails(&["frobnicate"], 2, &["frobnicate"]);
    fails(&["deploy", "f"], 2, &["<IMAGE>"]);
    fails(&["deploy", "f", "text", "--memory", "lots"], 2, &["64MiB"]);
    fails(
        &["deploy", "f", "text", "--base", "high"],
        2,
        &["0x11200000"],
    );
    fails(
        &["deploy", "f", "text", "--env", "NAME"],
        2,
        &["NAME=VALUE"],
    );
    fails(&["deploy", "a/b", "text"], 2, &["a/b"]);
    fails(
        &["deploy", "f", "text", "--compress", "gzip"],
        2,
        &["none and zstd"],
    );
    fails(&["serve", "--verify", "never"], 2, &["background"]);
    fails(&["snapshot", "create", "f"], 2, &["<IMAGE>"]);
    fails(&["snapshot", "create", "f", "--from", "g"], 2, &["--warm"]);
    fails(
        &["snapshot", "create", "f", "text", "--warm", "0"],
        2,
        &["1..=10000"],
    );
    fails(
        &[
            "snapshot", "create", "f", "--from", "g", "--warm", "1", "--memory", "64MiB",
        ],
        2,
        &["--memory"],
    );
    fails(&["snapshot", "verify"], 2, &["<SNAPSHOT>"]);
    fails(&["snapshot", "flatten", "f@x"], 2, &["00000007-"]);
    fails(&["invoke", "f", "--path", "a b"], 2, &["%XX"]);
    fails(&["bench", "engine"], 2, &["xtask functions", "--images"]);
    fails(
        &["bench", "engine", "--images", ".", "--rows", "nothing/*"],
        2,
        &["nothing/*", "first-exit/hello"],
    );
    fails(&["bench", "engine", "--rows", "a**b"], 2, &["a**b"]);
    for number in ["0", "18446744073709551615", "many"] {
        fails(
            &["serve", "--max-concurrency", number],
            2,
            &["from 1 to 1000000"],
        );
    }
    fails(
        &["snapshot", "ls", "--server", "ftp://x"],
        2,
        &["hint: write for example http://"],
    );
}

#[test]
fn what_is_not_there_is_66() {
    fails(&["invoke", "f"], 66, &["\"f\"", "\nhint: "]);
    fails(&["snapshot", "inspect", "f"], 66, &["function f:"]);
    fails(&["snapshot", "rm", "f"], 66, &["\"f\""]);
    fails(&["deploy", "f", "no-such-file"], 66, &["no-such-file"]);
    fails(&["run", "no-such-file"], 66, &["no-such-file"]);
}

#[test]
fn what_is_no_image_is_65() {
    fails(&["run", "text"], 65, &["ELF"]);
    fails(&["deploy", "f", "text"], 65, &["ELF"]);
    fails(&["snapshot", "create", "f", "text"], 65, &["ELF"]);
}

#[test]
fn a_server_that_is_not_there_is_69() {
    // Port 1 is reserved and refuses.
    let server = "http://127.0.0.1:1";
    fails(&["snapshot", "ls", "--server", server], 69, &["\nhint: "]);
    fails(&["invoke", "f", "--server", server], 69, &[server]);
}

#[test]
fn an_empty_store_lists_as_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let output = dormouse(folder.path(), &["snapshot", "ls"]);
    assert!(output.status.success());
    assert!(output.stdout.is_empty());
    assert!(
        String::from_utf8(output.stderr)
            .unwrap()
            .contains("dormouse deploy")
    );

    let output = dormouse(folder.path(), &["snapshot", "ls", "--format", "json"]);
    assert!(output.status.success());
    assert_eq!(output.stdout, b"[]\n");
    assert!(folder.path().join("snapshots/store").is_dir());
}

#[test]
fn the_server_starts_says_where_and_stops_when_told() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = Command::new(BINARY)
        .args(["serve", "--listen", "127.0.0.1:0", "--url-file", "url"])
        .current_dir(folder.path())
        .spawn()
        .unwrap();
    let url = (0..600)
        .find_map(|_| {
            std::thread::sleep(std::time::Duration::from_millis(100));
            std::fs::read_to_string(folder.path().join("url")).ok()
        })
        .expect("the server writes its URL");

    let list = ["snapshot", "ls", "--format", "json", "--server", url.trim()];
    let output = dormouse(folder.path(), &list);
    assert_eq!(output.stdout, b"[]\n");

    let pid = rustix::process::Pid::from_child(&server);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert!(server.wait().unwrap().success());
}

#[test]
fn a_server_does_not_listen_beyond_loopback_without_tokens() {
    for address in ["0.0.0.0:0", "[::]:0", "0.0.0.0:80"] {
        let line = ["serve", "--listen", address];
        fails(&line, 2, &["without tokens", "--insecure-no-tokens"]);
    }
    let both = ["serve", "--insecure-no-tokens", "--tokens", "text"];
    fails(&both, 2, &["cannot be used with"]);
    fails(&["serve", "--tokens", "none"], 66, &["token create"]);
    // The file of this name is readable by all, and holds no tokens.
    fails(&["serve", "--tokens", "text"], 65, &["chmod 600"]);
}

#[test]
fn tokens_are_made_listed_and_removed() {
    let folder = tempfile::tempdir().unwrap();
    let run = |line: &[&str]| {
        let line = [&["token"], line, &["--tokens", "tokens"]].concat();
        let output = dormouse(folder.path(), &line);
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (
            output.status.code(),
            text(output.stdout),
            text(output.stderr),
        )
    };
    let line = ["create", "ci", "--scope", "deploy,invoke", "--function"];
    let (code, token, said) = run(&[&line[..], &["web-*", "--expires", "30d"]].concat());
    assert_eq!(code, Some(0), "{said}");
    assert_eq!((token.len(), &token[..4]), (48, "dmt_"));
    assert!(!said.contains(token.trim()), "{said}");
    let (code, _, said) = run(&["create", "ci", "--scope", "admin"]);
    assert_eq!(code, Some(2), "{said}");
    let (code, _, said) = run(&["create", "b", "--scope", "read"]);
    assert_eq!(code, Some(2), "{said}");
    let (code, _, said) = run(&["create", "b"]);
    assert!(code == Some(2) && said.contains("--scope"), "{said}");
    assert_eq!(run(&["create", "../b", "--scope", "admin"]).0, Some(2));

    let (_, list, _) = run(&["ls"]);
    for word in ["NAME", "ci", "invoke deploy", "web-*"] {
        assert!(list.contains(word), "{list}");
    }
    assert!(!list.contains(token.trim()));
    for (line, length) in [(&["rm", "ci"][..], 0), (&["rm", "ci"], 66)] {
        assert_eq!(run(line).0, Some(length));
    }
    assert_eq!(run(&["ls", "--format", "json"]).1, "[]\n");
}

#[test]
fn a_token_that_is_none_is_not_shown() {
    let secret = "dmt_secret";
    let server = ["snapshot", "ls", "--server", "http://127.0.0.1:1"];
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("token"), secret).unwrap();
    for more in [
        &["--token", secret][..],
        &["--token-file", "token"],
        &["--token", secret, "--token-file", "token"],
        &["--token", secret, "--token", secret],
    ] {
        let output = dormouse(folder.path(), &[&server[..], more].concat());
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        assert!(!stderr.contains(secret), "{stderr}");
    }
}

#[test]
fn the_help_has_the_exit_codes() {
    let folder = tempfile::tempdir().unwrap();
    let output = dormouse(folder.path(), &["--help"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("Exit codes:\n"));
    for command in [
        "run", "build", "deploy", "serve", "invoke", "snapshot", "token", "doctor",
    ] {
        assert!(text.contains(&format!("\n  {command} ")), "{command}");
    }
}

#[test]
fn completions_and_man_pages_know_every_command() {
    let folder = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish"] {
        let output = dormouse(folder.path(), &["completions", shell]);
        assert!(output.status.success(), "{shell}");
        let script = String::from_utf8(output.stdout).unwrap();
        for word in ["snapshot", "inspect", "doctor"] {
            assert!(script.contains(word), "{shell}: {word}");
        }
    }
    assert!(dormouse(folder.path(), &["man", "pages"]).status.success());
    let page = |name: &str| std::fs::read_to_string(folder.path().join("pages").join(name));
    assert!(page("dormouse.1").unwrap().contains("snapshot"));
    assert!(
        page("dormouse-snapshot-tune.1")
            .unwrap()
            .contains("payload")
    );
    fails(&["man", "text"], 69, &["text", "hint: "]);
    fails(&["completions", "tcl"], 2, &["tcl"]);
}

#[test]
fn schemas_are_found_by_the_names_of_commands() {
    let folder = tempfile::tempdir().unwrap();
    let list = dormouse(folder.path(), &["schema"]);
    let list = String::from_utf8(list.stdout).unwrap();
    assert!(list.lines().any(|line| line == "snapshot ls"), "{list}");
    let schema = dormouse(folder.path(), &["schema", "snapshot", "ls"]);
    let schema: serde_json::Value = serde_json::from_slice(&schema.stdout).unwrap();
    assert_eq!(schema["anyOf"][0]["type"], "array");
    fails(
        &["schema", "invoke"],
        2,
        &["invoke", "hint: ", "snapshot ls"],
    );
}
