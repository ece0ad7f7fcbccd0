//! The real `dormouse` command.

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::SystemTime;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::{Client, eventually, files_below, host, images, terminal};

/// The command over one store.
#[derive(Debug)]
pub struct Dormouse {
    store: PathBuf,
}

/// How a command ended.
#[derive(Debug)]
pub struct Ended {
    /// Its exit code.
    pub code: i32,
    /// What it wrote to stdout.
    pub stdout: Vec<u8>,
    /// What it wrote to stderr.
    pub stderr: String,
}

impl Ended {
    /// What it wrote to stdout, after a success.
    ///
    /// # Panics
    /// Where it failed.
    #[track_caller]
    #[must_use]
    pub fn ok(self) -> Vec<u8> {
        assert_eq!(self.code, 0, "{}", self.stderr);
        self.stdout
    }

    /// The message of its one error.
    ///
    /// # Panics
    /// Where there is none or more, where it wrote data, or panicked.
    #[track_caller]
    #[must_use]
    pub fn error(&self) -> &str {
        assert!(self.stdout.is_empty(), "data beside an error: {self:?}");
        assert!(!self.stderr.contains("panicked"), "{}", self.stderr);
        let mut errors = self
            .stderr
            .lines()
            .filter_map(|line| line.strip_prefix("error: "));
        match (errors.next(), errors.next()) {
            (Some(error), None) => error,
            _ => panic!("not one error: {}", self.stderr),
        }
    }
}

impl Dormouse {
    /// The command over the store in `folder`; nothing where guests cannot run.
    #[must_use]
    pub fn over(folder: &Path) -> Option<Self> {
        host::runs_guests().then(|| Self {
            store: folder.to_owned(),
        })
    }

    /// The command over the store in `folder`, for what runs no guest and so works everywhere.
    #[must_use]
    pub fn without_guests(folder: &Path) -> Self {
        Self {
            store: folder.to_owned(),
        }
    }

    fn command(&self, arguments: &[&OsStr]) -> Command {
        let mut command = plain_command();
        command.args(arguments);
        // Tokens are in no store.
        if arguments.first() != Some(&OsStr::new("token")) {
            command.arg("--store").arg(&self.store);
        }
        command
    }

    /// Runs a subcommand.
    ///
    /// # Panics
    /// Where it cannot be started or dies of a signal.
    #[track_caller]
    pub fn run(&self, arguments: &[&str]) -> Ended {
        let arguments: Vec<_> = arguments.iter().map(OsStr::new).collect();
        end(&mut self.command(&arguments))
    }

    /// Runs a subcommand with `--format json`, and checks what it prints against the schema that
    /// `dormouse schema` has for it.
    ///
    /// # Panics
    /// Where it fails, prints no JSON, or something else than its schema says.
    #[track_caller]
    pub fn json(&self, arguments: &[&str]) -> Value {
        let listed = end(plain_command().arg("schema")).ok();
        let listed = String::from_utf8(listed).expect("text");
        let name = (1..=arguments.len())
            .map(|words| arguments[..words].join(" "))
            .find(|name| listed.lines().any(|listed| listed == name))
            .expect("a command that prints JSON");
        let schema = end(plain_command().arg("schema").args(name.split(' '))).ok();
        let schema = serde_json::from_slice(&schema).expect("a schema");

        let printed = self.run(&[arguments, &["--format", "json"]].concat()).ok();
        let printed: Value = serde_json::from_slice(&printed).expect("JSON");
        let validator = jsonschema::validator_for(&schema).expect("a schema");
        if let Err(error) = validator.validate(&printed) {
            panic!("`dormouse schema {name}` and what it prints: {error}");
        }
        printed
    }

