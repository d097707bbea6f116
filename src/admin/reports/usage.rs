//! How the product is used, and by whom.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, StatusCode, Uri};
use serde::Serialize;
use serde_json::value::RawValue;

use super::super::Admin;
use super::csv::{Field, Table};
use super::{Wanted, credits, decimal, named, no_table, percent, wanted};
use crate::api::extract::json;
use crate::api::problem::Problem;
use crate::bridge::usage_sums::catch_up;
use crate::store::reports::{self, Slice, UsageAsked, UsageFacts};
use crate::store::usage_sums::Figures;

/// How long a report waits for usage to be added up that was flushed just now.
const CATCH_UP: Duration = Duration::from_secs(2);
const TABLES: &str = "days, plans, models, near_limit";

/// `GET /admin/v1/reports/usage`: `to` is the first day that is not in it.
#[derive(Debug, Serialize)]
struct UsageReport {
    from: String,
    to: String,
    /// `false`: there is so much fresh usage that not all of it is in yet.
    complete: bool,
    totals: Sums,
    users: Users,
    conversion: Conversion,
    days: Vec<DayView>,
    plans: Vec<PlanView>,
    models: Vec<ModelView>,
    near_limit: Vec<NearView>,
}

#[derive(Debug, Serialize)]
struct Sums {
    messages: i64,
    credits: Box<RawValue>,
    input_tokens: i64,
    cached_tokens: i64,
    output_tokens: i64,
    /// Messages whose tokens were estimated.
    estimated: i64,
    client_errors: i64,
    server_errors: i64,
}

#[derive(Debug, Serialize)]
struct Users {
    /// Now, without closed accounts.
    total: i64,
    new: i64,
    active: i64,
    heavy: i64,
    /// Active in the span, and before it.
    returning: i64,
    near_limit: i64,
    exhausted: i64,
}

#[derive(Debug, Serialize)]
struct Conversion {
    /// Users made in the span, and those of them who have paid since.
    signed_up: i64,
    paid: i64,
    percent: Option<Box<RawValue>>,
    /// Users who paid for the first time in the span, whenever they came.
    first_paid: i64,
}

#[derive(Debug, Serialize)]
struct DayView {
    day: String,
    active_users: i64,
    new_users: i64,
    #[serde(flatten)]
    sums: Sums,
}

#[derive(Debug, Serialize)]
struct PlanView {
    /// That the users are on now.
    plan: String,
    users: i64,
    active_users: i64,
    #[serde(flatten)]
    sums: Sums,
}

#[derive(Debug, Serialize)]
struct ModelView {
    /// Null: no model was named, or, with `other`, all models beyond the dearest.
    model: Option<String>,
    other: bool,
    active_users: Option<i64>,
    #[serde(flatten)]
    sums: Sums,
}

#[derive(Debug, Serialize)]
struct NearView {
    user: String,
    plan: String,
    remaining: Box<RawValue>,
    granted: Box<RawValue>,
}

pub(in super::super) async fn usage(
    State(admin): State<Arc<Admin>>,
    headers: HeaderMap,
    uri: Uri,
) -> Result<Response, Problem> {
    let wanted = wanted(&uri, &headers)?;
    let complete = catch_up(&admin.store, None, CATCH_UP).await?;
    let current = admin.current.get();
    let settings = &current.reports;
    let days = i64::from(wanted.span.to - wanted.span.from);
    let asked = UsageAsked {
        span: wanted.span,
        heavy_messages: i64::from(settings.heavy_messages_per_day).saturating_mul(days),
        near_limit_percent: i64::from(settings.near_limit_percent),
        now: u64::try_from(jiff::Timestamp::now().as_microsecond()).unwrap_or(0),
    };
    let facts = reports::usage(&admin.store, asked).await?;
    if wanted.csv {
        return table(&wanted, &facts);
    }
    Ok(json(StatusCode::OK, &view(&wanted, complete, &facts)?))
}

fn view(wanted: &Wanted, complete: bool, facts: &UsageFacts) -> Result<UsageReport, Problem> {
    let near = facts.near.iter().map(|near| {
        Ok(NearView {
            user: near.user.clone(),
            plan: near.plan.clone(),
            remaining: credits(near.remaining)?,
            granted: credits(near.granted)?,
        })
    });
    Ok(UsageReport {
        from: named(wanted.span.from),
        to: named(wanted.span.to),
        complete,
        totals: sums(&facts.totals.figures)?,
        users: Users {
            total: facts.users.iter().map(|(_, count)| count).sum(),
            new: facts.signed_up,
            active: facts.totals.active_users,
            heavy: facts.heavy,
            returning: facts.returning,
            near_limit: facts.near_limit,
            exhausted: facts.exhausted,
        },
        conversion: Conversion {
            signed_up: facts.signed_up,
            paid: facts.signed_up_paid,
            percent: percent(facts.signed_up_paid, facts.signed_up)?,
            first_paid: facts.first_paid,
        },
        days: days(facts).into_iter().map(|(day, new, slice)| day_view(day, new, &slice)).collect::<Result<_, _>>()?,
        plans: plans(facts).into_iter().map(|(users, slice)| plan_view(users, slice)).collect::<Result<_, _>>()?,
        models: models(facts).into_iter().map(|(other, slice)| model_view(other, slice)).collect::<Result<_, _>>()?,
        near_limit: near.collect::<Result<_, Problem>>()?,
    })
}

