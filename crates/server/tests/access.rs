//! Who is let through, and that no name leads out of the store.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::http::{Request, Response, Uri};
use dormouse_pool::{Pool, PoolConfig};
use dormouse_server::{
    Access, App, Limits, NewToken, ROUTES, Scope, Token, TokenFile, TokenGuard, Verb, router,
};
use dormouse_snapshot::Store;
use http_body_util::BodyExt;
use tempfile::TempDir;
use tower::ServiceExt;

/// A router over an empty store, and the tokens that open it.
struct Guarded {
    router: Router,
    file: TokenFile,
    folder: TempDir,
}

impl Guarded {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokens");
        let file = TokenFile::at(&path);
        file.create(new("first", &[Scope::Admin], &[])).unwrap();
        let guard = TokenGuard::open(&path).unwrap();
        let store = Store::open(folder.path().join("store")).unwrap();
        let pool = Pool::new(store, PoolConfig::default());
        let app = App::with_guard(pool, Limits::default(), Some(guard));
        Self {
            router: router(app),
            file,
            folder,
        }
    }

    /// A token that the server knows from now on.
    async fn token(&self, name: &str, scopes: &[Scope], functions: &[&str]) -> Token {
        let (token, _) = self.file.create(new(name, scopes, functions)).unwrap();
        let known = async || self.ask("GET", "/v1/functions", Some(&token)).await.0 != 401;
        eventually(known).await;
        token
    }

    /// Status and code of a reply.
    async fn ask(&self, method: &str, path: &str, token: Option<&Token>) -> (u16, String) {
        let mut request = Request::builder().method(method).uri(path);
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {}", token.reveal()));
        }
        let reply = self.send(request.body(Body::from("body")).unwrap()).await;
        let code = reply.headers().get("x-dormouse-error");
        let code = code.map_or("", |code| code.to_str().unwrap()).to_owned();
        let status = reply.status().as_u16();
        let body = reply.into_body().collect().await.unwrap().to_bytes();
        if let Some(token) = token {
            let body = String::from_utf8_lossy(&body);
            assert!(!body.contains(&token.reveal()[4..]), "{body}");
        }
        (status, code)
    }

    async fn send(&self, request: Request<Body>) -> Response<Body> {
        self.router.clone().oneshot(request).await.unwrap()
    }
}

fn new(name: &str, scopes: &[Scope], functions: &[&str]) -> NewToken {
    NewToken {
        name: name.to_owned(),
        scopes: scopes.to_vec(),
        functions: functions.iter().map(|f| f.parse().unwrap()).collect(),
        expires_unix_ms: None,
    }
}

