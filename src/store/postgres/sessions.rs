//! Who is signed in on the pages.

use async_trait::async_trait;
use deadpool_postgres::{Client, Object, Transaction};

use super::super::common;
use super::super::sessions::{MAX_LINKS, MAX_SESSIONS, SecretHash, Session, Sessions};
use super::super::{Page, PageRequest, StoreError, StoreResult, User};
use super::{PostgresStore, accounts, execute, failed, micros, query_opt, time, within};
use crate::ledger::{AccountId, Micros};

async fn add_link(client: &mut Client, hash: &SecretHash, user: &AccountId, expires_at: Micros) -> StoreResult<()> {
    let tx = client.transaction().await.map_err(failed)?;
    if accounts::user(&tx, user).await?.is_none() {
        return Err(StoreError::NotFound("the user"));
    }
    let (hash, user) = (&hash[..], user.as_str());
    execute(&tx, "DELETE FROM sign_in_links WHERE expires_at <= $1", &[&time(common::now())]).await?;
    let insert = "INSERT INTO sign_in_links (hash, user_id, expires_at) VALUES ($1, $2, $3)";
    execute(&tx, insert, &[&hash, &user, &time(expires_at)]).await?;
    let surplus = "DELETE FROM sign_in_links WHERE hash IN (SELECT hash FROM sign_in_links WHERE user_id = $1
        ORDER BY expires_at DESC, hash = $2 DESC OFFSET $3)";
    execute(&tx, surplus, &[&user, &hash, &MAX_LINKS]).await?;
    tx.commit().await.map_err(failed)
}

async fn begin(tx: &Transaction<'_>, session: &Session) -> StoreResult<()> {
    let (hash, user) = (&session.hash[..], session.user.as_ref().map(AccountId::as_str));
    execute(tx, "DELETE FROM page_sessions WHERE expires_at <= $1", &[&time(common::now())]).await?;
    let insert = "INSERT INTO page_sessions (hash, user_id, expires_at) VALUES ($1, $2, $3)";
    execute(tx, insert, &[&hash, &user, &time(session.expires_at)]).await?;
    // Two statements: an index is not asked for what IS NOT DISTINCT FROM a parameter.
    let Some(user) = user else {
        let surplus = "DELETE FROM page_sessions WHERE hash IN (SELECT hash FROM page_sessions
            WHERE user_id IS NULL ORDER BY expires_at DESC, hash = $1 DESC OFFSET $2)";
        return execute(tx, surplus, &[&hash, &MAX_SESSIONS]).await.map(drop);
    };
    let surplus = "DELETE FROM page_sessions WHERE hash IN (SELECT hash FROM page_sessions
        WHERE user_id = $1 ORDER BY expires_at DESC, hash = $2 DESC OFFSET $3)";
    execute(tx, surplus, &[&user, &hash, &MAX_SESSIONS]).await.map(drop)
}

async fn begin_session(client: &mut Client, session: &Session) -> StoreResult<()> {
    let tx = client.transaction().await.map_err(failed)?;
    begin(&tx, session).await?;
    tx.commit().await.map_err(failed)
}

async fn link_user(client: &Client, link: SecretHash) -> StoreResult<Option<AccountId>> {
    let select = "SELECT user_id FROM sign_in_links WHERE hash = $1 AND expires_at > $2";
    let row = query_opt(client, select, &[&&link[..], &time(common::now())]).await?;
    row.map(|row| common::account(row.get(0))).transpose()
}

async fn redeem(client: &mut Client, link: &SecretHash, mut session: Session) -> StoreResult<Option<AccountId>> {
    let tx = client.transaction().await.map_err(failed)?;
    let take = "DELETE FROM sign_in_links WHERE hash = $1 AND expires_at > $2 RETURNING user_id";
    let Some(row) = query_opt(&tx, take, &[&&link[..], &time(common::now())]).await? else { return Ok(None) };
    let user = common::account(row.get(0))?;
    session.user = Some(user.clone());
    begin(&tx, &session).await?;
    tx.commit().await.map_err(failed)?;
    Ok(Some(user))
}

async fn session(client: &Client, hash: SecretHash) -> StoreResult<Option<Session>> {
    let select = "SELECT user_id, expires_at FROM page_sessions WHERE hash = $1 AND expires_at > $2";
    let Some(row) = query_opt(client, select, &[&&hash[..], &time(common::now())]).await? else { return Ok(None) };
    let user = row.get::<_, Option<&str>>(0).map(common::account).transpose()?;
    Ok(Some(Session { hash, user, expires_at: micros(row.get(1)) }))
}

async fn end(client: &Client, hash: SecretHash) -> StoreResult<()> {
    execute(client, "DELETE FROM page_sessions WHERE hash = $1", &[&&hash[..]]).await.map(drop)
}

#[async_trait]
impl Sessions for PostgresStore {
    async fn add_link(&self, hash: SecretHash, user: &AccountId, expires_at: Micros) -> StoreResult<()> {
        within!(self, |client| add_link(client, &hash, user, expires_at))
    }

    async fn link_user(&self, link: SecretHash) -> StoreResult<Option<AccountId>> {
        within!(self, |client| link_user(client, link))
    }

    async fn redeem_link(
        &self,
        link: SecretHash,
        session: SecretHash,
        expires_at: Micros,
    ) -> StoreResult<Option<AccountId>> {
        let session = Session { hash: session, user: None, expires_at };
        within!(self, |client| redeem(client, &link, session))
    }

    async fn begin_session(&self, session: Session) -> StoreResult<()> {
        within!(self, |client| begin_session(client, &session))
    }

    async fn session(&self, hash: SecretHash) -> StoreResult<Option<Session>> {
        within!(self, |client| session(client, hash))
    }

    async fn end_session(&self, hash: SecretHash) -> StoreResult<()> {
        within!(self, |client| end(client, hash))
    }

    async fn find_users(&self, text: &str, page: PageRequest) -> StoreResult<Page<User>> {
        within!(self, |client| accounts::find_users(client, text, &page))
    }
}
