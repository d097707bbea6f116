//! The heads of an HTTP/1.1 exchange with an upstream: what is written, and what an answer's says.

use std::mem::MaybeUninit;

use bytes::{Bytes, BytesMut};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Response, StatusCode, Version, response, uri};
use smallvec::SmallVec;

use super::Garbled;

/// Longest head of an answer; also the longest trailers.
pub(super) const MAX_HEAD_BYTES: usize = 256 * 1024;
/// Fields in an answer's head, at most.
const MAX_FIELDS: usize = 128;
/// Heads of status 1xx before an answer. Without a bound they could come faster than any clock is looked at.
const MAX_INTERIM_HEADS: usize = 100;
/// Room for what the gateway itself says in an answer.
const OWN_FIELDS: usize = 6;

/// How far an answer's body goes (RFC 9112 §6.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
    Length(u64),
    Chunked,
    /// Until the upstream closes the connection.
    Close,
}

/// An answer's head.
pub(super) struct Head {
    pub(super) parts: response::Parts,
    pub(super) framing: Framing,
    /// The connection may carry another request afterwards.
    pub(super) keep: bool,
}

/// Writes a request's first line and its host. Other fields follow by [`write_field`], and an empty line.
pub(super) fn begin(out: &mut Vec<u8>, method: &Method, path: &uri::PathAndQuery, host: &HeaderValue) {
    // A URL may have a query and no path; a request's line may not.
    let slash: &[u8] = if path.as_str().starts_with('?') { b" /" } else { b" " };
    for part in [method.as_str().as_bytes(), slash, path.as_str().as_bytes(), b" HTTP/1.1\r\nhost: ", host.as_bytes()] {
        out.extend_from_slice(part);
    }
    out.extend_from_slice(b"\r\n");
}

/// The field that names the length of a request's body.
pub(super) fn write_length(out: &mut Vec<u8>, length: usize) {
    write_field(out, &header::CONTENT_LENGTH, itoa::Buffer::new().format(length).as_bytes());
}

