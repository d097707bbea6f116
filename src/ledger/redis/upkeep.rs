//! What may wait: returns API holds past their time, drops idle accounts. It asks the store, and goes at the store's
//! pace.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use redis::{Cmd, Value};
use uuid::Uuid;

use super::connection::{CallError, Link};
use super::sweeper::{SESSIONS_MAX, texts};
use super::wire::{Keyspace, encode};
use super::{Core, meta, script};
use crate::ledger::{AccountId, Act, Answer, Op, RecordId, SessionId, SharedLedger};

/// Time between two rounds.
const INTERVAL: Duration = Duration::from_secs(1);
/// API holds returned in one round.
const HOLDS_MAX: usize = 200;
/// What could not be returned is tried again so much later.
const HOLD_AGAIN_US: u64 = 60_000_000;
/// Keys looked at for idle accounts, in one round.
const SCAN_COUNT: usize = 500;
/// Pages of keys looked at in one round, while there are some of earlier epochs to drop.
const PAGES_MAX: usize = 20;
/// Accounts parked for one page of keys.
const PARK_MAX: usize = 50;

/// Looks after each shard once a second, for ever. `ledger` is a session of its own. Side by side: one whose server does not
/// answer must not keep the others waiting.
pub(super) async fn run(core: Arc<Core>, ledger: SharedLedger) {
    let shard = async |shard| {
        let mut scan = "0".to_owned();
        let mut upkeep = Upkeep { link: core.link(shard), ledger: ledger.clone(), core: core.clone() };
        loop {
            if let Err(error) = upkeep.shard(shard, &mut scan).await {
                tracing::warn!(shard, %error, "expired holds and idle accounts wait");
            }
            tokio::time::sleep(INTERVAL).await;
        }
    };
    join_all((0..core.shards).map(shard)).await;
}

struct Upkeep {
    core: Arc<Core>,
    link: Link,
    ledger: SharedLedger,
}

impl Upkeep {
    /// `scan`: where the search for idle accounts goes on.
    async fn shard(&mut self, shard: u32, scan: &mut String) -> Result<(), CallError> {
        let position = meta::find_or_make(&self.core, &mut self.link, shard)
            .await
            .map_err(|error| CallError::Broken(error.to_string()))?;
        let keys = Keyspace::new(shard, position.epoch);
        self.expire_holds(&keys).await?;
        for _ in 0..PAGES_MAX {
            if !self.look_through(scan, &keys).await? {
                break;
            }
        }
        Ok(())
    }

    async fn expire_holds(&mut self, keys: &Keyspace) -> Result<(), CallError> {
        let mut command = Cmd::new();
        command.arg("TIME");
        let time = texts(self.link.send(&command).await?);
        let now = match time.as_slice() {
            [seconds, micros] => format!("{seconds}{micros:0>6}"),
            _ => return Ok(()),
        };
        let Ok(again) = now.parse::<u64>().map(|now| now.saturating_add(HOLD_AGAIN_US)) else { return Ok(()) };
        let mut command = Cmd::new();
        command.arg("ZRANGEBYSCORE").arg(keys.holds()).arg(0).arg(now).arg("LIMIT").arg(0).arg(HOLDS_MAX);
        let due = texts(self.link.send(&command).await?);
        let mut replies = Vec::with_capacity(due.len());
        for member in due {
            let Some((record, account)) = hold_of(&member) else {
                self.forget(keys, &member).await?;
                continue;
            };
            let act = Act::ReleaseHold { record, expired_only: true };
            replies.push((member, self.ledger.submit(Op { account, act })));
        }
        for (member, reply) in replies {
            match reply.await {
                Ok(Answer::Released { .. }) => {}
                // The record is gone, or was finished before.
                Ok(Answer::UnknownHold | Answer::Finished(_) | Answer::NotLoaded) => {
                    self.forget(keys, &member).await?;
                }
                // What cannot be returned now makes room: those behind it are due as well.
                _ => {
                    let mut command = Cmd::new();
                    command.arg("ZADD").arg(keys.holds()).arg("XX").arg("GT").arg(again).arg(member);
                    self.link.send(&command).await?;
                }
            }
        }
        Ok(())
    }

