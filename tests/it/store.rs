//! The store suite: the same tests over every store.
//!
//! Each test gets an empty, migrated store. What a test injects or looks at below the trait goes through [`Under::sql`].

mod journal;

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use faregate::config;
use faregate::credits::Credits;
use faregate::ledger::{
    AccountId, Change, Delta, Event, EventKind, GrantId, GrantKind, Kept, RecordId, RecordState, Scope,
};
use faregate::store::{
    self, Cursor, FlushBatch, Flushed, Idempotent, IdentityChange, KeyKind, KeyRow, NewChange, NewUser, PageRequest,
    SharedStore, StoreError, Unapplied, UserStatus,
};
use faregate::usage::Usage;
use uuid::Uuid;

use crate::support::{ChaosProxy, Postgres, eventually};

/// A store under test.
struct Under {
    store: SharedStore,
    settings: config::Store,
    dir: tempfile::TempDir,
    /// `None`: SQLite.
    server: Option<Postgres>,
}

impl Under {
    async fn sqlite() -> Under {
        Under::open(None).await
    }

    async fn postgres() -> Under {
        Under::open(Some(tokio::task::spawn_blocking(Postgres::start).await.unwrap())).await
    }

    async fn open(server: Option<Postgres>) -> Under {
        let under = Under::connect(server).await;
        under.store.migrate().await.unwrap();
        under
    }

    async fn connect(server: Option<Postgres>) -> Under {
        let url = server.as_ref().map(Postgres::url).unwrap_or_default();
        let settings = config::Store { url, ..config::Store::default() };
        let dir = tempfile::tempdir().unwrap();
        let store = store::connect(&settings, dir.path()).await.unwrap();
        Under { store, settings, dir, server }
    }

    async fn reopen(&mut self) {
        self.store.close().await;
        self.store = store::open(&self.settings, self.dir.path()).await.unwrap();
    }

    /// Another store of the same kind, empty and not migrated.
    async fn beside(&self) -> Under {
        Under::connect(self.server.as_ref().map(|_| Postgres::start())).await
    }

    /// Runs statements beside the store; the rows of the last one, columns joined by `|`.
    fn sql(&self, sql: &str) -> Vec<String> {
        self.try_sql(sql).unwrap_or_else(|error| panic!("{sql}: {error}"))
    }

    fn try_sql(&self, sql: &str) -> Result<Vec<String>, String> {
        if self.server.is_none() {
            return sqlite(&self.dir.path().join(store::SQLITE_FILE), sql).map_err(|error| error.to_string());
        }
        let asking = postgres(&self.settings.url, sql);
        tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(asking))
            .map_err(|error| error.to_string())
    }

    /// Many statements without an answer, beside the store, in one go.
    fn run(&self, sql: &str) {
        assert!(self.server.is_none(), "of SQLite");
        let connection = rusqlite::Connection::open(self.dir.path().join(store::SQLITE_FILE)).unwrap();
        connection.busy_timeout(Duration::from_secs(60)).unwrap();
        connection.execute_batch(&format!("BEGIN; {sql}; COMMIT")).unwrap();
    }

    fn number(&self, sql: &str) -> i64 {
        self.sql(sql).first().and_then(|row| row.parse().ok()).unwrap()
    }

    /// From now on the store refuses usage of this model.
    fn poison(&self, model: &str) {
        self.sql(&match self.server {
            None => format!(
                "CREATE TRIGGER poison BEFORE INSERT ON usage_logs WHEN new.model = '{model}'
                    BEGIN SELECT RAISE(ABORT, 'poisoned'); END"
            ),
            Some(_) => format!(
                "CREATE FUNCTION poison() RETURNS trigger LANGUAGE plpgsql AS
                    $$ BEGIN IF new.model = '{model}' THEN RAISE 'poisoned'; END IF; RETURN new; END $$;
                CREATE TRIGGER poison BEFORE INSERT ON usage_logs FOR EACH ROW EXECUTE FUNCTION poison()"
            ),
        });
    }

    /// Makes every row of a table older.
    fn age(&self, table: &str, column: &str, seconds: u64) {
        self.sql(&match self.server {
            None => format!("UPDATE {table} SET {column} = {column} - {seconds} * 1000000"),
            Some(_) => format!("UPDATE {table} SET {column} = {column} - interval '{seconds} seconds'"),
        });
    }
}

