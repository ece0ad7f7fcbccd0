//! Layers, flattening, verification and compression, from outside.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use dormouse_tests::{Client, Dormouse, Server, eventually, files_below, image};
use serde_json::Value;

/// The files with the pages of a function's snapshots.
fn packs(store: &Path, function: &str) -> Vec<PathBuf> {
    let mut files = files_below(&store.join(function));
    files.retain(|file| file.to_string_lossy().contains("/pack-"));
    files
}

/// The sizes of the files that no other snapshot has, and of all, in bytes.
fn own_and_all_bytes(packs: &[PathBuf]) -> (u64, u64) {
    let sizes = packs.iter().map(|pack| {
        let metadata = pack.metadata().expect("a file");
        let is_own = metadata.nlink() == 1;
        (if is_own { metadata.len() } else { 0 }, metadata.len())
    });
    sizes.fold((0, 0), |(own, all), (its_own, its_all)| {
        (own + its_own, all + its_all)
    })
}

/// Writes a file anew with one other byte a quarter into it, as a failing disk would have it. Other
/// snapshots keep the file as it was.
fn flip_a_byte(file: &Path) {
    let mut bytes = fs::read(file).expect("a file");
    let place = bytes.len() / 4;
    bytes[place] ^= 0x55;
    fs::remove_file(file).expect("a file of ours");
    fs::write(file, bytes).expect("room for it");
    fs::set_permissions(file, fs::Permissions::from_mode(0o400)).expect("a file of ours");
}

#[track_caller]
fn had_to_sort(client: &Client, function: &str) -> bool {
    let answer = client.invoke(function, "/letter?is=b").ok().json();
    assert!(answer["words"].as_u64() > Some(0), "{answer}");
    answer["sorted"].as_bool().expect("true or false")
}

#[test]
fn a_warmed_function_is_a_small_layer_that_can_be_flattened_and_verified() {
    let folder = tempfile::tempdir().expect("a folder");
    let Some(dormouse) = Dormouse::over(folder.path()) else {
        return;
    };
    let images = tempfile::tempdir().expect("a folder");
    let wordfreq = images.path().join("wordfreq.img");
    fs::write(&wordfreq, image("wordfreq")).expect("room for it");
    let file = wordfreq.to_str().expect("a path of text");
    let _ = dormouse.run(&["snapshot", "create", "wordfreq", file]).ok();
    let warm = ["snapshot", "create", "warm", "--from", "wordfreq"];
    let how = ["--warm", "2", "--warm-path", "/letter?is=b"];
    let warmed = dormouse.json(&[&warm[..], &how[..]].concat());
    assert_eq!(warmed["runs"], 2);
    let parent = warmed["parent"].as_str().expect("a name");
    assert!(parent.starts_with("wordfreq@"), "{parent}");

    let (own, all) = own_and_all_bytes(&packs(folder.path(), "warm"));
    assert!(own > 0 && own * 4 < all, "{own} of {all} bytes are its own");

    let Some(server) = Server::over(folder.path()) else {
        return;
    };
    for _ in 0..2 {
        assert!(had_to_sort(server.client(), "wordfreq"));
        assert!(!had_to_sort(server.client(), "warm"));
    }

    let flattened = dormouse.json(&["snapshot", "flatten", "warm", "--compress", "zstd"]);
    assert_eq!(flattened["compression"], "zstd");
    let snapshot = flattened["snapshot"].as_str().expect("a name");
    let id = snapshot.strip_prefix("warm@").expect("of this function");
    let mut flat = packs(folder.path(), "warm");
    flat.retain(|pack| pack.to_string_lossy().contains(id));
    let (own, all_of_it) = own_and_all_bytes(&flat);
    assert_eq!(own, all_of_it, "nothing is shared");
    assert!(own < all / 2, "{own} of {all} bytes, compressed");
    let elsewhere = Server::over(folder.path()).expect("guests run here");
    assert!(!had_to_sort(elsewhere.client(), "warm"));

    let good = dormouse.json(&["snapshot", "verify", "--all"]);
    assert_eq!(
        (&good["good"], &good["bad"]),
        (&3.into(), &Value::Array(vec![]))
    );
    let spoiled = packs(folder.path(), "wordfreq").remove(0);
    flip_a_byte(&spoiled);
    let ended = dormouse.run(&["snapshot", "verify", "--all", "--format", "json"]);
    assert_eq!(ended.code, 65, "{}", ended.stderr);
    let found: Value = serde_json::from_slice(&ended.stdout).expect("JSON");
    let bad = found["bad"].as_array().expect("a list");
    assert_eq!((&found["good"], bad.len()), (&2.into(), 1), "{found}");
    assert_eq!(bad[0]["snapshot"], parent);
    let error = bad[0]["error"].as_str().expect("a sentence");
    assert!(
        error.contains(spoiled.to_str().expect("a path of text")),
        "{error}"
    );
    // Only what is asked for is read.
    let _ = dormouse.run(&["snapshot", "verify", "warm", snapshot]).ok();
    assert_eq!(dormouse.run(&["snapshot", "verify", "wordfreq"]).code, 65);
    assert_eq!(dormouse.run(&["snapshot", "verify", "nobody"]).code, 66);
    assert_eq!(dormouse.run(&["snapshot", "verify", "warm@x"]).code, 2);
}

