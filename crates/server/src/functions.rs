//! Deploying, listing and removing functions, and the server's own metrics.

use axum::Json;
use axum::extract::{FromRequestParts, Path, Query, Request, State};
use axum::http::header::{CONTENT_TYPE, LOCATION};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri};
use axum::response::IntoResponse;
use dormouse_pool::{Deployed, FunctionInfo};
use serde::{Deserialize, Serialize};

use crate::{ApiError, App, ErrorCode, body, config_from_options, metrics};

/// The `{name}` of a path. Which names are possible is the pool's business.
#[derive(Debug)]
pub(crate) struct Name(pub(crate) String);

#[derive(Deserialize)]
struct NameInPath {
    name: String,
}

impl<S: Send + Sync> FromRequestParts<S> for Name {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        match Path::<NameInPath>::from_request_parts(parts, state).await {
            Ok(Path(NameInPath { name })) => Ok(Self(name)),
            Err(rejection) => Err(ApiError::new(
                ErrorCode::BadName,
                format!("The function's name in the path cannot be read: {rejection}."),
            )),
        }
    }
}

#[derive(Serialize)]
pub(crate) struct FunctionList {
    functions: Vec<FunctionInfo>,
}

/// `GET /v1/functions`
pub(crate) async fn list(State(app): State<App>) -> Result<Json<FunctionList>, ApiError> {
    let functions = app.pool().functions().await?;
    Ok(Json(FunctionList { functions }))
}

/// `GET /v1/functions/{name}`
pub(crate) async fn show(
    State(app): State<App>,
    Name(name): Name,
) -> Result<Json<FunctionInfo>, ApiError> {
    Ok(Json(app.pool().function(&name).await?))
}

/// `DELETE /v1/functions/{name}`
pub(crate) async fn remove(
    State(app): State<App>,
    Name(name): Name,
) -> Result<StatusCode, ApiError> {
    app.pool().remove(&name).await?;
    app.metrics().removed(&name);
    Ok(StatusCode::NO_CONTENT)
}

/// The options in a query, as they stand there.
pub(crate) fn options_in(uri: &Uri) -> Result<Vec<(String, String)>, ApiError> {
    let options = Query::try_from_uri(uri).map_err(|rejection| {
        ApiError::new(
            ErrorCode::BadOption,
            format!("The options in the query cannot be read: {rejection}."),
        )
    });
    options.map(|Query(options)| options)
}

/// `PUT /v1/functions/{name}`
pub(crate) async fn deploy(
    State(app): State<App>,
    name: Result<Name, ApiError>,
    request: Request,
) -> Result<(StatusCode, HeaderMap, Json<Deployed>), ApiError> {
    let (parts, body) = request.into_parts();
    // The body first, or a client that is still sending it could not read what is wrong.
    let limits = app.limits();
    let image = body::read(
        &parts.headers,
        body,
        limits.image_bytes,
        limits.image_timeout,
        app.image_buffers(),
    )
    .await?;
    let Name(name) = name?;
    let options = options_in(&parts.uri)?;
    let config = config_from_options(&options)?;
    let deployed = app.pool().deploy(&name, image, config).await?;
    tracing::debug!(
        function = name,
        created = deployed.created,
        boot_us = deployed.boot_us,
        "deployed"
    );
    let mut headers = HeaderMap::new();
    let status = if deployed.created {
        let location = HeaderValue::from_str(parts.uri.path());
        headers.extend(location.map(|location| (LOCATION, location)));
        StatusCode::CREATED
    } else {
        StatusCode::OK
    };
    Ok((status, headers, Json(deployed)))
}

/// `GET /metrics`
pub(crate) async fn metrics(State(app): State<App>) -> impl IntoResponse {
    (
        [(CONTENT_TYPE, metrics::CONTENT_TYPE)],
        app.metrics().text(),
    )
}
