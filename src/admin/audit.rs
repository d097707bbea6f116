//! The books, proven while everything runs.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Query, State};
use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::{StatusCode, Uri};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{Admin, OPERATOR};
use crate::api::extract::{Json, json};
use crate::api::problem::Problem;
use crate::bridge::audit::{AuditError, Finding, Looked, Repaired, Summed};
use crate::credits::Credits;
use crate::ledger::AccountId;
use crate::store::usage_sums::Figures;

/// Accounts of a page when the caller does not say, and at most.
const DEFAULT_PAGE: u32 = 100;
const MAX_PAGE: u32 = 500;
/// One call looks for so long at most, and for half of what any call may take.
const BUDGET_MAX: Duration = Duration::from_secs(4);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    /// This one alone.
    account: Option<AccountId>,
    limit: Option<u32>,
    cursor: Option<String>,
}

/// What an audit found. `next` goes on: with the next accounts, or with the rest of one account's usage.
#[derive(Debug, Default, Serialize)]
struct Audited {
    /// How many were proven, or shown to differ.
    accounts: u64,
    data: Vec<FindingView>,
    /// Accounts that need to be asked for alone, or again.
    unfinished: Vec<Unfinished>,
    next: Option<String>,
}

#[derive(Debug, Serialize)]
struct Unfinished {
    account: AccountId,
    reason: String,
}

/// An equation that does not hold: `left` is not `right`. Amounts are credits.
#[derive(Debug, Serialize)]
struct FindingView {
    account: Option<AccountId>,
    check: &'static str,
    equation: &'static str,
    left: Box<RawValue>,
    right: Box<RawValue>,
    difference: Box<RawValue>,
    /// The grant that it is about, or the shard where there is no account.
    which: Option<u64>,
}

pub(super) async fn books(State(admin): State<Arc<Admin>>, uri: Uri) -> Result<Response, Problem> {
    let Query(asked) = Query::<Asked>::try_from_uri(&uri).map_err(|error| Problem::bad_request(error.body_text()))?;
    let budget = BUDGET_MAX.min(Duration::from_millis(admin.config.api.timeout_ms / 2));
    let cursor = asked.cursor.filter(|cursor| !cursor.is_empty());
    let audited = match asked.account {
        Some(account) => one(&admin, &account, cursor.as_deref(), budget).await?,
        None => {
            let limit = asked.limit.unwrap_or(DEFAULT_PAGE);
            if !(1..=MAX_PAGE).contains(&limit) {
                return Err(Problem::bad_request(format!("limit is 1 to {MAX_PAGE}")));
            }
            page(&admin, limit, cursor.as_deref(), budget).await?
        }
    };
    Ok(json(StatusCode::OK, &audited))
}

async fn page(admin: &Admin, limit: u32, cursor: Option<&str>, budget: Duration) -> Result<Audited, Problem> {
    let after = cursor.map(|cursor| read(cursor).and_then(|text| AccountId::parse(&text).ok()).ok_or_else(bad_cursor));
    let after = after.transpose()?;
    let mut found = if after.is_none() { admin.auditor.shards().await? } else { Vec::new() };
    let page = admin.auditor.page(after.as_ref(), limit, budget).await?;
    found.extend(page.findings);
    let unfinished = |account| Unfinished { account, reason: "it takes longer than one page may".to_owned() };
    Ok(Audited {
        accounts: page.accounts,
        data: views(&found)?,
        unfinished: page.unfinished.into_iter().map(unfinished).collect(),
        next: page.last.map(|account| URL_SAFE_NO_PAD.encode(account.as_str())),
    })
}

