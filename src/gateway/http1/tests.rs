//! Connections against an upstream that says what the test tells it to.

use std::future::poll_fn;

use http::StatusCode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;

const LONG: Duration = Duration::from_secs(20);

async fn pair() -> (Connection<()>, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let ours = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (theirs, _) = listener.accept().await.unwrap();
    (Connection::new(Wire::Tcp(ours), Scratch::new(), ()), theirs)
}

fn send(connection: &mut Connection<()>, method: &Method, body: Bytes) {
    let host = HeaderValue::from_static("upstream");
    let path = "/v1/x?y=z".parse().unwrap();
    let line = Line { method, path: &path, host: &host, length: (!body.is_empty()).then_some(body.len()) };
    let name = HeaderName::from_static("x-a");
    connection.send(&line, |fields| fields.put(&name, &HeaderValue::from_static("b")), body);
}

async fn head(connection: &mut Connection<()>) -> Result<response::Parts, Broken> {
    poll_fn(|context| connection.poll_head(context, LONG)).await
}

async fn text(connection: &mut Connection<()>) -> Result<String, Broken> {
    let mut text = Vec::new();
    loop {
        match poll_fn(|context| connection.poll_body(context, LONG)).await? {
            Part::Data(data) => text.extend_from_slice(&data),
            Part::Trailers(_) => {}
            Part::End => return Ok(String::from_utf8(text).unwrap()),
        }
    }
}

async fn request(theirs: &mut TcpStream, length: usize) -> String {
    let mut request = vec![0; length];
    theirs.read_exact(&mut request).await.unwrap();
    String::from_utf8(request).unwrap()
}

#[tokio::test]
async fn one_connection_carries_request_after_request() {
    let (mut connection, mut theirs) = pair().await;
    for number in 0..3 {
        assert!(connection.is_alive());
        send(&mut connection, &Method::POST, Bytes::from_static(b"body"));
        let expected = "POST /v1/x?y=z HTTP/1.1\r\nhost: upstream\r\ncontent-length: 4\r\nx-a: b\r\n\r\nbody";
        assert_eq!(request(&mut theirs, expected.len()).await, expected);
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: 1\r\nx: {number}\r\n\r\n{number}");
        theirs.write_all(answer.as_bytes()).await.unwrap();
        let parts = head(&mut connection).await.unwrap();
        assert_eq!((parts.status, &parts.headers["x"]), (StatusCode::OK, &HeaderValue::from(number)));
        assert_eq!(connection.left(), Some(1));
        assert!(!connection.is_reusable());
        assert_eq!(text(&mut connection).await.unwrap(), number.to_string());
        assert!(connection.is_reusable());
    }
}

#[tokio::test]
async fn an_idle_connection_that_says_anything_is_dead() {
    let (mut connection, mut theirs) = pair().await;
    theirs.write_all(b"HTTP/1.1 408 Request Timeout\r\n\r\n").await.unwrap();
    let dead = async {
        while connection.is_alive() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LONG, dead).await.unwrap();
    let (mut connection, theirs) = pair().await;
    drop(theirs);
    let dead = async {
        while connection.is_alive() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LONG, dead).await.unwrap();
}

/// What comes after an answer would be taken for the next one.
#[tokio::test]
async fn a_connection_with_bytes_too_many_is_not_used_again() {
    let (mut connection, mut theirs) = pair().await;
    send(&mut connection, &Method::GET, Bytes::new());
    theirs.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nab").await.unwrap();
    head(&mut connection).await.unwrap();
    assert_eq!(text(&mut connection).await.unwrap(), "a");
    assert!(!connection.is_reusable());
}

