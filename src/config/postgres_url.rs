//! `store.url`: a Postgres server, and by which certificates it is known.
//!
//! The parameters are libpq's. `prefer` and `allow`, which speak plainly where TLS fails, are refused, and `require`
//! verifies: a connection that anybody in between may read or answer is not what it asks for.

use std::path::PathBuf;

use tokio_postgres::config::SslMode;

const FORMS: &str = "must be postgres://USER:PASSWORD@HOST:PORT/DATABASE";
const MODES: &str =
    "has an sslmode that is none of disable, require, verify-ca and verify-full (prefer and allow protect nothing)";
const PAIR: &str = "has one of sslcert and sslkey: a certificate needs its key, and a key its certificate";
const UNUSED: &str = "names certificates, and no sslmode that uses them: require, verify-ca or verify-full";

/// What `store.url` says.
#[derive(Clone)]
pub struct PostgresUrl {
    /// Hosts, credentials, database, and whether TLS is spoken.
    pub server: tokio_postgres::Config,
    /// `None`: no TLS.
    pub tls: Option<PostgresTls>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PostgresTls {
    /// A PEM file of the authorities that are trusted. `None`: the public ones.
    pub authorities: Option<PathBuf>,
    /// Whether the certificate must be for the host's name.
    pub verify_name: bool,
    /// PEM files of our own certificate and its key.
    pub client: Option<(PathBuf, PathBuf)>,
}

impl PostgresUrl {
    /// The error says what is wrong, and quotes nothing.
    pub fn parse(url: &str) -> Result<PostgresUrl, &'static str> {
        let (base, query) = url.split_once('?').unwrap_or((url, ""));
        if !["postgres://", "postgresql://"].iter().any(|scheme| base.starts_with(scheme)) {
            return Err(FORMS);
        }
        let (mut mode, mut kept) = (None, Vec::new());
        let (mut authorities, mut certificate, mut key) = (None, None, None);
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            match pair.split_once('=') {
                Some(("sslmode", value)) => mode = Some(value),
                Some(("sslrootcert", path)) => authorities = Some(file(path)?),
                Some(("sslcert", path)) => certificate = Some(file(path)?),
                Some(("sslkey", path)) => key = Some(file(path)?),
                _ => kept.push(pair),
            }
        }
        let client = match (certificate, key) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            _ => return Err(PAIR),
        };
        // libpq's name for the authorities that the machine knows; here, those that everybody knows.
        let authorities = authorities.filter(|path| path.as_os_str() != "system");
        let tls = match mode {
            None | Some("disable") if authorities.is_some() || client.is_some() => return Err(UNUSED),
            None | Some("disable") => None,
            Some("require" | "verify-full") => Some(PostgresTls { authorities, verify_name: true, client }),
            Some("verify-ca") => Some(PostgresTls { authorities, verify_name: false, client }),
            Some(_) => return Err(MODES),
        };
        let url = if kept.is_empty() { base.to_owned() } else { format!("{base}?{}", kept.join("&")) };
        // The parser's own error may quote the URL, which has a password in it.
        let mut server: tokio_postgres::Config = url.parse().map_err(|_| FORMS)?;
        server.ssl_mode(if tls.is_some() { SslMode::Require } else { SslMode::Disable });
        Ok(PostgresUrl { server, tls })
    }

    /// The files that it names, each with the parameter that does.
    pub fn files(&self) -> Vec<(&'static str, &PathBuf)> {
        let Some(tls) = &self.tls else { return Vec::new() };
        let mut files: Vec<_> = tls.authorities.iter().map(|path| ("sslrootcert", path)).collect();
        if let Some((certificate, key)) = &tls.client {
            files.extend([("sslcert", certificate), ("sslkey", key)]);
        }
        files
    }
}

impl std::fmt::Debug for PostgresUrl {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("PostgresUrl").field("tls", &self.tls).finish_non_exhaustive()
    }
}

fn file(path: &str) -> Result<PathBuf, &'static str> {
    let path = percent_encoding::percent_decode_str(path).decode_utf8().map_err(|_| FORMS)?;
    if path.is_empty() { Err("has an empty file name") } else { Ok(PathBuf::from(path.as_ref())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tls(url: &str) -> Option<PostgresTls> {
        PostgresUrl::parse(url).unwrap().tls
    }

    #[test]
    fn modes_are_libpq_s_and_verify() {
        assert_eq!(tls("postgres://h/d"), None);
        assert_eq!(tls("postgresql://h/d?sslmode=disable"), None);
        let known = |verify_name| Some(PostgresTls { authorities: None, verify_name, client: None });
        assert_eq!(tls("postgres://h/d?sslmode=require"), known(true));
        assert_eq!(tls("postgres://h/d?sslmode=verify-ca&sslrootcert=system"), known(false));
        let url = "postgres://u:p@h/d?sslmode=verify-full&sslrootcert=%2Fetc%2Fmy%20ca.pem&connect_timeout=3\
                   &sslcert=/me.pem&sslkey=/me.key";
        let parsed = PostgresUrl::parse(url).unwrap();
        assert_eq!(parsed.server.get_ssl_mode(), SslMode::Require);
        assert_eq!(parsed.server.get_connect_timeout().map(std::time::Duration::as_secs), Some(3));
        let files: Vec<String> =
            parsed.files().iter().map(|(name, path)| format!("{name} {}", path.display())).collect();
        assert_eq!(files, ["sslrootcert /etc/my ca.pem", "sslcert /me.pem", "sslkey /me.key"]);
    }

    #[test]
    fn mistakes_are_told_without_their_text() {
        for (url, expected) in [
            ("mysql://hunter2", FORMS),
            ("hunter2", FORMS),
            ("postgres://u:hunter2@h:port/d", FORMS),
            ("postgres://h/d?nonsense=hunter2", FORMS),
            ("postgres://h/d?sslmode=prefer", MODES),
            ("postgres://h/d?sslmode=allow", MODES),
            ("postgres://h/d?sslmode=hunter2", MODES),
            ("postgres://h/d?sslmode=require&sslcert=/x", PAIR),
            ("postgres://h/d?sslrootcert=/x", UNUSED),
            ("postgres://h/d?sslmode=disable&sslcert=/x&sslkey=/y", UNUSED),
            ("postgres://h/d?sslmode=require&sslrootcert=", "has an empty file name"),
        ] {
            assert_eq!(PostgresUrl::parse(url).err(), Some(expected), "{url}");
        }
        assert!(!format!("{:?}", PostgresUrl::parse("postgres://u:hunter2@h/d")).contains("hunter2"));
    }
}
