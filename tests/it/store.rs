//! The store suite: the same tests over every store.
//!
//! Each test gets an empty, migrated store. What a test injects or looks at below the trait goes through [`Under::sql`].

#![allow(dead_code, unused_imports, reason = "the suite grows with the next landing")]

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use faregate::config;
use faregate::credits::Credits;
use faregate::ledger::{
    AccountId, Change, Delta, Event, EventKind, GrantId, GrantKind, Kept, RecordId, RecordState, Scope,
};
use faregate::store::{
    self, Cursor, FlushBatch, Flushed, Idempotent, IdentityChange, KeyKind, KeyRow, NewChange, NewUser, PageRequest,
    SharedStore, StoreError, UserStatus,
};
use faregate::usage::Usage;
use uuid::Uuid;

/// A store under test.
struct Under {
    store: SharedStore,
    settings: config::Store,
    dir: tempfile::TempDir,
}

impl Under {
    async fn open(settings: config::Store) -> Under {
        let dir = tempfile::tempdir().unwrap();
        let store = store::open(&settings, dir.path()).await.unwrap();
        Under { store, settings, dir }
    }

    async fn sqlite() -> Under {
        Under::open(config::Store::default()).await
    }

    async fn reopen(&mut self) {
        self.store.close().await;
        self.store = store::open(&self.settings, self.dir.path()).await.unwrap();
    }

    fn file(&self) -> std::path::PathBuf {
        self.dir.path().join(store::SQLITE_FILE)
    }

    /// Runs statements beside the store; the rows of the last one, columns joined by `|`.
    fn sql(&self, sql: &str) -> Vec<String> {
        sqlite(&self.file(), sql)
    }

    fn number(&self, sql: &str) -> i64 {
        self.sql(sql).first().and_then(|row| row.parse().ok()).unwrap()
    }
}

fn sqlite(file: &Path, sql: &str) -> Vec<String> {
    use rusqlite::types::ValueRef;
    let connection = rusqlite::Connection::open(file).unwrap();
    connection.busy_timeout(std::time::Duration::from_secs(5)).unwrap();
    let (before, last) = sql.trim_end_matches(';').rsplit_once(";\n").unwrap_or(("", sql));
    connection.execute_batch(before).unwrap();
    let mut statement = connection.prepare(last).unwrap();
    let columns = statement.column_count();
    let text = |value: ValueRef<'_>| match value {
        ValueRef::Null => String::new(),
        ValueRef::Integer(number) => number.to_string(),
        ValueRef::Real(number) => number.to_string(),
        ValueRef::Text(text) => String::from_utf8_lossy(text).into_owned(),
        ValueRef::Blob(bytes) => bytes.iter().map(|byte| format!("{byte:02x}")).collect(),
    };
    let mut rows = statement.query([]).unwrap();
    let mut found = Vec::new();
    while let Some(row) = rows.next().unwrap() {
        found.push((0..columns).map(|at| text(row.get_ref(at).unwrap())).collect::<Vec<_>>().join("|"));
    }
    found
}

macro_rules! suite {
    ($($name:ident),* $(,)?) => {
        mod in_sqlite {
            $(#[tokio::test] async fn $name() { super::$name(super::Under::sqlite().await).await; })*
        }
    };
}

suite!(a_new_user_has_its_signup_credits);

fn id(text: &str) -> AccountId {
    AccountId::parse(text).unwrap()
}

fn credits(micro: i64) -> Credits {
    Credits::from_micro(micro).unwrap()
}

fn new_user(name: &str, signup: u32) -> NewUser {
    NewUser { id: id(name), email: None, plan: "free".into(), signup_credits: Credits::whole(signup) }
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
    let waiting = store.unapplied_changes(10).await.unwrap();
    assert_eq!((waiting.len(), waiting[0].number), (1, 1));
    assert_eq!(store.load_account(&id("nobody")).await.unwrap(), None);
}
