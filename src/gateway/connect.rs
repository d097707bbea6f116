//! How a connection to an upstream is made: TCP, TLS, and the HTTP version that both sides speak.

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::uri;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::body::{BoxError, ForwardBody};
use super::http1::{Connection, Scratch, Wire};
use super::tasks::LocalTasks;
use crate::config;
use crate::tls::{self, PemError};

/// Longest head of an answer.
const MAX_HEAD_BYTES: usize = 256 * 1024;
/// A quiet HTTP/2 connection is asked for a sign of life so often, and given up when none comes.
const PING_INTERVAL: std::time::Duration = std::time::Duration::from_secs(20);

/// Where and how to connect.
#[derive(Clone)]
pub(super) struct Dial {
    host: String,
    port: u16,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    /// As above, without offering HTTP/2.
    tls_http1: Option<TlsConnector>,
    h2c: bool,
}

impl std::fmt::Debug for Dial {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "Dial({}:{}, tls: {})", self.host, self.port, self.tls.is_some())
    }
}

/// Why TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error(transparent)]
    Pem(#[from] PemError),
    #[error("the certificate or key is not usable: {0}")]
    Rustls(#[from] rustls::Error),
    #[error("`{0}` is not a name that a certificate can carry")]
    Name(String),
    #[error("`certificate` and `key` belong together")]
    Half,
}

/// What a request needs of its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Need {
    /// The whole request is here.
    Whole,
    /// Its body comes while it is sent.
    Streamed,
    /// The connection shall change protocols, which only HTTP/1 can.
    Upgrade,
}

/// A connection, ready for requests.
pub(super) enum Made {
    Plain(Connection<Open>),
    /// HTTP/1, driven by a task of its own.
    Driven(http1::SendRequest<ForwardBody>),
    Http2(http2::SendRequest<ForwardBody>),
}

/// Counts an open connection for as long as it lives.
#[derive(Debug)]
pub(super) struct Open(Rc<Cell<usize>>);

impl Open {
    pub(super) fn new(count: &Rc<Cell<usize>>) -> Open {
        count.set(count.get() + 1);
        Open(Rc::clone(count))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.set(self.0.get().saturating_sub(1));
    }
}

impl Dial {
    pub(super) fn new(
        scheme: &uri::Scheme,
        authority: &uri::Authority,
        settings: &config::Upstream,
    ) -> Result<Dial, TlsError> {
        let https = *scheme == uri::Scheme::HTTPS;
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = authority.port_u16().unwrap_or(if https { 443 } else { 80 });
        let (mut tls, mut tls_http1) = (None, None);
        if https {
            let name = ServerName::try_from(host.clone()).map_err(|_| TlsError::Name(host.clone()))?;
            let config = client_config(settings)?;
            let mut only_http1 = config.clone();
            only_http1.alpn_protocols = vec![b"http/1.1".to_vec()];
            tls = Some((TlsConnector::from(Arc::new(config)), name));
            tls_http1 = Some(TlsConnector::from(Arc::new(only_http1)));
        }
        Ok(Dial { host, port, tls, tls_http1, h2c: settings.h2c && !https })
    }

    /// What only some connections need is boxed: a thousand that wait for TCP shall not weigh as if they did TLS.
    pub(super) async fn connect(
        &self,
        open: Open,
        tasks: &LocalTasks,
        scratch: &Scratch,
        need: Need,
    ) -> Result<Made, BoxError> {
        let stream = TcpStream::connect((self.host.as_str(), self.port)).await?;
        stream.set_nodelay(true)?;
        let upgrade = need == Need::Upgrade;
        let Some((connector, name)) = &self.tls else {
            return match need {
                _ if self.h2c && !upgrade => Box::pin(http2_handshake(stream, open, tasks)).await,
                Need::Whole => Ok(Made::Plain(Connection::new(Wire::Tcp(stream), scratch.clone(), open))),
                Need::Streamed | Need::Upgrade => Box::pin(http1_handshake(stream, open, tasks)).await,
            };
        };
        let connector = if upgrade { self.tls_http1.as_ref().unwrap_or(connector) } else { connector };
        let stream = Box::pin(connector.connect(name.clone(), stream)).await?;
        match need {
            _ if stream.get_ref().1.alpn_protocol() == Some(b"h2") => {
                Box::pin(http2_handshake(stream, open, tasks)).await
            }
            Need::Whole => Ok(Made::Plain(Connection::new(Wire::Tls(Box::new(stream)), scratch.clone(), open))),
            Need::Streamed | Need::Upgrade => Box::pin(http1_handshake(stream, open, tasks)).await,
        }
    }
}

async fn http2_handshake<T>(stream: T, open: Open, tasks: &LocalTasks) -> Result<Made, BoxError>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut builder = http2::Builder::new(tasks.clone());
    builder.timer(TokioTimer::new()).keep_alive_interval(PING_INTERVAL).max_header_list_size(MAX_HEAD_BYTES as u32);
    let (sender, connection) = builder.handshake(TokioIo::new(stream)).await?;
    tasks.spawn(Counted { connection, _open: open });
    Ok(Made::Http2(sender))
}

async fn http1_handshake<T>(stream: T, open: Open, tasks: &LocalTasks) -> Result<Made, BoxError>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut builder = http1::Builder::new();
    builder.max_buf_size(MAX_HEAD_BYTES);
    let (sender, connection) = builder.handshake(TokioIo::new(stream)).await?;
    tasks.spawn(Counted { connection: connection.with_upgrades(), _open: open });
    Ok(Made::Driven(sender))
}

/// Drives a connection. What goes wrong with it is told to the request that it carries.
struct Counted<C> {
    connection: C,
    _open: Open,
}

impl<C: Future<Output = hyper::Result<()>> + Unpin> Future for Counted<C> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        Pin::new(&mut self.connection).poll(context).map(drop)
    }
}

fn client_config(settings: &config::Upstream) -> Result<rustls::ClientConfig, TlsError> {
    let mut roots = tls::public_roots();
    if let Some(path) = &settings.ca_file {
        tls::trust(&mut roots, path)?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// TLS towards clients, where a certificate is configured.
pub(super) fn server_config(settings: &config::Tls) -> Result<Option<Arc<rustls::ServerConfig>>, TlsError> {
    let (certificate, key) = match (&settings.certificate, &settings.key) {
        (None, None) => return Ok(None),
        (Some(certificate), Some(key)) => (certificate, key),
        _ => return Err(TlsError::Half),
    };
    let chain = tls::certificates(certificate)?;
    let key = tls::key(key)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Some(Arc::new(config)))
}
