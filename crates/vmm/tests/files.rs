//! Files of one folder, read-only and confined to it; and standard input.

mod support;

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use dormouse_vmm::{CrashKind, Interface, MachineConfig, Stop, Symbols};
use support::puppet::Puppet;
use support::{assert_crash, far, kvm_or_skip, machine};

const ENOENT: i32 = 2;
const EBADF: i32 = 9;
const EISDIR: i32 = 21;
const EINVAL: i32 = 22;
const EMFILE: i32 = 24;
const EROFS: i32 = 30;
const ENAMETOOLONG: i32 = 36;

/// A guest that calls the file functions, by either interface.
struct Files {
    guest: Puppet,
    interface: Interface,
}

impl Files {
    fn new(interface: Interface, folder: Option<&Path>) -> Self {
        let config = MachineConfig {
            files: folder.map(Path::to_owned),
            ..machine()
        };
        Self {
            guest: Puppet::boot(interface, &config),
            interface,
        }
    }

    fn call(&mut self, v1: u16, v2: u16, parameters: &[u8]) -> u64 {
        let address = self.guest.put(parameters);
        let stop = match self.interface {
            Interface::V1 => self.guest.out(v1, address, 0),
            Interface::V2 => self.guest.out(v2, 0, address),
        };
        assert_eq!(stop, None);
        address
    }

    fn open(&mut self, path: &str, flags: i32) -> i32 {
        let name = self.guest.put(&[path.as_bytes(), b"\0"].concat());
        let parameters = [&name.to_le_bytes()[..], &flags.to_le_bytes(), &[0; 8]].concat();
        let at = self.call(0x440, 0x1110, &parameters);
        self.guest.get_i32(at + 16)
    }

    fn close(&mut self, fd: i32) -> i32 {
        let at = self.call(0x480, 0x1120, &[fd.to_le_bytes(), [0; 4]].concat());
        self.guest.get_i32(at + 4)
    }

    fn read(&mut self, fd: i32, len: u64) -> Result<Vec<u8>, i64> {
        let buffer = self.guest.put(&[0xAA; 4096]);
        let (parameters, result_at) = match self.interface {
            Interface::V1 => (
                [
                    &fd.to_le_bytes()[..],
                    &buffer.to_le_bytes(),
                    &len.to_le_bytes(),
                    &[0; 8],
                ]
                .concat(),
                20,
            ),
            Interface::V2 => (
                [
                    &len.to_le_bytes()[..],
                    &[0; 8],
                    &buffer.to_le_bytes(),
                    &fd.to_le_bytes(),
                    &[0; 4],
                ]
                .concat(),
                8,
            ),
        };
        let at = self.call(0x500, 0x1130, &parameters);
        let count = self.guest.get_i64(at + result_at);
        let bytes: [u8; 4096] = self.guest.get(buffer);
        match usize::try_from(count) {
            Ok(count) => {
                assert!(bytes[count..].iter().all(|byte| *byte == 0xAA));
                Ok(bytes[..count].to_vec())
            }
            Err(_) => Err(count),
        }
    }

    fn seek(&mut self, fd: i32, offset: i64, whence: i32) -> i64 {
        let (parameters, result_at) = match self.interface {
            Interface::V1 => (
                [
                    &fd.to_le_bytes()[..],
                    &offset.to_le_bytes(),
                    &whence.to_le_bytes(),
                ]
                .concat(),
                4,
            ),
            Interface::V2 => (
                [
                    &offset.to_le_bytes()[..],
                    &whence.to_le_bytes(),
                    &fd.to_le_bytes(),
                ]
                .concat(),
                0,
            ),
        };
        let at = self.call(0x580, 0x1140, &parameters);
        self.guest.get_i64(at + result_at)
    }

    /// `stat`, `lstat` or `fstat` of v2: mode and size, or an errno.
    fn attributes(&mut self, port: u16, what: &[u8]) -> Result<(u32, u64), i32> {
        // The result follows `what` and the address of the attributes.
        let result = what.len() as u64 + 8;
        let attributes = self.guest.put(&[0xAA; 200]);
        let parameters = [what, &attributes.to_le_bytes(), &[0; 8]].concat();
        let at = self.call(0, port, &parameters);
        match self.guest.get_i32(at + result) {
            1 => {
                let mode = self.guest.get_i32(attributes + 24) as u32;
                let size = u64::from_le_bytes(self.guest.get(attributes + 48));
                Ok((mode, size))
            }
            2 => Err(self.guest.get_i32(at + result + 4)),
            other => panic!("result {other}"),
        }
    }

