//! An answer, and what can be made into one.

use std::borrow::Cow;
use std::fmt::Display;

/// An answer: status, headers and body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    pub(crate) status: u16,
    /// Apart from the other headers, so that a plain answer needs no allocation.
    pub(crate) content_type: Option<&'static str>,
    pub(crate) headers: Vec<(Cow<'static, str>, Cow<'static, [u8]>)>,
    pub(crate) body: Body,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Body {
    Static(&'static [u8]),
    Owned(Vec<u8>),
    /// The request's body, where it is.
    OfRequest,
}

impl Response {
    /// An empty answer with this HTTP status (200 to 599).
    #[must_use]
    pub const fn new(status: u16) -> Self {
        Self {
            status,
            content_type: None,
            headers: Vec::new(),
            body: Body::Static(&[]),
        }
    }

    /// Status 200 and a text.
    #[must_use]
    pub fn text(text: impl Into<Cow<'static, str>>) -> Self {
        Self::new(200).with_text(text)
    }

    /// Status 200 and a JSON text.
    #[must_use]
    pub fn json(json: impl Into<Cow<'static, str>>) -> Self {
        Self::new(200)
            .with_text(json)
            .with_content_type("application/json")
    }

    /// The same answer with this body, of type `text/plain`.
    #[must_use]
    pub fn with_text(mut self, text: impl Into<Cow<'static, str>>) -> Self {
        self.body = match text.into() {
            Cow::Borrowed(text) => Body::Static(text.as_bytes()),
            Cow::Owned(text) => Body::Owned(text.into_bytes()),
        };
        self.with_content_type("text/plain; charset=utf-8")
    }

    /// The same answer with this body.
    #[must_use]
    pub fn with_body(mut self, body: impl Into<Cow<'static, [u8]>>) -> Self {
        self.body = match body.into() {
            Cow::Borrowed(body) => Body::Static(body),
            Cow::Owned(body) => Body::Owned(body),
        };
        self
    }

    /// The same answer with the request's own body, which is not copied.
    #[must_use]
    pub fn with_body_of_request(mut self) -> Self {
        self.body = Body::OfRequest;
        self
    }

    /// The same answer with this `content-type`.
    #[must_use]
    pub fn with_content_type(mut self, content_type: &'static str) -> Self {
        self.content_type = Some(content_type);
        self
    }

    /// The same answer with one more header.
    #[must_use]
    pub fn with_header(
        mut self,
        name: impl Into<Cow<'static, str>>,
        value: impl Into<Cow<'static, [u8]>>,
    ) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// Names and values of all headers.
    pub(crate) fn fields(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let content_type = self
            .content_type
            .map(|value| ("content-type".as_bytes(), value.as_bytes()));
        let others = self
            .headers
            .iter()
            .map(|(name, value)| (name.as_bytes(), value.as_ref()));
        content_type.into_iter().chain(others)
    }
}

/// What a handler may return.
///
/// `Err` is a failure of the function, which the host reports as such; an answer with an error
/// status is not.
pub trait IntoResponse {
    /// The answer, or the message of a failure.
    ///
    /// # Errors
    /// The function failed on this request.
    fn into_response(self) -> Result<Response, String>;
}

impl IntoResponse for Response {
    fn into_response(self) -> Result<Response, String> {
        Ok(self)
    }
}

impl IntoResponse for &'static str {
    fn into_response(self) -> Result<Response, String> {
        Ok(Response::text(self))
    }
}

impl IntoResponse for String {
    fn into_response(self) -> Result<Response, String> {
        Ok(Response::text(self))
    }
}

impl IntoResponse for &'static [u8] {
    fn into_response(self) -> Result<Response, String> {
        Ok(Response::new(200).with_body(self))
    }
}

impl IntoResponse for Vec<u8> {
    fn into_response(self) -> Result<Response, String> {
        Ok(Response::new(200).with_body(self))
    }
}

/// An empty answer: 204.
impl IntoResponse for () {
    fn into_response(self) -> Result<Response, String> {
        Ok(Response::new(204))
    }
}

/// The same answer with another status.
impl<T: IntoResponse> IntoResponse for (u16, T) {
    fn into_response(self) -> Result<Response, String> {
        let (status, answer) = self;
        let mut response = answer.into_response()?;
        response.status = status;
        Ok(response)
    }
}

impl<T: IntoResponse, E: Display> IntoResponse for Result<T, E> {
    fn into_response(self) -> Result<Response, String> {
        self.map_err(|error| error.to_string())?.into_response()
    }
}
