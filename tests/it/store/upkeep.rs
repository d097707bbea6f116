//! Partitions made ahead, retention, dead letters; and the books, which stay right without the rows.

use faregate::store::Retention;
use faregate::store::notifications::{Marked, Notice, NoticeKind};
use faregate::store::upkeep::Pruned;

use super::usage_sums::roll_up;
use super::*;

suite!(
    old_usage_goes_and_the_books_stay,
    old_dead_letters_go_and_the_books_stay,
    dead_letters_come_in_pages,
    old_notifications_go,
    of_every_table_it_is_decided_what_stays,
);

/// A usage row of so many months ago: the time in its id is what counts.
fn months_ago(account: &str, seq: u64, micro: i64, months: i64) -> Event {
    let month = jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC).date().first_of_month();
    let then = month.checked_sub(jiff::Span::new().months(months)).unwrap().to_zoned(jiff::tz::TimeZone::UTC).unwrap();
    let ms = u64::try_from(then.timestamp().as_millisecond()).unwrap() + 1_000;
    let since = uuid::Timestamp::from_unix(uuid::NoContext, ms / 1_000, 0);
    let (request_id, output_tokens) = (Uuid::new_v7(since), 3);
    let usage =
        Usage { request_id, route: "chat".into(), status: 200, created_at_ms: ms, output_tokens, ..Usage::default() };
    Event { usage: usage.encode(), ..settled(account, seq, 1, micro) }
}

async fn old_usage_goes_and_the_books_stay(under: Under) {
    for name in ["a", "b"] {
        funded(&under, name).await;
    }
    let events = vec![
        months_ago("a", 2, 10, 14),
        months_ago("a", 3, 20, 3),
        months_ago("a", 4, 40, 2),
        months_ago("b", 2, 80, 3),
        settled("b", 3, 1, 160),
    ];
    under.store.flush(batch(2, events)).await.unwrap();
    let kept = async || under.number("SELECT count(*) FROM usage_logs");
    assert_eq!(under.store.keep(Retention::default()).await.unwrap(), Pruned::default());
    assert_eq!(kept().await, 5, "for ever");
    let retention = Retention { usage_months: 2, ..Retention::default() };
    assert_eq!(under.store.keep(retention).await.unwrap().usage_rows, 0, "not before it is added up by day");
    roll_up(&under).await;
    assert_eq!(under.store.keep(retention).await.unwrap().usage_rows, 3);
    assert_eq!(under.sql("SELECT user_id, seq FROM usage_logs ORDER BY user_id, seq"), ["a|4", "b|3"]);
    assert_eq!(under.sql("SELECT user_id, charged, rows FROM usage_pruned ORDER BY user_id"), ["a|30|2", "b|80|1"]);
    assert_eq!(under.store.keep(retention).await.unwrap(), Pruned::default(), "once");
    // What comes late for a month that is gone is written all the same, and goes the next time.
    under.store.flush(batch(3, vec![months_ago("a", 5, 320, 3)])).await.unwrap();
    roll_up(&under).await;
    assert_eq!(under.store.keep(retention).await.unwrap().usage_rows, 1);
    assert_eq!(under.sql("SELECT charged, rows FROM usage_pruned WHERE user_id = 'a'"), ["350|3"]);
    let wrong = under.sql(
        "SELECT c.user_id FROM credits AS c WHERE charged <>
            (SELECT coalesce(sum(u.charged), 0) FROM usage_logs AS u WHERE u.user_id = c.user_id)
            + (SELECT coalesce(sum(p.charged), 0) FROM usage_pruned AS p WHERE p.user_id = c.user_id)",
    );
    assert_eq!(wrong, Vec::<String>::new());
    assert_books(&under);
}

async fn old_dead_letters_go_and_the_books_stay(under: Under) {
    funded(&under, "u").await;
    let garbage = Event { usage: Bytes::from_static(b"\xc1 no usage"), ..settled("u", 2, 1, 30) };
    // A misfit's usage is a row: the letter stands for nothing.
    let misfit = settled("u", 3, 1, 4_999_980);
    under.store.flush(batch(1, vec![garbage, misfit, settled("ghost", 1, 1, 5)])).await.unwrap();
    assert_eq!(dead(&under), ["ghost|1|unknown_account", "u|2|unreadable_usage", "u|3|misfit"]);
    let retention = Retention { dead_letter_days: 2, ..Retention::default() };
    assert_eq!(under.store.keep(retention).await.unwrap(), Pruned::default());
    under.age("dead_letters", "at", 2 * 24 * 3600 + 1);
    assert_eq!(under.store.keep(retention).await.unwrap(), Pruned { dead_letters: 3, ..Pruned::default() });
    assert_eq!(under.sql("SELECT user_id, charged, rows FROM usage_pruned"), ["u|30|1"]);
    assert!(dead(&under).is_empty());
}