async fn postgres(url: &str, sql: &str) -> Result<Vec<String>, tokio_postgres::Error> {
    use tokio_postgres::SimpleQueryMessage;
    let (client, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls).await?;
    let asking = async {
        let answer = client.simple_query(sql).await;
        drop(client);
        answer
    };
    let (answer, _) = tokio::join!(asking, connection);
    let mut rows = Vec::new();
    for message in answer? {
        if let SimpleQueryMessage::Row(row) = message {
            let columns = (0..row.len()).map(|index| row.get(index).unwrap_or(""));
            rows.push(columns.collect::<Vec<_>>().join("|"));
        }
    }
    Ok(rows)
}

fn sqlite(file: &Path, sql: &str) -> rusqlite::Result<Vec<String>> {
    use rusqlite::types::ValueRef;
    let connection = rusqlite::Connection::open(file)?;
    connection.busy_timeout(Duration::from_secs(5))?;
    connection.execute_batch("PRAGMA foreign_keys = ON")?;
    let mut statement = connection.prepare(sql)?;
    let columns = statement.column_count();
    let text = |value: ValueRef<'_>| match value {
        ValueRef::Null => String::new(),
        ValueRef::Integer(number) => number.to_string(),
        ValueRef::Real(number) => number.to_string(),
        ValueRef::Text(text) => String::from_utf8_lossy(text).into_owned(),
        ValueRef::Blob(bytes) => bytes.iter().map(|byte| format!("{byte:02x}")).collect(),
    };
    let mut rows = statement.query([])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        let values: Vec<String> = (0..columns).map(|at| row.get_ref(at).map(text)).collect::<Result<_, _>>()?;
        found.push(values.join("|"));
    }
    Ok(found)
}

