//! The way to the server: its URL, TLS, and the pool.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use deadpool_postgres::{ConfigConnectImpl, Connect, Manager, ManagerConfig, Pool, RecyclingMethod, Runtime};
use rustls::RootCertStore;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio_postgres::config::SslMode;
use tokio_postgres::{Client, Config, Error, NoTls};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::super::{StoreError, StoreResult};
use crate::config;

/// Our transactions do nothing between their statements: one that rests for so long has lost its replica, and with it
/// whoever would give up its locks.
const IDLE_IN_TRANSACTION: Duration = Duration::from_secs(3);

/// A pool over the settings' URL. Connects to nothing yet.
pub(super) fn pool(settings: &config::Store, timeout: Duration) -> StoreResult<Pool> {
    let (url, roots) = split_url(&settings.url);
    // The parser's error may quote the URL, which has a password in it.
    let mut server: Config = url.parse().map_err(|_| unusable("store.url is no Postgres URL"))?;
    server.application_name("faregate").connect_timeout(timeout).tcp_user_timeout(timeout);
    server.keepalives_idle(Duration::from_secs(30)).keepalives_interval(Duration::from_secs(10)).keepalives_retries(3);
    server.options(limits(&server, timeout));
    let recycling = ManagerConfig { recycling_method: RecyclingMethod::Fast };
    let runtime = Handle::try_current().map_err(|error| unusable(&error.to_string()))?;
    let manager = if server.get_ssl_mode() == SslMode::Require {
        let tls = tls(roots.as_deref())?;
        Manager::from_connect(server, OnRuntime { runtime, inner: ConfigConnectImpl { tls } }, recycling)
    } else {
        server.ssl_mode(SslMode::Disable);
        Manager::from_connect(server, OnRuntime { runtime, inner: ConfigConnectImpl { tls: NoTls } }, recycling)
    };
    let pool = Pool::builder(manager)
        .max_size(settings.max_connections.max(1))
        .wait_timeout(Some(timeout))
        .create_timeout(Some(timeout))
        .recycle_timeout(Some(timeout))
        .runtime(Runtime::Tokio1);
    pool.build().map_err(|error| unusable(&error.to_string()))
}

/// The server gives up by itself what we no longer wait for.
fn limits(server: &Config, timeout: Duration) -> String {
    let limit_ms = timeout.as_millis();
    let idle_ms = timeout.min(IDLE_IN_TRANSACTION).as_millis();
    // Half the time for a lock, so that who waited in vain has the other half to do something about it.
    let lock_ms = (timeout / 2).as_millis().max(1);
    let ours = format!(
        "-c statement_timeout={limit_ms} -c lock_timeout={lock_ms} -c idle_in_transaction_session_timeout={idle_ms} \
         -c tcp_keepalives_idle=10 -c tcp_keepalives_interval=5 -c tcp_keepalives_count=3"
    );
    // The URL's own come last: they win.
    [ours.as_str(), server.get_options().unwrap_or("")].join(" ")
}

/// Takes `sslrootcert` out of a URL, which the driver does not know, and turns the verifying modes into `require`:
/// here every TLS connection verifies the server's certificate and name.
fn split_url(url: &str) -> (String, Option<PathBuf>) {
    let Some((base, query)) = url.split_once('?') else { return (url.to_owned(), None) };
    let mut roots = None;
    let mut kept = Vec::new();
    for pair in query.split('&') {
        match pair.split_once('=') {
            Some(("sslrootcert", path)) => roots = Some(PathBuf::from(path.replace("%2F", "/").replace("%2f", "/"))),
            Some(("sslmode", "verify-ca" | "verify-full")) => kept.push("sslmode=require"),
            _ => kept.push(pair),
        }
    }
    let query = if kept.is_empty() { String::new() } else { format!("?{}", kept.join("&")) };
    (format!("{base}{query}"), roots)
}

fn tls(roots: Option<&Path>) -> StoreResult<MakeRustlsConnect> {
    let mut trusted = RootCertStore::empty();
    match roots {
        None => trusted.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
        Some(path) => {
            let unreadable = |error: &dyn std::fmt::Display| unusable(&format!("{}: {error}", path.display()));
            for certificate in CertificateDer::pem_file_iter(path).map_err(|error| unreadable(&error))? {
                let certificate = certificate.map_err(|error| unreadable(&error))?;
                trusted.add(certificate).map_err(|error| unreadable(&error))?;
            }
        }
    }
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| unusable(&error.to_string()))?
        .with_root_certificates(trusted)
        .with_no_client_auth();
    Ok(MakeRustlsConnect::new(config))
}

fn unusable(why: &str) -> StoreError {
    StoreError::Unavailable(why.to_owned())
}

/// Connections live on the runtime that opened the store, whichever worker happens to ask first: a worker's own runtime
/// ends before the store does.
struct OnRuntime<C> {
    runtime: Handle,
    inner: C,
}

type Connecting<'a> = Pin<Box<dyn Future<Output = Result<(Client, JoinHandle<()>), Error>> + Send + 'a>>;

impl<C: Connect> Connect for OnRuntime<C> {
    fn connect(&self, server: &Config) -> Connecting<'_> {
        Box::pin(Entered { runtime: self.runtime.clone(), work: self.inner.connect(server) })
    }
}

struct Entered<'a> {
    runtime: Handle,
    work: Connecting<'a>,
}

impl Future for Entered<'_> {
    type Output = Result<(Client, JoinHandle<()>), Error>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        let _entered = this.runtime.enter();
        this.work.as_mut().poll(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_verifying_modes_are_one() {
        let (url, roots) =
            split_url("postgres://u:p@h/d?sslmode=verify-full&sslrootcert=%2Fetc%2Fca.pem&connect_timeout=3");
        assert_eq!(url, "postgres://u:p@h/d?sslmode=require&connect_timeout=3");
        assert_eq!(roots.as_deref(), Some(Path::new("/etc/ca.pem")));
        assert_eq!(split_url("postgres://h/d"), ("postgres://h/d".to_owned(), None));
        assert_eq!(split_url("postgres://h/d?sslrootcert=/ca").0, "postgres://h/d");
        assert_eq!(url.parse::<Config>().unwrap().get_ssl_mode(), SslMode::Require);
    }

    #[tokio::test]
    async fn a_wrong_url_does_not_show_its_password() {
        let settings = config::Store { url: "postgres://u:hunter2@h/d?nonsense=1".into(), ..config::Store::default() };
        let error = pool(&settings, Duration::from_secs(1)).map(drop).unwrap_err();
        assert!(!error.to_string().contains("hunter2"), "{error}");
    }
}
