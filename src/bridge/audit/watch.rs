//! Proves all books now and then, so that a difference raises an alert and does not wait to be looked for.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use super::{AuditError, Auditor, Looked, Summed};
use crate::ledger::AccountId;
use crate::telemetry::Metrics;

/// After a start, others have more urgent things to read.
const FIRST_AFTER: Duration = Duration::from_secs(600);
const PAGE: u32 = 100;
const PAGE_BUDGET: Duration = Duration::from_secs(4);
/// Between pages, so that an audit is never what keeps the store busy.
const REST: Duration = Duration::from_millis(100);
/// Attempts at an account whose usage is long, or that moves too fast to be compared.
const ATTEMPTS: usize = 20;

#[derive(Debug, Default)]
struct Tally {
    accounts: u64,
    differences: u64,
    unproven: u64,
}

/// Audits every `interval` until `stop`; changes nothing. An interval of zero: never.
pub async fn watch(auditor: Arc<Auditor>, interval: Duration, metrics: Metrics, stop: CancellationToken) {
    let rounds = async {
        if interval.is_zero() {
            return stop.cancelled().await;
        }
        let mut wait = interval.min(FIRST_AFTER);
        loop {
            tokio::time::sleep(wait).await;
            match round(&auditor).await {
                Ok(tally) => told(&tally, &metrics),
                Err(error) => tracing::warn!(%error, "the books could not be audited; it is tried again"),
            }
            wait = interval;
        }
    };
    tokio::select! {
        () = rounds => {}
        () = stop.cancelled() => {}
    }
}

fn told(tally: &Tally, metrics: &Metrics) {
    let Tally { accounts, differences, unproven } = tally;
    let figure = |count: &u64| i64::try_from(*count).unwrap_or(i64::MAX);
    metrics.audit_accounts.set(figure(accounts));
    metrics.audit_differences.set(figure(differences));
    metrics.audit_finished.set(Timestamp::now().as_second());
    if *differences > 0 {
        tracing::error!(accounts, differences, unproven, "the books differ; `faregate audit` says where");
    } else {
        tracing::info!(accounts, unproven, "the books balance");
    }
}

async fn round(auditor: &Auditor) -> Result<Tally, AuditError> {
    let mut tally = Tally { differences: auditor.shards().await?.len() as u64, ..Tally::default() };
    let mut after: Option<AccountId> = None;
    loop {
        let page = auditor.page(after.as_ref(), PAGE, PAGE_BUDGET).await?;
        tally.accounts += page.accounts;
        tally.differences += page.findings.len() as u64;
        for account in page.unfinished {
            one(auditor, &account, &mut tally).await?;
        }
        after = page.last;
        if after.is_none() {
            return Ok(tally);
        }
        tokio::time::sleep(REST).await;
    }
}

async fn one(auditor: &Auditor, account: &AccountId, tally: &mut Tally) -> Result<(), AuditError> {
    let mut from = Summed::default();
    for _ in 0..ATTEMPTS {
        match auditor.account(account, from, PAGE_BUDGET).await? {
            None => return Ok(()),
            Some(Looked::Done(findings)) => {
                tally.accounts += 1;
                tally.differences += findings.len() as u64;
                return Ok(());
            }
            Some(Looked::Summing(so_far)) => from = so_far,
            Some(Looked::Moving(_)) => {}
        }
        tokio::time::sleep(REST).await;
    }
    tally.unproven += 1;
    Ok(())
}
