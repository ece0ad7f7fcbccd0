//! The store from outside, on real files; one binary, so that it links once.
#![allow(
    clippy::single_range_in_vec_init,
    reason = "lists of one range are meant"
)]

mod golden;
mod history;
mod hostile;
mod layouts;
mod odd;
mod publishing;
mod retention;
mod round_trip;
mod sharing;
mod support;
