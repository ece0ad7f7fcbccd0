//! Who is let through to a route: between the envelope and the handler.

use std::net::IpAddr;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{FromRequestParts, Request, State};
use axum::http::header::{AUTHORIZATION, EXPECT, HOST, ORIGIN};
use axum::http::request::Parts;
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderValue, Response};
use axum::middleware::{Next, from_fn_with_state};
use axum::routing::MethodRouter;

use crate::functions::Name;
use crate::{ApiError, App, ErrorCode, Route, Scope, Token, TokenEntry, TokenGuard, Verb, body};

/// Who may ask for a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Everybody.
    Open,
    /// Whoever has a token with this scope, where the server has tokens at all.
    Needs(Scope),
}

/// Who asks, in the request's extensions where the server has tokens.
#[derive(Debug, Clone)]
pub(crate) struct Caller(Arc<TokenEntry>);

impl Caller {
    /// # Errors
    /// `forbidden` where the token is not for this function.
    pub(crate) fn may_reach(&self, function: &str) -> Result<(), ApiError> {
        if self.0.covers(function) {
            return Ok(());
        }
        let name = &self.0.name;
        Err(forbidden(format!(
            "The token {name} is not for the function {function:?}; ask for one that is."
        )))
    }
}

/// What a route asks for.
#[derive(Debug, Clone, Copy)]
struct Demand {
    scope: Scope,
    /// Whether its path names a function.
    names_function: bool,
}

/// `handler` behind what its route asks for.
pub(crate) fn guarded(app: &App, route: &Route, handler: MethodRouter<App>) -> MethodRouter<App> {
    let Access::Needs(scope) = route.access else {
        return handler;
    };
    let demand = Demand {
        scope,
        names_function: route.path.contains("{name}"),
    };
    let layer = from_fn_with_state((app.clone(), demand), let_through);
    match route.verb {
        // To axum a handler for every method is a fallback, which is no route.
        Verb::Any => handler.layer(layer),
        _ => handler.route_layer(layer),
    }
}

async fn let_through(
    State((app, demand)): State<(App, Demand)>,
    request: Request,
    next: Next,
) -> Result<Response<Body>, ApiError> {
    let (mut parts, body) = request.into_parts();
    let token = token_in(&parts.headers);
    let Some(guard) = app.guard() else {
        // Sent by somebody who takes this for another server: a function must not get it.
        if let Ok(Some(_)) = token {
            parts.headers.remove(AUTHORIZATION);
        }
        if app.limits().local_names_only
            && let Err(error) = asked_locally(&parts, demand.scope)
        {
            body::discard(body).await;
            return Err(error);
        }
        return Ok(next.run(Request::from_parts(parts, body)).await);
    };
    // Functions are not trusted with what opens other functions.
    parts.headers.remove(AUTHORIZATION);
    match admit(guard, token, demand, &mut parts).await {
        Ok(caller) => {
            tracing::debug!(token = caller.0.name, "let through");
            parts.extensions.insert(caller);
            Ok(next.run(Request::from_parts(parts, body)).await)
        }
        Err(error) => {
            // A client that waits for `100 Continue` has sent nothing yet.
            if !parts.headers.contains_key(EXPECT) {
                body::discard(body).await;
            }
            Err(error)
        }
    }
}

/// Refuses what a web page has a browser on this machine ask: requests by a name that is not this
/// machine's, and, where it would change or tell something, those that a foreign page made.
fn asked_locally(parts: &Parts, scope: Scope) -> Result<(), ApiError> {
    let header = |name| parts.headers.get(name).map(HeaderValue::to_str);
    let host = match (parts.uri.authority(), header(HOST)) {
        (Some(authority), _) => Some(authority.as_str()),
        (None, Some(host)) => Some(host.unwrap_or_default()),
        // No browser leaves it out.
        (None, None) => None,
    };
    if let Some(host) = host.filter(|host| !is_local(host)) {
        return Err(forbidden(format!(
            "This server has no tokens, so it is to be asked as localhost or by its address, and not as \
             {host:?}; do so, or give it --tokens (or --insecure-no-tokens)."
        )));
    }
    let page = header(ORIGIN).filter(|_| scope != Scope::Invoke);
    let Some(page) = page.map(Result::unwrap_or_default) else {
        return Ok(());
    };
    if page
        .split_once("://")
        .is_some_and(|(_, host)| is_local(host))
    {
        return Ok(());
    }
    Err(forbidden(format!(
        "This server has no tokens, so it does not do this for the web page {page:?}; give it --tokens."
    )))
}

