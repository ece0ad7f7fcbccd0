//! Records in files, and their schema.

mod file;
mod sample;
mod schema;
