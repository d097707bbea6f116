//! Our reading of an HTTP/1.1 answer beside hyper's: the same bytes, in the same pieces, are the same answer to both, or
//! none to us.

use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use bytes::{Buf, Bytes};
use http::{HeaderMap, Method, Request};
use http_body::Body;
use hyper::client::conn::http1;

use crate::gateway::body::ForwardBody;
use crate::gateway::http1::{Garbled, Piece, Reader};
use crate::gateway::meter::invariants::{Violation, holds};

/// Longer texts say nothing new, and meet limits that the two set differently.
const MAX_TEXT_BYTES: usize = 8 * 1024;
/// Fields in a head: as many as ours takes.
const MAX_FIELDS: usize = 128;
/// Longest piece.
const MAX_PIECE_BYTES: u32 = 64;
/// Hyper's parts are polled in turn, more often than any text needs.
const MAX_ROUNDS: usize = 4 * MAX_TEXT_BYTES;

/// Where ours refuses what hyper takes.
const STRICTER: [Garbled; 5] = [
    Garbled("an answer of status 101 to a request that asked for nothing of the kind"),
    // Hyper reads such a body to the connection's end.
    Garbled("a transfer coding that was not offered"),
    // Hyper does not look at lengths that do not count: beside a coding, or where no body belongs.
    Garbled("a length that is none"),
    Garbled("two lengths"),
    // Hyper takes a lone LF for the end of a trailer's line.
    Garbled("a line without its CR"),
];

/// A whole answer.
#[derive(Debug, PartialEq, Eq)]
struct Answer {
    status: u16,
    fields: HeaderMap,
    body: Vec<u8>,
    trailers: Option<HeaderMap>,
}

/// Takes the first byte as choices, the second as how the network cuts, the rest as what an upstream says.
///
/// # Errors
/// What did not hold.
pub fn http1_answer(data: &[u8]) -> Result<(), Violation> {
    let [choices, cuts, text @ ..] = data else { return Ok(()) };
    let text = &text[..text.len().min(MAX_TEXT_BYTES)];
    let answers_head = choices % 4 == 3;
    let pieces = pieces(text, *cuts);
    match (ours(answers_head, &pieces)?, theirs(answers_head, pieces)) {
        (Ok(ours), Some(theirs)) => {
            holds("the status is the same", ours.status == theirs.status)?;
            holds("the fields are the same", ours.fields == theirs.fields)?;
            holds("the body is the same", ours.body == theirs.body)?;
            holds("the trailers are the same", ours.trailers == theirs.trailers)
        }
        (Ok(_), None) => Err(Violation("what hyper refuses is refused")),
        (Err(Some(reason)), Some(_)) => holds("what is stricter is known", STRICTER.contains(&reason)),
        (Err(None), Some(_)) => Err(Violation("what is whole is taken as whole")),
        (Err(_), None) => Ok(()),
    }
}

/// Cuts a text as a network might; `0` not at all.
fn pieces(text: &[u8], cuts: u8) -> VecDeque<Bytes> {
    let mut rest = Bytes::copy_from_slice(text);
    let mut state = u32::from(cuts);
    let mut pieces = VecDeque::new();
    while !rest.is_empty() {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let most = if cuts % 2 == 1 { MAX_PIECE_BYTES } else { 1 + u32::from(cuts) % 8 };
        let size = if cuts == 0 { rest.len() } else { (1 + (state >> 16) % most) as usize };
        pieces.push_back(rest.split_to(size.min(rest.len())));
    }
    pieces
}

/// The answer as we read it; `Err` says why it is none, and nothing where it broke off.
fn ours(answers_head: bool, pieces: &VecDeque<Bytes>) -> Result<Result<Answer, Option<Garbled>>, Violation> {
    let mut reader = Reader::new();
    let mut pieces = pieces.iter();
    reader.expect(answers_head);
    let parts = loop {
        match reader.head() {
            Err(garbled) => return Ok(Err(Some(garbled))),
            Ok(Some(parts)) => break parts,
            Ok(None) => match pieces.next() {
                Some(piece) => reader.receive(piece),
                None => return Ok(Err(None)),
            },
        }
    };
    let (mut body, mut trailers) = (Vec::new(), None);
    loop {
        match reader.piece() {
            Err(garbled) => return Ok(Err(Some(garbled))),
            Ok(Piece::Data(data)) => {
                holds("a piece holds something", !data.is_empty())?;
                body.extend_from_slice(&data);
            }
            Ok(Piece::Trailers(found)) => trailers = Some(found),
            Ok(Piece::Over) => break,
            Ok(Piece::More) => match pieces.next() {
                Some(piece) => reader.receive(piece),
                None if reader.closed() => {}
                None => return Ok(Err(None)),
            },
        }
    }
    Ok(Ok(Answer { status: parts.status.as_u16(), fields: parts.headers, body, trailers }))
}

/// The answer as hyper's client reads it.
fn theirs(answers_head: bool, pieces: VecDeque<Bytes>) -> Option<Answer> {
    let mut context = Context::from_waker(Waker::noop());
    let io = Script { pieces, asked: false };
    let mut builder = http1::Builder::new();
    builder.max_headers(MAX_FIELDS);
    let handshake = std::pin::pin!(builder.handshake::<_, ForwardBody>(io));
    let Poll::Ready(Ok((mut sender, connection))) = handshake.poll(&mut context) else { return None };
    let mut connection = Some(connection);
    let mut request = Request::new(ForwardBody::Empty);
    *request.method_mut() = if answers_head { Method::HEAD } else { Method::GET };
    let mut answer = Box::pin(sender.send_request(request));
    let answer = turns(&mut connection, &mut context, |context| answer.as_mut().poll(context))?.ok()?;
    let (parts, mut incoming) = answer.into_parts();
    let (mut body, mut trailers) = (Vec::new(), None);
    while let Some(frame) = turns(&mut connection, &mut context, |context| Pin::new(&mut incoming).poll_frame(context))?
    {
        match frame.ok()?.into_data() {
            Ok(data) => body.extend_from_slice(&data),
            Err(frame) => trailers = frame.into_trailers().ok(),
        }
    }
    Some(Answer { status: parts.status.as_u16(), fields: parts.headers, body, trailers })
}

