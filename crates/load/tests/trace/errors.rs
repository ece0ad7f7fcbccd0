//! Each error, what it says and where.

use std::os::unix::net::UnixListener;
use std::time::Duration;

use dormouse_load::trace::{Error, Kind, SyntheticConfig};

use crate::*;

/// One sentence of bounded length, in one line, with a next step after a colon or semicolon.
pub(crate) fn assert_sentence(error: &Error) {
    let text = error.to_string();
    assert!(!text.contains('\n') && !text.ends_with('.'), "{text}");
    assert!(text.contains(": ") || text.contains("; "), "{text}");
    assert!(text.len() < 1000, "{text}");
}

fn error_of(content: impl AsRef<[u8]>) -> Error {
    let error = read(content).unwrap_err();
    assert_sentence(&error);
    assert!(error.to_string().contains("trace.csv"), "{error}");
    error
}

/// The error of reading a day whose durations or memory are these.
fn error_beside(content: String) -> Error {
    let files = Files::new();
    let paths = [
        files.add("counts.csv", counts_2019(&[("o,a,f,http", &[(1, "1")])])),
        files.add("beside.csv", content),
    ];
    let error = Trace::open(&paths, &SampleConfig::default()).unwrap_err();
    assert_sentence(&error);
    assert!(error.to_string().contains("beside.csv"), "{error}");
    error
}

fn error_with(config: &SampleConfig) -> Error {
    let files = Files::new();
    let path = files.add("trace.csv", format!("{HEADER_2021}a,f,2,1\na,f,3,1\n"));
    let error = Trace::open(&[path], config).unwrap_err();
    assert_sentence(&error);
    error
}

#[test]
fn what_is_no_readable_file() {
    let files = Files::new();
    let missing = files.0.path().join("missing.csv");
    let error = Kind::detect(&missing).unwrap_err();
    assert_sentence(&error);
    assert!(matches!(&error, Error::Unreadable { path, .. } if *path == missing));

    let error = Kind::detect(files.0.path()).unwrap_err();
    assert_sentence(&error);
    assert!(matches!(
        error,
        Error::NotAFile {
            what: "a folder",
            ..
        }
    ));

    let socket = files.0.path().join("socket");
    let _listener = UnixListener::bind(&socket).unwrap();
    let error = Kind::detect(&socket).unwrap_err();
    assert_sentence(&error);
    assert!(matches!(error, Error::NotAFile { .. }));
}

#[test]
fn what_has_nothing_in_it() {
    for nothing in ["", "\n\r\n\n"] {
        assert!(matches!(
            error_of(nothing),
            Error::Empty { what: "header", .. }
        ));
    }
    for header in [HEADER_2021.to_owned(), counts_2019(&[])] {
        let error = error_of(header);
        assert!(matches!(
            error,
            Error::Empty {
                what: "invocations",
                ..
            }
        ));
    }
}

#[test]
fn what_is_something_else() {
    let error = error_of("time,user\n1,2\n");
    assert!(matches!(&error, Error::UnknownHeader { found, .. } if found == "time,user"));
    // A quote opens nothing.
    let error = error_of("\"app\",\"func\"\n1,2\n");
    assert!(matches!(error, Error::UnknownHeader { .. }));
    let long = error_of("x".repeat(1000));
    assert!(matches!(long, Error::UnknownHeader { found, .. } if found.len() == 80));
    let error = error_of(vec![b'x'; 100 << 10]);
    assert!(matches!(
        error,
        Error::LongLine {
            line: 1,
            most: 65_536,
            ..
        }
    ));
    let text = format!("{HEADER_2021}a,f,2,1\na,{},2,1\n", "f".repeat(100 << 10));
    assert!(matches!(error_of(text), Error::LongLine { line: 3, .. }));
}

#[test]
fn what_is_not_utf_8() {
    let mut bytes = format!("{HEADER_2021}a,f,2,1\na,f,2,1\n").into_bytes();
    bytes.extend(b"a,\xff,2,1\n");
    assert!(matches!(error_of(bytes), Error::NotUtf8 { line: 4, .. }));
    // A compressed file.
    let error = error_of(b"\x1f\x8b\x08\x00\x00\x00\x00\x00");
    assert!(matches!(error, Error::NotUtf8 { line: 1, .. }));
}

