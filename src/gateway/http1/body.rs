//! An answer's body as HTTP/1.1 frames it.

use bytes::{Buf, Bytes, BytesMut};
use http::HeaderMap;

use super::Garbled;
use super::head::{self, Framing, MAX_HEAD_BYTES};

/// Longest line that names a chunk's size: extensions are read and dropped.
const MAX_CHUNK_LINE_BYTES: usize = 4 * 1024;

/// Where in a body the reader is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Body {
    /// So much is still to come.
    Length(u64),
    Close,
    ChunkSize,
    ChunkData(u64),
    ChunkEnd,
    Trailers,
    Over,
}

/// What can be said of a body with the bytes that are here.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::gateway) enum Piece {
    Data(Bytes),
    Trailers(HeaderMap),
    Over,
    /// More must be received.
    More,
}

impl Body {
    pub(super) fn new(framing: Framing) -> Body {
        match framing {
            Framing::Length(0) => Body::Over,
            Framing::Length(length) => Body::Length(length),
            Framing::Chunked => Body::ChunkSize,
            Framing::Close => Body::Close,
        }
    }

    pub(super) fn is_over(self) -> bool {
        self == Body::Over
    }

    /// Bytes still to come, where that is known.
    pub(super) fn left(self) -> Option<u64> {
        match self {
            Body::Length(left) => Some(left),
            Body::Over => Some(0),
            _ => None,
        }
    }

    /// The upstream closed its side: whether that ends the body properly.
    pub(super) fn closed(&mut self) -> bool {
        if *self == Body::Close {
            *self = Body::Over;
        }
        self.is_over()
    }

    /// Takes the next piece off what was received.
    pub(super) fn next(&mut self, received: &mut BytesMut) -> Result<Piece, Garbled> {
        loop {
            match *self {
                Body::Over => return Ok(Piece::Over),
                Body::Close | Body::Length(_) | Body::ChunkData(_) if received.is_empty() => return Ok(Piece::More),
                Body::Close => return Ok(Piece::Data(std::mem::take(received).freeze())),
                Body::Length(left) => {
                    let (data, left) = take(received, left);
                    *self = if left == 0 { Body::Over } else { Body::Length(left) };
                    return Ok(Piece::Data(data));
                }
                Body::ChunkData(left) => {
                    let (data, left) = take(received, left);
                    *self = if left == 0 { Body::ChunkEnd } else { Body::ChunkData(left) };
                    return Ok(Piece::Data(data));
                }
                Body::ChunkEnd => match received.get(..2) {
                    Some(b"\r\n") => {
                        received.advance(2);
                        *self = Body::ChunkSize;
                    }
                    Some(_) => return Err(Garbled("a chunk longer than it said")),
                    None => return Ok(Piece::More),
                },
                Body::ChunkSize => match chunk_size(received)? {
                    Some(0) => *self = Body::Trailers,
                    Some(size) => *self = Body::ChunkData(size),
                    None => return Ok(Piece::More),
                },
                Body::Trailers => return self.trailers(received),
            }
        }
    }

    fn trailers(&mut self, received: &mut BytesMut) -> Result<Piece, Garbled> {
        if received.starts_with(b"\r\n") {
            received.advance(2);
            *self = Body::Over;
            return Ok(Piece::Over);
        }
        let Some(end) = memchr::memmem::find(received, b"\r\n\r\n") else {
            let endless = received.len() >= MAX_HEAD_BYTES;
            return if endless { Err(Garbled("trailers without end")) } else { Ok(Piece::More) };
        };
        let block = received.split_to(end + 4).freeze();
        *self = Body::Over;
        head::trailers(&block).map(Piece::Trailers)
    }
}

/// Takes at most `left` bytes; answers how many are then left. All that was received goes without a copy.
fn take(received: &mut BytesMut, left: u64) -> (Bytes, u64) {
    let size = usize::try_from(left).map_or(received.len(), |left| left.min(received.len()));
    let data = if size == received.len() { std::mem::take(received) } else { received.split_to(size) };
    (data.freeze(), left - size as u64)
}

