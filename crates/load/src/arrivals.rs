//! When requests come in an open loop.
//!
//! Times are those of a unit process (one arrival per unit, evenly or as a Poisson process has them)
//! stretched by the rate: the n-th request comes when the rate, summed up over time, reaches the
//! unit process's n-th time. So a step or a ramp keeps its shape to the single request.

use std::sync::Arc;
use std::time::Duration;

use rand::SeedableRng;
use rand::distr::Distribution;
use rand::distr::weighted::WeightedIndex;
use rand::rngs::ChaCha8Rng;
use rand_distr::Exp1;

use crate::Error;

/// A request's intended time, and which it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arrival {
    /// When it is to be sent, after the run's beginning.
    pub at: Duration,
    /// Which of the plan's requests.
    pub request: usize,
}

/// Requests per second over time.
#[derive(Debug, Clone, PartialEq)]
pub enum Rate {
    /// Always the same.
    Constant(f64),
    /// One after the other, each for as long as that; then again from the first.
    Steps(Vec<f64>, Duration),
    /// From the one, at the beginning, to the other, at the end, in a straight line.
    Ramp(f64, f64),
}

/// When requests come.
#[derive(Debug, Clone, PartialEq)]
pub enum Arrivals {
    /// At a rate, evenly or at random (Poisson).
    Rated {
        /// The rate.
        rate: Rate,
        /// Whether they come at random.
        is_poisson: bool,
    },
    /// So many at once, then so long none.
    Burst {
        /// How many.
        size: u32,
        /// From one burst to the next.
        every: Duration,
    },
    /// As somebody saw them come. Ascending.
    Listed(Arc<[Arrival]>),
}

impl Rate {
    /// The time at which the rate, summed up from the beginning of a run of `length`, reaches `n`;
    /// nothing where it never does.
    fn reached_s(&self, n: f64, length: Duration) -> Option<f64> {
        let time_s = match self {
            Self::Constant(rate) => n / rate,
            Self::Steps(rates, each) => {
                let each_s = each.as_secs_f64();
                let round: f64 = rates.iter().sum::<f64>() * each_s;
                let rounds = (n / round).floor();
                let mut rest = n - rounds * round;
                let mut time_s = rounds * each_s * rates.len() as f64;
                for rate in rates {
                    if rest < rate * each_s {
                        time_s += rest / rate;
                        return Some(time_s);
                    }
                    rest -= rate * each_s;
                    time_s += each_s;
                }
                time_s
            }
            // from·t + (to − from)/2·t²/T = n, in the form that does not cancel out.
            Self::Ramp(from, to) => {
                let slope = (to - from) / length.as_secs_f64();
                let root = from * from + 2.0 * slope * n;
                if root < 0.0 {
                    return None;
                }
                if n == 0.0 {
                    return Some(0.0);
                }
                2.0 * n / (from + root.sqrt())
            }
        };
        time_s.is_finite().then_some(time_s)
    }

    /// The greatest rate that there is.
    #[must_use]
    pub fn max(&self) -> f64 {
        match self {
            Self::Constant(rate) => *rate,
            Self::Steps(rates, _) => rates.iter().copied().fold(0.0, f64::max),
            Self::Ramp(from, to) => from.max(*to),
        }
    }

    fn check(&self) -> Result<(), Error> {
        let rates = match self {
            Self::Constant(rate) => vec![*rate],
            Self::Steps(rates, each) => {
                if rates.is_empty() || each.is_zero() {
                    return Err(Error::setting(
                        "arrivals",
                        "steps need rates and a time above 0 for each",
                    ));
                }
                rates.clone()
            }
            Self::Ramp(from, to) => vec![*from, *to],
        };
        let wrong = rates
            .iter()
            .find(|rate| !(rate.is_finite() && (0.0..=1e7).contains(*rate)));
        if let Some(rate) = wrong {
            let reason = format!("a rate is between 0 and 10000000 per second, not {rate}");
            return Err(Error::setting("arrivals", reason));
        }
        if self.max() <= 0.0 {
            return Err(Error::setting("arrivals", "a rate of 0 sends nothing"));
        }
        Ok(())
    }
}