#[test]
fn what_lacks_a_column() {
    let column = |error: Error| match error {
        Error::MissingColumn { column, .. } => column,
        other => panic!("{other}"),
    };
    assert_eq!(
        column(error_of("app,func,end_timestamp\na,f,2\n")),
        "duration"
    );
    let short = counts_2019(&[]).replace(",1440", "");
    assert_eq!(column(error_of(short)), "1440");
    let text = DURATIONS_2019.replace("percentile_Average_75", "other");
    assert_eq!(column(error_beside(text)), "percentile_Average_75");
    let text = MEMORY_2019.replace("SampleCount", "other");
    assert_eq!(column(error_beside(text)), "SampleCount");
}

#[test]
fn what_is_cut_off() {
    let error = error_of(format!("{HEADER_2021}a,f,2,1\na,f"));
    assert!(matches!(
        error,
        Error::Fields {
            line: 3,
            found: 2,
            expected: 4,
            ..
        }
    ));
    let error = error_of(format!("{HEADER_2021}a,f,2,1,7\n"));
    assert!(matches!(
        error,
        Error::Fields {
            line: 2,
            found: 5,
            expected: 4,
            ..
        }
    ));
    let whole = counts_2019(&[("o,a,f,http", &[])]);
    let error = error_of(&whole[..whole.len() - 100]);
    assert!(matches!(
        error,
        Error::Fields {
            line: 2,
            expected: 1444,
            ..
        }
    ));
}

#[test]
fn what_is_no_number() {
    let field = |error: Error| match error {
        Error::BadNumber {
            line,
            column,
            value,
            ..
        } => (line, column, value),
        other => panic!("{other}"),
    };
    let expect = |line, column: &str, value: &str| (line, column.to_owned(), value.to_owned());
    for bad in [
        "",
        "soon",
        "nan",
        "inf",
        "1e300",
        "1,5".split(',').next_back().unwrap_or(""),
    ] {
        let result = read(format!("{HEADER_2021}a,f,{bad},1\n"));
        // The last is a number, to show that the line itself is fine.
        if bad == "5" {
            result.unwrap();
            continue;
        }
        assert_eq!(field(result.unwrap_err()), expect(2, "end_timestamp", bad));
    }
    let text = format!("{HEADER_2021}a,f,2,1\r\n\r\na,f,2,x\r\n");
    assert_eq!(field(error_of(text)), expect(4, "duration", "x"));
    let long = "y".repeat(1000);
    let error = error_of(format!("{HEADER_2021}a,f,2,{long}\n"));
    assert_eq!(field(error).2.len(), 80);
    for bad in ["1.5", "many", "1e20"] {
        let text = counts_2019(&[("o,a,f,http", &[]), ("o,a,g,http", &[(77, bad)])]);
        assert_eq!(field(error_of(text)), expect(3, "77", bad));
    }
    let text = format!("{DURATIONS_2019}o,a,f,1,1,0,9,1,2,?,4,5,6,7\n");
    assert_eq!(
        field(error_beside(text)),
        expect(2, "percentile_Average_25", "?")
    );
    let text = format!("{MEMORY_2019}o,a,1,1,1,2,3,-,5,6,7,8\n");
    assert_eq!(
        field(error_beside(text)),
        expect(2, "AverageAllocatedMb_pct50", "-")
    );
}

#[test]
fn files_that_do_not_belong_together() {
    let files = Files::new();
    let counts = files.add("counts.csv", counts_2019(&[("o,a,f,http", &[(1, "1")])]));
    let durations = files.add("durations.csv", DURATIONS_2019);
    let events = files.add("events.csv", format!("{HEADER_2021}a,f,2,1\n"));
    let wrong: [&[&PathBuf]; 5] = [
        &[],
        &[&durations],
        &[&counts, &counts],
        &[&counts, &events],
        &[&events, &durations],
    ];
    for paths in wrong {
        let paths: Vec<_> = paths.iter().copied().cloned().collect();
        let error = Trace::open(&paths, &SampleConfig::default()).unwrap_err();
        assert_sentence(&error);
        assert!(matches!(error, Error::Files { .. }), "{error}");
    }
}

#[test]
fn more_invocations_than_fit() {
    let all = ("o,a,f,http", &[(1, "6000000"), (2, "6000000")][..]);
    let files = Files::new();
    let path = files.add("counts.csv", counts_2019(&[all]));
    let error = Trace::open(std::slice::from_ref(&path), &SampleConfig::default()).unwrap_err();
    assert_sentence(&error);
    let Error::TooManyInvocations {
        expected,
        rate_per_s,
    } = error
    else {
        panic!("{error}");
    };
    assert_eq!(expected, 12_000_000);
    assert!((rate_per_s - 10_000_000.0 / 86_400.0).abs() < 1e-9);
    // With the rate that the sentence names it fits. (A hundredth of it, to be quick.)
    let config = SampleConfig {
        rate_per_s: Some(rate_per_s / 100.0),
        ..SampleConfig::default()
    };
    let (trace, _) = Trace::open(&[path], &config).unwrap();
    let found = trace.invocations.len() as f64;
    assert!(
        (found - 100_000.0).abs() < 6.0 * 100_000_f64.sqrt(),
        "{found}"
    );

    let config = SyntheticConfig {
        rate_per_s: 1e6,
        ..SyntheticConfig::default()
    };
    let error = Trace::synthetic(&config).unwrap_err();
    assert_sentence(&error);
    assert!(matches!(
        error,
        Error::TooManyInvocations {
            expected: 600_000_000,
            ..
        }
    ));
}

