//! Which headers cross between client and function.
//!
//! Both directions drop what belongs to one connection only (RFC 9110 §7.6.1) and what this server
//! has dealt with itself. Towards the client the length and the framing are ours, and so are the
//! names that say how the invocation went, so that a function cannot speak in the server's name.

use axum::http::header::{
    CONNECTION, CONTENT_LENGTH, EXPECT, HOST, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use bytes::Bytes;
use dormouse_pool::Header;

/// The request id, on every reply and towards the function.
pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// How the instance that answered came to be.
pub(crate) const START_TYPE: HeaderName = HeaderName::from_static("x-start-type");
/// How the instance that answers is to start, from clients that may say so.
pub(crate) const START: HeaderName = HeaderName::from_static("x-dormouse-start");
/// Where the time went.
pub(crate) const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");
/// The error's code: on errors of this server, never on a function's answer.
pub(crate) const ERROR_CODE: HeaderName = HeaderName::from_static("x-dormouse-error");

/// Names under this prefix are the server's.
const OWN_PREFIX: &str = "x-dormouse-";

/// The client's headers as the function gets them, with the request id that this server uses.
pub(crate) fn to_function(headers: &HeaderMap, request_id: &HeaderValue) -> Vec<Header> {
    let nominated = nominated(
        headers
            .get_all(CONNECTION)
            .iter()
            .map(HeaderValue::as_bytes),
    );
    let mut result = Vec::with_capacity(headers.len() + 1);
    for (name, value) in headers {
        let dropped = is_hop_by_hop(name.as_str())
            || name == EXPECT
            || name == REQUEST_ID
            || name.as_str().starts_with(OWN_PREFIX)
            || is_nominated(&nominated, name);
        if !dropped {
            result.push((
                Bytes::copy_from_slice(name.as_str().as_bytes()),
                Bytes::copy_from_slice(value.as_bytes()),
            ));
        }
    }
    result.push((
        Bytes::from_static(b"x-request-id"),
        Bytes::copy_from_slice(request_id.as_bytes()),
    ));
    result
}

/// The function's headers as the client gets them.
///
/// # Errors
/// The sentence for `bad-answer` where a name or a value is not allowed in HTTP.
pub(crate) fn to_client(
    headers: Vec<Header>,
    method: &Method,
    status: StatusCode,
    body_is_empty: bool,
) -> Result<HeaderMap, String> {
    let nominated = nominated(
        headers
            .iter()
            .filter(|(name, _)| name.eq_ignore_ascii_case(CONNECTION.as_str().as_bytes()))
            .map(|(_, value)| value.as_ref()),
    );
    // Where a reply has no body by its nature, its length speaks of the body it would have had.
    let keeps_length =
        body_is_empty && (method == Method::HEAD || status == StatusCode::NOT_MODIFIED);
    let mut result = HeaderMap::with_capacity(headers.len() + 4);
    for (name, value) in headers {
        let name = HeaderName::from_bytes(&name).map_err(|_| {
            format!(
                "the header name {:?} is not allowed in HTTP",
                name.escape_ascii().to_string()
            )
        })?;
        if name == CONTENT_LENGTH && keeps_length {
            let is_number = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
            if !is_number || result.contains_key(CONTENT_LENGTH) {
                continue;
            }
        } else if is_hop_by_hop(name.as_str())
            || name == CONTENT_LENGTH
            || name == REQUEST_ID
            || name == START_TYPE
            || name.as_str().starts_with(OWN_PREFIX)
            || is_nominated(&nominated, &name)
        {
            continue;
        }
        let value = HeaderValue::from_maybe_shared(value)
            .map_err(|_| format!("the value of its header {name} is not allowed in HTTP"))?;
        result
            .try_append(name, value)
            .map_err(|_| "it has too many headers".to_owned())?;
    }
    Ok(result)
}

/// Headers of one connection, by lower-case name; those that `Connection` names come on top.
fn is_hop_by_hop(name: &str) -> bool {
    name == CONNECTION
        || name == TE
        || name == TRAILER
        || name == TRANSFER_ENCODING
        || name == UPGRADE
        || name == "keep-alive"
        || name == "proxy-connection"
}

/// The names in `Connection` values.
fn nominated<'a>(values: impl Iterator<Item = &'a [u8]>) -> Vec<HeaderName> {
    values
        .flat_map(|value| value.split(|byte| *byte == b','))
        .filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok())
        .collect()
}

