//! What was sold, what comes in by the month, and what is owed for it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, StatusCode, Uri};
use serde::Serialize;
use serde_json::value::RawValue;

use super::super::Admin;
use super::csv::{Field, Table};
use super::{Wanted, credits, decimal, named, no_table, wanted};
use crate::api::extract::json;
use crate::api::problem::Problem;
use crate::bridge::usage_sums::catch_up;
use crate::config::{Config, Interval};
use crate::store::reports::{self, CreditFacts, RevenueFacts, Subscribed};

const CATCH_UP: Duration = Duration::from_secs(2);
const TABLES: &str = "months, mrr, credits";
const MONTHS_A_YEAR: i64 = 12;

/// `GET /admin/v1/reports/revenue`. Amounts of money are whole numbers in the currency's smallest unit.
#[derive(Debug, Serialize)]
struct RevenueReport {
    from: String,
    to: String,
    complete: bool,
    /// As of now.
    mrr: Vec<Recurring>,
    /// Subscriptions whose price is no longer in the settings; they are not in `mrr`.
    unpriced_subscriptions: i64,
    trials: i64,
    past_due: i64,
    payers: i64,
    /// What the span took in, by currency.
    totals: Vec<Total>,
    months: Vec<Month>,
    failed_payments: Vec<Failed>,
    credits: CreditsPart,
}

/// Revenue by the month of one plan, in one currency; a year's price counts by its twelfth.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Recurring {
    plan: String,
    currency: String,
    subscriptions: i64,
    amount: i64,
}

#[derive(Debug, Default, PartialEq, Eq, Serialize)]
struct Total {
    currency: String,
    purchases: i64,
    amount: i64,
    /// Given back, or disputed; counted in the month of the purchase.
    refunded: i64,
    net: i64,
}

#[derive(Debug, Serialize)]
struct Month {
    month: String,
    currency: String,
    /// `plan` or `pack`.
    kind: &'static str,
    name: String,
    purchases: i64,
    amount: i64,
    refunded: i64,
    net: i64,
}

#[derive(Debug, Serialize)]
struct Failed {
    currency: String,
    /// Invoices and checkouts.
    payments: i64,
    attempts: i64,
}

#[derive(Debug, Serialize)]
struct CreditsPart {
    sold: Box<RawValue>,
    given: Box<RawValue>,
    used: Box<RawValue>,
    outstanding: Outstanding,
    debt: Box<RawValue>,
}

/// What users may still use, as of the last flush: a liability.
#[derive(Debug, Serialize)]
struct Outstanding {
    sold: Box<RawValue>,
    given: Box<RawValue>,
    total: Box<RawValue>,
}

pub(in super::super) async fn revenue(
    State(admin): State<Arc<Admin>>,
    headers: HeaderMap,
    uri: Uri,
) -> Result<Response, Problem> {
    let wanted = wanted(&uri, &headers)?;
    let complete = catch_up(&admin.store, None, CATCH_UP).await?;
    let facts = reports::revenue(&admin.store, wanted.span).await?;
    let (mrr, unpriced) = recurring(&admin.config, &facts.subscriptions);
    if wanted.csv {
        return table(&wanted, &facts, &mrr);
    }
    let with =
        |status: &str| facts.subscriptions.iter().filter(|row| row.status == status).map(|row| row.count).sum::<i64>();
    let report = RevenueReport {
        from: named(wanted.span.from),
        to: named(wanted.span.to),
        complete,
        unpriced_subscriptions: unpriced,
        trials: with("trialing"),
        past_due: with("past_due"),
        payers: facts.payers,
        totals: totals(&facts),
        months: facts.sales.iter().map(month).collect(),
        failed_payments: facts
            .failed
            .iter()
            .map(|(currency, payments, attempts)| Failed {
                currency: currency.clone(),
                payments: *payments,
                attempts: *attempts,
            })
            .collect(),
        credits: credits_part(facts.credits)?,
        mrr,
    };
    Ok(json(StatusCode::OK, &report))
}

fn month(sales: &reports::Sales) -> Month {
    Month {
        month: sales.month.clone(),
        currency: sales.currency.clone(),
        kind: if sales.pack { "pack" } else { "plan" },
        name: sales.name.clone(),
        purchases: sales.purchases,
        amount: sales.amount,
        refunded: sales.reversed,
        net: sales.amount - sales.reversed,
    }
}

fn totals(facts: &RevenueFacts) -> Vec<Total> {
    let mut found: BTreeMap<&str, Total> = BTreeMap::new();
    for sales in &facts.sales {
        let total = found.entry(&sales.currency).or_default();
        total.currency.clone_from(&sales.currency);
        total.purchases += sales.purchases;
        total.amount += sales.amount;
        total.refunded += sales.reversed;
        total.net += sales.amount - sales.reversed;
    }
    found.into_values().collect()
}

