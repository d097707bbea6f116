//! Answers: a head, and a body that is handed over at once or piece by piece.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use http_body::{Body, Frame, SizeHint};
use serde_json::{Value, json};
use tokio::time::{Instant, Sleep, sleep};

use super::knobs::Knobs;
use super::stats::Stats;

/// Padding goes out in pieces of so many bytes.
const PAD: usize = 16 * 1024;
/// A plain answer that is to break or stall midway is cut into so many bytes.
const PLAIN_PIECE: usize = 64;

/// How long a connection that is to break stays open after its last piece.
const BEFORE_BREAK: Duration = Duration::from_millis(2);

/// The pieces of a body, made as they are sent.
pub(super) type Pieces = Box<dyn Iterator<Item = Bytes> + Send>;

/// What an endpoint answers, before the knobs shape it.
pub(super) enum Answer {
    Plain(StatusCode, Value),
    /// Each event with its `event:` name, if the protocol has one.
    Events(Box<dyn Iterator<Item = Event> + Send>),
}

pub(super) struct Event {
    pub(super) name: Option<&'static str>,
    pub(super) data: String,
}

impl Event {
    pub(super) fn data(data: &Value) -> Event {
        Event { name: None, data: data.to_string() }
    }

    pub(super) fn named(name: &'static str, data: &Value) -> Event {
        Event { name: Some(name), data: data.to_string() }
    }

    fn write(&self, knobs: &Knobs) -> Bytes {
        let end = if knobs.crlf { "\r\n" } else { "\n" };
        let comment = if knobs.comments { format!(": still here{end}{end}") } else { String::new() };
        let name = self.name.map(|name| format!("event: {name}{end}")).unwrap_or_default();
        format!("{comment}{name}data: {}{end}{end}", self.data).into()
    }
}

/// The connection is broken off here.
#[derive(Debug)]
pub(super) struct Broken;

impl std::fmt::Display for Broken {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("broken off, as asked")
    }
}

impl std::error::Error for Broken {}

impl From<Infallible> for Broken {
    fn from(never: Infallible) -> Broken {
        match never {}
    }
}

pub(super) fn respond(answer: Answer, knobs: &Knobs, stats: Arc<Stats>) -> Response<SimBody> {
    let (status, kind, pieces, length) = match answer {
        Answer::Plain(status, value) => {
            let text = if knobs.garbage { "<html>this is not JSON".to_owned() } else { value.to_string() };
            let length = (!knobs.paced()).then_some(text.len() as u64);
            (status, "application/json", plain_pieces(text, knobs), length)
        }
        Answer::Events(events) => (StatusCode::OK, "text/event-stream", event_pieces(events, knobs), None),
    };
    let body = SimBody::new(pieces, length, knobs, stats);
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    if let Some(Ok(coding)) = knobs.encoding.as_deref().map(HeaderValue::from_str) {
        response.headers_mut().insert(header::CONTENT_ENCODING, coding);
    }
    if kind == "text/event-stream" {
        response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    }
    response
}

fn plain_pieces(text: String, knobs: &Knobs) -> Pieces {
    let whole = Bytes::from(text);
    if !knobs.paced() {
        return Box::new(std::iter::once(whole));
    }
    let size = knobs.split.unwrap_or(PLAIN_PIECE);
    if knobs.body_bytes == 0 || whole.first() != Some(&b'{') {
        return cut(Box::new(std::iter::once(whole)), size);
    }
    // {"padding":"xxx…",<the rest>
    let pads = knobs.body_bytes.div_ceil(PAD as u64);
    let pad = Bytes::from(vec![b'x'; PAD]);
    let padding = (0..pads).map(move |_| pad.clone());
    let head = std::iter::once(Bytes::from_static(b"{\"padding\":\""));
    let tail = [Bytes::from_static(b"\","), whole.slice(1..)];
    Box::new(head.chain(padding).chain(tail))
}

