//! Both published forms, with all that is odd about them.

use std::time::Duration;

use dormouse_load::trace::{Invocation, Kind, ReadStats, SampleConfig, Source, Trace};

use crate::*;

#[test]
fn a_trace_of_2021_begins_each_invocation_its_duration_before_its_end() {
    let text = format!(
        "{HEADER_2021}\
         shop,cart,7.5,2.25\n\
         shop,pay,3.000001,1\n\
         mail,cart,61.0,0.0\n"
    );
    let (trace, stats) = read(text).unwrap();
    assert_eq!(trace.source, Source::Azure2021);
    assert_eq!(trace.span, Duration::from_secs(120));
    // In the order of the file, since all have one invocation. Two apps have a `cart`.
    let apps: Vec<_> = trace.functions.iter().map(|f| f.app.as_str()).collect();
    assert_eq!(apps, ["shop", "shop", "mail"]);
    assert_eq!(trace.functions[0].name, "cart");
    assert_eq!(trace.functions[1].name, "pay");
    assert!(trace.functions[2].name.starts_with("cart-"));
    let event = |at_us, function, duration_us| Invocation {
        at_us,
        function,
        duration_us,
    };
    assert_eq!(
        trace.invocations,
        [
            event(2_000_001, 1, 1_000_000),
            event(5_250_000, 0, 2_250_000),
            event(61_000_000, 2, 0),
        ]
    );
    let expected = ReadStats {
        rows: 3,
        functions: 3,
        without_memory: 3,
        ..ReadStats::default()
    };
    assert_eq!(stats, expected);
}

#[test]
fn published_ids_get_short_names_that_are_the_same_in_every_file() {
    let func = "c9f8e30e36d1aef62c10b3cfca6e289a93848a148d876dd514753040314f4817";
    let app = "17c37a0fdd5d1932b755c0e6447137bc08fd524f455e14fdac414f584de08dc5";
    let line = format!("{app},{func},10,1\n");
    let (alone, _) = read(format!("{HEADER_2021}{line}")).unwrap();
    let (last, _) = read(format!("{HEADER_2021}a,b,3,1\na,b,5,1\n{line}")).unwrap();
    let name = &alone.functions[0].name;
    assert!(name.starts_with("c9f8e30e36d1-"), "{name}");
    assert!(name.len() <= 32, "{name}");
    assert_eq!(&last.functions[1].name, name);
    let (other_app, _) = read(format!("{HEADER_2021}x,{func},10,1\n")).unwrap();
    assert_ne!(&other_app.functions[0].name, name);
}

#[test]
fn odd_lines_of_2021_are_counted() {
    let text = "app,func,end_timestamp,duration\r\n\
         a,early,5,7.5\r\n\
         a,f,5,-1\r\n\
         \r\n\
         a,f,9,0.5";
    let (trace, stats) = read(text).unwrap();
    let times: Vec<_> = trace.invocations.iter().map(|i| i.at_us).collect();
    assert_eq!(times, [5_000_000, 8_500_000]);
    assert_eq!(trace.functions.len(), 1);
    assert_eq!(stats.rows, 3);
    assert_eq!(stats.negative_values, 1);
    assert_eq!(stats.outside_window, 1);
    assert_eq!((stats.functions, stats.idle_functions), (1, 1));
}

/// A day with everything odd that the published ones have.
fn odd_day(files: &Files) -> Vec<PathBuf> {
    let counts = counts_2019(&[
        ("o1,a1,Known,http", &[(1, "3"), (1440, "2")]),
        ("o1,a1,idle,timer", &[]),
        ("o1,a1,untimed,timer", &[(2, "1"), (3, "1")]),
        ("o2,a2,bare,queue", &[(2, "4.0"), (3, "-5")]),
        ("o1,a1,Known,http", &[(1, "1"), (5, "2")]),
    ]);
    let durations = format!(
        "{DURATIONS_2019}\
         o1,a1,Known,1,10,0,9,100,100,100,100,100,100,100\n\
         o1,a1,Known,1,20,0,9,-5,10,20,15,30,40,50\n\
         o1,a1,Known,1,15,0,9,900,900,900,900,900,900,900\n\
         o2,a2,bare,1,1,0,9,7,7,7,7,7,7,7\n\
         o9,a9,stranger,1,1,0,9,7,7,7,7,7,7,7\n"
    );
    let memory = format!(
        "{MEMORY_2019}\
         o1,a1,10,1,1,2,3,128,5,6,7,8\n\
         o1,a1,5,1,1,2,3,999,5,6,7,8\n\
         o9,a9,5,1,1,2,3,999,5,6,7,8\n"
    );
    vec![
        files.add("memory.csv", memory),
        files.add("counts.csv", counts),
        files.add("durations.csv", durations),
    ]
}

