//! What workers log, in the front's log.

use std::io::{self, BufRead, BufReader, Read};

/// The longest line that is passed on whole.
const MOST_BYTES: u64 = 4096;

/// Passes on what a worker says, line by line, on a thread of its own, until it has ended. It may be
/// anything, so it is written out as a quoted text.
///
/// # Errors
/// Where no thread can be started.
pub(super) fn relay(worker: u32, stderr: impl Read + Send + 'static) -> io::Result<()> {
    let relaying = std::thread::Builder::new().name("worker log".to_owned());
    relaying.spawn(move || {
        let mut said = BufReader::new(stderr);
        let mut line = Vec::new();
        loop {
            line.clear();
            match said.by_ref().take(MOST_BYTES).read_until(b'\n', &mut line) {
                Ok(0) | Err(_) => return,
                Ok(_) => {
                    let line = String::from_utf8_lossy(line.trim_ascii_end());
                    tracing::info!(worker, ?line, "said");
                }
            }
        }
    })?;
    Ok(())
}
