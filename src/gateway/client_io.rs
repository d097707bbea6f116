//! A client's connection with its clocks: how long a head may take, how long the line may be idle, how long a write may
//! stall. One timer a connection, looked at again only when it fires.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use hyper::rt::{Read, ReadBufCursor, Write};
use parking_lot::Mutex;
use prometheus::IntGauge;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Sleep;

use crate::config;

/// The time limits of a client's connection.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clocks {
    header: Duration,
    keep_alive: Duration,
    write: Duration,
    max_header_bytes: usize,
}

impl Clocks {
    pub(super) fn new(settings: &config::Server) -> Clocks {
        Clocks {
            header: Duration::from_millis(settings.header_timeout_ms),
            keep_alive: Duration::from_millis(settings.keep_alive_ms),
            write: Duration::from_millis(settings.write_timeout_ms),
            max_header_bytes: settings.max_header_bytes,
        }
    }
}

/// A connection's part of the replica's limit; held for as long as its socket is open, upgraded or not.
#[derive(Debug)]
pub(super) struct Place {
    open: IntGauge,
    _permit: OwnedSemaphorePermit,
}

impl Place {
    pub(super) fn new(open: &IntGauge, permit: OwnedSemaphorePermit) -> Arc<Place> {
        open.inc();
        Arc::new(Place { open: open.clone(), _permit: permit })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.open.dec();
    }
}

/// What a connection is doing; shared with the requests on it.
#[derive(Debug)]
pub(super) struct Activity {
    began: Instant,
    in_flight: AtomicU32,
    /// Microseconds after `began`: when the last request ended.
    idle_since: AtomicU64,
    served: AtomicBool,
    http2: AtomicBool,
    head: Mutex<Head>,
}

/// The bytes of an HTTP/1 head as they came.
#[derive(Debug, Default)]
struct Head {
    bytes: Vec<u8>,
    began: Option<Instant>,
}

/// A request on its way. Dropped when its answer is written.
#[derive(Debug)]
pub(super) struct InFlight(Arc<Activity>);

impl Activity {
    pub(super) fn new() -> Arc<Activity> {
        Arc::new(Activity {
            began: Instant::now(),
            in_flight: AtomicU32::new(0),
            idle_since: AtomicU64::new(0),
            served: AtomicBool::new(false),
            http2: AtomicBool::new(false),
            head: Mutex::default(),
        })
    }

    /// A request's head is complete. The second answer says whether it carried a Content-Length next to a
    /// Transfer-Encoding: hyper quietly drops the former, and RFC 9112 §6.1 wants such a connection closed.
    pub(super) fn begin(self: &Arc<Self>, http2: bool, chunked: bool) -> (InFlight, bool) {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        self.served.store(true, Ordering::Relaxed);
        self.http2.store(http2, Ordering::Relaxed);
        let mut head = self.head.lock();
        let ambiguous = chunked && names_content_length(&head.bytes);
        head.bytes.clear();
        head.began = None;
        (InFlight(Arc::clone(self)), ambiguous)
    }

    /// The answer may take long: what is only kept to be used again goes.
    pub(super) fn spare(&self) {
        self.head.lock().bytes = Vec::new();
    }

    /// The connection is a tunnel from here on: what it carries is not ours to time or to keep.
    pub(super) fn becomes_tunnel(&self) {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
    }

    fn received(&self, bytes: &[u8], limit: usize) {
        if self.in_flight.load(Ordering::Relaxed) > 0 || self.http2.load(Ordering::Relaxed) {
            return;
        }
        let mut head = self.head.lock();
        if head.began.is_none() {
            head.began = Some(Instant::now());
        }
        let room = limit.saturating_sub(head.bytes.len());
        head.bytes.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }

