//! `dormouse bench engine`: its rows are taken on real VMs, and said in the form that is documented.

use std::collections::BTreeSet;

use dormouse_tests::Dormouse;
use serde_json::Value;

fn members(value: &Value) -> BTreeSet<&str> {
    let object = value.as_object().expect("an object");
    object.keys().map(String::as_str).collect()
}

#[test]
fn rows_stand_beside_their_floors() {
    let folder = tempfile::tempdir().expect("a folder");
    let Some(dormouse) = Dormouse::over(folder.path()) else {
        return;
    };
    // Both a clone that is restored and one that is rolled back, by the engine and by bare calls.
    for (rows, name, limit) in [
        ("first-*", "first-exit/hello", 1.25),
        ("rollback/100", "rollback/100", 1.3),
    ] {
        let arguments = ["--quick", "--rows", rows, "--format", "json"];
        let json = dormouse.bench_engine(&arguments).ok();
        let json: Value = serde_json::from_slice(&json).expect("JSON");
        assert_eq!(members(&json), BTreeSet::from(["machine", "rows"]));
        let [row] = &json["rows"].as_array().expect("rows")[..] else {
            panic!("one row was asked for: {json:#}");
        };
        let documented = ["name", "unit", "ours", "floor", "ratio", "limit", "spread"];
        assert_eq!(members(row), BTreeSet::from(documented));
        assert_eq!(row["name"], name);
        assert_eq!(row["limit"], limit);
        let number = |value: &Value| value.as_f64().expect("a number");
        let ratio = number(&row["ours"]) / number(&row["floor"]);
        assert!((number(&row["ratio"]) - ratio).abs() < 0.01, "{row:#}");
        for side in ["ours", "floor"] {
            let spread = &row["spread"][side];
            let (low, high) = (number(&spread[0]), number(&spread[1]));
            assert!(
                low <= number(&row[side]) && number(&row[side]) <= high,
                "{row:#}"
            );
        }
    }
}

#[test]
fn a_table_is_written_between_the_marks() {
    let folder = tempfile::tempdir().expect("a folder");
    let Some(dormouse) = Dormouse::over(folder.path()) else {
        return;
    };
    let readme = folder.path().join("README.md");
    let text = "before\n<!-- engine:begin -->\nstale-block\n<!-- engine:end -->\nafter\n";
    std::fs::write(&readme, text).expect("a file");
    let file = readme.to_str().expect("a path of text");
    let arguments = ["--quick", "--rows", "fault/same-core", "--readme", file];
    let table = dormouse.bench_engine(&arguments).ok();
    let table = String::from_utf8(table).expect("text");
    let row = table
        .lines()
        .find(|line| line.starts_with("fault/same-core "));
    let row = row.expect("the row");

    let written = std::fs::read_to_string(&readme).expect("a file");
    assert!(
        written.starts_with("before\n<!-- engine:begin -->\n"),
        "{written}"
    );
    assert!(
        written.ends_with("<!-- engine:end -->\nafter\n"),
        "{written}"
    );
    assert!(
        written.contains(row) && !written.contains("stale-block"),
        "{written}"
    );

    std::fs::write(&readme, "no marks").expect("a file");
    let ended = dormouse.bench_engine(&arguments);
    assert_eq!(ended.code, 65);
    assert!(ended.stderr.contains("engine:begin"), "{}", ended.stderr);
}
