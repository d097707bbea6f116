//! HTTP/1.1 to an upstream, driven by the task of the request that it serves.
//!
//! A client in the usual manner drives each connection on a task of its own, and request, head and body pass from task
//! to task. Here a request is written and its answer read where they are wanted: no second task, no channel between, no
//! map of fields for what is only written, and no buffer for a connection that waits. Requests whose bodies pass
//! through unread, and those that change protocols, go hyper's way: their connections must go on while nobody reads.

mod body;
mod head;
mod reader;

use std::cell::RefCell;
use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};
use http::{HeaderMap, HeaderName, HeaderValue, Method, response, uri};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Sleep;
use tokio_rustls::client::TlsStream;

pub(super) use self::body::Piece;
pub(super) use self::reader::Reader;

/// What one read may bring.
const READ_BYTES: usize = 32 * 1024;
/// Bodies up to this size are written together with their head, in one piece.
const JOINED_BODY_BYTES: usize = 16 * 1024;
/// A head's usual size.
const HEAD_BYTES: usize = 1_024;

/// Bytes that are not an HTTP/1.1 answer; the text says why.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the upstream sent {0}")]
pub(super) struct Garbled(pub(super) &'static str);

/// Why an answer does not come, or not to its end.
#[derive(Debug, thiserror::Error)]
pub(super) enum Broken {
    #[error(transparent)]
    Garbled(#[from] Garbled),
    #[error("the connection broke: {0}")]
    Io(#[from] io::Error),
    #[error("the connection was closed early")]
    Closed,
    #[error("nothing came in time")]
    TimedOut,
}

/// Where a worker's connections write their heads and read what comes, one after another: no connection needs room of
/// its own while it waits.
#[derive(Clone)]
pub(super) struct Scratch(Rc<RefCell<Room>>);

struct Room {
    written: Vec<u8>,
    read: Box<[u8]>,
}

impl Scratch {
    pub(super) fn new() -> Scratch {
        let written = Vec::with_capacity(HEAD_BYTES);
        Scratch(Rc::new(RefCell::new(Room { written, read: vec![0; READ_BYTES].into() })))
    }
}

/// What was written holds the upstream's key.
impl fmt::Debug for Scratch {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Scratch")
    }
}

/// What a connection runs over.
#[derive(Debug)]
pub(super) enum Wire {
    Tcp(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Wire {
    fn poll_read(&mut self, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self {
            Wire::Tcp(stream) => Pin::new(stream).poll_read(context, buffer),
            Wire::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }

    fn poll_write(&mut self, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self {
            Wire::Tcp(stream) => Pin::new(stream).poll_write(context, bytes),
            Wire::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_flush(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            // What TCP takes is on its way.
            Wire::Tcp(_) => Poll::Ready(Ok(())),
            Wire::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }
}

/// What a request says in its head.
pub(super) struct Line<'a> {
    pub(super) method: &'a Method,
    pub(super) path: &'a uri::PathAndQuery,
    pub(super) host: &'a HeaderValue,
    /// The length to name; `None` where a request without a body says nothing of one.
    pub(super) length: Option<usize>,
}

/// The fields of a head that is being written.
pub(super) struct Fields<'a>(&'a mut Vec<u8>);

impl Fields<'_> {
    pub(super) fn put(&mut self, name: &HeaderName, value: &HeaderValue) {
        head::write_field(self.0, name, value.as_bytes());
    }
}

/// A connection that carries one request at a time.
pub(super) struct Connection<G> {
    wire: Wire,
    scratch: Scratch,
    /// Of the request, what is not written yet.
    unsent: Unsent,
    reader: Reader,
    alarm: Alarm,
    _guard: G,
}

/// Of what is sent and received nothing: heads hold keys, and bodies are nobody's business.
impl<G> fmt::Debug for Connection<G> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Connection").field("wire", &self.wire).finish_non_exhaustive()
    }
}

#[derive(Default)]
struct Unsent {
    head: Bytes,
    body: Bytes,
    flush: bool,
}

impl<G> Connection<G> {
    /// `guard` lives as long as the connection.
    pub(super) fn new(wire: Wire, scratch: Scratch, guard: G) -> Connection<G> {
        Connection {
            wire,
            scratch,
            unsent: Unsent::default(),
            reader: Reader::new(),
            alarm: Alarm::default(),
            _guard: guard,
        }
    }

    /// Whether an idle connection is still there. An upstream that says anything now, its farewell too, has ended it.
    pub(super) fn is_alive(&mut self) -> bool {
        let mut context = Context::from_waker(Waker::noop());
        self.poll_receive(&mut context).is_pending()
    }

    /// The answer is over, and another request may follow.
    pub(super) fn is_reusable(&self) -> bool {
        self.reader.is_reusable() && self.unsent.is_empty()
    }

    /// Begins a request: writes it as far as the line takes it. The rest follows as its answer is awaited.
    pub(super) fn send(&mut self, line: &Line<'_>, fields: impl FnOnce(&mut Fields<'_>), body: Bytes) {
        let scratch = self.scratch.clone();
        let mut room = scratch.0.borrow_mut();
        let out = &mut room.written;
        out.clear();
        head::begin(out, line.method, line.path, line.host);
        if let Some(length) = line.length {
            head::write_length(out, length);
        }
        fields(&mut Fields(out));
        out.extend_from_slice(b"\r\n");
        let joined = body.len() <= JOINED_BODY_BYTES;
        if joined {
            out.extend_from_slice(&body);
        }
        self.reader.expect(*line.method == Method::HEAD);
        self.unsent.flush = true;
        self.unsent.body = if joined { Bytes::new() } else { body };
        // Most requests leave here, at once; whoever awaits the answer is woken where one does not.
        let mut context = Context::from_waker(Waker::noop());
        let written = match self.wire.poll_write(&mut context, out) {
            Poll::Ready(Ok(written)) => written,
            // It fails again where the answer is awaited.
            Poll::Ready(Err(_)) | Poll::Pending => 0,
        };
        if written < out.len() {
            self.unsent.head = Bytes::copy_from_slice(&out[written..]);
        }
        out.shrink_to(2 * JOINED_BODY_BYTES);
    }

    /// The head of the answer, within `limit` from now on.
    pub(super) fn poll_head(
        &mut self,
        context: &mut Context<'_>,
        limit: Duration,
    ) -> Poll<Result<response::Parts, Broken>> {
        // A request that is not taken may be answered all the same: that it came to nothing shows when reading does.
        let sent = self.poll_unsent(context);
        loop {
            if let Some(parts) = self.reader.head()? {
                self.alarm.rest();
                return Poll::Ready(Ok(parts));
            }
            let broken: Broken = match self.poll_receive(context) {
                Poll::Ready(Ok(0)) => Broken::Closed,
                Poll::Ready(Ok(_)) => continue,
                Poll::Ready(Err(error)) => error.into(),
                Poll::Pending => match sent {
                    Poll::Ready(Err(error)) => error.into(),
                    _ => break,
                },
            };
            // Only what nothing was said to may be asked again.
            return Poll::Ready(Err(if self.reader.began() { Garbled("half a head").into() } else { broken }));
        }
        ready!(self.alarm.poll(context, limit));
        Poll::Ready(Err(Broken::TimedOut))
    }

    /// The next piece of the answer's body; silence ends it after `idle`.
    pub(super) fn poll_body(&mut self, context: &mut Context<'_>, idle: Duration) -> Poll<Result<Part, Broken>> {
        loop {
            match self.reader.piece()? {
                Piece::Data(data) => return Poll::Ready(Ok(Part::Data(data))),
                Piece::Trailers(trailers) => return Poll::Ready(Ok(Part::Trailers(trailers))),
                Piece::Over => {
                    self.alarm.rest();
                    return Poll::Ready(Ok(Part::End));
                }
                Piece::More => {}
            }
            // What was not sent when the answer began still goes out; an upstream that no longer wants it says so.
            let _ = self.poll_unsent(context);
            match self.poll_receive(context) {
                Poll::Ready(Ok(0)) if self.reader.closed() => {}
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(Broken::Closed)),
                Poll::Ready(Ok(_)) => self.alarm.rest(),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error.into())),
                Poll::Pending => break,
            }
        }
        ready!(self.alarm.poll(context, idle));
        Poll::Ready(Err(Broken::TimedOut))
    }

    /// Everything of the body was read.
    pub(super) fn is_over(&self) -> bool {
        self.reader.is_over()
    }

    /// Bytes of the body still to come, where that is known.
    pub(super) fn left(&self) -> Option<u64> {
        self.reader.left()
    }

    fn poll_unsent(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.unsent.is_empty() {
            return Poll::Ready(Ok(()));
        }
        let Unsent { head, body, flush } = &mut self.unsent;
        for part in [head, body] {
            while !part.is_empty() {
                match ready!(self.wire.poll_write(context, part)) {
                    Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                    Ok(written) => part.advance(written),
                    Err(error) => return Poll::Ready(Err(error)),
                }
            }
        }
        ready!(self.wire.poll_flush(context))?;
        *flush = false;
        Poll::Ready(Ok(()))
    }

    /// Reads what there is; 0 is the end.
    fn poll_receive(&mut self, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut room = self.scratch.0.borrow_mut();
        let mut buffer = ReadBuf::new(&mut room.read);
        ready!(self.wire.poll_read(context, &mut buffer))?;
        self.reader.receive(buffer.filled());
        Poll::Ready(Ok(buffer.filled().len()))
    }
}

