//! Measures Dormouse's restore engine, stage by stage and beside floors.
//!
//! ```text
//!  engine    the rows: what is measured, and how                 (real functions, real VMs)
//!    ├── floor    bare system calls on the same VM and memory    (unsafe)
//!    └── samples  taking both sides in turn; medians, quartiles
//!  sizes     the bytes of snapshots, without floors
//!  record    rows and the machine's facts; report: as a table
//! ```
//!
//! METHOD.md says what each number means.
#![deny(unsafe_code)]

pub mod engine;
mod error;
#[allow(unsafe_code)]
pub mod floor;
mod http;
mod machine;
mod record;
pub mod report;
mod samples;
pub mod sizes;

pub use error::Error;
pub use machine::Machine;
pub use record::{Record, Row, Spread};
pub use samples::{Pair, Samples, Side, in_turn, interleaved, timed_us, us};
