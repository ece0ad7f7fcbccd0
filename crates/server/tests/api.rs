//! The router, request by request.

mod support;

use axum::body::Body;
use axum::http::{HeaderMap, Request, StatusCode};
use dormouse_server::{Limits, router};
use http_body_util::BodyExt;
use serde_json::Value;
use tower::ServiceExt;

struct Reply {
    status: StatusCode,
    headers: HeaderMap,
    body: String,
}

impl Reply {
    /// The error's code, after a look at everything that an error must have.
    #[track_caller]
    fn problem(&self) -> String {
        assert_eq!(self.headers["content-type"], "application/problem+json");
        let problem: Value = serde_json::from_str(&self.body).unwrap();
        assert_eq!(problem["status"], self.status.as_u16());
        assert_eq!(
            problem["instance"],
            self.headers["x-request-id"].to_str().unwrap()
        );
        let code = problem["code"].as_str().unwrap();
        assert_eq!(self.headers["x-dormouse-error"], code);
        assert!(problem["detail"].as_str().unwrap().ends_with('.'));
        code.to_owned()
    }
}

async fn send(request: Request<Body>, limits: Limits) -> Reply {
    let (app, _folder) = support::app(limits);
    let response = router(app).oneshot(request).await.unwrap();
    let (parts, body) = response.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    Reply {
        status: parts.status,
        headers: parts.headers,
        body: String::from_utf8(body.into()).unwrap(),
    }
}

async fn ask(method: &str, path: &str, body: impl Into<Body>) -> Reply {
    let request = Request::builder().method(method).uri(path);
    send(request.body(body.into()).unwrap(), Limits::default()).await
}

#[tokio::test]
async fn what_cannot_be_warmed_is_refused_before_anything_runs() {
    for (query, status, code) in [
        ("", 400, "bad-option"),
        ("?runs=0", 400, "bad-option"),
        ("?runs=10001", 400, "bad-option"),
        ("?runs=1&path=a", 400, "bad-option"),
        ("?runs=1&faster=1", 400, "bad-option"),
        ("?runs=1&from=A", 400, "bad-name"),
        ("?runs=1&from=f@x", 400, "bad-option"),
        ("?runs=1", 404, "unknown-function"),
        ("?runs=1&from=f", 404, "unknown-function"),
    ] {
        let reply = ask("POST", &format!("/v1/functions/f/warm{query}"), "body").await;
        assert_eq!(
            (reply.status.as_u16(), &*reply.problem()),
            (status, code),
            "{query}"
        );
    }
    assert_eq!(ask("GET", "/v1/functions/f/warm", "").await.status, 405);
}

