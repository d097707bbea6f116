//! Connections to other services: TCP, TLS where the address says so, HTTP/1.1; and a single question over one.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Uri, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// An open connection.
pub(crate) struct Link(TokioIo<Box<dyn Stream>>);

impl Connection for Link {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl Read for Link {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl Write for Link {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

/// Makes connections.
#[derive(Clone)]
pub(crate) struct Dial {
    tls: TlsConnector,
}

impl Dial {
    /// # Errors
    /// When TLS cannot be set up.
    pub(crate) fn new() -> Result<Dial, rustls::Error> {
        let roots = rustls::RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Dial { tls: TlsConnector::from(Arc::new(config)) })
    }

    /// One GET on a connection of its own, within `limit`. Redirects are not followed.
    ///
    /// # Errors
    /// When there is no answer in time, it is not 200, or larger than `max_bytes`.
    pub(crate) async fn get(&self, uri: &Uri, max_bytes: usize, limit: Duration) -> Result<Bytes, FetchError> {
        let exchange = async {
            let link = self.clone().connect(uri.clone()).await.map_err(|error| FetchError::Away(error.to_string()))?;
            let (mut sender, connection) = hyper::client::conn::http1::handshake::<_, Empty<Bytes>>(link).await?;
            let mut connection = std::pin::pin!(connection);
            let answer = std::pin::pin!(answer(&mut sender, uri, max_bytes));
            // What the connection has read stays to be taken after its end.
            match futures_util::future::select(answer, connection.as_mut()).await {
                futures_util::future::Either::Left((answered, _)) => answered,
                futures_util::future::Either::Right((_, answer)) => answer.await,
            }
        };
        tokio::time::timeout(limit, exchange).await.map_err(|_| FetchError::Late)?
    }

    async fn connect(self, uri: Uri) -> io::Result<Link> {
        let https = uri.scheme_str() == Some("https");
        let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = uri.port_u16().unwrap_or(if https { 443 } else { 80 });
        let stream = TcpStream::connect((host.as_str(), port)).await?;
        stream.set_nodelay(true)?;
        if !https {
            return Ok(Link(TokioIo::new(Box::new(stream))));
        }
        let name = ServerName::try_from(host).map_err(io::Error::other)?;
        let stream = self.tls.connect(name, stream).await?;
        Ok(Link(TokioIo::new(Box::new(stream))))
    }
}

impl tower::Service<Uri> for Dial {
    type Response = Link;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Link>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        Box::pin(self.clone().connect(uri))
    }
}

/// Why a question has no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FetchError {
    #[error("no answer in time")]
    Late,
    #[error("it cannot be reached: {0}")]
    Away(String),
    #[error("it answered with status {0}")]
    Status(u16),
    #[error("its answer cannot be read: {0}")]
    Unreadable(String),
}

impl From<hyper::Error> for FetchError {
    fn from(error: hyper::Error) -> FetchError {
        FetchError::Away(error.to_string())
    }
}

async fn answer(
    sender: &mut hyper::client::conn::http1::SendRequest<Empty<Bytes>>,
    uri: &Uri,
    max_bytes: usize,
) -> Result<Bytes, FetchError> {
    let unreadable = |error: String| FetchError::Unreadable(error);
    let host = uri.authority().map(http::uri::Authority::as_str).unwrap_or_default();
    let target = uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
    let request = Request::get(target)
        .header(header::HOST, host)
        .header(header::ACCEPT, "application/json")
        .header(header::USER_AGENT, concat!("faregate/", env!("CARGO_PKG_VERSION")))
        .body(Empty::new())
        .map_err(|error| unreadable(error.to_string()))?;
    let (head, body) = sender.send_request(request).await?.into_parts();
    if head.status != http::StatusCode::OK {
        return Err(FetchError::Status(head.status.as_u16()));
    }
    let body = Limited::new(body, max_bytes).collect().await.map_err(|error| unreadable(error.to_string()))?;
    Ok(body.to_bytes())
}

/// Drives connections, as tasks that somebody waits for and that end when they are told to.
#[derive(Clone)]
pub(crate) struct Drivers {
    pub(crate) tasks: TaskTracker,
    pub(crate) stop: CancellationToken,
}

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for Drivers {
    fn execute(&self, connection: F) {
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                () = connection => {}
                () = stop.cancelled() => {}
            }
        });
    }
}
