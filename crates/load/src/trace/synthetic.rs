//! Traces that are made up, for machines without the published data.

use std::time::Duration;

use rand::rngs::ChaCha8Rng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_distr::{LogNormal, Poisson};

use super::azure2021::SYNTHETIC;
use super::error::{Error, Result};
use super::sample::{micros, positive, too_many};
use super::{Invocation, MAX_FUNCTIONS, MAX_INVOCATIONS, Source, Trace, TracedFunction};

/// What a synthetic trace is to be like.
#[derive(Debug, Clone, PartialEq)]
pub struct SyntheticConfig {
    /// How many functions.
    pub functions: usize,
    /// How long the trace lasts.
    pub span: Duration,
    /// Invocations per second, on average.
    pub rate_per_s: f64,
    /// Decides everything that is left to chance: the same seed gives the same trace.
    pub seed: u64,
}

impl Default for SyntheticConfig {
    /// Ten minutes in which about forty of the functions are invoked: the trace that is kept as
    /// `crates/load/traces/synthetic-10min.csv`.
    fn default() -> Self {
        Self {
            functions: 120,
            span: Duration::from_secs(600),
            rate_per_s: 3.0,
            seed: 1,
        }
    }
}

/// Standard deviation of the logarithm of the functions' rates.
const POPULARITY_SIGMA: f64 = 3.5;
/// Functions that a timer invokes, and the share of the invocations that they get at most.
const TIMERS: f64 = 0.16;
const TIMER_INVOCATIONS: f64 = 0.1;
/// Seconds between two invocations by timers, of which each is as frequent as it is named here.
const PERIODS_S: [u64; 10] = [60, 60, 60, 60, 300, 300, 300, 900, 900, 3600];
/// Timers fire at the full minute, each with its own delay up to this.
const TIMER_DELAY_US: u64 = 1_000_000;

/// The logarithm of a function's mean duration, in seconds: mean and standard deviation.
const DURATION_MU: f64 = -0.38;
const DURATION_SIGMA: f64 = 2.36;
/// Standard deviation of the logarithm of the durations of one function.
const SPREAD_SIGMA: f64 = 0.5;
/// The longest that a function of Azure's consumption plan may run.
const MAX_DURATION_S: f64 = 600.0;

/// Memory of apps, in MiB: a Burr distribution.
const BURR_C: f64 = 11.652;
const BURR_K: f64 = 0.221;
const BURR_SCALE_MIB: f64 = 107.083;

/// Functions that come in bursts, the chance of a minute in which one begins or ends, and how much
/// busier than the rest such a minute is.
const BURSTY: f64 = 0.4;
const BURST_BEGINS: f64 = 0.05;
const BURST_ENDS: f64 = 0.3;
const BURST_FACTOR: f64 = 20.0;

/// The daily curve swings by this share of its mean.
const DAILY_SWING: f64 = 0.3;

const MINUTE_US: u64 = 60_000_000;
const DAY_US: f64 = 86_400e6;