#[tokio::test]
async fn an_empty_store_has_no_functions() {
    let reply = ask("GET", "/v1/functions", "").await;
    assert_eq!(reply.status, 200);
    assert_eq!(reply.body, r#"{"functions":[]}"#);
    assert_eq!(reply.headers["content-type"], "application/json");
}

#[tokio::test]
async fn a_function_that_is_not_there_is_404_everywhere() {
    for (method, path) in [
        ("GET", "/v1/functions/f"),
        ("DELETE", "/v1/functions/f"),
        ("GET", "/v1/functions/f/invoke"),
        ("POST", "/v1/functions/f/invoke/"),
        ("PATCH", "/v1/functions/f/invoke/a/b?c=d"),
        ("PROPFIND", "/v1/functions/f/invoke/a"),
    ] {
        let reply = ask(method, path, "body").await;
        assert_eq!(reply.status, 404, "{method} {path}");
        assert_eq!(reply.problem(), "unknown-function", "{method} {path}");
    }
}

#[tokio::test]
async fn what_is_no_route_says_so() {
    for path in [
        "/",
        "/v1",
        "/v1/functions/",
        "/v1/functions/f/invoked",
        "/v2/functions",
    ] {
        let reply = ask("GET", path, "").await;
        assert_eq!(reply.status, 404, "{path}");
        assert_eq!(reply.problem(), "unknown-route", "{path}");
    }
}

#[tokio::test]
async fn a_wrong_method_is_405_with_allow() {
    for (method, path, allowed) in [
        ("POST", "/v1/functions", "GET,HEAD"),
        ("PATCH", "/v1/functions/f", "PUT,GET,HEAD,DELETE"),
        ("DELETE", "/metrics", "GET,HEAD"),
    ] {
        let reply = ask(method, path, "").await;
        assert_eq!(reply.status, 405, "{method} {path}");
        assert_eq!(reply.problem(), "method-not-allowed");
        assert_eq!(reply.headers["allow"], allowed);
    }
}

#[tokio::test]
async fn bad_input_to_deploy_is_400_and_named() {
    let long = format!("/v1/functions/{}", "x".repeat(300));
    for (path, code, word) in [
        ("/v1/functions/f", "bad-image", "ELF"),
        ("/v1/functions/f?memory=lots", "bad-option", "memory"),
        ("/v1/functions/f?memroy=64MiB", "bad-option", "memroy"),
        ("/v1/functions/f?config=%7B", "bad-option", "config"),
        ("/v1/functions/a%2Fb", "bad-name", "a/b"),
        ("/v1/functions/..", "bad-name", ".."),
        ("/v1/functions/%C3%BCber", "bad-name", "über"),
        ("/v1/functions/%FF", "bad-name", "name"),
        (long.as_str(), "bad-name", "xxx"),
    ] {
        let reply = ask("PUT", path, "no image").await;
        assert_eq!(reply.status, 400, "{path}");
        assert_eq!(reply.problem(), code, "{path}: {}", reply.body);
        let problem: Value = serde_json::from_str(&reply.body).unwrap();
        let detail = problem["detail"].as_str().unwrap();
        assert!(detail.contains(word), "{path}: {detail}");
    }
}

#[tokio::test]
async fn bodies_over_the_limit_are_413() {
    let limits = Limits {
        image_bytes: 8,
        body_bytes: 4,
        ..Limits::default()
    };
    for (path, body) in [
        ("/v1/functions/f", "123456789"),
        ("/v1/functions/f/invoke", "12345"),
    ] {
        let request = Request::put(path).body(Body::from(body)).unwrap();
        let reply = send(request, limits.clone()).await;
        assert_eq!(reply.status, 413);
        assert_eq!(reply.problem(), "too-large");
    }
}

#[tokio::test]
async fn a_request_id_comes_back_or_is_made() {
    let request = Request::get("/livez").header("x-request-id", "order-66");
    let reply = send(request.body(Body::empty()).unwrap(), Limits::default()).await;
    assert_eq!(reply.headers["x-request-id"], "order-66");
    let reply = ask("GET", "/nothing", "").await;
    assert_eq!(reply.headers["x-request-id"].len(), 36);
}

#[tokio::test]
async fn readiness_ends_when_draining_begins_and_life_goes_on() {
    let (app, _folder) = support::app(Limits::default());
    let router = router(app.clone());
    let status = async |path: &str| {
        let request = Request::get(path).body(Body::empty()).unwrap();
        router.clone().oneshot(request).await.unwrap().status()
    };
    assert_eq!(status("/readyz").await, 200);
    app.begin_drain();
    assert_eq!(status("/readyz").await, 503);
    assert_eq!(status("/v1/functions").await, 503);
    assert_eq!(status("/v1/functions/f/invoke").await, 503);
    assert_eq!(status("/livez").await, 200);
    assert_eq!(status("/metrics").await, 200);
}

#[tokio::test]
async fn metrics_count_replies_by_route() {
    let (app, _folder) = support::app(Limits::default());
    let router = router(app);
    let get = async |path: &str| {
        let request = Request::get(path).body(Body::empty()).unwrap();
        let response = router.clone().oneshot(request).await.unwrap();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        String::from_utf8(body.into()).unwrap()
    };
    for path in [
        "/livez",
        "/v1/functions/f/invoke/",
        "/v1/functions/g/invoke/x",
        "/nowhere",
    ] {
        get(path).await;
    }
    let text = get("/metrics").await;
    for line in [
        r#"dormouse_replies_total{route="/livez",status="200"} 1"#,
        r#"dormouse_replies_total{route="/v1/functions/{name}/invoke/{*path}",status="404"} 2"#,
        r#"dormouse_replies_total{route="none",status="404"} 1"#,
        "dormouse_running 0",
        "dormouse_shells ",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
    assert!(text.ends_with("# EOF\n"));
}
