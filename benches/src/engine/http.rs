//! Invocations as a client sees them: a server in a process of its own, one connection over
//! loopback that stays open.

use dormouse_pool::FunctionConfig;

use super::Group;
use super::lab::{Lab, request};
use crate::http::{Connection, Reply, Server};
use crate::{Error, Row, Side, interleaved, timed_us};

pub(super) const GROUP: Group = Group {
    title: "invocations over HTTP",
    names: &["http/hello", "http/restored", "http/isolated"],
    measure,
};

const HELLO: &str = "/v1/functions/hello/invoke/";
/// Requests before a measurement.
const WARM_UP: usize = 20;

fn measure(lab: &Lab) -> Result<Vec<Row>, Error> {
    // Learned before the servers look.
    let _ = lab.engine("hello", "hello", FunctionConfig::default(), &request("/"))?;
    let (_server, mut rolling) = serve(lab, &[])?;
    let mut rows = Vec::new();
    if lab.wants("http/hello") {
        let pair = interleaved(lab.rounds(2000), |side| match side {
            Side::Ours => {
                let (reply, time) = timed_us(|| rolling.get(HELLO))?;
                Ok::<_, Error>(time - run_us(&reply)?)
            }
            Side::Floor => Ok(timed_us(|| rolling.get("/livez"))?.1),
        })?;
        rows.extend(Row::of_pair("http/hello", "µs", pair).map(|row| row.with_limit(3.0)));
    }
    if lab.wants("http/restored") {
        let (_server, mut restoring) = serve(lab, &["--no-rollback"])?;
        let pair = interleaved(lab.rounds(2000), |side| match side {
            Side::Ours => started(&mut restoring, "restored"),
            Side::Floor => started(&mut rolling, "rolled-back"),
        })?;
        rows.extend(Row::of_pair("http/restored", "µs", pair).map(|row| row.with_limit(1.2)));
    }
    if lab.wants("http/isolated") {
        let (_server, mut within) = serve(lab, &["--isolation", "none"])?;
        let pair = interleaved(lab.rounds(2000), |side| match side {
            Side::Ours => started(&mut rolling, "rolled-back"),
            Side::Floor => started(&mut within, "rolled-back"),
        })?;
        rows.extend(Row::of_pair("http/isolated", "µs", pair).map(|row| row.with_limit(1.5)));
    }
    Ok(rows)
}

/// A server over the lab's store, and a connection to it that has been used.
fn serve(lab: &Lab, more: &[&str]) -> Result<(Server, Connection), Error> {
    let server = Server::start(lab.dormouse(), lab.folder(), more)?;
    let mut connection = server.connect()?;
    for _ in 0..WARM_UP {
        connection.get(HELLO)?;
    }
    Ok((server, connection))
}

/// How long an invocation takes whose instance came to be in this way, in microseconds.
fn started(connection: &mut Connection, start: &str) -> Result<f64, Error> {
    /// Now and then one comes from an instance that was built ahead and never used.
    const TRIES: usize = 100;
    for _ in 0..TRIES {
        let (reply, time) = timed_us(|| connection.get(HELLO))?;
        if reply.start_type == start {
            return Ok(time);
        }
    }
    Err(wrong(format!("no `{start}` in {TRIES} answers")))
}

/// The guest's own part of an invocation, in microseconds.
fn run_us(reply: &Reply) -> Result<f64, Error> {
    reply
        .timing_us("run")
        .ok_or_else(|| wrong("no `run` in its Server-Timing".to_owned()))
}

fn wrong(answer: String) -> Error {
    Error::Answer {
        what: HELLO.to_owned(),
        answer,
    }
}