/// failures 27 (litellm#37007): a list without pages exhausts memory.
async fn dead_letters_come_in_pages(under: Under) {
    funded(&under, "u").await;
    let ghosts = (1..=5).map(|seq| settled("ghost", seq, 1, 5)).collect();
    under.store.flush(batch(1, ghosts)).await.unwrap();
    let (mut found, mut cursor) = (Vec::new(), None);
    loop {
        let page = under.store.dead_letters(PageRequest { limit: 2, cursor }).await.unwrap();
        assert!(page.data.len() <= 2);
        found.extend(page.data);
        cursor = page.next;
        if cursor.is_none() {
            break;
        }
    }
    assert_eq!(found.iter().map(|letter| letter.seq).collect::<Vec<_>>(), [5, 4, 3, 2, 1]);
    let newest = &found[0];
    assert_eq!((newest.account.as_str(), newest.reason.as_str()), ("ghost", "unknown_account"));
    assert_eq!(Usage::decode(&newest.usage).unwrap().route, "chat");
    assert!(newest.event.contains("\"charged_micro\":5"), "{}", newest.event);
    assert!(under.store.dead_letters(PageRequest { limit: 501, cursor: None }).await.is_err());
    assert_eq!(under.store.dead_letter(found[3].id).await.unwrap().as_ref(), Some(&found[3]));
    assert_eq!(under.store.dead_letter(found[0].id + 1).await.unwrap(), None);
}

/// Read ones go so long after they were read, all others so long after they were raised; what waits for its delivery stays,
/// and so does the count of them.
async fn old_notifications_go(under: Under) {
    funded(&under, "u").await;
    let notice = |key: &str| Notice {
        user: id("u"),
        kind: NoticeKind::CreditsLow,
        data: serde_json::json!({}),
        dedupe_key: key.to_owned(),
    };
    under.store.open_outlet(true).await.unwrap();
    under.store.notify(notice("waits")).await.unwrap();
    under.store.open_outlet(false).await.unwrap();
    for key in ["read", "unread"] {
        under.store.notify(notice(key)).await.unwrap();
    }
    // As if it waited still.
    under.sql("UPDATE notifications SET due_at = created_at WHERE number = 1");
    under.store.mark_read(&id("u"), Marked::Numbers(vec![1, 2])).await.unwrap();
    let left = || under.sql("SELECT number FROM notifications ORDER BY number");
    let days = |days: u64| days * 24 * 3600 + 1;
    let retention = Retention { read_notification_days: 2, notification_days: 5, ..Retention::default() };
    under.age("notifications", "created_at", days(3));
    under.age("notifications", "read_at", days(1));
    assert_eq!(under.store.keep(retention).await.unwrap(), Pruned::default());
    under.age("notifications", "read_at", days(1));
    assert_eq!(under.store.keep(Retention::default()).await.unwrap(), Pruned::default(), "for ever");
    assert_eq!(under.store.keep(retention).await.unwrap(), Pruned { notifications: 1, ..Pruned::default() });
    assert_eq!(left(), ["1", "3"]);
    under.age("notifications", "created_at", days(2));
    assert_eq!(under.store.keep(retention).await.unwrap(), Pruned { notifications: 1, ..Pruned::default() });
    assert_eq!(left(), ["1"]);
    under.store.notify(notice("next")).await.unwrap();
    assert_eq!(left(), ["1", "4"], "numbers go on");
}

/// What keeps each table from growing for ever, or that it is the record. A new table needs an answer here.
const KEPT: &[(&str, &str)] = &[
    ("api_keys", "record"),
    ("audit_log", "record"),
    ("auth_events", "prune: processed after a time"),
    ("auto_topups", "one a user"),
    ("billing_accounts", "one a user"),
    ("billing_calls", "prune: a week"),
    ("billing_events", "record; prune: those that changed nothing after 90 days"),
    ("billing_reconciliation", "one row"),
    ("checkouts", "record"),
    ("credit_changes", "record"),
    ("credit_grants", "record"),
    ("credits", "one a user"),
    ("dead_letters", "keep: store.dead_letter_retention_days"),
    ("experiment_users", "one a user and experiment"),
    ("feedback", "record"),
    ("fraud_actions", "one a user"),
    ("fraud_cards", "one a user and card"),
    ("fraud_cursor", "one row"),
    ("fraud_signals", "record"),
    ("fraud_signups", "pruned by the watch"),
    ("idempotency_keys", "prune: a day"),
    ("identity_changes", "prune: a day"),
    ("identity_counter", "one row"),
    ("key_holds", "swept: a dead process's after minutes"),
    ("ledger_cursors", "one a shard"),
    ("ledger_folds", "one a shard, while it is folded"),
    ("ledger_journal", "deleted once folded"),
    ("ledger_owners", "one a process that runs or died lately"),
    ("ledger_records", "prune: a day after they end; 1,000 open ones an account"),
    ("ledger_sessions", "prune: 30 days"),
    ("notification_outlet", "one row"),
    ("notifications", "keep: store.notification_retention_days"),
    ("page_sessions", "the newest of a user, deleted when they expire"),
    ("purchase_grants", "record"),
    ("purchases", "record"),
    ("refinery_schema_history", "one a step of the schema"),
    ("sign_in_links", "the newest of a user, deleted when they expire"),
    ("signup_claims", "one an address"),
    ("subscriptions", "one a user"),
    ("topups", "record"),
    ("usage_days", "one a user, day, route, key and one of fifty models"),
    ("usage_logs", "keep: store.usage_retention_months"),
    ("usage_pruned", "one a user"),
    ("usage_rolled", "one a user"),
    ("users", "record"),
];

