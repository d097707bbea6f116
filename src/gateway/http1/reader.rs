//! What an upstream says, read as HTTP/1.1 wherever the network cuts it.

use bytes::BytesMut;
use http::response;

use super::Garbled;
use super::body::{Body, Piece};
use super::head;

/// Reads one answer after another out of what was received.
pub(in crate::gateway) struct Reader {
    received: BytesMut,
    body: Body,
    answers_head: bool,
    /// May carry another request once this one is over.
    keep: bool,
    /// Heads of status 1xx that came before the answer's own.
    interim: usize,
}

impl Reader {
    pub(in crate::gateway) fn new() -> Reader {
        Reader { received: BytesMut::new(), body: Body::Over, answers_head: false, keep: true, interim: 0 }
    }

    /// A request goes out; `head`: its answer has no body, whatever it says.
    pub(in crate::gateway) fn expect(&mut self, head: bool) {
        self.answers_head = head;
        self.body = Body::Over;
        self.keep = false;
        self.interim = 0;
    }

    pub(in crate::gateway) fn receive(&mut self, bytes: &[u8]) {
        if self.received.is_empty() {
            // No more than it needs: a stream may wait for long with the next piece half received.
            self.received = BytesMut::from(bytes);
        } else {
            self.received.extend_from_slice(bytes);
        }
    }

    /// The answer's head, once it is complete.
    pub(in crate::gateway) fn head(&mut self) -> Result<Option<response::Parts>, Garbled> {
        if self.received.is_empty() {
            return Ok(None);
        }
        let Some(head) = head::parse(&mut self.received, self.answers_head, &mut self.interim)? else {
            return Ok(None);
        };
        self.body = Body::new(head.framing);
        self.keep = head.keep;
        Ok(Some(head.parts))
    }

    /// The next piece of the answer's body.
    pub(in crate::gateway) fn piece(&mut self) -> Result<Piece, Garbled> {
        self.body.next(&mut self.received)
    }

    /// The upstream closed its side: whether that ends the body properly.
    pub(in crate::gateway) fn closed(&mut self) -> bool {
        self.body.closed()
    }

    /// Whether anything came since the request went out, though its answer's head is not complete.
    pub(super) fn began(&self) -> bool {
        self.interim > 0 || !self.received.is_empty()
    }

    pub(super) fn is_over(&self) -> bool {
        self.body.is_over()
    }

    pub(super) fn left(&self) -> Option<u64> {
        self.body.left()
    }

    /// The answer is over, nothing came after it, and another may follow.
    pub(in crate::gateway) fn is_reusable(&self) -> bool {
        self.keep && self.body.is_over() && self.received.is_empty()
    }
}
