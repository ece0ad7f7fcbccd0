//! From an HTTP request to a function and back.

use std::fmt::Write as _;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, Response, StatusCode, Uri};
use axum::response::IntoResponse;
use dormouse_pool::{Failure, Outcome, Start, StartType, Timings};

use crate::envelope::RequestId;
use crate::functions::Name;
use crate::headers::{SERVER_TIMING, START, START_TYPE, to_client, to_function};
use crate::{ApiError, App, ErrorCode, Limits, OptionError, body};

/// Any method on `/v1/functions/{name}/invoke` and below it.
pub(crate) async fn invoke(
    State(app): State<App>,
    name: Result<Name, ApiError>,
    request: Request,
) -> Result<Response<Body>, ApiError> {
    let (parts, body) = request.into_parts();
    let limits = app.limits();
    // The body before the instance: a slow client must not hold an instance.
    let body = body::read(
        &parts.headers,
        body,
        limits.body_bytes,
        limits.body_timeout,
        app.buffers(),
    )
    .await?;
    let Name(name) = name?;
    let id = parts
        .extensions
        .get::<RequestId>()
        .map_or(HeaderValue::from_static("none"), |id| id.0.clone());

    let start = chosen_start(&parts.headers, limits)?;
    let lease = app.pool().checkout_for(&name, start).await?;
    let mut outcome = lease
        .invoke(dormouse_pool::Request {
            method: parts.method.as_str().to_owned(),
            target: target(&parts.uri),
            headers: to_function(&parts.headers, &id),
            body,
        })
        .await?;

    app.metrics().invoked(&name, &outcome.timings);
    if let Ok(answer) = &mut outcome.result {
        answer.body = app.buffers().count(std::mem::take(&mut answer.body))?;
    }
    Ok(reply(outcome, &parts.method))
}

/// How the instance is to start, where the client says so and may.
fn chosen_start(headers: &HeaderMap, limits: &Limits) -> Result<Start, ApiError> {
    let mut values = headers.get_all(START).iter();
    let Some(value) = values.next() else {
        return Ok(Start::default());
    };
    if !limits.start_choice {
        return Err(ApiError::new(
            ErrorCode::StartRefused,
            format!(
                "This server does not let requests choose their start; leave {START} out, or start \
                 the server with --start-choice."
            ),
        ));
    }
    let wrong = |reason| OptionError {
        option: START.to_string(),
        reason,
    };
    if values.next().is_some() {
        return Err(wrong("it may come once".to_owned()).into());
    }
    let text = String::from_utf8_lossy(value.as_bytes());
    Ok(text.parse().map_err(wrong)?)
}

fn reply(outcome: Outcome, method: &Method) -> Response<Body> {
    let Outcome {
        start,
        timings,
        result,
        console,
    } = outcome;
    let answered = result.and_then(|answer| {
        let bad_answer = |reason| Failure::BadAnswer { reason };
        let status = StatusCode::from_u16(answer.status)
            .ok()
            .filter(|status| !status.is_informational())
            .ok_or_else(|| bad_answer(format!("{} is not a final HTTP status", answer.status)))?;
        let headers = to_client(answer.headers, method, status, answer.body.is_empty())
            .map_err(bad_answer)?;
        let mut response = Response::new(Body::from(answer.body));
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        Ok(response)
    });
    let mut response = answered
        .unwrap_or_else(|failure| ApiError::from_failure(&failure, &console).into_response());
    describe(response.headers_mut(), start, &timings);
    response
}

/// Says how the invocation went. A function's own `Server-Timing` stays beside ours.
fn describe(headers: &mut HeaderMap, start: StartType, timings: &Timings) {
    headers.insert(START_TYPE, HeaderValue::from_static(start.as_str()));
    if let Ok(value) = HeaderValue::from_str(&server_timing(timings)) {
        headers.append(SERVER_TIMING, value);
    }
}

/// Durations are in milliseconds there, with our microseconds after the point. `clear`, `boot` and
/// `open` stand there only where that was done for the request. `restore` is all from
/// the instance in hand to the run, `memory` and `state` are parts of it; `first-fault` and `handler`
/// are counted from the start of `run`, which they are parts of.
fn server_timing(timings: &Timings) -> String {
    let mut text = String::with_capacity(192);
    let mut metric = |name: &str, us: u64, after: &str| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{name};dur={}.{:03}{after}", us / 1000, us % 1000);
    };
    metric("queue", timings.queue_us, ", ");
    for (name, us) in [
        ("clear", timings.clear_us),
        ("boot", timings.boot_us),
        ("open", timings.open_us),
    ] {
        if let Some(us) = us {
            metric(name, us, ", ");
        }
    }
    metric("memory", timings.memory_us, ", ");
    metric("state", timings.state_us, ", ");
    metric("restore", timings.restore_us, ", ");
    metric(
        "faults",
        timings.fault_us,
        &format!(";desc=\"{}\", ", timings.faults),
    );
    if let Some(us) = timings.first_fault_us {
        metric("first-fault", us, ", ");
    }
    if let Some(us) = timings.handler_us {
        metric("handler", us, ", ");
    }
    metric("run", timings.run_us, "");
    text
}

