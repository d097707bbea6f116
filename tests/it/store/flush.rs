//! What a flush writes: each event's effect once, whatever is wrong with another.

use super::*;

suite!(
    a_flush_is_written_exactly_once,
    a_poisoned_event_stops_none_behind_it,
    a_misfit_becomes_debt,
    repeats_are_not_applied_and_holes_are_reported,
    events_of_unknown_accounts_are_kept_as_dead_letters,
    billing_changes_take_effect_with_their_events,
    changes_that_the_ledger_could_not_apply_are_refused,
    usage_keeps_every_field,
    records_and_sessions_are_kept,
    a_new_epoch_begins_once,
    concurrent_writers_never_deadlock,
    of_flushers_at_once_one_wins,
);

/// failures 22 (litellm#33872, #35531): what was taken off the queue is written, once, also when the flusher tries again.
async fn a_flush_is_written_exactly_once(under: Under) {
    funded(&under, "u").await;
    let written = batch(1, vec![settled("u", 2, 1, 1_000_000), settled("u", 3, 1, 250_000)]);
    let flushed = under.store.flush(written.clone()).await.unwrap();
    assert_eq!(flushed, Flushed { usage_rows: 2, dead_letters: 0 });
    assert!(matches!(under.store.flush(written).await, Err(StoreError::CursorMoved)));
    let state = under.store.load_account(&id("u")).await.unwrap().unwrap();
    assert_eq!((state.seq, state.change, state.grants[0].remaining_micro), (3, 1, 3_750_000));
    assert_eq!(under.store.cursor(0).await.unwrap(), Cursor { epoch: 0, counter: 2 });
    let page = under.store.usage(&id("u"), PageRequest::default()).await.unwrap();
    assert_eq!(
        page.data.iter().map(|row| (row.seq, row.charged.micro())).collect::<Vec<_>>(),
        [(3, 250_000), (2, 1_000_000)]
    );
    assert_eq!(under.sql("SELECT balance, charged FROM credits"), ["3750000|1250000"]);
    assert!(dead(&under).is_empty());
    assert_books(&under);
}

/// failures 26 (autumn e0aaf6725): one row that cannot be written does not take the batch with it.
async fn a_poisoned_event_stops_none_behind_it(under: Under) {
    for name in ["a", "b"] {
        funded(&under, name).await;
    }
    let good = settled("a", 2, 1, 10);
    let duplicate = Event { usage: good.usage.clone(), ..settled("a", 3, 1, 20) };
    let garbage = Event { usage: Bytes::from_static(b"\xc1 no usage"), ..settled("a", 4, 1, 30) };
    let absurd = Usage { request_id: Uuid::now_v7(), output_tokens: u64::MAX, ..Usage::default() };
    let absurd = Event { usage: absurd.encode(), ..settled("b", 2, 1, 40) };
    let events = vec![good, duplicate, garbage, absurd, settled("b", 3, 1, 50)];
    let flushed = under.store.flush(batch(2, events)).await.unwrap();
    assert_eq!(flushed, Flushed { usage_rows: 2, dead_letters: 3 });
    assert_eq!(dead(&under), ["a|3|duplicate_request", "a|4|unreadable_usage", "b|2|unreadable_usage"]);
    assert_eq!(under.sql("SELECT balance FROM credits ORDER BY user_id"), ["4999940", "4999910"]);

    // A row that the store itself refuses.
    under.poison("poison");
    let poisoned = Usage { request_id: Uuid::now_v7(), model: Some("poison".into()), ..Usage::default() };
    let poisoned = Event { usage: poisoned.encode(), ..settled("a", 5, 1, 60) };
    let events = vec![settled("b", 4, 1, 70), poisoned, settled("a", 6, 1, 80), settled("b", 5, 1, 90)];
    let flushed = under.store.flush(batch(3, events)).await.unwrap();
    assert_eq!(flushed, Flushed { usage_rows: 3, dead_letters: 1 });
    assert!(dead(&under).contains(&"a|5|refused".to_owned()));
    assert_eq!(under.sql("SELECT balance, seq FROM credits ORDER BY user_id"), ["4999800|6", "4999750|5"]);
    assert_books(&under);
}