    fn stat(&mut self, path: &str, kind: u32) -> Result<(u32, u64), i32> {
        let name = self.guest.put(&[path.as_bytes(), b"\0"].concat());
        let what = [&name.to_le_bytes()[..], &kind.to_le_bytes(), &[0; 4]].concat();
        self.attributes(0x1170, &what)
    }

    fn fstat(&mut self, fd: i32) -> Result<(u32, u64), i32> {
        self.attributes(0x1180, &[fd.to_le_bytes(), [0; 4]].concat())
    }
}

/// A folder with everything that a guest may find there, and a secret beside it.
fn folder() -> tempfile::TempDir {
    let outer = tempfile::tempdir().unwrap();
    let path = |name: &str| outer.path().join(name);
    std::fs::write(path("secret"), "secret").unwrap();
    std::fs::create_dir_all(path("shared/below")).unwrap();
    std::fs::write(path("shared/file"), "0123456789").unwrap();
    std::fs::write(path("shared/empty"), "").unwrap();
    std::fs::write(path("shared/below/deep"), "deep").unwrap();
    symlink("file", path("shared/inner-link")).unwrap();
    symlink("../secret", path("shared/outer-link")).unwrap();
    symlink("/etc/passwd", path("shared/absolute-link")).unwrap();
    symlink("loop", path("shared/loop")).unwrap();
    symlink("..", path("shared/below/up")).unwrap();
    symlink("../..", path("shared/below/up-and-out")).unwrap();
    let made = Command::new("mkfifo")
        .arg(path("shared/fifo"))
        .status()
        .unwrap();
    assert!(made.success());
    outer
}

const BOTH: [Interface; 2] = [Interface::V1, Interface::V2];

#[test]
fn files_are_read_and_sought_and_closed() {
    kvm_or_skip!();
    let outer = folder();
    for interface in BOTH {
        let mut files = Files::new(interface, Some(&outer.path().join("shared")));
        let fd = files.open("/root/file", 0);
        assert!(fd >= 3, "{fd}");
        assert_eq!(files.read(fd, 4).unwrap(), b"0123");
        assert_eq!(files.read(fd, 4096).unwrap(), b"456789");
        assert_eq!(files.read(fd, 4096).unwrap(), b"");
        assert_eq!(files.seek(fd, 2, 0), 2);
        assert_eq!(files.read(fd, 2).unwrap(), b"23");
        assert_eq!(files.seek(fd, -1, 1), 3);
        assert_eq!(files.seek(fd, -3, 2), 7);
        assert_eq!(files.read(fd, 100).unwrap(), b"789");
        for (offset, whence) in [(-1, 0), (-100, 1), (i64::MIN, 2), (0, 3), (0, -1)] {
            assert_eq!(files.seek(fd, offset, whence), -i64::from(EINVAL));
        }
        assert_eq!(files.close(fd), 0);
        for closed in [fd, -1, 64, i32::MAX, i32::MIN] {
            assert_eq!(files.close(closed), -EBADF);
            assert_eq!(files.read(closed, 1), Err(-i64::from(EBADF)));
            assert_eq!(files.seek(closed, 0, 0), -i64::from(EBADF));
        }
        // Paths with and without the place where Hermit mounts them, and within the folder.
        for path in [
            "file",
            "/file",
            "/root/inner-link",
            "below/../file",
            "below/up/file",
        ] {
            let fd = files.open(path, 0);
            assert!(fd >= 3, "{path}: {fd}");
            assert_eq!(files.read(fd, 10).unwrap(), b"0123456789", "{path}");
            assert_eq!(files.close(fd), 0);
        }
        let fd = files.open("/root/empty", 0);
        assert_eq!(files.read(fd, 10).unwrap(), b"");
    }
}

