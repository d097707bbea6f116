//! What each server of the ledger must be like, at the start and later on: one that evicts loses balances.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use redis::{Cmd, Value};

use super::connection::{CallError, Connector, Link};
use super::{Core, OpenError, unreachable_server};
use crate::config::Address;

/// Percent of a server's memory limit beyond which new work is refused.
const MEMORY_FULL_PERCENT: u64 = 95;
const POLICY: &str = "noeviction";

/// Refuses servers that could lose balances.
pub(super) async fn check(connector: &Connector, link: &mut Link) -> Result<(), OpenError> {
    for server in connector.primaries().await.map_err(unreachable_server)? {
        let info = info(link, &server, &["server", "memory", "persistence", "cluster"]).await;
        let info = info.map_err(unreachable_server)?;
        let server = server.to_string();
        let version = field(&info, "redis_version").unwrap_or("0");
        let major: u32 = version.split('.').next().and_then(|major| major.parse().ok()).unwrap_or(0);
        if major < 7 {
            return Err(OpenError::TooOld { server, version: version.to_owned() });
        }
        let policy = field(&info, "maxmemory_policy").unwrap_or("unknown");
        if policy != POLICY {
            return Err(OpenError::Evicts { server, policy: policy.to_owned() });
        }
        if field(&info, "cluster_enabled") == Some("1") && !connector.is_cluster() {
            return Err(OpenError::InCluster(server));
        }
        if field(&info, "aof_enabled") != Some("1") {
            tracing::warn!(
                server,
                "Redis has no append-only file: a crash of Redis loses what was not yet flushed to the store"
            );
        }
    }
    Ok(())
}

/// Has new work refused while any server's memory is nearly full, or may throw balances out: another may have been promoted,
/// and settings may be changed.
pub(super) async fn watch(core: &Core, link: &mut Link) -> Result<(), CallError> {
    core.connector.poll().await;
    let (mut refuse, mut silent) = (None, false);
    for server in core.connector.primaries().await? {
        // One that is out of reach says nothing about the others.
        let Ok(info) = info(link, &server, &["memory"]).await else {
            silent = true;
            continue;
        };
        let number = |name| field(&info, name).and_then(|value| value.parse::<u64>().ok()).unwrap_or(0);
        let (used, max) = (number("used_memory"), number("maxmemory"));
        if max > 0 && u128::from(used) * 100 >= u128::from(max) * u128::from(MEMORY_FULL_PERCENT) {
            refuse = Some((server, "its memory is nearly full"));
        } else if field(&info, "maxmemory_policy").is_some_and(|policy| policy != POLICY) {
            refuse = Some((server, "its maxmemory-policy may evict balances, and must be noeviction"));
        }
    }
    let before = core.is_memory_full();
    // Nor does it say that what it was refused for is over.
    core.memory_full.store(refuse.is_some() || (silent && before), Ordering::Relaxed);
    if let Some((server, reason)) = refuse.filter(|_| !before) {
        tracing::error!(%server, reason, "new work is refused for the sake of a Redis");
    }
    Ok(())
}

/// Sections of a server's INFO.
async fn info(link: &mut Link, server: &Arc<Address>, sections: &[&str]) -> Result<String, CallError> {
    let mut command = Cmd::new();
    command.arg("INFO").arg(sections);
    match link.send_to(server, &command).await? {
        Value::BulkString(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Value::VerbatimString { text, .. } => Ok(text),
        other => Err(CallError::Refused(format!("an unexpected answer to INFO: {other:?}"))),
    }
}

fn field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}
