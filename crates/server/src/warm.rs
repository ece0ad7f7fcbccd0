//! Warming a function: some requests are answered, and what that leaves is snapshotted.

use axum::Json;
use axum::extract::{Request, State};
use axum::http::header::LOCATION;
use axum::http::uri::PathAndQuery;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode};
use dormouse_pool::Warmed;

use crate::access::Caller;
use crate::functions::{Name, options_in};
use crate::{ApiError, App, OptionError, body};

/// How a function is to be warmed, as a query says it.
#[derive(Debug, Default, PartialEq, Eq)]
struct WarmOptions {
    runs: Option<u32>,
    method: Option<String>,
    path: Option<String>,
    from: Option<String>,
}

/// `POST /v1/functions/{name}/warm`
pub(crate) async fn warm(
    State(app): State<App>,
    name: Result<Name, ApiError>,
    request: Request,
) -> Result<(StatusCode, HeaderMap, Json<Warmed>), ApiError> {
    let (parts, body) = request.into_parts();
    let limits = app.limits();
    let body = body::read(
        &parts.headers,
        body,
        limits.body_bytes,
        limits.body_timeout,
        app.buffers(),
    )
    .await?;
    let Name(name) = name?;
    let options = options_in(&parts.uri)?;
    let WarmOptions {
        runs,
        method,
        path,
        from,
    } = read_options(&options)?;
    let runs = runs.ok_or_else(|| wrong("runs", "say how many requests are to be answered"))?;
    let usual = if body.is_empty() { "GET" } else { "POST" };
    let from = match from {
        Some(text) => {
            let caller = parts.extensions.get::<Caller>();
            let may_reach = |function: &str| caller.map_or(Ok(()), |c| c.may_reach(function));
            // What a clone of that snapshot holds could be asked for under the new name, and whether
            // it is there is no business of such a caller either.
            may_reach(text.split(['@', ':']).next().unwrap_or_default())?;
            let from = app.pool().snapshot_ref(&text).await?;
            may_reach(from.function.as_ref())?;
            Some(from)
        }
        None => None,
    };
    let request = dormouse_pool::Request {
        method: method.unwrap_or_else(|| usual.to_owned()),
        target: path.unwrap_or_else(|| "/".to_owned()),
        body,
        ..dormouse_pool::Request::default()
    };
    let warmed = app.pool().warm(&name, runs, request, from).await?;
    let mut headers = HeaderMap::new();
    let location = parts.uri.path().trim_end_matches("/warm");
    headers.extend(HeaderValue::from_str(location).map(|location| (LOCATION, location)));
    Ok((StatusCode::CREATED, headers, Json(warmed)))
}

fn read_options<N: AsRef<str>, V: AsRef<str>>(
    options: &[(N, V)],
) -> Result<WarmOptions, OptionError> {
    let mut read = WarmOptions::default();
    for (name, value) in options {
        let (name, value) = (name.as_ref(), value.as_ref());
        match name {
            "runs" => {
                let runs = value.parse();
                let runs = runs.map_err(|_| wrong(name, "it is not a number that can be run"))?;
                read.runs = Some(runs);
            }
            "method" => {
                Method::from_bytes(value.as_bytes())
                    .map_err(|_| wrong(name, "it is not an HTTP method"))?;
                read.method = Some(value.to_owned());
            }
            "path" => {
                let is_target = value.starts_with('/') && value.parse::<PathAndQuery>().is_ok();
                if !is_target {
                    return Err(wrong(name, "write path and query, for example /a?b=c"));
                }
                read.path = Some(value.to_owned());
            }
            "from" => read.from = Some(value.to_owned()),
            unknown => {
                return Err(wrong(
                    unknown,
                    "there is no such option; the options are runs, method, path and from",
                ));
            }
        }
    }
    Ok(read)
}

fn wrong(option: &str, reason: &str) -> OptionError {
    OptionError {
        option: option.to_owned(),
        reason: reason.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read_and_wrong_ones_are_named() {
        let options = [
            ("runs", "3"),
            ("method", "PUT"),
            ("path", "/a?b=c"),
            ("from", "f"),
        ];
        let expected = WarmOptions {
            runs: Some(3),
            method: Some("PUT".into()),
            path: Some("/a?b=c".into()),
            from: Some("f".into()),
        };
        assert_eq!(read_options(&options), Ok(expected));
        for (name, value) in [
            ("runs", "-1"),
            ("runs", "many"),
            ("method", "GE T"),
            ("method", ""),
            ("path", "a"),
            ("path", "/a b"),
            ("path", ""),
            ("run", "1"),
        ] {
            assert_eq!(read_options(&[(name, value)]).unwrap_err().option, name);
        }
    }
}
