//! A worker process, from inside.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use dormouse_jail::{Confinement, ResourceLimits};
use dormouse_pager::ReadPages;
use dormouse_snapshot::PAGE_BYTES;
use dormouse_vmm::Host;

use super::filters::{self, Kind};
use super::link::ProcessDesk;
use super::process::MAX_THREADS;
use super::{Ask, Fault, Order, Reply, Report, wire};
use crate::allowance::Allowance;
use crate::cold;
use crate::deploy;
use crate::desk;
use crate::error::Error;
use crate::interrupters::Interrupters;
use crate::loading::namer;
use crate::template::{Backing, Plan, Template};
use crate::warm::{self, WarmingRuns};

/// The most descriptors that a worker can have: a function may have as many instances as that allows.
const OPEN_FILES: u64 = 65_536;

/// Where a worker asks what it cannot know.
struct Front {
    socket: Mutex<UnixStream>,
    /// Held by who waits for a reply: one question at a time.
    replies: Mutex<Receiver<(Reply, Vec<OwnedFd>)>>,
}

/// A worker process: confines itself, and then does what it is told through its socket, until that is
/// closed. To be called by a process that does nothing else and has one thread.
///
/// # Errors
/// Where the process was not started as a worker; where what it is told makes no sense.
pub fn work() -> Result<(), Error> {
    let failed = |e: Box<dyn std::error::Error + Send + Sync>| {
        Error::internal("running as a worker process")(e)
    };
    let socket = dormouse_jail::socket().map_err(|e| failed(e.into()))?;
    let ready = confine(&socket).map_err(Fault::from);
    let is_ready = ready.is_ok();
    let is_wanted = wire::send(&socket, &Report::Ready(ready), &[]).is_ok();
    if !(is_ready && is_wanted) {
        return Ok(());
    }
    follow(socket).map_err(|e| failed(e.into()))
}

/// Opens what guests need, and gives up the right to open anything else. Tells what confines it.
fn confine(socket: &UnixStream) -> Result<String, Error> {
    let failed = |e| Error::internal("confining a worker process")(e);
    // It was named after the path that it was started by. It is only a name.
    let _ = rustix::thread::set_name(c"dormouse");
    let mut keep = Host::open_ahead()?;
    keep.extend(dormouse_pager::open_ahead()?);
    keep.push(socket.as_raw_fd());
    let system_calls = filters::process().map_err(|e| failed(e.into()))?;
    filters::compile_ahead().map_err(|e| failed(e.into()))?;
    let layers = dormouse_jail::enter(&Confinement {
        keep: &keep,
        limits: ResourceLimits {
            open_files: Some(OPEN_FILES),
            threads: Some(MAX_THREADS),
            ..ResourceLimits::default()
        },
        system_calls: &system_calls,
    });
    Ok(layers.map_err(|e| failed(e.into()))?.to_string())
}

/// Something to be done on a thread that may run guests, and the thread's name.
type Work = (String, Box<dyn FnOnce() + Send>);

/// Does what it is told until nobody is there to tell it anything.
///
/// The thread that listens may do little. A thread has the filters of the one that starts it: so it is not
/// the one that listens that starts those which run guests.
fn follow(socket: UnixStream) -> io::Result<()> {
    let (replies, asked) = mpsc::channel();
    let (starter, starting) = mpsc::channel::<Work>();
    let worker = Worker {
        front: Arc::new(Front {
            socket: Mutex::new(socket.try_clone()?),
            replies: Mutex::new(asked),
        }),
        template: Arc::default(),
        replies,
        starter,
    };
    let listening = std::thread::Builder::new().name("front".to_owned());
    let listening = listening.spawn(move || {
        filters::confine(Kind::Front)?;
        while let Some((order, files)) = wire::receive::<Order>(&socket)? {
            worker.obey(order, files)?;
        }
        Ok(())
    })?;
    for (name, work) in starting {
        let started = std::thread::Builder::new().name(name).spawn(work);
        if let Err(error) = started {
            // What it was to have is dropped with it, which whoever waits for it sees.
            tracing::error!(%error, "a thread could not be started");
        }
    }
    // What runs ends with the process.
    let ended = listening.join();
    ended.unwrap_or_else(|_| Err(io::Error::other("the thread that listens panicked")))
}

/// What the thread that listens has.
struct Worker {
    front: Arc<Front>,
    template: Arc<OnceLock<Template>>,
    replies: Sender<(Reply, Vec<OwnedFd>)>,
    starter: Sender<Work>,
}