/// Takes the line before a chunk, and answers its size (RFC 9112 §7.1).
fn chunk_size(received: &mut BytesMut) -> Result<Option<u64>, Garbled> {
    let within = &received[..received.len().min(MAX_CHUNK_LINE_BYTES)];
    let Some(end) = memchr::memchr(b'\n', within) else {
        let endless = received.len() >= MAX_CHUNK_LINE_BYTES;
        return if endless { Err(Garbled("a chunk's size without end")) } else { Ok(None) };
    };
    let line = within[..end].strip_suffix(b"\r").ok_or(Garbled("a line without its CR"))?;
    let mut size = line.split(|byte| *byte == b';').next().unwrap_or_default();
    while let [rest @ .., b' ' | b'\t'] = size {
        size = rest;
    }
    // Some read a lone CR as a line's end.
    if line.contains(&b'\r') {
        return Err(Garbled("a lone CR in a chunk's line"));
    }
    if size.is_empty() || !size.iter().all(u8::is_ascii_hexdigit) {
        return Err(Garbled("a chunk's size that is none"));
    }
    let size = str::from_utf8(size).ok().and_then(|size| u64::from_str_radix(size, 16).ok());
    let size = size.ok_or(Garbled("a chunk larger than anything"))?;
    received.advance(end + 1);
    Ok(Some(size))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads a body that arrives in pieces of so many bytes.
    fn read(framing: Framing, text: &str, piece: usize) -> Result<(String, Option<HeaderMap>, bool, String), Garbled> {
        let (mut body, mut received) = (Body::new(framing), BytesMut::new());
        let (mut data, mut trailers) = (String::new(), None);
        let mut pieces = text.as_bytes().chunks(piece);
        loop {
            match body.next(&mut received)? {
                Piece::Data(bytes) => {
                    assert!(!bytes.is_empty());
                    data.push_str(str::from_utf8(&bytes).unwrap());
                }
                Piece::Trailers(found) => trailers = Some(found),
                Piece::Over => break,
                Piece::More => match pieces.next() {
                    Some(bytes) => received.extend_from_slice(bytes),
                    None => {
                        body.closed();
                        break;
                    }
                },
            }
        }
        let rest: Vec<u8> = received.iter().copied().chain(pieces.flatten().copied()).collect();
        Ok((data, trailers, body.is_over(), String::from_utf8(rest).unwrap()))
    }

    #[test]
    fn bodies_are_the_same_in_any_pieces() {
        let chunked = "5\r\nhello\r\n1;name=value\r\n \r\n0005  \r\nworld\r\n0\r\nA: 1\r\n\r\nnext";
        for piece in [1, 2, 3, 7, 1_000] {
            let (data, trailers, over, rest) = read(Framing::Chunked, chunked, piece).unwrap();
            assert_eq!((data.as_str(), over, rest.as_str()), ("hello world", true, "next"), "{piece}");
            assert_eq!(trailers.unwrap()["a"], "1");
            let (data, _, over, rest) = read(Framing::Length(5), "helloworld", piece).unwrap();
            assert_eq!((data.as_str(), over, rest.as_str()), ("hello", true, "world"));
            let (data, _, over, _) = read(Framing::Close, "hello", piece).unwrap();
            assert_eq!((data.as_str(), over), ("hello", true));
        }
        let (data, trailers, over, _) = read(Framing::Chunked, "1\r\na\r\n0\r\n\r\n", 1).unwrap();
        assert_eq!((data.as_str(), trailers, over), ("a", None, true));
    }

    #[test]
    fn a_body_that_ends_early_is_not_over() {
        for text in ["", "5\r\nhel", "5\r\nhello", "5\r\nhello\r\n", "0\r\n", "0\r\nA: 1\r\n"] {
            assert!(!read(Framing::Chunked, text, 1).unwrap().2, "{text:?}");
        }
        assert!(!read(Framing::Length(5), "hell", 1).unwrap().2);
    }

    #[test]
    fn bad_chunks_are_garbled() {
        for text in [
            "\r\n",
            "x\r\n",
            "+5\r\n",
            "0x5\r\n",
            "5\nhello",
            "5\r\nhelloworld",
            "10000000000000000\r\n",
            "-1\r\n",
            " 5\r\n",
            "5\x0c\r\nhello",
            "5\r\r\nhello",
            "5;a\rb\r\nhello",
        ] {
            for piece in [1, 100] {
                assert!(read(Framing::Chunked, text, piece).is_err(), "{text:?}");
            }
        }
        assert!(read(Framing::Chunked, &"1".repeat(MAX_CHUNK_LINE_BYTES), 100).is_err());
    }
}
