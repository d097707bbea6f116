//! Clients: a well-behaved one, and raw bytes for what no client library would send.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE};
use hyper::{HeaderMap, Method, Request, Response, StatusCode};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;

/// A whole answer.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error} in {:?}", self.text()))
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// A header's text; empty when it is not there.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("")
    }
}

/// A pooling client on the caller's runtime.
#[derive(Clone)]
pub struct Http {
    client: Client<HttpConnector, Full<Bytes>>,
}

impl Http {
    pub fn new() -> Http {
        Http::built(Client::builder(TokioExecutor::new()).pool_timer(hyper_util::rt::TokioTimer::new()))
    }

    /// Speaks HTTP/2 without TLS.
    pub fn h2c() -> Http {
        Http::built(Client::builder(TokioExecutor::new()).http2_only(true))
    }

    fn built(builder: &mut hyper_util::client::legacy::Builder) -> Http {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        Http { client: builder.build(connector) }
    }

    /// The answer's head; its body is still to be read (see [`Stream`]).
    pub async fn send(
        &self,
        request: Request<Full<Bytes>>,
    ) -> Result<Response<Incoming>, hyper_util::client::legacy::Error> {
        self.client.request(request).await
    }

    pub async fn try_call(&self, request: Request<Full<Bytes>>) -> Result<Answer, String> {
        let response = self.send(request).await.map_err(|error| format!("{error:?}"))?;
        let (head, body) = response.into_parts();
        let body = body.collect().await.map_err(|error| format!("{error:?}"))?.to_bytes();
        Ok(Answer { status: head.status, headers: head.headers, body })
    }

    pub async fn call(&self, request: Request<Full<Bytes>>) -> Answer {
        self.try_call(request).await.unwrap()
    }

    pub async fn get(&self, url: &str, key: &str) -> Answer {
        self.call(request(Method::GET, url, key, None)).await
    }

    pub async fn post(&self, url: &str, key: &str, body: &Value) -> Answer {
        self.call(request(Method::POST, url, key, Some(body))).await
    }

    /// Posts and hands back the answer as it streams.
    pub async fn stream(&self, url: &str, key: &str, body: &Value) -> Stream {
        Stream::of(self.send(request(Method::POST, url, key, Some(body))).await.unwrap())
    }
}

/// A request with a bearer key (none when empty) and a JSON body.
pub fn request(method: Method, url: &str, key: &str, body: Option<&Value>) -> Request<Full<Bytes>> {
    let mut request = Request::builder().method(method).uri(url);
    if !key.is_empty() {
        request = request.header(AUTHORIZATION, format!("Bearer {key}"));
    }
    let body = match body {
        Some(body) => {
            request = request.header(CONTENT_TYPE, "application/json");
            Bytes::from(body.to_string())
        }
        None => Bytes::new(),
    };
    request.body(Full::new(body)).unwrap()
}

/// An answer being read; dropped, it closes the connection.
pub struct Stream {
    pub status: StatusCode,
    pub headers: HeaderMap,
    body: Incoming,
}

impl Stream {
    pub fn of(response: Response<Incoming>) -> Stream {
        let (head, body) = response.into_parts();
        Stream { status: head.status, headers: head.headers, body }
    }

    /// The next piece of the body; `None` at its proper end, an error where it was cut off.
    pub async fn chunk(&mut self) -> Option<Result<Bytes, hyper::Error>> {
        loop {
            match self.body.frame().await? {
                Ok(frame) => {
                    if let Ok(data) = frame.into_data() {
                        return Some(Ok(data));
                    }
                }
                Err(error) => return Some(Err(error)),
            }
        }
    }

    /// Everything up to the end, and whether the end was a proper one.
    pub async fn rest(mut self) -> (Vec<u8>, bool) {
        let mut all = Vec::new();
        loop {
            match self.chunk().await {
                Some(Ok(data)) => all.extend_from_slice(&data),
                Some(Err(_)) => return (all, false),
                None => return (all, true),
            }
        }
    }
}

/// The `data:` values of a server-sent event stream, in order.
pub fn sse_data(body: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(body);
    text.lines().filter_map(|line| line.strip_prefix("data:")).map(|data| data.trim().to_owned()).collect()
}

/// Sends these bytes and gives back what comes, until the other side closes or is silent for `silence`.
pub fn raw(addr: SocketAddr, bytes: &[u8], silence: Duration) -> String {
    let mut connection = TcpStream::connect(addr).unwrap();
    connection.set_read_timeout(Some(silence)).unwrap();
    connection.set_nodelay(true).unwrap();
    // The other side may refuse, and close, before it has read everything.
    let _ = connection.write_all(bytes);
    let mut answer = Vec::new();
    let mut buffer = [0; 16 * 1024];
    while let Ok(count) = connection.read(&mut buffer) {
        if count == 0 {
            break;
        }
        answer.extend_from_slice(&buffer[..count]);
    }
    String::from_utf8_lossy(&answer).into_owned()
}

/// A GET outside async code; the status, or `None` when there was no answer.
pub fn get_status(addr: SocketAddr, path: &str) -> Option<u16> {
    let mut connection = TcpStream::connect(addr).ok()?;
    connection.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
    write!(connection, "GET {path} HTTP/1.1\r\nhost: {addr}\r\nconnection: close\r\n\r\n").ok()?;
    let mut answer = Vec::new();
    connection.read_to_end(&mut answer).ok()?;
    String::from_utf8_lossy(&answer).split(' ').nth(1)?.parse().ok()
}
