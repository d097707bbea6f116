//! `faregate audit`: page after page of the admin API's audit, and what it found.

use std::collections::BTreeSet;
use std::io::{IsTerminal, Write};
use std::time::Duration;

use clap::Args;
use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;

use super::admin::Admin;
use super::commands::{escaped, get, post};
use super::show;
use crate::config::Config;
use crate::error::{Exit, Failure};
use crate::ledger::AccountId;

/// How often an account is asked for again that could not be compared, and how long is waited before.
const ATTEMPTS: u32 = 8;
const AGAIN_AFTER: Duration = Duration::from_millis(500);
/// How often a repair waits for an account that is in use, each time for as long as one call may take.
const MEND_ATTEMPTS: u32 = 1;
/// Pages and pieces at most: a cursor that leads nowhere must not ask for ever.
const CALLS_MAX: u32 = 10_000_000;

#[derive(Debug, Args)]
pub(super) struct AuditArgs {
    /// This user's books alone
    #[arg(long, value_name = "USER", value_parser = AccountId::parse)]
    account: Option<AccountId>,
    /// Mend what differs, in favour of billing changes and usage rows; the audit log keeps what was before
    #[arg(long)]
    repair: bool,
}

#[derive(Debug, Deserialize)]
struct Repaired {
    state: String,
    reason: Option<String>,
    next: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Audited {
    accounts: u64,
    data: Vec<Box<RawValue>>,
    unfinished: Vec<Unfinished>,
    next: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Unfinished {
    account: AccountId,
    reason: String,
}

#[derive(Debug, Deserialize)]
struct Finding {
    account: Option<AccountId>,
    equation: String,
    left: Box<RawValue>,
    right: Box<RawValue>,
    difference: Box<RawValue>,
    which: Option<u64>,
}

pub(super) async fn run(config: Config, arguments: AuditArgs, json: bool) -> Result<(), Failure> {
    let admin = Admin::find(config).await?;
    let mut audit =
        Audit { admin: &admin, json, repair: arguments.repair, accounts: 0, differences: 0, unproven: 0, mended: 0 };
    let audited = match &arguments.account {
        Some(account) => audit.one(account).await,
        None => audit.all().await,
    };
    let outcome = audited.and_then(|()| audit.outcome());
    admin.close().await?;
    outcome
}

struct Audit<'a> {
    admin: &'a Admin,
    json: bool,
    repair: bool,
    accounts: u64,
    differences: u64,
    unproven: u64,
    mended: u64,
}

impl Audit<'_> {
    async fn all(&mut self) -> Result<(), Failure> {
        let mut cursor = String::new();
        for _ in 0..CALLS_MAX {
            let page = self.ask(&format!("limit=100{cursor}")).await?;
            self.mend(&page.data).await?;
            for unfinished in page.unfinished {
                self.one(&unfinished.account).await?;
            }
            self.progress();
            match page.next {
                Some(next) => cursor = format!("&cursor={}", escaped(&next)),
                None => return Ok(()),
            }
        }
        Err(Failure::new(Exit::Internal, "the audit does not come to an end"))
    }

    /// Goes on until the account's usage is summed up and its books are compared, within reason.
    async fn one(&mut self, account: &AccountId) -> Result<(), Failure> {
        let (mut cursor, mut attempts) = (String::new(), 0);
        for _ in 0..CALLS_MAX {
            let step = self.ask(&format!("account={}{cursor}", escaped(account.as_str()))).await?;
            let Some(unfinished) = step.unfinished.first() else { return self.mend(&step.data).await };
            if let Some(next) = step.next {
                cursor = format!("&cursor={}", escaped(&next));
                continue;
            }
            attempts += 1;
            if attempts >= ATTEMPTS {
                return self.unproven(account, &unfinished.reason);
            }
            tokio::time::sleep(AGAIN_AFTER).await;
        }
        Err(Failure::new(Exit::Internal, format!("the audit of {account} does not come to an end")))
    }

