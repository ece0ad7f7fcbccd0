//! Whatever the bytes are, reading them ends in a trace or in one sentence.

use dormouse_load::trace::{Invocation, Source, TracedFunction};
use proptest::collection::vec;
use proptest::prelude::*;
use std::time::Duration;

use crate::*;

/// One valid file of each kind.
fn valid() -> [String; 4] {
    [
        counts_2019(&[
            ("o,a,f,http", &[(1, "3"), (9, "20")]),
            ("o,b,g,timer", &[(2, "1")]),
        ]),
        format!("{DURATIONS_2019}o,a,f,1,10,0,9,1,2,3,4,5,6,7\no,b,g,1,1,0,9,1,2,3,4,5,6,7\n"),
        format!("{MEMORY_2019}o,a,10,1,1,2,3,128,5,6,7,8\n"),
        format!("{HEADER_2021}a,f,10.5,0.25\nb,g,11,3\n"),
    ]
}

/// What a file is replaced with, somewhere.
fn damage() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        vec(any::<u8>(), 0..4),
        prop::sample::select(vec![
            ",",
            "\n",
            "\r",
            "\"",
            "-1",
            "nan",
            "inf",
            "1e300",
            "1e12",
            "99999999999999999999",
            "-",
            ".",
            "",
            "\u{feff}",
            "é",
        ])
        .prop_map(|text| text.as_bytes().to_vec()),
    ]
}

fn check(result: Result<(Trace, ReadStats)>) {
    match result {
        Ok((trace, _)) => {
            let end = trace.span.as_micros() as u64;
            assert!(trace.invocations.is_sorted());
            assert!(trace.invocations.iter().all(|i| i.at_us < end));
            let functions = trace.functions.len();
            assert!(
                trace
                    .invocations
                    .iter()
                    .all(|i| (i.function as usize) < functions)
            );
        }
        Err(error) => crate::errors::assert_sentence(&error),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn random_bytes_never_panic(bytes in vec(any::<u8>(), 0..512)) {
        check(read(&bytes));
    }

    #[test]
    fn random_lines_under_a_valid_header_never_panic(
        kind in 1..4_usize,
        bytes in vec(any::<u8>(), 0..512),
    ) {
        let header = [DURATIONS_2019, MEMORY_2019, HEADER_2021][kind - 1];
        let damaged = [header.as_bytes(), &bytes].concat();
        let files = Files::new();
        let mut paths = vec![files.add("damaged.csv", damaged)];
        if kind < 3 {
            paths.push(files.add("counts.csv", &valid()[0]));
        }
        check(Trace::open(&paths, &SampleConfig::default()));
    }

    #[test]
    fn damaged_files_never_panic(
        kind in 0..4_usize,
        damages in vec((any::<prop::sample::Index>(), 0..6_usize, damage()), 1..4),
        cut in proptest::option::of(any::<prop::sample::Index>()),
        functions in proptest::option::of(1..3_usize),
    ) {
        let mut contents = valid().map(String::into_bytes);
        let damaged = &mut contents[kind];
        for (place, length, bytes) in damages {
            let start = place.index(damaged.len() + 1);
            let end = (start + length).min(damaged.len());
            damaged.splice(start..end, bytes);
        }
        if let Some(cut) = cut {
            damaged.truncate(cut.index(damaged.len() + 1));
        }
        let files = Files::new();
        let wanted = if kind == 3 { 3..4 } else { 0..3 };
        let paths: Vec<_> = wanted
            .map(|kind| files.add(&format!("{kind}.csv"), &contents[kind]))
            .collect();
        let config = SampleConfig { functions, ..SampleConfig::default() };
        check(Trace::open(&paths, &config));
    }

    #[test]
    fn any_trace_and_any_settings_can_be_sampled_or_not(
        events in vec((any::<u64>(), 0..5_u32, any::<u64>()), 0..50),
        span_s in any::<u64>(),
        start_s in any::<u64>(),
        length in proptest::option::of(any::<u64>()),
        functions in proptest::option::of(any::<usize>()),
        rate_per_s in proptest::option::of(any::<f64>()),
        compression in prop_oneof![any::<f64>(), 1.0..1e6],
        seed in any::<u64>(),
    ) {
        // One function fewer than the invocations speak of.
        let functions_known = (0..4).map(|number| TracedFunction {
            app: "app".to_owned(),
            name: format!("f{number}"),
            trigger: None,
            memory_mib: 0.0,
        });
        let trace = Trace {
            source: Source::Synthetic,
            span: Duration::from_secs(span_s),
            functions: functions_known.collect(),
            invocations: events
                .into_iter()
                .map(|(at_us, function, duration_us)| Invocation { at_us, function, duration_us })
                .collect(),
            capped: 0,
        };
        let config = SampleConfig {
            start: Duration::from_secs(start_s),
            length: length.map(Duration::from_secs),
            functions,
            rate_per_s,
            compression,
            max_duration: None,
            seed,
        };
        check(trace.sample(&config).map(|trace| (trace, ReadStats::default())));
        let mut text = Vec::new();
        trace.write_2021(&mut text).unwrap();
        check(read(text));
    }
}