/// What subscriptions that are paid, or overdue, bring in a month. A trial brings nothing yet.
fn recurring(config: &Config, subscriptions: &[Subscribed]) -> (Vec<Recurring>, i64) {
    // One price of Stripe's may have amounts in several currencies, of which the settings name one.
    let prices: HashMap<(&str, &str), (Interval, i64)> = config
        .every_plan_price()
        .map(|price| ((price.id.as_str(), price.currency.as_str()), (price.interval, price.amount)))
        .collect();
    let mut yearly: BTreeMap<(&str, &str), (i64, i64)> = BTreeMap::new();
    let mut unpriced = 0;
    for row in subscriptions.iter().filter(|row| row.status != "trialing") {
        let Some((interval, amount)) = prices.get(&(row.price.as_str(), row.currency.as_str())) else {
            unpriced += row.count;
            continue;
        };
        let year = match interval {
            Interval::Month => amount.saturating_mul(MONTHS_A_YEAR),
            Interval::Year => *amount,
        };
        let (count, sum) = yearly.entry((&row.plan, &row.currency)).or_default();
        *count += row.count;
        *sum = sum.saturating_add(year.saturating_mul(row.count));
    }
    let view = |((plan, currency), (subscriptions, year)): ((&str, &str), (i64, i64))| Recurring {
        plan: plan.to_owned(),
        currency: currency.to_owned(),
        subscriptions,
        amount: (year + MONTHS_A_YEAR / 2) / MONTHS_A_YEAR,
    };
    (yearly.into_iter().map(view).collect(), unpriced)
}

fn credits_part(facts: CreditFacts) -> Result<CreditsPart, Problem> {
    let total = facts.outstanding_sold.saturating_add(facts.outstanding_given);
    Ok(CreditsPart {
        sold: credits(facts.sold)?,
        given: credits(facts.given)?,
        used: credits(facts.used)?,
        outstanding: Outstanding {
            sold: credits(facts.outstanding_sold)?,
            given: credits(facts.outstanding_given)?,
            total: credits(total)?,
        },
        debt: credits(facts.debt)?,
    })
}

fn table(wanted: &Wanted, facts: &RevenueFacts, mrr: &[Recurring]) -> Result<Response, Problem> {
    let number = |value: i64| Field::Number(value.to_string());
    let table = match wanted.table.as_deref().unwrap_or("months") {
        "months" => {
            let head = ["month", "currency", "kind", "name", "purchases", "amount", "refunded", "net"];
            let mut table = Table::new("revenue-months", &head);
            for row in facts.sales.iter().map(month) {
                table.row(&[
                    Field::Text(&row.month),
                    Field::Text(&row.currency),
                    Field::Text(row.kind),
                    Field::Text(&row.name),
                    number(row.purchases),
                    number(row.amount),
                    number(row.refunded),
                    number(row.net),
                ]);
            }
            table
        }
        "mrr" => {
            let mut table = Table::new("revenue-mrr", &["plan", "currency", "subscriptions", "amount"]);
            for row in mrr {
                let (count, amount) = (number(row.subscriptions), number(row.amount));
                table.row(&[Field::Text(&row.plan), Field::Text(&row.currency), count, amount]);
            }
            table
        }
        "credits" => {
            let mut table = Table::new("revenue-credits", &["what", "credits"]);
            let facts = facts.credits;
            let rows = [
                ("sold", facts.sold),
                ("given", facts.given),
                ("used", facts.used),
                ("outstanding_sold", facts.outstanding_sold),
                ("outstanding_given", facts.outstanding_given),
                ("debt", facts.debt),
            ];
            for (what, micro) in rows {
                table.row(&[Field::Text(what), Field::Number(decimal(micro))]);
            }
            table
        }
        _ => return no_table(TABLES),
    };
    Ok(table.into_response())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Plan, PlanPrice};

    #[test]
    fn a_year_counts_by_its_twelfth() {
        let mut config = Config::default();
        let price = |id: &str, interval, amount| PlanPrice { id: id.into(), interval, amount, ..PlanPrice::default() };
        let prices = vec![price("m", Interval::Month, 2_000), price("y", Interval::Year, 20_000)];
        config.plans.insert("pro".into(), Plan { prices, ..Plan::default() });
        let row = |price: &str, status: &str, count| Subscribed {
            plan: "pro".into(),
            price: price.into(),
            currency: "usd".into(),
            status: status.into(),
            count,
        };
        let rows = [row("m", "active", 3), row("y", "past_due", 1), row("m", "trialing", 9), row("old", "active", 2)];
        let (mrr, unpriced) = recurring(&config, &rows);
        // 20,000 by twelve is 1,666.67.
        let pro = Recurring { plan: "pro".into(), currency: "usd".into(), subscriptions: 4, amount: 7_667 };
        assert_eq!((mrr, unpriced), (vec![pro], 2));
    }
}