/// What stands behind `…/invoke`, as it was sent: the path, at least `/`, and the query.
fn target(uri: &Uri) -> String {
    let whole = uri
        .path_and_query()
        .map_or(uri.path(), |target| target.as_str());
    // The route has matched: "", "v1", "functions", name, "invoke" and the rest, if any.
    let rest = match whole.splitn(6, '/').nth(5) {
        // A slash that stands in the query only.
        Some(_) if uri.path().matches('/').count() < 5 => None,
        rest => rest,
    };
    match (rest, uri.query()) {
        (Some(rest), _) => format!("/{rest}"),
        (None, Some(query)) => format!("/?{query}"),
        (None, None) => "/".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use dormouse_pool::Answer;

    use super::*;

    #[test]
    fn the_function_sees_what_stands_behind_invoke() {
        for (path, seen) in [
            ("/v1/functions/f/invoke", "/"),
            ("/v1/functions/f/invoke?a=b", "/?a=b"),
            ("/v1/functions/f/invoke?a=/b/c", "/?a=/b/c"),
            ("/v1/functions/f/invoke/", "/"),
            ("/v1/functions/f/invoke/?", "/?"),
            ("/v1/functions/f/invoke/a/b?c=d", "/a/b?c=d"),
            ("/v1/functions/f/invoke//a//", "//a//"),
            ("/v1/functions/f/invoke/%2F%20x", "/%2F%20x"),
            ("/v1/functions/f/invoke/invoke/x", "/invoke/x"),
            ("http://host/v1/functions/f/invoke/a", "/a"),
        ] {
            assert_eq!(target(&path.parse().unwrap()), seen, "{path}");
        }
    }

    #[test]
    fn timing_is_in_milliseconds() {
        let timings = Timings {
            queue_us: 12,
            memory_us: 1300,
            state_us: 49,
            restore_us: 1450,
            run_us: 1_000_412,
            first_fault_us: Some(5),
            faults: 3,
            replayed_pages: 9,
            ..Timings::default()
        };
        assert_eq!(
            server_timing(&timings),
            "queue;dur=0.012, memory;dur=1.300, state;dur=0.049, restore;dur=1.450, \
             faults;dur=0.000;desc=\"3\", first-fault;dur=0.005, run;dur=1000.412"
        );
        let prepared = Timings {
            clear_us: Some(7),
            boot_us: Some(840_000),
            open_us: Some(2500),
            ..Timings::default()
        };
        assert!(server_timing(&prepared).starts_with(
            "queue;dur=0.000, clear;dur=0.007, boot;dur=840.000, open;dur=2.500, memory"
        ));
    }

    #[test]
    fn a_start_is_chosen_only_where_that_is_allowed() {
        let open = Limits {
            start_choice: true,
            ..Limits::default()
        };
        let mut headers = HeaderMap::new();
        assert_eq!(
            chosen_start(&headers, &Limits::default()).unwrap(),
            Start::Ready
        );
        for start in Start::ALL {
            headers.insert(START, HeaderValue::from_static(start.as_str()));
            assert_eq!(chosen_start(&headers, &open).unwrap(), start);
            let refused = chosen_start(&headers, &Limits::default()).unwrap_err();
            assert_eq!(refused.code(), ErrorCode::StartRefused);
        }
        headers.append(START, HeaderValue::from_static("cold"));
        let twice = chosen_start(&headers, &open).unwrap_err();
        assert_eq!(twice.code(), ErrorCode::BadOption);
        for value in [&b"warm"[..], b"", b"Cold", b"\xff"] {
            headers.insert(START, HeaderValue::from_bytes(value).unwrap());
            let error = chosen_start(&headers, &open).unwrap_err();
            assert_eq!(error.code(), ErrorCode::BadOption);
            assert!(error.detail().contains("first-uncached"), "{error}");
        }
    }

    fn outcome(result: Result<Answer, Failure>) -> Outcome {
        Outcome {
            start: StartType::RolledBack,
            timings: Timings::default(),
            result,
            console: "last words".into(),
        }
    }

    fn answer(status: u16) -> Answer {
        Answer {
            status,
            headers: vec![("server-timing".into(), "db;dur=1".into())],
            body: Bytes::from_static(b"body"),
        }
    }

    #[test]
    fn an_answer_goes_out_as_it_is() {
        let response = reply(outcome(Ok(answer(418))), &Method::GET);
        assert_eq!(response.status(), 418);
        assert_eq!(response.headers()[START_TYPE], "rolled-back");
        let timings: Vec<_> = response.headers().get_all(SERVER_TIMING).iter().collect();
        assert_eq!(timings.len(), 2);
        assert_eq!(timings[0], "db;dur=1");
    }

    #[test]
    fn a_failure_is_told_with_its_timing() {
        for result in [
            Err(Failure::Exited { code: 3 }),
            Ok(answer(101)),
            Ok(answer(0)),
            Ok(answer(1000)),
        ] {
            let response = reply(outcome(result), &Method::GET);
            assert_eq!(response.status(), 502);
            assert!(response.extensions().get::<ApiError>().is_some());
            assert!(response.headers().contains_key(SERVER_TIMING));
        }
    }
}
