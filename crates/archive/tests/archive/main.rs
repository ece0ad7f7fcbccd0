//! Exports and imports from outside, on real files; one binary, so that it links once.

mod file;
mod hostile;
mod hostile_layout;
mod oci;
mod support;
