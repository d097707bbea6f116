//! Usage by day: exactly once, bounded, and never by reading all rows.

use std::collections::BTreeMap;
use std::time::Instant;

use bytes::Bytes;
use faregate::ledger::{AccountId, Event};
use faregate::store::books::UsageSpan;
use faregate::store::usage_sums::{Dimension, SumsRequest, UsageSum};
use faregate::store::{PageRequest, StoreError, postgres, sqlite};
use faregate::usage::Usage;
use uuid::Uuid;

use super::{Under, batch, event, funded, id, settled};

suite!(
    usage_is_added_up_once,
    reports_come_in_pages_and_by_what_is_asked,
    a_clients_model_names_are_bounded,
    adding_up_at_once_counts_once,
    the_books_are_summed_up_in_pieces,
);

const DAY: i32 = 20_000;

fn used(account: &str, seq: u64, day: i32, model: Option<&str>, micro: i64) -> Event {
    let usage = Usage {
        request_id: Uuid::now_v7(),
        key_id: seq.is_multiple_of(2).then(|| "k1".to_owned()),
        route: "chat".into(),
        model: model.map(str::to_owned),
        status: match seq % 5 {
            0 => 500,
            1 => 429,
            _ => 200,
        },
        input_tokens: 10,
        cached_tokens: 4,
        output_tokens: seq,
        estimated: seq.is_multiple_of(3),
        created_at_ms: u64::try_from(day).unwrap() * 86_400_000 + seq,
        ..Usage::default()
    };
    Event { usage: usage.encode(), ..settled(account, seq, 1, micro) }
}

pub(super) async fn roll_up(under: &Under) {
    let mut after: Option<AccountId> = None;
    loop {
        after = under.store.roll_up(None, after.as_ref()).await.unwrap().last;
        if after.is_none() {
            return;
        }
    }
}

fn asked(by: &[Dimension]) -> SumsRequest {
    let page = PageRequest { limit: 500, cursor: None };
    SumsRequest { account: None, plan: None, from: None, to: None, by: by.to_vec(), page }
}

/// By the dimensions' values: requests and micro-credits.
async fn sums(under: &Under, request: SumsRequest) -> BTreeMap<String, (i64, i64)> {
    let page = under.store.usage_sums(request).await.unwrap();
    assert_eq!(page.next, None);
    page.data.into_iter().map(|sum| (sum.of.join(" "), (sum.figures.requests, sum.figures.charged))).collect()
}

fn map(pairs: &[(&str, (i64, i64))]) -> BTreeMap<String, (i64, i64)> {
    pairs.iter().map(|(key, sums)| ((*key).to_owned(), *sums)).collect()
}

async fn usage_is_added_up_once(under: Under) {
    for name in ["a", "b"] {
        funded(&under, name).await;
    }
    let events = vec![
        used("a", 2, DAY, Some("m"), 10),
        used("a", 3, DAY, Some("m"), 20),
        used("b", 2, DAY, None, 5),
        event("b", 3),
    ];
    under.store.flush(batch(2, events)).await.unwrap();
    roll_up(&under).await;
    let by_model = [Dimension::Day, Dimension::User, Dimension::Model];
    let expected = map(&[("20000 a m", (2, 30)), ("20000 b ", (1, 5))]);
    assert_eq!(sums(&under, asked(&by_model)).await, expected);
    // Again, and after nothing but a billing event: nothing is counted twice.
    under.store.flush(batch(3, vec![event("a", 4)])).await.unwrap();
    roll_up(&under).await;
    assert_eq!(sums(&under, asked(&by_model)).await, expected);
    under
        .store
        .flush(batch(4, vec![used("a", 5, DAY, Some("m"), 1), used("a", 6, DAY + 1, Some("n"), 2)]))
        .await
        .unwrap();
    assert_eq!(under.store.roll_up(Some(&id("b")), None).await.unwrap().passed, 0);
    assert_eq!(under.store.roll_up(Some(&id("a")), None).await.unwrap().passed, 2);
    let expected = map(&[("20000 a m", (3, 31)), ("20000 b ", (1, 5)), ("20001 a n", (1, 2))]);
    assert_eq!(sums(&under, asked(&by_model)).await, expected);
    // The rows go one day; their sums stay.
    under.sql("DELETE FROM usage_logs");
    roll_up(&under).await;
    assert_eq!(sums(&under, asked(&by_model)).await, expected);
}