macro_rules! suite {
    ($($name:ident),* $(,)?) => {
        mod in_sqlite {
            $(#[tokio::test(flavor = "multi_thread")] async fn $name() { super::$name(super::Under::sqlite().await).await; })*
        }
        mod in_postgres {
            $(#[tokio::test(flavor = "multi_thread")] async fn $name() { super::$name(super::Under::postgres().await).await; })*
        }
    };
}

mod billing;
mod books;
mod notifications;
mod usage_sums;

mod handover;
mod owners;
mod records;
mod reopenings;
mod sessions;
mod topups;
mod upkeep;

suite!(
    a_new_user_has_its_signup_credits,
    a_flush_is_written_exactly_once,
    a_poisoned_event_stops_none_behind_it,
    a_misfit_becomes_debt,
    repeats_are_not_applied_and_holes_are_reported,
    events_of_unknown_accounts_are_kept_as_dead_letters,
    changes_are_numbered_without_gaps,
    a_source_key_counts_once,
    a_load_shows_what_is_flushed,
    billing_changes_take_effect_with_their_events,
    changes_that_the_ledger_could_not_apply_are_refused,
    the_schema_refuses_what_must_not_be,
    lists_come_in_pages,
    usage_keeps_every_field,
    a_revoked_key_is_told_to_every_replica,
    a_frozen_user_is_told_to_every_replica,
    a_new_plan_is_told_to_every_replica,
    keys_belong_to_users,
    an_idempotency_key_answers_once,
    records_and_sessions_are_kept,
    a_new_epoch_begins_once,
    reopening_keeps_everything,
    migrating_twice_does_nothing,
    a_newer_schema_is_refused,
    pruning_removes_only_what_is_past,
    concurrent_writers_never_deadlock,
    of_flushers_at_once_one_wins,
    what_was_acknowledged_survives_a_crash,
    a_closed_store_is_unavailable,
);

fn id(text: &str) -> AccountId {
    AccountId::parse(text).unwrap()
}

fn credits(micro: i64) -> Credits {
    Credits::from_micro(micro).unwrap()
}

fn new_user(name: &str, signup: u32) -> NewUser {
    NewUser { id: id(name), email: None, plan: "free".into(), signup_credits: Credits::whole(signup) }
}

fn unapplied(account: &str, changes: u64) -> Unapplied {
    Unapplied { account: id(account), changes }
}

fn change(account: &str, change: Change, source_key: &str) -> NewChange {
    NewChange { account: id(account), change, source_key: source_key.into(), note: None, actor: "operator".into() }
}

fn grant(amount_micro: i64) -> Change {
    Change::Grant { kind: GrantKind::Topup, amount_micro, expires_at: 0 }
}

fn event(account: &str, seq: u64) -> Event {
    Event {
        account: id(account),
        seq,
        at: 1_760_000_000_000_000 + seq,
        kind: EventKind::Adjusted,
        charged: Credits::ZERO,
        written_off: Credits::ZERO,
        forfeited: Credits::ZERO,
        debt_delta: 0,
        change: 0,
        deltas: Default::default(),
        record: None,
        usage: Bytes::new(),
    }
}

/// The event of an applied billing change.
fn applied(account: &str, seq: u64, number: u64) -> Event {
    Event { kind: EventKind::Granted, change: number, ..event(account, seq) }
}

/// A request settled from a grant.
fn settled(account: &str, seq: u64, from: u64, micro: i64) -> Event {
    let usage = Usage {
        request_id: Uuid::now_v7(),
        route: "chat".into(),
        model: Some("m".into()),
        status: 200,
        created_at_ms: 1_760_000_000_000,
        ..Usage::default()
    };
    Event {
        kind: EventKind::Settled,
        charged: credits(micro),
        deltas: [Delta { grant: GrantId(from), micro: -micro }].into_iter().collect(),
        usage: usage.encode(),
        ..event(account, seq)
    }
}

fn batch(from: u64, events: Vec<Event>) -> FlushBatch {
    FlushBatch { from: Cursor { epoch: 0, counter: from }, to: from + 1, events, ..FlushBatch::default() }
}

fn dead(under: &Under) -> Vec<String> {
    under.sql("SELECT user_id, seq, reason FROM dead_letters ORDER BY user_id, seq, id")
}

/// Every account's books: what was granted, less what was used and written off, is what is there, less what is owed.
fn assert_books(under: &Under) {
    let wrong = under.sql(
        "SELECT user_id FROM credits c WHERE granted - charged - written_off <> balance - debt OR balance <>
            (SELECT coalesce(sum(remaining), 0) FROM credit_grants g
            WHERE g.user_id = c.user_id AND g.id <= c.applied_change)",
    );
    assert_eq!(wrong, Vec::<String>::new());
}

/// A user with 5 credits in grant 1, applied by the ledger; the cursor stands at 1, the account at sequence 1.
async fn funded(under: &Under, name: &str) {
    under.store.create_user(new_user(name, 5)).await.unwrap();
    let from = under.store.cursor(0).await.unwrap().counter;
    under.store.flush(batch(from, vec![applied(name, 1, 1)])).await.unwrap();
}

async fn a_new_user_has_its_signup_credits(under: Under) {
    let store = &under.store;
    assert!(store.is_empty().await.unwrap());
    let user = store.create_user(NewUser { email: Some("a@b.c".into()), ..new_user("u", 5) }).await.unwrap();
    assert_eq!((user.plan.as_str(), user.status), ("free", UserStatus::Active));
    assert_eq!(store.user(&id("u")).await.unwrap(), Some(user));
    assert!(!store.is_empty().await.unwrap());
    let again = store.create_user(new_user("u", 5)).await;
    assert!(matches!(again, Err(StoreError::Conflict(_))), "{again:?}");
    // The grant is stored, and not in a load before the ledger has applied it.
    let grants = store.grants(&id("u")).await.unwrap();
    assert_eq!(grants.len(), 1);
    assert_eq!(
        (grants[0].id, grants[0].remaining, &*grants[0].source_key),
        (GrantId(1), Credits::whole(5), "signup:u")
    );
    let state = store.load_account(&id("u")).await.unwrap().unwrap();
    assert_eq!((state.change, state.seq, state.grants.len()), (0, 0, 0));
    assert_eq!(store.unapplied_accounts(None, 10).await.unwrap(), [unapplied("u", 1)]);
    assert_eq!(store.load_account(&id("nobody")).await.unwrap(), None);
    assert_eq!(store.create_user(new_user("poor", 0)).await.unwrap().id, id("poor"));
    assert_eq!(store.grants(&id("poor")).await.unwrap(), []);
}

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

async fn changes_are_numbered_without_gaps(under: Under) {
    for name in ["a", "b"] {
        under.store.create_user(new_user(name, 0)).await.unwrap();
    }
    let mut tasks = tokio::task::JoinSet::new();
    for index in 0..50 {
        let store = under.store.clone();
        let account = if index % 2 == 0 { "a" } else { "b" };
        tasks.spawn(async move { store.add_change(change(account, grant(1), "")).await.unwrap() });
    }
    let mut numbers: Vec<(AccountId, u64)> =
        tasks.join_all().await.into_iter().map(|row| (row.account, row.number)).collect();
    numbers.sort();
    let expected: Vec<(AccountId, u64)> =
        ["a", "b"].iter().flat_map(|name| (1..=25).map(|number| (id(name), number))).collect();
    assert_eq!(numbers, expected);
    assert_eq!(under.store.changes_after(&id("a"), 20).await.unwrap().len(), 5);
    let store = &under.store;
    assert_eq!(store.unapplied_accounts(None, 9).await.unwrap(), [unapplied("a", 25), unapplied("b", 25)]);
    assert_eq!(store.unapplied_accounts(None, 1).await.unwrap(), [unapplied("a", 25)]);
    assert_eq!(store.unapplied_accounts(Some(&id("a")), 9).await.unwrap(), [unapplied("b", 25)]);
    assert_eq!(store.unapplied_accounts(Some(&id("b")), 9).await.unwrap(), []);
}

/// failures 30, 31 (opencode#28402, vm0#10668): the guard is in the transaction, so concurrent deliveries grant once.
async fn a_source_key_counts_once(under: Under) {
    for name in ["a", "b"] {
        under.store.create_user(new_user(name, 0)).await.unwrap();
    }
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let store = under.store.clone();
        tasks.spawn(async move { store.add_change(change("a", grant(100), "invoice:1")).await.unwrap() });
    }
    let rows = tasks.join_all().await;
    assert!(rows.iter().all(|row| row.number == 1));
    assert_eq!(rows.iter().filter(|row| row.fresh).count(), 1);
    assert_eq!(under.store.grants(&id("a")).await.unwrap().len(), 1);
    let stolen = under.store.add_change(change("b", grant(100), "invoice:1")).await;
    assert!(matches!(stolen, Err(StoreError::Conflict(_))), "{stolen:?}");
    assert_eq!(under.store.add_change(change("a", grant(1), "")).await.unwrap().number, 2);
}

async fn a_load_shows_what_is_flushed(under: Under) {
    funded(&under, "u").await;
    under.store.add_change(change("u", grant(7), "second")).await.unwrap();
    under.store.add_change(change("u", Change::Freeze { scope: Scope::Account }, "")).await.unwrap();
    // The ledger has applied neither: it gets them as changes, not by loading.
    let state = under.store.load_account(&id("u")).await.unwrap().unwrap();
    assert_eq!((state.change, state.frozen), (1, false));
    assert_eq!(state.grants.iter().map(|grant| grant.id.0).collect::<Vec<_>>(), [1]);
    under.store.flush(batch(1, vec![applied("u", 2, 2)])).await.unwrap();
    let state = under.store.load_account(&id("u")).await.unwrap().unwrap();
    assert_eq!((state.seq, state.change, state.frozen, state.grants.len()), (2, 2, false, 2));
    assert_eq!(under.store.unapplied_accounts(None, 10).await.unwrap(), [unapplied("u", 1)]);
    under.store.flush(batch(2, vec![applied("u", 3, 3)])).await.unwrap();
    assert!(under.store.load_account(&id("u")).await.unwrap().unwrap().frozen);
    assert_eq!(under.store.unapplied_accounts(None, 10).await.unwrap(), []);
    // A grant with nothing left is not loaded.
    under.store.flush(batch(3, vec![settled("u", 4, 2, 7)])).await.unwrap();
    assert_eq!(under.store.load_account(&id("u")).await.unwrap().unwrap().grants.len(), 1);
    assert_books(&under);
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

async fn the_schema_refuses_what_must_not_be(under: Under) {
    funded(&under, "u").await;
    funded(&under, "v").await;
    for forbidden in [
        "UPDATE credit_grants SET remaining = -1",
        "UPDATE credit_grants SET remaining = amount + 1",
        "UPDATE credits SET debt = -1",
        "UPDATE credit_changes SET source_key = 'same'",
        "UPDATE credit_grants SET source_key = 'same'",
        "DELETE FROM users",
        "DELETE FROM credit_changes",
        "UPDATE users SET status = 'gone'",
        "INSERT INTO credits (user_id) VALUES ('nobody')",
    ] {
        assert!(under.try_sql(forbidden).is_err(), "{forbidden}");
    }
    assert_books(&under);
}

/// failures 27 (litellm#37007): no list is answered whole.
async fn lists_come_in_pages(under: Under) {
    for index in 0..7 {
        under.store.create_user(new_user(&format!("u{index}"), 0)).await.unwrap();
    }
    let (mut seen, mut cursor) = (Vec::new(), None);
    loop {
        let page = under.store.users(PageRequest { limit: 3, cursor }).await.unwrap();
        assert!(page.data.len() <= 3);
        seen.extend(page.data.into_iter().map(|user| user.id.to_string()));
        cursor = page.next;
        if cursor.is_none() {
            break;
        }
    }
    assert_eq!(seen, ["u0", "u1", "u2", "u3", "u4", "u5", "u6"]);

    under.store.flush(batch(0, (1..=6).map(|seq| settled("u0", seq, 1, 0)).collect())).await.unwrap();
    let first = under.store.usage(&id("u0"), PageRequest { limit: 4, cursor: None }).await.unwrap();
    assert_eq!(first.data.iter().map(|row| row.seq).collect::<Vec<_>>(), [6, 5, 4, 3]);
    // What is settled meanwhile does not shift the next page.
    under.store.flush(batch(1, vec![settled("u0", 7, 1, 0)])).await.unwrap();
    let second = under.store.usage(&id("u0"), PageRequest { limit: 4, cursor: first.next }).await.unwrap();
    assert_eq!(second.data.iter().map(|row| row.seq).collect::<Vec<_>>(), [2, 1]);
    assert_eq!(second.next, None);
    for (limit, cursor) in [(0, None), (501, None), (5, Some("!".to_owned())), (5, Some("YWJj".to_owned()))] {
        let answer = under.store.usage(&id("u0"), PageRequest { limit, cursor }).await;
        assert!(matches!(answer, Err(StoreError::Invalid(_))), "{answer:?}");
    }
    assert!(under.store.usage(&id("nobody"), PageRequest::default()).await.unwrap().data.is_empty());
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

fn key(name: &str, user: Option<&str>) -> KeyRow {
    let mut hash = [0; 32];
    hash[..name.len()].copy_from_slice(name.as_bytes());
    KeyRow {
        id: name.into(),
        hash,
        prefix: "fg_live_abc".into(),
        kind: if user.is_some() { KeyKind::Live } else { KeyKind::Service },
        user: user.map(id),
        name: "laptop".into(),
        created_at: 1_760_000_000_000_000,
        revoked_at: None,
        expires_at: None,
        last_used_at: None,
        budget: None,
        models: None,
    }
}

async fn a_revoked_key_is_told_to_every_replica(under: Under) {
    let store = &under.store;
    store.create_user(new_user("u", 0)).await.unwrap();
    store.create_key(key("k1", Some("u"))).await.unwrap();
    store.create_key(key("k2", Some("u"))).await.unwrap();
    let (start, changes) = store.identity_changes(0).await.unwrap();
    assert!(start > 0 && changes.is_empty());
    assert_eq!(store.identity_changes(start).await.unwrap(), (start, vec![]));
    for stranger in [Some(id("v")), Some(id("u"))] {
        let wrong = if stranger == Some(id("u")) { "k9" } else { "k1" };
        assert!(matches!(store.revoke_key(stranger.as_ref(), wrong).await, Err(StoreError::NotFound(_))));
    }
    let revoked = store.revoke_key(Some(&id("u")), "k1").await.unwrap();
    assert!(revoked.revoked_at.is_some());
    assert_eq!(store.key_by_hash(&revoked.hash).await.unwrap(), Some(revoked.clone()));
    let (next, changes) = store.identity_changes(start).await.unwrap();
    assert_eq!((next > start, changes), (true, vec![IdentityChange::Key { hash: revoked.hash }]));
    // Again: the same answer, and nothing to tell.
    assert_eq!(store.revoke_key(None, "k1").await.unwrap(), revoked);
    assert_eq!(store.identity_changes(next).await.unwrap(), (next, vec![]));
    store.revoke_key(None, "k2").await.unwrap();
    assert_eq!(store.identity_changes(start).await.unwrap().1.len(), 2);
    assert_eq!(store.identity_changes(0).await.unwrap(), (store.identity_changes(next).await.unwrap().0, vec![]));
}

async fn a_frozen_user_is_told_to_every_replica(under: Under) {
    funded(&under, "u").await;
    let (start, _) = under.store.identity_changes(0).await.unwrap();
    under.store.add_change(change("u", Change::Freeze { scope: Scope::Account }, "")).await.unwrap();
    assert_eq!(under.store.user(&id("u")).await.unwrap().unwrap().status, UserStatus::Frozen);
    let (next, changes) = under.store.identity_changes(start).await.unwrap();
    assert_eq!(changes, [IdentityChange::User { id: id("u") }]);
    under.store.add_change(change("u", Change::Unfreeze { scope: Scope::Account }, "")).await.unwrap();
    assert_eq!(under.store.user(&id("u")).await.unwrap().unwrap().status, UserStatus::Active);
    assert_eq!(under.store.identity_changes(next).await.unwrap().1.len(), 1);
}

/// What a plan allows is kept by every replica: a new plan is told to them all.
async fn a_new_plan_is_told_to_every_replica(under: Under) {
    let store = &under.store;
    store.create_user(new_user("u", 0)).await.unwrap();
    let (since, _) = store.identity_changes(0).await.unwrap();
    let moved = store.set_plan(&id("u"), "pro", "stripe").await.unwrap();
    assert_eq!((moved.plan.as_str(), store.user(&id("u")).await.unwrap()), ("pro", Some(moved.clone())));
    let (next, told) = store.identity_changes(since).await.unwrap();
    assert_eq!(told, [IdentityChange::User { id: id("u") }]);
    // The same plan again is no change.
    assert_eq!(store.set_plan(&id("u"), "pro", "stripe").await.unwrap(), moved);
    assert_eq!(store.identity_changes(next).await.unwrap().1, []);
    assert_eq!(under.sql("SELECT actor, detail FROM audit_log WHERE action = 'user.plan'"), ["stripe|pro"]);
    let nobody = store.set_plan(&id("nobody"), "pro", "stripe").await;
    assert!(matches!(nobody, Err(StoreError::NotFound(_))), "{nobody:?}");
    under.sql("UPDATE users SET status = 'closed'");
    let closed = store.set_plan(&id("u"), "free", "stripe").await;
    assert!(matches!(closed, Err(StoreError::Conflict(_))), "{closed:?}");
}

async fn keys_belong_to_users(under: Under) {
    let store = &under.store;
    let orphan = store.create_key(key("k1", Some("nobody"))).await;
    assert!(matches!(orphan, Err(StoreError::NotFound(_))), "{orphan:?}");
    store.create_user(new_user("u", 0)).await.unwrap();
    let (mine, service) = (key("k1", Some("u")), key("s1", None));
    store.create_key(mine.clone()).await.unwrap();
    store.create_key(service.clone()).await.unwrap();
    let again = store.create_key(KeyRow { id: "k2".into(), ..mine.clone() }).await;
    assert!(matches!(again, Err(StoreError::Conflict(_))), "{again:?}");
    assert_eq!(store.key_by_hash(&mine.hash).await.unwrap(), Some(mine.clone()));
    assert_eq!(store.key_by_hash(&[9; 32]).await.unwrap(), None);
    assert_eq!(store.keys_of(Some(&id("u"))).await.unwrap(), [mine]);
    assert_eq!(store.keys_of(None).await.unwrap(), [service]);
}

async fn an_idempotency_key_answers_once(under: Under) {
    let store = &under.store;
    let begin = async |scope: &str, fingerprint| store.idempotency_begin(scope, "k", fingerprint).await.unwrap();
    let fingerprint = u64::MAX - 1;
    assert_eq!(begin("u", fingerprint).await, Idempotent::Begun);
    assert_eq!(begin("u", fingerprint).await, Idempotent::Running);
    assert_eq!(begin("u", 2).await, Idempotent::Mismatch);
    assert_eq!(begin("v", 2).await, Idempotent::Begun);
    store.idempotency_finish("u", "k", 201, "{}").await.unwrap();
    let finished = Idempotent::Finished { status: 201, body: "{}".into() };
    assert_eq!(begin("u", fingerprint).await, finished);
    assert_eq!(begin("u", 2).await, Idempotent::Mismatch);
    // A late second end does not change the answer.
    store.idempotency_finish("u", "k", 500, "late").await.unwrap();
    store.idempotency_forget("u", "k").await.unwrap();
    assert_eq!(begin("u", fingerprint).await, finished);
    store.idempotency_forget("v", "k").await.unwrap();
    assert_eq!(begin("v", 3).await, Idempotent::Begun);
    // One that never ended is free after a minute, an answer after a day.
    under.age("idempotency_keys", "begun_at", 61);
    assert_eq!(begin("v", 4).await, Idempotent::Begun);
    assert_eq!(begin("u", fingerprint).await, finished);
    under.age("idempotency_keys", "begun_at", 24 * 3600);
    assert_eq!(begin("u", 5).await, Idempotent::Begun);
    // Of many at once, one begins.
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let store = store.clone();
        tasks.spawn(async move { store.idempotency_begin("w", "k", 1).await.unwrap() });
    }
    let begun = tasks.join_all().await.into_iter().filter(|answer| *answer == Idempotent::Begun).count();
    assert_eq!(begun, 1);
}

fn record(number: u128, until: u64, held: Option<i64>) -> RecordState {
    RecordState {
        id: RecordId(Uuid::from_u128(number)),
        fingerprint: (1 << 53) - 1,
        until,
        held: held.map(|micro| vec![(GrantId(1), micro)]),
        answer: Kept::Charged { charged_micro: 1, available_micro: 2 },
    }
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

/// failures 23 (bifrost#3548, #5925): a restart loses nothing that was flushed.
async fn reopening_keeps_everything(mut under: Under) {
    funded(&under, "u").await;
    under.store.flush(batch(1, vec![settled("u", 2, 1, 1_000_000)])).await.unwrap();
    under.store.create_key(key("k1", Some("u"))).await.unwrap();
    let before = under.store.load_account(&id("u")).await.unwrap();
    under.reopen().await;
    assert_eq!(under.store.load_account(&id("u")).await.unwrap(), before);
    assert_eq!(under.store.usage(&id("u"), PageRequest::default()).await.unwrap().data.len(), 1);
    assert_eq!(under.store.keys_of(Some(&id("u"))).await.unwrap().len(), 1);
    assert_eq!(under.store.cursor(0).await.unwrap().counter, 2);
    under.store.ping().await.unwrap();
    assert_books(&under);
}

async fn migrating_twice_does_nothing(under: Under) {
    assert_eq!(under.store.migrate().await.unwrap(), 0);
    under.store.check_schema().await.unwrap();
    let empty = under.beside().await;
    let unmigrated = empty.store.check_schema().await;
    assert!(
        matches!(&unmigrated, Err(StoreError::Schema(what)) if what.contains("faregate migrate")),
        "{unmigrated:?}"
    );
    // Several replicas start at once.
    let (first, second) = tokio::join!(empty.store.migrate(), empty.store.migrate());
    let mut ran = [first.unwrap(), second.unwrap()];
    ran.sort_unstable();
    assert!(ran[0] == 0 && ran[1] > 0, "{ran:?}");
    empty.store.check_schema().await.unwrap();
}

async fn a_newer_schema_is_refused(under: Under) {
    under.sql(
        "INSERT INTO refinery_schema_history (version, name, applied_on, checksum)
            VALUES (999, 'the_future', '2030-01-01T00:00:00Z', '1')",
    );
    for answer in [under.store.migrate().await.map(drop), under.store.check_schema().await] {
        assert!(
            matches!(&answer, Err(StoreError::Schema(what)) if what.contains("999") && what.contains("newer program")),
            "{answer:?}"
        );
    }
    assert!(store::open(&under.settings, under.dir.path()).await.is_err());
}

async fn pruning_removes_only_what_is_past(under: Under) {
    funded(&under, "u").await;
    let now = u64::try_from(std::time::UNIX_EPOCH.elapsed().unwrap().as_micros()).unwrap();
    let hours = |count: u64| count * 3_600_000_000;
    let mut records = batch(1, vec![]);
    records.records =
        [record(1, now - hours(2), None), record(2, now + hours(1), None), record(3, now - hours(2), Some(1))]
            .map(|record| (id("u"), record))
            .to_vec();
    records.sessions = vec![(1, 1)];
    under.store.flush(records).await.unwrap();
    under.store.idempotency_begin("u", "old", 1).await.unwrap();
    under.age("idempotency_keys", "begun_at", 25 * 3600);
    under.store.idempotency_begin("u", "new", 1).await.unwrap();
    under.store.add_change(change("u", Change::Freeze { scope: Scope::Account }, "")).await.unwrap();
    let (last, _) = under.store.identity_changes(0).await.unwrap();
    under.age("identity_changes", "at", 25 * 3600);
    under.store.prune().await.unwrap();
    assert_eq!(under.sql("SELECT key FROM idempotency_keys"), ["new"]);
    assert_eq!(under.number("SELECT count(*) FROM ledger_records"), 2);
    assert_eq!(under.number("SELECT count(*) FROM ledger_sessions"), 1);
    assert_eq!(under.number("SELECT count(*) FROM identity_changes"), 0);
    // Numbers go on after pruning.
    assert_eq!(under.store.identity_changes(0).await.unwrap(), (last, vec![]));
    under.store.add_change(change("u", Change::Unfreeze { scope: Scope::Account }, "")).await.unwrap();
    assert_eq!(under.store.identity_changes(last).await.unwrap().1.len(), 1);
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

/// failures 23 (bifrost#3548): what `flush` answered for is there after the process was killed, without any ending.
async fn what_was_acknowledged_survives_a_crash(mut under: Under) {
    funded(&under, "u").await;
    under.store.flush(batch(1, vec![settled("u", 2, 1, 1_000_000)])).await.unwrap();
    if under.server.is_none() {
        // The files as a killed process leaves them: database and log, nothing checkpointed.
        let crashed = tempfile::tempdir().unwrap();
        for entry in std::fs::read_dir(under.dir.path()).unwrap() {
            let entry = entry.unwrap();
            if !entry.file_name().to_string_lossy().ends_with("-shm") {
                std::fs::copy(entry.path(), crashed.path().join(entry.file_name())).unwrap();
            }
        }
        under.store.close().await;
        under.dir = crashed;
    }
    under.store = store::open(&under.settings, under.dir.path()).await.unwrap();
    assert_eq!(under.store.cursor(0).await.unwrap().counter, 2);
    assert_eq!(under.sql("SELECT seq, balance FROM credits"), ["2|4000000"]);
    assert_books(&under);
}

async fn a_closed_store_is_unavailable(under: Under) {
    under.store.close().await;
    under.store.close().await;
    let answer = under.store.user(&id("u")).await;
    assert!(matches!(answer, Err(StoreError::Unavailable(_))), "{answer:?}");
}

/// failures 24, 46: a database whose replies are lost, or that is gone. Every question ends within its time as
/// "unavailable", what was asked may have happened all the same, and afterwards everything works without a restart.
#[tokio::test(flavor = "multi_thread")]
async fn an_absent_postgres_is_unavailable_and_comes_back() {
    let server = tokio::task::spawn_blocking(Postgres::own).await.unwrap();
    let direct: std::net::SocketAddr = server.url().split(['@', '/']).nth(3).unwrap().parse().unwrap();
    let proxy = ChaosProxy::start(direct);
    let url = server.url().replace(&direct.to_string(), &proxy.addr().to_string());
    let settings = config::Store { url, timeout_ms: 500, ..config::Store::default() };
    let store = store::open(&settings, Path::new("/nonexistent")).await.unwrap();
    store.create_user(new_user("u", 5)).await.unwrap();
    let patience = Duration::from_secs(30);
    let unavailable = async |counter| {
        let asked = tokio::time::timeout(patience, store.flush(batch(counter, vec![]))).await;
        assert!(matches!(asked, Ok(Err(StoreError::Unavailable(_)))), "{asked:?}");
        let asked = tokio::time::timeout(patience, store.ping()).await;
        assert!(matches!(asked, Ok(Err(StoreError::Unavailable(_)))), "{asked:?}");
    };
    let back = async || eventually(patience, "the store answers", async || store.ping().await.ok()).await;

    proxy.swallow_replies(true);
    unavailable(0).await;
    proxy.swallow_replies(false);
    proxy.cut();
    back().await;
    // Whether the flush happened, the cursor tells; trying again is safe either way.
    let again = store.flush(batch(0, vec![])).await;
    assert!(matches!(again, Ok(_) | Err(StoreError::CursorMoved)), "{again:?}");
    assert_eq!(store.cursor(0).await.unwrap().counter, 1);

    server.kill();
    unavailable(1).await;
    server.restart();
    back().await;
    store.flush(batch(1, vec![applied("u", 1, 1)])).await.unwrap();
    assert_eq!(store.load_account(&id("u")).await.unwrap().unwrap().grants.len(), 1);
    store.close().await;
}

#[tokio::test]
async fn a_postgres_that_requires_tls_is_not_spoken_to_without() {
    let server = tokio::task::spawn_blocking(Postgres::start).await.unwrap();
    let url = format!("{}?sslmode=require", server.url());
    let settings = config::Store { url, ..config::Store::default() };
    let refused = store::open(&settings, Path::new("/nonexistent")).await.map(drop);
    assert!(matches!(&refused, Err(StoreError::Unavailable(why)) if why.contains("TLS")), "{refused:?}");
}