impl Trace {
    /// Makes up a trace that is like the published ones in what "Serverless in the Wild" (Shahrad
    /// et al., USENIX ATC 2020) says of them:
    ///
    /// - popularity: the rates are log-normal with σ = 3.5, so that they lie up to eight orders of
    ///   magnitude apart, and the most popular fifth (timers aside) has 99.6 % of the invocations;
    /// - durations: the functions' means are log-normal with μ = -0.38 and σ = 2.36 (of seconds: the
    ///   median is 0.68 s), around which single invocations are spread log-normally with σ = 0.5,
    ///   in whole milliseconds and 10 minutes at most. Any number of the most popular functions has
    ///   short and long ones in equal parts, so that small traces are not all one or the other;
    /// - triggers: 16 % of the functions are timers that fire exactly each minute, 5 minutes,
    ///   15 minutes or hour, as long as they have no more than a tenth of the invocations
    ///   (published: 2 %);
    /// - memory: a Burr distribution with c = 11.652, k = 0.221 and scale 107.083 MiB;
    /// - time: a daily curve, and Poisson arrivals within the minute. Of the other functions 40 %
    ///   come in bursts of some minutes, twenty times as busy as between: the paper has as many
    ///   apps whose arrivals vary more than Poisson's, but burst lengths are this generator's own.
    ///
    /// It does not reproduce apps of several functions, weeks, triggers other than `timer` and
    /// `http`, or functions that wait for each other.
    ///
    /// # Errors
    ///
    /// A setting is out of its range, or the trace does not fit into memory.
    pub fn synthetic(config: &SyntheticConfig) -> Result<Self> {
        check(config)?;
        let mut rng = ChaCha8Rng::seed_from_u64(config.seed);
        let span_us = micros(config.span);
        let expected = config.rate_per_s * config.span.as_secs_f64();
        if expected > MAX_INVOCATIONS as f64 {
            return Err(too_many(expected as u64, span_us));
        }
        let timers = timers(config);
        let timer_rate: f64 = timers.iter().map(|period_s| 1.0 / *period_s as f64).sum();
        let others =
            log_normal_classes(&mut rng, config.functions - timers.len(), POPULARITY_SIGMA);
        let weights: f64 = others.iter().sum();
        let rest = (config.rate_per_s - timer_rate) / weights;
        let mut arrivals: Vec<Arrivals> = others
            .iter()
            .map(|weight| Arrivals::Random {
                rate_per_s: weight * rest,
            })
            .chain(timers.iter().map(|period_s| Arrivals::Timer {
                period_us: period_s * 1_000_000,
            }))
            .collect();
        arrivals.sort_by(|one, other| other.rate_per_s().total_cmp(&one.rate_per_s()));
        let means = balanced(log_normal_classes(&mut rng, arrivals.len(), DURATION_SIGMA));

        let mut functions = Vec::with_capacity(arrivals.len());
        let mut invocations = Vec::new();
        let mut times = Vec::new();
        for (number, (arrivals, mean)) in (0..).zip(arrivals.iter().zip(means)) {
            functions.push(TracedFunction {
                app: format!("{SYNTHETIC}app"),
                name: format!("{SYNTHETIC}{number:04}"),
                trigger: Some(arrivals.trigger().to_owned()),
                memory_mib: memory_mib(&mut rng),
            });
            times.clear();
            arrivals.draw(&mut rng, span_us, &mut times);
            for at_us in &times {
                let spread = log_normal(&mut rng, SPREAD_SIGMA);
                let duration_s = (DURATION_MU.exp() * mean * spread).min(MAX_DURATION_S);
                invocations.push(Invocation {
                    at_us: *at_us,
                    function: number,
                    duration_us: (duration_s * 1000.0).round().max(1.0) as u64 * 1000,
                });
            }
        }
        invocations.sort_unstable();
        Ok(Self {
            source: Source::Synthetic,
            span: config.span,
            functions,
            invocations,
            capped: 0,
        })
    }
}

fn check(config: &SyntheticConfig) -> Result<()> {
    let invalid = |setting, value: String, expected| {
        Err(Error::InvalidConfig {
            setting,
            value,
            expected,
        })
    };
    if !(1..=MAX_FUNCTIONS).contains(&config.functions) {
        let value = config.functions.to_string();
        return invalid("functions", value, "from 1 to 250000");
    }
    let (shortest, longest) = (Duration::from_secs(1), Duration::from_secs(31 * 86_400));
    if !(shortest..=longest).contains(&config.span) {
        let value = format!("{} s", config.span.as_secs_f64());
        return invalid("span", value, "from a second to 31 days");
    }
    if !positive(config.rate_per_s) {
        let value = config.rate_per_s.to_string();
        return invalid("rate_per_s", value, "more than 0");
    }
    Ok(())
}

/// The periods of all timers, in seconds.
fn timers(config: &SyntheticConfig) -> Vec<u64> {
    let most = (config.functions as f64 * TIMERS) as usize;
    let mut rate_per_s = 0.0;
    let mut periods = PERIODS_S;
    // Few timers are of every period as well.
    periods.shuffle(&mut ChaCha8Rng::seed_from_u64(config.seed));
    let periods = periods.iter().cycle().take(most);
    periods
        .take_while(|period_s| {
            rate_per_s += 1.0 / **period_s as f64;
            rate_per_s <= config.rate_per_s * TIMER_INVOCATIONS
        })
        .copied()
        .collect()
}

fn log_normal(rng: &mut ChaCha8Rng, sigma: f64) -> f64 {
    // It fails for a σ that is negative or not finite: here all are constants.
    LogNormal::new(0.0, sigma).map_or(1.0, |distribution| rng.sample(distribution))
}