#[test]
fn a_day_of_2019_is_read_with_everything_odd_counted() {
    let files = Files::new();
    let (trace, stats) = Trace::open(&odd_day(&files), &SampleConfig::default()).unwrap();
    let expected = ReadStats {
        rows: 5,
        functions: 3,
        idle_functions: 1,
        duplicate_rows: 4,
        negative_values: 2,
        unordered_rows: 1,
        unmatched_rows: 2,
        without_durations: 1,
        without_memory: 1,
        outside_window: 0,
    };
    assert_eq!(stats, expected);
    assert_eq!(trace.source, Source::Azure2019);
    assert_eq!(trace.span, Duration::from_secs(86_400));

    let known = &trace.functions[0];
    assert!(known.name.starts_with("known-"), "{known:?}");
    assert_eq!(known.app, "a1");
    assert_eq!(known.trigger.as_deref(), Some("http"));
    assert_eq!(known.memory_mib, 128.0);
    assert_eq!(trace.functions[1].name, "bare");
    assert_eq!(trace.functions[1].memory_mib, 0.0);
    assert_eq!(trace.functions[2].name, "untimed");

    let mut minutes: Vec<_> = trace
        .invocations
        .iter()
        .map(|i| (i.function, i.at_us / 60_000_000 + 1))
        .collect();
    minutes.sort_unstable();
    let expected = [
        (0, 1),
        (0, 1),
        (0, 1),
        (0, 1),
        (0, 5),
        (0, 5),
        (0, 1440),
        (0, 1440),
        (1, 2),
        (1, 2),
        (1, 2),
        (1, 2),
        (2, 2),
        (2, 3),
    ];
    assert_eq!(minutes, expected);
    for invocation in &trace.invocations {
        let ms = invocation.duration_us as f64 / 1000.0;
        match invocation.function {
            // The line with most executions counts: from 0 (published as -5) to 50.
            0 => assert!((0.0..=50.0).contains(&ms), "{ms}"),
            1 => assert_eq!(ms, 7.0),
            // Of nobody's: those of one of the other two.
            _ => assert!((0.0..=50.0).contains(&ms), "{ms}"),
        }
    }
}

#[test]
fn without_durations_and_memory_the_published_median_and_nothing_is_taken() {
    let (trace, stats) = read(counts_2019(&[("o,a,f,http", &[(7, "2")])])).unwrap();
    let durations: Vec<_> = trace.invocations.iter().map(|i| i.duration_us).collect();
    assert_eq!(durations, [684_000, 684_000]);
    assert_eq!(trace.functions[0].memory_mib, 0.0);
    assert_eq!((stats.without_durations, stats.without_memory), (1, 1));
}

#[test]
fn within_a_minute_of_2019_times_are_uniform_and_durations_follow_the_percentiles() {
    let files = Files::new();
    let counts = counts_2019(&[("o,a,f,http", &[(3, "200000")])]);
    let percentiles = [0_u64, 10, 20, 40, 100, 1000, 5000];
    let row: Vec<_> = percentiles.iter().map(u64::to_string).collect();
    let durations = format!("{DURATIONS_2019}o,a,f,1,1,0,9,{}\n", row.join(","));
    let paths = [
        files.add("counts.csv", counts),
        files.add("durations.csv", durations),
    ];
    let (trace, _) = Trace::open(&paths, &SampleConfig::default()).unwrap();
    let n = trace.invocations.len();
    assert_eq!(n, 200_000);

    let times: Vec<_> = trace.invocations.iter().map(|i| i.at_us).collect();
    let uniform = |at_us: u64| (at_us as f64 - 120e6) / 60e6;
    assert!(distance(&times, uniform) < distance_by_chance(n));

    let durations: Vec<_> = trace.invocations.iter().map(|i| i.duration_us).collect();
    let shares = [0.0, 0.01, 0.25, 0.5, 0.75, 0.99, 1.0];
    for (ms, share) in percentiles.into_iter().zip(shares) {
        let below = durations.iter().filter(|us| **us <= ms * 1000).count();
        let found = below as f64 / n as f64;
        assert!(
            (found - share).abs() < distance_by_chance(n),
            "{ms}: {found}"
        );
    }
    // A straight line between two percentiles: 700 ms is two thirds from 75 % to 99 %.
    let below = durations.iter().filter(|us| **us <= 700_000).count();
    assert!((below as f64 / n as f64 - 0.91).abs() < distance_by_chance(n));
}

#[test]
fn a_window_of_2019_has_whole_minutes_only() {
    let files = Files::new();
    let rows: [Row<'_>; 2] = [
        ("o,a,f,http", &[(1, "5"), (2, "6"), (3, "7"), (4, "8")]),
        ("o,a,g,http", &[(1, "50")]),
    ];
    let path = files.add("counts.csv", counts_2019(&rows));
    let config = SampleConfig {
        start: Duration::from_secs(90),
        length: Some(Duration::from_secs(60)),
        ..SampleConfig::default()
    };
    let (trace, stats) = Trace::open(&[path], &config).unwrap();
    assert_eq!(trace.span, Duration::from_secs(120));
    assert_eq!(trace.invocations.len(), 13);
    assert_eq!(trace.functions.len(), 1);
    assert_eq!((stats.outside_window, stats.idle_functions), (63, 1));
    let first_minute = trace.invocations.iter().filter(|i| i.at_us < 60_000_000);
    assert_eq!(first_minute.count(), 6);
}

#[test]
fn files_are_told_by_their_headers() {
    let files = Files::new();
    let paths = odd_day(&files);
    assert_eq!(Kind::detect(&paths[0]).unwrap(), Kind::Memory2019);
    assert_eq!(Kind::detect(&paths[1]).unwrap(), Kind::Invocations2019);
    assert_eq!(Kind::detect(&paths[2]).unwrap(), Kind::Durations2019);
    let path = files.add("2021.csv", HEADER_2021);
    assert_eq!(Kind::detect(&path).unwrap(), Kind::Invocations2021);
    // With the mark that some editors write, and columns in another order.
    let path = files.add(
        "marked.csv",
        "\u{feff}func,end_timestamp,app,duration\nf,2,a,1\n",
    );
    let (trace, _) = Trace::open(&[path], &SampleConfig::default()).unwrap();
    assert_eq!(trace.functions[0].name, "f");
}
