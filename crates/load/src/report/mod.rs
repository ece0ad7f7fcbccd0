//! A record for people: tables for a terminal, and one HTML page.
//!
//! All text in a record may come from a hostile target. In tables it controls no terminal, in the
//! page it is text and nothing else.

mod axis;
mod breakdown;
mod chart;
mod numbers;
mod page;
mod percentiles;
mod readme;
mod run;
mod series;
mod text;

pub use page::html;
pub use readme::readme_block;
pub use text::{readme_table, table};