async fn reports_come_in_pages_and_by_what_is_asked(under: Under) {
    for name in ["a", "b"] {
        funded(&under, name).await;
    }
    under.sql("UPDATE users SET plan = 'pro' WHERE id = 'b'");
    let mut events = Vec::new();
    for seq in 2..=31 {
        let model = format!("m{}", seq % 3);
        events.push(used("a", seq, DAY + i32::try_from(seq % 4).unwrap(), Some(&model), 1));
        events.push(used("b", seq, DAY, Some("m'\"x"), 2));
    }
    under.store.flush(batch(2, events)).await.unwrap();
    roll_up(&under).await;
    let by = [Dimension::Day, Dimension::User, Dimension::Model, Dimension::Route, Dimension::Key];
    let whole = under.store.usage_sums(asked(&by)).await.unwrap().data;
    let (mut paged, mut cursor): (Vec<UsageSum>, _) = (Vec::new(), None);
    loop {
        let page = PageRequest { limit: 7, cursor };
        let page = under.store.usage_sums(SumsRequest { page, ..asked(&by) }).await.unwrap();
        assert!(page.data.len() <= 7);
        paged.extend(page.data);
        cursor = page.next;
        if cursor.is_none() {
            break;
        }
    }
    assert_eq!(paged, whole);
    assert!(whole.len() == 14 && whole.is_sorted_by_key(|sum| sum.of.clone()), "{whole:?}");

    let total = |sums: &BTreeMap<String, (i64, i64)>| sums.values().map(|(requests, _)| requests).sum::<i64>();
    let of_a = SumsRequest { account: Some(id("a")), ..asked(&[Dimension::Model]) };
    assert_eq!(sums(&under, of_a).await, map(&[("m0", (10, 10)), ("m1", (10, 10)), ("m2", (10, 10))]));
    let on_pro = SumsRequest { plan: Some("pro".into()), ..asked(&[Dimension::User]) };
    assert_eq!(sums(&under, on_pro).await, map(&[("b", (30, 60))]));
    let days = SumsRequest { from: Some(DAY + 1), to: Some(DAY + 3), ..asked(&[Dimension::Day]) };
    let days = sums(&under, days).await;
    assert_eq!((days.keys().map(String::as_str).collect::<Vec<_>>(), total(&days)), (vec!["20001", "20002"], 15));
    assert_eq!(sums(&under, asked(&[Dimension::Key])).await, map(&[("", (30, 45)), ("k1", (30, 45))]));
    let all = under.store.usage_sums(asked(&[Dimension::Route])).await.unwrap().data;
    let figures = all[0].figures;
    assert_eq!((figures.requests, figures.charged, figures.input_tokens, figures.cached_tokens), (60, 90, 600, 240));
    assert_eq!((figures.output_tokens, figures.estimated), (2 * (2..=31).sum::<i64>(), 20));
    assert_eq!((figures.client_errors, figures.server_errors), (12, 12));
    let bad = SumsRequest { page: PageRequest { limit: 5, cursor: Some("YWJj".into()) }, ..asked(&by) };
    assert!(matches!(under.store.usage_sums(bad).await, Err(StoreError::Invalid(_))));
}

/// failures 29 (litellm#12159) for rows instead of labels: endless names make no endless sums.
async fn a_clients_model_names_are_bounded(under: Under) {
    funded(&under, "u").await;
    for (from, seqs) in [(1, 2..=81), (2, 82..=161)] {
        let long = "x".repeat(300);
        let events = seqs.map(|seq| used("u", seq, DAY, Some(&format!("m{seq}-{long}")), 1));
        under.store.flush(batch(from, events.collect())).await.unwrap();
        roll_up(&under).await;
    }
    let models = sums(&under, asked(&[Dimension::Model])).await;
    assert_eq!(models.len(), 51, "fifty, and the rest together");
    assert_eq!(models["other"], (110, 110));
    assert!(models.keys().all(|model| model.len() <= 64));
    assert_eq!(models.values().map(|(_, charged)| charged).sum::<i64>(), 160);
}

/// Replicas and reports add up at the same time, while more is flushed.
async fn adding_up_at_once_counts_once(under: Under) {
    for name in ["a", "b", "c"] {
        funded(&under, name).await;
    }
    let mut tasks = tokio::task::JoinSet::new();
    for worker in 0..6_usize {
        let store = under.store.clone();
        tasks.spawn(async move {
            for round in 0..40 {
                let only = (worker + round) % 4;
                let only = ["a", "b", "c"].get(only).map(|name| id(name));
                match store.roll_up(only.as_ref(), None).await {
                    Ok(_) | Err(StoreError::CursorMoved) => {}
                    Err(error) => panic!("{error}"),
                }
                tokio::task::yield_now().await;
            }
        });
    }
    for round in 0..40_u64 {
        let events = ["a", "b", "c"].map(|name| used(name, round + 2, DAY, Some("m"), 1));
        under.store.flush(batch(round + 3, events.to_vec())).await.unwrap();
    }
    tasks.join_all().await;
    roll_up(&under).await;
    let sums = sums(&under, asked(&[Dimension::User])).await;
    assert_eq!(sums, map(&[("a", (40, 40)), ("b", (40, 40)), ("c", (40, 40))]));
}

