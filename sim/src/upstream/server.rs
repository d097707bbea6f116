//! The listener and the way from a request to its endpoint.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Either, Empty, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::answer::{Answer, SimBody, failure, respond, wait_before};
use super::knobs::Knobs;
use super::stats::{Seen, Stats};
use super::{anthropic, completions, openai, responses, websocket};

/// Largest request body that is read.
const BODY_MAX: usize = 64 * 1024 * 1024;

/// A bound upstream, not yet serving.
pub struct Upstream {
    listener: TcpListener,
    addr: SocketAddr,
    stats: Arc<Stats>,
}

/// Binds the upstream; port 0 takes any.
///
/// # Errors
/// When the address cannot be had.
pub async fn bind(addr: SocketAddr) -> io::Result<Upstream> {
    let listener = TcpListener::bind(addr).await?;
    let addr = listener.local_addr()?;
    Ok(Upstream { listener, addr, stats: Arc::default() })
}

impl Upstream {
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    pub fn stats(&self) -> Arc<Stats> {
        self.stats.clone()
    }

    /// Serves until `stop` is done, then drops every connection.
    pub async fn run(self, stop: impl Future<Output = ()>) {
        let mut connections = JoinSet::new();
        let mut stop = std::pin::pin!(stop);
        loop {
            tokio::select! {
                accepted = self.listener.accept() => if let Ok((connection, _)) = accepted {
                    connections.spawn(serve(connection, self.stats.clone()));
                },
                Some(_) = connections.join_next() => {}
                () = &mut stop => return,
            }
        }
    }
}

type SimAnswer = Response<Either<SimBody, Empty<Bytes>>>;

/// Asks hyper to close the connection without an answer.
#[derive(Debug)]
struct Refused;

impl std::fmt::Display for Refused {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("refused, as asked")
    }
}

impl std::error::Error for Refused {}

impl From<Infallible> for Refused {
    fn from(never: Infallible) -> Refused {
        match never {}
    }
}

async fn serve(connection: TcpStream, stats: Arc<Stats>) {
    // Without it a stream's small pieces would wait for each other.
    let _ = connection.set_nodelay(true);
    let mut server = auto::Builder::new(TokioExecutor::new());
    server.http1().timer(TokioTimer::new());
    let upgrades = websocket::Echoes::default();
    let service = service_fn(|request| answer(request, stats.clone(), upgrades.clone()));
    // How a connection ends is the other side's business, or was asked for.
    let _ = server.serve_connection_with_upgrades(TokioIo::new(connection), service).await;
    upgrades.finish().await;
}

async fn answer(
    request: Request<Incoming>,
    stats: Arc<Stats>,
    echoes: websocket::Echoes,
) -> Result<SimAnswer, Refused> {
    if websocket::asked_for(&request) {
        let path = request.uri().to_string();
        stats.saw(Seen { method: Method::GET, path, headers: request.headers().clone(), body: Bytes::new() });
        return Ok(echoes.accept(request).map(Either::Right));
    }
    let (head, body) = request.into_parts();
    let path = head.uri.path().strip_prefix("/v1").unwrap_or(head.uri.path()).to_owned();
    let is_anthropic = path.starts_with("/messages");
    let read = Limited::new(body, BODY_MAX).collect().await;
    let Ok(body) = read.map(http_body_util::Collected::to_bytes) else {
        let too_large = failure(is_anthropic, StatusCode::PAYLOAD_TOO_LARGE, "the body is too large or was cut off");
        return Ok(respond(too_large, &Knobs::default(), stats).map(Either::Left));
    };
    let whole = head.uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str).to_owned();
    let seen = Seen { method: head.method, path: whole, headers: head.headers, body };
    stats.saw(seen.clone());
    let parsed = serde_json::from_slice::<Value>(&seen.body);
    let model = parsed.as_ref().ok().and_then(|body| body["model"].as_str());
    let knobs = Knobs::read(model, &seen.headers);
    wait_before(&knobs).await;
    if knobs.refuse {
        return Err(Refused);
    }
    let failing = knobs.fail_first.is_none_or(|count| stats.fails(&knobs.fail_key, count));
    let status = knobs.status.or(knobs.fail_first.map(|_| 503)).filter(|_| failing);
    let answer = match status.and_then(|status| StatusCode::from_u16(status).ok()) {
        Some(status) => failure(is_anthropic, status, "the upstream fails, as asked"),
        None if knobs.echo || path.starts_with("/echo") => Answer::Plain(StatusCode::OK, echo(&seen)),
        None => route(&seen.method, &path, parsed, &knobs),
    };
    let mut response = respond(answer, &knobs, stats);
    let retry_after = knobs.retry_after.as_deref().filter(|_| status.is_some());
    if let Some(value) = retry_after.and_then(|text| text.parse().ok()) {
        response.headers_mut().insert(http::header::RETRY_AFTER, value);
    }
    response.headers_mut().insert("x-request-id", http::HeaderValue::from_static("sim-request"));
    Ok(response.map(Either::Left))
}

fn route(method: &Method, path: &str, body: Result<Value, serde_json::Error>, knobs: &Knobs) -> Answer {
    let path = path.trim_end_matches('/');
    let is_anthropic = path.starts_with("/messages");
    if *method == Method::GET || *method == Method::HEAD {
        return match path.strip_prefix("/models") {
            Some("") => openai::models(),
            Some(model) => openai::model(model.trim_start_matches('/')),
            None => failure(false, StatusCode::NOT_FOUND, "no such path"),
        };
    }
    let known = ["/chat/completions", "/completions", "/responses", "/embeddings", "/images/generations"];
    if *method != Method::POST || !(is_anthropic || known.contains(&path)) {
        return failure(is_anthropic, StatusCode::NOT_FOUND, "no such path");
    }
    let Ok(body) = body else {
        return failure(is_anthropic, StatusCode::BAD_REQUEST, "the body is not valid JSON");
    };
    if body["model"].as_str().is_none() && path != "/images/generations" {
        return failure(is_anthropic, StatusCode::BAD_REQUEST, "model: field required");
    }
    if body["model"] == "missing-model" {
        return failure(is_anthropic, StatusCode::NOT_FOUND, "the model `missing-model` does not exist");
    }
    match path {
        "/chat/completions" => openai::chat(&body, knobs),
        "/completions" => completions::complete(&body, knobs),
        "/responses" => responses::respond(&body, knobs),
        "/embeddings" => openai::embeddings(&body, knobs),
        "/images/generations" => openai::images(&body, knobs),
        "/messages" => anthropic::messages(&body, knobs),
        "/messages/count_tokens" => anthropic::count_tokens(&body),
        _ => failure(is_anthropic, StatusCode::NOT_FOUND, "no such path"),
    }
}

fn echo(seen: &Seen) -> Value {
    let mut headers = serde_json::Map::new();
    for name in seen.headers.keys() {
        let values =
            seen.headers.get_all(name).iter().map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
        headers.insert(name.to_string(), values.collect::<Vec<_>>().join(", ").into());
    }
    let body = String::from_utf8_lossy(&seen.body);
    json!({ "method": seen.method.as_str(), "path": seen.path, "headers": headers, "body": body })
}