fn event_pieces(events: Box<dyn Iterator<Item = Event> + Send>, knobs: &Knobs) -> Pieces {
    let writing = knobs.clone();
    let mut pieces: Pieces = Box::new(events.map(move |event| event.write(&writing)));
    if knobs.garbage {
        pieces =
            Box::new([Bytes::from_static(b"\x00\xffdata\x00{{{\n\n"), Bytes::from_static(b"no event\n\n")].into_iter());
    }
    if knobs.half_event {
        pieces = Box::new(HalveLast { inner: pieces, waiting: None });
    }
    match knobs.split {
        Some(size) => cut(pieces, size),
        None => pieces,
    }
}

fn cut(pieces: Pieces, size: usize) -> Pieces {
    Box::new(pieces.flat_map(move |piece| {
        let count = piece.len().div_ceil(size);
        (0..count).map(move |index| piece.slice(index * size..piece.len().min((index + 1) * size)))
    }))
}

/// Ends in the middle of the last piece.
struct HalveLast {
    inner: Pieces,
    waiting: Option<Bytes>,
}

impl Iterator for HalveLast {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        if self.waiting.is_none() {
            self.waiting = self.inner.next();
        }
        let piece = self.waiting.take()?;
        self.waiting = self.inner.next();
        Some(if self.waiting.is_none() { piece.slice(..piece.len() / 2) } else { piece })
    }
}

/// A body that takes its time, breaks, or stalls, as asked; and that tells the stats how it ended.
pub(super) struct SimBody {
    pieces: Pieces,
    ready: VecDeque<Bytes>,
    length: Option<u64>,
    wait: Duration,
    sleep: Option<Pin<Box<Sleep>>>,
    sent: u64,
    reset_after: Option<u64>,
    stall_after: Option<u64>,
    ended: bool,
    stats: Arc<Stats>,
}

impl SimBody {
    fn new(mut pieces: Pieces, length: Option<u64>, knobs: &Knobs, stats: Arc<Stats>) -> SimBody {
        stats.opened();
        let ready = pieces.next().into_iter().collect();
        SimBody {
            pieces,
            ready,
            length,
            wait: knobs.chunk,
            sleep: None,
            sent: 0,
            reset_after: knobs.reset_after,
            stall_after: knobs.stall_after,
            ended: false,
            stats,
        }
    }
}

impl Body for SimBody {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let body = &mut *self;
        if body.stall_after == Some(body.sent) {
            return Poll::Pending;
        }
        if let Some(sleep) = body.sleep.as_mut() {
            ready!(sleep.as_mut().poll(context));
            body.sleep = None;
        }
        if body.reset_after == Some(body.sent) {
            return Poll::Ready(Some(Err(Broken)));
        }
        let Some(piece) = body.ready.pop_front() else {
            body.ended = true;
            return Poll::Ready(None);
        };
        body.sent += 1;
        body.ready.extend(body.pieces.next());
        if body.ready.is_empty() && body.length.is_some() {
            // hyper asks no further once a body of known length is complete.
            body.ended = true;
        } else {
            // Before a break, what was sent must have left hyper's buffer: an error drops that.
            let breaks = body.reset_after == Some(body.sent);
            let wait = if breaks { body.wait.max(BEFORE_BREAK) } else { body.wait };
            body.sleep = (!wait.is_zero()).then(|| Box::pin(sleep(wait)));
        }
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn size_hint(&self) -> SizeHint {
        self.length.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

impl Drop for SimBody {
    fn drop(&mut self) {
        self.stats.closed(self.ended);
    }
}

/// Waits as the `first-byte-ms` knob asks.
pub(super) async fn wait_before(knobs: &Knobs) {
    if !knobs.first_byte.is_zero() {
        tokio::time::sleep_until(Instant::now() + knobs.first_byte).await;
    }
}

/// An error in the endpoint's own form.
pub(super) fn failure(anthropic: bool, status: StatusCode, message: &str) -> Answer {
    let kind = match status.as_u16() {
        400 | 404 | 413 | 422 => "invalid_request_error",
        401 => "authentication_error",
        403 => "permission_error",
        429 => "rate_limit_error",
        529 => "overloaded_error",
        _ if anthropic => "api_error",
        _ => "server_error",
    };
    let body = if anthropic {
        json!({ "type": "error", "error": { "type": kind, "message": message }, "request_id": "req_sim" })
    } else {
        json!({ "error": { "message": message, "type": kind, "param": null, "code": null } })
    };
    Answer::Plain(status, body)
}