/// What the audit reads: any piece of an account's usage, dead letters included.
async fn the_books_are_summed_up_in_pieces(under: Under) {
    funded(&under, "u").await;
    let mut events: Vec<Event> = (2..=11).map(|seq| used("u", seq, DAY, None, 10)).collect();
    events.push(Event { usage: Bytes::from_static(b"\xc1 no usage"), ..settled("u", 12, 1, 7) });
    events.push(used("u", 13, DAY, None, 1));
    under.store.flush(batch(1, events)).await.unwrap();
    let charged = async |after, upto, limit| {
        let span = UsageSpan { account: id("u"), after, upto };
        let sum = under.store.charged(vec![span], limit).await.unwrap()[0];
        (sum.micro, sum.upto)
    };
    assert_eq!(charged(0, 13, 100).await, (108, 13));
    assert_eq!(charged(0, 13, 4).await, (40, 5));
    assert_eq!(charged(5, 13, 100).await, (68, 13));
    assert_eq!(charged(11, 12, 100).await, (7, 12));
    assert_eq!(charged(13, 13, 100).await, (0, 13));
    let books = under.store.books_of(&id("u")).await.unwrap().unwrap();
    assert_eq!((books.charged, books.seq, books.rows.remaining), (108, 13, 5_000_000 - 108));
    assert_eq!(under.store.books(None, 10).await.unwrap(), [books]);
    assert_eq!(under.store.books(Some(&id("u")), 10).await.unwrap(), []);
    assert_eq!(under.store.books_of(&id("nobody")).await.unwrap(), None);
}

/// Ten million rows in the torture, fewer in the tests.
fn many_rows() -> u64 {
    std::env::var("FAREGATE_USAGE_ROWS").ok().and_then(|rows| rows.parse().ok()).unwrap_or(200_000)
}

/// How long the questions of the usage API take over so many rows: printed, for people.
async fn tell_times(under: &Under, rows: u64) {
    let account = Some(id("g7"));
    let page = async || drop(under.store.usage(&id("g7"), PageRequest::default()).await.unwrap());
    let own = SumsRequest { account: account.clone(), ..asked(&[Dimension::Day, Dimension::Model]) };
    let own_month = SumsRequest { from: Some(days_now() - 30), ..own.clone() };
    let all = asked(&[Dimension::Day, Dimension::Model, Dimension::Route, Dimension::Key]);
    let yesterday = SumsRequest { from: Some(days_now() - 1), ..asked(&[Dimension::User]) };
    let began = Instant::now();
    page().await;
    eprintln!("{rows} rows: a page of usage {:?}", began.elapsed());
    let questions =
        [("own", own), ("own month", own_month), ("everybody's", all), ("since yesterday by user", yesterday)];
    for (name, question) in questions {
        let began = Instant::now();
        let found = under.store.usage_sums(question).await.unwrap().data.len();
        eprintln!("{rows} rows: {name}: {found} sums {:?}", began.elapsed());
    }
}

fn days_now() -> i32 {
    let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs() / 86_400;
    i32::try_from(now).unwrap()
}

/// As [`no_question_reads_all_usage`], in SQLite.
#[tokio::test(flavor = "multi_thread")]
async fn no_question_reads_all_usage_in_sqlite() {
    let under = Under::sqlite().await;
    let rows = many_rows();
    let users = 100;
    under.run(&format!(
        "CREATE TEMP TABLE g (n INTEGER); CREATE TEMP TABLE k (n INTEGER);
        WITH RECURSIVE s (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM s WHERE n < {users} - 1) INSERT INTO g SELECT n FROM s;
        WITH RECURSIVE s (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM s WHERE n < {rows} - 1) INSERT INTO k SELECT n FROM s;
        INSERT INTO users (id, plan, status, created_at) SELECT 'g' || n, 'free', 'active', 0 FROM g;
        INSERT INTO credits (user_id, seq, charged) SELECT 'g' || n, {rows} / {users}, {rows} / {users} FROM g;
        INSERT INTO usage_logs (user_id, seq, request_id, key_id, route, model, status, charged, input_tokens, cached_tokens,
                output_tokens, estimated, streamed, latency_ms, created_at, settled_at)
            SELECT 'g' || (n % {users}), n / {users} + 1,
                unhex(printf('%012x', (unixepoch('now') - n % 30 * 86400) * 1000) || printf('%020x', n)), 'k' || (n % 3), 'chat',
                'm' || (n % 7), 200, 1, 1, 0, 1, 0, 0, 5, (unixepoch('now') - n % 30 * 86400) * 1000000, 0 FROM k;
        ANALYZE"
    ));
    let began = Instant::now();
    roll_up(&under).await;
    eprintln!("{rows} rows: added up in {:?}", began.elapsed());
    let all = sums(&under, asked(&[Dimension::Model])).await;
    assert_eq!(all.values().map(|(requests, _)| *requests).sum::<i64>(), i64::try_from(rows).unwrap());
    tell_times(&under, rows).await;
    let reports = reports().into_iter().map(|request| sqlite::usage_sums::report(&request).unwrap());
    for question in [sqlite::usage::PAGE.to_owned(), sqlite::usage_sums::SUM_UP.to_owned()].into_iter().chain(reports) {
        let plan = under.plan(&question);
        assert!(plan.contains("SEARCH ") && !plan.contains("SCAN "), "{question}\n{plan}");
    }
}