impl Arrivals {
    /// # Errors
    /// [`Error::Setting`] where nothing, or far too much, would come.
    pub(crate) fn check(&self) -> Result<(), Error> {
        match self {
            Self::Rated { rate, .. } => rate.check(),
            Self::Burst { size, every } if *size == 0 || every.is_zero() => Err(Error::setting(
                "arrivals",
                "a burst has 1 request at least, and a time above 0 to the next one",
            )),
            Self::Burst { .. } => Ok(()),
            Self::Listed(list) if list.is_empty() => {
                Err(Error::setting("arrivals", "the trace has no invocation"))
            }
            Self::Listed(_) => Ok(()),
        }
    }

    /// The requests of a run of `length`, in order. `weights` says how often each comes; a list has
    /// its own.
    ///
    /// # Errors
    /// [`Error::Setting`] where the weights are none.
    pub(crate) fn schedule(
        &self,
        length: Duration,
        weights: &[f64],
        seed: u64,
    ) -> Result<Schedule, Error> {
        Ok(Schedule {
            arrivals: self.clone(),
            length,
            choice: Choice::new(weights, seed)?,
            spacing: ChaCha8Rng::seed_from_u64(seed ^ 0x5eed),
            reached: 0.0,
            sent: 0,
        })
    }
}

/// Which request comes, by chance and the same for the same seed.
#[derive(Debug)]
pub(crate) struct Choice {
    index: WeightedIndex<f64>,
    random: ChaCha8Rng,
}

impl Choice {
    pub(crate) fn new(weights: &[f64], seed: u64) -> Result<Self, Error> {
        let index = WeightedIndex::new(weights)
            .map_err(|error| Error::setting("weight", error.to_string()))?;
        Ok(Self {
            index,
            random: ChaCha8Rng::seed_from_u64(seed),
        })
    }

    pub(crate) fn next(&mut self) -> usize {
        self.index.sample(&mut self.random)
    }
}

/// The requests of a run, in order.
#[derive(Debug)]
pub(crate) struct Schedule {
    arrivals: Arrivals,
    length: Duration,
    choice: Choice,
    spacing: ChaCha8Rng,
    /// How far the unit process has come.
    reached: f64,
    sent: u64,
}

impl Iterator for Schedule {
    type Item = Arrival;

