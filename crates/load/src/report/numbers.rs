//! Numbers and foreign text as people read them.

use time::OffsetDateTime;

/// What stands for a number that there is none of.
const NONE: &str = "–";

/// Three digits that count, or all before the point.
pub(super) fn short(value: f64) -> String {
    match value.abs() {
        size if !size.is_finite() => NONE.to_owned(),
        0.0 => "0".to_owned(),
        size if size < 0.9995 => format!("{value:.3}"),
        size if size < 9.995 => format!("{value:.2}"),
        size if size < 99.95 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

/// Microseconds as milliseconds, without the unit.
pub(super) fn ms(us: u64) -> String {
    short(us as f64 / 1e3)
}

/// Mean microseconds as milliseconds, without the unit.
pub(super) fn mean_ms(us: f64) -> String {
    short(us / 1e3)
}

/// A share of 1 as a percentage, without the sign. What is not nothing does not look like it.
pub(super) fn percent(share: f64) -> String {
    let value = share * 100.0;
    match value {
        _ if !value.is_finite() => NONE.to_owned(),
        0.0 => "0".to_owned(),
        _ if value > 0.0 && value < 0.01 => "<0.01".to_owned(),
        _ if value > 99.99 && value < 100.0 => ">99.99".to_owned(),
        _ if value.fract() == 0.0 => format!("{value:.0}"),
        _ => format!("{value:.2}"),
    }
}

/// `part` of `whole`, as a percentage.
pub(super) fn percent_of(part: u64, whole: u64) -> String {
    match whole {
        0 => NONE.to_owned(),
        _ => percent(part as f64 / whole as f64),
    }
}

/// A percentage as an axis or a band has it: all digits that count and no others.
pub(super) fn plain_percent(share: f64) -> String {
    if !share.is_finite() {
        return NONE.to_owned();
    }
    let text = format!("{:.6}", share * 100.0);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Where a band begins and ends, with the sign.
pub(super) fn band(from: f64, to: f64) -> String {
    format!("{}–{} %", plain_percent(from), plain_percent(to))
}

/// A count, in groups of three.
pub(super) fn count(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push('\u{202f}');
        }
        text.push(digit);
    }
    text
}

/// Microseconds as seconds, with the unit.
pub(super) fn seconds(us: u64) -> String {
    format!("{} s", short(us as f64 / 1e6))
}

/// Bytes in the unit that suits.
pub(super) fn bytes(value: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut size = value as f64;
    let mut units = UNITS.iter();
    let mut unit = units.next().unwrap_or(&"B");
    for larger in units {
        if size < 1024.0 {
            break;
        }
        (size, unit) = (size / 1024.0, larger);
    }
    match value {
        0..1024 => format!("{value} B"),
        _ => format!("{} {unit}", short(size)),
    }
}

/// A moment, to the second.
pub(super) fn moment(unix_ms: u64) -> String {
    let seconds = i64::try_from(unix_ms / 1000).unwrap_or(i64::MAX);
    let Ok(moment) = OffsetDateTime::from_unix_timestamp(seconds) else {
        return NONE.to_owned();
    };
    let (date, time) = (moment.date(), moment.time());
    format!(
        "{}-{:02}-{:02} {:02}:{:02}:{:02} UTC",
        date.year(),
        u8::from(date.month()),
        date.day(),
        time.hour(),
        time.minute(),
        time.second()
    )
}

/// Text from elsewhere without what would control a terminal or turn the direction of reading.
pub(super) fn tame(text: &str) -> String {
    let mut tamed = String::with_capacity(text.len());
    for letter in text.chars() {
        let turns = matches!(letter,
            '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        if letter.is_control() || turns {
            tamed.extend(letter.escape_default());
        } else {
            tamed.push(letter);
        }
    }
    tamed
}

/// [`tame`] text of at most so many characters.
pub(super) fn clipped(text: &str, most: usize) -> String {
    let tamed = tame(text);
    if tamed.chars().count() <= most {
        return tamed;
    }
    let kept = tamed.chars().take(most.saturating_sub(1));
    kept.chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_keep_the_digits_that_count() {
        let texts = [0.0, 0.0042, 0.9999, 1.234, 9.996, 12.34, 123.4, 12345.6].map(short);
        assert_eq!(
            texts,
            ["0", "0.004", "1.00", "1.23", "10.0", "12.3", "123", "12346"]
        );
        assert_eq!(ms(118), "0.118");
    }

    #[test]
    fn what_is_not_a_number_is_a_dash() {
        for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let texts = [short(value), percent(value), plain_percent(value)];
            assert!(texts.iter().all(|text| text == NONE), "{texts:?}");
        }
        assert_eq!(percent_of(0, 0), NONE);
    }

    #[test]
    fn little_is_not_nothing_and_almost_all_is_not_all() {
        let texts = [0.0, 0.000_001, 0.0123, 0.5, 0.999_999, 1.0].map(percent);
        assert_eq!(texts, ["0", "<0.01", "1.23", "50", ">99.99", "100"]);
        assert_eq!(band(0.99, 0.999), "99–99.9 %");
        assert_eq!(band(0.0, 0.5), "0–50 %");
    }

    #[test]
    fn counts_and_sizes() {
        let texts = [0, 999, 1000, 1_234_567].map(count);
        assert_eq!(
            texts,
            ["0", "999", "1\u{202f}000", "1\u{202f}234\u{202f}567"]
        );
        let texts = [0, 1023, 1024, 5 << 30, u64::MAX].map(bytes);
        assert_eq!(
            texts,
            ["0 B", "1023 B", "1.00 KiB", "5.00 GiB", "16777216 TiB"]
        );
    }

    #[test]
    fn moments() {
        assert_eq!(moment(0), "1970-01-01 00:00:00 UTC");
        assert_eq!(moment(1_795_596_363_999), "2026-11-25 08:46:03 UTC");
        assert_eq!(moment(u64::MAX), NONE);
    }

    #[test]
    fn foreign_text_controls_nothing() {
        assert_eq!(tame("a\x1b[2J\r\n\u{202e}é"), "a\\u{1b}[2J\\r\\n\\u{202e}é");
        assert_eq!(clipped("abcdef", 4), "abc…");
        assert_eq!(clipped("abcd", 4), "abcd");
    }
}