#[test]
fn nothing_outside_the_folder_can_be_opened() {
    kvm_or_skip!();
    let outer = folder();
    let secret = outer.path().join("secret").display().to_string();
    let paths = [
        "..",
        "../secret",
        "/root/../secret",
        "/root/../../../../etc/passwd",
        "below/../../secret",
        "below/up/../secret",
        "below/up-and-out/secret",
        "/root/below/up-and-out",
        "outer-link",
        "/root/outer-link",
        "absolute-link",
        "loop",
        "/etc/passwd",
        "/proc/self/environ",
        "/dev/null",
        secret.as_str(),
        "missing",
        "file/below",
        "/rootfile",
    ];
    for interface in BOTH {
        let mut files = Files::new(interface, Some(&outer.path().join("shared")));
        for path in paths {
            let refused = files.open(path, 0);
            assert!(refused < 0, "{path} was opened");
        }
        for path in [
            "../secret",
            "outer-link",
            "absolute-link",
            "loop",
            "missing",
        ] {
            assert_eq!(files.open(path, 0), -ENOENT, "{path}");
        }
    }
}

#[test]
fn folders_write_modes_and_too_much_are_refused() {
    kvm_or_skip!();
    let outer = folder();
    let shared = outer.path().join("shared");
    for interface in BOTH {
        let mut files = Files::new(interface, Some(&shared));
        for path in ["/root", "/root/", "/", "below", ""] {
            assert_eq!(files.open(path, 0), -EISDIR, "{path:?}");
        }
        // O_WRONLY, O_RDWR, both, O_CREAT, O_TRUNC, O_APPEND.
        for flags in [1, 2, 3, 0o100, 0o1000, 0o2000, 0o102] {
            assert_eq!(files.open("/root/file", flags), -EROFS, "{flags:#o}");
            assert_eq!(files.open("/root/new", flags), -EROFS, "{flags:#o}");
        }
        assert!(!shared.join("new").exists());
        assert_eq!(std::fs::read(shared.join("file")).unwrap(), b"0123456789");

        assert_eq!(files.open(&"x".repeat(5000), 0), -ENAMETOOLONG);
        assert_eq!(files.open(&"x".repeat(300), 0), -ENAMETOOLONG);
        for _ in 0..64 {
            assert!(files.open("/root/file", 0) >= 3);
        }
        assert_eq!(files.open("/root/file", 0), -EMFILE);
    }
}

#[test]
fn a_fifo_hangs_nobody() {
    kvm_or_skip!();
    let outer = folder();
    for interface in BOTH {
        let mut files = Files::new(interface, Some(&outer.path().join("shared")));
        let fd = files.open("/root/fifo", 0);
        if fd >= 0 {
            // Nobody writes: the end of the file, or an error.
            let read = files.read(fd, 10);
            assert!(
                read.as_ref().is_ok_and(Vec::is_empty) || read.is_err(),
                "{read:?}"
            );
        }
    }
}

#[test]
fn without_a_folder_there_are_no_files() {
    kvm_or_skip!();
    for interface in BOTH {
        let mut files = Files::new(interface, None);
        for path in ["/root/file", "/etc/passwd", "/", ".", ""] {
            assert_eq!(files.open(path, 0), -ENOENT, "{path:?}");
        }
        assert_eq!(files.read(0, 100).unwrap(), b"", "and no standard input");
    }
}

#[test]
fn a_name_without_an_end_ends_the_guest() {
    kvm_or_skip!();
    let mut guest = Puppet::v1();
    let here = guest.vm.shell().placement();
    let end = here.base + here.memory_bytes;
    guest.vm.shell().ram().write(end - 4, b"name").unwrap();
    let call = guest.put(&[&(end - 4).to_le_bytes()[..], &[0; 12]].concat());
    let stop = guest.out(0x440, call, 0).unwrap();
    assert_crash(stop, CrashKind::Hypercall, &["are not guest memory"]);
}

#[test]
fn stat_and_fstat_tell_what_there_is() {
    kvm_or_skip!();
    const KIND: u32 = 0o170_000;
    let outer = folder();
    let mut files = Files::new(Interface::V2, Some(&outer.path().join("shared")));
    let regular = files.stat("/root/file", 0).unwrap();
    assert_eq!((regular.0 & KIND, regular.1), (0o100_000, 10));
    assert_eq!(files.stat("/root/inner-link", 0), Ok(regular));
    let link = files.stat("/root/inner-link", 1).unwrap();
    assert_eq!(
        (link.0 & KIND, link.1),
        (0o120_000, 4),
        "a link is told as itself"
    );
    assert_eq!(files.stat("/root/below", 0).unwrap().0 & KIND, 0o040_000);
    assert_eq!(files.stat("/root", 0).unwrap().0 & KIND, 0o040_000);
    for path in [
        "/root/missing",
        "/root/outer-link",
        "../secret",
        "/etc/passwd",
    ] {
        assert_eq!(files.stat(path, 0), Err(ENOENT), "{path}");
    }
    let fd = files.open("/root/file", 0);
    assert_eq!(files.fstat(fd), Ok(regular));
    assert_eq!(files.fstat(99), Err(EBADF));
    assert_eq!(files.fstat(-1), Err(EBADF));
}