    fn next(&mut self) -> Option<Arrival> {
        let at = match &self.arrivals {
            Arrivals::Rated { rate, is_poisson } => {
                if *is_poisson {
                    let gap: f64 = Exp1.sample(&mut self.spacing);
                    self.reached += gap;
                } else {
                    self.reached = self.sent as f64;
                }
                let time_s = rate.reached_s(self.reached, self.length)?;
                Duration::try_from_secs_f64(time_s).ok()?
            }
            Arrivals::Burst { size, every } => {
                let burst = u32::try_from(self.sent / u64::from(*size)).ok()?;
                every.checked_mul(burst)?
            }
            Arrivals::Listed(list) => {
                let arrival = *list.get(usize::try_from(self.sent).ok()?)?;
                self.sent += 1;
                return (arrival.at < self.length).then_some(arrival);
            }
        };
        self.sent += 1;
        (at < self.length).then(|| Arrival {
            at,
            request: self.choice.next(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn times_s(arrivals: &Arrivals, length: Duration) -> Vec<f64> {
        arrivals.check().unwrap();
        let schedule = arrivals.schedule(length, &[1.0], 7).unwrap();
        schedule.map(|arrival| arrival.at.as_secs_f64()).collect()
    }

    fn even(rate: Rate) -> Arrivals {
        Arrivals::Rated {
            rate,
            is_poisson: false,
        }
    }

    fn between(times_s: &[f64], from: f64, to: f64) -> usize {
        times_s
            .iter()
            .filter(|time| (from..to).contains(*time))
            .count()
    }

    #[test]
    fn a_constant_rate_is_even() {
        let times = times_s(&even(Rate::Constant(4.0)), Duration::from_secs(1));
        assert_eq!(times, [0.0, 0.25, 0.5, 0.75]);
    }

    #[test]
    fn steps_and_ramps_have_the_rate_that_they_say() {
        let steps = Rate::Steps(vec![10.0, 0.0, 50.0], Duration::from_secs(10));
        let times = times_s(&even(steps), MINUTE);
        let counts = [0, 10, 20, 30, 40, 50]
            .map(|from| between(&times, f64::from(from), f64::from(from) + 10.0));
        assert_eq!(counts, [100, 0, 500, 100, 0, 500]);

        let times = times_s(&even(Rate::Ramp(0.0, 60.0)), MINUTE);
        assert!(times.len().abs_diff(1800) <= 1, "{}", times.len());
        let late = between(&times, 50.0, 60.0);
        assert!(late.abs_diff(550) <= 2, "{late}");
        let falling = times_s(&even(Rate::Ramp(60.0, 0.0)), MINUTE);
        assert!(falling.len().abs_diff(1800) <= 1, "{}", falling.len());
        assert!(between(&falling, 0.0, 10.0).abs_diff(550) <= 2);
    }

    /// Mean and variance of a Poisson process's counts are equal; seconds of it are independent.
    #[test]
    fn poisson_counts_vary_as_they_should() {
        let arrivals = Arrivals::Rated {
            rate: Rate::Constant(50.0),
            is_poisson: true,
        };
        let times = times_s(&arrivals, Duration::from_secs(2000));
        let mut counts = vec![0.0; 2000];
        times.iter().for_each(|time| counts[*time as usize] += 1.0);
        let mean = counts.iter().sum::<f64>() / 2000.0;
        let variance = counts.iter().map(|n| (n - mean) * (n - mean)).sum::<f64>() / 2000.0;
        // Five standard errors of either.
        assert!((mean - 50.0).abs() < 0.8, "{mean}");
        assert!((variance - 50.0).abs() < 8.0, "{variance}");
        assert!(times.is_sorted());
    }

    #[test]
    fn bursts_come_at_once() {
        let arrivals = Arrivals::Burst {
            size: 3,
            every: Duration::from_secs(2),
        };
        let times = times_s(&arrivals, Duration::from_secs(5));
        assert_eq!(times, [0.0, 0.0, 0.0, 2.0, 2.0, 2.0, 4.0, 4.0, 4.0]);
    }

    #[test]
    fn a_list_is_kept_and_cut() {
        let arrival = |ms| Arrival {
            at: Duration::from_millis(ms),
            request: 1,
        };
        let arrivals = Arrivals::Listed([1, 5, 900, 1001].map(arrival).into());
        let mut schedule = arrivals
            .schedule(Duration::from_secs(1), &[1.0, 1.0], 0)
            .unwrap();
        assert_eq!(schedule.by_ref().last(), Some(arrival(900)));
    }

    #[test]
    fn weights_are_kept_and_seeds_repeat() {
        let arrivals = even(Rate::Constant(1000.0));
        let requests = |seed| -> Vec<usize> {
            let schedule = arrivals.schedule(MINUTE, &[3.0, 0.0, 1.0], seed).unwrap();
            schedule.map(|arrival| arrival.request).collect()
        };
        let chosen = requests(1);
        assert_eq!(chosen, requests(1));
        assert_ne!(chosen, requests(2));
        let share = chosen.iter().filter(|request| **request == 0).count() as f64 / 60_000.0;
        assert!((share - 0.75).abs() < 0.01, "{share}");
        assert!(!chosen.contains(&1));
    }

    #[test]
    fn what_sends_nothing_or_too_much_is_refused() {
        for rate in [
            Rate::Constant(0.0),
            Rate::Constant(f64::NAN),
            Rate::Constant(-1.0),
            Rate::Constant(1e9),
            Rate::Steps(vec![], MINUTE),
            Rate::Steps(vec![1.0], Duration::ZERO),
            Rate::Ramp(0.0, 0.0),
            Rate::Ramp(-1.0, 5.0),
        ] {
            assert!(even(rate.clone()).check().is_err(), "{rate:?}");
        }
        let burst = |size, every| Arrivals::Burst { size, every };
        assert!(burst(0, MINUTE).check().is_err());
        assert!(burst(1, Duration::ZERO).check().is_err());
        assert!(Arrivals::Listed([].into()).check().is_err());
        assert!(Choice::new(&[], 0).is_err());
        assert!(Choice::new(&[0.0], 0).is_err());
    }
}
