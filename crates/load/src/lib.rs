//! Load on any HTTP target, and what can be learned from it.
//!
//! Requests come at times that do not depend on the answers (an open loop), or each after an answer
//! (a closed loop). Latency is counted from the time at which a request was *meant* to be sent, so
//! that a target that stalls cannot hide the requests that it kept from being sent. A run ends in a
//! [`Record`]: histograms, errors, start types, the target's own stages, and how the client did.

mod arrivals;
mod breakdown;
pub mod compare;
mod drive;
mod error;
mod findings;
mod histogram;
mod machine;
mod matrix;
mod plan;
mod record;
mod record_file;
mod recorder;
mod replay;
pub mod report;
mod scenario;
mod server_timing;
mod session;
mod target;
pub mod trace;

pub use arrivals::{Arrival, Arrivals, Rate};
pub use drive::{Progress, Stop, run};
pub use error::Error;
pub use histogram::Histogram;
pub use machine::{Machine, kib};
pub use matrix::MatrixConfig;
pub use plan::{Pattern, Plan, Request};
pub use record::{Band, ClientStats, ErrorStats, FORMAT, Part, Record, Run, Share, Slice};
pub use record_file::RecordError;
pub use replay::TraceConfig;
pub use scenario::{
    ClosedConfig, FunctionConfig, HowConfig, OpenConfig, Prepared, RateConfig, RequestConfig,
    RunConfig, ScenarioConfig,
};
pub use session::{Event, session};
pub use target::Target;

/// The JSON Schema of a [`Record`]; benches/LOAD.md says what its figures mean.
pub const RECORD_SCHEMA: &str = include_str!("../record.schema.json");
