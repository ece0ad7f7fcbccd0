//! Distributions of times, exact to three digits.

use std::fmt;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hdrhistogram::serialization::{Deserializer, Serializer as _, V2DeflateSerializer};
use serde::de::Error as _;
use serde::ser::Error as _;
use serde::{Deserialize, Serialize};

/// Longer times than a day are counted as a day.
const MAX_US: u64 = 24 * 3600 * 1_000_000;
const DIGITS: u8 = 3;

/// Times in microseconds, as an HDR histogram of three significant digits.
///
/// In JSON it is a summary for people and, as `hdr`, the whole histogram: base64 of HdrHistogram's
/// compressed V2 encoding, which every HdrHistogram library reads.
#[derive(Clone)]
pub struct Histogram {
    inner: hdrhistogram::Histogram<u64>,
}

/// A histogram as it stands in JSON.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    count: u64,
    min_us: u64,
    mean_us: f64,
    p50_us: u64,
    p90_us: u64,
    p99_us: u64,
    p999_us: u64,
    max_us: u64,
    hdr: String,
}

impl Default for Histogram {
    fn default() -> Self {
        let mut inner = hdrhistogram::Histogram::new(DIGITS)
            .unwrap_or_else(|_| unreachable!("three digits are allowed"));
        inner.auto(true);
        Self { inner }
    }
}

impl Histogram {
    /// Counts one time.
    pub fn record(&mut self, time: Duration) {
        self.record_us(u64::try_from(time.as_micros()).unwrap_or(u64::MAX));
    }

    /// Counts one time, in microseconds.
    pub fn record_us(&mut self, time_us: u64) {
        // It grows as it must.
        let _ = self.inner.record(time_us.min(MAX_US));
    }

    /// Counts all that another one counted.
    pub fn add(&mut self, other: &Self) {
        let _ = self.inner.add(&other.inner);
    }

    /// How many times were counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.inner.len()
    }

    /// Whether nothing was counted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.inner.is_empty()
    }

    /// The time that a share of all, between 0 and 1, does not exceed, in microseconds; 0 where
    /// nothing was counted.
    #[must_use]
    pub fn quantile_us(&self, share: f64) -> u64 {
        // The upper end of a bucket may lie above all that was counted.
        self.inner.value_at_quantile(share).min(self.inner.max())
    }

    /// The arithmetic mean, in microseconds.
    #[must_use]
    pub fn mean_us(&self) -> f64 {
        self.inner.mean()
    }

    /// The least time, in microseconds.
    #[must_use]
    pub fn min_us(&self) -> u64 {
        self.inner.min()
    }

    /// The greatest time, in microseconds.
    #[must_use]
    pub fn max_us(&self) -> u64 {
        self.inner.max()
    }

    /// What was counted, ascending: times in microseconds, and how often each.
    pub fn counts(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.inner
            .iter_recorded()
            .map(|value| (value.value_iterated_to(), value.count_at_value()))
    }
}

/// The percentiles that matter, for failing assertions.
impl fmt::Debug for Histogram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Histogram")
            .field("count", &self.count())
            .field("p50_us", &self.quantile_us(0.5))
            .field("p99_us", &self.quantile_us(0.99))
            .field("max_us", &self.max_us())
            .finish()
    }
}

impl PartialEq for Histogram {
    fn eq(&self, other: &Self) -> bool {
        self.inner == other.inner
    }
}

impl Serialize for Histogram {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut bytes = Vec::new();
        V2DeflateSerializer::new()
            .serialize(&self.inner, &mut bytes)
            .map_err(S::Error::custom)?;
        Written {
            count: self.count(),
            min_us: self.min_us(),
            mean_us: (self.mean_us() * 1e3).round() / 1e3,
            p50_us: self.quantile_us(0.5),
            p90_us: self.quantile_us(0.9),
            p99_us: self.quantile_us(0.99),
            p999_us: self.quantile_us(0.999),
            max_us: self.max_us(),
            hdr: BASE64.encode(bytes),
        }
        .serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Histogram {
    /// The summary is for people: what counts is the histogram.
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let written = Written::deserialize(deserializer)?;
        let bytes = BASE64.decode(&written.hdr).map_err(D::Error::custom)?;
        let mut inner: hdrhistogram::Histogram<u64> = Deserializer::new()
            .deserialize(&mut bytes.as_slice())
            .map_err(|error| D::Error::custom(format!("not an HdrHistogram: {error:?}")))?;
        inner.auto(true);
        if inner.len() != written.count {
            return Err(D::Error::custom(format!(
                "a histogram of {} times says that it has {}",
                inner.len(),
                written.count
            )));
        }
        Ok(Self { inner })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(times_us: impl IntoIterator<Item = u64>) -> Histogram {
        let mut histogram = Histogram::default();
        times_us.into_iter().for_each(|us| histogram.record_us(us));
        histogram
    }

    #[test]
    fn quantiles_are_exact_to_three_digits() {
        let histogram = of(1..=100_000);
        for (share, exact) in [(0.5, 50_000.0), (0.9, 90_000.0), (0.999, 99_900.0)] {
            let read = histogram.quantile_us(share) as f64;
            assert!((read / exact - 1.0).abs() < 0.001, "{share}: {read}");
        }
        assert_eq!((histogram.min_us(), histogram.count()), (1, 100_000));
        assert_eq!(of([]).quantile_us(0.99), 0);
        assert!(of([]).is_empty());
    }

    #[test]
    fn no_quantile_is_above_the_greatest_time() {
        let histogram = of([1_234_567, 3]);
        assert_eq!(histogram.quantile_us(1.0), histogram.max_us());
        assert_eq!(histogram.quantile_us(0.999), histogram.max_us());
    }

    #[test]
    fn what_takes_for_ever_counts_as_a_day() {
        let mut histogram = of([]);
        histogram.record(Duration::MAX);
        let day_us = MAX_US as f64;
        assert!((histogram.max_us() as f64 / day_us - 1.0).abs() < 0.001);
    }

    #[test]
    fn adding_up_is_recording_all() {
        let mut low = of(0..1000);
        low.add(&of(1_000_000..1_000_500));
        assert_eq!(low, of((0..1000).chain(1_000_000..1_000_500)));
        let total: u64 = low.counts().map(|(_, count)| count).sum();
        assert_eq!(total, 1500);
    }

    #[test]
    fn json_keeps_the_whole_histogram() {
        let histogram = of([1, 10, 100, 1000, 123_456]);
        let json = serde_json::to_string(&histogram).unwrap();
        assert_eq!(serde_json::from_str::<Histogram>(&json).unwrap(), histogram);
        assert!(json.contains("\"count\":5"), "{json}");
        let mut grown: Histogram = serde_json::from_str(&json).unwrap();
        grown.record_us(10_000_000_000);
        assert_eq!(grown.count(), 6);
    }

    #[test]
    fn garbage_is_refused() {
        let json = serde_json::to_value(of([5])).unwrap();
        for (member, value) in [
            ("hdr", "!".into()),
            ("hdr", "AAAA".into()),
            ("count", 7.into()),
            ("more", 1.into()),
        ] {
            let mut wrong: serde_json::Value = json.clone();
            wrong[member] = value;
            assert!(
                serde_json::from_value::<Histogram>(wrong).is_err(),
                "{member}"
            );
        }
    }
}
