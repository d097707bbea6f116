//! `sslmode`, certificates and passwords of `store.url`.

use std::path::Path;

use faregate::config;
use faregate::store::{self, StoreError};

use super::escaped;
use crate::support::postgres::Secure;
use crate::support::{Authority, Postgres};

pub(super) const PASSWORD: &str = "p@ss: w/o #";
const ACCESS: &str = "hostssl all app 127.0.0.1/32 scram-sha-256\nhostssl all robot 127.0.0.1/32 cert\n";

/// A server with a certificate for `db.test`; `app` has a password, `robot` a certificate, and neither gets in without TLS.
pub(super) fn server(authority: &Authority) -> Postgres {
    let certificate = authority.issue("db", &["db.test"]);
    let secure = Secure { certificate: &certificate, clients: &authority.file(), access: ACCESS };
    let postgres = Postgres::secure(&secure);
    postgres.query(&format!("CREATE ROLE app LOGIN PASSWORD '{PASSWORD}'; CREATE ROLE robot LOGIN IN ROLE app"));
    postgres.query(&format!("ALTER DATABASE {} OWNER TO app", postgres.database()));
    postgres
}

/// The URL of `user` (and password), who looks for the server under `host`.
pub(super) fn url(postgres: &Postgres, user: &str, host: &str, query: &str) -> String {
    let (port, database) = (postgres.port(), postgres.database());
    format!("postgres://{user}@{host}:{port}/{database}?hostaddr=127.0.0.1&{query}")
}

/// Opens a store by this URL, and says why that did not succeed.
async fn open(url: String) -> Result<(), String> {
    let settings = config::Store { url, migrate: false, ..config::Store::default() };
    match store::connect(&settings, Path::new("/nonexistent")).await {
        Ok(store) => {
            let asked = store.check_schema().await;
            store.close().await;
            match asked {
                // Whoever can ask for the schema is in.
                Ok(()) | Err(StoreError::Schema(_)) => Ok(()),
                Err(error) => Err(error.to_string()),
            }
        }
        Err(error) => Err(error.to_string()),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_is_believed_by_its_certificate() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let postgres = tokio::task::block_in_place(|| server(&authority));
    let app = format!("app:{}", escaped(PASSWORD));
    let as_app = |host: &str, query: String| open(url(&postgres, &app, host, &query));
    let ca = format!("sslrootcert={}", escaped(authority.file()));

    for (mode, host) in [("verify-full", "db.test"), ("require", "db.test"), ("verify-ca", "127.0.0.1")] {
        assert_eq!(as_app(host, format!("sslmode={mode}&{ca}")).await, Ok(()), "{mode} of {host}");
    }
    // The password is proven over this very connection.
    let bound = format!("sslmode=verify-full&channel_binding=require&{ca}");
    assert_eq!(as_app("db.test", bound).await, Ok(()));

    let refused = async |host: &str, query: String, why: &str| {
        let answer = as_app(host, query.clone()).await;
        assert!(answer.as_ref().is_err_and(|said| said.contains(why)), "{query} of {host}: {answer:?}");
    };
    let strangers = format!("sslrootcert={}", escaped(stranger.file()));
    for mode in ["verify-full", "require", "verify-ca"] {
        refused("db.test", format!("sslmode={mode}&{strangers}"), "UnknownIssuer").await;
        // The public authorities do not know it either.
        refused("db.test", format!("sslmode={mode}"), "UnknownIssuer").await;
    }
    for mode in ["verify-full", "require"] {
        refused("127.0.0.1", format!("sslmode={mode}&{ca}"), "not valid for name").await;
        refused("other.test", format!("sslmode={mode}&{ca}"), "not valid for name").await;
    }
    refused("db.test", "sslmode=disable".into(), "no encryption").await;
    refused("db.test", String::new(), "no encryption").await;
    refused("db.test", "sslmode=prefer".into(), "sslmode").await;
    refused("db.test", format!("sslmode=verify-full&sslrootcert={}", escaped("/none")), "/none").await;
    let empty = authority.file().with_file_name("empty.pem");
    std::fs::write(&empty, "").unwrap();
    refused("db.test", format!("sslmode=verify-full&sslrootcert={}", escaped(empty)), "has no certificate").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_is_known_by_its_certificate_or_password() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let postgres = tokio::task::block_in_place(|| server(&authority));
    let ca = format!("sslmode=verify-full&sslrootcert={}", escaped(authority.file()));
    let as_user = |user: &str, more: &str| open(url(&postgres, user, "db.test", &format!("{ca}{more}")));
    let shows = |authority: &Authority, name: &str| {
        let pair = authority.issue(name, &[]);
        format!("&sslcert={}&sslkey={}", escaped(pair.certificate), escaped(pair.key))
    };
    assert_eq!(as_user("robot", &shows(&authority, "robot")).await, Ok(()));
    for (user, more) in [
        ("robot", String::new()),
        ("robot", shows(&authority, "somebody")),
        ("robot", shows(&stranger, "robot")),
        ("app:wrong", String::new()),
        ("app", String::new()),
    ] {
        let answer = as_user(user, &more).await;
        assert!(answer.is_err(), "{user}{more} got in");
        assert!(!answer.unwrap_err().contains("wrong"), "the password shows");
    }
}