/// Whether this is a name or address, and perhaps a port, that no name server has a say in.
fn is_local(host: &str) -> bool {
    let Ok(authority) = host.parse::<Authority>() else {
        return false;
    };
    let host = authority.host();
    let address = host.trim_start_matches('[').trim_end_matches(']');
    let name = host.to_ascii_lowercase();
    // RFC 6761, 6.3: they lead to this machine and nowhere else.
    address.parse::<IpAddr>().is_ok() || name == "localhost" || name.ends_with(".localhost")
}

async fn admit(
    guard: &TokenGuard,
    token: Result<Option<Token>, ApiError>,
    demand: Demand,
    parts: &mut Parts,
) -> Result<Caller, ApiError> {
    let token = token?.ok_or_else(|| {
        unauthenticated("This server wants a token; send it as `Authorization: Bearer dmt_…`.")
    })?;
    let entry = guard
        .identify(&token)
        .await
        .map_err(|reason| ApiError::private_error(ErrorCode::Internal, &reason))?
        .ok_or_else(|| {
            unauthenticated("The token is not known here, or has expired; ask for another one.")
        })?;
    let Demand {
        scope,
        names_function,
    } = demand;
    if !entry.may(scope) {
        return Err(forbidden(format!(
            "The token {} does not have the scope {scope}, which this needs; ask for one that has.",
            entry.name
        )));
    }
    let caller = Caller(entry);
    if caller.0.covers_all() {
        return Ok(caller);
    }
    if !names_function {
        return Err(forbidden(format!(
            "The token {} is for some functions only, and this is about all; ask for one without \
             --function.",
            caller.0.name
        )));
    }
    let Name(function) = Name::from_request_parts(parts, &()).await?;
    caller.may_reach(&function)?;
    Ok(caller)
}

/// The token that a request has; none where it has no `Authorization` at all.
fn token_in(headers: &HeaderMap) -> Result<Option<Token>, ApiError> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let token = match (values.next(), values.next()) {
        (None, _) => return Ok(None),
        (Some(value), None) => bearer(value),
        (Some(_), Some(_)) => None,
    };
    token.map(Some).ok_or_else(|| {
        unauthenticated("The header Authorization is not, once, `Bearer` and a token; send it so.")
    })
}

fn bearer(value: &HeaderValue) -> Option<Token> {
    let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("bearer") {
        return None;
    }
    token.trim_matches(' ').parse().ok()
}

fn unauthenticated(detail: &str) -> ApiError {
    ApiError::new(ErrorCode::Unauthenticated, detail)
}

fn forbidden(detail: String) -> ApiError {
    ApiError::new(ErrorCode::Forbidden, detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_read_from_one_header_only() {
        let token = "dmt_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
        let read = |values: &[String]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(AUTHORIZATION, value.parse().unwrap());
            }
            token_in(&headers)
        };
        assert!(read(&[]).unwrap().is_none());
        for scheme in ["Bearer", "bearer", "BEARER", "Bearer "] {
            let found = read(&[format!("{scheme} {token}")]).unwrap().unwrap();
            assert_eq!(found.reveal(), token);
        }
        let good = format!("Bearer {token}");
        for values in [
            &[good.clone(), good.clone()][..],
            &[token.to_owned()],
            &[format!("Basic {token}")],
            &[format!("Bearer {token}, {token}")],
            &["Bearer".to_owned()],
            &["Bearer dmt_".to_owned()],
            &[String::new()],
        ] {
            let error = read(values).unwrap_err();
            assert_eq!(error.code(), ErrorCode::Unauthenticated);
            assert!(!error.detail().contains(token), "{error}");
        }
    }

    #[test]
    fn a_server_for_this_machine_is_asked_by_its_own_name() {
        let asked = |host: &str, origin: Option<&str>, scope| {
            let mut request = Request::builder().uri("/v1/functions").header(HOST, host);
            if let Some(origin) = origin {
                request = request.header(ORIGIN, origin);
            }
            let (parts, _) = request.body(Body::empty()).unwrap().into_parts();
            asked_locally(&parts, scope).is_ok()
        };
        for host in [
            "127.0.0.1:8080",
            "[::1]:8080",
            "localhost",
            "LocalHost:1",
            "a.localhost",
        ] {
            assert!(asked(host, None, Scope::Admin), "{host}");
            let page = format!("http://{host}");
            assert!(asked("localhost", Some(&page), Scope::Deploy), "{page}");
        }
        for host in [
            "evil.example:8080",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "",
        ] {
            assert!(!asked(host, None, Scope::Invoke), "{host}");
            let page = format!("http://{host}");
            assert!(!asked("localhost", Some(&page), Scope::Deploy), "{page}");
        }
        assert!(!asked("localhost", Some("null"), Scope::Admin));
        // A function may serve pages from anywhere, and says so itself.
        assert!(asked(
            "localhost",
            Some("https://shop.example"),
            Scope::Invoke
        ));
    }
}