    async fn forget(&mut self, keys: &Keyspace, member: &str) -> Result<(), CallError> {
        let mut command = Cmd::new();
        command.arg("ZREM").arg(keys.holds()).arg(member);
        self.link.send(&command).await.map(drop)
    }

    /// Parks some accounts that nobody asked for in a long time: their place is the store, once it knows all. And drops what
    /// is left of earlier epochs; answers whether there was something, and more may follow.
    async fn look_through(&mut self, scan: &mut String, keys: &Keyspace) -> Result<bool, CallError> {
        let prefix = format!("{}acct:", keys.prefix());
        let mut command = Cmd::new();
        command.arg("SCAN").arg(&*scan).arg("MATCH").arg(glob(keys.shard_prefix())).arg("COUNT").arg(SCAN_COUNT);
        let Value::Array(page) = self.link.send(&command).await? else { return Ok(false) };
        let [Value::BulkString(next), names] = page.as_slice() else { return Ok(false) };
        *scan = String::from_utf8_lossy(next).into_owned();
        let names = texts(names.clone());
        let is_old = |name: &&String| epoch_of(name, keys).is_some_and(|epoch| epoch < keys.epoch);
        let old: Vec<&String> = names.iter().filter(is_old).collect();
        if !old.is_empty() {
            let mut command = Cmd::new();
            command.arg("UNLINK").arg(&old);
            self.link.send(&command).await?;
        }
        let idle_limit = self.core.settings.park_after_ms / 1_000;
        let (mut asked, mut parked) = (0, Vec::new());
        for name in &names {
            let Some(account) = name.strip_prefix(&prefix).and_then(|id| AccountId::parse(id).ok()) else { continue };
            let mut command = Cmd::new();
            command.arg("OBJECT").arg("IDLETIME").arg(name);
            let idle = match self.link.send(&command).await? {
                Value::Int(idle) => u64::try_from(idle).unwrap_or(0),
                _ => 0,
            };
            if idle < idle_limit || asked >= PARK_MAX {
                continue;
            }
            asked += 1;
            if self.park(account).await {
                parked.push(name.clone());
            }
        }
        if !parked.is_empty() {
            self.untouch(parked, keys).await?;
        }
        Ok(!old.is_empty())
    }

    /// Sessions remember the accounts that they held something of, until those are parked.
    async fn untouch(&mut self, parked: Vec<String>, keys: &Keyspace) -> Result<(), CallError> {
        let mut command = Cmd::new();
        command.arg("SMEMBERS").arg(keys.sessions());
        let sessions = texts(self.link.send(&command).await?);
        let argument = encode::numbers(&[parked.len() as u64, keys.prefix().len() as u64]);
        let mut names = parked;
        let sessions = sessions.iter().filter_map(|id| id.parse().ok()).take(SESSIONS_MAX);
        names.extend(sessions.map(|id| keys.touched(SessionId(id))));
        let command = script::UNTOUCH.command(names.iter().map(String::as_str), &argument);
        self.link.call(&script::UNTOUCH, &command).await.map(drop)
    }

    /// Writes off what is due, and drops the account if the store has all its events. Answers whether it was dropped.
    async fn park(&self, account: AccountId) -> bool {
        let Ok(Answer::Balance(balance)) = self.ledger.submit(Op { account: account.clone(), act: Act::Sweep }).await
        else {
            return false;
        };
        match self.core.source.load(&account).await {
            Ok(Some(state)) if state.seq == balance.seq => {
                let act = Act::Park { flushed_seq: state.seq };
                matches!(self.ledger.submit(Op { account, act }).await, Ok(Answer::Parked))
            }
            _ => false,
        }
    }
}

/// The epoch that a key of the shard is of; `meta` is of none.
fn epoch_of(name: &str, keys: &Keyspace) -> Option<u64> {
    name.strip_prefix(keys.shard_prefix())?.split_once(':')?.0.parse().ok()
}

/// `<record>:<account>`
fn hold_of(member: &str) -> Option<(RecordId, AccountId)> {
    let (record, account) = member.split_once(':')?;
    Some((RecordId(Uuid::try_parse(record).ok()?), AccountId::parse(account).ok()?))
}

/// The prefix as a pattern: its braces are no special characters in Redis's globs, its brackets would be.
fn glob(prefix: &str) -> String {
    format!("{prefix}*")
}
