//! What a process asks of the kernel, by strace.

use std::collections::HashSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStderr, Command, Stdio};

/// All system calls of a process, threads included, while this lives.
#[derive(Debug)]
pub struct Trace {
    strace: Child,
    /// It may have something to say later on, as of a thread that it met in the middle of a call, and
    /// dies of that if nobody has the other end.
    _stderr: BufReader<ChildStderr>,
    output: tempfile::NamedTempFile,
    process_id: u32,
    /// Ids of threads whose calls are left out.
    left_out: HashSet<String>,
}

impl Trace {
    /// Begins to watch these processes, the first of which is the one that threads are named of.
    ///
    /// # Panics
    /// Where strace (a package of that name; `cargo xtask setup` installs it) does not run or may
    /// not attach.
    #[must_use]
    pub fn attach(processes: &[u32]) -> Self {
        let output = tempfile::NamedTempFile::new().expect("a file");
        let mut strace = Command::new("strace")
            .args(["-f", "-s", "64"])
            .args(processes.iter().map(|id| format!("--attach={id}")))
            .arg("-o")
            .arg(output.path())
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("strace runs");
        let mut said = String::new();
        let mut stderr = BufReader::new(strace.stderr.take().expect("its stderr"));
        while said.matches("attached").count() < processes.len() {
            let read = stderr.read_line(&mut said).expect("its words");
            assert!(read > 0, "strace did not attach: {said}");
        }
        Self {
            strace,
            _stderr: stderr,
            output,
            process_id: processes[0],
            left_out: HashSet::new(),
        }
    }

    /// Leaves out the threads of this name, which must be there: what they do is not asked for.
    ///
    /// # Panics
    /// Where there are none.
    #[must_use]
    pub fn without_threads(mut self, name: &str) -> Self {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.process_id));
        for task in tasks.expect("the process's threads").flatten() {
            let comm = fs::read_to_string(task.path().join("comm")).unwrap_or_default();
            if comm.trim_end() == name {
                let id = task.file_name().to_string_lossy().into_owned();
                self.left_out.insert(id);
            }
        }
        assert!(!self.left_out.is_empty(), "no thread is called {name}");
        self
    }

    /// Ends the watch; the calls in the order in which they began, as strace writes them. A call that
    /// another thread's interrupted stands there once, where it began, with what was known then.
    ///
    /// # Panics
    /// Where strace has ended before, or left nothing.
    #[must_use]
    pub fn end(mut self) -> Vec<String> {
        let ended = self.strace.try_wait().expect("a child");
        assert_eq!(ended, None, "strace has ended before it was told to");
        let id = self.strace.id().to_string();
        let interrupted = Command::new("kill").args(["-INT", &id]).status();
        assert!(interrupted.expect("kill runs").success());
        self.strace.wait().expect("strace ends");
        let text = fs::read_to_string(self.output.path()).expect("its output");
        let calls: Vec<String> = text
            .lines()
            .filter_map(|line| line.split_once(' '))
            .filter(|(thread, _)| !self.left_out.contains(*thread))
            .map(|(_, call)| call.trim_start().to_owned())
            .filter(|call| !call.starts_with("+++") && !call.starts_with("---"))
            .collect();
        assert!(!calls.is_empty(), "strace saw nothing");
        calls
    }
}