/// What a user asks for, and what an operator does.
fn reports() -> [SumsRequest; 2] {
    let own = SumsRequest { account: Some(id("g7")), ..asked(&[Dimension::Day, Dimension::Model]) };
    [own, SumsRequest { from: Some(days_now() - 1), ..asked(&[Dimension::Day]) }]
}

/// No question reads a table of usage from end to end, and what it
/// reads does not grow with the table.
#[tokio::test(flavor = "multi_thread")]
async fn no_question_reads_all_usage() {
    let under = Under::postgres().await;
    funded(&under, "u").await;
    let rows = many_rows();
    let users = 100;
    under.sql(&format!(
        "INSERT INTO users SELECT 'g' || n, NULL, 'free', 'active', now() FROM generate_series(0, {users} - 1) n;
        INSERT INTO credits (user_id, seq, charged) SELECT 'g' || n, {rows} / {users}, {rows} / {users}
            FROM generate_series(0, {users} - 1) n;
        INSERT INTO usage_logs SELECT (lpad(to_hex((extract(epoch FROM now() - n % 30 * interval '1 day') * 1000)::bigint), 12, '0')
                || substr(md5(n::text), 1, 20))::uuid, 'g' || n % {users}, n / {users} + 1, NULL, 'k' || n % 3, 'chat',
            NULL, 'm' || n % 7, 200, 1, 1, 0, 1, false, false, 5, now() - n % 30 * interval '1 day', now(), NULL
            FROM generate_series(0, {rows} - 1) n;
        ANALYZE usage_logs; ANALYZE credits"
    ));
    let began = Instant::now();
    roll_up(&under).await;
    eprintln!("{rows} rows: added up in {:?}", began.elapsed());
    under.sql("ANALYZE usage_days; ANALYZE usage_rolled");
    tell_times(&under, rows).await;
    let all = sums(&under, asked(&[Dimension::Model])).await;
    assert_eq!(all.values().map(|(requests, _)| *requests).sum::<i64>(), i64::try_from(rows).unwrap());
    // The statements that the program runs, prepared as it prepares them.
    let explain = |sql: &str, values: &str| {
        let values = format!("PREPARE asked AS {sql}; EXPLAIN (ANALYZE, BUFFERS) EXECUTE asked ({values})");
        under.sql(&values).join("\n")
    };
    let [own, everybody] = reports().map(|request| postgres::usage_sums::report(&request).unwrap());
    let yesterday = format!("{}, 501", days_now() - 1);
    for (question, values, most) in [
        (postgres::usage::PAGE, "'g7', 9223372036854775807, 51", 400),
        (postgres::usage_sums::SUM_UP, "ARRAY['g1', 'g2'], ARRAY[100, 100], ARRAY[160, 160], 64", 800),
        (own.as_str(), "'g7', 501", 400),
        (everybody.as_str(), yesterday.as_str(), 2_000),
    ] {
        let plan = explain(question, values);
        // Partitions that are empty are read as they are.
        let mut scans = plan.lines().filter(|line| line.contains("Seq Scan on usage_logs"));
        let nothing = |line: &str| line.contains(" rows=0") || line.contains("never executed");
        assert!(scans.all(nothing), "{plan}");
        assert!(!plan.contains("Rows Removed"), "{plan}");
        let read = buffers(&plan);
        assert!(read <= most, "{read} buffers for {question}\n{plan}");
    }
    let plan = explain(&own, "'g7', 501");
    assert!(plan.contains("usage_days_pkey"), "{plan}");
}

/// Buffers that the topmost node of the plan touched.
fn buffers(plan: &str) -> u64 {
    let line = plan.lines().find(|line| line.trim_start().starts_with("Buffers:")).unwrap_or("");
    let counts = line.split([' ', ',']).filter_map(|word| {
        let (kind, count) = word.split_once('=')?;
        matches!(kind, "hit" | "read").then(|| count.parse::<u64>().unwrap_or(0))
    });
    counts.sum()
}
