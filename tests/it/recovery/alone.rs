//! The embedded ledger over Postgres: one process has the store to itself.

use std::process::Command;

use crate::faults::ask;
use crate::support::{Faregate, Options, Postgres, Sim};

/// A command as another machine runs it: the same store, a data directory of its own.
fn elsewhere(postgres: &Postgres) -> (String, bool) {
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_faregate"));
    command.env_clear().env("FAREGATE_STORE_URL", postgres.url()).env("FAREGATE_DATA_DIR", dir.path());
    let output = command.args(["balance", "ann"]).output().unwrap();
    (String::from_utf8_lossy(&output.stderr).into_owned(), output.status.success())
}

/// failures 5, 6: a second ledger over one store would spend everything twice. A command on another machine leaves a running
/// gateway alone, and says why; once the gateway ended it is carried out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_elsewhere_leaves_a_running_gateway_alone() {
    let (sim, postgres) = tokio::task::block_in_place(|| (Sim::start(), Postgres::start()));
    let options = Options::new().set("plans.free.signup_credits", 0).upstream(sim.url()).store(postgres.url());
    let mut gate = tokio::task::block_in_place(|| Faregate::start(options));
    let key = gate.user("ann", "3").await;
    let (told, done) = tokio::task::block_in_place(|| elsewhere(&postgres));
    assert!(!done && told.contains("a gateway elsewhere has this store to itself"), "{told}");
    let answer = gate.http.post(&gate.url("/v1/chat/completions"), &key, &ask(false, "")).await;
    assert_eq!(answer.status, 200, "the gateway goes on: {}", answer.text());
    gate.usage_of("ann", 1).await;
    assert!(tokio::task::block_in_place(|| gate.terminate()).success());
    let (told, done) = tokio::task::block_in_place(|| elsewhere(&postgres));
    assert!(done, "{told}");
    // Its own commands need not wait until it is forgotten.
    tokio::task::block_in_place(|| {
        gate.restart();
        gate.kill9();
        let (_, told, done) = gate.command(&["balance", "ann"]);
        assert!(done, "{told}");
    });
}
