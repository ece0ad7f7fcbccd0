//! What a run says about itself, in sentences.

use crate::Histogram;
use crate::record::{Band, ClientStats, ErrorStats, Slice};

/// Requests sent later than this have distorted nothing.
const HARMLESS_LAG_US: u64 = 500;
/// More lag than this share of a latency has distorted it.
const LAG_SHARE: f64 = 0.1;
/// A thread as busy as this has no time left for being early.
const BUSY: f64 = 0.9;
/// Sentences about times at which nothing came.
const MAX_SILENCES: usize = 3;

/// What a verdict on a run's client is made from.
#[derive(Debug)]
pub(crate) struct Judged<'a> {
    pub(crate) is_open: bool,
    pub(crate) offered: u64,
    pub(crate) latency: &'a Histogram,
    pub(crate) client: &'a ClientStats,
}

fn ms(time_us: f64) -> String {
    let ms = time_us / 1000.0;
    match ms {
        100.0.. => format!("{ms:.0} ms"),
        10.0.. => format!("{ms:.1} ms"),
        _ => format!("{ms:.2} ms"),
    }
}

fn percent(share: f64) -> String {
    let percent = share * 100.0;
    if percent >= 10.0 {
        format!("{percent:.0} %")
    } else if percent >= 0.1 {
        format!("{percent:.1} %")
    } else {
        format!("{percent:.3} %")
    }
}

/// Why the client was the limit; empty where it was not.
pub(crate) fn limits(run: &Judged<'_>) -> Vec<String> {
    let mut limits = Vec::new();
    let client = run.client;
    if client.busiest_thread > BUSY {
        limits.push(format!(
            "a thread of the client was busy for {} of the time: give it more --threads, or cores of \
             its own",
            percent(client.busiest_thread)
        ));
    }
    for (share, who) in [(0.5, "half of the requests"), (0.99, "one request in 100")] {
        let lag_us = client.lag.quantile_us(share);
        let latency_us = run.latency.quantile_us(share);
        let is_harmless =
            lag_us <= HARMLESS_LAG_US || lag_us as f64 <= latency_us as f64 * LAG_SHARE;
        if run.is_open && !is_harmless {
            limits.push(format!(
                "the client was late: {who} left it {} or more after the intended time, beside a \
                 latency of {}; it shares its cores with others, or is too slow for this rate",
                ms(lag_us as f64),
                ms(latency_us as f64)
            ));
        }
    }
    let waited = client.waited as f64 / run.offered.max(1) as f64;
    if run.is_open && waited > 0.01 {
        limits.push(format!(
            "{} of the requests waited for one of the client's {} connections: the target saw fewer \
             at once than were offered; give it more --connections to see what it does then",
            percent(waited),
            client.connections
        ));
    }
    limits
}

/// What explains a run: where slow answers spent their time, what failed, when nothing came.
pub(crate) fn findings(
    bands: &[Band],
    failed: u64,
    all: u64,
    errors: &std::collections::BTreeMap<String, ErrorStats>,
    slices: &[Slice],
    slice_s: f64,
) -> Vec<String> {
    let mut findings = Vec::new();
    findings.extend(slowest(bands));
    if failed > 0 {
        let most = errors.iter().max_by_key(|(_, stats)| stats.count);
        if let Some((kind, stats)) = most {
            findings.push(format!(
                "{} of the requests failed, {} of these by {kind}; percentiles are of the others.",
                percent(failed as f64 / all.max(1) as f64),
                percent(stats.count as f64 / failed as f64),
            ));
        }
    }
    findings.extend(silences(slices, slice_s));
    findings
}

/// The slowest hundredth beside the faster half.
fn slowest(bands: &[Band]) -> Option<String> {
    let fast = bands.iter().find(|band| band.from == 0.0)?;
    let slow: Vec<_> = bands.iter().filter(|band| band.from >= 0.99).collect();
    let count: u64 = slow.iter().map(|band| band.count).sum();
    if count == 0 || fast.count == 0 {
        return None;
    }
    let mean = |value: &dyn Fn(&Band) -> f64| {
        let sum: f64 = slow
            .iter()
            .map(|band| value(band) * band.count as f64)
            .sum();
        sum / count as f64
    };
    let part = |band: &Band, name: &str| {
        let part = band.parts.iter().find(|part| part.name == name);
        part.map_or(0.0, |part| part.mean_us)
    };
    let more_us = mean(&|band| band.mean_us) - fast.mean_us;
    let names = slow.iter().flat_map(|band| &band.parts);
    let (name, share) = names
        .map(|named| {
            let name = named.name.as_str();
            (name, mean(&|band| part(band, name)) - part(fast, name))
        })
        .max_by(|one, other| one.1.total_cmp(&other.1))?;
    (more_us > 0.0).then(|| {
        format!(
            "The slowest 1 % took {} more than the faster half; {} of that is {}.",
            ms(more_us),
            percent((share / more_us).clamp(0.0, 1.0)),
            explained(name)
        )
    })
}

