//! `rediss`, passwords and ACL users of `ledger.url`; Sentinels that want a password of their own.

use std::path::{Path, PathBuf};

use faregate::config;
use faregate::ledger::redis::OpenError;

use super::escaped;
use crate::redis_ledger::fixture::{Fixture, settings};
use crate::support::redis_sentinel::Guarded;
use crate::support::{Authority, Redis, Sentinels};

pub(super) const PASSWORD: &str = "p@ss:w/o#";
/// What docs/redis.md gives the gateway's user.
pub(super) const RIGHTS: &str = "resetchannels ~fg:* -@all +evalsha +script|load +info +scan +object|idletime +role +time \
    +del +exists +get +mget +mset +pexpire +set +unlink +sadd +scard +smembers +smismember +srandmember +srem +xadd +xrange \
    +xtrim +zadd +zrangebyscore +zrem";

/// A server with a certificate for 127.0.0.1 and an ACL user `gate`.
pub(super) fn server(authority: &Authority, must: bool) -> Redis {
    let certificate = authority.issue("redis", &["127.0.0.1"]);
    let password = format!(">{PASSWORD}");
    let mut user = vec!["--appendonly", "no", "--user", "gate", "on", &password];
    user.extend(RIGHTS.split_whitespace());
    Redis::secure(&certificate, &authority.file(), must, "of-the-tests", &user)
}

pub(super) fn url(redis: &Redis) -> String {
    format!("rediss://gate:{}@127.0.0.1:{}/", escaped(PASSWORD), redis.port())
}

fn with_ca(url: &str, ca: &Path) -> config::Ledger {
    config::Ledger { ca_file: Some(ca.to_owned()), ..settings(url) }
}

async fn open(settings: &config::Ledger) -> Result<Fixture, String> {
    Fixture::over(Default::default(), settings).await.map_err(|error: OpenError| error.to_string())
}

/// Whether a user can spend there.
async fn serves(settings: &config::Ledger, user: &str) {
    let fixture = open(settings).await.unwrap();
    let ann = fixture.account(user, 100);
    let hold = fixture.reserve(&ann, 10).await;
    fixture.settle(&ann, hold, 4).await;
    assert_eq!(fixture.balance(&ann).await.available.micro(), 96);
    fixture.shut_down().await;
}

async fn refused(settings: &config::Ledger, why: &str) {
    let answer = open(settings).await.map(drop);
    assert!(answer.as_ref().is_err_and(|said| said.contains(why)), "{why}: {answer:?}");
    assert!(!format!("{answer:?}").contains(PASSWORD), "the password shows");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_is_believed_by_its_certificate() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let redis = tokio::task::block_in_place(|| server(&authority, false));
    serves(&with_ca(&url(&redis), &authority.file()), "ann").await;
    refused(&with_ca(&url(&redis), &stranger.file()), "UnknownIssuer").await;
    refused(&settings(&url(&redis)), "UnknownIssuer").await;
    let renamed = url(&redis).replace("127.0.0.1", "localhost");
    refused(&with_ca(&renamed, &authority.file()), "not valid for name").await;
    refused(&settings(&url(&redis).replace("rediss", "redis")), "out of reach").await;
    refused(&with_ca(&url(&redis), Path::new("/none")), "ledger.ca_file").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_is_known_by_its_password_and_certificate() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let redis = tokio::task::block_in_place(|| server(&authority, true));
    let shows = |authority: &Authority, url: &str, ca: PathBuf| {
        let pair = authority.issue("gateway", &[]);
        let (client_certificate, client_key) = (Some(pair.certificate), Some(pair.key));
        config::Ledger { client_certificate, client_key, ..with_ca(url, &ca) }
    };
    serves(&shows(&authority, &url(&redis), authority.file()), "ann").await;
    // Its own default user, by the password alone.
    let plain = format!("rediss://:of-the-tests@127.0.0.1:{}/", redis.port());
    serves(&shows(&authority, &plain, authority.file()), "bob").await;
    refused(&with_ca(&url(&redis), &authority.file()), "out of reach").await;
    refused(&shows(&stranger, &url(&redis), authority.file()), "out of reach").await;
    for nobody in [plain.replace("of-the-tests", "wrong"), url(&redis).replace("gate:", "gateway:")] {
        refused(&shows(&authority, &nobody, authority.file()), "Password authentication failed").await;
    }
    let unnamed = format!("rediss://127.0.0.1:{}/", redis.port());
    refused(&shows(&authority, &unnamed, authority.file()), "NOAUTH").await;
    // A user who may not do what is needed is told so, by name.
    redis.command(&["ACL", "SETUSER", "gate", "-info"]);
    refused(&shows(&authority, &url(&redis), authority.file()), "info").await;
}

