//! What every request goes through: its id, the draining gate, error documents, metrics.

use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::{MatchedPath, Request, State};
use axum::http::header::CONNECTION;
use axum::http::{HeaderMap, HeaderValue, Response};
use axum::middleware::Next;
use axum::response::IntoResponse;
use uuid::Uuid;

use crate::headers::REQUEST_ID;
use crate::{ApiError, App, ErrorCode};

const REQUEST_ID_BYTES: usize = 128;
/// When a client that the draining server refused may find another in its place.
const RESTART: Duration = Duration::from_secs(1);

/// The id of the request at hand, in the request's extensions.
#[derive(Debug, Clone)]
pub(crate) struct RequestId(pub(crate) HeaderValue);

impl RequestId {
    /// The client's own id if it can be printed, else a new one that sorts by time.
    fn of(headers: &HeaderMap) -> Self {
        let given = headers.get(REQUEST_ID).filter(|id| {
            let bytes = id.as_bytes();
            (1..=REQUEST_ID_BYTES).contains(&bytes.len())
                && bytes.iter().all(|byte| (b' '..=b'~').contains(byte))
        });
        if let Some(given) = given {
            return Self(given.clone());
        }
        let mut buffer = Uuid::encode_buffer();
        let text = Uuid::now_v7().hyphenated().encode_lower(&mut buffer);
        // A UUID's characters are all allowed in a header value.
        Self(HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static("none")))
    }

    fn as_str(&self) -> &str {
        self.0.to_str().unwrap_or_default()
    }
}

/// The outermost layer.
pub(crate) async fn wrap(
    State(app): State<App>,
    mut request: Request,
    next: Next,
) -> Response<Body> {
    let begin = Instant::now();
    let id = RequestId::of(request.headers());
    let route = request.extensions().get::<MatchedPath>().cloned();
    let path = request.uri().path();
    tracing::debug!(request_id = id.as_str(), method = %request.method(), path, "request");

    let draining = app.is_draining();
    let refused = draining && !matches!(path, "/livez" | "/metrics");
    let mut response = if refused {
        ApiError::new(
            ErrorCode::Draining,
            "The server is shutting down; try again elsewhere.",
        )
        .retry_after(RESTART)
        .into_response()
    } else {
        request.extensions_mut().insert(id.clone());
        next.run(request).await
    };

    if draining {
        let headers = response.headers_mut();
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    if let Some(error) = response.extensions_mut().remove::<ApiError>() {
        if let Some(private) = error.private() {
            tracing::error!(
                request_id = id.as_str(),
                code = error.code().as_str(),
                "{private}"
            );
        }
        *response.body_mut() = Body::from(error.document(id.as_str()));
    }
    app.metrics().replied(
        route.as_ref().map(MatchedPath::as_str),
        response.status(),
        begin.elapsed(),
    );
    response.headers_mut().insert(REQUEST_ID, id.0);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id_of(value: &[u8]) -> String {
        let mut headers = HeaderMap::new();
        headers.insert(REQUEST_ID, HeaderValue::from_bytes(value).unwrap());
        RequestId::of(&headers).as_str().to_owned()
    }

    #[test]
    fn a_valid_id_is_kept() {
        assert_eq!(id_of(b"order 66/a"), "order 66/a");
        assert_eq!(id_of(&[b'x'; 128]), "x".repeat(128));
    }

    #[test]
    fn any_other_id_is_replaced() {
        for value in [b"".as_slice(), &[b'x'; 129], b"a\tb", b"\xff"] {
            let id = id_of(value);
            assert_eq!(Uuid::parse_str(&id).unwrap().get_version_num(), 7);
        }
    }
}