#[test]
fn a_compressed_deploy_answers_and_can_be_warmed() {
    let Some(server) = Server::start() else {
        return;
    };
    let _ = server.deploy_as("raw", "hello", "?base=0x11200000").ok();
    let (raw, _) = own_and_all_bytes(&packs(server.store(), "raw"));
    server
        .client()
        .send("DELETE", "/v1/functions/raw", &[], b"");
    let _ = server.deploy_as("hello", "hello", "?compress=zstd").ok();
    let (small, _) = own_and_all_bytes(&packs(server.store(), "hello"));
    assert!(small * 2 < raw, "{small} bytes instead of {raw}");
    let hello = || server.client().invoke("hello", "/").ok().text();
    assert_eq!(hello(), "Hello from Dormouse!\n");
    let path = "/v1/functions/hello/warm?runs=2";
    let warmed = server.client().send("POST", path, &[], b"");
    assert_eq!(warmed.status, 201, "{}", warmed.text());
    assert_eq!(warmed.header("location"), "/v1/functions/hello");
    assert_eq!(hello(), "Hello from Dormouse!\n");
    let config = &warmed.json()["function"]["config"];
    assert_eq!(config["compression"], "zstd");
    let unknown = "/v1/functions/hello/warm?runs=1&from=hello@00000077-9f86d081884c7d65";
    let refused = server.client().send("POST", unknown, &[], b"");
    assert_eq!(
        (refused.status, refused.header("x-dormouse-error")),
        (404, "unknown-snapshot")
    );
}

#[test]
fn a_server_finds_damage_beside_its_first_requests() {
    let folder = tempfile::tempdir().expect("a folder");
    let Some(dormouse) = Dormouse::over(folder.path()) else {
        return;
    };
    dormouse.deploy_sample("hello");
    flip_a_byte(&packs(folder.path(), "hello")[0]);
    let serving = dormouse.serve_with(&["--verify", "background"]);
    eventually("the damage is found", || {
        let reply = serving.client().invoke("hello", "/");
        reply.status == 500 && reply.header("x-dormouse-error") == "store-failed"
    });
    let metrics = serving.client().get("/metrics").ok().text();
    let count = "dormouse_damaged_snapshots_total 1";
    assert!(metrics.lines().any(|line| line == count), "{metrics}");
    // Deploying it again replaces it.
    let reply = serving.client().put("hello", "", &image("hello"));
    assert_eq!(reply.status, 201, "{}", reply.text());
    let reply = serving.client().invoke("hello", "/").ok();
    assert_eq!(reply.text(), "Hello from Dormouse!\n");
}
