//! Who is signed in on the pages.

use async_trait::async_trait;
use rusqlite::{OptionalExtension, Row, Transaction, params};

use super::super::common::{self, int, uint};
use super::super::sessions::{MAX_LINKS, MAX_SESSIONS, SecretHash, Session, Sessions};
use super::super::{Page, PageRequest, StoreError, StoreResult, User};
use super::{SqliteStore, accounts, failed};
use crate::ledger::{AccountId, Micros};

fn execute(tx: &Transaction<'_>, sql: &str, row: impl rusqlite::Params) -> StoreResult<usize> {
    tx.prepare_cached(sql).and_then(|mut statement| statement.execute(row)).map_err(failed)
}

fn add_link(tx: &Transaction<'_>, hash: &SecretHash, user: &AccountId, expires_at: Micros) -> StoreResult<()> {
    if accounts::user(tx, user)?.is_none() {
        return Err(StoreError::NotFound("the user"));
    }
    execute(tx, "DELETE FROM sign_in_links WHERE expires_at <= ?1", [int(common::now())])?;
    let insert = "INSERT INTO sign_in_links (hash, user_id, expires_at) VALUES (?1, ?2, ?3)";
    execute(tx, insert, params![hash, user.as_str(), int(expires_at)])?;
    let surplus = "DELETE FROM sign_in_links WHERE hash IN (SELECT hash FROM sign_in_links WHERE user_id = ?1
        ORDER BY expires_at DESC, hash = ?2 DESC LIMIT -1 OFFSET ?3)";
    execute(tx, surplus, params![user.as_str(), hash, MAX_LINKS]).map(drop)
}

fn begin(tx: &Transaction<'_>, session: &Session) -> StoreResult<()> {
    let user = session.user.as_ref().map(AccountId::as_str);
    execute(tx, "DELETE FROM page_sessions WHERE expires_at <= ?1", [int(common::now())])?;
    let insert = "INSERT INTO page_sessions (hash, user_id, expires_at) VALUES (?1, ?2, ?3)";
    execute(tx, insert, params![session.hash, user, int(session.expires_at)])?;
    let surplus = "DELETE FROM page_sessions WHERE hash IN (SELECT hash FROM page_sessions WHERE user_id IS ?1
        ORDER BY expires_at DESC, hash = ?2 DESC LIMIT -1 OFFSET ?3)";
    execute(tx, surplus, params![user, session.hash, MAX_SESSIONS]).map(drop)
}

fn link_user(tx: &Transaction<'_>, link: &SecretHash) -> StoreResult<Option<AccountId>> {
    let select = "SELECT user_id FROM sign_in_links WHERE hash = ?1 AND expires_at > ?2";
    let user: Option<String> =
        tx.query_row(select, params![link, int(common::now())], |row| row.get(0)).optional().map_err(failed)?;
    user.as_deref().map(common::account).transpose()
}

fn redeem(tx: &Transaction<'_>, link: &SecretHash, mut session: Session) -> StoreResult<Option<AccountId>> {
    let take = "DELETE FROM sign_in_links WHERE hash = ?1 AND expires_at > ?2 RETURNING user_id";
    let user: Option<String> =
        tx.query_row(take, params![link, int(common::now())], |row| row.get(0)).optional().map_err(failed)?;
    let Some(user) = user.as_deref().map(common::account).transpose()? else { return Ok(None) };
    session.user = Some(user.clone());
    begin(tx, &session)?;
    Ok(Some(user))
}

fn session(tx: &Transaction<'_>, hash: SecretHash) -> StoreResult<Option<Session>> {
    let select = "SELECT user_id, expires_at FROM page_sessions WHERE hash = ?1 AND expires_at > ?2";
    let read = |row: &Row<'_>| Ok((row.get::<_, Option<String>>(0)?, row.get::<_, i64>(1)?));
    let found = tx.query_row(select, params![hash, int(common::now())], read).optional().map_err(failed)?;
    let Some((user, expires_at)) = found else { return Ok(None) };
    let user = user.as_deref().map(common::account).transpose()?;
    Ok(Some(Session { hash, user, expires_at: uint(expires_at) }))
}

#[async_trait]
impl Sessions for SqliteStore {
    async fn add_link(&self, hash: SecretHash, user: &AccountId, expires_at: Micros) -> StoreResult<()> {
        let user = user.clone();
        self.threads.write(move |tx| add_link(tx, &hash, &user, expires_at)).await
    }

    async fn link_user(&self, link: SecretHash) -> StoreResult<Option<AccountId>> {
        self.threads.read(move |tx| link_user(tx, &link)).await
    }

    async fn redeem_link(
        &self,
        link: SecretHash,
        session: SecretHash,
        expires_at: Micros,
    ) -> StoreResult<Option<AccountId>> {
        let session = Session { hash: session, user: None, expires_at };
        self.threads.write(move |tx| redeem(tx, &link, session)).await
    }

    async fn begin_session(&self, session: Session) -> StoreResult<()> {
        self.threads.write(move |tx| begin(tx, &session)).await
    }

    async fn session(&self, hash: SecretHash) -> StoreResult<Option<Session>> {
        self.threads.read(move |tx| session(tx, hash)).await
    }

    async fn end_session(&self, hash: SecretHash) -> StoreResult<()> {
        self.threads.write(move |tx| execute(tx, "DELETE FROM page_sessions WHERE hash = ?1", [hash]).map(drop)).await
    }

    async fn find_users(&self, text: &str, page: PageRequest) -> StoreResult<Page<User>> {
        let text = text.to_owned();
        self.threads.read(move |tx| accounts::find_users(tx, &text, &page)).await
    }
}
