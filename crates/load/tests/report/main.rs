//! Records in files, their schema, and what people read of them.

mod browser;
mod chromium;
mod file;
mod page;
mod sample;
mod schema;
mod tables;
