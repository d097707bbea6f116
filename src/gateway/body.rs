//! A client's body, and what is forwarded of it.

use std::cell::Cell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::Sleep;

use super::memory::{BodyMemory, Kept};

pub(super) type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// What became of a client's body while it was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum BodyFault {
    #[error("the request body is over the limit")]
    TooLarge,
    #[error("the request body did not come in time")]
    Timeout,
    #[error("the request body broke off")]
    Broken,
    #[error("no memory was left for the request body")]
    NoRoom,
}

/// The bounds of one request's body.
#[derive(Debug, Clone, Copy)]
pub(super) struct BodyLimits {
    pub(super) max_bytes: usize,
    /// Longest silence.
    pub(super) idle: Duration,
    /// The whole body.
    pub(super) total: Duration,
}

/// A client's body with its bounds: bytes, silence, and time in all.
#[derive(Debug)]
pub(super) struct Bounded {
    body: Incoming,
    left: usize,
    limits: BodyLimits,
    began: Instant,
    /// Made when the body first lets us wait.
    timer: Option<Pin<Box<Sleep>>>,
    progress: Rc<Progress>,
}

/// How a body that is forwarded unread is getting on, for whoever waits for the answer.
#[derive(Debug, Default)]
pub(super) struct Progress {
    fault: Cell<Option<BodyFault>>,
    done: Cell<bool>,
    bytes: Cell<u64>,
}

impl Progress {
    pub(super) fn fault(&self) -> Option<BodyFault> {
        self.fault.get()
    }

    pub(super) fn done(&self) -> bool {
        self.done.get()
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes.get()
    }
}

impl Bounded {
    pub(super) fn new(body: Incoming, limits: BodyLimits) -> Bounded {
        let left = limits.max_bytes;
        Bounded { body, left, limits, began: Instant::now(), timer: None, progress: Rc::default() }
    }

    pub(super) fn progress(&self) -> Rc<Progress> {
        Rc::clone(&self.progress)
    }

    /// Reads it to the end. Trailers are dropped, as RFC 9110 §6.5.2 lets whoever does not know them.
    pub(super) async fn collect(mut self, memory: &BodyMemory) -> Result<Kept, BodyFault> {
        let mut first = Bytes::new();
        let mut rest: Option<BytesMut> = None;
        let mut share = memory.share();
        let (exact, most) = (self.body.size_hint().exact(), self.left);
        let expected = exact.unwrap_or(0).min(most as u64) as usize;
        let most = if exact.is_some() { expected } else { most };
        loop {
            let frame = std::future::poll_fn(|context| self.poll_bounded(context)).await;
            let Some(frame) = frame else { break };
            let Ok(data) = frame?.into_data() else { continue };
            let so_far = rest.as_ref().map_or(first.len(), BytesMut::len);
            share.cover(so_far + data.len(), most).await?;
            match &mut rest {
                Some(rest) => rest.extend_from_slice(&data),
                None if first.is_empty() => first = data,
                None => {
                    let mut joined = BytesMut::with_capacity(expected.max(first.len() + data.len()));
                    joined.extend_from_slice(&first);
                    joined.extend_from_slice(&data);
                    rest = Some(joined);
                }
            }
        }
        Ok(share.keep(rest.map_or(first, BytesMut::freeze)))
    }

    fn poll_bounded(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyFault>>> {
        match Pin::new(&mut self.body).poll_frame(context) {
            Poll::Ready(Some(Ok(frame))) => {
                self.timer = None;
                if let Some(data) = frame.data_ref() {
                    let Some(left) = self.left.checked_sub(data.len()) else {
                        return Poll::Ready(Some(Err(self.failed(BodyFault::TooLarge))));
                    };
                    self.left = left;
                    self.progress.bytes.set(self.progress.bytes.get() + data.len() as u64);
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(_))) => Poll::Ready(Some(Err(self.failed(BodyFault::Broken)))),
            Poll::Ready(None) => {
                self.progress.done.set(true);
                Poll::Ready(None)
            }
            Poll::Pending => {
                let left_in_all = self.limits.total.saturating_sub(self.began.elapsed());
                let wait = self.limits.idle.min(left_in_all);
                let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(wait)));
                ready!(timer.as_mut().poll(context));
                Poll::Ready(Some(Err(self.failed(BodyFault::Timeout))))
            }
        }
    }

    fn failed(&self, fault: BodyFault) -> BodyFault {
        self.progress.fault.set(Some(fault));
        fault
    }
}

/// The body of a request to an upstream.
#[derive(Debug)]
pub(super) enum ForwardBody {
    Empty,
    Full(Option<Bytes>),
    Streamed(Box<Bounded>),
}

impl Body for ForwardBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        match self.get_mut() {
            ForwardBody::Empty => Poll::Ready(None),
            ForwardBody::Full(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            ForwardBody::Streamed(body) => body.poll_bounded(context).map_err(Into::into),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            ForwardBody::Empty => true,
            ForwardBody::Full(bytes) => bytes.is_none(),
            ForwardBody::Streamed(body) => body.body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            ForwardBody::Empty => SizeHint::with_exact(0),
            ForwardBody::Full(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, Bytes::len) as u64),
            ForwardBody::Streamed(body) => body.body.size_hint(),
        }
    }
}
