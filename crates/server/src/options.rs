//! A function's options as name–value pairs, the form that a query string and a command line share.

use dormouse_pool::FunctionConfig;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

/// All but RFC 3986's unreserved characters.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// An option that is unknown or whose value cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OptionError {
    /// The option's name.
    pub option: String,
    /// What is wrong with it, in one sentence.
    pub reason: String,
}

impl std::fmt::Display for OptionError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "option {:?}: {}", self.option, self.reason)
    }
}

impl std::error::Error for OptionError {}

/// Reads a function's options. `config` is a whole [`FunctionConfig`] in JSON and is read before
/// the others, wherever it stands; `arg` and `env` may come several times, of the rest the last
/// counts. Ranges are the pool's business.
///
/// # Errors
/// [`OptionError`] names the option that is unknown or cannot be read.
pub fn config_from_options<N: AsRef<str>, V: AsRef<str>>(
    options: &[(N, V)],
) -> Result<FunctionConfig, OptionError> {
    let mut config = FunctionConfig::default();
    for (name, value) in options {
        if name.as_ref() == "config" {
            config = serde_json::from_str(value.as_ref()).map_err(|error| {
                wrong("config", format!("it is not a function's config: {error}"))
            })?;
        }
    }
    for (name, value) in options {
        let (name, value) = (name.as_ref(), value.as_ref());
        match name {
            "config" => {}
            "memory" => config.memory_bytes = bytes_from_text(value).map_err(|e| wrong(name, e))?,
            "timeout_ms" => config.timeout_ms = number(name, value)?,
            "init_timeout_ms" => config.init_timeout_ms = number(name, value)?,
            "concurrency" => {
                config.concurrency = usize::try_from(number(name, value)?)
                    .map_err(|_| wrong(name, "it is too large".into()))?;
            }
            "paging" => config.paging = Some(value.parse().map_err(|e| wrong(name, e))?),
            "compress" => config.compression = value.parse().map_err(|e| wrong(name, e))?,
            "base" => config.base = Some(address(name, value)?),
            "layouts" => {
                config.layouts = u32::try_from(number(name, value)?)
                    .map_err(|_| wrong(name, "it is too large".into()))?;
            }
            "arg" => config.args.push(value.to_owned()),
            "env" => {
                let (key, value) = value
                    .split_once('=')
                    .filter(|(key, _)| !key.is_empty())
                    .ok_or_else(|| wrong(name, format!("write {value:?} as NAME=VALUE")))?;
                config.env.push((key.to_owned(), value.to_owned()));
            }
            unknown => {
                return Err(wrong(
                    unknown,
                    "there is no such option; the options are memory, timeout_ms, \
                     init_timeout_ms, concurrency, paging, compress, base, layouts, arg, env and config"
                        .into(),
                ));
            }
        }
    }
    Ok(config)
}

/// The query string that [`config_from_options`] reads back as `config`.
#[must_use]
pub fn query_from_config(config: &FunctionConfig) -> String {
    let json = serde_json::json!(config).to_string();
    format!("config={}", utf8_percent_encode(&json, ESCAPED))
}

/// Reads a size: a whole number of bytes, or one with the unit `KiB`, `MiB` or `GiB` (also short:
/// `64M`), in any case.
///
/// # Errors
/// One sentence that says what a size looks like.
pub fn bytes_from_text(text: &str) -> Result<u64, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let shift = match unit.trim_start().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kib" => 10,
        "m" | "mib" => 20,
        "g" | "gib" => 30,
        _ => return Err(format!("{text:?} is not a size; write for example 64MiB")),
    };
    if number.is_empty() {
        return Err(format!("{text:?} is not a size; write for example 64MiB"));
    }
    number
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(1 << shift))
        .ok_or_else(|| format!("{text:?} is larger than any memory"))
}

fn number(name: &str, value: &str) -> Result<u64, OptionError> {
    value
        .parse()
        .map_err(|_| wrong(name, format!("{value:?} is not a whole number")))
}

