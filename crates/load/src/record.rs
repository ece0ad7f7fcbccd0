//! What is kept of a measurement: one JSON document, which `record.schema.json` describes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::Histogram;
use crate::machine::Machine;

/// The name of this form of a record. A form that older readers would misread gets another.
pub const FORMAT: &str = "dormouse-load-record/1";

/// A whole measurement: one or more runs against one target.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// [`FORMAT`].
    pub format: String,
    /// What its maker calls it.
    pub title: String,
    /// The URL that was driven, without the requests' own paths.
    pub target: String,
    /// The machine that the load came from.
    pub machine: Machine,
    /// When it began, milliseconds since the Unix epoch.
    pub began_unix_ms: u64,
    /// Its runs, in the order in which they were made.
    pub runs: Vec<Run>,
}

/// One run: a pattern of requests for some time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Run {
    /// What tells it from the record's other runs.
    pub name: String,
    /// How requests came, in one line: `open loop, poisson, 400/s`.
    pub pattern: String,
    /// Whether requests came at times of their own (open), or each after an answer (closed).
    pub is_open: bool,
    /// What was sent at first and not measured, in microseconds.
    pub warmup_us: u64,
    /// The time that was measured, in microseconds, after the warm-up.
    pub measured_us: u64,
    /// Whether somebody ended it before its time.
    pub interrupted: bool,
    /// What the target could answer at most, measured by a closed loop just before, in answers per
    /// second; nothing where the pattern does not depend on it.
    pub capacity_per_s: Option<f64>,
    /// How many requests were meant to be sent in the measured time.
    pub offered: u64,
    /// How many got a good answer, at whatever time.
    pub answered: u64,
    /// How many good answers came within the measured time.
    pub answered_in_time: u64,
    /// How many got none, or a bad one.
    pub failed: u64,
    /// Bytes of all bodies of good answers.
    pub body_bytes: u64,
    /// From the intended time of sending to the last byte of the good answer; in a closed loop, from
    /// the sending.
    pub latency: Histogram,
    /// From the sending to the last byte of the good answer.
    pub service: Histogram,
    /// From the intended time of sending to the end of requests that failed.
    pub failures: Histogram,
    /// What went wrong, by kind: `timeout`, `status-503/queue-full`, ….
    pub errors: BTreeMap<String, ErrorStats>,
    /// Replies by HTTP status.
    pub statuses: BTreeMap<u16, u64>,
    /// Good answers by what the target said of their start (`X-Start-Type`); `none` where it said
    /// nothing.
    pub starts: BTreeMap<String, Share>,
    /// Good answers by the request's name.
    pub requests: BTreeMap<String, Share>,
    /// What the target said of its stages (`Server-Timing`), each with all good answers that had it.
    pub stages: BTreeMap<String, Histogram>,
    /// Where the time went, by how slow answers were: bands of percentiles, ascending.
    pub breakdown: Vec<Band>,
    /// What can be read off the breakdown, one sentence each.
    pub findings: Vec<String>,
    /// The run in pieces of equal length, by the intended time of sending.
    pub slices: Vec<Slice>,
    /// How long a slice is, in microseconds.
    pub slice_us: u64,
    /// How the client itself did.
    pub client: ClientStats,
}

/// Requests that went wrong in the same way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ErrorStats {
    /// How many.
    pub count: u64,
    /// When the first of them was to be sent, in microseconds after the run began.
    pub first_at_us: u64,
    /// What the first of them said, in one line.
    pub example: String,
}

/// A share of the good answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub struct Share {
    /// Requests that failed; always 0 where only good answers can be told apart.
    pub failed: u64,
    /// Their latency, as the run's.
    pub latency: Histogram,
}

/// Where the time of answers within a band of percentiles went.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Band {
    /// Where it begins, as a share of all good answers by ascending latency.
    pub from: f64,
    /// Where it ends.
    pub to: f64,
    /// How many answers are in it.
    pub count: u64,
    /// Their mean latency, in microseconds.
    pub mean_us: f64,
    /// What that consists of, adding up to it: `lag` (sent late by the client), `connection` (waited
    /// for or made), the target's own stages, and `rest` (network, HTTP, all that no stage is for).
    pub parts: Vec<Part>,
}

/// A part of a mean.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    /// Which.
    pub name: String,
    /// The mean time that it took, in microseconds.
    pub mean_us: f64,
}

/// A piece of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub struct Slice {
    /// Whether it belongs to the warm-up: then nothing else counts it.
    pub is_warmup: bool,
    /// Requests that were to be sent in it.
    pub offered: u64,
    /// Those of them that failed.
    pub failed: u64,
    /// Good answers that came in it, whenever they were asked for.
    pub arrived: u64,
    /// The most requests that were under way at once.
    pub in_flight_max: u64,
    /// The latency of those that were to be sent in it and got a good answer.
    pub latency: Histogram,
}

/// How the client itself did.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClientStats {
    /// Threads that sent requests.
    pub threads: u32,
    /// Connections that could be open at once.
    pub connections: u32,
    /// Connections that were opened.
    pub opened: u64,
    /// How late the client turned to each request, after its intended time.
    pub lag: Histogram,
    /// Requests that had to wait for a connection to become free.
    pub waited: u64,
    /// CPU time of the client's process while it ran, in microseconds.
    pub cpu_us: u64,
    /// The share of its core that the busiest of the client's threads used.
    pub busiest_thread: f64,
    /// CPU time per request, as a percentage of a core at 1000 requests per second.
    pub cpu_percent_per_1000_per_s: f64,
    /// Why the client, and not the target, was the limit: one sentence each; empty where it was not.
    pub limits: Vec<String>,
}

impl Run {
    /// Requests per second that were meant to be sent.
    #[must_use]
    pub fn offered_per_s(&self) -> f64 {
        per_second(self.offered, self.measured_us)
    }

    /// Requests of one kind per second that were meant to be sent.
    #[must_use]
    pub fn offered_of_per_s(&self, share: &Share) -> f64 {
        per_second(share.all(), self.measured_us)
    }

    /// Good answers per second, within the measured time.
    #[must_use]
    pub fn achieved_per_s(&self) -> f64 {
        per_second(self.answered_in_time, self.measured_us)
    }

    /// The share of the requests that failed.
    #[must_use]
    pub fn failed_share(&self) -> f64 {
        share_of(self.failed, self.answered.saturating_add(self.failed))
    }

    /// Whether the client, and not the target, was the limit.
    #[must_use]
    pub fn is_client_limited(&self) -> bool {
        !self.client.limits.is_empty()
    }
}

impl Share {
    /// Requests, whatever became of them.
    fn all(&self) -> u64 {
        self.latency.count().saturating_add(self.failed)
    }

    /// The share of them that failed.
    #[must_use]
    pub fn failed_share(&self) -> f64 {
        share_of(self.failed, self.all())
    }
}

fn share_of(part: u64, all: u64) -> f64 {
    if all == 0 {
        0.0
    } else {
        part as f64 / all as f64
    }
}

fn per_second(count: u64, time_us: u64) -> f64 {
    if time_us == 0 {
        0.0
    } else {
        count as f64 * 1e6 / time_us as f64
    }
}
