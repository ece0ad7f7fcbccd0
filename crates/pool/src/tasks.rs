//! Work that is neither lost nor in the way of the async threads.

use crate::error::Error;

/// Runs blocking work off the async threads.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(panic) => Err(Error::internal("running blocking work")(panic.into())),
    }
}

/// Does work to its end, also where the caller stops waiting for it.
pub(crate) async fn detached<T: Send + 'static>(
    work: impl Future<Output = Result<T, Error>> + Send + 'static,
) -> Result<T, Error> {
    match tokio::spawn(work).await {
        Ok(result) => result,
        Err(panic) => Err(Error::internal("running a task")(panic.into())),
    }
}
