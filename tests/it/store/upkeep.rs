//! Partitions made ahead, retention, dead letters; and the books, which stay right without the rows.

use faregate::store::Retention;
use faregate::store::upkeep::Pruned;

use super::usage_sums::roll_up;
use super::*;

suite!(old_usage_goes_and_the_books_stay, old_dead_letters_go_and_the_books_stay, dead_letters_come_in_pages);

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
    let retention = Retention { usage_months: 2, dead_letter_days: 0 };
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
    let retention = Retention { usage_months: 0, dead_letter_days: 2 };
    assert_eq!(under.store.keep(retention).await.unwrap(), Pruned::default());
    under.age("dead_letters", "at", 2 * 24 * 3600 + 1);
    assert_eq!(under.store.keep(retention).await.unwrap(), Pruned { usage_rows: 0, dead_letters: 3 });
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
        tasks.spawn(async move { store.keep(Retention { usage_months: 1, dead_letter_days: 1 }).await });
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
