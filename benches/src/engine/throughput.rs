//! How many pristine hellos there are in a second, on one and on two vCPU threads.

use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use dormouse_pool::{Engine, FunctionConfig};
use dormouse_snapshot::Store;

use super::Group;
use super::bare::Bare;
use super::lab::{Lab, good, request};
use crate::{Error, Row, Side, interleaved};

pub(super) const GROUP: Group = Group {
    title: "throughput",
    names: &["throughput/1", "throughput/2"],
    measure,
};

/// How long each side runs at a time.
const WINDOW: Duration = Duration::from_millis(100);

fn measure(lab: &Lab) -> Result<Vec<Row>, Error> {
    let mut rows = Vec::new();
    for threads in [1, 2] {
        let name = format!("throughput/{threads}");
        if lab.wants(&name) {
            // Learned and stored before the threads look.
            let _ = lab.engine("hello", "hello", FunctionConfig::default(), &request("/"))?;
            rows.extend(thread::scope(|scope| {
                let workers: Vec<_> = (0..threads)
                    .map(|_| Worker::start(scope, lab.store().clone()))
                    .collect();
                let pair = interleaved(lab.rounds(50), |side| {
                    // All are told before any is waited for.
                    for worker in &workers {
                        worker.begin(side);
                    }
                    workers.iter().map(Worker::rate).sum::<Result<f64, Error>>()
                })?;
                Ok::<_, Error>(Row::of_pair(name, "hellos/s", pair))
            })?);
        }
    }
    Ok(rows)
}

/// A thread with an instance of its own.
struct Worker {
    sides: mpsc::Sender<Side>,
    rates: mpsc::Receiver<Result<f64, Error>>,
}

impl Worker {
    fn start<'scope>(scope: &'scope thread::Scope<'scope, '_>, store: Store) -> Self {
        let (sides, told) = mpsc::channel();
        let (answer, rates) = mpsc::channel();
        scope.spawn(move || {
            let (mut engine, bare) = match open(&store) {
                Ok(opened) => opened,
                Err(error) => {
                    // Who asks for the first rate gets it.
                    let _ = answer.send(Err(error));
                    return;
                }
            };
            for side in told {
                if answer.send(rate(&mut engine, &bare, side)).is_err() {
                    return;
                }
            }
        });
        Self { sides, rates }
    }

    fn begin(&self, side: Side) {
        // Where the thread is gone, its rate is missing.
        let _ = self.sides.send(side);
    }

    fn rate(&self) -> Result<f64, Error> {
        let gone = |_| Error::Answer {
            what: "an instance's thread".to_owned(),
            answer: "it ended".to_owned(),
        };
        self.rates.recv().map_err(gone)?
    }
}

fn open(store: &Store) -> Result<(Engine, Bare), Error> {
    let mut engine = Engine::open(store, "hello")?;
    let bare = Bare::new(&mut engine, &request("/"))?;
    Ok((engine, bare))
}

/// Pristine hellos in a second, over one window.
fn rate(engine: &mut Engine, bare: &Bare, side: Side) -> Result<f64, Error> {
    let get = request("/");
    let begun = Instant::now();
    let mut count = 0;
    while begun.elapsed() < WINDOW {
        match side {
            Side::Ours => {
                engine.roll_back()?;
                good("hello", engine.run(&get)?)?;
            }
            Side::Floor => {
                bare.roll_back();
                bare.put_request();
                bare.set_state()?;
                bare.run()?;
                bare.answer()?;
            }
        }
        count += 1;
    }
    Ok(f64::from(count) / begun.elapsed().as_secs_f64())
}
