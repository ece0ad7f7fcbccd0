//! The one table of routes. `api/openapi.yaml` says the same; a test compares them.

use axum::Router;
use axum::extract::Request;
use axum::handler::Handler;
use axum::middleware;
use axum::routing::{MethodRouter, any, delete, get, post, put};

use crate::{
    Access, ApiError, App, ErrorCode, Scope, access, body, envelope, functions, invoke, warm,
};

/// The method of a [`Route`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// `GET`, which also answers `HEAD`.
    Get,
    /// `PUT`
    Put,
    /// `POST`
    Post,
    /// `DELETE`
    Delete,
    /// Every method, also such as have no name in HTTP.
    Any,
}

impl Verb {
    fn to<H, T>(self, handler: H) -> MethodRouter<App>
    where
        H: Handler<T, App>,
        T: 'static,
    {
        match self {
            Self::Get => get(handler),
            Self::Put => put(handler),
            Self::Post => post(handler),
            Self::Delete => delete(handler),
            Self::Any => any(handler),
        }
    }
}

/// One row of the API: a method on a path.
#[derive(Debug)]
pub struct Route {
    /// The method.
    pub verb: Verb,
    /// The path; `{name}` is one segment, `{*path}` is the rest, which may be empty.
    pub path: &'static str,
    /// Who may ask for it.
    pub access: Access,
    handler: fn(Verb) -> MethodRouter<App>,
}

const fn route(
    verb: Verb,
    path: &'static str,
    access: Access,
    handler: fn(Verb) -> MethodRouter<App>,
) -> Route {
    Route {
        verb,
        path,
        access,
        handler,
    }
}

const INVOKE: Access = Access::Needs(Scope::Invoke);
const DEPLOY: Access = Access::Needs(Scope::Deploy);
const ADMIN: Access = Access::Needs(Scope::Admin);

const FUNCTION: &str = "/v1/functions/{name}";

/// Every route of the API.
pub const ROUTES: &[Route] = &[
    route(Verb::Get, "/v1/functions", ADMIN, |v| v.to(functions::list)),
    route(Verb::Put, FUNCTION, DEPLOY, |v| v.to(functions::deploy)),
    route(Verb::Get, FUNCTION, ADMIN, |v| v.to(functions::show)),
    route(Verb::Delete, FUNCTION, DEPLOY, |v| v.to(functions::remove)),
    route(Verb::Post, "/v1/functions/{name}/warm", DEPLOY, |v| {
        v.to(warm::warm)
    }),
    route(Verb::Any, "/v1/functions/{name}/invoke", INVOKE, |v| {
        v.to(invoke::invoke)
    }),
    route(
        Verb::Any,
        "/v1/functions/{name}/invoke/{*path}",
        INVOKE,
        |v| v.to(invoke::invoke),
    ),
    route(Verb::Get, "/livez", Access::Open, |v| v.to(livez)),
    route(Verb::Get, "/readyz", Access::Open, |v| v.to(readyz)),
    route(Verb::Get, "/metrics", ADMIN, |v| v.to(functions::metrics)),
];

/// The whole API over `app`.
pub fn router(app: App) -> Router {
    let mut router = Router::new();
    for route in ROUTES {
        let guarded = || access::guarded(&app, route, (route.handler)(route.verb));
        router = router.route(route.path, guarded());
        // axum's `{*path}` needs one byte at least.
        if let Some(without) = route.path.strip_suffix("{*path}") {
            router = router.route(without, guarded());
        }
    }
    router
        .fallback(unknown_route)
        .method_not_allowed_fallback(unknown_method)
        .layer(middleware::from_fn_with_state(app.clone(), envelope::wrap))
        .with_state(app)
}

async fn livez() -> &'static str {
    "alive\n"
}

/// The envelope answers 503 in its place while the server drains.
async fn readyz() -> &'static str {
    "ready\n"
}

async fn unknown_route(request: Request) -> ApiError {
    let detail = format!(
        "There is nothing at {}; the functions are under /v1/functions.",
        request.uri().path()
    );
    body::discard(request.into_body()).await;
    ApiError::new(ErrorCode::UnknownRoute, detail)
}

/// axum adds `Allow`.
async fn unknown_method(request: Request) -> ApiError {
    let detail = format!(
        "{} does not take {}; see the Allow header for what it takes.",
        request.uri().path(),
        request.method()
    );
    body::discard(request.into_body()).await;
    ApiError::new(ErrorCode::MethodNotAllowed, detail)
}
