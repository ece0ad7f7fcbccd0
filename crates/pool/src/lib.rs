//! Instances of functions.
