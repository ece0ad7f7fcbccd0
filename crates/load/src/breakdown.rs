//! Where the time goes, by how slow answers are.
//!
//! Each answer's latency is cut into parts that add up to it, and the parts are summed up over all
//! answers of about the same latency. So a run of any length needs little memory, and still the
//! slowest hundredth can be told apart from the rest.

use std::time::Duration;

use crate::record::{Band, Part};

/// Stages of Dormouse that do not overlap; the others are parts of these.
const DISJOINT: [&str; 6] = ["queue", "clear", "boot", "open", "restore", "run"];
/// The parts of a latency, in the order of reports.
const PARTS: [&str; 9] = [
    "lag",
    "connection",
    DISJOINT[0],
    DISJOINT[1],
    DISJOINT[2],
    DISJOINT[3],
    DISJOINT[4],
    DISJOINT[5],
    "rest",
];
/// Latencies of one group are at most an eighth of an octave apart.
const GROUPS_PER_OCTAVE: f64 = 8.0;
/// The percentiles that bands lie between.
const EDGES: [f64; 6] = [0.0, 0.5, 0.9, 0.99, 0.999, 1.0];

/// Sums over all answers of about the same latency.
#[derive(Debug, Clone, Default)]
struct Group {
    count: u64,
    latency_us: u64,
    parts_us: [u64; PARTS.len()],
}

/// What the answers of a run consist of.
#[derive(Debug, Default)]
pub(crate) struct Breakdown {
    groups: Vec<Group>,
    /// The answer that is being taken apart.
    place: usize,
    stages_us: u64,
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

impl Breakdown {
    /// Begins an answer.
    pub(crate) fn begin(&mut self, latency: Duration) {
        let latency_us = micros(latency);
        let octaves = (latency_us.max(1) as f64).log2();
        self.place = (octaves * GROUPS_PER_OCTAVE) as usize;
        if self.groups.len() <= self.place {
            self.groups.resize_with(self.place + 1, Group::default);
        }
        let group = &mut self.groups[self.place];
        group.count += 1;
        group.latency_us = group.latency_us.saturating_add(latency_us);
        self.stages_us = 0;
    }

    /// A part of it that the client saw.
    pub(crate) fn part(&mut self, name: &str, time: Duration) {
        if let Some(part) = PARTS.iter().position(|known| *known == name) {
            let sum = &mut self.groups[self.place].parts_us[part];
            *sum = sum.saturating_add(micros(time));
        }
    }

    /// A stage that the target told.
    pub(crate) fn stage(&mut self, name: &str, time: Duration) {
        if DISJOINT.contains(&name) {
            self.part(name, time);
            self.stages_us = self.stages_us.saturating_add(micros(time));
        }
    }

    /// Ends the answer, which was served in that time: what no stage is for is the rest.
    pub(crate) fn end(&mut self, service: Duration) {
        let rest_us = micros(service).saturating_sub(self.stages_us);
        self.part("rest", Duration::from_micros(rest_us));
    }

    pub(crate) fn add(&mut self, other: &Self) {
        if self.groups.len() < other.groups.len() {
            self.groups.resize_with(other.groups.len(), Group::default);
        }
        for (group, theirs) in self.groups.iter_mut().zip(&other.groups) {
            group.count += theirs.count;
            group.latency_us = group.latency_us.saturating_add(theirs.latency_us);
            for (sum, theirs) in group.parts_us.iter_mut().zip(theirs.parts_us) {
                *sum = sum.saturating_add(theirs);
            }
        }
    }

    /// The bands of percentiles that have an answer. A group that lies across an edge is divided.
    pub(crate) fn bands(&self) -> Vec<Band> {
        let all: u64 = self.groups.iter().map(|group| group.count).sum();
        let edges = EDGES.map(|edge| edge * all as f64);
        let bands = EDGES.windows(2).zip(edges.windows(2));
        bands
            .filter_map(|(shares, counts)| self.band(shares[0], shares[1], counts[0], counts[1]))
            .collect()
    }