fn address(name: &str, value: &str) -> Result<u64, OptionError> {
    let parsed = match value.strip_prefix("0x").or(value.strip_prefix("0X")) {
        // from_str_radix also takes a sign.
        Some(hex) if hex.starts_with(['+', '-']) => None,
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => value.parse().ok(),
    };
    parsed.ok_or_else(|| {
        wrong(
            name,
            format!("{value:?} is not an address; write for example 0x11200000"),
        )
    })
}

fn wrong(option: &str, reason: String) -> OptionError {
    OptionError {
        option: option.to_owned(),
        reason,
    }
}

#[cfg(test)]
mod tests {
    use dormouse_pool::Paging;

    use super::*;

    fn parse(options: &[(&str, &str)]) -> Result<FunctionConfig, OptionError> {
        config_from_options(options)
    }

    #[test]
    fn every_option_is_read() {
        let config = parse(&[
            ("memory", "128MiB"),
            ("timeout_ms", "250"),
            ("init_timeout_ms", "9000"),
            ("concurrency", "3"),
            ("paging", "staged"),
            ("compress", "zstd"),
            ("base", "0x11200000"),
            ("layouts", "4"),
            ("arg", "--fast"),
            ("arg", ""),
            ("env", "A=1=2"),
        ])
        .unwrap();
        assert_eq!(
            config,
            FunctionConfig {
                memory_bytes: 128 << 20,
                timeout_ms: 250,
                init_timeout_ms: 9000,
                concurrency: 3,
                paging: Some(Paging::Staged),
                compression: "zstd".parse().unwrap(),
                base: Some(0x1120_0000),
                layouts: 4,
                args: vec!["--fast".into(), String::new()],
                env: vec![("A".into(), "1=2".into())],
            }
        );
        assert_eq!(parse(&[]).unwrap(), FunctionConfig::default());
    }

    #[test]
    fn json_comes_first_and_single_options_change_it() {
        let config = parse(&[
            ("timeout_ms", "5"),
            ("config", r#"{"memory_bytes": 33554432, "timeout_ms": 7}"#),
        ])
        .unwrap();
        assert_eq!((config.memory_bytes, config.timeout_ms), (32 << 20, 5));
        assert!(parse(&[("config", r#"{"memroy": 1}"#)]).is_err());
        assert!(parse(&[("config", "[")]).is_err());
    }

    #[test]
    fn wrong_options_are_named() {
        for (name, value) in [
            ("memory", ""),
            ("memory", "-1"),
            ("memory", "64 apples"),
            ("memory", "MiB"),
            ("memory", "18446744073709551615GiB"),
            ("memory", "99999999999999999999"),
            ("timeout_ms", "-1"),
            ("timeout_ms", "1s"),
            ("concurrency", "many"),
            ("paging", "magic"),
            ("compress", "gzip"),
            ("base", "0xZZ"),
            ("base", "0x+1"),
            ("layouts", "two"),
            ("layouts", "4294967297"),
            ("env", "NAME"),
            ("env", "=value"),
            ("memroy", "64MiB"),
        ] {
            let error = parse(&[(name, value)]).unwrap_err();
            assert_eq!(error.option, name, "{value}");
        }
    }

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("4096B", 4096),
            ("3k", 3072),
            ("64MiB", 64 << 20),
            ("64 mib", 64 << 20),
            ("2G", 2 << 30),
        ] {
            assert_eq!(bytes_from_text(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn a_config_comes_back_from_its_query_string() {
        let config = FunctionConfig {
            base: Some(0x20_0000),
            args: vec!["a&b=c+d%20".into()],
            env: vec![("ä".into(), "x y".into())],
            ..FunctionConfig::default()
        };
        let uri: axum::http::Uri = format!("/?{}", query_from_config(&config)).parse().unwrap();
        let axum::extract::Query(options) =
            axum::extract::Query::<Vec<(String, String)>>::try_from_uri(&uri).unwrap();
        assert_eq!(config_from_options(&options), Ok(config));
    }
}
