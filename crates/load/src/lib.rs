//! Load on any HTTP target, and what can be learned from it.
//!
//! Requests come at times that do not depend on the answers (an open loop), or each after an answer
//! (a closed loop). Latency is counted from the time at which a request was *meant* to be sent, so
//! that a target that stalls cannot hide the requests that it kept from being sent. A run ends in a
//! [`Record`]: histograms, errors, start types, the target's own stages, and how the client did.
#![forbid(unsafe_code)]

mod histogram;
mod machine;
mod record;
mod record_file;
pub mod report;
pub mod trace;

pub use histogram::Histogram;
pub use machine::{Machine, field, kib};
pub use record::{Band, ClientStats, ErrorStats, FORMAT, Part, Record, Run, Share, Slice};
pub use record_file::RecordError;
