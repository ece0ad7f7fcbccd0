//! A run as it goes on: one line that changes on a terminal, a line now and then elsewhere.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use dormouse_load::{Event, Progress, Run};
use indicatif::{ProgressBar, ProgressStyle};

/// Between two lines where nobody watches.
const LINE_EVERY: Duration = Duration::from_secs(15);

/// Shows runs on stderr.
pub(super) struct Live {
    bar: Option<ProgressBar>,
    last: Instant,
}

impl Live {
    pub(super) fn new() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{prefix} [{bar:24}] {msg}")
                .unwrap_or_else(|_| ProgressStyle::default_bar());
            ProgressBar::new(1000).with_style(style)
        });
        Self {
            bar,
            last: Instant::now(),
        }
    }

    /// Shows what happened.
    pub(super) fn show(&mut self, event: &Event<'_>) {
        match event {
            Event::Begins(name, pattern, number, count) => {
                self.begin(name, pattern, *number, *count)
            }
            Event::Progress(progress) => self.progress(progress),
            Event::Ended(run) => self.say(&ended(run)),
        }
    }

    fn begin(&mut self, name: &str, pattern: &str, number: usize, count: usize) {
        self.say(&format!("run {number} of {count}: {name} ({pattern})"));
        self.last = Instant::now();
        if let Some(bar) = &self.bar {
            bar.set_prefix(name.to_owned());
            bar.set_position(0);
        }
    }

    fn progress(&mut self, progress: &Progress) {
        let line = line(progress);
        if let Some(bar) = &self.bar {
            let share = progress.elapsed.as_secs_f64() / progress.length.as_secs_f64();
            bar.set_position((share.clamp(0.0, 1.0) * 1000.0) as u64);
            bar.set_message(line);
        } else if self.last.elapsed() >= LINE_EVERY {
            self.last = Instant::now();
            eprintln!("{line}");
        }
    }

    /// A line that stays.
    fn say(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| eprintln!("{line}")),
            None => eprintln!("{line}"),
        }
    }

    /// Leaves the terminal as it was.
    pub(super) fn end(self) {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
    }
}

fn ms(us: u64) -> f64 {
    us as f64 / 1e3
}

fn line(progress: &Progress) -> String {
    let recent = &progress.recent;
    let mut line = format!(
        "{:.0}/{:.0} s  {:.0} answers/s  p50 {:.2} ms  p99 {:.2} ms",
        progress.elapsed.as_secs_f64(),
        progress.length.as_secs_f64(),
        progress.answered_per_s,
        ms(recent.quantile_us(0.5)),
        ms(recent.quantile_us(0.99)),
    );
    if progress.failed > 0 {
        line += &format!("  {} failed", progress.failed);
    }
    line
}

fn ended(run: &Run) -> String {
    format!(
        "{}: {:.1} of {:.1} requests/s answered, p50 {:.2} ms, p99 {:.2} ms, {} failed",
        run.name,
        run.achieved_per_s(),
        run.offered_per_s(),
        ms(run.latency.quantile_us(0.5)),
        ms(run.latency.quantile_us(0.99)),
        run.failed
    )
}