/// Their password is another one than that of the servers they watch.
#[tokio::test(flavor = "multi_thread")]
async fn sentinels_with_a_password_and_tls() {
    let authority = Authority::new();
    let certificate = authority.issue("servers", &["127.0.0.1"]);
    let passwords = ["of-the-data", "of-the-watch"];
    let file = authority.file();
    let guarded = Guarded { certificate: &certificate, authority: &file, passwords };
    let sentinels = tokio::task::block_in_place(|| Sentinels::guarded(&guarded));
    let url = |data: &str, query: &str| format!("rediss+sentinel://{data}{}/main?{query}", sentinels.hosts());
    let right = url(":of-the-data@", "sentinel_password=of-the-watch");
    serves(&with_ca(&right, &authority.file()), "ann").await;
    refused(&with_ca(&url(":of-the-data@", ""), &authority.file()), "NOAUTH").await;
    refused(
        &with_ca(&url(":of-the-data@", "sentinel_password=x"), &authority.file()),
        "Password authentication failed",
    )
    .await;
    refused(&with_ca(&url("", "sentinel_password=of-the-watch"), &authority.file()), "NOAUTH").await;
    refused(&with_ca(&right, &Authority::new().file()), "UnknownIssuer").await;
    refused(&settings(&right.replace("rediss", "redis")), "out of reach").await;
}

/// Words in capitals that are arguments or errors, or commands that only a Sentinel or a node of a Cluster is sent.
const OTHERS: [&str; 15] = [
    "asking",
    "busy",
    "cluster",
    "count",
    "gt",
    "idletime",
    "limit",
    "load",
    "match",
    "minid",
    "noreplicas",
    "nx",
    "sentinel",
    "slots",
    "xx",
];

/// The rights that the documentation names are all that scripts and commands need.
#[test]
fn the_rights_that_are_documented_are_enough() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut needed = std::collections::BTreeSet::new();
    for (folder, quote) in [("lua", "redis.call('"), ("src/ledger/redis", "\"")] {
        for entry in std::fs::read_dir(root.join(folder)).unwrap() {
            let Ok(text) = std::fs::read_to_string(entry.unwrap().path()) else { continue };
            let code = text.split("#[cfg(test)]").next().unwrap();
            for (at, _) in code.match_indices(quote) {
                let rest = &code[at + quote.len()..];
                let word: String = rest.chars().take_while(char::is_ascii_uppercase).collect();
                if word.len() > 1 && rest[word.len()..].starts_with(['\'', '"']) {
                    needed.insert(word.to_lowercase());
                }
            }
        }
    }
    assert!(needed.contains("xadd") && needed.contains("evalsha"), "{needed:?}");
    let named = |word: &String| {
        OTHERS.contains(&word.as_str())
            || RIGHTS.split_whitespace().any(|right| right[1..].split('|').next() == Some(word.as_str()))
    };
    let missing: Vec<_> = needed.iter().filter(|word| !named(word)).collect();
    assert!(missing.is_empty(), "neither a right nor known to need none: {missing:?}");
    let docs = std::fs::read_to_string(root.join("docs/redis.md")).unwrap();
    let docs = docs.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(docs.contains(RIGHTS), "docs/redis.md names other rights");
}