/// A server may refuse a body before it has all of it.
#[tokio::test]
async fn an_answer_may_come_before_the_request_is_out() {
    let (mut connection, mut theirs) = pair().await;
    send(&mut connection, &Method::POST, Bytes::from(vec![b'x'; 64 << 20]));
    theirs.write_all(b"HTTP/1.1 413 Content Too Large\r\ncontent-length: 2\r\n\r\nno").await.unwrap();
    assert_eq!(head(&mut connection).await.unwrap().status, StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(text(&mut connection).await.unwrap(), "no");
    assert!(!connection.is_reusable(), "half a request is on it");
}

#[tokio::test]
async fn a_large_body_arrives_whole() {
    let (mut connection, mut theirs) = pair().await;
    let body: Bytes = (0..8_u32 << 20).map(|number| (number % 251) as u8).collect::<Vec<u8>>().into();
    send(&mut connection, &Method::POST, body.clone());
    let upstream = async {
        let mut received = Vec::new();
        let mut buffer = vec![0; 100_000];
        while !received.ends_with(&body[body.len() - 100..]) {
            let count = theirs.read(&mut buffer).await.unwrap();
            assert!(count > 0);
            received.extend_from_slice(&buffer[..count]);
        }
        theirs.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.unwrap();
        received
    };
    let (answer, received) = tokio::join!(head(&mut connection), upstream);
    assert_eq!(answer.unwrap().status, StatusCode::NO_CONTENT);
    assert!(received.ends_with(&body));
    assert!(connection.is_reusable());
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_broken() {
    let broken = [
        "",
        "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhell",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n",
    ];
    for answer in broken {
        let (mut connection, mut theirs) = pair().await;
        send(&mut connection, &Method::GET, Bytes::new());
        theirs.write_all(answer.as_bytes()).await.unwrap();
        theirs.shutdown().await.unwrap();
        let read = async {
            head(&mut connection).await?;
            text(&mut connection).await
        };
        assert!(matches!(read.await, Err(Broken::Closed)), "{answer}");
        assert!(!connection.is_reusable());
    }
    let (mut connection, mut theirs) = pair().await;
    send(&mut connection, &Method::GET, Bytes::new());
    theirs.write_all(b"HTTP/1.1 200 OK\r\n\r\nto the end").await.unwrap();
    theirs.shutdown().await.unwrap();
    head(&mut connection).await.unwrap();
    assert_eq!(text(&mut connection).await.unwrap(), "to the end");
    assert!(!connection.is_reusable());
}

/// An upstream that began to answer has the request: it is not asked again.
#[tokio::test]
async fn an_answer_that_began_is_not_taken_for_none() {
    for answer in ["H", "HTTP/1.1 200 OK\r\nx: ", "HTTP/1.1 103 Early Hints\r\n\r\n"] {
        let (mut connection, mut theirs) = pair().await;
        send(&mut connection, &Method::POST, Bytes::from_static(b"body"));
        theirs.write_all(answer.as_bytes()).await.unwrap();
        theirs.shutdown().await.unwrap();
        let broken = head(&mut connection).await;
        assert!(matches!(broken, Err(Broken::Garbled(_))), "{answer}: {broken:?}");
    }
}

/// Announcements that come faster than the connection waits for would keep its clock from being looked at.
#[tokio::test]
async fn a_flood_of_announcements_ends() {
    let (mut connection, mut theirs) = pair().await;
    send(&mut connection, &Method::GET, Bytes::new());
    let flood = async { while theirs.write_all(b"HTTP/1.1 102 Processing\r\n\r\n").await.is_ok() {} };
    let answer = tokio::select! {
        answer = head(&mut connection) => answer,
        () = flood => unreachable!("the connection is open"),
    };
    assert!(matches!(answer, Err(Broken::Garbled(_))), "{answer:?}");
}

#[tokio::test]
async fn nothing_sent_or_received_is_in_what_is_logged() {
    let (mut connection, _theirs) = pair().await;
    send(&mut connection, &Method::POST, Bytes::from(vec![b'x'; 64 << 20]));
    let text = format!("{connection:?} {:?}", connection.scratch);
    assert!(!text.contains("xxx") && !text.contains("x-a"), "{}", &text[..text.len().min(400)]);
}

#[tokio::test]
async fn silence_has_an_end_and_each_wait_its_own() {
    let (mut connection, _theirs) = pair().await;
    send(&mut connection, &Method::GET, Bytes::new());
    let long = poll_fn(|context| connection.poll_head(context, Duration::from_millis(10))).await;
    assert!(matches!(long, Err(Broken::TimedOut)), "{long:?}");
    let (mut connection, mut theirs) = pair().await;
    send(&mut connection, &Method::GET, Bytes::new());
    theirs.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhel").await.unwrap();
    head(&mut connection).await.unwrap();
    let next = poll_fn(|context| connection.poll_body(context, Duration::from_millis(10))).await;
    assert!(matches!(next, Ok(Part::Data(_))));
    let next = poll_fn(|context| connection.poll_body(context, Duration::from_millis(10))).await;
    assert!(matches!(next, Err(Broken::TimedOut)), "{next:?}");
}