fn sums(figures: &Figures) -> Result<Sums, Problem> {
    Ok(Sums {
        messages: figures.requests,
        credits: credits(figures.charged)?,
        input_tokens: figures.input_tokens,
        cached_tokens: figures.cached_tokens,
        output_tokens: figures.output_tokens,
        estimated: figures.estimated,
        client_errors: figures.client_errors,
        server_errors: figures.server_errors,
    })
}

fn day_view(day: i32, new_users: i64, slice: &Slice) -> Result<DayView, Problem> {
    Ok(DayView { day: named(day), active_users: slice.active_users, new_users, sums: sums(&slice.figures)? })
}

fn plan_view(users: i64, slice: Slice) -> Result<PlanView, Problem> {
    let sums = sums(&slice.figures)?;
    Ok(PlanView { plan: slice.of, users, active_users: slice.active_users, sums })
}

fn model_view(other: bool, slice: Slice) -> Result<ModelView, Problem> {
    let sums = sums(&slice.figures)?;
    let active_users = (!other).then_some(slice.active_users);
    Ok(ModelView { model: Some(slice.of).filter(|model| !model.is_empty()), other, active_users, sums })
}

/// Days on which anything happened, with the users made on each.
fn days(facts: &UsageFacts) -> Vec<(i32, i64, Slice)> {
    let mut found: BTreeMap<i32, (i64, Slice)> = BTreeMap::new();
    for slice in &facts.days {
        found.entry(slice.of.parse().unwrap_or(0)).or_default().1 = slice.clone();
    }
    for (day, count) in &facts.made {
        found.entry(day.parse().unwrap_or(0)).or_default().0 = *count;
    }
    found.into_iter().map(|(day, (new, slice))| (day, new, slice)).collect()
}

/// Plans that anybody is on, with or without usage.
fn plans(facts: &UsageFacts) -> Vec<(i64, Slice)> {
    let mut found: BTreeMap<String, (i64, Slice)> = BTreeMap::new();
    for slice in &facts.plans {
        found.entry(slice.of.clone()).or_default().1 = slice.clone();
    }
    for (plan, count) in &facts.users {
        found.entry(plan.clone()).or_default().0 = *count;
    }
    found.into_iter().map(|(plan, (users, slice))| (users, Slice { of: plan, ..slice })).collect()
}

/// The models, and what is left of the total, where there are more.
fn models(facts: &UsageFacts) -> Vec<(bool, Slice)> {
    let mut found: Vec<(bool, Slice)> = facts.models.iter().map(|slice| (false, slice.clone())).collect();
    if facts.models.len() >= reports::MODELS_MAX {
        let mut rest = facts.totals.figures;
        for slice in &facts.models {
            rest = rest.minus(&slice.figures);
        }
        if rest.requests > 0 {
            found.push((true, Slice { figures: rest, ..Slice::default() }));
        }
    }
    found
}

fn table(wanted: &Wanted, facts: &UsageFacts) -> Result<Response, Problem> {
    const SUMS: [&str; 8] = [
        "messages",
        "credits",
        "input_tokens",
        "cached_tokens",
        "output_tokens",
        "estimated",
        "client_errors",
        "server_errors",
    ];
    let number = |value: i64| Field::Number(value.to_string());
    let head = |first: &[&'static str]| [first, &SUMS[..]].concat();
    let table = match wanted.table.as_deref().unwrap_or("days") {
        "days" => {
            let mut table = Table::new("usage-days", &head(&["day", "active_users", "new_users"]));
            for (day, new, slice) in days(facts) {
                let day = named(day);
                let first = vec![Field::Text(&day), number(slice.active_users), number(new)];
                table.row(&joined(first, fields(&slice.figures)));
            }
            table
        }
        "plans" => {
            let mut table = Table::new("usage-plans", &head(&["plan", "users", "active_users"]));
            for (users, slice) in plans(facts) {
                let first = vec![Field::Text(&slice.of), number(users), number(slice.active_users)];
                table.row(&joined(first, fields(&slice.figures)));
            }
            table
        }
        "models" => {
            let mut table = Table::new("usage-models", &head(&["model", "active_users"]));
            for (other, slice) in models(facts) {
                let name = if other { "(others)" } else { &slice.of };
                let users = if other { Field::None } else { number(slice.active_users) };
                table.row(&joined(vec![Field::Text(name), users], fields(&slice.figures)));
            }
            table
        }
        "near_limit" => {
            let mut table = Table::new("near-limit", &["user", "plan", "remaining", "granted"]);
            for near in &facts.near {
                let figures = [near.remaining, near.granted].map(|micro| Field::Number(decimal(micro)));
                table.row(&joined(vec![Field::Text(&near.user), Field::Text(&near.plan)], figures.into()));
            }
            table
        }
        _ => return no_table(TABLES),
    };
    Ok(table.into_response())
}

fn fields(figures: &Figures) -> Vec<Field<'static>> {
    let number = |value: i64| Field::Number(value.to_string());
    vec![
        number(figures.requests),
        Field::Number(decimal(figures.charged)),
        number(figures.input_tokens),
        number(figures.cached_tokens),
        number(figures.output_tokens),
        number(figures.estimated),
        number(figures.client_errors),
        number(figures.server_errors),
    ]
}

fn joined<'a>(mut first: Vec<Field<'a>>, rest: Vec<Field<'a>>) -> Vec<Field<'a>> {
    first.extend(rest);
    first
}