    async fn ask(&mut self, query: &str) -> Result<Audited, Failure> {
        let body = self.admin.call(get(format!("/admin/v1/audit/books?{query}"))).await?;
        let audited: Audited = read(&body)?;
        self.accounts += audited.accounts;
        for found in &audited.data {
            self.differences += 1;
            show::text(&if self.json { found.get().to_owned() } else { line(&read(found.get())?) })?;
        }
        Ok(audited)
    }

    /// Mends the accounts that were found to differ, if that was asked for. Another audit tells whether it took.
    async fn mend(&mut self, found: &[Box<RawValue>]) -> Result<(), Failure> {
        if !self.repair {
            return Ok(());
        }
        let mut accounts = BTreeSet::new();
        for found in found {
            accounts.extend(read::<Finding>(found.get())?.account);
        }
        for account in accounts {
            let (state, reason) = self.mend_one(&account).await?;
            if state == "mended" || state == "clean" {
                self.mended += 1;
            }
            let line = match self.json {
                true => json!({ "account": account, "repair": state, "reason": reason }).to_string(),
                false => format!("{account}: {state}{}", reason.map(|why| format!(": {why}")).unwrap_or_default()),
            };
            show::text(&line)?;
        }
        Ok(())
    }

    async fn mend_one(&self, account: &AccountId) -> Result<(String, Option<String>), Failure> {
        let (mut cursor, mut attempts) = (None, 0);
        for _ in 0..CALLS_MAX {
            let call = post("/admin/v1/audit/books/repair".into(), &json!({ "account": account, "cursor": cursor }))?;
            let answer: Repaired = read(&self.admin.call(call).await?)?;
            match answer.state.as_str() {
                "unfinished" => cursor = answer.next,
                "busy" if attempts < MEND_ATTEMPTS => {
                    attempts += 1;
                    tokio::time::sleep(AGAIN_AFTER).await;
                }
                _ => return Ok((answer.state, answer.reason)),
            }
        }
        Err(Failure::new(Exit::Internal, format!("the repair of {account} does not come to an end")))
    }

    fn unproven(&mut self, account: &AccountId, reason: &str) -> Result<(), Failure> {
        self.unproven += 1;
        let line = match self.json {
            true => json!({ "account": account, "check": "unproven", "reason": reason }).to_string(),
            false => format!("{account}: could not be compared: {reason}"),
        };
        show::text(&line)
    }

    /// For people who wait.
    fn progress(&self) {
        let mut out = std::io::stderr();
        if out.is_terminal() {
            // Whoever closed it does not want to know.
            let _ = write!(out, "\r{} accounts", self.accounts).and_then(|()| out.flush());
        }
    }

    fn outcome(&self) -> Result<(), Failure> {
        if std::io::stderr().is_terminal() {
            let _ = write!(std::io::stderr(), "\r");
        }
        let Audit { accounts, differences, unproven, mended, .. } = self;
        if self.json {
            let summary = json!({
                "accounts": accounts, "differences": differences, "unproven": unproven, "mended": mended,
            });
            show::text(&summary.to_string())?;
        }
        if *differences > 0 || *unproven > 0 {
            let mended =
                if self.repair { format!("; {mended} accounts are mended: audit again") } else { String::new() };
            let message =
                format!("{differences} differences and {unproven} unproven accounts, {accounts} audited{mended}");
            return Err(Failure::new(Exit::Differs, message));
        }
        if self.json { Ok(()) } else { show::text(&format!("the books of {accounts} accounts balance")) }
    }
}

fn line(found: &Finding) -> String {
    let whose = match (&found.account, found.which) {
        (Some(account), None) => account.to_string(),
        (Some(account), Some(grant)) => format!("{account}, grant {grant}"),
        (None, shard) => format!("shard {}", shard.unwrap_or_default()),
    };
    let Finding { equation, left, right, difference, .. } = found;
    format!("{whose}: {equation}: {left} against {right}, by {difference}")
}

fn read<'a, T: Deserialize<'a>>(text: &'a str) -> Result<T, Failure> {
    serde_json::from_str(text).map_err(Failure::while_doing(Exit::Internal, "the answer"))
}