/// Names and values hold no line breaks: their types see to that.
pub(super) fn write_field(out: &mut Vec<u8>, name: &HeaderName, value: &[u8]) {
    out.extend_from_slice(name.as_str().as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// Takes the next head off what was received; `None` while it is incomplete. Heads of status 1xx only announce another,
/// and are counted in `interim`.
pub(super) fn parse(received: &mut BytesMut, answers_head: bool, interim: &mut usize) -> Result<Option<Head>, Garbled> {
    while let Some((status, version, headers)) = parse_one(received)? {
        if status == StatusCode::SWITCHING_PROTOCOLS {
            return Err(Garbled("an answer of status 101 to a request that asked for nothing of the kind"));
        }
        if status.is_informational() {
            *interim += 1;
            if *interim > MAX_INTERIM_HEADS {
                return Err(Garbled("announcements without an answer"));
            }
            continue;
        }
        let (framing, keep) = framing(status, version, &headers, answers_head)?;
        let (mut parts, ()) = Response::new(()).into_parts();
        parts.status = status;
        parts.version = version;
        parts.headers = headers;
        return Ok(Some(Head { parts, framing, keep }));
    }
    if received.len() >= MAX_HEAD_BYTES { Err(Garbled("a head without end")) } else { Ok(None) }
}

type Place = (usize, usize);

fn parse_one(received: &mut BytesMut) -> Result<Option<(StatusCode, Version, HeaderMap)>, Garbled> {
    let mut fields = [const { MaybeUninit::uninit() }; MAX_FIELDS];
    let mut response = httparse::Response::new(&mut []);
    let config = httparse::ParserConfig::default();
    let parsed = config.parse_response_with_uninit_headers(&mut response, received, &mut fields);
    let length = match parsed.map_err(|_| Garbled("a head that is none"))? {
        httparse::Status::Complete(length) => length,
        httparse::Status::Partial => return Ok(None),
    };
    let version = if response.version == Some(0) { Version::HTTP_10 } else { Version::HTTP_11 };
    let status = response.code.and_then(|code| StatusCode::from_u16(code).ok()).ok_or(Garbled("an unknown status"))?;
    let begin = received.as_ptr() as usize;
    let place = |part: &[u8]| (part.as_ptr() as usize - begin, part.as_ptr() as usize - begin + part.len());
    let places: SmallVec<[(Place, Place); 32]> =
        response.headers.iter().map(|field| (place(field.name.as_bytes()), place(field.value))).collect();
    let head = received.split_to(length).freeze();
    Ok(Some((status, version, fields_of(&head, &places)?)))
}

fn fields_of(head: &Bytes, places: &[(Place, Place)]) -> Result<HeaderMap, Garbled> {
    let mut headers = HeaderMap::with_capacity(places.len() + OWN_FIELDS);
    for (name, value) in places {
        let name = HeaderName::from_bytes(&head[name.0..name.1]).map_err(|_| Garbled("a field's name"))?;
        // A part of the head, not a copy of it.
        let value =
            HeaderValue::from_maybe_shared(head.slice(value.0..value.1)).map_err(|_| Garbled("a field's value"))?;
        headers.append(name, value);
    }
    Ok(headers)
}

/// RFC 9112 §6.3, strictly: a length that can be read in two ways is a fault, because what is taken for the next answer
/// would be somebody else's.
fn framing(
    status: StatusCode,
    version: Version,
    headers: &HeaderMap,
    answers_head: bool,
) -> Result<(Framing, bool), Garbled> {
    let keep = persists(version, headers);
    let length = content_length(headers)?;
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    if answers_head || status == StatusCode::NO_CONTENT || status == StatusCode::NOT_MODIFIED {
        // A body that is named may be sent although none belongs here, and would be taken for the next answer.
        let named = length.is_some_and(|length| length > 0) || codings.next().is_some();
        return Ok((Framing::Length(0), keep && !named));
    }
    if let Some(coding) = codings.next() {
        // We offer no other coding, so none may be used (RFC 9110 §10.1.4).
        let chunked = coding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked");
        if !chunked || codings.next().is_some() || version == Version::HTTP_10 {
            return Err(Garbled("a transfer coding that was not offered"));
        }
        // With a length beside it, the connection ends with the answer (RFC 9112 §6.3 calls it an error to be handled).
        return Ok((Framing::Chunked, keep && length.is_none()));
    }
    Ok(match length {
        Some(length) => (Framing::Length(length), keep),
        None => (Framing::Close, false),
    })
}

/// RFC 9112 §9.3: `close` decides, whatever else is said.
fn persists(version: Version, headers: &HeaderMap) -> bool {
    let named = |name: &[u8]| {
        let mut options =
            headers.get_all(header::CONNECTION).iter().flat_map(|value| value.as_bytes().split(|b| *b == b','));
        options.any(|option| option.trim_ascii().eq_ignore_ascii_case(name))
    };
    !named(b"close") && (version != Version::HTTP_10 || named(b"keep-alive"))
}

/// The same value several times counts as one (RFC 9110 §8.6).
fn content_length(headers: &HeaderMap) -> Result<Option<u64>, Garbled> {
    let mut length = None;
    for value in headers.get_all(header::CONTENT_LENGTH) {
        for part in value.as_bytes().split(|byte| *byte == b',') {
            let digits = part.trim_ascii();
            let number = str::from_utf8(digits).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
            let number = number.and_then(|text| text.parse::<u64>().ok()).ok_or(Garbled("a length that is none"))?;
            if *length.get_or_insert(number) != number {
                return Err(Garbled("two lengths"));
            }
        }
    }
    Ok(length)
}

/// Reads a block of trailers that ends with an empty line.
pub(super) fn trailers(block: &Bytes) -> Result<HeaderMap, Garbled> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    // An empty line that a lone LF ends would hide what follows it.
    if memchr::memchr_iter(b'\n', block).any(|at| at == 0 || block[at - 1] != b'\r') {
        return Err(Garbled("a line without its CR"));
    }
    let Ok(httparse::Status::Complete((_, fields))) = httparse::parse_headers(block, &mut fields) else {
        return Err(Garbled("trailers that are none"));
    };
    let begin = block.as_ptr() as usize;
    let place = |part: &[u8]| (part.as_ptr() as usize - begin, part.as_ptr() as usize - begin + part.len());
    let places: SmallVec<[(Place, Place); 8]> =
        fields.iter().map(|field| (place(field.name.as_bytes()), place(field.value))).collect();
    fields_of(block, &places)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Option<Head>, Garbled> {
        parse(&mut BytesMut::from(text), false, &mut 0)
    }

    fn framed(text: &str) -> (Framing, bool) {
        let head = read(text).unwrap().unwrap();
        (head.framing, head.keep)
    }

    #[test]
    fn the_length_of_an_answer_is_read_as_rfc_9112_says() {
        let of = |fields: &str| framed(&format!("HTTP/1.1 200 OK\r\n{fields}\r\n"));
        assert_eq!(of("content-length: 5\r\n"), (Framing::Length(5), true));
        assert_eq!(of("content-length: 5, 5\r\nContent-Length: 5\r\n"), (Framing::Length(5), true));
        assert_eq!(of("Transfer-Encoding: Chunked\r\n"), (Framing::Chunked, true));
        assert_eq!(of("transfer-encoding: chunked\r\ncontent-length: 5\r\n"), (Framing::Chunked, false));
        assert_eq!(of(""), (Framing::Close, false));
        assert_eq!(of("content-length: 5\r\nconnection: foo, Close\r\n"), (Framing::Length(5), false));
        assert_eq!(framed("HTTP/1.1 204 No Content\r\n\r\n"), (Framing::Length(0), true));
        assert_eq!(framed("HTTP/1.1 304 Not Modified\r\ncontent-length: 0\r\n\r\n"), (Framing::Length(0), true));
        assert_eq!(framed("HTTP/1.0 200 OK\r\ncontent-length: 1\r\n\r\n"), (Framing::Length(1), false));
        let kept = "HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 1\r\n\r\n";
        assert_eq!(framed(kept), (Framing::Length(1), true));
        let both = kept.replace("keep-alive", "keep-alive, close");
        assert_eq!(framed(&both), (Framing::Length(1), false));
        let head =
            parse(&mut BytesMut::from("HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\n"), true, &mut 0).unwrap().unwrap();
        assert_eq!(
            (head.framing, head.parts.headers[header::CONTENT_LENGTH].as_bytes()),
            (Framing::Length(0), &b"7"[..])
        );
    }

    /// A broken upstream sends the body that it names, and it would be somebody else's answer.
    #[test]
    fn a_body_where_none_belongs_ends_the_connection() {
        for fields in ["content-length: 9\r\n", "transfer-encoding: chunked\r\n"] {
            for status in ["204 No Content", "304 Not Modified"] {
                let answer = format!("HTTP/1.1 {status}\r\n{fields}\r\n");
                assert_eq!(framed(&answer), (Framing::Length(0), false), "{answer}");
            }
            let answer = format!("HTTP/1.1 200 OK\r\n{fields}\r\n");
            let head = parse(&mut BytesMut::from(answer.as_str()), true, &mut 0).unwrap().unwrap();
            assert_eq!((head.framing, head.keep), (Framing::Length(0), false), "{answer}");
        }
        let head = parse(&mut BytesMut::from("HTTP/1.1 200 OK\r\n\r\n"), true, &mut 0).unwrap().unwrap();
        assert!(head.keep);
    }

    #[test]
    fn announcements_have_an_end() {
        let mut received = BytesMut::from("HTTP/1.1 103 Early Hints\r\n\r\n".repeat(MAX_INTERIM_HEADS).as_str());
        let mut interim = 0;
        assert!(parse(&mut received, false, &mut interim).unwrap().is_none());
        received.extend_from_slice(b"HTTP/1.1 103 Early Hints\r\n\r\n");
        assert!(parse(&mut received, false, &mut interim).is_err());
    }

    #[test]
    fn a_request_is_asked_for_by_a_path() {
        let host = HeaderValue::from_static("upstream");
        for (path, asked) in [("/a?b", "/a?b"), ("?b", "/?b"), ("*", "*")] {
            let mut out = Vec::new();
            begin(&mut out, &Method::GET, &uri::PathAndQuery::from_static(path), &host);
            assert_eq!(String::from_utf8(out).unwrap(), format!("GET {asked} HTTP/1.1\r\nhost: upstream\r\n"));
        }
    }

    #[test]
    fn an_answer_that_can_be_read_in_two_ways_is_garbled() {
        for fields in [
            "content-length: 5\r\ncontent-length: 6\r\n",
            "content-length: +5\r\n",
            "content-length: 5x\r\n",
            "content-length:\r\n",
            "content-length: 18446744073709551616\r\n",
            "transfer-encoding: gzip, chunked\r\n",
            "transfer-encoding: identity\r\n",
            "transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n",
            "name with space: 1\r\n",
        ] {
            assert!(read(&format!("HTTP/1.1 200 OK\r\n{fields}\r\n")).is_err(), "{fields}");
        }
        assert!(read("HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").is_err());
        assert!(read("HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n\r\n").is_err());
        assert!(read("SSH-2.0-OpenSSH\r\n").is_err());
        assert!(parse(&mut BytesMut::from(&b"HTTP/1.1 200 OK\r\nx: "[..]), false, &mut 0).unwrap().is_none());
        let endless = format!("HTTP/1.1 200 OK\r\nx: {}", "y".repeat(MAX_HEAD_BYTES));
        assert!(read(&endless).is_err());
    }

    #[test]
    fn what_follows_a_head_stays() {
        let text = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 200 OK\r\nA: 1\r\na: 2\r\n\r\nrest";
        let mut received = BytesMut::from(text);
        let head = parse(&mut received, false, &mut 0).unwrap().unwrap();
        assert_eq!(head.parts.status, StatusCode::OK);
        let values: Vec<&HeaderValue> = head.parts.headers.get_all("a").iter().collect();
        assert_eq!(values, ["1", "2"]);
        assert!(!head.parts.headers.contains_key("link"));
        assert_eq!(&received[..], b"rest");
        for cut in 0..text.len() - "rest".len() {
            assert!(parse(&mut BytesMut::from(&text.as_bytes()[..cut]), false, &mut 0).unwrap().is_none(), "{cut}");
        }
    }

    #[test]
    fn trailers_are_fields() {
        let trailers = trailers(&Bytes::from_static(b"A: 1\r\nb: 2\r\n\r\n")).unwrap();
        assert_eq!((&trailers["a"], &trailers["b"]), (&HeaderValue::from_static("1"), &HeaderValue::from_static("2")));
        assert!(super::trailers(&Bytes::from_static(b"A: 1\r\n\nb: 2\r\n\r\n")).is_err());
    }
}
