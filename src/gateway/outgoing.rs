//! The body of an answer to a client.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use smallvec::SmallVec;

use super::answer::Answer;
use super::body::BoxError;

/// The body of an answer to a client.
pub(super) enum Outgoing {
    Empty,
    Full(Option<Bytes>),
    /// An upstream's answer that is already here and settled, with its trailers.
    Ready(ReadyBody),
    Metered(Box<Answer>),
    Api(axum::body::Body),
}

/// Frames that only wait to be written.
#[derive(Debug, Default)]
pub(super) struct ReadyBody {
    frames: SmallVec<[Bytes; 2]>,
    next: usize,
    left: u64,
    trailers: Option<http::HeaderMap>,
}

impl ReadyBody {
    pub(super) fn new(frames: SmallVec<[Bytes; 2]>, trailers: Option<http::HeaderMap>) -> ReadyBody {
        let left = frames.iter().map(|frame| frame.len() as u64).sum();
        ReadyBody { frames, next: 0, left, trailers }
    }

    fn next(&mut self) -> Option<Frame<Bytes>> {
        while let Some(frame) = self.frames.get_mut(self.next) {
            self.next += 1;
            if !frame.is_empty() {
                let data = std::mem::take(frame);
                self.left -= data.len() as u64;
                return Some(Frame::data(data));
            }
        }
        self.trailers.take().map(Frame::trailers)
    }
}

impl Outgoing {
    pub(super) fn text(bytes: impl Into<Bytes>) -> Outgoing {
        Outgoing::Full(Some(bytes.into()))
    }
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        match self.get_mut() {
            Outgoing::Empty => Poll::Ready(None),
            Outgoing::Full(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Outgoing::Ready(body) => Poll::Ready(body.next().map(Ok)),
            Outgoing::Metered(answer) => answer.poll_frame(context).map_err(Into::into),
            Outgoing::Api(body) => Pin::new(body).poll_frame(context).map_err(Into::into),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Outgoing::Empty => true,
            Outgoing::Full(bytes) => bytes.is_none(),
            Outgoing::Ready(body) => body.left == 0 && body.trailers.is_none(),
            Outgoing::Metered(answer) => answer.is_over(),
            Outgoing::Api(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Outgoing::Empty => SizeHint::with_exact(0),
            Outgoing::Full(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, Bytes::len) as u64),
            Outgoing::Ready(body) if body.trailers.is_none() => SizeHint::with_exact(body.left),
            Outgoing::Ready(_) => SizeHint::default(),
            Outgoing::Metered(answer) => answer.length().map_or_else(SizeHint::default, SizeHint::with_exact),
            Outgoing::Api(body) => body.size_hint(),
        }
    }
}
