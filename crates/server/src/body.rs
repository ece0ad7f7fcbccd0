//! Reading request bodies: bounded in bytes and in time, with no copy where the body came in one
//! piece.

use std::time::Duration;

use axum::body::Body;
use axum::http::HeaderMap;
use axum::http::header::EXPECT;
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::Body as _;

use crate::buffers::Buffers;
use crate::{ApiError, ErrorCode};

/// How much of a body that was refused is read and thrown away, so that a client that is still
/// sending gets to read why. Past this the connection is closed under it.
const DISCARD_BYTES: u64 = 16 << 20;
const DISCARD_TIMEOUT: Duration = Duration::from_secs(5);

/// Reads a whole body.
///
/// # Errors
/// `too-large`, `request-timeout`, `over-budget` where other bodies hold all memory that there is for
/// bodies, or `bad-request` where the client broke off.
pub(crate) async fn read(
    headers: &HeaderMap,
    body: Body,
    limit_bytes: usize,
    limit_time: Duration,
    buffers: &Buffers,
) -> Result<Bytes, ApiError> {
    if body.is_end_stream() {
        return Ok(Bytes::new());
    }
    let announced = body.size_hint().lower();
    if announced > limit_bytes as u64 {
        // A client that waits for `100 Continue` has sent nothing yet.
        if !headers.contains_key(EXPECT) {
            discard(body).await;
        }
        return Err(too_large(announced, limit_bytes));
    }
    match tokio::time::timeout(limit_time, collect(body, announced, limit_bytes, buffers)).await {
        Ok(result) => result,
        Err(_elapsed) => Err(ApiError::new(
            ErrorCode::RequestTimeout,
            format!("The request's body did not arrive within {limit_time:?}; send it faster."),
        )),
    }
}

/// Reads and drops what is left of a refused request's body.
pub(crate) async fn discard(mut body: Body) {
    let reading = async {
        let mut seen: u64 = 0;
        while let Some(Ok(frame)) = body.frame().await {
            seen += frame.data_ref().map_or(0, |data| data.len() as u64);
            if seen > DISCARD_BYTES {
                break;
            }
        }
    };
    let _ = tokio::time::timeout(DISCARD_TIMEOUT, reading).await;
}

async fn collect(
    mut body: Body,
    announced: u64,
    limit_bytes: usize,
    buffers: &Buffers,
) -> Result<Bytes, ApiError> {
    let mut held = buffers.empty();
    let mut first = Bytes::new();
    let mut whole = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| {
            ApiError::new(
                ErrorCode::BadRequest,
                format!("The request's body broke off: {error}."),
            )
        })?;
        let Ok(data) = frame.into_data() else {
            continue; // trailers
        };
        let total = first.len() + whole.len() + data.len();
        if total > limit_bytes {
            discard(body).await;
            return Err(too_large(total as u64, limit_bytes));
        }
        if let Err(error) = held.cover(total) {
            drop((first, whole));
            discard(body).await;
            return Err(error);
        }
        if first.is_empty() && whole.is_empty() {
            first = data;
            continue;
        }
        if whole.is_empty() {
            whole.reserve(total.max(announced as usize));
            whole.extend_from_slice(&first);
            first = Bytes::new();
        }
        whole.extend_from_slice(&data);
    }
    Ok(held.around(if whole.is_empty() {
        first
    } else {
        whole.freeze()
    }))
}

fn too_large(bytes: u64, limit_bytes: usize) -> ApiError {
    ApiError::new(
        ErrorCode::TooLarge,
        format!(
            "The request's body has at least {bytes} bytes; at most {limit_bytes} are allowed."
        ),
    )
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use hyper::body::Frame;

    use super::*;

    /// A body that comes in the given pieces and then either ends or hangs.
    struct Pieces {
        pieces: Vec<&'static [u8]>,
        hangs: bool,
    }

    impl hyper::body::Body for Pieces {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            if !self.pieces.is_empty() {
                let piece = self.pieces.remove(0);
                return Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(piece)))));
            }
            if self.hangs {
                Poll::Pending
            } else {
                Poll::Ready(None)
            }
        }
    }

    async fn read_pieces(pieces: &[&'static [u8]], hangs: bool) -> Result<Bytes, ApiError> {
        let body = Body::new(Pieces {
            pieces: pieces.to_vec(),
            hangs,
        });
        let buffers = Buffers::new(4);
        read(
            &HeaderMap::new(),
            body,
            4,
            Duration::from_millis(50),
            &buffers,
        )
        .await
    }

    #[tokio::test]
    async fn a_body_of_any_number_of_pieces_comes_back_whole() {
        assert_eq!(read_pieces(&[], false).await.unwrap(), "");
        assert_eq!(read_pieces(&[b"abcd"], false).await.unwrap(), "abcd");
        assert_eq!(
            read_pieces(&[b"", b"a", b"", b"bcd"], false).await.unwrap(),
            "abcd"
        );
    }

    #[tokio::test]
    async fn one_byte_too_many_is_refused_announced_or_not() {
        let error = read_pieces(&[b"abc", b"de"], false).await.unwrap_err();
        assert_eq!(error.code(), ErrorCode::TooLarge);
        let body = Body::from("abcde");
        let (second, buffers) = (Duration::from_secs(1), Buffers::new(4));
        let error = read(&HeaderMap::new(), body, 4, second, &buffers)
            .await
            .unwrap_err();
        assert_eq!(error.code(), ErrorCode::TooLarge);
        assert!(error.detail().contains("at most 4"));
    }

    #[tokio::test]
    async fn a_body_that_finds_no_memory_is_refused() {
        static PIECE: [u8; 64 << 10] = [0; 64 << 10];
        let buffers = Buffers::new(PIECE.len());
        let limit_bytes = 4 * PIECE.len();
        let second = Duration::from_secs(1);
        for (pieces, is_read) in [(1, true), (2, false), (1, true)] {
            let body = Body::new(Pieces {
                pieces: vec![&PIECE; pieces],
                hangs: false,
            });
            let read = read(&HeaderMap::new(), body, limit_bytes, second, &buffers).await;
            assert_eq!(read.is_ok(), is_read, "{pieces} pieces");
            if let Err(error) = read {
                assert_eq!(error.code(), ErrorCode::OverBudget);
            }
        }
    }

    #[tokio::test]
    async fn a_body_that_never_ends_times_out() {
        let error = read_pieces(&[b"abc"], true).await.unwrap_err();
        assert_eq!(error.code(), ErrorCode::RequestTimeout);
    }
}