async fn one(admin: &Admin, account: &AccountId, cursor: Option<&str>, budget: Duration) -> Result<Audited, Problem> {
    let from = match cursor {
        None => Summed::default(),
        Some(cursor) => read(cursor).as_deref().and_then(summed).ok_or_else(bad_cursor)?,
    };
    let looked = admin.auditor.account(account, from, budget).await?;
    let unfinished = |reason: &str| vec![Unfinished { account: account.clone(), reason: reason.to_owned() }];
    Ok(match looked.ok_or_else(|| Problem::not_found("there is no such user"))? {
        Looked::Done(found) => Audited { accounts: 1, data: views(&found)?, ..Audited::default() },
        Looked::Moving(why) => Audited { unfinished: unfinished(&why), ..Audited::default() },
        Looked::Summing(so_far) => Audited {
            unfinished: unfinished("its usage is being summed up"),
            next: Some(cursor_of(so_far)),
            ..Audited::default()
        },
    })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Repair {
    account: AccountId,
    #[serde(default)]
    cursor: Option<String>,
}

/// What a repair came to.
#[derive(Debug, Serialize)]
struct RepairView {
    account: AccountId,
    /// `mended`, `clean` where nothing had to be, `busy` while it is in use, `beyond` where a person must look, or
    /// `unfinished`: ask again with `next`.
    state: &'static str,
    /// Whether the store's rows changed, and whether the ledger loads the account anew.
    store: bool,
    ledger: bool,
    reason: Option<String>,
    next: Option<String>,
}

pub(super) async fn repair(State(admin): State<Arc<Admin>>, Json(asked): Json<Repair>) -> Result<Response, Problem> {
    let budget = BUDGET_MAX.min(Duration::from_millis(admin.config.api.timeout_ms / 2));
    let from = match asked.cursor.as_deref().filter(|cursor| !cursor.is_empty()) {
        None => Summed::default(),
        Some(cursor) => read(cursor).as_deref().and_then(summed).ok_or_else(bad_cursor)?,
    };
    let repaired = admin.auditor.repair(&asked.account, from, budget, OPERATOR).await?;
    let mut view =
        RepairView { account: asked.account, state: "clean", store: false, ledger: false, reason: None, next: None };
    match repaired.ok_or_else(|| Problem::not_found("there is no such user"))? {
        Repaired::Done { store: false, ledger: false } => {}
        Repaired::Done { store, ledger } => (view.state, view.store, view.ledger) = ("mended", store, ledger),
        Repaired::Summing(so_far) => (view.state, view.next) = ("unfinished", Some(cursor_of(so_far))),
        Repaired::Busy => {
            view.state = "busy";
            let why =
                "its usage is being added up, or the ledger cannot drop it while it is in use: try later, or freeze it";
            view.reason = Some(why.to_owned());
        }
        Repaired::Beyond(why) => (view.state, view.reason) = ("beyond", Some(why)),
    }
    Ok(json(StatusCode::OK, &view))
}

fn cursor_of(summed: Summed) -> String {
    let Summed { upto, micro, pruned, pruned_rows, figures } = summed;
    let figures = figures.as_array().map(|figure| figure.to_string()).join(" ");
    URL_SAFE_NO_PAD.encode(format!("{upto} {micro} {pruned} {pruned_rows} {figures}"))
}

fn summed(text: &str) -> Option<Summed> {
    let (upto, numbers) = text.split_once(' ')?;
    let numbers: Vec<i64> = numbers.split(' ').map(|number| number.parse().ok()).collect::<Option<_>>()?;
    let (&[micro, pruned, pruned_rows], figures) = numbers.split_first_chunk::<3>()?;
    let figures = Figures::from_array(figures.try_into().ok()?);
    Some(Summed { upto: upto.parse().ok()?, micro, pruned, pruned_rows, figures })
}

fn read(cursor: &str) -> Option<String> {
    URL_SAFE_NO_PAD.decode(cursor).ok().and_then(|bytes| String::from_utf8(bytes).ok())
}

fn bad_cursor() -> Problem {
    Problem::bad_request("a cursor is what an earlier page gave as next")
}

fn views(found: &[Finding]) -> Result<Vec<FindingView>, Problem> {
    found.iter().map(view).collect()
}

fn view(found: &Finding) -> Result<FindingView, Problem> {
    let figure = |value: i64| {
        let text = if found.check.is_money() { signed(value) } else { value.to_string() };
        RawValue::from_string(text).map_err(|_| Problem::internal())
    };
    Ok(FindingView {
        account: found.account.clone(),
        check: found.check.name(),
        equation: found.check.equation(),
        left: figure(found.left)?,
        right: figure(found.right)?,
        difference: figure(found.difference())?,
        which: found.which,
    })
}

/// Micro-credits of either sign as a decimal number.
fn signed(micro: i64) -> String {
    let size = Credits::saturating_from_micro(i128::from(micro).abs());
    if micro < 0 { format!("-{size}") } else { size.to_string() }
}

impl From<AuditError> for Problem {
    fn from(error: AuditError) -> Problem {
        match error {
            AuditError::Store(error) => error.into(),
            AuditError::Ledger(error) => error.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_exact() {
        assert_eq!(signed(-1), "-0.000001");
        assert_eq!(signed(5_250_000), "5.25");
        assert_eq!(signed(0), "0");
        let figures = Figures::from_array([1, 2, 3, 4, 5, 6, 7, 8]);
        let so_far = Summed { upto: 12, micro: -5, pruned: 3, pruned_rows: 2, figures };
        assert_eq!(read(&cursor_of(so_far)).as_deref().and_then(summed), Some(so_far));
        for hostile in ["12 5", "12 -5 3 2 1 2 3 4 5 6 7", "12 -5 3 2 1 2 3 4 5 6 7 8 9", "x -5 3 2 1 2 3 4 5 6 7 8"] {
            assert_eq!(summed(hostile), None);
        }
    }
}
