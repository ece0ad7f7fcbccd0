//! What a user may set.

use std::time::Duration;

use dormouse_snapshot::{Compression, Layout, Manifest};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::Error;
use crate::paging::Paging;
use crate::verify::Verify;
use crate::worker::Isolation;

/// The name of [`FunctionConfig::layouts`].
const LAYOUTS: &str = "layouts";

/// Limits of a whole pool.
#[derive(Debug, Clone)]
pub struct PoolConfig {
    /// How many invocations may run at once, over all functions.
    pub max_concurrency: usize,
    /// How many requests may wait for one function.
    pub max_queue: usize,
    /// How long a request may wait before it is refused.
    pub queue_timeout: Duration,
    /// How many VM shells are kept ready for each function that is in use.
    pub shells_ahead: usize,
    /// How much memory all instances may hold together, in bytes; three quarters of what is free
    /// when the pool is made, where it is not set. It counts what they hold, not how large their
    /// guests are.
    pub memory_budget_bytes: Option<u64>,
    /// Below how much memory left on the host, or in this process's control group, nothing new is
    /// started and idle instances are ended, in bytes; 0 for never. A request waits then, up to
    /// `queue_timeout`, even where an instance is idle still: its run would take memory too.
    pub memory_floor_bytes: u64,
    /// How many deployments and warmings may run or wait at once.
    pub max_deploys: usize,
    /// Whether a clone that has answered is rolled back in place for the next request. If not, it
    /// gives its memory back, and every request restores a clone of its own.
    pub rolls_back: bool,
    /// When snapshots are compared with their digests.
    pub verify: Verify,
    /// How long the requests may take together that a function is warmed with: others that change
    /// the function, and one cold boot, wait for so long.
    pub warm_timeout: Duration,
    /// Where guests run.
    pub isolation: Isolation,
}

impl Default for PoolConfig {
    fn default() -> Self {
        Self {
            max_concurrency: 64,
            max_queue: 256,
            queue_timeout: Duration::from_secs(10),
            shells_ahead: 2,
            memory_budget_bytes: None,
            memory_floor_bytes: 128 << 20,
            max_deploys: 16,
            rolls_back: true,
            verify: Verify::default(),
            warm_timeout: Duration::from_secs(600),
            isolation: Isolation::default(),
        }
    }
}

/// How one function is booted and run. Stored with its snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FunctionConfig {
    /// Guest memory. At least 16 MiB, a multiple of 2 MiB.
    pub memory_bytes: u64,
    /// How long one invocation may run, milliseconds.
    pub timeout_ms: u64,
    /// How long the cold boot may take until the function is ready, milliseconds.
    pub init_timeout_ms: u64,
    /// How many invocations of this function may run at once.
    pub concurrency: usize,
    /// How clones get their memory; [`Paging::default`] where it is not set.
    pub paging: Option<Paging>,
    /// How the pages of its snapshots are stored that the store does not have yet.
    pub compression: Compression,
    /// Guest-physical base address, a multiple of 2 MiB; random where it is not set.
    pub base: Option<u64>,
    /// How many snapshots the function has, each booted at a base of its own; its requests take turns
    /// between them. From 1 to 16; each has its memory, its instances and its working set.
    pub layouts: u32,
    /// Arguments of the function's `main`, without the program name.
    pub args: Vec<String>,
    /// Environment of the function.
    pub env: Vec<(String, String)>,
}

impl FunctionConfig {
    /// Checks what no other part checks.
    ///
    /// # Errors
    /// [`Error::BadOption`].
    pub(crate) fn check(&self) -> Result<(), Error> {
        const DAY_MS: u64 = 24 * 3600 * 1000;
        let options = [
            ("timeout_ms", self.timeout_ms, DAY_MS),
            ("init_timeout_ms", self.init_timeout_ms, DAY_MS),
            ("concurrency", self.concurrency as u64, 4096),
            (LAYOUTS, u64::from(self.layouts), u64::from(Layout::MOST)),
        ];
        for (option, value, limit) in options {
            if !(1..=limit).contains(&value) {
                return Err(Error::BadOption {
                    option: option.into(),
                    value: value.to_string(),
                    reason: format!("it must be from 1 to {limit}"),
                });
            }
        }
        if self.layouts > 1 && self.base.is_some() {
            return Err(Error::BadOption {
                option: LAYOUTS.into(),
                value: self.layouts.to_string(),
                reason: "at a base that is given there is one; leave the base out".to_owned(),
            });
        }
        Ok(())
    }

    /// Whether a deployment with `self` may keep a snapshot that was made with `stored`. A way of
    /// paging that was found by measuring stays unless another is asked for.
    pub(crate) fn is_served_by(&self, stored: &Self) -> bool {
        let paging = self.paging.or(stored.paging);
        Self {
            paging,
            ..self.clone()
        } == *stored
    }

    /// The same for one layout, that at `base`.
    pub(crate) fn at(&self, base: u64) -> Self {
        Self {
            base: Some(base),
            layouts: 1,
            ..self.clone()
        }
    }

    /// What a snapshot's manifest has of the configuration, and of its layout where there are several.
    ///
    /// # Errors
    /// [`Error::Internal`].
    pub(crate) fn to_stored(&self, layout: Option<&Layout>) -> Result<Value, Error> {
        let failed = |e: serde_json::Error| Error::internal("storing the configuration")(e.into());
        let mut stored = serde_json::to_value(self).map_err(failed)?;
        if let Value::Object(members) = &mut stored {
            if self.layouts == 1 {
                // A build that knows no layouts reads what has none.
                members.remove(LAYOUTS);
            }
            if let Some(layout) = layout {
                let layout = serde_json::to_value(layout).map_err(failed)?;
                members.insert(Layout::MEMBER.to_owned(), layout);
            }
        }
        Ok(stored)
    }

    /// The configuration that a snapshot was made with; checked as a user's is, since files lie.
    ///
    /// # Errors
    /// [`Error::Internal`] where it is none.
    pub(crate) fn stored(manifest: &Manifest) -> Result<Self, Error> {
        let unusable = Error::internal("reading the function's stored configuration");
        let mut config = manifest.config.clone();
        if let Value::Object(members) = &mut config {
            members.remove(Layout::MEMBER);
        }
        let config: Self = match serde_json::from_value(config) {
            Ok(config) => config,
            Err(error) => return Err(unusable(error.into())),
        };
        match config.check() {
            Ok(()) => Ok(config),
            Err(error) => Err(unusable(error.into())),
        }
    }
}

impl Default for FunctionConfig {
    fn default() -> Self {
        Self {
            memory_bytes: 64 << 20,
            timeout_ms: 10_000,
            init_timeout_ms: 60_000,
            concurrency: 8,
            paging: None,
            compression: Compression::None,
            base: None,
            layouts: 1,
            args: Vec::new(),
            env: Vec::new(),
        }
    }
}
