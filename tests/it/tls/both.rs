//! The whole gateway with nothing but TLS between it and its servers.

use std::time::Duration;

use super::{escaped, postgres, redis};
use crate::faults::ask;
use crate::support::{Authority, Faregate, Options, Sim};

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_serves_over_tls_to_postgres_and_redis() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let (store, ledger) =
        tokio::task::block_in_place(|| (postgres::server(&authority), redis::server(&authority, false)));
    let sim = Sim::start();
    let app = format!("app:{}", escaped(postgres::PASSWORD));
    let options = |store_ca: &Authority, ledger_ca: &Authority| {
        let query = format!("sslmode=verify-full&sslrootcert={}", escaped(store_ca.file()));
        Options::new()
            .set("plans.free.signup_credits", 0)
            .set("ledger.ca_file", ledger_ca.file().display())
            .upstream(sim.url())
            .ledger(redis::url(&ledger))
            .store(postgres::url(&store, &app, "db.test", &query))
    };
    let mut gate = Faregate::start(options(&authority, &authority));
    let key = gate.user("ann", "5").await;
    for _ in 0..3 {
        let answer = gate.http.post(&gate.url("/v1/chat/completions"), &key, &ask(false, "")).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    gate.usage_of("ann", 3).await;
    assert_eq!(gate.available("ann").await, 2.0);
    tokio::task::block_in_place(|| gate.audit().unwrap());
    let encrypted =
        "SELECT count(*) > 0, bool_and(ssl) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE usename = 'app'";
    assert_eq!(store.query(encrypted), ["t|t"]);
    assert!(tokio::task::block_in_place(|| gate.terminate()).success());
    assert!(!gate.output().contains("NOPERM"), "{}", gate.output());

    // It ends, and says why, where either server is somebody else.
    for (store_ca, ledger_ca) in [(&stranger, &authority), (&authority, &stranger)] {
        let mut gate = Faregate::launch(options(store_ca, ledger_ca));
        let ended = tokio::task::block_in_place(|| gate.wait(Duration::from_secs(30)));
        assert!(!ended.success());
        assert!(gate.output().contains("UnknownIssuer"), "{}", gate.output());
        assert!(!gate.output().contains("p@ss"), "a password shows");
    }
}
