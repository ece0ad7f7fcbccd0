//! What a number of a text is.
//!
//! A *word* is a run of letters, digits and `_`, joined by `-`, `.` or `/`. A word that begins with a
//! letter is a name: none of its digits count (`x86-64`, `T0`, `p99`, `Apache-2.0`, `src/3/a.rs`). In
//! a word that begins with a digit, all counts up to its first letter (`64` of `64-bit`, `6.18.44` of
//! `6.18.44-fc`, `30` and `40` of `30-40`). Digits that `.` or `:` joins are one number (`1.85`,
//! `127.0.0.1:8080`). A `-` that joins nothing is the sign of the number behind it. Numbers that are
//! written in words do not count.

use std::ops::Range;
use std::sync::LazyLock;

use regex::Regex;

static WORD: LazyLock<Regex> = LazyLock::new(|| {
    fixed(
        r"(?:\d+(?:[.:]\d+)+|[\p{Alphabetic}\d])[\p{Alphabetic}\d_]*(?:[-./][\p{Alphabetic}\d_]+)*",
    )
});
static NUMBER: LazyLock<Regex> = LazyLock::new(|| fixed(r"\d+(?:[.:]\d+)*"));

/// An expression that stands in this program.
pub(super) fn fixed(expression: &str) -> Regex {
    Regex::new(expression).expect("the expression is part of this program and tested")
}

/// Where the numbers of a text are, in bytes.
pub(super) fn find(text: &str) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    for word in WORD.find_iter(text) {
        let counts = word.as_str().find(char::is_alphabetic);
        let counts = &word.as_str()[..counts.unwrap_or(word.len())];
        for number in NUMBER.find_iter(counts) {
            let start = word.start() + number.start();
            let sign = usize::from(is_signed(&text[..start]));
            found.push(start - sign..word.start() + number.end());
        }
    }
    found
}

/// Whether what stands before a number ends in its sign.
fn is_signed(before: &str) -> bool {
    let before = before.strip_suffix('-');
    before.is_some_and(|before| !before.ends_with(|c: char| c.is_alphanumeric() || c == '-'))
}

/// The numbers of a text and what is left of it, with `#` in their places.
pub(super) fn split(text: &str) -> (Vec<&str>, String) {
    let mut numbers = Vec::new();
    let mut rest = String::new();
    let mut end = 0;
    for range in find(text) {
        rest.push_str(&text[end..range.start]);
        rest.push('#');
        end = range.end;
        numbers.push(&text[range]);
    }
    rest.push_str(&text[end..]);
    (numbers, rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(text: &str) -> Vec<&str> {
        split(text).0
    }

    #[test]
    fn digits_in_names_do_not_count() {
        for name in [
            "x86-64",
            "**x86-64 hosts**",
            "T0 to T7",
            "p99",
            "Apache-2.0",
            "crates/3/a.rs",
            "restore/64MiB",
            "HTTP/1.1",
            "v1/functions",
            "kvm_2",
            "no digits",
        ] {
            assert!(numbers(name).is_empty(), "{name}: {:?}", numbers(name));
        }
    }

    #[test]
    fn all_other_digits_count() {
        for (text, expected) in [
            ("Bodies up to 6 MiB, answers", &["6"][..]),
            ("Rust 1.85 for guests.", &["1.85"]),
            ("(0.10): their", &["0.10"]),
            ("at the end 12.", &["12"]),
            ("6.00…13.0", &["6.00", "13.0"]),
            ("30-40 or 50/60", &["30", "40", "50", "60"]),
            ("983 times", &["983"]),
            ("0.118 (restored)", &["0.118"]),
            ("64-bit, 1.5µs, 64MiB", &["64", "1.5", "64"]),
            ("Linux 6.18.44-fc-v782", &["6.18.44"]),
            ("http://127.0.0.1:8080/v1/x", &["127.0.0.1:8080"]),
            ("localhost:8080 and :8081", &["8080", "8081"]),
            ("dur=0.029, 99.9%, _5_", &["0.029", "99.9", "5"]),
            ("1,000", &["1", "000"]),
            ("-1.56…-0.39 (-2), --3", &["-1.56", "-0.39", "-2", "3"]),
        ] {
            assert_eq!(numbers(text), expected, "{text}");
        }
    }

    #[test]
    fn what_is_no_number_is_left() {
        assert_eq!(split("0.40 OVER").1, "# OVER");
        assert_eq!(split("6.00…13.0"), (vec!["6.00", "13.0"], "#…#".into()));
    }
}
