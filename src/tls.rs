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

/// Until when a certificate is good, in seconds since 1970 (RFC 5280 4.1.2.5).
pub fn ends_at(certificate: &CertificateDer<'_>) -> Option<i64> {
    const SEQUENCE: u8 = 0x30;
    const VERSION: u8 = 0xa0;
    let (_, certificate, _) = element(certificate)?;
    let (_, mut body, _) = element(certificate)?;
    if body.first() == Some(&VERSION) {
        body = element(body)?.2;
    }
    // Serial number, signature algorithm, issuer.
    for _ in 0..3 {
        body = element(body)?.2;
    }
    let (SEQUENCE, validity, _) = element(body)? else { return None };
    let (_, _, rest) = element(validity)?;
    let (tag, text, _) = element(rest)?;
    time(tag, std::str::from_utf8(text).ok()?)
}

/// The first element of DER: its tag, what is in it, and what follows it.
fn element(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&[tag, first], mut rest) = der.split_first_chunk::<2>()?;
    let mut length = usize::from(first);
    if first >= 0x80 {
        let (bytes, after) = rest.split_at_checked(usize::from(first & 0x7f))?;
        if bytes.len() > 4 {
            return None;
        }
        length = bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
        rest = after;
    }
    let (inside, after) = rest.split_at_checked(length)?;
    Some((tag, inside, after))
}

/// `YYMMDDHHMMSSZ` (UTCTime: the years 1950 to 2049) or `YYYYMMDDHHMMSSZ` (GeneralizedTime).
fn time(tag: u8, text: &str) -> Option<i64> {
    const UTC_TIME: u8 = 0x17;
    let full = match tag {
        UTC_TIME => format!("{}{text}", if text.get(..2)? < "50" { "20" } else { "19" }),
        _ => text.to_owned(),
    };
    let part = |from: usize, to: usize| full.get(from..to)?.parse::<i8>().ok();
    let year = full.get(..4)?.parse().ok()?;
    let time =
        jiff::civil::DateTime::new(year, part(4, 6)?, part(6, 8)?, part(8, 10)?, part(10, 12)?, part(12, 14)?, 0);
    Some(time.ok()?.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp().as_second())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_certificate_is_read() {
        for (year, wanted) in [(2031, 1_924_992_000), (2075, 3_313_526_400)] {
            let mut params = rcgen::CertificateParams::new(vec!["gate.test".to_owned()]).unwrap();
            params.not_after = rcgen::date_time_ymd(year, 1, 1);
            let key = rcgen::KeyPair::generate().unwrap();
            let certificate = params.self_signed(&key).unwrap();
            assert_eq!(ends_at(certificate.der()), Some(wanted), "{year}");
        }
        let broken = CertificateDer::from(vec![0x30, 0x84, 0xff, 0xff, 0xff, 0xff, 0]);
        assert_eq!(ends_at(&broken), None);
        assert_eq!(ends_at(&CertificateDer::from(Vec::new())), None);
    }
}
