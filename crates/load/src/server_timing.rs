//! What a target says of its stages: `Server-Timing` (W3C Server Timing).

/// The stages in one header value: names, and how long each took in microseconds. What has no
/// duration, or none that can be read, is left out.
pub(crate) fn stages(value: &str) -> impl Iterator<Item = (&str, u64)> {
    split(value, ',').filter_map(|metric| {
        let mut parts = split(metric, ';');
        let name = parts.next()?.trim();
        let ms = parts.find_map(|parameter| {
            let (key, value) = parameter.split_once('=')?;
            key.trim()
                .eq_ignore_ascii_case("dur")
                .then(|| value.trim().trim_matches('"').parse::<f64>().ok())?
        })?;
        let is_time = ms.is_finite() && (0.0..1e9).contains(&ms);
        let is_name = !name.is_empty() && name.len() <= 40 && name.bytes().all(is_token);
        (is_time && is_name).then_some((name, (ms * 1e3).round() as u64))
    })
}

/// RFC 9110 §5.6.2.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// Splits at a character that does not stand in quotes.
fn split(text: &str, at: char) -> impl Iterator<Item = &str> {
    let mut is_quoted = false;
    let mut is_escaped = false;
    text.split(move |character| {
        if is_escaped {
            is_escaped = false;
            return false;
        }
        match character {
            '\\' if is_quoted => is_escaped = true,
            '"' => is_quoted = !is_quoted,
            _ => return character == at && !is_quoted,
        }
        false
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(value: &str) -> Vec<(&str, u64)> {
        stages(value).collect()
    }

    #[test]
    fn what_dormouse_says() {
        assert_eq!(
            read("queue;dur=0.029, faults;dur=0.000;desc=\"12\", run;dur=1000.412"),
            [("queue", 29), ("faults", 0), ("run", 1_000_412)]
        );
    }

    #[test]
    fn what_others_say() {
        assert_eq!(
            read("miss, db;dur=53, app;desc=\"a, b; dur=7 \\\"c\\\"\" ; DUR=47.2"),
            [("db", 53_000), ("app", 47_200)]
        );
        assert_eq!(read("total;dur=\"1.5\""), [("total", 1500)]);
    }

    #[test]
    fn garbage_is_left_out() {
        for garbage in [
            "",
            ",,;;",
            "a;dur=",
            "a;dur=x",
            "a;dur=-1",
            "a;dur=NaN",
            "a;dur=inf",
            "a;dur=1e300",
            ";dur=1",
            "a b;dur=1",
            "\"a;dur=1",
            "<b>;dur=1",
        ] {
            assert_eq!(read(garbage), [], "{garbage}");
        }
    }
}