/// Polls what is waited for, and the connection that brings it, in turn.
fn turns<C: Future + Unpin, T>(
    connection: &mut Option<C>,
    context: &mut Context<'_>,
    mut wanted: impl FnMut(&mut Context<'_>) -> Poll<T>,
) -> Option<T> {
    for _ in 0..MAX_ROUNDS {
        if let Poll::Ready(found) = wanted(context) {
            return Some(found);
        }
        if connection.as_mut().is_some_and(|connection| Pin::new(connection).poll(context).is_ready()) {
            *connection = None;
        }
    }
    None
}

/// An upstream that says its pieces once it was asked, and closes.
struct Script {
    pieces: VecDeque<Bytes>,
    asked: bool,
}

impl hyper::rt::Read for Script {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        mut buffer: hyper::rt::ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let script = self.get_mut();
        if !script.asked {
            return Poll::Pending;
        }
        if let Some(mut piece) = script.pieces.pop_front() {
            let size = piece.len().min(buffer.remaining());
            buffer.put_slice(&piece[..size]);
            piece.advance(size);
            if !piece.is_empty() {
                script.pieces.push_front(piece);
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl hyper::rt::Write for Script {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.asked = true;
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn head_line() -> impl Strategy<Value = String> {
        prop_oneof![
            12 => Just("HTTP/1.1 200 OK\r\n".to_owned()),
            1 => "HTTP/1\\.[012] [0-9]{3}( [ -~]{0,8})?\r?\n",
            2 => "HTTP/1\\.[01] (204|304|404|200|500) X\r\n",
            1 => "HTTP/1\\.1 10[0-4] X\r\n(link: x\r\n)?\r\nHTTP/1\\.1 200 OK\r\n",
            1 => "[ -~\r\n]{0,20}",
        ]
    }

    fn field() -> impl Strategy<Value = String> {
        prop_oneof![
            4 => "(content-length|Content-Length): [0-9]{1,2}\r\n",
            1 => "content-length:[ \t]?[-+0-9a-f, ]{0,22}\r\n",
            4 => "(transfer-encoding|Transfer-Encoding): (chunked|Chunked)\r\n",
            1 => "transfer-encoding: (chunked|gzip|identity|, ){0,3}\r\n",
            2 => "connection: (close|keep-alive|, ){0,3}\r\n",
            3 => "[a-zA-Z-]{1,6}: [ -~]{0,9}\r\n",
            1 => "[ -~\t]{0,4}[: ]{0,2}[ -~\t\r]{0,6}\r?\n",
        ]
    }

    fn chunk() -> impl Strategy<Value = String> {
        prop_oneof![
            4 => "[a-z]{0,20}".prop_map(|text| format!("{:x}\r\n{text}\r\n", text.len())),
            2 => "[a-z]{1,9}".prop_map(|text| format!("000{:X} ;name=\"v\"\r\n{text}\r\n", text.len())),
            2 => Just("0\r\n\r\n".to_owned()),
            1 => "0\r\n([a-z]{1,3}: [a-z]{0,3}\r?\n){1,2}\r\n",
            1 => "[0-9a-fA-F]{0,17}[ \t;a=\r]{0,3}\r?\n[a-z]{0,9}(\r\n)?",
        ]
    }

    fn body() -> impl Strategy<Value = String> {
        prop_oneof![
            3 => prop::collection::vec(chunk(), 0..5).prop_map(|chunks| chunks.concat()),
            2 => "[a-z]{0,99}",
            1 => "[a-z]{0,9}HTTP/1\\.1 200 OK\r\n\r\n",
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 4_000, failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn answers_are_read_as_hyper_reads_them(
            choices in any::<u8>(),
            cuts in any::<u8>(),
            head in head_line(),
            fields in prop::collection::vec(field(), 0..4),
            body in body(),
        ) {
            let text = [head.as_str(), &fields.concat(), "\r\n", &body].concat();
            let data = [&[choices, cuts][..], text.as_bytes()].concat();
            prop_assert_eq!(http1_answer(&data), Ok(()), "{:?}", text);
        }

        #[test]
        fn any_bytes_are_read_as_hyper_reads_them(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert_eq!(http1_answer(&bytes), Ok(()));
        }
    }

    /// The comparison itself sees whole answers on both sides.
    #[test]
    fn hyper_reads_what_is_played_to_it() {
        let text = b"HTTP/1.1 200 OK\r\nA: 1\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nb: 2\r\n\r\n";
        for cuts in 0..=u8::MAX {
            let theirs = theirs(false, pieces(text, cuts)).unwrap();
            assert_eq!((theirs.status, theirs.body.as_slice()), (200, &b"hi"[..]));
            assert_eq!(
                (&theirs.fields["a"], &theirs.trailers.as_ref().unwrap()["b"]),
                (&"1".parse().unwrap(), &"2".parse().unwrap())
            );
            assert_eq!(ours(false, &pieces(text, cuts)).unwrap().unwrap(), theirs);
        }
    }
}
