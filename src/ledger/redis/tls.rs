//! By which certificates Redis and the Sentinels are known, and we are.

use std::path::Path;

use redis::{Client, ClientTlsConfig, ConnectionInfo, TlsCertificates};

use crate::config::{self, RedisKind, RedisUrl};
use crate::tls;

/// The settings' URL with their certificates. An error says what is wrong with which setting.
pub(super) fn url(settings: &config::Ledger) -> Result<RedisUrl, String> {
    let mut url = RedisUrl::parse(&settings.url).map_err(|problem| format!("ledger.url {problem}"))?;
    let Some(certificates) = certificates(settings)? else { return Ok(url) };
    url.server = with(url.server, &certificates)?;
    if let RedisKind::Sentinel { sentinel, .. } = &mut url.kind {
        **sentinel = with((**sentinel).clone(), &certificates)?;
    }
    Ok(url)
}

fn certificates(settings: &config::Ledger) -> Result<Option<TlsCertificates>, String> {
    let client_tls = match (&settings.client_certificate, &settings.client_key) {
        (None, None) => None,
        (Some(certificate), Some(key)) => {
            tls::certificates(certificate).map_err(|error| format!("ledger.client_certificate: {error}"))?;
            tls::key(key).map_err(|error| format!("ledger.client_key: {error}"))?;
            let (client_cert, client_key) = (read(certificate)?, read(key)?);
            Some(ClientTlsConfig { client_cert, client_key })
        }
        _ => return Err("ledger.client_certificate and ledger.client_key belong together".to_owned()),
    };
    let mut root_cert = None;
    if let Some(path) = &settings.ca_file {
        tls::certificates(path).map_err(|error| format!("ledger.ca_file: {error}"))?;
        root_cert = Some(read(path)?);
    }
    let any = client_tls.is_some() || root_cert.is_some();
    Ok(any.then_some(TlsCertificates { client_tls, root_cert }))
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))
}

fn with(info: ConnectionInfo, certificates: &TlsCertificates) -> Result<ConnectionInfo, String> {
    let client = Client::build_with_tls(info, certificates.clone());
    client.map(|client| client.get_connection_info().clone()).map_err(|error| format!("ledger: TLS: {error}"))
}
