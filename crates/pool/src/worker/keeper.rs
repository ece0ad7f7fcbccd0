//! The worker of a function, and the next one where it ends.

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::watch;

use super::process::{Help, Process, READY, Spares};
use super::{Order, Report, link};
use crate::budget::{Budget, SharedCharge};
use crate::error::Error;
use crate::function::Function;
use crate::instance::Instance;
use crate::loading::{Loaded, Pages, stored_image};
use crate::template::{Known, Plan};

/// A worker that lived at least so long is replaced at once.
const LONG_ENOUGH: Duration = Duration::from_secs(10);
/// The first wait before another is started in place of one that did not; it doubles.
const FIRST_WAIT: Duration = Duration::from_millis(50);
/// The longest wait.
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// Who may hold how much: the charges of a worker's instances, by their numbers.
#[derive(Debug, Default)]
pub(crate) struct Accounts {
    instances: Mutex<HashMap<u64, SharedCharge>>,
    staged: Option<SharedCharge>,
}

/// An entry in a worker's accounts, for as long as it lives.
pub(crate) struct Account {
    accounts: Arc<Accounts>,
    number: u64,
    process: Weak<Process>,
}

impl Account {
    /// Ends the worker that the account is of.
    pub(crate) fn end_worker(&self) {
        if let Some(process) = self.process.upgrade() {
            process.end();
        }
    }
}

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

impl Accounts {
    fn lock(&self) -> MutexGuard<'_, HashMap<u64, SharedCharge>> {
        // The map is consistent between any two statements.
        self.instances
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes as much from the budget as lets the account hold `bytes`, if that can be had. Tells what it
    /// holds then.
    pub(super) fn cover(&self, instance: Option<u64>, bytes: u64) -> u64 {
        let charge = match instance {
            Some(number) => self.lock().get(&number).cloned(),
            None => self.staged.clone(),
        };
        let Some(charge) = charge else {
            return 0;
        };
        let mut charge = charge.lock();
        charge.cover(bytes);
        charge.bytes()
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        self.accounts.lock().remove(&self.number);
    }
}

impl Start {
    /// Blocks until the worker has made what clones are made of.
    fn start(&self, file: Option<&Arc<std::fs::File>>) -> Result<(Arc<Process>, Known), Error> {
        let process = self.spares.take()?;
        let files: Vec<_> = file.into_iter().map(AsFd::as_fd).collect();
        process.send(&Order::Template(Arc::clone(&self.plan)), &files)?;
        match process.converse(&self.help, Some(READY), &|| true)? {
            Report::Template(known) => Ok((process, known?)),
            other => Err(process.nonsense(&other)),
        }
    }

    /// The same, with the snapshot's memory read once more.
    fn start_again(&self) -> Result<Arc<Process>, Error> {
        let file = self.pages.file()?;
        Ok(self.start(file.as_ref())?.0)
    }
}

impl Keeper {
    /// Starts the worker of a function. Blocks until it is ready. `follow` has to be called with the
    /// function then.
    ///
    /// # Errors
    /// [`Error::Host`] where the snapshot cannot be restored here; what keeps a worker from being
    /// started.
    pub(crate) fn new(
        spares: &Arc<Spares>,
        loaded: &Loaded,
        store: &dormouse_snapshot::Store,
        budget: &Budget,
    ) -> Result<(Self, Known, Following), Error> {
        let accounts = Arc::new(Accounts {
            instances: Mutex::default(),
            staged: Some(SharedCharge::new(budget.empty())),
        });
        let (store, reference) = (store.clone(), loaded.reference.clone());
        let image = move || stored_image(&store, &reference).ok();
        let start = Start {
            spares: Arc::clone(spares),
            plan: Arc::clone(&loaded.plan),
            pages: loaded.pages.clone(),
            help: Help {
                pages: Some(loaded.pages.clone()),
                image: Some(Box::new(image)),
                accounts: Arc::clone(&accounts),
            },
        };
        let (process, known) = start.start(loaded.file.as_ref())?;
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
        let mut last = None;
        for _ in 0..TRIES {
            let is_new = |worker: &Worker| match (worker, &last) {
                (Worker::Starting, _) => false,
                (Worker::Running(process), Some((ended, _))) => !Arc::ptr_eq(process, ended),
                _ => true,
            };
            let up = worker.wait_for(is_new);
            // It fails with the keeper, which the caller has.
            let up = up.await.map_err(|_| Error::Draining)?.clone();
            match up {
                Worker::Running(process) => match self.build(&process, charge.clone()) {
                    Ok(instance) => return Ok(instance),
                    Err(error) => last = Some((process, error)),
                },
                Worker::Failed(how) => return Err(Error::WorkerLost { how }),
                Worker::Starting | Worker::Over => return Err(Error::Draining),
            }
        }
        Err(last.map_or(Error::Draining, |(_, error)| error))
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
        self.accounts.lock().insert(number, charge.clone());
        let account = Account {
            accounts: Arc::clone(&self.accounts),
            number,
            process: Arc::downgrade(process),
        };
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
    pub(crate) fn follow(self, function: &Arc<Function>) -> Result<(), Error> {
        let name = format!("worker {}", function.name());
        let registered = function.shared().guests.register(self.process.stopper());
        let (function, runtime) = (Arc::downgrade(function), Handle::current());
        let following = std::thread::Builder::new().name(name).spawn(move || {
            let _runtime = runtime.enter();
            let mut registered = Some(registered);
            let Self { start, mut process } = self;
            loop {
                let begun = Instant::now();
                // It never says anything but questions.
                let end = process.converse(&start.help, None, &|| true);
                registered.take();
                match end {
                    Ok(report) => drop(process.nonsense(&report)),
                    Err(error) => lost(&function, &process, &error),
                }
                drop(process);
                let was_short = begun.elapsed() < LONG_ENOUGH;
                let Some(next) = replace(&function, &start, was_short) else {
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
fn lost(function: &Weak<Function>, process: &Process, error: &Error) {
    let Some(function) = function.upgrade() else {
        return;
    };
    if !process.was_stopped() {
        tracing::error!(function = %function.name(), %error, "a worker process ended and is replaced");
    }
    // They are all dead.
    function.shed_idle();
}

/// Starts another worker for the function, as long as that takes; none once the function is closed, or
/// the pool ends.
fn replace(function: &Weak<Function>, start: &Start, was_short: bool) -> Option<Arc<Process>> {
    let mut wait = if was_short {
        FIRST_WAIT
    } else {
        Duration::ZERO
    };
    loop {
        let set = |worker: Worker| {
            let function = function.upgrade()?;
            let keeper = function.keeper()?;
            if keeper.is_over() {
                keeper.worker.send_replace(Worker::Over);
                return None;
            }
            keeper.worker.send_replace(worker);
            Some(function)
        };
        if wait.is_zero() || wait == FIRST_WAIT {
            set(Worker::Starting)?;
        }
        std::thread::sleep(wait);
        // Only for as long as it is needed: whoever closes the function must not wait for this.
        drop(function.upgrade()?);
        match start.start_again() {
            Ok(process) => {
                let function = set(Worker::Running(Arc::clone(&process)))?;
                function.refill();
                return Some(process);
            }
            Err(error) => {
                tracing::error!(%error, "no worker process could be started");
                set(Worker::Failed(error.to_string()))?;
                wait = (wait * 2).clamp(FIRST_WAIT * 2, LONGEST_WAIT);
            }
        }
    }
}
