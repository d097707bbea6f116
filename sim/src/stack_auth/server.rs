//! What answers: the key set, and what a person at the keyboard asks of the simulator.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::{Control, Options, Person};

const BODY_MAX: usize = 64 * 1024;
const HELP: &str = "\
POST /_sim/token {id, email?, email_verified?, name?, anonymous?, restricted?}   an access token
POST /_sim/events {type, …as above}                                             a webhook to every endpoint
POST /_sim/behaviour {down?, delay_ms?}                                         how the key set answers
POST /_sim/rotate                                                               other keys sign from now on
";

/// A bound simulator, not yet serving.
pub struct StackAuth {
    listener: TcpListener,
    control: Control,
}

/// Binds it; port 0 takes any.
///
/// # Errors
/// When the address cannot be had.
pub async fn bind(address: SocketAddr, options: Options) -> io::Result<StackAuth> {
    let listener = TcpListener::bind(address).await?;
    let base = format!("http://{}", listener.local_addr()?);
    Ok(StackAuth { listener, control: Control::new(options, base) })
}

impl StackAuth {
    pub fn control(&self) -> Control {
        self.control.clone()
    }

    /// Serves until `stop` is done, then drops every connection.
    pub async fn run(self, stop: impl Future<Output = ()>) {
        let mut connections = JoinSet::new();
        let mut stop = std::pin::pin!(stop);
        loop {
            tokio::select! {
                accepted = self.listener.accept() => if let Ok((connection, _)) = accepted {
                    connections.spawn(serve(connection, self.control.clone()));
                },
                Some(_) = connections.join_next() => {}
                () = &mut stop => return,
            }
        }
    }
}

async fn serve(connection: TcpStream, control: Control) {
    let _ = connection.set_nodelay(true);
    let service = service_fn(|request| answer(request, control.clone()));
    let mut server = hyper::server::conn::http1::Builder::new();
    // How a connection ends is the other side's business.
    let _ = server.timer(TokioTimer::new()).serve_connection(TokioIo::new(connection), service).await;
}

async fn answer(request: Request<Incoming>, control: Control) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    let path = head.uri.path().to_owned();
    if head.method == Method::GET && path == key_path(&control) {
        let query = head.uri.query().unwrap_or_default().to_owned();
        return Ok(key_set(&control, &query).await);
    }
    let read = Limited::new(body, BODY_MAX).collect().await;
    let bytes = read.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let asked: Value = serde_json::from_slice(&bytes).unwrap_or_default();
    Ok(match (head.method, path.as_str()) {
        (Method::GET, "/_sim") => plain(StatusCode::OK, "text/plain", HELP.to_owned()),
        (Method::POST, "/_sim/token") => {
            let token = control.token(&person(&asked));
            reply(StatusCode::OK, &json!({ "accessToken": token }))
        }
        (Method::POST, "/_sim/events") => {
            let message = control.message(asked["type"].as_str().unwrap_or("user.created"), &person(&asked));
            let statuses = control.deliver(&message).await;
            reply(StatusCode::OK, &json!({ "id": message.id, "statuses": statuses }))
        }
        (Method::POST, "/_sim/behaviour") => {
            if let Some(down) = asked["down"].as_bool() {
                control.set_down(down);
            }
            if let Some(delay) = asked["delay_ms"].as_u64() {
                control.set_delay(Duration::from_millis(delay));
            }
            reply(StatusCode::OK, &json!({ "asked": control.asked() }))
        }
        (Method::POST, "/_sim/rotate") => {
            control.rotate();
            reply(StatusCode::OK, &json!({}))
        }
        _ => reply(StatusCode::NOT_FOUND, &json!({ "error": "nothing is simulated here; GET /_sim tells what is" })),
    })
}

fn key_path(control: &Control) -> String {
    format!("/api/v1/projects/{}/.well-known/jwks.json", control.project())
}

async fn key_set(control: &Control, query: &str) -> Response<Full<Bytes>> {
    let (down, delay) = {
        let mut world = control.world();
        world.asked += 1;
        (world.down, world.delay)
    };
    if !delay.is_zero() {
        tokio::time::sleep(delay).await;
    }
    if down {
        return reply(StatusCode::SERVICE_UNAVAILABLE, &json!({ "error": "down, as asked" }));
    }
    let has = |name: &str| query.split('&').any(|part| part.split_once('=') == Some((name, "true")));
    let set = control.world().keys.set(has("include_restricted"), has("include_anonymous"));
    let mut response = reply(StatusCode::OK, &set);
    response.headers_mut().insert("cache-control", http::HeaderValue::from_static("public, max-age=3600"));
    response
}

fn person(asked: &Value) -> Person {
    let text = |name: &str| asked[name].as_str().map(str::to_owned);
    let flag = |name: &str, default: bool| asked[name].as_bool().unwrap_or(default);
    Person {
        id: text("id").unwrap_or_default(),
        name: text("name"),
        email: text("email"),
        email_verified: flag("email_verified", true),
        anonymous: flag("anonymous", false),
        restricted: flag("restricted", false),
    }
}

fn reply(status: StatusCode, body: &Value) -> Response<Full<Bytes>> {
    plain(status, "application/json", body.to_string())
}

fn plain(status: StatusCode, kind: &'static str, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response.headers_mut().insert("content-type", http::HeaderValue::from_static(kind));
    response
}
