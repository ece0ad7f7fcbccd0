//! Errors on their way from one process to another.

use serde::{Deserialize, Serialize};

use crate::error::{Error, SOON};

/// An error that a worker says. Only what a worker can fail with is said, and nothing else is taken from it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Fault(Error);

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Self(of_worker(error))
    }
}

impl From<Fault> for Error {
    fn from(fault: Fault) -> Self {
        // When to try again is for this side to say.
        of_worker(fault.0).retry_after(SOON)
    }
}

/// The same where running a guest can fail so, else an internal error that says as much.
fn of_worker(error: Error) -> Error {
    match error {
        Error::BadOption { .. }
        | Error::BadImage { .. }
        | Error::Init { .. }
        | Error::Warming { .. }
        | Error::OverBudget { .. }
        | Error::Draining
        | Error::Host { .. }
        | Error::Internal { .. } => error,
        other => Error::Internal {
            operation: "running a guest".into(),
            reason: other.to_string(),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::worker::wire;

    fn sent(error: Error) -> Error {
        sent_as_it_is(Fault::from(error))
    }

    /// By a worker that does not keep to what it should.
    fn sent_as_it_is(fault: Fault) -> Error {
        let bytes = wire::encode(&fault).unwrap();
        let mut came = bytes::BytesMut::from(&bytes[..]);
        let fault: Fault = wire::take(&mut came, 1 << 16).unwrap().unwrap();
        fault.into()
    }

    #[test]
    fn an_error_is_the_same_at_the_other_end() {
        let error = Error::Internal {
            operation: "restoring".into(),
            reason: "no".to_owned(),
        };
        let text = error.to_string();
        let sent = sent(error);
        assert!(matches!(&sent, Error::Internal { operation, .. } if operation == "restoring"));
        assert_eq!(sent.to_string(), text);
    }

    #[test]
    fn what_a_store_says_arrives_as_text() {
        let store = dormouse_snapshot::Error::InvalidId { id: "x".to_owned() };
        let text = store.to_string();
        match sent(Error::Store(store)) {
            Error::Internal { reason, .. } => assert_eq!(reason, text),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_worker_decides_neither_for_the_pool_nor_when_to_try_again() {
        let name = "hello".parse().unwrap();
        let long = Duration::MAX;
        let crashing = sent_as_it_is(Fault(Error::crash_loop(&name, long)));
        assert!(matches!(crashing, Error::Internal { .. }), "{crashing:?}");
        let full = sent_as_it_is(Fault(Error::over_budget(&name, 1, 1).retry_after(long)));
        assert!(
            matches!(full, Error::OverBudget { retry_after, .. } if retry_after == SOON),
            "{full:?}"
        );
    }
}
