//! Certificates and keys from PEM files, for whoever speaks TLS.

use std::path::Path;

use rustls::RootCertStore;
use rustls_pki_types::pem::{Error, PemObject};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

/// A PEM file that is of no use.
#[derive(Debug, thiserror::Error)]
pub enum PemError {
    #[error("{path} cannot be read as PEM: {error}")]
    Unreadable { path: String, error: Error },
    #[error("{path} has no certificate in it")]
    Empty { path: String },
    #[error("{path} has a certificate that cannot be trusted: {error}")]
    Untrustworthy { path: String, error: rustls::Error },
}

/// All certificates of a file, of which there is at least one.
pub fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, PemError> {
    let all: Result<Vec<_>, Error> = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
    match all {
        Err(error) => Err(unreadable(path, error)),
        Ok(all) if all.is_empty() => Err(PemError::Empty { path: path.display().to_string() }),
        Ok(all) => Ok(all),
    }
}

/// The private key of a file.
pub fn key(path: &Path) -> Result<PrivateKeyDer<'static>, PemError> {
    PrivateKeyDer::from_pem_file(path).map_err(|error| unreadable(path, error))
}

/// The public certificate authorities.
pub fn public_roots() -> RootCertStore {
    RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() }
}

/// Adds the certificates of a file to those that are trusted.
pub fn trust(roots: &mut RootCertStore, path: &Path) -> Result<(), PemError> {
    for certificate in certificates(path)? {
        let added = roots.add(certificate);
        added.map_err(|error| PemError::Untrustworthy { path: path.display().to_string(), error })?;
    }
    Ok(())
}

fn unreadable(path: &Path, error: Error) -> PemError {
    PemError::Unreadable { path: path.display().to_string(), error }
}
