//! The invariants of the house, as ARCHITECTURE.md has them: who may import whom, who may know
//! what, and where `unsafe` may stand.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use cargo_metadata::{DependencyKind, MetadataCommand, Package};
use dormouse_tests::files_below;

/// Each package of the house, and those that it imports. Nothing else is allowed, nothing here is
/// idle.
const IMPORTS: &[(&str, &[&str])] = &[
    ("abi", &[]),
    ("guest", &["abi"]),
    ("vmm", &["abi"]),
    ("snapshot", &[]),
    ("archive", &["snapshot"]),
    ("pager", &[]),
    ("jail", &[]),
    ("pool", &["abi", "vmm", "snapshot", "pager", "jail"]),
    ("explain", &["abi", "vmm", "snapshot", "pool"]),
    ("server", &["pool"]),
    ("load", &[]),
    (
        "benches",
        &["abi", "load", "pool", "vmm", "snapshot", "pager"],
    ),
    (
        "cli",
        &[
            "archive", "benches", "explain", "load", "server", "pool", "vmm", "snapshot", "pager",
        ],
    ),
    ("fuzz", &["snapshot", "vmm"]),
    ("torture", &["pool", "vmm", "snapshot", "pager"]),
    ("xtask", &[]),
];

/// What speaks HTTP.
const HTTP: &[&str] = &[
    "axum",
    "http",
    "http-body-util",
    "hyper",
    "hyper-util",
    "reqwest",
    "tower-http",
    "ureq",
];
/// Who may.
const KNOW_HTTP: &[&str] = &["server", "load", "cli", "tests", "benches", "xtask"];
/// Who may look at arguments and environment.
const KNOW_ENVIRONMENT: &[&str] = &["cli", "tests", "fuzz", "torture", "benches", "xtask"];

/// Where `unsafe` may stand: files and folders below each package's `src`.
const UNSAFE: &[(&str, &[&str])] = &[
    (
        "vmm",
        &[
            "boot.rs",
            "clock.rs",
            "config.rs",
            "image",
            "kick.rs",
            "paging.rs",
            "ram.rs",
            "shell.rs",
            "vcpu.rs",
        ],
    ),
    ("pager", &["fd", "huge.rs", "mapping.rs"]),
    ("jail", &["kernel.rs"]),
    ("cli", &["heaps.rs"]),
    ("guest", &["alloc.rs", "port.rs"]),
    ("benches", &["floor"]),
    ("load", &["drive/timer.rs"]),
];

const MAX_LINES: usize = 500;
/// Longer files, each with its reason.
const LONG_FILES: &[(&str, &str)] = &[];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn packages() -> Vec<Package> {
    let metadata = MetadataCommand::new()
        .manifest_path(root().join("Cargo.toml"))
        .no_deps()
        .exec()
        .expect("cargo's metadata");
    metadata.packages
}

/// Where a package's own sources are.
fn sources(name: &str) -> PathBuf {
    let folder = match name {
        "benches" => root().join(name),
        "fuzz" | "torture" => root().join("tests").join(name),
        _ => root().join("crates").join(name),
    };
    folder.join("src")
}

fn short(name: &str) -> Option<&str> {
    name.strip_prefix("dormouse-")
}

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = files_below(folder);
    files.retain(|file| {
        let inner = file.strip_prefix(folder).unwrap_or(file);
        let built = inner.components().any(|part| part.as_os_str() == "target");
        !built && file.extension().is_some_and(|extension| extension == "rs")
    });
    files
}

/// The lines that are code, with their numbers. Strings that look like comments do not occur in
/// what is looked for.
fn code(file: &Path) -> Vec<(usize, String)> {
    let text = fs::read_to_string(file).expect("a source file");
    (1..)
        .zip(text.lines())
        .map(|(number, line)| (number, line.split("//").next().unwrap_or("").to_owned()))
        .collect()
}

/// Names in strings may have dashes, as `unsafe-inline`.
fn says_word(line: &str, word: &str) -> bool {
    line.split(|c: char| !(c.is_alphanumeric() || c == '_' || c == '-'))
        .any(|found| found == word)
}

#[test]
fn everybody_imports_exactly_whom_they_may() {
    let mut edges: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for package in packages() {
        let Some(name) = short(package.name.as_ref()) else {
            panic!("{} is not named dormouse-…", package.name);
        };
        let imports = package
            .dependencies
            .iter()
            .filter(|dependency| dependency.kind == DependencyKind::Normal)
            .filter_map(|dependency| short(&dependency.name).map(str::to_owned))
            .collect();
        edges.insert(name.to_owned(), imports);
    }
    for (name, imports) in IMPORTS {
        let allowed: BTreeSet<String> = imports.iter().map(|name| (*name).to_owned()).collect();
        assert_eq!(edges.remove(*name), Some(allowed), "of {name}");
    }
    let rest: Vec<_> = edges.into_keys().collect();
    assert_eq!(rest, ["tests"], "a package that IMPORTS does not know");
}

#[test]
fn siblings_do_not_meet_in_their_tests_either() {
    let siblings = ["vmm", "snapshot", "pager", "jail"];
    for package in packages() {
        let name = short(package.name.as_ref()).unwrap_or_default().to_owned();
        if !siblings.contains(&name.as_str()) {
            continue;
        }
        for dependency in &package.dependencies {
            let other = short(&dependency.name).unwrap_or_default();
            assert!(!siblings.contains(&other), "{name} knows {other}");
        }
    }
}

