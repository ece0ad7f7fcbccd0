//! Who is let through to a route: between the envelope and the handler.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{FromRequestParts, Request, State};
use axum::http::header::{AUTHORIZATION, EXPECT};
use axum::http::request::Parts;
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
}
