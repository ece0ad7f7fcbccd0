//! The worker of a function, and the next one where it ends.

use std::fs::File;
use std::os::fd::AsFd;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use dormouse_snapshot::Store;
use tokio::runtime::Handle;
use tokio::sync::watch;

use super::accounts::Accounts;
use super::process::{Help, Process, READY, Spares};
use super::{Order, Report, link};
use crate::budget::{Budget, SharedCharge};
use crate::error::Error;
use crate::function::Function;
use crate::instance::Instance;
use crate::loading::{Loaded, Pages, stored_image};
use crate::template::{Known, Plan};

/// A worker that lived at least so long, or was of use, is replaced at once.
const LONG_ENOUGH: Duration = Duration::from_secs(10);
/// The first wait before another is started in place of one that did not; it doubles.
const FIRST_WAIT: Duration = Duration::from_millis(50);
/// The longest wait.
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// Keeps a function in workers. Dropping it ends them.
pub(crate) struct Keeper {
    worker: watch::Sender<Worker>,
    accounts: Arc<Accounts>,
}

/// How it stands with a function's worker.
#[derive(Clone)]
enum Worker {
    Running(Arc<Process>),
    /// It has ended, and another is started.
    Starting,
    /// It has ended, and no other could be started so far.
    Failed(String),
    Over,
}

/// What it takes to start a worker for a function.
struct Start {
    spares: Arc<Spares>,
    plan: Arc<Plan>,
    pages: Pages,
    help: Help,
}

impl Start {
    /// Blocks until the worker has made what clones are made of.
    fn worker(&self, file: Option<&Arc<File>>) -> Result<(Arc<Process>, Known), Error> {
        let process = self.spares.take()?;
        let files: Vec<_> = file.into_iter().map(AsFd::as_fd).collect();
        process.send(&Order::Template(Arc::clone(&self.plan)), &files)?;
        match process.converse(&self.help, READY, &|| true)? {
            Report::Template(known) => Ok((process, known?)),
            other => Err(process.nonsense(&other)),
        }
    }

    /// The same, with the snapshot's memory read once more, which has to be verified as it was the first
    /// time.
    fn another(&self) -> Result<(Arc<Process>, Option<Arc<File>>), Error> {
        self.help.forget();
        let file = self.pages.file()?;
        Ok((self.worker(file.as_ref())?.0, file))
    }
}

impl Keeper {
    /// Starts the worker of a function. Blocks until it is ready; [`Following::begin`] has to be called
    /// with the function then.
    ///
    /// # Errors
    /// [`Error::Host`] where the snapshot cannot be restored here; what keeps a worker from being
    /// started.
    pub(crate) fn new(
        spares: &Arc<Spares>,
        loaded: &Loaded,
        store: &Store,
        budget: &Budget,
    ) -> Result<(Self, Known, Following), Error> {
        let memory_bytes = loaded.manifest.memory_bytes;
        let accounts = Arc::new(Accounts::new(budget.empty(), memory_bytes));
        let (store, reference) = (store.clone(), loaded.reference.clone());
        let image = move || stored_image(&store, &reference).ok();
        let start = Start {
            spares: Arc::clone(spares),
            plan: Arc::clone(&loaded.plan),
            pages: loaded.pages.clone(),
            help: Help {
                pages: Some(loaded.pages.clone()),
                image: Some(Box::new(image)),
                accounts: Some(Arc::clone(&accounts)),
                ..Help::default()
            },
        };
        let (process, known) = start.worker(loaded.file.as_ref())?;
        let (worker, _) = watch::channel(Worker::Running(Arc::clone(&process)));
        let keeper = Self { worker, accounts };
        Ok((keeper, known, Following { start, process }))
    }

    /// A new instance, in the worker that runs, or in the one that is being started.
    ///
    /// # Errors
    /// [`Error::WorkerLost`] where no worker can be started, or each one ends at once;
    /// [`Error::Draining`].
    pub(crate) async fn instance(&self, charge: SharedCharge) -> Result<Instance, Error> {
        /// Workers that end before they are asked for an instance cost a request nothing but time.
        const TRIES: usize = 5;
        let mut worker = self.worker.subscribe();
        let mut tried: Option<u32> = None;
        for _ in 0..TRIES {
            let is_new = |worker: &Worker| match worker {
                Worker::Starting => false,
                Worker::Running(process) => Some(process.id()) != tried,
                Worker::Failed(_) | Worker::Over => true,
            };
            let up = worker.wait_for(is_new);
            // It fails with the keeper, which the caller has.
            let up = up.await.map_err(|_| Error::Draining)?.clone();
            match up {
                Worker::Running(process) => match self.build(&process, charge.clone()) {
                    Err(Error::WorkerLost { .. }) => tried = Some(process.id()),
                    built => return built,
                },
                Worker::Failed(how) => return Err(Error::WorkerLost { how }),
                Worker::Starting | Worker::Over => return Err(Error::Draining),
            }
        }
        Err(Error::WorkerLost {
            how: "as did those that were started in its place".to_owned(),
        })
    }

