//! What a user asks for: a scenario, read from TOML, and the plans that it makes.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Deserializer};

use crate::arrivals::{Arrivals, Rate};
use crate::matrix::MatrixConfig;
use crate::plan::{Pattern, Plan, Request};
use crate::replay::TraceConfig;
use crate::{Error, Target};

/// The header with which a Dormouse that allows it is told how the instance is to start.
const START: &str = "x-dormouse-start";

/// A scenario.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScenarioConfig {
    /// What reports call it.
    pub title: String,
    /// The target, where the command line names none.
    #[serde(default)]
    pub url: Option<String>,
    /// Functions that a Dormouse is to have, by name.
    #[serde(default)]
    pub functions: BTreeMap<String, FunctionConfig>,
    /// What is sent.
    #[serde(default, rename = "request")]
    pub requests: Vec<RequestConfig>,
    /// When it is sent, run by run.
    #[serde(default, rename = "run")]
    pub runs: Vec<RunConfig>,
    /// Runs for all combinations of some properties.
    #[serde(default)]
    pub matrix: Option<MatrixConfig>,
    /// What random choices depend on.
    #[serde(default)]
    pub seed: u64,
    /// The folder of the scenario's file, which its paths start from.
    #[serde(skip)]
    pub folder: PathBuf,
}

/// A function that is deployed before the first run.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FunctionConfig {
    /// The image's file name, in the folder of images.
    pub image: String,
    /// So many functions of it: with a number behind their names where there are more than one.
    #[serde(default = "one")]
    pub copies: u32,
}

/// A request.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RequestConfig {
    /// What reports call it.
    pub name: String,
    /// Its method; `GET` where there is none and no body, or else `POST`.
    pub method: Option<String>,
    /// Its path and query. `{n}` stands for each number below `copies`.
    pub path: String,
    /// Its headers.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// Its body as text.
    pub body: Option<String>,
    /// Its body as so many bytes.
    pub body_bytes: Option<usize>,
    /// How often it is sent, in relation to the others.
    #[serde(default = "weight")]
    pub weight: f64,
    /// So many requests of it, one for each function of as many copies.
    #[serde(default = "one")]
    pub copies: u32,
    /// How its instance is to start: `cold`, `first-uncached`, `first`, `restored`, `rolled-back`.
    pub start: Option<String>,
    /// The status of a good answer; any below 400 where there is none.
    pub expect_status: Option<u16>,
    /// What the body of a good answer contains.
    pub expect_body: Option<String>,
}

/// A run.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunConfig {
    /// What tells it from the others.
    pub name: String,
    /// An open loop.
    pub open: Option<OpenConfig>,
    /// A closed loop.
    pub closed: Option<ClosedConfig>,
    /// An open loop of a trace's invocations, each a request of its own.
    pub trace: Option<TraceConfig>,
    /// Names of the requests that are sent; all where there are none.
    #[serde(default)]
    pub requests: Vec<String>,
    /// How it is done.
    #[serde(flatten)]
    pub how: HowConfig,
}

/// How runs are done.
#[derive(Debug, Clone, Deserialize)]
pub struct HowConfig {
    /// What is measured.
    #[serde(default = "half_a_minute", deserialize_with = "duration")]
    pub duration: Duration,
    /// What is sent before, and not measured.
    #[serde(default, deserialize_with = "duration")]
    pub warmup: Duration,
    /// Connections at once, at most.
    #[serde(default = "connections")]
    pub connections: u32,
    /// Threads that send.
    #[serde(default = "one")]
    pub threads: u32,
    /// What takes longer has failed.
    #[serde(default = "half_a_minute", deserialize_with = "duration")]
    pub timeout: Duration,
}

/// When requests come in an open loop.
#[derive(Debug, Clone, Deserialize)]
#[serde(tag = "arrivals", rename_all = "kebab-case", deny_unknown_fields)]
pub enum OpenConfig {
    /// Evenly.
    Constant(RateConfig),
    /// At random.
    Poisson(RateConfig),
    /// At one rate after the other.
    Step {
        /// The rates, per second.
        rates: Vec<f64>,
        /// How long each.
        #[serde(deserialize_with = "duration")]
        each: Duration,
        /// Whether requests come at random.
        #[serde(default)]
        poisson: bool,
    },
    /// At a rate that grows or falls evenly.
    Ramp {
        /// At the beginning, per second.
        from: f64,
        /// At the end, per second.
        to: f64,
        /// Whether requests come at random.
        #[serde(default)]
        poisson: bool,
    },
    /// Many at once, then none.
    Burst {
        /// How many.
        size: u32,
        /// From one to the next.
        #[serde(deserialize_with = "duration")]
        every: Duration,
    },
}

/// A rate that does not change: one of the two.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RateConfig {
    /// Requests per second.
    pub rate: Option<f64>,
    /// A share of what the target can answer at most, which is measured before.
    pub of_capacity: Option<f64>,
}

