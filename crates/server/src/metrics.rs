//! What `/metrics` says: the replies of this server, and the pool's own counters at every scrape.

use std::time::Duration;

use axum::http::StatusCode;
use dormouse_pool::{FunctionStats, Pool, Timings};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::ROUTES;

/// The content type of [`Metrics::text`].
pub(crate) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reply {
    route: &'static str,
    status: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Route {
    route: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Refusal {
    /// The limit, as the server's option names it.
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Function {
    function: String,
}

/// From 16 µs to 17 s in powers of four.
fn latency() -> Histogram {
    Histogram::new(exponential_buckets(16e-6, 4.0, 11))
}

type Latency<L> = Family<L, Histogram, fn() -> Histogram>;

/// The server's counters and the registry that writes them.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    replies: Family<Reply, Counter>,
    reply_seconds: Latency<Route>,
    restore_seconds: Latency<Function>,
    run_seconds: Latency<Function>,
}

impl Metrics {
    pub(crate) fn new(pool: Pool) -> Self {
        let mut registry = Registry::with_prefix("dormouse");
        let replies = Family::default();
        registry.register("replies", "HTTP replies", replies.clone());
        let mut histogram = |name: &str, help: &str| -> Latency<Function> {
            let family = Latency::new_with_constructor(latency);
            registry.register(name, help, family.clone());
            family
        };
        let restore_seconds = histogram("restore_seconds", "Time to make an instance");
        let run_seconds = histogram("run_seconds", "Time that a function ran for an invocation");
        let reply_seconds = Latency::new_with_constructor(latency as fn() -> Histogram);
        registry.register(
            "reply_seconds",
            "Time from a request's head to its reply",
            reply_seconds.clone(),
        );
        registry.register_collector(Box::new(PoolCollector(pool)));
        Self {
            registry,
            replies,
            reply_seconds,
            restore_seconds,
            run_seconds,
        }
    }

    /// A reply went out. `path` is the route's, as axum matched it.
    pub(crate) fn replied(&self, path: Option<&str>, status: StatusCode, took: Duration) {
        let route = path.and_then(known_path).unwrap_or("none");
        self.replies
            .get_or_create(&Reply {
                route,
                status: status.as_u16(),
            })
            .inc();
        self.reply_seconds
            .get_or_create(&Route { route })
            .observe(took.as_secs_f64());
    }

    /// An instance ran.
    pub(crate) fn invoked(&self, function: &str, timings: &Timings) {
        let label = Function {
            function: function.to_owned(),
        };
        let seconds = |us: u64| Duration::from_micros(us).as_secs_f64();
        self.restore_seconds
            .get_or_create(&label)
            .observe(seconds(timings.restore_us));
        self.run_seconds
            .get_or_create(&label)
            .observe(seconds(timings.run_us));
    }

    /// A function is gone, and with it its rows.
    pub(crate) fn removed(&self, function: &str) {
        let label = Function {
            function: function.to_owned(),
        };
        self.restore_seconds.remove(&label);
        self.run_seconds.remove(&label);
    }

    /// Everything in the OpenMetrics text format, which Prometheus reads.
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

/// The table's own copy of a path, so that a label costs no allocation.
fn known_path(path: &str) -> Option<&'static str> {
    ROUTES
        .iter()
        .map(|route| route.path)
        .find(|known| *known == path || known.strip_suffix("{*path}") == Some(path))
}

/// The pool's counters, read at every scrape.
#[derive(Debug)]
struct PoolCollector(Pool);

/// Name, help and value of one counter of a function.
type FunctionCounter = (&'static str, &'static str, fn(&FunctionStats) -> u64);

const FUNCTION_COUNTERS: [FunctionCounter; 8] = [
    ("invocations", "Invocations that ran", |s| s.invocations),
    ("failures", "Invocations that the function failed", |s| {
        s.failures
    }),
    ("timeouts", "Invocations over their time", |s| s.timeouts),
    ("refused", "Requests refused because of limits", |s| {
        s.refused
    }),
    (
        "crash_loops",
        "Times that the function did nothing but crash, and was let rest",
        |s| s.crash_loops,
    ),
    ("restore_microseconds", "Time spent making instances", |s| {
        s.restore_us_total
    }),
    ("run_microseconds", "Time spent running functions", |s| {
        s.run_us_total
    }),
    ("page_faults", "Page faults served during runs", |s| {
        s.faults_total
    }),
];

impl Collector for PoolCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let stats = self.0.stats();
        for (name, help, value) in [
            ("running", "Invocations that run now", stats.running),
            (
                "waiting",
                "Requests that wait for an instance",
                stats.waiting,
            ),
            ("shells", "VM shells that are ready", stats.shells),
            (
                "memory_budget_bytes",
                "Memory that instances may hold together",
                stats.memory_budget_bytes,
            ),
            (
                "memory_held_bytes",
                "Memory that instances hold, or that is reserved for what runs",
                stats.memory_held_bytes,
            ),
            (
                "memory_low",
                "1 while the host has less memory left than --memory-floor, and nothing starts",
                stats.memory_is_low.into(),
            ),
        ] {
            let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        let mut refusals = encoder.encode_descriptor(
            "memory_refusals",
            "Requests and deployments that waited for memory in vain",
            None,
            MetricType::Counter,
        )?;
        for (reason, count) in [
            ("budget", stats.refused_over_budget),
            ("floor", stats.refused_low_memory),
        ] {
            let label = Refusal { reason };
            ConstCounter::new(count).encode(refusals.encode_family(&label)?)?;
        }
        let damaged = ConstCounter::new(stats.damaged_snapshots);
        damaged.encode(encoder.encode_descriptor(
            "damaged_snapshots",
            "Snapshots that were found to be damaged",
            None,
            damaged.metric_type(),
        )?)?;
        for (name, help, read) in FUNCTION_COUNTERS {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (function, stats) in &stats.functions {
                let label = Function {
                    function: function.clone(),
                };
                ConstCounter::new(read(stats)).encode(family.encode_family(&label)?)?;
            }
        }
        Ok(())
    }
}