    /// The band between two counts of answers, in ascending order of latency.
    fn band(&self, from: f64, to: f64, first: f64, last: f64) -> Option<Band> {
        let mut passed = 0.0;
        let (mut count, mut latency_us, mut parts_us) = (0.0, 0.0, [0.0; PARTS.len()]);
        for group in self.groups.iter().filter(|group| group.count > 0) {
            let size = group.count as f64;
            let inside = (last.min(passed + size) - first.max(passed)).max(0.0);
            passed += size;
            let share = inside / size;
            count += inside;
            latency_us += group.latency_us as f64 * share;
            for (sum, part) in parts_us.iter_mut().zip(group.parts_us) {
                *sum += part as f64 * share;
            }
        }
        // Less than one answer is a rounding of others.
        if count < 0.5 {
            return None;
        }
        let mean = |sum: f64| (sum / count * 10.0).round() / 10.0;
        let parts = PARTS.iter().zip(parts_us);
        Some(Band {
            from,
            to,
            count: count.round() as u64,
            mean_us: mean(latency_us),
            parts: parts
                .filter(|(_, sum)| mean(*sum) > 0.0)
                .map(|(name, sum)| Part {
                    name: (*name).to_owned(),
                    mean_us: mean(sum),
                })
                .collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn answer(breakdown: &mut Breakdown, lag_ms: u32, queue_ms: u32, run_ms: u32, rest_ms: u32) {
        let service_ms = queue_ms + run_ms + rest_ms;
        breakdown.begin(MS * (lag_ms + service_ms));
        breakdown.part("lag", MS * lag_ms);
        breakdown.stage("queue", MS * queue_ms);
        breakdown.stage("run", MS * run_ms);
        breakdown.stage("handler", MS * run_ms);
        breakdown.end(MS * service_ms);
    }

    #[test]
    fn parts_add_up_to_the_mean() {
        let mut breakdown = Breakdown::default();
        for place in 0..10_000 {
            answer(&mut breakdown, place % 3, place % 17, 4, 1 + place % 2);
        }
        let bands = breakdown.bands();
        assert_eq!(bands.len(), 5);
        assert_eq!(bands.iter().map(|band| band.count).sum::<u64>(), 10_000);
        for band in &bands {
            let sum: f64 = band.parts.iter().map(|part| part.mean_us).sum();
            assert!((sum - band.mean_us).abs() < 1.0, "{band:?}");
        }
        assert!(
            bands
                .windows(2)
                .all(|pair| pair[0].mean_us < pair[1].mean_us)
        );
    }

    #[test]
    fn the_slow_ones_show_what_made_them_slow() {
        let mut breakdown = Breakdown::default();
        for place in 0..1000 {
            let queue_ms = if place % 100 == 0 { 500 } else { 0 };
            answer(&mut breakdown, 0, queue_ms, 5, 1);
        }
        let bands = breakdown.bands();
        let queue = |band: &Band| {
            let queue = band.parts.iter().find(|part| part.name == "queue");
            queue.map_or(0.0, |part| part.mean_us)
        };
        assert_eq!(queue(&bands[0]), 0.0);
        let slow: Vec<_> = bands.iter().filter(|band| band.from >= 0.99).collect();
        assert!(!slow.is_empty() && slow.iter().all(|band| queue(band) == 500_000.0));
    }

    #[test]
    fn what_comes_before_a_run_is_no_rest() {
        let mut breakdown = Breakdown::default();
        breakdown.begin(MS * 6);
        for stage in DISJOINT {
            breakdown.stage(stage, MS);
        }
        breakdown.end(MS * 6);
        let bands = breakdown.bands();
        let parts: Vec<_> = bands[0].parts.iter().map(|part| &part.name[..]).collect();
        assert_eq!(parts, DISJOINT);
    }

    #[test]
    fn few_answers_have_few_bands() {
        let mut breakdown = Breakdown::default();
        assert_eq!(breakdown.bands(), []);
        answer(&mut breakdown, 0, 0, 1, 0);
        assert_eq!(
            breakdown.bands().iter().map(|band| band.count).sum::<u64>(),
            1
        );
    }

    #[test]
    fn stages_longer_than_the_service_leave_no_rest() {
        let mut breakdown = Breakdown::default();
        breakdown.begin(MS);
        breakdown.stage("run", MS * 5000);
        breakdown.end(MS);
        let parts = &breakdown.bands()[0].parts;
        assert!(parts.iter().all(|part| part.name != "rest"), "{parts:?}");
    }
}
