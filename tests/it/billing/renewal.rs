//! Money comes and goes while requests ride and spending is not in the store yet.

use std::time::Duration;

use http::{Method, StatusCode};
use serde_json::json;

use super::{SOON, Shop};
use crate::support::eventually;
use crate::support::http::request;

const DAY: i64 = 86_400;

/// The streams begin before the renewal and end after it.
#[tokio::test(flavor = "multi_thread")]
async fn a_renewal_amid_a_hundred_streams_fails_none_and_adds_up() {
    const STREAMS: usize = 100;
    let shop = Shop::open().await;
    shop.buy(json!({"plan": "pro"}), 1_000).await;
    let url = shop.faregate.url("/v1/chat/completions");
    // Forty pieces, a tenth of a second each.
    let body = json!({
        "model": "any@tokens=40,chunk-ms=100", "stream": true, "messages": [{"role": "user", "content": "hello"}],
    });
    let streams = (0..STREAMS).map(|_| {
        let (http, request) = (shop.faregate.http.clone(), request(Method::POST, &url, &shop.key, Some(&body)));
        tokio::spawn(async move { http.call(request).await })
    });
    let streams: Vec<_> = streams.collect();
    eventually(SOON, "all ride", || async {
        let user = shop.admin(Method::GET, "/admin/v1/users/ann", None).await.json();
        (user["credits"]["held"] == STREAMS).then_some(())
    })
    .await;
    shop.stripe.advance_by(31 * DAY + 7_200).unwrap();
    // A thousand new ones, and three hundred that move on: what is held stays with its streams.
    let renewed = eventually(SOON, "it is renewed", || async {
        let user = shop.admin(Method::GET, "/admin/v1/users/ann", None).await.json();
        (user["credits"]["available"] == 1_305).then_some(user)
    })
    .await;
    assert_eq!(renewed["credits"]["held"], STREAMS, "the streams still ride: {renewed}");
    for stream in streams {
        let answer = stream.await.unwrap();
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
        assert!(answer.text().trim_end().ends_with("data: [DONE]"));
    }
    shop.has(1_300).await;
    eventually(SOON, "nothing is held", || async {
        let user = shop.admin(Method::GET, "/admin/v1/users/ann", None).await.json();
        (user["credits"]["held"] == 0).then_some(())
    })
    .await;
    shop.has(1_300).await;
    shop.faregate.audit().unwrap();
}

/// While the flusher waits for its row nothing that was spent is in the store: what is decided meanwhile is decided on an
/// old state, and is exact all the same.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_decided_amid_unflushed_spending_is_exact() {
    let shop = Shop::open_replicated(1).await;
    shop.buy(json!({"plan": "pro"}), 1_000).await;
    shop.buy(json!({"pack": "small"}), 1_100).await;
    let spend = async |amount: i64| {
        let spent = shop.api(Method::POST, "/api/credits/deduct", Some(json!({"amount": amount}))).await;
        assert_eq!(spent.status, StatusCode::OK, "{}", spent.text());
    };
    let hold_back = || {
        let url = shop.servers.as_ref().unwrap().0.url();
        let (held, holding) = tokio::sync::oneshot::channel();
        let (release, released) = tokio::sync::oneshot::channel::<()>();
        let holder = tokio::spawn(async move {
            let (client, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await.unwrap();
            let connection = tokio::spawn(connection);
            client.batch_execute("BEGIN; SELECT * FROM ledger_cursors FOR UPDATE").await.unwrap();
            held.send(()).unwrap();
            let _ = tokio::time::timeout(Duration::from_secs(4), released).await;
            client.batch_execute("ROLLBACK").await.unwrap();
            drop(client);
            connection.await.unwrap().unwrap();
        });
        (holding, release, holder)
    };
    // A rollover: of 1,000 less 750 the 250 that are left move on, not the 300 that the store would have.
    let (holding, release, holder) = hold_back();
    holding.await.unwrap();
    spend(750).await;
    shop.stripe.advance_by(31 * DAY + 7_200).unwrap();
    shop.has(1_000 + 250 + 100).await;
    release.send(()).unwrap();
    holder.await.unwrap();
    shop.has(1_000 + 250 + 100).await;
    // A refund of the pack, all of which is there, and of the new month, of which 1,100 were spent.
    let (holding, release, holder) = hold_back();
    holding.await.unwrap();
    spend(1_100).await;
    let invoice =
        shop.stripe.objects(faregate_sim::stripe::Kind::Invoice).last().unwrap()["id"].as_str().unwrap().to_owned();
    shop.stripe.refund(&invoice, None).unwrap();
    let settled = || async { (shop.credits().await == (0, 1_000 - 150 - 100 - 5)).then_some(()) };
    eventually(SOON, "what was used is owed", settled).await;
    release.send(()).unwrap();
    holder.await.unwrap();
    eventually(SOON, "it stays so", settled).await;
    // A new purchase pays it, and the end of the subscription takes the rest of the plan.
    let ended = shop.api(Method::DELETE, "/api/billing/subscription?at=now", None).await;
    assert_eq!(ended.status, StatusCode::OK, "{}", ended.text());
    eventually(SOON, "it stays so", settled).await;
    shop.faregate.audit().unwrap();
}