/// A piece of an answer's body.
#[derive(Debug)]
pub(super) enum Part {
    Data(Bytes),
    Trailers(HeaderMap),
    End,
}

impl Unsent {
    fn is_empty(&self) -> bool {
        !self.flush && self.head.is_empty() && self.body.is_empty()
    }
}

/// A time limit whose timer stays armed from one wait to the next, and is set anew only when it fires: most waits are
/// over long before, and cost one look at the clock.
#[derive(Debug, Default)]
struct Alarm {
    timer: Option<Pin<Box<Sleep>>>,
    deadline: Option<Instant>,
}

impl Alarm {
    /// Whatever was waited for has come.
    fn rest(&mut self) {
        self.deadline = None;
    }

    /// Ready when `limit` has passed since the first poll after a rest.
    fn poll(&mut self, context: &mut Context<'_>, limit: Duration) -> Poll<()> {
        let deadline = *self.deadline.get_or_insert_with(|| Instant::now() + limit);
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline.into())));
        if timer.deadline().into_std() > deadline {
            timer.as_mut().reset(deadline.into());
        }
        loop {
            ready!(timer.as_mut().poll(context));
            if Instant::now() >= deadline {
                return Poll::Ready(());
            }
            timer.as_mut().reset(deadline.into());
        }
    }
}

#[cfg(test)]
mod tests;