    /// The same, if a worker runs.
    pub(crate) fn instance_now(&self, charge: SharedCharge) -> Option<Result<Instance, Error>> {
        let worker = self.worker.borrow().clone();
        match worker {
            Worker::Running(process) => Some(self.build(&process, charge)),
            _ => None,
        }
    }

    fn build(&self, process: &Arc<Process>, charge: SharedCharge) -> Result<Instance, Error> {
        let number = Instance::next_number();
        let (link, theirs) = link::between()
            .map_err(|e| Error::internal("making a socket for an instance")(e.into()))?;
        let account = self.accounts.open(number, charge.clone(), process);
        process.send(&Order::Instance { number }, &[theirs.as_fd()])?;
        Ok(Instance::new(number, link, charge, Some(account)))
    }

    /// Whether the pool itself has ended the worker.
    pub(crate) fn is_over(&self) -> bool {
        match &*self.worker.borrow() {
            Worker::Running(process) => process.was_stopped(),
            Worker::Over => true,
            Worker::Starting | Worker::Failed(_) => false,
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        if let Worker::Running(process) = &*self.worker.borrow() {
            process.end();
        }
    }
}

/// What goes on beside a function as long as it has workers.
pub(crate) struct Following {
    start: Start,
    process: Arc<Process>,
}

impl Following {
    /// Answers what the workers of `function` ask, and replaces them, on a thread of its own.
    ///
    /// # Errors
    /// Where no thread can be started.
    pub(crate) fn begin(self, function: &Arc<Function>) -> Result<(), Error> {
        let name = format!("worker {}", function.name());
        let registered = function.shared().guests.register(self.process.stopper());
        let (function, runtime) = (Arc::downgrade(function), Handle::current());
        let following = std::thread::Builder::new().name(name).spawn(move || {
            let _runtime = runtime.enter();
            let mut registered = Some(registered);
            let Self { start, mut process } = self;
            let mut wait = Duration::ZERO;
            loop {
                let begun = Instant::now();
                let Err(error) = process.attend(&start.help);
                registered.take();
                tell_end(&function, &process, &error);
                wait = if process.was_of_use() || begun.elapsed() >= LONG_ENOUGH {
                    Duration::ZERO
                } else {
                    (wait * 2).clamp(FIRST_WAIT, LONGEST_WAIT)
                };
                drop(process);
                let Some(next) = replace(&function, &start, wait) else {
                    return;
                };
                process = next;
                if let Some(function) = function.upgrade() {
                    registered = Some(function.shared().guests.register(process.stopper()));
                }
            }
        });
        following.map_err(|e| Error::internal("starting a worker's thread")(e.into()))?;
        Ok(())
    }
}

/// A worker has ended.
fn tell_end(function: &Weak<Function>, process: &Process, error: &Error) {
    let Some(function) = function.upgrade() else {
        return;
    };
    if !process.was_stopped() {
        tracing::error!(function = %function.name(), %error, "a worker process ended and is replaced");
    }
    // They are all dead.
    function.shed_idle();
}

/// Starts another worker for the function after so long, and as long as that takes; none once the function
/// is closed, or the pool ends.
fn replace(function: &Weak<Function>, start: &Start, mut wait: Duration) -> Option<Arc<Process>> {
    let set = |worker: Worker| {
        let function = function.upgrade()?;
        let keeper = function.keeper()?;
        if keeper.is_over() {
            keeper.worker.send_replace(Worker::Over);
            return None;
        }
        keeper.worker.send_replace(worker);
        keeper.accounts.forget_staged();
        Some(function)
    };
    set(Worker::Starting)?;
    loop {
        std::thread::sleep(wait);
        // Only for as long as it is needed: whoever closes the function must not wait for this.
        drop(function.upgrade()?);
        match start.another() {
            Ok((process, file)) => {
                let function = set(Worker::Running(Arc::clone(&process)))?;
                function.verify_later(&start.pages, file.as_ref());
                function.refill();
                return Some(process);
            }
            Err(error) => {
                tracing::error!(%error, "no worker process could be started");
                set(Worker::Failed(error.to_string()))?;
                wait = (wait * 2).clamp(FIRST_WAIT, LONGEST_WAIT);
            }
        }
    }
}