async fn a_misfit_becomes_debt(under: Under) {
    funded(&under, "u").await;
    let events = vec![settled("u", 2, 1, 4_000_000), settled("u", 3, 1, 1_500_000)];
    let flushed = under.store.flush(batch(1, events)).await.unwrap();
    assert_eq!(flushed, Flushed { usage_rows: 2, dead_letters: 1 });
    assert_eq!(dead(&under), ["u|3|misfit"]);
    let state = under.store.load_account(&id("u")).await.unwrap().unwrap();
    assert_eq!((state.debt_micro, state.grants.len()), (500_000, 0));
    assert_books(&under);
    // What the ledger never had cannot be drawn either, nor can more be paid back than is owed.
    let mut ghost = settled("u", 4, 9, 7);
    ghost.debt_delta = 0;
    let paid = Event { debt_delta: -600_000, ..event("u", 5) };
    under.store.flush(batch(2, vec![ghost, paid])).await.unwrap();
    assert_eq!(dead(&under)[1..], ["u|4|unknown_grant", "u|5|misfit"]);
    assert_eq!(under.store.load_account(&id("u")).await.unwrap().unwrap().debt_micro, 0);
}

async fn repeats_are_not_applied_and_holes_are_reported(under: Under) {
    funded(&under, "u").await;
    let first = settled("u", 2, 1, 10);
    let events = vec![first.clone(), first, settled("u", 4, 1, 30)];
    let flushed = under.store.flush(batch(1, events)).await.unwrap();
    assert_eq!(flushed, Flushed { usage_rows: 2, dead_letters: 2 });
    assert_eq!(dead(&under), ["u|2|repeat", "u|4|hole"]);
    assert_eq!(under.sql("SELECT balance, seq FROM credits"), ["4999960|4"]);
    assert_books(&under);
}

async fn events_of_unknown_accounts_are_kept_as_dead_letters(under: Under) {
    funded(&under, "u").await;
    let flushed = under.store.flush(batch(1, vec![settled("ghost", 1, 1, 5), settled("u", 2, 1, 5)])).await.unwrap();
    assert_eq!(flushed, Flushed { usage_rows: 1, dead_letters: 1 });
    let kept = under.sql("SELECT reason, event FROM dead_letters");
    assert!(kept[0].starts_with("unknown_account|") && kept[0].contains("\"charged_micro\""), "{kept:?}");
}

async fn billing_changes_take_effect_with_their_events(under: Under) {
    funded(&under, "u").await;
    let scope = Scope::Grant { grant: GrantId(1) };
    for wanted in [
        Change::Freeze { scope },
        Change::Unfreeze { scope },
        Change::Rollover { from: GrantId(1), cap_micro: 2_000_000, kind: GrantKind::Plan, expires_at: 5_000_000 },
        Change::Revoke { grant: GrantId(4), amount_micro: Some(500_000) },
    ] {
        under.store.add_change(change("u", wanted, "")).await.unwrap();
    }
    under.store.flush(batch(1, vec![applied("u", 2, 2)])).await.unwrap();
    assert!(under.store.load_account(&id("u")).await.unwrap().unwrap().grants[0].frozen);
    let delta = |grant, micro| Delta { grant: GrantId(grant), micro };
    let rolled = Event {
        written_off: credits(3_000_000),
        deltas: [delta(1, -5_000_000), delta(4, 2_000_000)].into_iter().collect(),
        ..applied("u", 4, 4)
    };
    let revoked = Event {
        written_off: credits(500_000),
        deltas: [delta(4, -500_000)].into_iter().collect(),
        ..applied("u", 5, 5)
    };
    under.store.flush(batch(2, vec![applied("u", 3, 3), rolled, revoked])).await.unwrap();
    let state = under.store.load_account(&id("u")).await.unwrap().unwrap();
    assert_eq!(state.grants.len(), 1);
    let left = &state.grants[0];
    assert_eq!(
        (left.id.0, left.remaining_micro, left.expires_at, left.kind),
        (4, 1_500_000, 5_000_000, GrantKind::Plan)
    );
    assert_eq!(under.store.grants(&id("u")).await.unwrap()[0].amount, Credits::whole(2));
    assert!(dead(&under).is_empty(), "{:?}", dead(&under));
    assert_books(&under);
}

