//! Load on any HTTP target, and what can be learned from it.
#![forbid(unsafe_code)]

pub mod trace;
