//! Sends back what it got.
//!
//! The answer's body is the request's, byte for byte, and so is its `content-type`. Method and
//! target come back as `x-echo-method` and `x-echo-target`, every other request header as
//! `x-echo-NAME`, with its value as it was, repeated ones as often as they were sent.

use dormouse_guest::{Request, Response};

fn main() {
    dormouse_guest::serve(echo);
}

fn echo(request: Request<'_>) -> Response {
    let mut response = Response::new(200)
        .with_body_of_request()
        .with_header("x-echo-method", request.method().as_bytes().to_vec())
        .with_header("x-echo-target", request.target().as_bytes().to_vec());
    for (name, value) in request.headers() {
        // The host's HTTP lets only tokens through as header names.
        let Ok(name) = std::str::from_utf8(name) else {
            continue;
        };
        let name = if name.eq_ignore_ascii_case("content-type") {
            name.to_owned()
        } else {
            ["x-echo-", name].concat()
        };
        response = response.with_header(name, value.to_vec());
    }
    response
}