/// Values of a log-normal distribution with μ = 0, the largest first: means of equally many
/// neighbours among many draws, so that few values are distributed like many.
fn log_normal_classes(rng: &mut ChaCha8Rng, values: usize, sigma: f64) -> Vec<f64> {
    const DRAWS: usize = 200_000;
    let each = (DRAWS / values.max(1)).max(1);
    let mut draws: Vec<f64> = (0..values * each).map(|_| log_normal(rng, sigma)).collect();
    draws.sort_by(|one, other| other.total_cmp(one));
    let mean = |class: &[f64]| class.iter().sum::<f64>() / class.len() as f64;
    draws.chunks(each).map(mean).collect()
}

/// Puts sorted values into an order of which every beginning has large and small ones in equal
/// parts, the middle one first: van der Corput's.
fn balanced(values: Vec<f64>) -> Vec<f64> {
    let bits = usize::BITS - values.len().leading_zeros();
    let places = (1..1_usize << bits).map(|number| number.reverse_bits() >> (usize::BITS - bits));
    // Places are spread over a power of two: those between two values are passed over.
    let size = 1_usize << bits;
    let mut taken = vec![false; values.len()];
    let mut order = Vec::with_capacity(values.len());
    for place in places.chain([0]).map(|place| place * values.len() / size) {
        if let (Some(taken), Some(value)) = (taken.get_mut(place), values.get(place))
            && !std::mem::replace(taken, true)
        {
            order.push(*value);
        }
    }
    order
}

fn memory_mib(rng: &mut ChaCha8Rng) -> f64 {
    let above = 1.0 - rng.random::<f64>();
    let mib = BURR_SCALE_MIB * (above.powf(-1.0 / BURR_K) - 1.0).powf(1.0 / BURR_C);
    // The distribution's own tail goes beyond what an app of Azure could have.
    mib.min(1536.0).round()
}

/// When a function is invoked.
enum Arrivals {
    Timer { period_us: u64 },
    Random { rate_per_s: f64 },
}

impl Arrivals {
    fn rate_per_s(&self) -> f64 {
        match self {
            Self::Timer { period_us } => 1e6 / *period_us as f64,
            Self::Random { rate_per_s } => *rate_per_s,
        }
    }

    fn trigger(&self) -> &'static str {
        match self {
            Self::Timer { .. } => "timer",
            Self::Random { .. } => "http",
        }
    }

    fn draw(&self, rng: &mut ChaCha8Rng, span_us: u64, times: &mut Vec<u64>) {
        match self {
            Self::Timer { period_us } => {
                let first = rng.random_range(0..TIMER_DELAY_US.min(span_us));
                times.extend((first..span_us).step_by(*period_us as usize));
            }
            Self::Random { rate_per_s } => {
                let minutes = minutes(rng, span_us);
                let sum: f64 = minutes.iter().sum();
                let expected = rate_per_s * span_us as f64 / 1e6;
                for (minute, share) in (0..).zip(minutes) {
                    let start_us = minute * MINUTE_US;
                    let end_us = (start_us + MINUTE_US).min(span_us);
                    // It fails for a mean of 0, and has none then.
                    let count = Poisson::new(expected * share / sum);
                    let count = count.map_or(0.0, |count| rng.sample(count)) as u64;
                    times.extend((0..count).map(|_| rng.random_range(start_us..end_us)));
                }
            }
        }
    }
}

/// How busy a function is in each minute, compared with its other minutes.
fn minutes(rng: &mut ChaCha8Rng, span_us: u64) -> Vec<f64> {
    let bursty = rng.random_bool(BURSTY);
    let mut burst = rng.random_bool(BURST_BEGINS / (BURST_BEGINS + BURST_ENDS));
    (0..span_us.div_ceil(MINUTE_US))
        .map(|minute| {
            let start_us = minute * MINUTE_US;
            let length_us = (span_us - start_us).min(MINUTE_US);
            let day = std::f64::consts::TAU * start_us as f64 / DAY_US;
            let daily = 1.0 + DAILY_SWING * day.sin();
            let busy = if bursty && burst { BURST_FACTOR } else { 1.0 };
            burst = rng.random_bool(if burst {
                1.0 - BURST_ENDS
            } else {
                BURST_BEGINS
            });
            length_us as f64 * daily * busy
        })
        .collect()
}
