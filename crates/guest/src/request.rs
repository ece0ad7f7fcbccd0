//! A request as views over the memory that the host wrote it into.

use std::time::{Duration, SystemTime};

use dormouse_abi::{HeadReader, Header, Location};

use crate::port::Host;

/// A request. Nothing is copied and nothing is parsed until it is asked for.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    header: &'a Header,
    head: &'a [u8],
    body: &'a [u8],
}

impl<'a> Request<'a> {
    pub(crate) fn new<H: Host>(host: &'a H) -> Self {
        let mailbox = host.mailbox();
        let header = &mailbox.header;
        let (location, head_bytes, bytes) = match header.opened() {
            Some(sizes) => {
                let head_bytes = sizes.head_bytes as usize;
                let bytes = head_bytes + sizes.body_bytes as usize;
                (sizes.location, head_bytes, bytes)
            }
            None => (Location::Inline, 0, 0),
        };
        let message = match location {
            Location::Buffer => host.request_buffer(bytes),
            Location::Inline => mailbox.inline.get(..bytes).unwrap_or_default(),
        };
        let (head, body) = message.split_at_checked(head_bytes).unwrap_or_default();
        Self { header, head, body }
    }

    /// The HTTP method, as it was sent.
    #[must_use]
    pub fn method(&self) -> &'a str {
        text(HeadReader::new(self.head).next())
    }

    /// Path and query below the function's own address: `/top?n=10`.
    #[must_use]
    pub fn target(&self) -> &'a str {
        text(HeadReader::new(self.head).nth(1))
    }

    /// The part of [`Self::target`] before its `?`.
    #[must_use]
    pub fn path(&self) -> &'a str {
        let target = self.target();
        target.split_once('?').map_or(target, |(path, _)| path)
    }

    /// The part of [`Self::target`] after its `?`, undecoded; empty where there is none.
    #[must_use]
    pub fn query(&self) -> &'a str {
        self.target().split_once('?').map_or("", |(_, query)| query)
    }

    /// The first value of `name` in the query, undecoded: `bar` of `?foo=bar`, an empty text of
    /// `?foo`.
    #[must_use]
    pub fn query_value(&self, name: &str) -> Option<&'a str> {
        self.query().split('&').find_map(|pair| {
            let (found, value) = pair.split_once('=').unwrap_or((pair, ""));
            (found == name).then_some(value)
        })
    }

    /// The first value of the header `name`; case does not matter.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&'a [u8]> {
        self.headers()
            .find(|(found, _)| found.eq_ignore_ascii_case(name.as_bytes()))
            .map(|(_, value)| value)
    }

    /// All headers as they were sent, repeated ones too.
    #[must_use]
    pub fn headers(&self) -> Headers<'a> {
        let mut fields = HeadReader::new(self.head);
        // Method and target come first.
        fields.nth(1);
        Headers { fields }
    }

    /// The body.
    #[must_use]
    pub fn body(&self) -> &'a [u8] {
        self.body
    }

    /// The number of this request, unique in the life of the host's process.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.header.request_id
    }

    /// The number of this clone: different after every restore.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.header.generation
    }

    /// The host's clock when it wrote this request.
    #[must_use]
    pub fn real_time(&self) -> SystemTime {
        since_epoch(self.header.real_time_unix_ns)
    }

    /// When the host will stop this clone if it has not answered.
    #[must_use]
    pub fn deadline(&self) -> SystemTime {
        since_epoch(self.header.deadline_unix_ns)
    }

    /// The random bytes that the host drew for this clone. [`crate::random`] is seeded with them
    /// already. Tell them to nobody: who has them may find out what that gives.
    #[must_use]
    pub fn entropy(&self) -> &'a [u8; 32] {
        &self.header.entropy
    }
}

/// Names and values of a request's headers.
#[derive(Debug, Clone)]
pub struct Headers<'a> {
    fields: HeadReader<'a>,
}

impl<'a> Iterator for Headers<'a> {
    type Item = (&'a [u8], &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let name = self.fields.next()?;
        Some((name, self.fields.next()?))
    }
}

/// HTTP allows only ASCII here, so other bytes mean that the host sent no HTTP.
fn text(field: Option<&[u8]>) -> &str {
    field
        .and_then(|field| std::str::from_utf8(field).ok())
        .unwrap_or_default()
}

fn since_epoch(ns: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_nanos(ns)
}
