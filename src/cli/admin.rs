//! The admin API, wherever it is: at the running gateway's listener, or in this process over the opened store.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;
use uuid::Uuid;

use crate::config::{Config, Secret};
use crate::error::{Exit, Failure};
use crate::rollout::Current;
use crate::serve::backend::{Backend, BackendParts, Role};
use crate::serve::data_dir::{self, DataDir};
use crate::store;
use crate::telemetry::Metrics;

/// Largest answer: a page of 500 rows is far below it.
const MAX_ANSWER_BYTES: usize = 16 * 1024 * 1024;
/// How long the gateway may take to answer.
const TIMEOUT: Duration = Duration::from_secs(30);
/// How often a call is made whose answer was lost; the same Idempotency-Key makes the second one harmless.
const ATTEMPTS: usize = 2;

/// One question.
pub(super) struct Call {
    pub(super) method: Method,
    pub(super) path: String,
    /// JSON, as text, so that amounts stay as they were written.
    pub(super) body: Option<String>,
}

/// Who answers.
pub(super) struct Admin {
    token: Secret,
    way: Way,
}

enum Way {
    Remote(SocketAddr),
    /// The data directory stays locked for as long as this lives.
    Local(Box<Backend>, DataDir),
}

impl Admin {
    /// The running gateway if there is one, else the store itself.
    pub(super) async fn find(config: Config) -> Result<Admin, Failure> {
        match DataDir::open(&config.data_dir) {
            Ok(directory) => Admin::local(config, directory).await,
            Err(refused) if refused.exit == Exit::InUse => match data_dir::admin_address(&config.data_dir)? {
                Some(found) => Ok(Admin { token: found.token, way: Way::Remote(found.address) }),
                // It is about to say so, about to end, or a command like this one.
                None => Err(refused),
            },
            Err(error) => Err(error),
        }
    }

    async fn local(config: Config, directory: DataDir) -> Result<Admin, Failure> {
        let metrics = Metrics::new().map_err(Failure::while_doing(Exit::Internal, "metrics"))?;
        let token = directory.admin_token(config.admin_token.as_ref())?;
        let store = store::open(&config.store, directory.path()).await;
        let store = store.map_err(Failure::while_doing(Exit::Unavailable, "the store"))?;
        let config = Arc::new(config);
        let broken = CancellationToken::new();
        let current = Current::new(config.clone());
        let parts =
            BackendParts { config, current, store, admin_token: token.clone(), metrics, broken, role: Role::Command };
        let backend = Backend::open(parts).await?;
        Ok(Admin { token, way: Way::Local(Box::new(backend), directory) })
    }

    /// The answer's body, once the status says that it was done.
    pub(super) async fn call(&self, call: Call) -> Result<String, Failure> {
        // What made the change names it, so that a repeated call changes nothing more.
        let key = Uuid::now_v7().to_string();
        let mut failed = Failure::new(Exit::Unavailable, "the gateway was not asked");
        for _ in 0..ATTEMPTS {
            let request = self.request(&call, &key)?;
            let answered = match &self.way {
                Way::Remote(address) => remote(*address, request).await,
                Way::Local(backend, _) => local(backend, request).await,
            };
            match answered {
                Ok((status, body)) if status.is_success() => return Ok(body),
                Ok((status, body)) => return Err(refusal(status, &body)),
                Err(error) => failed = error,
            }
        }
        if call.method != Method::GET {
            failed.message.push_str("; it may have been done all the same: look before you ask again");
        }
        Err(failed)
    }

    /// Lets what was changed be written down. Call it last.
    pub(super) async fn close(self) -> Result<(), Failure> {
        match self.way {
            Way::Remote(_) => Ok(()),
            Way::Local(backend, _locked) => backend.close().await,
        }
    }

    fn request(&self, call: &Call, key: &str) -> Result<Request<Full<Bytes>>, Failure> {
        let mut builder = Request::builder()
            .method(call.method.clone())
            .uri(&call.path)
            .header(HOST, "localhost")
            .header(AUTHORIZATION, format!("Bearer {}", self.token.reveal()));
        if call.method == Method::POST {
            builder = builder.header("idempotency-key", key);
        }
        if call.body.is_some() {
            builder = builder.header(CONTENT_TYPE, "application/json");
        }
        let body = call.body.clone().unwrap_or_default();
        builder.body(Full::from(body)).map_err(Failure::while_doing(Exit::Internal, "the question"))
    }
}

async fn remote(address: SocketAddr, request: Request<Full<Bytes>>) -> Result<(StatusCode, String), Failure> {
    let what = || format!("the gateway's admin listener at {address} does not answer");
    let exchange = async {
        let stream = TcpStream::connect(address).await.map_err(Failure::while_doing(Exit::Unavailable, what()))?;
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.map_err(Failure::while_doing(Exit::Unavailable, what()))?;
        let answer = async {
            let response =
                sender.send_request(request).await.map_err(Failure::while_doing(Exit::Unavailable, what()))?;
            read(response).await
        };
        // The connection moves the bytes while the answer is awaited; it needs no task of its own.
        tokio::pin!(answer, connection);
        tokio::select! {
            answer = &mut answer => answer,
            _ = &mut connection => answer.await,
        }
    };
    let late = |_| Failure::new(Exit::Unavailable, format!("{} within {} s", what(), TIMEOUT.as_secs()));
    tokio::time::timeout(TIMEOUT, exchange).await.map_err(late)?
}

async fn local(backend: &Backend, request: Request<Full<Bytes>>) -> Result<(StatusCode, String), Failure> {
    match backend.admin().oneshot(request.map(Body::new)).await {
        Ok(response) => read(response).await,
        Err(never) => match never {},
    }
}

async fn read<B>(response: Response<B>) -> Result<(StatusCode, String), Failure>
where
    B: http_body::Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let status = response.status();
    let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES).collect().await;
    let body = body.map_err(Failure::while_doing(Exit::Unavailable, "the answer broke off"))?;
    Ok((status, String::from_utf8_lossy(&body.to_bytes()).into_owned()))
}

/// What the problem says.
fn refusal(status: StatusCode, body: &str) -> Failure {
    let problem: Value = serde_json::from_str(body).unwrap_or_default();
    let text = |name: &str| problem.get(name).and_then(Value::as_str);
    let message = text("detail").or_else(|| text("title")).unwrap_or("no reason given");
    let exit = match status.as_u16() {
        401 | 403 => Exit::Settings,
        500 => Exit::Internal,
        502..=504 => Exit::Unavailable,
        _ => Exit::Refused,
    };
    Failure::new(exit, format!("{message} ({})", status.as_u16()))
}

/// Asks the admin listener of the settings whether the gateway is ready.
pub(super) async fn health(config: &Config) -> Result<String, Failure> {
    let listen = config.admin_listen;
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    let request = Request::get("/readyz").header(HOST, "localhost").body(Full::default());
    let request = request.map_err(Failure::while_doing(Exit::Internal, "the question"))?;
    match remote(SocketAddr::new(ip, listen.port()), request).await? {
        (status, body) if status.is_success() => Ok(body),
        (_, body) => Err(Failure::new(Exit::Unavailable, format!("not ready: {}", body.trim()))),
    }
}
