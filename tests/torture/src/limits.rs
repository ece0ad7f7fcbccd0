//! How much of a store's history is to be kept.

use std::time::{Duration, SystemTime};

use dormouse_snapshot::RetentionConfig;
use rand::RngExt;
use rand::rngs::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::content::Content;

/// Limits for the history of a store, as a number each.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// How many snapshots each function keeps.
    pub keep_last: Option<u32>,
    /// How old snapshots may become.
    pub max_age_ms: Option<u64>,
    /// How many bytes on disk the store may have.
    pub max_bytes: Option<u64>,
}

impl Limits {
    /// Some limits, which are often those of few snapshots.
    #[must_use]
    pub fn any(rng: &mut ChaCha8Rng) -> Self {
        Self {
            keep_last: rng.random_bool(0.8).then(|| rng.random_range(0..3)),
            max_age_ms: rng.random_bool(0.3).then(|| rng.random_range(0..40)),
            max_bytes: rng.random_bool(0.3).then(|| rng.random_range(0..500_000)),
        }
    }

    pub(crate) fn config(&self) -> RetentionConfig {
        RetentionConfig {
            keep_last: self.keep_last,
            max_age: self.max_age_ms.map(Duration::from_millis),
            max_bytes: self.max_bytes,
        }
    }

    /// The time at which they are applied, the same on every day: just after all snapshots.
    pub(crate) fn now(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_millis(Content(40).created_unix_ms())
    }

    /// Whether a snapshot with this content, and with so many newer ones of its function, is over a
    /// limit of its function's history.
    pub(crate) fn are_passed_by(&self, content: Content, newer: u32) -> bool {
        let created = Duration::from_millis(content.created_unix_ms());
        let age = self.now().duration_since(SystemTime::UNIX_EPOCH + created);
        let age_ms = age.unwrap_or_default().as_millis();
        self.keep_last.is_some_and(|most| newer >= most)
            || self
                .max_age_ms
                .is_some_and(|most| age_ms > u128::from(most))
    }
}