    /// What a terminal gets to see of a subcommand.
    ///
    /// # Panics
    /// Where it cannot be started.
    #[track_caller]
    pub fn on_terminal(&self, arguments: &[&str]) -> String {
        let arguments: Vec<_> = arguments.iter().map(OsStr::new).collect();
        let mut command = plain_command();
        command.args(&arguments);
        if arguments.first() != Some(&OsStr::new("run")) {
            command.arg("--store").arg(&self.store);
        }
        let seen = terminal::watch(&mut command).expect("a terminal");
        String::from_utf8_lossy(&seen).into_owned()
    }

    /// Runs a subcommand that reads `input` from stdin.
    ///
    /// # Panics
    /// Where it cannot be started or dies of a signal.
    #[track_caller]
    pub fn run_with(&self, arguments: &[&str], input: &[u8]) -> Ended {
        let arguments: Vec<_> = arguments.iter().map(OsStr::new).collect();
        let mut command = self.command(&arguments);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().expect("the command runs");
        let mut stdin = child.stdin.take().expect("a pipe");
        std::thread::scope(|scope| {
            // It may end before it has read all.
            scope.spawn(move || drop(stdin.write_all(input)));
            ended(child.wait_with_output().expect("it ends"))
        })
    }

    /// Runs `bench engine` over the sample functions; it makes a store of its own.
    ///
    /// # Panics
    /// Where it cannot be started or dies of a signal.
    #[track_caller]
    pub fn bench_engine(&self, arguments: &[&str]) -> Ended {
        let mut command = plain_command();
        command.args(["bench", "engine", "--images"]);
        command.arg(images::folder()).args(arguments);
        end(&mut command)
    }

    /// Runs another `bench` command, which needs no store.
    ///
    /// # Panics
    /// Where it cannot be started or dies of a signal.
    #[track_caller]
    pub fn bench(&self, arguments: &[&str]) -> Ended {
        end(bench_command().args(arguments))
    }

    /// Runs a `bench` command and interrupts it when it has come `so_far`, as Ctrl-C does.
    ///
    /// # Panics
    /// Where it cannot be started, does not come so far, or dies of a signal.
    #[track_caller]
    pub fn bench_interrupted(&self, arguments: &[&str], so_far: impl FnMut() -> bool) -> Ended {
        // A shell's background jobs ignore the signal, and so would what they start: `env` becomes
        // the command, with its own process id, and ignores nothing.
        let mut command = Command::new("env");
        command.arg("--default-signal=INT").arg(binary());
        let mut command = for_bench(plain(command));
        command
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let child = command.spawn().expect("the command runs");
        eventually("it has come so far", so_far);
        let id = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        kill_process(id.expect("a process"), Signal::INT).expect("it still runs");
        ended(child.wait_with_output().expect("it ends"))
    }

    /// Deploys a file.
    #[track_caller]
    pub fn deploy(&self, name: &str, file: &Path) -> Ended {
        self.run(&["deploy", name, file.to_str().expect("a path of text")])
    }

    /// Deploys a sample function under its own name.
    ///
    /// # Panics
    /// Where it cannot be deployed.
    #[track_caller]
    pub fn deploy_sample(&self, sample: &str) {
        let _ = self.deploy(sample, &images::path(sample)).ok();
    }

    /// Starts a server, a process of its own.
    ///
    /// # Panics
    /// Where it does not start.
    #[must_use]
    pub fn serve(&self) -> Serving {
        self.serve_with(&[])
    }

    /// The same with more options.
    ///
    /// # Panics
    /// Where it does not start.
    #[must_use]
    pub fn serve_with(&self, options: &[&str]) -> Serving {
        self.start(options, |command| {
            command.stderr(Stdio::null());
        })
    }

    /// The same, with all that it can be made to log in this file.
    ///
    /// # Panics
    /// Where it does not start.
    #[must_use]
    pub fn serve_logged(&self, options: &[&str], log: &Path) -> Serving {
        let log = fs::File::create(log).expect("a file for the log");
        self.start(options, |command| {
            command.env("RUST_LOG", "trace").stderr(log);
        })
    }

