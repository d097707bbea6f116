//! Entries of the ledger's log that cannot be read: each becomes a dead letter with its bytes, and stops nothing behind it.

use std::time::Duration;

use super::Scene;
use super::load::Load;
use crate::recovery::exact;
use crate::support::{Options, Redis, eventually, fault_rounds};

/// Adds an entry to the log as a batch does, with its number counted, but with these bytes.
fn poison(redis: &Redis, bytes: &str) {
    let meta = redis.command(&["KEYS", "fg:*:meta"]);
    let events = redis.command(&["KEYS", "fg:*:events"]).lines().max().unwrap().to_owned();
    let script = "local meta = cmsgpack.unpack(redis.call('GET', KEYS[1]))
        meta[3] = meta[3] + 1
        redis.call('XADD', KEYS[2], string.format('%.0f-0', meta[3]), 'b', ARGV[1])
        redis.call('SET', KEYS[1], cmsgpack.pack(meta))
        return meta[3]";
    let counter = redis.command(&["EVAL", script, "2", &meta, &events, bytes]);
    assert!(counter.parse::<u64>().is_ok(), "{counter}");
}

async fn letters(scene: &Scene) -> Vec<String> {
    let page = scene.gate.admin(hyper::Method::GET, "/admin/v1/dead-letters?limit=500", None).await.json();
    let letters = page["data"].as_array().unwrap().iter();
    letters.map(|letter| format!("{} {} {}", letter["reason"], letter["user"], letter["raw"])).collect()
}

/// failures 26 (autumn e0aaf6725), for the log itself; base64 of `poison` and `stays` shows that the bytes are kept.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_entry_that_cannot_be_read_stops_nothing_behind_it() {
    let options = Options::new().set("ledger.settle_wait_ms", 60_000).set("ledger.heartbeat_interval_ms", 200);
    let mut scene = Scene::over(Some(Redis::durable()), options);
    let rounds = fault_rounds();
    for round in 0..rounds {
        let user = format!("ann-{round}");
        let key = scene.gate.user(&user, "1000000").await;
        let load = Load::start(&scene.gate.url(""), &key, 6);
        load.more(20).await;
        poison(scene.redis(), &format!("poison{round}"));
        load.more(20).await;
        eventually(Duration::from_secs(30), "it is a dead letter", async || {
            (letters(&scene).await.len() == 2 * round + 1).then_some(())
        })
        .await;
        // It survives in the log while the shard is opened anew: written once all the same, and a second one with it.
        scene.proxy().cut();
        poison(scene.redis(), &format!("stays{round}"));
        let meta = scene.redis().command(&["KEYS", "fg:*:meta"]);
        assert_eq!(scene.redis().command(&["DEL", &meta]), "1");
        load.more(20).await;
        exact(&scene.gate, &user, &[load.stop().await]).await;
        let letters = letters(&scene).await;
        assert_eq!(letters.len(), 2 * (round + 1), "{letters:?}");
    }
    let all = letters(&scene).await;
    assert!(all.contains(&r#""unreadable_entry" "" "cG9pc29uMA==""#.to_owned()), "{all:?}");
    assert!(all.contains(&r#""unreadable_entry" "" "c3RheXMw""#.to_owned()), "{all:?}");
    assert!(scene.gate.metric("faregate_dead_letters_total").await >= 1.0);
    // No account was in them: the books balance.
    tokio::task::block_in_place(|| scene.gate.audit().unwrap());
}