async fn of_every_table_it_is_decided_what_stays(under: Under) {
    let tables = under.sql(match under.server {
        None => "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%' ORDER BY name",
        Some(_) => {
            "SELECT c.relname FROM pg_class AS c WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p')
                AND NOT c.relispartition ORDER BY c.relname COLLATE \"C\""
        }
    });
    let decided = |table: &String| KEPT.iter().any(|(name, _)| name == table);
    let open: Vec<&String> = tables.iter().filter(|table| !decided(table)).collect();
    assert!(open.is_empty(), "may these grow for ever? {open:?}");
    if under.server.is_none() {
        let postgres_only = |name: &str| name == "identity_counter";
        let there = |name: &str| postgres_only(name) || tables.iter().any(|table| table == name);
        let gone: Vec<_> = KEPT.iter().filter(|(name, _)| !there(name)).collect();
        assert!(gone.is_empty(), "there are no such tables: {gone:?}");
    }
}

/// Partitions are there before their month; rows that came earlier, or before their partition, are moved into it.
#[tokio::test(flavor = "multi_thread")]
async fn months_get_their_partitions() {
    let under = Under::postgres().await;
    funded(&under, "u").await;
    let partitions = || {
        under.sql(
            "SELECT c.relname FROM pg_inherits JOIN pg_class AS c ON c.oid = inhrelid
                WHERE inhparent = 'usage_logs'::regclass AND c.relname <> 'usage_logs_other' ORDER BY 1",
        )
    };
    assert_eq!(partitions().len(), 4, "this month and three more: {:?}", partitions());
    // A month without a partition, and one whose partition comes too late.
    let newest = partitions().pop().unwrap();
    under.sql(&format!("DROP TABLE {newest}"));
    let events = vec![months_ago("u", 2, 1, 5), months_ago("u", 3, 2, -3), settled("u", 4, 1, 4)];
    under.store.flush(batch(1, events)).await.unwrap();
    assert_eq!(under.number("SELECT count(*) FROM usage_logs_other"), 2);
    under.store.keep(Retention::default()).await.unwrap();
    assert_eq!(under.number("SELECT count(*) FROM usage_logs_other"), 0);
    assert_eq!(partitions().len(), 5, "{:?}", partitions());
    assert_eq!(partitions().pop().unwrap(), newest);
    assert_eq!(under.store.usage(&id("u"), PageRequest::default()).await.unwrap().data.len(), 3);
    // Their indexes are those of the others: a request id is unique, and its page is found.
    let again = Event { usage: settled("u", 4, 1, 4).usage, ..settled("u", 5, 1, 4) };
    let first = under.store.usage(&id("u"), PageRequest::default()).await.unwrap().data.pop().unwrap();
    let twice = Event { usage: first.usage.encode(), ..settled("u", 6, 1, 4) };
    let flushed = under.store.flush(batch(2, vec![again, twice])).await.unwrap();
    assert_eq!(flushed, Flushed { usage_rows: 1, dead_letters: 1 });
    assert_eq!(dead(&under), ["u|6|duplicate_request"]);
}

/// Several replicas look after the store at once, while others write.
#[tokio::test(flavor = "multi_thread")]
async fn upkeep_by_many_at_once_is_done_once() {
    let under = Under::postgres().await;
    funded(&under, "u").await;
    let events = (0..40).map(|number| months_ago("u", number + 2, 1, i64::try_from(number % 4).unwrap())).collect();
    under.store.flush(batch(1, events)).await.unwrap();
    roll_up(&under).await;
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let store = under.store.clone();
        tasks.spawn(async move {
            store.keep(Retention { usage_months: 1, dead_letter_days: 1, ..Retention::default() }).await
        });
    }
    let store = under.store.clone();
    let writing = async {
        for number in 0..20 {
            store.flush(batch(2 + number, vec![settled("u", 42 + number, 1, 1)])).await.unwrap();
        }
    };
    let (done, ()) = tokio::join!(tasks.join_all(), writing);
    let rows: u64 = done.into_iter().map(|pruned| pruned.unwrap().usage_rows).sum();
    assert_eq!(rows, 20, "two of the four months are past their time");
    assert_eq!(under.sql("SELECT charged, rows FROM usage_pruned"), ["20|20"]);
    assert_eq!(under.number("SELECT count(*) FROM usage_logs"), 40);
}