/// `Host` cannot be nominated away: without it a request is not valid.
fn is_nominated(nominated: &[HeaderName], name: &HeaderName) -> bool {
    name != HOST && nominated.contains(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in pairs {
            map.append(*name, HeaderValue::from_static(value));
        }
        map
    }

    fn list(pairs: &[(&'static str, &'static str)]) -> Vec<Header> {
        pairs
            .iter()
            .map(|(name, value)| (Bytes::from(*name), Bytes::from(*value)))
            .collect()
    }

    fn answer(pairs: &[(&'static str, &'static str)]) -> Result<HeaderMap, String> {
        to_client(list(pairs), &Method::GET, StatusCode::OK, false)
    }

    #[test]
    fn a_request_loses_what_belongs_to_its_connection_or_is_ours() {
        let sent = map(&[
            ("host", "h"),
            ("connection", "close, X-Hop ,host"),
            ("x-hop", "1"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "close"),
            ("te", "trailers"),
            ("trailer", "x"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("expect", "100-continue"),
            ("x-dormouse-start", "cold"),
            ("accept", "a"),
            ("accept", "b"),
            ("x-request-id", "forged by a client"),
        ]);
        let got = to_function(&sent, &HeaderValue::from_static("ours"));
        assert_eq!(
            got,
            list(&[
                ("host", "h"),
                ("accept", "a"),
                ("accept", "b"),
                ("x-request-id", "ours"),
            ])
        );
    }

    #[test]
    fn values_that_are_not_utf8_pass() {
        let mut sent = HeaderMap::new();
        sent.insert("x-raw", HeaderValue::from_bytes(b"\xff\xfe").unwrap());
        let got = to_function(&sent, &HeaderValue::from_static("id"));
        assert_eq!(got[0].1.as_ref(), b"\xff\xfe");
        let back = to_client(got, &Method::GET, StatusCode::OK, true).unwrap();
        assert_eq!(back["x-raw"].as_bytes(), b"\xff\xfe");
    }

    #[test]
    fn an_answer_keeps_its_own_headers_and_nothing_of_ours() {
        let got = answer(&[
            ("Content-Type", "text/plain"),
            ("Set-Cookie", "a=1"),
            ("set-cookie", "b=2"),
            ("Server-Timing", "db;dur=1"),
            ("Content-Length", "999"),
            ("Transfer-Encoding", "chunked"),
            ("Connection", "x-private"),
            ("X-Private", "1"),
            ("X-Start-Type", "cold"),
            ("X-Request-Id", "forged"),
            ("X-Dormouse-Error", "internal"),
            ("X-Dormouse-Anything", "1"),
        ])
        .unwrap();
        assert_eq!(
            got,
            map(&[
                ("content-type", "text/plain"),
                ("set-cookie", "a=1"),
                ("set-cookie", "b=2"),
                ("server-timing", "db;dur=1"),
            ])
        );
    }

    #[test]
    fn a_reply_without_a_body_may_say_its_length() {
        let headers = || list(&[("content-length", "12"), ("content-length", "13")]);
        let got = to_client(headers(), &Method::HEAD, StatusCode::OK, true).unwrap();
        assert_eq!(got, map(&[("content-length", "12")]));
        let got = to_client(headers(), &Method::HEAD, StatusCode::OK, false).unwrap();
        assert!(got.is_empty());
        let wrong = list(&[("content-length", "-1")]);
        let got = to_client(wrong, &Method::HEAD, StatusCode::OK, true).unwrap();
        assert!(got.is_empty());
    }

    #[test]
    fn headers_that_http_does_not_allow_are_the_functions_fault() {
        assert!(answer(&[("a b", "1")]).unwrap_err().contains("a b"));
        assert!(answer(&[("", "1")]).is_err());
        let error = answer(&[("x-split", "1\r\nset-cookie: evil")]).unwrap_err();
        assert!(error.contains("x-split"), "{error}");
    }
}
