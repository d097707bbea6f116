//! The way to the server: its URL, TLS, and the pool.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use deadpool_postgres::{ConfigConnectImpl, Connect, Manager, ManagerConfig, Pool, RecyclingMethod, Runtime};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio_postgres::{Client, Config, Error, NoTls};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::super::{StoreError, StoreResult};
use crate::config::{self, PostgresTls, PostgresUrl};
use crate::tls::{self, PemError};

/// Our transactions do nothing between their statements: one that rests for so long has lost its replica, and with it
/// whoever would give up its locks.
const IDLE_IN_TRANSACTION: Duration = Duration::from_secs(3);

/// A pool over the settings' URL. Connects to nothing yet.
pub(super) fn pool(settings: &config::Store, timeout: Duration) -> StoreResult<Pool> {
    let PostgresUrl { mut server, tls } =
        PostgresUrl::parse(&settings.url).map_err(|problem| unusable(&format!("store.url {problem}")))?;
    server.application_name("faregate").connect_timeout(timeout).tcp_user_timeout(timeout);
    server.keepalives_idle(Duration::from_secs(30)).keepalives_interval(Duration::from_secs(10)).keepalives_retries(3);
    server.options(limits(&server, timeout));
    let recycling = ManagerConfig { recycling_method: RecyclingMethod::Fast };
    let runtime = Handle::try_current().map_err(|error| unusable(&error.to_string()))?;
    let manager = match &tls {
        Some(tls) => {
            let inner = ConfigConnectImpl { tls: self::tls(tls)? };
            Manager::from_connect(server, OnRuntime { runtime, inner }, recycling)
        }
        None => {
            let inner = ConfigConnectImpl { tls: NoTls };
            Manager::from_connect(server, OnRuntime { runtime, inner }, recycling)
        }
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

fn tls(settings: &PostgresTls) -> StoreResult<MakeRustlsConnect> {
    let unreadable = |error: PemError| unusable(&format!("store.url: {error}"));
    let failed = |error: rustls::Error| unusable(&format!("store.url: TLS: {error}"));
    let mut roots = RootCertStore::empty();
    match &settings.authorities {
        None => roots = tls::public_roots(),
        Some(path) => tls::trust(&mut roots, path).map_err(unreadable)?,
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider.clone());
    let config = config.with_safe_default_protocol_versions().map_err(failed)?;
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build();
    let verifier = verifier.map_err(|error| unusable(&format!("store.url: TLS: {error}")))?;
    let config = match settings.verify_name {
        true => config.with_webpki_verifier(verifier),
        false => config.dangerous().with_custom_certificate_verifier(Arc::new(ChainOnly(verifier))),
    };
    let config = match &settings.client {
        None => config.with_no_client_auth(),
        Some((certificate, key)) => {
            let chain = tls::certificates(certificate).map_err(unreadable)?;
            config.with_client_auth_cert(chain, tls::key(key).map_err(unreadable)?).map_err(failed)?
        }
    };
    Ok(MakeRustlsConnect::new(config))
}

/// `verify-ca`: whoever has a certificate of one of the authorities is the server, whatever its name.
#[derive(Debug)]
struct ChainOnly(Arc<WebPkiServerVerifier>);

impl ServerCertVerifier for ChainOnly {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verified = self.0.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        match verified {
            // The name is looked at last, once everything else was found right.
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
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

    #[tokio::test]
    async fn a_wrong_url_does_not_show_its_password() {
        let settings = config::Store { url: "postgres://u:hunter2@h/d?nonsense=1".into(), ..config::Store::default() };
        let error = pool(&settings, Duration::from_secs(1)).map(drop).unwrap_err();
        assert!(!error.to_string().contains("hunter2"), "{error}");
    }
}
