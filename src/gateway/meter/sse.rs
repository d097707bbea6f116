//! Finds the events of a `text/event-stream` in bytes that arrive in any pieces.
//!
//! WHATWG HTML, 9.2.5: lines end by CR LF, LF or CR; a blank line ends an event; a byte order mark may lead the stream;
//! lines that begin with a colon are comments. Events keep the very bytes they came in.

use std::borrow::Cow;

use bytes::{Bytes, BytesMut};
use memchr::memchr2;

/// A piece of the stream, in order; all pieces together are the stream.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Piece {
    /// A whole event, up to and with the blank line that ends it.
    Event(Bytes),
    /// The line feed of a CR LF whose carriage return ended the last event already. It goes where that event went.
    LineFeed(Bytes),
    /// Part of an event too large to be looked at.
    Oversized(Bytes),
}

/// Cuts a stream into events.
#[derive(Debug)]
pub(super) struct Splitter {
    /// The event that has begun.
    begun: BytesMut,
    max_event_bytes: usize,
    /// The line has no bytes yet.
    line_is_empty: bool,
    /// The last byte was a carriage return.
    after_return: bool,
    /// That carriage return ended an event.
    owed_line_feed: bool,
    oversized: bool,
}

impl Splitter {
    pub(super) fn new(max_event_bytes: usize) -> Splitter {
        Splitter {
            begun: BytesMut::new(),
            max_event_bytes,
            line_is_empty: true,
            after_return: false,
            owed_line_feed: false,
            oversized: false,
        }
    }

    /// The next piece, taken off the front of `chunk`; `None` when the chunk is used up.
    pub(super) fn next(&mut self, chunk: &mut Bytes) -> Option<Piece> {
        let first = *chunk.first()?;
        if std::mem::take(&mut self.owed_line_feed) && first == b'\n' {
            self.after_return = false;
            return Some(Piece::LineFeed(chunk.split_to(1)));
        }
        let Some(length) = self.scan(chunk) else {
            let head = std::mem::take(chunk);
            if self.oversized {
                return Some(Piece::Oversized(head));
            }
            self.begun.extend_from_slice(&head);
            if self.begun.len() <= self.max_event_bytes {
                return None;
            }
            self.oversized = true;
            return Some(Piece::Oversized(self.begun.split().freeze()));
        };
        let mut head = chunk.split_to(length.min(chunk.len()));
        self.owed_line_feed = self.after_return;
        if std::mem::take(&mut self.oversized) {
            return Some(Piece::Oversized(head));
        }
        if !self.begun.is_empty() {
            self.begun.extend_from_slice(&head);
            head = self.begun.split().freeze();
        }
        Some(if head.len() > self.max_event_bytes { Piece::Oversized(head) } else { Piece::Event(head) })
    }

    /// Whether the stream stands within an event whose beginning has gone out already.
    pub(super) fn within_oversized(&self) -> bool {
        self.oversized
    }

    /// The event that has begun and will not be finished.
    pub(super) fn rest(&mut self) -> Bytes {
        self.begun.split().freeze()
    }

    /// How many bytes the current event still has in `chunk`, when it ends there.
    fn scan(&mut self, chunk: &[u8]) -> Option<usize> {
        let mut at = 0;
        while let Some(rest) = chunk.get(at..)
            && let Some(first) = rest.first()
        {
            let Some(length) = memchr2(b'\n', b'\r', rest) else {
                self.line_is_empty = false;
                self.after_return = false;
                return None;
            };
            let newline = at + length;
            let line_feed = chunk.get(newline) == Some(&b'\n');
            if length == 0 && self.after_return && *first == b'\n' {
                self.after_return = false;
                at = newline + 1;
                continue;
            }
            let blank = length == 0 && self.line_is_empty;
            self.line_is_empty = true;
            self.after_return = !line_feed;
            at = newline + 1;
            if blank {
                if self.after_return && chunk.get(at) == Some(&b'\n') {
                    self.after_return = false;
                    at += 1;
                }
                return Some(at);
            }
        }
        None
    }
}

/// What an event says.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Event<'b> {
    pub(super) name: Option<&'b [u8]>,
    /// `None`: there are only comments or other fields, and nothing is dispatched.
    pub(super) data: Option<Cow<'b, [u8]>>,
}

impl<'b> Event<'b> {
    pub(super) fn parse(bytes: &'b [u8]) -> Event<'b> {
        let mut event = Event { name: None, data: None };
        let mut rest = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
        while !rest.is_empty() {
            let length = memchr2(b'\n', b'\r', rest).unwrap_or(rest.len());
            let (line, after) = rest.split_at(length);
            // An empty line between CR and LF reads as no field: the two need no telling apart here.
            rest = after.get(1..).unwrap_or_default();
            if let Some(value) = field(line, b"data") {
                match &mut event.data {
                    None => event.data = Some(Cow::Borrowed(value)),
                    Some(data) => {
                        let data = data.to_mut();
                        data.push(b'\n');
                        data.extend_from_slice(value);
                    }
                }
            } else if let Some(value) = field(line, b"event") {
                event.name = Some(value);
            }
        }
        event
    }
}

impl Event<'_> {
    /// Whether its data is all there, as far as JSON can tell.
    pub(super) fn is_whole(&self) -> bool {
        self.data.as_deref().is_some_and(|data| {
            data.trim_ascii() == b"[DONE]" || serde_json::from_slice::<serde::de::IgnoredAny>(data).is_ok()
        })
    }
}