async fn changes_that_the_ledger_could_not_apply_are_refused(under: Under) {
    funded(&under, "u").await;
    let limit = Credits::INPUT_LIMIT.micro();
    let refused = async |wanted: Change| under.store.add_change(change("u", wanted, "")).await.unwrap_err();
    assert!(matches!(refused(grant(limit - 5_000_000 + 1)).await, StoreError::Conflict(_)));
    assert!(matches!(refused(grant(0)).await, StoreError::Invalid(_)));
    assert!(matches!(refused(grant(-1)).await, StoreError::Invalid(_)));
    let revoke = |grant, amount_micro| Change::Revoke { grant: GrantId(grant), amount_micro };
    assert!(matches!(refused(revoke(2, None)).await, StoreError::NotFound(_)));
    assert!(matches!(refused(revoke(1, Some(5_000_001))).await, StoreError::Conflict(_)));
    let frozen = Change::Freeze { scope: Scope::Grant { grant: GrantId(7) } };
    assert!(matches!(refused(frozen).await, StoreError::NotFound(_)));
    let nobody = under.store.add_change(change("nobody", grant(1), "")).await;
    assert!(matches!(nobody, Err(StoreError::NotFound(_))), "{nobody:?}");
    // Refused changes take no number, and what fits to the last micro-credit is accepted.
    assert_eq!(under.store.add_change(change("u", grant(limit - 5_000_000), "")).await.unwrap().number, 2);
    assert!(matches!(refused(grant(1)).await, StoreError::Conflict(_)));
    assert_eq!(under.number("SELECT count(*) FROM audit_log WHERE action LIKE 'credits.%'"), 2);
}

async fn usage_keeps_every_field(under: Under) {
    funded(&under, "u").await;
    let usage = Usage {
        request_id: Uuid::now_v7(),
        client_request_id: Some("theirs".into()),
        key_id: Some("k1".into()),
        route: "anthropic".into(),
        upstream: Some("main".into()),
        model: Some("claude".into()),
        status: 499,
        input_tokens: 1 << 40,
        cached_tokens: 2,
        output_tokens: 3,
        estimated: true,
        streamed: true,
        latency_ms: 4,
        created_at_ms: 1_760_000_000_123,
        reason: Some("a reason".into()),
    };
    // A NUL and endless names come from clients and upstreams.
    let hostile = Usage { request_id: Uuid::nil(), model: Some(format!("a\0{}", "x".repeat(5_000))), ..usage.clone() };
    let row = |usage: &Usage, seq| Event { usage: usage.encode(), ..settled("u", seq, 1, 9) };
    let events = vec![row(&usage, 2), row(&hostile, 3)];
    let flushed = under.store.flush(batch(1, events)).await.unwrap();
    assert_eq!(flushed, Flushed { usage_rows: 2, dead_letters: 0 });
    let rows = under.store.usage(&id("u"), PageRequest::default()).await.unwrap().data;
    assert_eq!(rows[1].usage, usage);
    assert_eq!((rows[1].charged, rows[1].seq, &rows[1].account), (credits(9), 2, &id("u")));
    assert!(rows[0].usage.model.as_ref().unwrap().len() < 600);
}

async fn records_and_sessions_are_kept(under: Under) {
    funded(&under, "u").await;
    let held = record(7, u64::from(u32::MAX) * 1_000_000, Some(10));
    let mut first = batch(1, vec![]);
    first.records = vec![(id("u"), held.clone()), (id("ghost"), record(8, 1, None))];
    first.sessions = vec![(u64::MAX, 3), (1, 9)];
    under.store.flush(first).await.unwrap();
    assert_eq!(under.store.load_account(&id("u")).await.unwrap().unwrap().records, std::slice::from_ref(&held));
    assert_eq!(under.store.record_account(held.id.0).await.unwrap(), Some(id("u")));
    assert_eq!(under.store.record_account(Uuid::from_u128(8)).await.unwrap(), None);
    let finished = record(7, held.until, None);
    let mut second = batch(2, vec![]);
    second.records = vec![(id("u"), finished.clone())];
    second.sessions = vec![(u64::MAX, 2), (1, 12)];
    under.store.flush(second).await.unwrap();
    assert_eq!(under.store.load_account(&id("u")).await.unwrap().unwrap().records, [finished]);
    assert_eq!(under.sql("SELECT session, batch FROM ledger_sessions ORDER BY batch"), ["-1|3", "1|12"]);
}