/// Waits for what is not a question of how fast something is.
async fn eventually(is_so: impl AsyncFn() -> bool) {
    let begin = Instant::now();
    while !is_so().await {
        assert!(begin.elapsed() < Duration::from_secs(60), "it never came");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn method(verb: Verb) -> &'static str {
    match verb {
        Verb::Get => "GET",
        Verb::Put => "PUT",
        Verb::Post => "POST",
        Verb::Delete => "DELETE",
        Verb::Any => "PROPFIND",
    }
}

/// The paths that lead to a route, for the function `name`.
fn paths(route: &str, name: &str) -> Vec<String> {
    let named = route.replace("{name}", name);
    match named.strip_suffix("{*path}") {
        Some(without) => vec![without.to_owned(), format!("{without}a/b")],
        None => vec![named],
    }
}

#[tokio::test]
async fn every_route_asks_for_the_scope_that_the_table_says() {
    let server = Guarded::new();
    let stranger = TokenFile::at(&server.folder.path().join("others"));
    let (stranger, _) = stranger.create(new("x", &[Scope::Admin], &[])).unwrap();
    let mut tokens = Vec::new();
    for scope in Scope::ALL {
        let token = server.token(scope.as_str(), &[scope], &[]).await;
        tokens.push((scope, token));
    }
    for route in ROUTES {
        for path in paths(route.path, "f") {
            let method = method(route.verb);
            let needed = match route.access {
                Access::Open => {
                    assert_eq!(server.ask(method, &path, None).await.0, 200, "{path}");
                    continue;
                }
                Access::Needs(scope) => scope,
            };
            for nobody in [None, Some(&stranger)] {
                let (status, code) = server.ask(method, &path, nobody).await;
                assert_eq!(
                    (status, &*code),
                    (401, "unauthenticated"),
                    "{method} {path}"
                );
            }
            for (scope, token) in &tokens {
                let (status, code) = server.ask(method, &path, Some(token)).await;
                let refused = code == "forbidden";
                assert_eq!(refused, status == 403, "{method} {path}");
                assert_ne!(status, 401, "{method} {path}");
                let may = *scope == needed || *scope == Scope::Admin;
                assert_eq!(refused, !may, "{method} {path} with {scope}");
            }
        }
    }
}

#[tokio::test]
async fn a_refusal_says_how_to_ask() {
    let server = Guarded::new();
    let ask = async |values: &[&str]| {
        let mut request = Request::get("/v1/functions");
        for value in values {
            request = request.header("authorization", *value);
        }
        server.send(request.body(Body::empty()).unwrap()).await
    };
    for values in [&[][..], &["Basic YTpi"], &["Bearer"], &["Bearer dmt_x"]] {
        let reply = ask(values).await;
        assert_eq!(reply.status(), 401, "{values:?}");
        assert_eq!(reply.headers()["www-authenticate"], "Bearer");
        assert_eq!(reply.headers()["content-type"], "application/problem+json");
    }
    let token = server.token("t", &[Scope::Admin], &[]).await;
    let value = format!("bearer {}", token.reveal());
    assert_eq!(ask(&[&value]).await.status(), 200);
    assert_eq!(ask(&[&value, &value]).await.status(), 401);
}

#[tokio::test]
async fn a_token_for_some_functions_opens_no_other_and_nothing_on_all() {
    let server = Guarded::new();
    let token = server.token("web", &[Scope::Admin], &["web-*"]).await;
    for (method, path, code) in [
        ("GET", "/v1/functions/web-a", "unknown-function"),
        ("DELETE", "/v1/functions/web-a", "unknown-function"),
        ("PUT", "/v1/functions/web-a", "bad-image"),
        ("GET", "/v1/functions/web-a/invoke/x", "unknown-function"),
        (
            "POST",
            "/v1/functions/web-a/warm?runs=1",
            "unknown-function",
        ),
        ("GET", "/v1/functions", "forbidden"),
        ("GET", "/metrics", "forbidden"),
        ("GET", "/v1/functions/db", "forbidden"),
        ("PUT", "/v1/functions/db", "forbidden"),
        ("GET", "/v1/functions/db/invoke/web-a", "forbidden"),
        ("GET", "/v1/functions/%64b/invoke", "forbidden"),
        ("GET", "/v1/functions/%77eb-a/invoke", "unknown-function"),
        ("GET", "/v1/functions/%FF/invoke", "bad-name"),
        // What another function's snapshot holds is that function's, too.
        (
            "POST",
            "/v1/functions/web-a/warm?runs=1&from=db",
            "forbidden",
        ),
        (
            "POST",
            "/v1/functions/web-a/warm?runs=1&from=db@1",
            "forbidden",
        ),
        (
            "POST",
            "/v1/functions/web-a/warm?runs=1&from=db:t",
            "forbidden",
        ),
        (
            "POST",
            "/v1/functions/web-a/warm?runs=1&from=web-b",
            "unknown-function",
        ),
    ] {
        let (_, found) = server.ask(method, path, Some(&token)).await;
        assert_eq!(found, code, "{method} {path}");
    }
}

#[tokio::test]
async fn a_token_that_was_removed_opens_nothing_any_more() {
    let server = Guarded::new();
    let token = server.token("short", &[Scope::Admin], &[]).await;
    server.file.remove("short").unwrap();
    let gone = async || server.ask("GET", "/metrics", Some(&token)).await.0 == 401;
    eventually(gone).await;
}

#[tokio::test]
async fn without_a_tokens_file_nobody_is_let_in() {
    let server = Guarded::new();
    let token = server.token("t", &[Scope::Admin], &[]).await;
    fs::remove_file(server.folder.path().join("tokens")).unwrap();
    let shut = async || server.ask("GET", "/metrics", Some(&token)).await.0 == 500;
    eventually(shut).await;
    assert_eq!(server.ask("GET", "/metrics", None).await.0, 401);
    assert_eq!(server.ask("GET", "/livez", None).await.0, 200);
}

/// Every file below a folder with its bytes, every link and every folder.
fn contents(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut left = vec![folder.to_owned()];
    while let Some(folder) = left.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && !path.is_symlink() {
                left.push(path.clone());
                found.insert(path, Vec::new());
            } else {
                let bytes = fs::read(&path).unwrap_or_default();
                found.insert(path, bytes);
            }
        }
    }
    found
}