fn explained(part: &str) -> String {
    let what = match part {
        "lag" => "the client, which sent late",
        "connection" => "waiting for a connection, or making one",
        "queue" => "waiting for a turn at the target",
        "clear" => "letting go of what the target had in memory",
        "open" => "loading a snapshot",
        "boot" => "booting cold",
        "restore" => "restoring clones",
        "run" => "the function's own run",
        _ => "network, HTTP and whatever the target tells no stage for",
    };
    format!("{part} ({what})")
}

/// Times at which requests were offered and no answer came.
fn silences(slices: &[Slice], slice_s: f64) -> Vec<String> {
    let is_silent = |slice: &Slice| !slice.is_warmup && slice.arrived == 0 && slice.offered > 0;
    let mut sentences = Vec::new();
    let mut place = 0;
    while place < slices.len() {
        let length = slices[place..]
            .iter()
            .take_while(|slice| is_silent(slice))
            .count();
        if length > 0 {
            let from = place as f64 * slice_s;
            let to = (place + length) as f64 * slice_s;
            sentences.push(format!("No answer came between {from:.1} s and {to:.1} s."));
        }
        place += length.max(1);
    }
    let more = sentences.len().saturating_sub(MAX_SILENCES);
    sentences.truncate(MAX_SILENCES);
    if more > 0 {
        sentences.push(format!("There were {more} more such times."));
    }
    sentences
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Part;

    fn client() -> ClientStats {
        ClientStats {
            threads: 1,
            connections: 8,
            opened: 8,
            lag: Histogram::default(),
            waited: 0,
            cpu_us: 0,
            busiest_thread: 0.2,
            cpu_percent_per_1000_per_s: 2.0,
            limits: Vec::new(),
        }
    }

    fn of(time_us: u64) -> Histogram {
        let mut histogram = Histogram::default();
        (0..100).for_each(|_| histogram.record_us(time_us));
        histogram
    }

    fn verdict(is_open: bool, client: &ClientStats, latency_us: u64) -> Vec<String> {
        limits(&Judged {
            is_open,
            offered: 1000,
            latency: &of(latency_us),
            client,
        })
    }

    #[test]
    fn a_client_that_keeps_up_is_no_limit() {
        let mut client = client();
        assert_eq!(verdict(true, &client, 5000), [""; 0]);
        client.lag = of(400);
        assert_eq!(verdict(true, &client, 1000), [""; 0]);
        client.lag = of(5000);
        assert_eq!(verdict(true, &client, 100_000), [""; 0]);
        client.waited = 10;
        assert_eq!(verdict(true, &client, 100_000), [""; 0]);
    }

    #[test]
    fn what_limits_is_said() {
        let late = ClientStats {
            lag: of(5000),
            ..client()
        };
        assert!(verdict(true, &late, 6000)[0].contains("late"));
        assert_eq!(verdict(false, &late, 6000), [""; 0]);
        let busy = ClientStats {
            busiest_thread: 0.99,
            ..client()
        };
        assert!(verdict(false, &busy, 6000)[0].contains("busy"));
        let waiting = ClientStats {
            waited: 500,
            ..client()
        };
        assert!(verdict(true, &waiting, 6000)[0].contains("50 %"));
    }

    fn band(from: f64, count: u64, queue_us: f64) -> Band {
        let part = |name: &str, mean_us| Part {
            name: name.to_owned(),
            mean_us,
        };
        Band {
            from,
            to: 1.0,
            count,
            mean_us: 1000.0 + queue_us,
            parts: vec![part("queue", queue_us), part("run", 1000.0)],
        }
    }

    #[test]
    fn the_slowest_hundredth_is_explained() {
        let bands = [
            band(0.0, 500, 0.0),
            band(0.99, 9, 10_000.0),
            band(0.999, 1, 20_000.0),
        ];
        let sentence = slowest(&bands).unwrap();
        assert!(sentence.contains("11.0 ms more"), "{sentence}");
        assert!(sentence.contains("100 % of that is queue"), "{sentence}");
        assert_eq!(slowest(&bands[..1]), None);
        assert_eq!(slowest(&[]), None);
    }

    #[test]
    fn silences_are_told() {
        let slice = |arrived, offered| Slice {
            arrived,
            offered,
            ..Slice::default()
        };
        let slices = [
            slice(5, 5),
            slice(0, 5),
            slice(0, 5),
            slice(5, 5),
            slice(0, 0),
        ];
        assert_eq!(
            silences(&slices, 1.0),
            ["No answer came between 1.0 s and 3.0 s."]
        );
        let often: Vec<_> = (0..20).map(|place| slice(place % 2, 5)).collect();
        assert_eq!(silences(&often, 1.0).len(), MAX_SILENCES + 1);
    }
}
