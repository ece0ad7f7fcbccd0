//! Errors on their way from one process to another.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Failure};

/// What a worker can fail with, as plain values.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Fault {
    BadOption {
        option: String,
        value: String,
        reason: String,
    },
    BadImage {
        reason: String,
    },
    Init {
        failure: Failure,
        console: String,
    },
    Warming {
        run: u32,
        runs: u32,
        reason: String,
        console: String,
    },
    OverBudget {
        name: String,
        needed_bytes: u64,
        budget_bytes: u64,
    },
    Draining,
    Host {
        reason: String,
    },
    Internal {
        operation: String,
        reason: String,
    },
}

/// The options whose values only a VMM can judge.
const OPTIONS: [&str; 5] = ["memory", "base", "args", "env", "name"];

/// The operations that workers fail in most.
const OPERATIONS: [&str; 3] = [
    "paging guest memory",
    "restoring",
    "running a virtual machine",
];

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        match error {
            Error::BadOption {
                option,
                value,
                reason,
            } => Self::BadOption {
                option: option.to_owned(),
                value,
                reason,
            },
            Error::BadImage { reason } => Self::BadImage { reason },
            Error::Init { failure, console } => Self::Init { failure, console },
            Error::Warming {
                run,
                runs,
                reason,
                console,
            } => Self::Warming {
                run,
                runs,
                reason,
                console,
            },
            Error::OverBudget {
                name,
                needed_bytes,
                budget_bytes,
                ..
            } => Self::OverBudget {
                name,
                needed_bytes,
                budget_bytes,
            },
            Error::Draining => Self::Draining,
            Error::Host { reason } => Self::Host { reason },
            Error::Internal { operation, reason } => Self::Internal {
                operation: operation.to_owned(),
                reason,
            },
            other => Self::Internal {
                operation: "running a guest".to_owned(),
                reason: other.to_string(),
            },
        }
    }
}

impl From<Fault> for Error {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::BadOption {
                option,
                value,
                reason,
            } => Self::BadOption {
                option: OPTIONS
                    .into_iter()
                    .find(|known| *known == option)
                    .unwrap_or("option"),
                value,
                reason,
            },
            Fault::BadImage { reason } => Self::BadImage { reason },
            Fault::Init { failure, console } => Self::Init { failure, console },
            Fault::Warming {
                run,
                runs,
                reason,
                console,
            } => Self::Warming {
                run,
                runs,
                reason,
                console,
            },
            Fault::OverBudget {
                name,
                needed_bytes,
                budget_bytes,
            } => Self::OverBudget {
                name,
                needed_bytes,
                budget_bytes,
                retry_after: crate::error::SOON,
            },
            Fault::Draining => Self::Draining,
            Fault::Host { reason } => Self::Host { reason },
            Fault::Internal { operation, reason } => {
                match OPERATIONS.into_iter().find(|known| *known == operation) {
                    Some(operation) => Self::Internal { operation, reason },
                    None => Self::Internal {
                        operation: "running a guest",
                        reason: format!("{operation}: {reason}"),
                    },
                }
            }
        }
    }
}