#[test]
fn more_functions_than_fit() {
    use std::fmt::Write as _;
    let mut text = HEADER_2021.to_owned();
    for number in 0..=dormouse_load::trace::MAX_FUNCTIONS {
        writeln!(text, "a,{number},1,1").unwrap();
    }
    assert!(matches!(error_of(text), Error::TooManyFunctions { .. }));
}

#[test]
fn a_window_in_which_nothing_happens() {
    let config = SampleConfig {
        start: Duration::from_secs(10),
        ..SampleConfig::default()
    };
    let error = error_with(&config);
    assert!(
        matches!(error, Error::NoInvocations { outside: 2, .. }),
        "{error}"
    );
    let config = SampleConfig {
        start: Duration::MAX,
        length: Some(Duration::MAX),
        ..SampleConfig::default()
    };
    assert!(matches!(error_with(&config), Error::NoInvocations { .. }));
    let files = Files::new();
    let path = files.add("counts.csv", counts_2019(&[("o,a,f,http", &[(1, "1")])]));
    let error = Trace::open(&[path], &config).unwrap_err();
    assert!(
        matches!(error, Error::NoInvocations { outside: 1, .. }),
        "{error}"
    );
}

#[test]
fn settings_out_of_range() {
    let base = SampleConfig::default;
    let wrong = [
        (
            "length",
            SampleConfig {
                length: Some(Duration::ZERO),
                ..base()
            },
        ),
        (
            "functions",
            SampleConfig {
                functions: Some(0),
                ..base()
            },
        ),
        (
            "rate_per_s",
            SampleConfig {
                rate_per_s: Some(0.0),
                ..base()
            },
        ),
        (
            "rate_per_s",
            SampleConfig {
                rate_per_s: Some(f64::NAN),
                ..base()
            },
        ),
        (
            "compression",
            SampleConfig {
                compression: 0.5,
                ..base()
            },
        ),
        (
            "compression",
            SampleConfig {
                compression: f64::INFINITY,
                ..base()
            },
        ),
    ];
    for (name, config) in wrong {
        let error = error_with(&config);
        assert!(matches!(error, Error::InvalidConfig { setting, .. } if setting == name));
    }
    let base = SyntheticConfig::default;
    let wrong = [
        (
            "functions",
            SyntheticConfig {
                functions: 0,
                ..base()
            },
        ),
        (
            "functions",
            SyntheticConfig {
                functions: usize::MAX,
                ..base()
            },
        ),
        (
            "span",
            SyntheticConfig {
                span: Duration::ZERO,
                ..base()
            },
        ),
        (
            "span",
            SyntheticConfig {
                span: Duration::MAX,
                ..base()
            },
        ),
        (
            "rate_per_s",
            SyntheticConfig {
                rate_per_s: -1.0,
                ..base()
            },
        ),
        (
            "rate_per_s",
            SyntheticConfig {
                rate_per_s: f64::INFINITY,
                ..base()
            },
        ),
    ];
    for (name, config) in wrong {
        let error = Trace::synthetic(&config).unwrap_err();
        assert_sentence(&error);
        assert!(matches!(error, Error::InvalidConfig { setting, .. } if setting == name));
    }
}

#[test]
fn a_rate_that_there_is_not() {
    let config = SampleConfig {
        rate_per_s: Some(5.0),
        ..SampleConfig::default()
    };
    let error = error_with(&config);
    let Error::RateTooHigh { asked, most } = error else {
        panic!("{error}");
    };
    // Two invocations in a minute.
    assert_eq!((asked, most), (5.0, 2.0 / 60.0));
}

#[test]
fn a_writer_that_fails() {
    let (trace, _) = read(format!("{HEADER_2021}a,f,2,1\n")).unwrap();
    let mut full = [0_u8; 10];
    let error = trace.write_2021(&mut full[..]).unwrap_err();
    assert_sentence(&error);
    assert!(matches!(error, Error::Write { .. }));
}
