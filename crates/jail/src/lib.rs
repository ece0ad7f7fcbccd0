//! A process that has nothing but the descriptors it was given.
//!
//! ```text
//!  start      starts a program with one socket and nothing else, sees how it ends  (front)
//!    └── group         a control group around it, where the host gives one away
//!  enter      the program shuts the door behind itself, layer by layer             (worker)
//!    ├── identity      a user id of its own on the host, where the front is root
//!    ├── namespaces    an empty file system, an empty network, nobody to talk to
//!    ├── capabilities  none, and none to be had
//!    ├── access        landlock: no file, no port, no abstract socket, no signal
//!    ├── limits        rlimits
//!    └── filter        seccomp: the system calls that it needs, with the arguments it needs
//!  layers     which of them are in place, and why the others are not
//!  kernel     the calls that Rust cannot prove                                     (unsafe)
//! ```
//!
//! The crate knows nothing of what its process is for. The front starts it with [`spawn`], talks
//! to it through one socket and ends it by closing that or by [`Jailed::kill`]. The worker takes
//! the socket with [`socket`], opens what it needs, and calls [`enter`] while it has one thread.
//!
//! ```no_run
//! use std::os::fd::AsRawFd;
//! use dormouse_jail::{
//!     Confinement, Filter, Program, ProgramStderr, ResourceLimits, Rule, enter, socket, spawn,
//! };
//!
//! // The front.
//! let mut jailed = spawn(&Program {
//!     path: "/proc/self/exe".into(),
//!     name: "program".into(),
//!     args: vec!["worker".into()],
//!     environment: Vec::new(),
//!     stderr: ProgramStderr::Piped,
//! })?;
//! let to_worker = jailed.take_socket();
//!
//! // The worker. `/dev/kvm` and whatever else it needs is opened, and kept, before `enter`.
//! let to_front = socket()?;
//! let mut rules = Rule::runtime();
//! rules.push(Rule::allow_values(libc::SYS_ioctl, 1, &[0xae80])); // KVM_RUN
//! let layers = enter(&Confinement {
//!     keep: &[to_front.as_raw_fd()],
//!     limits: ResourceLimits { open_files: Some(64), ..ResourceLimits::default() },
//!     system_calls: &Filter::compile(&rules)?,
//! })?;
//! println!("{layers}");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # What is demanded, and what is taken where it can be had
//!
//! `no_new_privs`, not being dumpable, the resource limits and the seccomp filter are in every
//! kernel that runs Dormouse and need no privilege: where one of them fails, [`enter`] does. What
//! else there is depends on the kernel, the distribution and whether the front is root, so it is put in place as
//! far as it can be, and [`Layers`] says of each layer whether it is, or why it is not.
//!
//! Descriptors may come through the socket later (`unix(7)`, SCM_RIGHTS): they are as the front
//! opened them, since each layer looks at opening, not at what is open.
//!
//! # What is not isolated
//!
//! - A process cannot move itself into another PID namespace (`pid_namespaces(7)`), so the worker's
//!   is the front's. Seccomp, landlock's signal scope and, where the front is root, the worker's
//!   own user id each keep it from signalling other processes.
//! - There is no `PR_SET_PDEATHSIG`: it is bound to the *thread* that forked
//!   (`PR_SET_PDEATHSIG(2const)`), and threads of the front come and go. A worker ends when its
//!   socket reaches end of file, which the front's death brings about.
//! - What a worker says on standard error is a hostile text; where that is shared with the front, so is
//!   the descriptor's state ([`ProgramStderr`]).

#![deny(unsafe_code)]

mod access;
mod capabilities;
mod ending;
mod enter;
mod error;
mod filter;
mod group;
mod identity;
#[allow(unsafe_code)]
mod kernel;
mod layers;
mod limits;
mod namespaces;
mod runtime;
mod start;

pub use ending::Ending;
pub use enter::{Confinement, enter, socket};
pub use error::Error;
pub use filter::{Filter, Rule};
pub use group::GroupLimits;
pub use layers::{Layer, LayerName, Layers, Standing};
pub use limits::ResourceLimits;
pub use start::{Jailed, Program, ProgramStderr, spawn};