#[tokio::test]
async fn no_name_leads_out_of_the_store() {
    let outer = tempfile::tempdir().unwrap();
    let (app, own) = support::app(Limits::default());
    let store = own.path();
    // What looks like part of a store, in the way of whoever climbs.
    for place in ["f", "functions/f", "snapshots/f"] {
        let folder = outer.path().join(place);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("manifest.json"), "not yours").unwrap();
        fs::write(folder.join("HEAD"), "not yours").unwrap();
    }
    let before = (contents(outer.path()), contents(store));
    let router = router(app);

    let climb = format!("..%2f..%2f..%2f..%2f..%2f..{}", outer.path().display());
    let absolute = outer.path().display().to_string();
    let long = "a".repeat(8_000);
    let names = [
        "..",
        ".",
        "%2e%2e",
        "%2e",
        "%2E%2E%2Ff",
        "..%2ff",
        "..%2f..%2fetc%2fpasswd",
        "..%5cf",
        "%252e%252e%252ff",
        "f%2f..%2f..%2ff",
        "f%00",
        "%00",
        "f%00%2f..%2ff",
        "f%0a",
        "f%20",
        "%2fetc%2fpasswd",
        "~",
        "f@1",
        "f:t",
        "-f",
        "F",
        "%c0%ae%c0%ae%2ff",
        "%e2%80%a5%2ff",
        "%ef%bc%8e%ef%bc%8e",
        "%ff",
        "%zz",
        "f%3f",
        "f;a=b",
        &climb.replace('/', "%2f"),
        &absolute.replace('/', "%2f"),
        &long,
    ];
    let mut asked = 0;
    for route in ROUTES.iter().filter(|r| r.path.contains("{name}")) {
        for name in names {
            for path in paths(route.path, name) {
                for query in ["", "?runs=1"] {
                    let uri: Uri = format!("{path}{query}").parse().unwrap();
                    let request = Request::builder().method(method(route.verb)).uri(uri);
                    let request = request.body(Body::from("body")).unwrap();
                    let reply = router.clone().oneshot(request).await.unwrap();
                    let status = reply.status().as_u16();
                    assert!(matches!(status, 400 | 404), "{status} for {path}");
                    let body = reply.into_body().collect().await.unwrap().to_bytes();
                    assert!(body.len() < 2_000, "{} bytes for {path}", body.len());
                    assert!(!String::from_utf8_lossy(&body).contains("not yours"));
                    asked += 1;
                }
            }
        }
        for from in names {
            let path = format!("/v1/functions/f/warm?runs=1&from={from}");
            let Ok(uri) = path.parse::<Uri>() else {
                continue;
            };
            let request = Request::post(uri).body(Body::empty()).unwrap();
            let status = router.clone().oneshot(request).await.unwrap().status();
            assert!(matches!(status.as_u16(), 400 | 404), "{status} for {path}");
        }
    }
    assert!(asked > 300, "{asked}");
    assert_eq!((contents(outer.path()), contents(store)), before);
}
