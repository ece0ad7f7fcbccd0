//! Steps that take a while: a spinner on a terminal, plain lines elsewhere. All of it on stderr.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// A step under way.
pub(crate) struct Step {
    what: String,
    started: Instant,
    spinner: Option<ProgressBar>,
}

impl Step {
    /// Says what begins.
    pub(crate) fn begin(what: &str) -> Self {
        let spinner = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{spinner} {msg} [{elapsed}]")
                .unwrap_or_else(|_| ProgressStyle::default_spinner());
            let spinner = ProgressBar::new_spinner().with_style(style);
            spinner.set_message(what.to_owned());
            spinner.enable_steady_tick(Duration::from_millis(100));
            spinner
        });
        if spinner.is_none() {
            eprintln!("{what}");
        }
        Self {
            what: what.to_owned(),
            started: Instant::now(),
            spinner,
        }
    }

    /// Says how far the step is, where somebody watches.
    pub(crate) fn progress(&self, done: usize, all: usize) {
        if let Some(spinner) = &self.spinner {
            spinner.set_message(format!("{}: {done} of {all}", self.what));
        }
    }

    /// Says what the step does now, where somebody watches.
    pub(crate) fn detail(&self, detail: &str) {
        if let Some(spinner) = &self.spinner {
            spinner.set_message(format!("{}: {detail}", self.what));
        }
    }

    /// Says how many of the bytes are done, as a bar where somebody watches.
    pub(crate) fn bytes(&self, done: u64, all: u64) {
        let Some(spinner) = &self.spinner else {
            return;
        };
        if spinner.length() != Some(all) {
            let template = "{spinner} {msg} {wide_bar} {binary_bytes} of {binary_total_bytes}";
            if let Ok(style) = ProgressStyle::with_template(template) {
                spinner.set_style(style);
            }
            spinner.set_length(all);
        }
        spinner.set_position(done);
    }

    /// Says that the step succeeded, where it took long enough to matter.
    pub(crate) fn done(self) {
        let seconds = self.started.elapsed().as_secs_f64();
        if let Some(spinner) = &self.spinner {
            spinner.finish_and_clear();
        }
        if seconds >= 1.0 {
            eprintln!("{}: done in {seconds:.1} s", self.what);
        }
    }

    /// Ends the step; its error speaks for itself.
    pub(crate) fn failed(self) {
        if let Some(spinner) = &self.spinner {
            spinner.finish_and_clear();
        }
    }
}
