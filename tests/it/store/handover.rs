//! What a replica that stands still holds, others take from it; and locks are always taken in one order.

use super::*;

/// Flushes until it is done; answers how long that took.
async fn flushed(store: &SharedStore, from: u64, events: Vec<Event>) -> Duration {
    let begun = std::time::Instant::now();
    let batch = batch(from, events);
    eventually(Duration::from_secs(30), "the batch is written", async || store.flush(batch.clone()).await.ok()).await;
    begun.elapsed()
}

/// A connection beside the store's, without any limit of time, as one that a stopped replica leaves open.
async fn stranger(under: &Under) -> tokio_postgres::Client {
    let (client, connection) = tokio_postgres::connect(&under.settings.url, tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

async fn hasty() -> Under {
    let mut under = Under::postgres().await;
    under.settings.timeout_ms = 1_000;
    under.reopen().await;
    under
}

/// The server waits for ever for the rest of a COPY, and keeps the cursor's lock meanwhile: neither the statement's time
/// limit nor that of an idle transaction applies there.
#[tokio::test(flavor = "multi_thread")]
async fn a_flusher_that_stands_still_in_its_copy_is_ended() {
    let under = hasty().await;
    funded(&under, "u").await;
    let stopped = stranger(&under).await;
    stopped.batch_execute("BEGIN; SELECT FROM ledger_cursors WHERE shard = 0 FOR UPDATE").await.unwrap();
    let copy = stopped.copy_in::<_, Bytes>("COPY usage_logs FROM STDIN (FORMAT binary)").await.unwrap();
    let took = flushed(&under.store, 1, vec![settled("u", 2, 1, 10)]).await;
    assert!(took >= Duration::from_millis(500), "whoever is merely slow is left alone: {took:?}");
    drop(copy);
    assert!(stopped.simple_query("COMMIT").await.is_err(), "its transaction is over");
    assert_eq!(under.number("SELECT count(*) FROM usage_logs"), 1);
}

/// A replica that stands still between two statements, with an account's lock: the server ends its transaction.
#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_rests_is_ended() {
    let under = hasty().await;
    funded(&under, "u").await;
    let resting = stranger(&under).await;
    // As the store's own connections have it.
    resting.batch_execute("SET idle_in_transaction_session_timeout = 1000").await.unwrap();
    resting.batch_execute("BEGIN; SELECT FROM credits WHERE user_id = 'u' FOR UPDATE").await.unwrap();
    flushed(&under.store, 1, vec![settled("u", 2, 1, 10)]).await;
    assert!(resting.simple_query("COMMIT").await.is_err(), "its transaction is over");
}

/// failures 25 (litellm PR#9608): eight flushers and changers over the same accounts, in large batches of every order.
#[tokio::test(flavor = "multi_thread")]
async fn large_batches_and_changes_at_once_never_deadlock() {
    let under = Under::postgres().await;
    let names: Vec<String> = (0..20).map(|number| format!("user-{number:02}")).collect();
    for name in &names {
        funded(&under, name).await;
    }
    let mut tasks = tokio::task::JoinSet::new();
    for writer in 0..8_u32 {
        let (store, names) = (under.store.clone(), names.clone());
        tasks.spawn(async move {
            let mut order = names;
            order.rotate_left(writer as usize * 3 % 20);
            if writer % 2 == 0 {
                order.reverse();
            }
            for round in 0..10 {
                if writer >= 4 {
                    for name in &order {
                        store.add_change(change(name, grant(1), "")).await?;
                    }
                    continue;
                }
                // A shard of its own; repeats and holes do not matter here, locks do.
                let seq = |index: usize| 2 + round * 100 + u64::from(writer) + index as u64;
                let events = (0..100).map(|index| settled(&order[index % order.len()], seq(index), 1, 1)).collect();
                let from = Cursor { epoch: 0, counter: round };
                let batch = FlushBatch { shard: 1 + writer, from, to: round + 1, events, ..FlushBatch::default() };
                store.flush(batch).await?;
            }
            Ok::<(), StoreError>(())
        });
    }
    for answer in tasks.join_all().await {
        answer.unwrap();
    }
    assert_books(&under);
    assert_eq!(under.number("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"), 0);
}

/// failures 26: in a large batch only what the store refuses becomes a dead letter, and all of that.
#[tokio::test(flavor = "multi_thread")]
async fn poison_is_found_in_a_large_batch() {
    let under = Under::postgres().await;
    funded(&under, "u").await;
    under.poison("poison");
    let poisoned = [0_u64, 1, 2, 499, 700, 999];
    let events = (0..1_000)
        .map(|number| {
            let event = settled("u", number + 2, 1, 1);
            if !poisoned.contains(&number) {
                return event;
            }
            let usage = Usage { request_id: Uuid::now_v7(), model: Some("poison".into()), ..Usage::default() };
            Event { usage: usage.encode(), ..event }
        })
        .collect();
    let flushed = under.store.flush(batch(1, events)).await.unwrap();
    assert_eq!(flushed, Flushed { usage_rows: 994, dead_letters: 6 });
    let letters: Vec<String> = poisoned.iter().map(|number| format!("u|{}|refused", number + 2)).collect();
    assert_eq!(dead(&under), letters);
    assert_eq!(under.sql("SELECT balance, seq FROM credits"), ["4999000|1001"]);
    assert_books(&under);
}

/// Two replicas start at once on an empty database, each with a pool of its own.
#[tokio::test(flavor = "multi_thread")]
async fn replicas_that_start_at_once_share_an_empty_database() {
    let server = tokio::task::spawn_blocking(Postgres::start).await.unwrap();
    let settings = config::Store { url: server.url(), ..config::Store::default() };
    let opened =
        futures_util::future::join_all((0..4).map(|_| store::open(&settings, Path::new("/nonexistent")))).await;
    let stores: Vec<SharedStore> = opened.into_iter().map(|store| store.unwrap()).collect();
    for (number, store) in stores.iter().enumerate() {
        store.create_user(new_user(&format!("u{number}"), 1)).await.unwrap();
    }
    assert_eq!(stores[0].users(PageRequest::default()).await.unwrap().data.len(), 4);
    for store in stores {
        store.close().await;
    }
}