async fn a_new_epoch_begins_once(under: Under) {
    funded(&under, "u").await;
    let old = under.store.cursor(0).await.unwrap();
    let raised = under.store.raise_epoch(0, old).await.unwrap();
    assert_eq!(raised, Cursor { epoch: 1, counter: 0 });
    assert!(matches!(under.store.raise_epoch(0, old).await, Err(StoreError::CursorMoved)));
    assert!(matches!(under.store.flush(batch(1, vec![])).await, Err(StoreError::CursorMoved)));
    let anew = FlushBatch { from: raised, to: 1, events: vec![settled("u", 2, 1, 5)], ..FlushBatch::default() };
    assert_eq!(under.store.flush(anew).await.unwrap().usage_rows, 1);
    assert_eq!(under.store.cursor(0).await.unwrap(), Cursor { epoch: 1, counter: 1 });
    // Shards know nothing of each other.
    assert_eq!(under.store.cursor(1).await.unwrap(), Cursor::default());
    assert_eq!(under.store.raise_epoch(1, Cursor::default()).await.unwrap(), Cursor { epoch: 1, counter: 0 });
}

/// failures 25 (litellm PR#9608): 60 writers over the same accounts, in every order, and none deadlocks; half of the
/// flushes have to be done event by event.
async fn concurrent_writers_never_deadlock(under: Under) {
    let names = ["a", "b", "c", "d"];
    for name in names {
        funded(&under, name).await;
    }
    under.poison("poison");
    let mut tasks = tokio::task::JoinSet::new();
    for writer in 0..60_u32 {
        let store = under.store.clone();
        tasks.spawn(async move {
            if writer % 2 == 0 {
                let name = names[writer as usize % 4];
                return store.add_change(change(name, grant(1), "")).await.map(drop);
            }
            // A shard of its own; repeats and holes do not matter here, locks do.
            let mut order = names;
            order.rotate_left(writer as usize / 2 % 4);
            if writer % 3 == 0 {
                order.reverse();
            }
            let mut events: Vec<Event> = order.iter().map(|name| settled(name, 1 + u64::from(writer), 1, 1)).collect();
            if writer % 4 == 1 {
                let usage = Usage { request_id: Uuid::now_v7(), model: Some("poison".into()), ..Usage::default() };
                events.push(Event { usage: usage.encode(), ..settled(order[0], 1_000 + u64::from(writer), 1, 1) });
            }
            store.flush(FlushBatch { shard: writer, to: 1, events, ..FlushBatch::default() }).await.map(drop)
        });
    }
    for answer in tasks.join_all().await {
        answer.unwrap();
    }
    for name in names {
        let changes = under.store.changes_after(&id(name), 1).await.unwrap();
        let numbers: Vec<u64> = changes.iter().map(|row| row.number).collect();
        assert_eq!(numbers, (2..2 + numbers.len() as u64).collect::<Vec<_>>());
    }
    assert_books(&under);
}

/// Replicas flush the same shard: the cursor lets one of them write, the others learn that it moved.
async fn of_flushers_at_once_one_wins(under: Under) {
    funded(&under, "u").await;
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let (store, work) = (under.store.clone(), batch(1, vec![settled("u", 2, 1, 10)]));
        tasks.spawn(async move { store.flush(work).await });
    }
    let answers = tasks.join_all().await;
    assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 1, "{answers:?}");
    assert!(answers.iter().all(|answer| matches!(answer, Ok(_) | Err(StoreError::CursorMoved))), "{answers:?}");
    assert_eq!(under.sql("SELECT seq, balance FROM credits"), ["2|4999990"]);
    assert!(dead(&under).is_empty());
}
