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

    /// How SQLite would answer a statement of the program's own, whatever its values.
    fn plan(&self, sql: &str) -> String {
        assert!(self.server.is_none(), "of SQLite");
        let connection = rusqlite::Connection::open(self.dir.path().join(store::SQLITE_FILE)).unwrap();
        let mut statement = connection.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
        // Places without a value are null.
        let mut rows = statement.raw_query();
        let mut plan = Vec::new();
        while let Some(row) = rows.next().unwrap() {
            plan.push(row.get::<_, String>(3).unwrap());
        }
        plan.join("\n")
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

mod accounts;
mod billing;
mod books;
mod flush;
mod handover;
mod identity;
mod lifecycle;
mod notifications;
mod owners;
mod records;
mod reopenings;
mod sessions;
mod topups;
mod upkeep;
mod usage_sums;

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

fn record(number: u128, until: u64, held: Option<i64>) -> RecordState {
    RecordState {
        id: RecordId(Uuid::from_u128(number)),
        fingerprint: (1 << 53) - 1,
        until,
        held: held.map(|micro| vec![(GrantId(1), micro)]),
        answer: Kept::Charged { charged_micro: 1, available_micro: 2 },
    }
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