/// The value of a field, where the line is one of that name.
fn field<'b>(line: &'b [u8], name: &[u8]) -> Option<&'b [u8]> {
    let rest = line.strip_prefix(name)?;
    if rest.is_empty() {
        return Some(rest);
    }
    let value = rest.strip_prefix(b":")?;
    Some(value.strip_prefix(b" ").unwrap_or(value))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn split(pieces: &[&[u8]], max: usize) -> Vec<Piece> {
        let mut splitter = Splitter::new(max);
        let mut found = Vec::new();
        for piece in pieces {
            let mut chunk = Bytes::copy_from_slice(piece);
            while let Some(piece) = splitter.next(&mut chunk) {
                found.push(piece);
            }
            assert!(chunk.is_empty());
        }
        let rest = splitter.rest();
        if !rest.is_empty() {
            found.push(Piece::Oversized(rest));
        }
        found
    }

    fn bytes(piece: &Piece) -> &Bytes {
        match piece {
            Piece::Event(bytes) | Piece::LineFeed(bytes) | Piece::Oversized(bytes) => bytes,
        }
    }

    /// Each event's data, as the standard's parser would dispatch it.
    fn data(pieces: &[Piece]) -> Vec<Vec<u8>> {
        let event = |piece: &Piece| match piece {
            Piece::Event(bytes) => Event::parse(bytes).data.map(Cow::into_owned),
            _ => None,
        };
        pieces.iter().filter_map(event).collect()
    }

    #[test]
    fn events_end_at_blank_lines_of_every_kind() {
        for newline in ["\n", "\r", "\r\n"] {
            let text = format!(
                "event: a{newline}data: 1{newline}data:2{newline}{newline}: c{newline}{newline}data: 3{newline}{newline}"
            );
            let pieces = split(&[text.as_bytes()], 100);
            assert_eq!(data(&pieces), [b"1\n2".to_vec(), b"3".to_vec()], "{newline:?}");
            assert_eq!(pieces.len(), 3);
            let Piece::Event(first) = &pieces[0] else { panic!() };
            assert_eq!(Event::parse(first).name, Some(&b"a"[..]));
        }
    }

    #[test]
    fn a_byte_order_mark_may_lead() {
        assert_eq!(data(&split(&[b"\xef\xbb", b"\xbfdata: 1\n\n"], 100)), [b"1".to_vec()]);
    }

    #[test]
    fn fields_are_read_as_the_standard_says() {
        let event = Event::parse(b"data\ndata:  two\ndatabase: x\nid: 7\n\n");
        assert_eq!(event.data.as_deref(), Some(&b"\n two"[..]));
        assert_eq!(Event::parse(b": only a comment\n\n").data, None);
    }

    #[test]
    fn whole_events_are_slices_of_what_came() {
        let mut chunk = Bytes::from_static(b"data: 1\n\ndata: 2\n\ndata: 3");
        let start = chunk.as_ptr();
        let mut splitter = Splitter::new(100);
        let Some(Piece::Event(event)) = splitter.next(&mut chunk) else { panic!() };
        assert_eq!(event.as_ptr(), start);
        assert!(matches!(splitter.next(&mut chunk), Some(Piece::Event(_))));
        assert_eq!(splitter.next(&mut chunk), None);
        assert_eq!(splitter.rest(), &b"data: 3"[..]);
    }

    #[test]
    fn an_oversized_event_passes_unseen_and_the_next_is_seen() {
        let pieces = split(&[b"data: 123", b"4567890", b"12\n\nda", b"ta: 3\n\n"], 12);
        assert_eq!(data(&pieces), [b"3".to_vec()]);
        let whole = split(&[b"data: 123456789012\n\ndata: 3\n\n"], 12);
        assert_eq!(data(&whole), [b"3".to_vec()]);
    }

    proptest! {
        #[test]
        fn pieces_do_not_depend_on_how_the_stream_was_cut(
            text in "(data: |event: |:|a|\r|\n|\r\n|\r\n\r\n|\n\n|\r\r){0,40}",
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
        ) {
            let bytes_of = text.as_bytes();
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes_of.len() + 1)).collect();
            cuts.extend([0, bytes_of.len()]);
            cuts.sort_unstable();
            let chunks: Vec<&[u8]> = cuts.windows(2).map(|cut| &bytes_of[cut[0]..cut[1]]).collect();
            let pieces = split(&chunks, 1_000);
            let together: Vec<u8> = pieces.iter().flat_map(|piece| bytes(piece).to_vec()).collect();
            prop_assert_eq!(&together, bytes_of);
            prop_assert_eq!(data(&pieces), data(&split(&[bytes_of], 1_000)));
        }
    }
}
