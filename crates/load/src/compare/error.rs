//! What can go wrong, in one sentence each, with the next step.

use super::Metric;

/// Why records cannot be compared.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CompareError {
    /// No run has the name that was asked for, on one side or both.
    #[error(
        "no run {run:?} in {side}: the base has {}, the new record has {}",
        names(base),
        names(new)
    )]
    NoSuchRun {
        /// The name, or the pattern of names, that was asked for.
        run: String,
        /// Where it is not: `the base`, `the new record`, `either record`.
        side: &'static str,
        /// The names of the base's runs.
        base: Vec<String>,
        /// The names of the new record's runs.
        new: Vec<String>,
    },

    /// No name of a run is on both sides.
    #[error(
        "no run is in both records: the base has {}, the new record has {}; measure both in the \
         same way, or give the name of a run",
        names(base),
        names(new)
    )]
    NothingInCommon {
        /// The names of the base's runs.
        base: Vec<String>,
        /// The names of the new record's runs.
        new: Vec<String>,
    },

    /// What was given for the runs' names is no pattern.
    #[error(
        "{run:?} is no pattern for names of runs: {source}; `*` stands for any text, `?` for one \
         character, `[ab]` for one of these"
    )]
    BadPattern {
        /// What was given.
        run: String,
        /// What is wrong with it.
        source: glob::PatternError,
    },

    /// A value of the config is not allowed.
    #[error("{name} of a comparison is {value}, but has to be {allowed}")]
    BadConfig {
        /// The config's field.
        name: &'static str,
        /// Its value.
        value: String,
        /// What it may be.
        allowed: &'static str,
    },

    /// There is no metric of that name.
    #[error("there is no metric {name:?}: take one of {}", Metric::ALL.map(Metric::name).join(", "))]
    NoSuchMetric {
        /// The name.
        name: String,
    },
}

/// Names as one text. A record of thousands of runs does not fill the screen.
fn names(all: &[String]) -> String {
    const SHOWN: usize = 20;
    let shown: Vec<String> = all
        .iter()
        .take(SHOWN)
        .map(|name| format!("{name:?}"))
        .collect();
    match (shown.is_empty(), all.len().saturating_sub(SHOWN)) {
        (true, _) => "none".to_owned(),
        (_, 0) => shown.join(", "),
        (_, more) => format!("{} and {more} more", shown.join(", ")),
    }
}