    /// When the connection shall be closed if nothing happens; `None` while it serves a request.
    fn deadline(&self, clocks: &Clocks) -> Option<Instant> {
        if self.in_flight.load(Ordering::Relaxed) > 0 {
            return None;
        }
        if !self.served.load(Ordering::Relaxed) {
            return Some(self.began + clocks.header);
        }
        let idle_since = self.began + Duration::from_micros(self.idle_since.load(Ordering::Relaxed));
        let head_began = self.head.lock().began;
        Some(head_began.map_or(idle_since + clocks.keep_alive, |began| began + clocks.header))
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let now = self.0.began.elapsed().as_micros() as u64;
        self.0.idle_since.store(now, Ordering::Relaxed);
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

fn names_content_length(head: &[u8]) -> bool {
    let end = memchr::memmem::find(head, b"\r\n\r\n").unwrap_or(head.len());
    let name = b"content-length";
    head[..end].split(|byte| *byte == b'\n').any(|line| {
        line.len() > name.len() && line[..name.len()].eq_ignore_ascii_case(name) && line[name.len()] == b':'
    })
}

/// The connection as hyper reads and writes it.
#[derive(Debug)]
pub(super) struct ClientIo<S> {
    stream: S,
    activity: Arc<Activity>,
    clocks: Clocks,
    read_timer: Option<Pin<Box<Sleep>>>,
    write_timer: Option<Pin<Box<Sleep>>>,
    _place: Arc<Place>,
}

impl<S> ClientIo<S> {
    pub(super) fn new(stream: S, activity: Arc<Activity>, clocks: Clocks, place: Arc<Place>) -> ClientIo<S> {
        ClientIo { stream, activity, clocks, read_timer: None, write_timer: None, _place: place }
    }

    /// Whether the connection has waited too long.
    fn expired(&mut self, context: &mut Context<'_>) -> bool {
        loop {
            let deadline = self.activity.deadline(&self.clocks);
            let armed = match (&mut self.read_timer, deadline) {
                (Some(timer), Some(deadline)) if timer.deadline().into_std() > deadline => {
                    timer.as_mut().reset(deadline.into());
                    timer
                }
                (Some(timer), _) => timer,
                (none, deadline) => {
                    let until = deadline.unwrap_or_else(|| Instant::now() + self.clocks.keep_alive);
                    none.insert(Box::pin(tokio::time::sleep_until(until.into())))
                }
            };
            if armed.as_mut().poll(context).is_pending() {
                return false;
            }
            let now = Instant::now();
            match deadline {
                Some(deadline) if deadline <= now => return true,
                Some(deadline) => armed.as_mut().reset(deadline.into()),
                None => armed.as_mut().reset((now + self.clocks.keep_alive.max(Duration::from_millis(1))).into()),
            }
        }
    }

    fn stalled<T>(&mut self, written: Poll<io::Result<T>>, context: &mut Context<'_>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.write_timer = None;
            return written;
        }
        let limit = self.clocks.write;
        let timer = self.write_timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
        match timer.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

/// hyper's reading into uninitialised memory needs `unsafe`; a stack buffer's copy costs less than a system call's noise.
const READ_BYTES: usize = 16 * 1024;

impl<S: AsyncRead + Unpin> Read for ClientIo<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        mut cursor: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let mut space = [std::mem::MaybeUninit::uninit(); READ_BYTES];
        let room = cursor.remaining().min(READ_BYTES);
        let mut buffer = ReadBuf::uninit(&mut space[..room]);
        match Pin::new(&mut this.stream).poll_read(context, &mut buffer) {
            Poll::Ready(Ok(())) => {
                let filled = buffer.filled();
                this.activity.received(filled, this.clocks.max_header_bytes);
                cursor.put_slice(filled);
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending if this.expired(context) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl<S: AsyncWrite + Unpin> Write for ClientIo<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.stalled(written, context)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(context);
        self.stalled(flushed, context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = Pin::new(&mut self.stream).poll_shutdown(context);
        self.stalled(shut, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.stalled(written, context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_a_content_length_in_a_head_only() {
        assert!(names_content_length(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nCONTENT-length: 3\r\n\r\n"));
        assert!(!names_content_length(b"POST / HTTP/1.1\r\nx: y\r\n\r\ncontent-length: 3\r\n"));
        assert!(!names_content_length(b"POST / HTTP/1.1\r\nx-content-length: 3\r\n\r\n"));
    }

    #[test]
    fn a_connection_has_a_deadline_only_between_requests() {
        let clocks = Clocks::new(&config::Server::default());
        let activity = Activity::new();
        assert_eq!(activity.deadline(&clocks), Some(activity.began + clocks.header));
        let (guard, ambiguous) = activity.begin(false, false);
        assert!(!ambiguous);
        assert_eq!(activity.deadline(&clocks), None);
        drop(guard);
        assert!(activity.deadline(&clocks) >= Some(activity.began + clocks.keep_alive));
        activity.received(b"POST", 64);
        assert!(activity.deadline(&clocks) < Some(activity.began + clocks.keep_alive));
    }

    #[test]
    fn a_tunnel_has_no_deadline() {
        let clocks = Clocks::new(&config::Server::default());
        let activity = Activity::new();
        let (guard, _) = activity.begin(false, false);
        activity.becomes_tunnel();
        drop(guard);
        activity.received(b"any bytes", 64);
        assert_eq!(activity.deadline(&clocks), None);
    }
}