impl Worker {
    fn obey(&self, order: Order, files: Vec<OwnedFd>) -> io::Result<()> {
        let front = Arc::clone(&self.front);
        let mut files = files.into_iter().map(File::from);
        let mut file = || {
            let next = files.next();
            next.ok_or_else(|| io::Error::other("a file that an order is about is not with it"))
        };
        match order {
            Order::Reply(reply) => {
                // Nobody asked, if it fails.
                let _ = self
                    .replies
                    .send((reply, files.map(OwnedFd::from).collect()));
            }
            Order::Template(plan) => {
                let (template, memory) = (Arc::clone(&self.template), files.next());
                self.start("job", move || {
                    let made = new_template(&front, plan, memory);
                    let made = made.map(|made| template.get_or_init(|| made).known());
                    front.report(&Report::Template(made.map_err(Fault::from)));
                });
            }
            Order::Instance { number } => {
                let socket = UnixStream::from(OwnedFd::from(file()?));
                self.start_instance(number, ProcessDesk::new(socket));
            }
            Order::Boot(config) => {
                let (image, memory) = (file()?, file()?);
                self.start("job", move || {
                    let booted = content(image).and_then(|image| {
                        deploy::boot(&image, &config, &Interrupters::default(), &memory)
                    });
                    front.report(&Report::Booted(booted.map_err(Fault::from)));
                });
            }
            Order::Warm(plan, runs) => {
                let (image, memory, snapshot) = (file()?, file()?, files.next());
                self.start("job", move || {
                    let warmed = warm(&front, plan, &runs, image, &memory, snapshot);
                    front.report(&Report::Warmed(warmed.map_err(Fault::from)));
                });
            }
            Order::Cold(asked) => {
                let image = file()?;
                self.start("job", move || {
                    let booted = || front.report(&Report::ColdBooted);
                    let cold = content(image).and_then(|image| {
                        cold::answer_cold(&image, &asked, &Interrupters::default(), booted)
                    });
                    front.report(&Report::Cold(cold.map_err(Fault::from)));
                });
            }
        }
        Ok(())
    }

    fn start_instance(&self, number: u64, mut desk: ProcessDesk) {
        let (front, template) = (Arc::clone(&self.front), Arc::clone(&self.template));
        let name = template.get().map(|template| template.name().to_string());
        self.start(&name.unwrap_or_default(), move || {
            if let Some(template) = template.get() {
                desk::serve(template, front.coverer(Some(number)), &mut desk);
            }
        });
    }

    fn start(&self, name: &str, work: impl FnOnce() + Send + 'static) {
        // Where it fails the process is about to end.
        let _ = self.starter.send((format!("vcpu {name}"), Box::new(work)));
    }
}

fn warm(
    front: &Arc<Front>,
    plan: Arc<Plan>,
    runs: &WarmingRuns,
    image: File,
    memory: &File,
    snapshot: Option<File>,
) -> Result<warm::WarmedClone, Error> {
    let image = content(image)?;
    let template = new_template(front, plan, snapshot)?;
    // Where nobody wants it any more, the process is ended.
    warm::warm_up(&template, &image, runs, &|| true, memory)
}

/// All of a file.
fn content(mut file: File) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    let read = file.rewind().and_then(|()| file.read_to_end(&mut bytes));
    read.map_err(|e| Error::internal("reading an image")(e.into()))?;
    Ok(bytes)
}

fn new_template(
    front: &Arc<Front>,
    plan: Arc<Plan>,
    memory: Option<File>,
) -> Result<Template, Error> {
    let backing = match memory {
        Some(file) => Backing::File(Arc::new(file)),
        None => Backing::Read(front.reader()),
    };
    let asked = Arc::clone(front);
    let namer = namer(plan.state.vm.load_address(), move || asked.image());
    let staged = front.coverer(None);
    Template::new(plan, backing, namer, staged, Interrupters::default())
}

impl Front {
    fn report(&self, report: &Report) {
        let socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = wire::send(&socket, report, &[]) {
            tracing::debug!(%error, "nobody listens to a worker");
        }
    }

    /// Nothing where the front is gone.
    fn ask(&self, ask: Ask) -> Option<(Reply, Vec<OwnedFd>)> {
        let replies = self.replies.lock().unwrap_or_else(PoisonError::into_inner);
        self.report(&Report::Ask(ask));
        replies.recv().ok()
    }

    fn coverer(self: &Arc<Self>, instance: Option<u64>) -> Allowance {
        let front = Arc::clone(self);
        Allowance::new(Box::new(move |bytes| {
            match front.ask(Ask::Cover { instance, bytes }) {
                Some((Reply::Covered(granted_bytes), _)) => granted_bytes,
                _ => 0,
            }
        }))
    }

    fn image(&self) -> Option<Vec<u8>> {
        let (_, files) = self.ask(Ask::Image)?;
        content(files.into_iter().next()?.into()).ok()
    }

    fn reader(self: &Arc<Self>) -> Arc<ReadPages> {
        let front = Arc::clone(self);
        Arc::new(move |first: u64, buffer: &mut [u8]| {
            let count = (buffer.len() / PAGE_BYTES) as u64;
            let pages = match front.ask(Ask::Pages { first, count }) {
                Some((Reply::Pages(pages), _)) => pages,
                _ => Err("there is nobody to read it".to_owned()),
            };
            let pages = pages.map_err(io::Error::other)?;
            if pages.len() != buffer.len() {
                return Err(io::Error::other("other pages were read than asked for"));
            }
            buffer.copy_from_slice(&pages);
            Ok(())
        })
    }
}