/// A closed loop.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClosedConfig {
    /// Clients side by side.
    pub concurrency: u32,
    /// What each waits between an answer and its next request.
    #[serde(default, deserialize_with = "duration")]
    pub think: Duration,
    /// How many requests they send at most.
    pub requests: Option<u64>,
}

fn one() -> u32 {
    1
}

fn weight() -> f64 {
    1.0
}

fn connections() -> u32 {
    64
}

fn half_a_minute() -> Duration {
    Duration::from_secs(30)
}

/// A time as people write it: `5m`, `1.5s` is `1s 500ms`.
pub(crate) fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    humantime::parse_duration(&text).map_err(|error| {
        serde::de::Error::custom(format!(
            "{text:?} is no time like \"30s\" or \"5m\": {error}"
        ))
    })
}

/// A plan, and what it still needs to know.
#[derive(Debug, Clone)]
pub struct Prepared {
    /// The plan.
    pub plan: Plan,
    /// The share of the target's capacity that its rate is to be.
    pub of_capacity: Option<f64>,
}

impl Default for HowConfig {
    fn default() -> Self {
        Self {
            duration: half_a_minute(),
            warmup: Duration::ZERO,
            connections: connections(),
            threads: 1,
            timeout: half_a_minute(),
        }
    }
}

impl ScenarioConfig {
    /// Reads a scenario.
    ///
    /// # Errors
    /// [`Error::Scenario`] with the place.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let wrong = |reason: String| Error::Scenario {
            path: path.display().to_string(),
            reason,
        };
        let text = fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
        let mut config: Self =
            toml::from_str(&text).map_err(|error| wrong(one_line(&error, &text)))?;
        config.folder = path.parent().unwrap_or(Path::new(".")).to_owned();
        Ok(config)
    }

    /// A scenario of one run of one request.
    #[must_use]
    pub fn of_one(title: &str, request: RequestConfig, run: RunConfig) -> Self {
        Self {
            title: title.to_owned(),
            url: None,
            functions: BTreeMap::new(),
            requests: vec![request],
            runs: vec![run],
            matrix: None,
            seed: 0,
            folder: PathBuf::from("."),
        }
    }

    /// How its runs are done, to be changed.
    pub fn hows(&mut self) -> impl Iterator<Item = &mut HowConfig> {
        let matrix = self.matrix.iter_mut().map(|matrix| &mut matrix.how);
        self.runs.iter_mut().map(|run| &mut run.how).chain(matrix)
    }

    /// The runs that it asks for, on a target.
    ///
    /// # Errors
    /// [`Error::Setting`] and [`Error::Trace`].
    pub fn plans(&self, target: &Target) -> Result<Vec<Prepared>, Error> {
        let mut prepared = Vec::new();
        for run in &self.runs {
            prepared.push(self.plan(run, target)?);
        }
        if let Some(matrix) = &self.matrix {
            prepared.extend(matrix.plans(target, self.seed)?);
        }
        if prepared.is_empty() {
            return Err(Error::setting(
                "run",
                "the scenario has no run and no matrix",
            ));
        }
        let mut names: Vec<_> = prepared
            .iter()
            .map(|prepared| &prepared.plan.name)
            .collect();
        names.sort();
        if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            let reason = format!("two runs are called {:?}", twice[0]);
            return Err(Error::setting("run", reason));
        }
        for prepared in &prepared {
            prepared.plan.check()?;
        }
        Ok(prepared)
    }

    fn plan(&self, run: &RunConfig, target: &Target) -> Result<Prepared, Error> {
        let wrong = |reason: &str| Err(Error::setting(format!("run {:?}", run.name), reason));
        if let Some(trace) = &run.trace {
            if run.open.is_some() || run.closed.is_some() || !run.requests.is_empty() {
                return wrong("a trace says itself what is sent, and when");
            }
            let plan = trace.plan(&run.name, &run.how, &self.folder, target, self.seed)?;
            return Ok(Prepared {
                plan,
                of_capacity: None,
            });
        }
        let (pattern, of_capacity) = match (&run.open, &run.closed) {
            (Some(open), None) => open.pattern(&run.name)?,
            (None, Some(closed)) => (closed.pattern(), None),
            _ => return wrong("it needs one of open, closed and trace"),
        };
        let mut requests = Vec::new();
        let mut weights = Vec::new();
        for config in &self.requests {
            if run.requests.is_empty() || run.requests.contains(&config.name) {
                for request in config.requests(target)? {
                    requests.push(request);
                    weights.push(config.weight / f64::from(config.copies.max(1)));
                }
            }
        }
        let known = |name: &String| self.requests.iter().any(|request| request.name == *name);
        if let Some(unknown) = run.requests.iter().find(|name| !known(name)) {
            return wrong(&format!("there is no request {unknown:?}"));
        }
        Ok(Prepared {
            plan: run
                .how
                .plan(&run.name, pattern, requests, weights, self.seed),
            of_capacity,
        })
    }
}