#[test]
fn only_server_and_command_know_http() {
    for package in packages() {
        let name = short(package.name.as_ref()).unwrap_or_default();
        if KNOW_HTTP.contains(&name) {
            continue;
        }
        for dependency in &package.dependencies {
            let speaks = HTTP.contains(&dependency.name.as_str());
            assert!(!speaks, "{name} depends on {}", dependency.name);
        }
    }
}

#[test]
fn only_the_command_reads_arguments_and_environment() {
    let calls = [
        "env::args",
        "env::var",
        "env::vars",
        "env::home_dir",
        "env::current_dir",
    ];
    for (name, _) in IMPORTS {
        if KNOW_ENVIRONMENT.contains(name) {
            continue;
        }
        for file in rust_files(&sources(name)) {
            for (number, line) in code(&file) {
                let reads = calls.iter().any(|call| line.contains(call));
                assert!(!reads, "{}:{number}: {line}", file.display());
            }
        }
    }
}

#[test]
fn unsafe_stands_where_it_may_and_is_forbidden_elsewhere() {
    for (name, _) in IMPORTS {
        let folder = sources(name);
        let allowed = UNSAFE.iter().find(|(crate_name, _)| crate_name == name);
        let Some((_, places)) = allowed else {
            let has_root = ["lib.rs", "main.rs"].iter().any(|root| {
                let text = fs::read_to_string(folder.join(root)).unwrap_or_default();
                text.contains("#![forbid(unsafe_code)]")
            });
            assert!(has_root, "{name} does not forbid unsafe code");
            continue;
        };
        for file in rust_files(&folder) {
            let place = file.strip_prefix(&folder).expect("below it");
            let is_test = place.ends_with("tests.rs");
            if is_test || places.iter().any(|allowed| place.starts_with(allowed)) {
                continue;
            }
            for (number, line) in code(&file) {
                assert!(
                    !says_word(&line, "unsafe"),
                    "{}:{number}: {line}",
                    file.display()
                );
            }
        }
    }
}

#[test]
fn every_crate_has_the_houses_lints() {
    for package in packages() {
        let manifest = fs::read_to_string(&package.manifest_path).expect("a manifest");
        let manifest: String = manifest.split_whitespace().collect();
        assert!(
            manifest.contains("[lints]workspace=true"),
            "{}",
            package.name
        );
    }
    let workspace = fs::read_to_string(root().join("Cargo.toml")).expect("a manifest");
    for lint in [
        "missing_docs",
        "unsafe_op_in_unsafe_fn",
        "undocumented_unsafe_blocks",
    ] {
        assert!(workspace.contains(&format!("\n{lint} = ")), "{lint}");
    }
}

#[test]
fn no_file_is_too_long_without_a_reason() {
    let root = root().canonicalize().expect("the repository");
    let mut unused: BTreeSet<&str> = LONG_FILES.iter().map(|(file, _)| *file).collect();
    for folder in ["crates", "functions", "tests", "benches"] {
        for file in rust_files(&root.join(folder)) {
            let lines = fs::read_to_string(&file)
                .expect("a source file")
                .lines()
                .count();
            if lines <= MAX_LINES {
                continue;
            }
            let name = file
                .strip_prefix(&root)
                .expect("below it")
                .to_string_lossy();
            assert!(unused.remove(&*name), "{name} has {lines} lines");
        }
    }
    assert!(unused.is_empty(), "short enough by now: {unused:?}");
}

/// `docs/UNIQUENESS.md` says for each hazard which test would notice it.
#[test]
fn every_test_that_is_named_for_uniqueness_exists() {
    let page = fs::read_to_string(root().join("docs/UNIQUENESS.md")).expect("the page");
    let rows = page.lines().filter(|line| line.starts_with("| "));
    let mut hazards = 0;
    // After the head of the table; the line of dashes has no space.
    for row in rows.skip(1) {
        let tests = row.trim_end_matches(" |").rsplit(" | ").next();
        let named: Vec<_> = tests
            .into_iter()
            .flat_map(|tests| tests.split(", "))
            .filter_map(|test| test.trim_matches('`').split_once(".rs::"))
            .collect();
        assert!(!named.is_empty(), "no test for: {row}");
        for (file, test) in named {
            let path = root().join(format!("{file}.rs"));
            let text = fs::read_to_string(&path)
                .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            let lines: Vec<_> = text.lines().map(str::trim).collect();
            let function = format!("fn {test}() {{");
            let at = lines
                .iter()
                .position(|line| line.trim_start_matches("async ") == function)
                .unwrap_or_else(|| panic!("{file}.rs has no {test}"));
            let is_test =
                |line: &&str| line.starts_with("#[test]") || line.starts_with("#[tokio::test");
            let attributes = lines[..at].iter().rev();
            let mut attributes = attributes.take_while(|line| line.starts_with('#'));
            assert!(attributes.any(is_test), "{test} is no test");
        }
        hazards += 1;
    }
    assert!(hazards > 10, "only {hazards} rows were read");
}
