//! From a trace to a plan: each invocation is a request to a function that burns as much time and
//! touches as much memory.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use serde::Deserialize;

use crate::arrivals::{Arrival, Arrivals};
use crate::plan::{Pattern, Plan, Request};
use crate::scenario::HowConfig;
use crate::trace::{BurnCaps, SampleConfig, SyntheticConfig, Trace, burn_path};
use crate::{Error, Target};

/// A trace, and how much of it is replayed.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TraceConfig {
    /// Its files, as published; a synthetic trace is made where there are none.
    #[serde(default)]
    pub files: Vec<PathBuf>,
    /// So many functions of it; all where there is none.
    pub functions: Option<usize>,
    /// Invocations per second on average, after compression; all where there is none.
    pub rate: Option<f64>,
    /// How many times faster than recorded it is replayed.
    pub compression: Option<f64>,
    /// Where in the trace it begins.
    #[serde(default, deserialize_with = "some_duration")]
    pub start: Option<Duration>,
    /// Longer invocations are cut to that.
    #[serde(default, deserialize_with = "some_duration")]
    pub max_duration: Option<Duration>,
    /// The path of the function that burns. `{n}` stands for the number of the trace's function
    /// modulo `copies`.
    #[serde(default = "burn")]
    pub path: String,
    /// So many functions stand for those of the trace.
    #[serde(default = "one")]
    pub copies: u32,
}

fn burn() -> String {
    "/v1/functions/burn/invoke".to_owned()
}

fn one() -> u32 {
    1
}

fn some_duration<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Duration>, D::Error> {
    crate::scenario::duration(deserializer).map(Some)
}

impl TraceConfig {
    /// # Errors
    /// [`Error::Trace`], [`Error::Setting`].
    pub(crate) fn plan(
        &self,
        name: &str,
        how: &HowConfig,
        folder: &Path,
        target: &Target,
        seed: u64,
    ) -> Result<Plan, Error> {
        let trace = self.read(how, folder, seed)?;
        let mut requests: Vec<Request> = Vec::new();
        // Few distinct ones: times and sizes are rounded to steps.
        let mut known: HashMap<String, usize> = HashMap::new();
        let mut arrivals = Vec::with_capacity(trace.invocations.len());
        for invocation in &trace.invocations {
            let function = trace.functions.get(invocation.function as usize);
            let memory_mib = function.map_or(0.0, |function| function.memory_mib);
            let burn = burn_path(invocation.duration_us, memory_mib, &BurnCaps::default());
            let number = invocation.function % self.copies.max(1);
            let path = self.path.replace("{n}", &number.to_string());
            let path = format!("{}{burn}", path.trim_end_matches('/'));
            let request = match known.get(&path) {
                Some(request) => *request,
                None => {
                    let request = Request::new("traced", "GET", target, &path, &[], Bytes::new())?;
                    requests.push(request);
                    known.insert(path, requests.len() - 1);
                    requests.len() - 1
                }
            };
            arrivals.push(Arrival {
                at: Duration::from_micros(invocation.at_us),
                request,
            });
        }
        let weights = vec![1.0; requests.len()];
        let mut plan = how.plan(
            name,
            Pattern::Open(Arrivals::Listed(arrivals.into())),
            requests,
            weights,
            seed,
        );
        // No longer than there is something to send.
        plan.measured = plan.measured.min(trace.span.saturating_sub(plan.warmup));
        Ok(plan)
    }

    fn read(&self, how: &HowConfig, folder: &Path, seed: u64) -> Result<Trace, Error> {
        let compression = self.compression.unwrap_or(1.0);
        if !(1.0..=1e6).contains(&compression) {
            return Err(Error::setting("compression", "from 1 to 1000000"));
        }
        let replayed = how.duration.saturating_add(how.warmup);
        let recorded = Duration::try_from_secs_f64(replayed.as_secs_f64() * compression);
        let recorded =
            recorded.map_err(|error| Error::setting("compression", error.to_string()))?;
        let sample = SampleConfig {
            start: self.start.unwrap_or_default(),
            length: Some(recorded),
            functions: self.functions,
            rate_per_s: self.rate,
            compression,
            max_duration: self.max_duration,
            seed,
        };
        if self.files.is_empty() {
            let synthetic = SyntheticConfig {
                span: recorded,
                rate_per_s: self.rate.unwrap_or(3.0) / compression,
                functions: self.functions.unwrap_or(120),
                seed,
            };
            let trace = Trace::synthetic(&synthetic)?;
            let whole = SampleConfig {
                functions: None,
                rate_per_s: None,
                start: Duration::ZERO,
                ..sample
            };
            return Ok(trace.sample(&whole)?);
        }
        let files: Vec<_> = self.files.iter().map(|file| folder.join(file)).collect();
        let (trace, _) = Trace::open(&files, &sample)?;
        Ok(trace)
    }
}
