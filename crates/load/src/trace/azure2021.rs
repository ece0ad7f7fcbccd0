//! The form of 2021: one invocation per line, `app,func,end_timestamp,duration`, in seconds.

use std::collections::HashMap;
use std::io::Write;
use std::path::Path;

use super::error::{Error, Result};
use super::sample::{Events, SampleConfig, sample_events};
use super::table::Table;
use super::{Invocation, MAX_FUNCTIONS, ReadStats, Source, Trace, TracedFunction, name};

const HEADER: [&str; 4] = ["app", "func", "end_timestamp", "duration"];
/// With this the functions of made-up traces begin.
pub(super) const SYNTHETIC: &str = "synthetic-";

/// Reads the file, and samples it on the way.
pub(super) fn read(path: &Path, config: &SampleConfig) -> Result<(Trace, ReadStats)> {
    let mut file = File2021 {
        path,
        places: HashMap::new(),
        functions: Vec::new(),
        synthetic: false,
        stats: ReadStats::default(),
    };
    let sampled = sample_events(&mut file, None, config)?;
    let mut stats = file.stats;
    stats.functions = sampled.functions;
    stats.idle_functions = file.functions.len() as u64 - sampled.functions;
    stats.outside_window += sampled.outside;
    stats.without_memory = sampled.functions;
    let source = if file.synthetic {
        Source::Synthetic
    } else {
        Source::Azure2021
    };
    let trace = sampled
        .draft
        .finish(source, |index| file.functions.get(index).cloned());
    Ok((trace, stats))
}

struct File2021<'a> {
    path: &'a Path,
    /// By app and function, as published.
    places: HashMap<String, u32>,
    functions: Vec<TracedFunction>,
    synthetic: bool,
    /// Of the last time that the file was gone through.
    stats: ReadStats,
}

impl File2021<'_> {
    fn place(&mut self, app: &str, func: &str, whole: &str) -> Result<u32> {
        if let Some(place) = self.places.get(whole) {
            return Ok(*place);
        }
        if self.functions.len() >= MAX_FUNCTIONS {
            let path = self.path.to_owned();
            return Err(Error::TooManyFunctions { path });
        }
        let place = self.functions.len() as u32;
        self.places.insert(whole.to_owned(), place);
        self.synthetic |= func.starts_with(SYNTHETIC);
        self.functions.push(TracedFunction {
            app: name::short(app, app),
            name: name::short(func, whole),
            trigger: None,
            memory_mib: 0.0,
        });
        Ok(place)
    }
}

impl Events for File2021<'_> {
    fn visit(&mut self, each: &mut dyn FnMut(&Invocation) -> Result<()>) -> Result<()> {
        self.stats = ReadStats::default();
        let mut table = Table::open(self.path)?;
        let [app, func, end, duration] = HEADER.map(|name| table.column(name));
        let (app, func, end, duration) = (app?, func?, end?, duration?);
        let mut whole = String::new();
        while table.advance()? {
            self.stats.rows += 1;
            let seconds = "a number of seconds";
            let end_s = table.number(end, seconds)?;
            let duration_s = table.non_negative(duration, seconds, &mut self.stats)?;
            whole.clear();
            whole.extend([table.text(app), ",", table.text(func)]);
            let function = self.place(table.text(app), table.text(func), &whole)?;
            // It is the end that was recorded.
            let at_us = ((end_s - duration_s) * 1e6).round();
            if at_us < 0.0 {
                self.stats.outside_window += 1;
                continue;
            }
            each(&Invocation {
                at_us: at_us as u64,
                function,
                duration_us: (duration_s * 1e6).round() as u64,
            })?;
        }
        if self.stats.rows == 0 {
            let path = self.path.to_owned();
            let what = "invocations";
            return Err(Error::Empty { path, what });
        }
        Ok(())
    }
}

impl Trace {
    /// Writes the trace in the form of 2021, in the order of the invocations' beginnings.
    ///
    /// Idle functions, triggers and memory have no place in that form. The functions of a synthetic
    /// trace keep their names, which say so; its file should say so in its name as well.
    ///
    /// # Errors
    ///
    /// The writer fails.
    pub fn write_2021(&self, writer: impl Write) -> Result<()> {
        let failed = |source| Error::Write { source };
        let mut lines = csv::Writer::from_writer(writer);
        lines
            .write_record(HEADER)
            .map_err(|error| failed(error.into()))?;
        for invocation in &self.invocations {
            let Some(function) = self.functions.get(invocation.function as usize) else {
                continue;
            };
            let end = seconds(invocation.at_us.saturating_add(invocation.duration_us));
            let duration = seconds(invocation.duration_us);
            lines
                .write_record([&function.app, &function.name, &end, &duration])
                .map_err(|error| failed(error.into()))?;
        }
        lines.flush().map_err(failed)
    }
}

/// Microseconds as seconds, without zeros at the end.
fn seconds(us: u64) -> String {
    let text = format!("{}.{:06}", us / 1_000_000, us % 1_000_000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}