/// What toml says, in one line.
fn one_line(error: &toml::de::Error, text: &str) -> String {
    let message = error.message().replace('\n', " ");
    match error.span() {
        Some(span) => {
            let line = text
                .get(..span.start)
                .unwrap_or_default()
                .matches('\n')
                .count()
                + 1;
            format!("line {line}: {message}")
        }
        None => message,
    }
}

impl HowConfig {
    pub(crate) fn plan(
        &self,
        name: &str,
        pattern: Pattern,
        requests: Vec<Request>,
        weights: Vec<f64>,
        seed: u64,
    ) -> Plan {
        Plan {
            name: name.to_owned(),
            pattern,
            requests,
            weights,
            warmup: self.warmup,
            measured: self.duration,
            connections: self.connections,
            threads: self.threads,
            timeout: self.timeout,
            seed,
        }
    }
}

impl OpenConfig {
    /// The pattern, and the share of the capacity that its rate is to be.
    ///
    /// # Errors
    /// [`Error::Setting`] where there is no rate, or there are two.
    pub fn pattern(&self, run: &str) -> Result<(Pattern, Option<f64>), Error> {
        let rated = |rate, is_poisson| Pattern::Open(Arrivals::Rated { rate, is_poisson });
        let constant = |config: &RateConfig, is_poisson| match (config.rate, config.of_capacity) {
            (Some(rate), None) => Ok((rated(Rate::Constant(rate), is_poisson), None)),
            // Until the capacity is known.
            (None, Some(share)) if share.is_finite() && share > 0.0 => {
                Ok((rated(Rate::Constant(share), is_poisson), Some(share)))
            }
            _ => Err(Error::setting(
                format!("run {run:?}"),
                "it needs a rate, or a share of_capacity above 0, and not both",
            )),
        };
        Ok(match self {
            Self::Constant(config) => constant(config, false)?,
            Self::Poisson(config) => constant(config, true)?,
            Self::Step {
                rates,
                each,
                poisson,
            } => (rated(Rate::Steps(rates.clone(), *each), *poisson), None),
            Self::Ramp { from, to, poisson } => (rated(Rate::Ramp(*from, *to), *poisson), None),
            Self::Burst { size, every } => (
                Pattern::Open(Arrivals::Burst {
                    size: *size,
                    every: *every,
                }),
                None,
            ),
        })
    }
}

impl ClosedConfig {
    fn pattern(&self) -> Pattern {
        Pattern::Closed {
            concurrency: self.concurrency,
            think: self.think,
            requests: self.requests,
        }
    }
}

impl RequestConfig {
    /// A `GET` of a path.
    #[must_use]
    pub fn get(name: &str, path: &str) -> Self {
        Self {
            name: name.to_owned(),
            method: None,
            path: path.to_owned(),
            headers: BTreeMap::new(),
            body: None,
            body_bytes: None,
            weight: weight(),
            copies: one(),
            start: None,
            expect_status: None,
            expect_body: None,
        }
    }

    /// The requests that it stands for, on a target.
    ///
    /// # Errors
    /// [`Error::Setting`].
    pub fn requests(&self, target: &Target) -> Result<Vec<Request>, Error> {
        const MAX_BODY_BYTES: usize = 256 << 20;
        let wrong = |reason: &str| Error::setting(format!("request {:?}", self.name), reason);
        let body = match (&self.body, self.body_bytes) {
            (Some(text), None) => Bytes::from(text.clone()),
            (None, Some(bytes)) if bytes <= MAX_BODY_BYTES => Bytes::from(vec![b'd'; bytes]),
            (None, Some(_)) => return Err(wrong("a body has 256 MiB at most")),
            (None, None) => Bytes::new(),
            (Some(_), Some(_)) => return Err(wrong("body and body_bytes exclude each other")),
        };
        let usual = if body.is_empty() { "GET" } else { "POST" };
        let method = self.method.as_deref().unwrap_or(usual);
        let mut headers: Vec<_> = self.headers.clone().into_iter().collect();
        headers.extend(
            self.start
                .iter()
                .map(|start| (START.to_owned(), start.clone())),
        );
        if !(1..=10_000).contains(&self.copies) {
            return Err(wrong("between 1 and 10000 copies"));
        }
        let one = |number: u32| {
            let path = self.path.replace("{n}", &number.to_string());
            let mut request =
                Request::new(&self.name, method, target, &path, &headers, body.clone())?;
            request.expected_status = self.expect_status;
            request.expected_body = self.expect_body.clone().map(Bytes::from);
            Ok(request)
        };
        (0..self.copies).map(one).collect()
    }
}
