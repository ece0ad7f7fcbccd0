//! The parent's side: starts children and hears what they tell.

use std::env;
use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::PathBuf;
use std::process;

use dormouse_jail::{
    Ending, Jailed, LayerName, Layers, Program, ProgramStderr, ResourceLimits, Standing, spawn,
};

use rustix::thread::CapabilitySet;

use crate::deed::Deed;
use crate::order::{Host, Order, Report, Strictness, Targets};

/// A child that was started, and what there is outside of its jail.
pub(crate) struct Child {
    pub(crate) jailed: Jailed,
    pub(crate) socket: BufReader<UnixStream>,
    /// Held while the child lives: a connection that is refused is not for want of a listener. The one
    /// whose name is made of the other's port goes first.
    _unix: UnixListener,
    _tcp: TcpListener,
    _secret: Box<u8>,
    /// What it is told to create, and must not.
    new_file: PathBuf,
}

/// What came of a child.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) layers: Layers,
    pub(crate) report: Option<Report>,
    pub(crate) ending: Ending,
}

pub(crate) fn order(deed: Deed) -> Order {
    Order {
        host: Host::AsItIs,
        filter: Strictness::Strict,
        limits: ResourceLimits::default(),
        backtrace: false,
        deed,
        targets: Targets::default(),
    }
}

pub(crate) fn start(order: &Order) -> Child {
    start_beside(order, process::id())
}

/// With another process as its target.
pub(crate) fn start_beside(order: &Order, other: u32) -> Child {
    let tcp = TcpListener::bind(("127.0.0.1", 0)).expect("loopback");
    let tcp_port = tcp.local_addr().expect("bound").port();
    let unix_name = format!("dormouse-jail-{}-{tcp_port}", process::id());
    let name = SocketAddr::from_abstract_name(&unix_name).expect("short enough");
    let unix = UnixListener::bind_addr(&name).expect("a fresh name");
    let secret = Box::new(42);
    let new_file = env::temp_dir().join(&unix_name);
    let targets = Targets {
        process: other.cast_signed(),
        address: (&raw const *secret).addr() as u64,
        tcp_port,
        new_file: new_file.clone(),
        unix_name,
    };
    let order = Order {
        targets,
        ..order.clone()
    };
    let backtrace = order
        .backtrace
        .then(|| ("RUST_BACKTRACE".into(), "1".into()));
    let program = Program {
        path: env::current_exe().expect("this program"),
        name: "program".into(),
        stderr: ProgramStderr::Shared,
        args: order.arguments(),
        environment: backtrace.into_iter().collect(),
    };
    let mut jailed = spawn(&program).expect("the program starts");
    let socket = jailed.take_socket().expect("it is the first time");
    Child {
        jailed,
        socket: BufReader::new(socket),
        _unix: unix,
        _tcp: tcp,
        _secret: secret,
        new_file,
    }
}

impl Child {
    pub(crate) fn hear(&mut self) -> Option<Report> {
        let mut line = String::new();
        // A process that was killed with bytes unread resets the connection.
        self.socket.read_line(&mut line).ok()?;
        if line.is_empty() {
            return None;
        }
        Some(serde_json::from_str(&line).expect("a report"))
    }

    pub(crate) fn entered(&mut self) -> Layers {
        match self.hear() {
            Some(Report::Entered(layers)) => layers,
            other => panic!("{other:?}, {}", self.jailed.wait().expect("a child")),
        }
    }
}

pub(crate) fn run(order: &Order) -> Outcome {
    start(order).end()
}

impl Child {
    pub(crate) fn end(mut self) -> Outcome {
        let layers = self.entered();
        let report = self.hear();
        let ending = self.jailed.wait().expect("a child");
        assert!(!self.new_file.exists(), "{}", self.new_file.display());
        Outcome {
            layers,
            report,
            ending,
        }
    }
}

/// Whether a layer holds at least in part. Where it does not, it must say why.
pub(crate) fn stands(layers: &Layers, name: LayerName) -> bool {
    match layers.standing(name) {
        None => panic!("nothing is said of {name}"),
        Some(Standing::InPlace) => true,
        Some(Standing::Weaker(why) | Standing::Missing(why)) if why.is_empty() => {
            panic!("no reason is given for {name}")
        }
        Some(Standing::Weaker(_)) => true,
        Some(Standing::Missing(_)) => false,
    }
}

/// Whether this process may change its user id, as root may where nobody has taken that away.
pub(crate) fn is_privileged() -> bool {
    let sets = rustix::thread::capabilities(None).expect("of this process");
    sets.effective.contains(CapabilitySet::SETUID)
}

/// The version of landlock that this kernel has; 0 for none. `landlock_create_ruleset(2)` with
/// LANDLOCK_CREATE_RULESET_VERSION (1).
pub(crate) fn landlock_version() -> i64 {
    // SAFETY: with this flag the kernel takes no attributes and makes no descriptor.
    let version = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, 0, 0, 1) };
    version.max(0)
}