#[test]
fn a_guest_with_open_files_is_not_saved() {
    kvm_or_skip!();
    let outer = folder();
    let mut files = Files::new(Interface::V1, Some(&outer.path().join("shared")));
    let fd = files.open("/root/file", 0);
    let refused = files.guest.vm.save(&Symbols::default()).unwrap_err();
    let told = refused.to_string();
    assert!(
        told.contains("close them before it becomes ready"),
        "{told}"
    );
    files.close(fd);
    files.guest.vm.save(&Symbols::default()).unwrap();
}

/// Set in the child process of the next test, whose standard input is a pipe.
const CHILD: &str = "DORMOUSE_TEST_STDIN_CHILD";

#[test]
fn standard_input_is_read_where_the_user_allows_it() {
    kvm_or_skip!();
    if std::env::var_os(CHILD).is_some() {
        let config = MachineConfig {
            stdin: true,
            ..machine()
        };
        let mut files = Files {
            guest: Puppet::boot(Interface::V2, &config),
            interface: Interface::V2,
        };
        let mut text = Vec::new();
        loop {
            match files.read(0, 7).unwrap() {
                bytes if bytes.is_empty() => break,
                bytes => text.extend(bytes),
            }
        }
        assert_eq!(text, b"what the user typed\n");
        return;
    }
    let name = "standard_input_is_read_where_the_user_allows_it";
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(CHILD, "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(b"what the user typed\n")
        .unwrap();
    let done = child.wait_with_output().unwrap();
    assert!(
        done.status.success(),
        "{}",
        String::from_utf8_lossy(&done.stderr)
    );
    let told = String::from_utf8_lossy(&done.stdout).into_owned();
    assert!(told.contains("1 passed"), "{told}");
}

/// Set in the child process of the next test, whose standard input stays silent at first.
const WAITING_CHILD: &str = "DORMOUSE_TEST_WAITING_CHILD";

#[test]
fn a_guest_that_waits_for_input_meets_its_deadline_and_can_go_on() {
    kvm_or_skip!();
    if std::env::var_os(WAITING_CHILD).is_some() {
        let config = MachineConfig {
            stdin: true,
            ..machine()
        };
        let mut guest = Puppet::boot(Interface::V2, &config);
        let buffer = guest.put(&[0; 16]);
        let words = [16, 0, buffer, 0];
        let call: Vec<u8> = words.into_iter().flat_map(u64::to_le_bytes).collect();
        let call = guest.put(&call);
        let mut deadline = Instant::now() + Duration::from_millis(50);
        let mut stop = guest.out_until(0x1130, call, deadline);
        let refused = loop {
            assert_eq!(stop, Stop::TimedOut);
            assert!(Instant::now() >= deadline);
            match guest.vm.save(&Symbols::default()) {
                Err(refused) => break refused.to_string(),
                // It had not come to wait yet.
                Ok(_) => {
                    deadline = Instant::now() + Duration::from_millis(50);
                    stop = guest.vm.run(deadline).unwrap();
                }
            }
        };
        assert!(refused.contains("waits for input"), "{refused}");

        guest.vm.interrupter().interrupt();
        assert_eq!(guest.vm.run(far()).unwrap(), Stop::Interrupted);
        println!("waiting");
        assert!(matches!(
            guest.vm.run(far()).unwrap(),
            Stop::Exchange { .. }
        ));
        assert_eq!(guest.get_i64(call + 8), 5);
        assert_eq!(&guest.get::<5>(buffer), b"late\n");
        return;
    }
    let name = "a_guest_that_waits_for_input_meets_its_deadline_and_can_go_on";
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(WAITING_CHILD, "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("waiting")));
    stdin.write_all(b"late\n").unwrap();
    assert!(lines.any(|line| line.unwrap().contains("1 passed")));
    assert!(child.wait().unwrap().success());
}
