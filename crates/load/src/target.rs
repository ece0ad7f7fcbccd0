//! Where requests go.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use hyper::Uri;
use hyper::header::HeaderValue;
use tokio::net::TcpStream;

use crate::Error;

/// Time for the connection that shows that somebody is there.
const FIRST_CONNECT: Duration = Duration::from_secs(10);

/// An HTTP/1.1 server, named by a URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    url: String,
    host: String,
    port: u16,
    path: String,
    host_header: HeaderValue,
}

impl Target {
    /// Reads a URL like `http://127.0.0.1:8080/base`. A path is put before those of requests.
    ///
    /// # Errors
    /// [`Error::Url`] where it is none of HTTP, or of TLS, which this client does not speak.
    pub fn parse(url: &str) -> Result<Self, Error> {
        let wrong = |reason: &str| Error::Url {
            url: url.to_owned(),
            reason: reason.to_owned(),
        };
        let uri: Uri = url
            .parse()
            .map_err(|_| wrong("it is no URL; give one like http://127.0.0.1:8080"))?;
        match uri.scheme_str() {
            Some("http") => {}
            Some("https") => {
                return Err(wrong(
                    "this client speaks plain HTTP only; drive the server behind the TLS proxy",
                ));
            }
            _ => return Err(wrong("it does not begin with http://")),
        }
        let authority = uri.authority().ok_or_else(|| wrong("it has no host"))?;
        if authority.as_str().contains('@') {
            return Err(wrong(
                "names and passwords do not belong there; send an authorization header",
            ));
        }
        if uri.query().is_some() {
            return Err(wrong("queries belong to requests"));
        }
        let host = authority.host().trim_matches(['[', ']']).to_owned();
        if host.is_empty() {
            return Err(wrong("it has no host"));
        }
        let host_header = HeaderValue::from_str(authority.as_str())
            .map_err(|_| wrong("its host cannot stand in a header"))?;
        Ok(Self {
            url: url.trim_end_matches('/').to_owned(),
            host,
            port: authority.port_u16().unwrap_or(80),
            path: uri.path().trim_end_matches('/').to_owned(),
            host_header,
        })
    }

    /// What stands before each request's own path: empty, or a path without a slash at its end.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The `Host` header.
    pub(crate) fn host_header(&self) -> &HeaderValue {
        &self.host_header
    }

    /// Connects once, to see that somebody is there and under which of its addresses.
    ///
    /// # Errors
    /// [`Error::Unreachable`].
    pub(crate) async fn find(&self) -> Result<SocketAddr, Error> {
        let unreachable = |source| Error::Unreachable {
            target: self.url.clone(),
            source,
        };
        let connect = TcpStream::connect((self.host.as_str(), self.port));
        let connected = tokio::time::timeout(FIRST_CONNECT, connect)
            .await
            .unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()));
        connected
            .and_then(|stream| stream.peer_addr())
            .map_err(unreachable)
    }
}

/// The URL.
impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.url)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_of_http_are_targets() {
        let target = Target::parse("http://127.0.0.1:8080/base/").unwrap();
        assert_eq!((target.host.as_str(), target.port), ("127.0.0.1", 8080));
        assert_eq!(target.path(), "/base");
        assert_eq!(target.host_header(), "127.0.0.1:8080");
        let target = Target::parse("http://[::1]/").unwrap();
        assert_eq!((target.host.as_str(), target.port), ("::1", 80));
        assert_eq!(target.path(), "");
        assert_eq!(target.to_string(), "http://[::1]");
    }

    #[test]
    fn others_are_refused_in_a_sentence() {
        for (url, reason) in [
            ("", "it is no URL"),
            ("localhost:8080", "http://"),
            ("/path", "http://"),
            ("https://localhost", "plain HTTP"),
            ("ftp://localhost", "http://"),
            ("http://user:secret@localhost", "authorization"),
            ("http://localhost/?a=b", "queries"),
            ("http://", "URL"),
        ] {
            let error = Target::parse(url).unwrap_err().to_string();
            assert!(error.contains(reason), "{url}: {error}");
        }
    }
}
