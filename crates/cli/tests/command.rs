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
    let url = (0..100)
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
fn the_help_has_the_exit_codes() {
    let folder = tempfile::tempdir().unwrap();
    let output = dormouse(folder.path(), &["--help"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("Exit codes:\n"));
    for command in [
        "run", "build", "deploy", "serve", "invoke", "snapshot", "doctor",
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