    fn start(&self, options: &[&str], set_up: impl FnOnce(&mut Command)) -> Serving {
        let folder = tempfile::tempdir().expect("a folder");
        let url_file = folder.path().join("url");
        let arguments = ["serve", "--listen", "127.0.0.1:0", "--url-file"];
        let mut arguments: Vec<_> = arguments.iter().map(OsStr::new).collect();
        arguments.push(url_file.as_os_str());
        arguments.extend(options.iter().map(OsStr::new));
        let mut command = self.command(&arguments);
        set_up(&mut command);
        let process = command.spawn().expect("the server starts");
        let mut serving = Serving {
            process,
            client: Client::new(""),
        };
        eventually("the server listens", || url_file.exists());
        let url = fs::read_to_string(&url_file).expect("a URL");
        serving.client = Client::new(url.trim());
        serving
    }
}

/// A server in a process of its own; it ends with this value.
#[derive(Debug)]
pub struct Serving {
    process: Child,
    client: Client,
}

impl Serving {
    /// A client of it.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Runs a subcommand on this server, with a token in the environment, logging all that it can.
    ///
    /// # Panics
    /// Where it cannot be started or dies of a signal.
    #[track_caller]
    pub fn run_with_token(&self, token: Option<&str>, arguments: &[&str]) -> Ended {
        let mut command = plain_command();
        command
            .args(arguments)
            .args(["--server", self.client.url()]);
        command.env("RUST_LOG", "trace");
        if let Some(token) = token {
            command.env("DORMOUSE_TOKEN", token);
        }
        end(&mut command)
    }

    /// Its process.
    #[must_use]
    pub fn process_id(&self) -> u32 {
        self.process.id()
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn plain_command() -> Command {
    plain(Command::new(binary()))
}

fn plain(mut command: Command) -> Command {
    command
        .env_remove("DORMOUSE_SERVER")
        .env_remove("DORMOUSE_TOKEN")
        .env_remove("DORMOUSE_TOKENS")
        .env_remove("RUST_LOG")
        .stdin(Stdio::null());
    command
}

fn bench_command() -> Command {
    for_bench(plain_command())
}

fn for_bench(mut command: Command) -> Command {
    command
        .arg("bench")
        .env("DORMOUSE_TEST_IMAGES", images::folder());
    command
}

#[track_caller]
fn end(command: &mut Command) -> Ended {
    ended(command.output().expect("the command runs"))
}

#[track_caller]
fn ended(output: Output) -> Ended {
    Ended {
        code: output.status.code().expect("it was not killed"),
        stdout: output.stdout,
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// The binary beside this test's own, built first where it is older than its sources:
/// `cargo test --workspace` has built it, `cargo test -p dormouse-tests` has not.
fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        let own = std::env::current_exe().expect("the test's own path");
        // target/<profile>/deps/<test>
        let folder = own.ancestors().nth(2).expect("a profile's folder");
        let binary = folder.join("dormouse");
        if modified(&binary) < newest_source() {
            build(folder);
        }
        assert!(binary.exists(), "no {}", binary.display());
        binary
    })
}

fn modified(path: &Path) -> Option<SystemTime> {
    fs::metadata(path).ok()?.modified().ok()
}

fn newest_source() -> Option<SystemTime> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let crates = [
        "abi", "vmm", "snapshot", "archive", "pager", "jail", "pool", "explain", "server", "load",
        "cli",
    ];
    crates
        .iter()
        .map(|name| root.join("crates").join(name))
        .chain([root.join("benches")])
        .flat_map(|package| files_below(&package.join("src")))
        .filter_map(|file| modified(&file))
        .max()
}

fn build(profile_folder: &Path) {
    let profile = match profile_folder.file_name().and_then(OsStr::to_str) {
        Some("debug") | None => "dev",
        Some(profile) => profile,
    };
    let status = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["build", "--quiet", "--package", "dormouse-cli"])
        .args(["--profile", profile, "--target-dir"])
        .arg(profile_folder.parent().expect("a target folder"))
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status()
        .expect("cargo runs");
    assert!(status.success(), "the dormouse command does not build");
}
