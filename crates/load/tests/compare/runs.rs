//! Which runs are compared.

use super::*;
use dormouse_load::compare::CompareError;

fn of(names: &[&str]) -> Record {
    let few = Target {
        slices: 10,
        per_slice: 10,
        ..STEADY
    };
    let slices = slices(few, 1);
    record(
        "made up",
        names.iter().map(|name| run(name, slices.clone())).collect(),
    )
}

fn paired(base: &[&str], new: &[&str], run: Option<&str>) -> Result<Comparison, CompareError> {
    let config = CompareConfig {
        run: run.map(str::to_owned),
        resamples: 100,
        ..config(&[Metric::P50])
    };
    compare(&of(base), &of(new), &config)
}

fn names(comparison: &Comparison) -> Vec<(&str, &str)> {
    let runs = comparison.runs.iter();
    runs.map(|run| (run.base.as_str(), run.new.as_str()))
        .collect()
}

#[test]
fn equal_names_belong_together() {
    let found = paired(&["a", "b", "c"], &["c", "d", "a"], None).unwrap();
    assert_eq!(names(&found), [("a", "a"), ("c", "c")]);
    assert_eq!(
        (found.only_in_base, found.only_in_new),
        (vec!["b".into()], vec!["d".into()])
    );
    // Of several, the first belongs to the first.
    let twice = paired(&["a", "a"], &["a", "b", "a", "a"], None).unwrap();
    assert_eq!(names(&twice), [("a", "a"), ("a", "a")]);
    assert_eq!(twice.only_in_new, ["b", "a"]);
}

#[test]
fn single_runs_belong_together_whatever_their_names() {
    let found = paired(&["before"], &["after"], None).unwrap();
    assert_eq!(names(&found), [("before", "after")]);
    let found = paired(&["warm-1", "cold"], &["x", "warm-2"], Some("warm-*")).unwrap();
    assert_eq!(names(&found), [("warm-1", "warm-2")]);
    assert!(found.only_in_base.is_empty() && found.only_in_new.is_empty());
}

#[test]
fn runs_can_be_chosen() {
    let all = ["s-1", "s-2", "t", "[x]"];
    let found = paired(&all, &all, Some("s-*")).unwrap();
    assert_eq!(names(&found), [("s-1", "s-1"), ("s-2", "s-2")]);
    let found = paired(&all, &all, Some("[x]")).unwrap();
    assert_eq!(names(&found), [("[x]", "[x]")]);
}

#[test]
fn without_runs_in_common_both_sides_are_named() {
    let error = paired(&["a", "b"], &["c", "d"], None).unwrap_err();
    let CompareError::NothingInCommon { base, new } = &error else {
        panic!("{error}");
    };
    assert_eq!((base.len(), new.len()), (2, 2));
    assert!(
        error
            .to_string()
            .contains("the base has \"a\", \"b\", the new record has \"c\"")
    );
    let error = paired(&[], &[], None).unwrap_err().to_string();
    assert!(
        error.contains("the base has none, the new record has none"),
        "{error}"
    );
    let error = paired(&["a"], &["b", "a"], Some("b"))
        .unwrap_err()
        .to_string();
    assert!(error.starts_with("no run \"b\" in the base: "), "{error}");
    let many: Vec<String> = (0..25).map(|place| format!("r{place}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let error = paired(&many, &["x", "y"], None).unwrap_err().to_string();
    assert!(error.contains("\"r19\" and 5 more"), "{error}");
    let error = paired(&["a"], &["a"], Some("[a")).unwrap_err();
    assert!(matches!(error, CompareError::BadPattern { .. }), "{error}");
}
