//! A run for each combination of functions, starts, payloads and numbers of clients.

use serde::Deserialize;

use crate::plan::Pattern;
use crate::scenario::{HowConfig, Prepared, RequestConfig};
use crate::{Error, Target};

/// More runs than this are a mistake.
const MAX_RUNS: usize = 10_000;

/// The properties that are combined. Each run is a closed loop.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MatrixConfig {
    /// Functions of a Dormouse, by name.
    pub functions: Vec<String>,
    /// The path, and the query, that they get.
    #[serde(default = "slash")]
    pub path: String,
    /// How their instances are to start; as the target likes where it is empty.
    #[serde(default)]
    pub starts: Vec<String>,
    /// Bodies of so many bytes.
    #[serde(default = "no_payload")]
    pub payload_bytes: Vec<usize>,
    /// Clients side by side.
    #[serde(default = "one_client")]
    pub concurrency: Vec<u32>,
    /// How many requests each run sends at most.
    pub requests: Option<u64>,
    /// How often all runs are made, one after the other, so that what changes over time changes for
    /// all; each is a run of its own, with its number behind its name.
    #[serde(default = "one_round")]
    pub rounds: u32,
    /// How runs are done.
    #[serde(default)]
    pub how: HowConfig,
}

fn slash() -> String {
    "/".to_owned()
}

fn no_payload() -> Vec<usize> {
    vec![0]
}

fn one_client() -> Vec<u32> {
    vec![1]
}

fn one_round() -> u32 {
    1
}

impl MatrixConfig {
    /// # Errors
    /// [`Error::Setting`] where there are none or far too many, or one makes no sense.
    pub(crate) fn plans(&self, target: &Target, seed: u64) -> Result<Vec<Prepared>, Error> {
        let starts: Vec<Option<&String>> = if self.starts.is_empty() {
            vec![None]
        } else {
            self.starts.iter().map(Some).collect()
        };
        let sizes = [
            self.functions.len(),
            starts.len(),
            self.payload_bytes.len(),
            self.concurrency.len(),
            self.rounds as usize,
        ];
        let count = sizes
            .iter()
            .fold(1, |product: usize, size| product.saturating_mul(*size));
        if count == 0 || count > MAX_RUNS {
            let reason = format!("it makes {count} runs; 1 to {MAX_RUNS} are possible");
            return Err(Error::setting("matrix", reason));
        }
        let mut plans = Vec::with_capacity(count);
        for round in 1..=self.rounds {
            for function in &self.functions {
                for start in &starts {
                    for payload_bytes in &self.payload_bytes {
                        for concurrency in &self.concurrency {
                            plans.push(self.one(
                                (function, *start, *payload_bytes, *concurrency, round),
                                target,
                                seed,
                            )?);
                        }
                    }
                }
            }
        }
        Ok(plans)
    }

    fn one(
        &self,
        (function, start, payload_bytes, concurrency, round): (
            &str,
            Option<&String>,
            usize,
            u32,
            u32,
        ),
        target: &Target,
        seed: u64,
    ) -> Result<Prepared, Error> {
        let mut name = vec![function.to_owned()];
        name.extend(start.cloned());
        if self.payload_bytes.len() > 1 {
            name.push(format!("{payload_bytes} B"));
        }
        if self.concurrency.len() > 1 {
            name.push(format!("{concurrency} at once"));
        }
        if self.rounds > 1 {
            name.push(format!("round {round}"));
        }
        let path = format!("/v1/functions/{function}/invoke{}", self.path);
        let request = RequestConfig {
            body_bytes: Some(payload_bytes),
            start: start.cloned(),
            ..RequestConfig::get(function, &path)
        };
        let requests = request.requests(target)?;
        let pattern = Pattern::Closed {
            concurrency,
            think: std::time::Duration::ZERO,
            requests: self.requests,
        };
        Ok(Prepared {
            plan: self
                .how
                .plan(&name.join("/"), pattern, requests, vec![1.0], seed),
            of_capacity: None,
        })
    }
}
