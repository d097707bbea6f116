//! What an upstream says, read as HTTP/1.1 wherever the network cuts it.

use bytes::BytesMut;
use http::response;

use super::Garbled;
use super::body::{Body, Piece};
use super::head;

/// How often an answer's head is read again from its beginning because another line of it came.
const MAX_LOOKS: u32 = 1_024;

/// Reads one answer after another out of what was received.
pub(in crate::gateway) struct Reader {
    received: BytesMut,
    body: Body,
    answers_head: bool,
    /// May carry another request once this one is over.
    keep: bool,
    /// Heads of status 1xx that came before the answer's own.
    interim: usize,
    /// A line has ended since the head was last looked for.
    line_ended: bool,
    looks: u32,
}

impl Reader {
    pub(in crate::gateway) fn new() -> Reader {
        let received = BytesMut::new();
        Reader { received, body: Body::Over, answers_head: false, keep: true, interim: 0, line_ended: false, looks: 0 }
    }

    /// A request goes out; `head`: its answer has no body, whatever it says.
    pub(in crate::gateway) fn expect(&mut self, head: bool) {
        self.answers_head = head;
        self.body = Body::Over;
        self.keep = false;
        self.interim = 0;
        self.line_ended = !self.received.is_empty();
        self.looks = 0;
    }

    pub(in crate::gateway) fn receive(&mut self, bytes: &[u8]) {
        self.line_ended = self.line_ended || memchr::memchr(b'\n', bytes).is_some();
        if self.received.is_empty() {
            // No more than it needs: a stream may wait for long with the next piece half received.
            self.received = BytesMut::from(bytes);
        } else {
            self.received.extend_from_slice(bytes);
        }
    }

    /// The answer's head, once it is complete.
    pub(in crate::gateway) fn head(&mut self) -> Result<Option<response::Parts>, Garbled> {
        // Else a head that comes byte by byte would cost the square of its length.
        if !std::mem::take(&mut self.line_ended) {
            return if self.received.len() < head::MAX_HEAD_BYTES {
                Ok(None)
            } else {
                Err(Garbled("a head without end"))
            };
        }
        self.looks += 1;
        if self.looks > MAX_LOOKS {
            return Err(Garbled("a head in too many pieces"));
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

#[cfg(test)]
mod tests {
    use super::*;

    fn drip(reader: &mut Reader, text: &[u8]) -> Result<Option<response::Parts>, Garbled> {
        let mut found = None;
        for byte in text {
            reader.receive(std::slice::from_ref(byte));
            found = reader.head()?;
        }
        Ok(found)
    }

    #[test]
    fn a_head_that_drips_is_read_once_a_line() {
        let mut reader = Reader::new();
        reader.expect(false);
        let text = format!("HTTP/1.1 200 OK\r\nx: {}\r\ncontent-length: 0\r\n\r\n", "y".repeat(100_000));
        let parts = drip(&mut reader, text.as_bytes()).unwrap().unwrap();
        assert_eq!((parts.headers["x"].len(), reader.looks), (100_000, 4));
    }

    #[test]
    fn a_head_of_empty_lines_has_an_end() {
        let mut reader = Reader::new();
        reader.expect(false);
        assert_eq!(drip(&mut reader, &b"\r\n".repeat(2_000)).unwrap_err(), Garbled("a head in too many pieces"));
        let mut reader = Reader::new();
        reader.expect(false);
        let endless = drip(&mut reader, &vec![b'x'; head::MAX_HEAD_BYTES + 1]);
        assert_eq!(endless.unwrap_err(), Garbled("a head without end"));
    }

    #[test]
    fn a_second_head_is_found_in_what_came_with_the_first() {
        let mut reader = Reader::new();
        reader.expect(false);
        reader.receive(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
        assert_eq!(reader.head().unwrap().unwrap().status, http::StatusCode::OK);
    }
}
