//! Tables for a terminal.

use dormouse_load::report::{readme_table, table};

use crate::sample;

/// The lines from the one that begins so to the next empty one, in cells.
fn block<'a>(text: &'a str, begins: &str) -> Vec<Vec<&'a str>> {
    let lines = text.lines().skip_while(|line| !line.starts_with(begins));
    let lines = lines.take_while(|line| !line.is_empty());
    let cells = lines.map(|line| {
        line.split("  ")
            .map(str::trim)
            .filter(|cell| !cell.is_empty())
    });
    cells.map(Iterator::collect).collect()
}

#[test]
fn each_run_has_a_row_with_its_numbers() {
    let record = sample::record();
    let text = table(&record);
    let rows = block(&text, "run ");
    assert_eq!(rows.len(), 3, "{text}");
    assert_eq!(rows[0].len(), rows[1].len());
    assert_eq!(&rows[1][..2], ["steady", "closed loop, 4 at once"]);
    let p50_ms = record.runs[0].latency.quantile_us(0.5) as f64 / 1e3;
    assert_eq!(rows[1][4], format!("{p50_ms:.3}"));
    assert!(rows[1][11].starts_with("restored "), "{text}");
    assert!(text.lines().all(|line| line == line.trim_end()));
}

#[test]
fn it_says_what_is_wrong_and_who_was_the_limit() {
    let text = table(&sample::record());
    for wanted in [
        "warning: other work ran on this machine",
        "steady\nclient: was not the limit\n",
        "(interrupted before its time)\nclient was the limit: the busiest of its threads",
        "finding: half of the answers",
        "AMD EPYC, 2 cores, 24 GiB, Linux 6.18.44",
        "2026-11-25 08:46:03 UTC",
    ] {
        assert!(text.contains(wanted), "{wanted} in:\n{text}");
    }
    let errors = block(&text, "error ");
    assert_eq!(errors[2][..2], ["status-503/queue-full", "310"]);
}

#[test]
fn the_parts_of_a_band_add_up() {
    let text = table(&sample::record());
    let rows = block(&text, "answers by latency");
    assert_eq!(rows.len(), 6, "{text}");
    for row in &rows[1..] {
        let numbers: Vec<f64> = row[2..].iter().map(|cell| cell.parse().unwrap()).collect();
        let (mean, parts) = numbers.split_first().unwrap();
        let sum: f64 = parts.iter().sum();
        assert!((sum / mean - 1.0).abs() < 0.02, "{row:?}");
    }
}

#[test]
fn names_control_no_terminal() {
    let mut record = sample::record();
    let evil = "\x1b]0;owned\x07\r\u{202e}\n";
    record.title = evil.to_owned();
    record.target = evil.to_owned();
    let run = &mut record.runs[1];
    run.name = evil.to_owned();
    run.findings = vec![evil.to_owned()];
    let error = run.errors.pop_first().unwrap().1;
    run.errors.insert(evil.to_owned(), error);
    for text in [table(&record), readme_table(&record)] {
        let is_evil = |letter: char| letter.is_control() && letter != '\n' || letter == '\u{202e}';
        assert!(!text.contains(is_evil), "{text:?}");
        assert!(text.contains("\\u{1b}]0;owned"), "{text}");
    }
}

#[test]
fn a_run_without_answers_has_dashes() {
    let mut record = sample::record();
    record.runs = vec![sample::nothing()];
    let text = table(&record);
    let rows = block(&text, "run ");
    assert_eq!(rows[1][2..], ["0", "0", "–", "–", "–", "–", "–", "–", "0"]);
    assert!(text.contains("answers: none that were good"), "{text}");
    record.runs.clear();
    assert!(table(&record).starts_with("Open and closed loop"));
    assert_eq!(readme_table(&record), "");
}

#[test]
fn the_short_table_says_when_the_client_was_the_limit() {
    let mut record = sample::record();
    record.runs.iter_mut().for_each(|run| run.requests.clear());
    let text = readme_table(&record);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 3, "{text}");
    assert!(
        !lines[1].contains("client") && lines[2].ends_with("client"),
        "{text}"
    );
}

#[test]
fn the_short_table_has_the_requests_of_a_run_where_there_are_several() {
    let mut record = sample::record();
    record.runs.truncate(1);
    let whole = record.runs[0].offered_per_s();
    let text = readme_table(&record);
    let rows = block(&text, "run ");
    let names: Vec<_> = rows.iter().skip(1).map(|row| row[0]).collect();
    assert_eq!(names, ["steady", "steady: hello", "steady: wordfreq"]);
    let offered = |row: usize| rows[row][1].parse::<f64>().unwrap();
    assert!(
        (offered(2) + offered(3) - whole).abs() < 0.01 * whole,
        "{text}"
    );

    record.runs[0].requests.pop_last();
    assert_eq!(readme_table(&record).lines().count(), 2);
}
