//! What reports are made of: usage from its sums by day, money from what was paid. Each report is of one moment.

use super::questions::{self, Cell, Question, Row, day, int, number, string, text, time};
use super::usage_sums::Figures;
use super::{Page, PageRequest, SharedStore, StoreResult, common};
use crate::ledger::{AccountId, Micros};

/// Models that a report tells apart; the others are told together.
pub const MODELS_MAX: usize = 100;
/// Users near their limit who are named.
pub const NEAR_MAX: usize = 100;
/// Plans, or kinds of purchases by month, that a report tells apart.
const KINDS_MAX: i64 = 5_000;
const DAY_US: u64 = 24 * 3600 * 1_000_000;
/// A grant that is used up still counts as what a user had for so long.
const RECENT_US: u64 = 31 * DAY_US;

const FIGURES: &str = "CAST(coalesce(sum(requests), 0) AS bigint), CAST(coalesce(sum(charged), 0) AS bigint),
    CAST(coalesce(sum(input_tokens), 0) AS bigint), CAST(coalesce(sum(cached_tokens), 0) AS bigint),
    CAST(coalesce(sum(output_tokens), 0) AS bigint), CAST(coalesce(sum(estimated), 0) AS bigint),
    CAST(coalesce(sum(client_errors), 0) AS bigint), CAST(coalesce(sum(server_errors), 0) AS bigint)";

/// Whole days, UTC, as numbers since 1970: from this one on, and before that one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    pub from: i32,
    pub to: i32,
}

impl Span {
    fn micros(self) -> (Micros, Micros) {
        let micros = |day: i32| u64::try_from(day).unwrap_or(0).saturating_mul(DAY_US);
        (micros(self.from), micros(self.to))
    }
}

#[derive(Debug, Clone, Copy)]
pub struct UsageAsked {
    pub span: Span,
    /// Messages in the span from which on a user counts as heavy.
    pub heavy_messages: i64,
    /// Percent of their credits from which down users count as near their limit.
    pub near_limit_percent: i64,
    pub now: Micros,
}

/// Usage of one day, plan or model.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Slice {
    /// A day as a number since 1970.
    pub of: String,
    pub active_users: i64,
    pub figures: Figures,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NearLimit {
    pub user: String,
    pub plan: String,
    /// Micro-credits.
    pub remaining: i64,
    pub granted: i64,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UsageFacts {
    pub totals: Slice,
    /// Only days with usage.
    pub days: Vec<Slice>,
    /// By the plan that users are on now.
    pub plans: Vec<Slice>,
    /// The dearest first.
    pub models: Vec<Slice>,
    /// Users by plan, closed ones left out.
    pub users: Vec<(String, i64)>,
    /// Users made, by day.
    pub made: Vec<(String, i64)>,
    /// Active users who sent many messages, and who were active before the span too.
    pub heavy: i64,
    pub returning: i64,
    /// Users with little left, and with nothing.
    pub near_limit: i64,
    pub exhausted: i64,
    /// Some of those with little left.
    pub near: Vec<NearLimit>,
    /// Users made in the span, and those of them who have paid since.
    pub signed_up: i64,
    pub signed_up_paid: i64,
    /// Users who paid for the first time in the span.
    pub first_paid: i64,
}

fn figures(row: &[Cell], first: usize) -> Figures {
    let at = |column| number(row, first + column);
    Figures {
        requests: at(0),
        charged: at(1),
        input_tokens: at(2),
        cached_tokens: at(3),
        output_tokens: at(4),
        estimated: at(5),
        client_errors: at(6),
        server_errors: at(7),
    }
}

fn slices(rows: &[Row]) -> Vec<Slice> {
    let of = |row: &Row| match row.first() {
        Some(Cell::Int(day)) => day.to_string(),
        Some(Cell::Text(text)) => text.clone(),
        _ => String::new(),
    };
    rows.iter().map(|row| Slice { of: of(row), active_users: number(row, 1), figures: figures(row, 2) }).collect()
}

fn counted(rows: &[Row]) -> Vec<(String, i64)> {
    let of = |row: &Row| match row.first() {
        Some(Cell::Int(day)) => day.to_string(),
        _ => string(row, 0),
    };
    rows.iter().map(|row| (of(row), number(row, 1))).collect()
}

/// How users of a span used what they have.
pub async fn usage(store: &SharedStore, asked: UsageAsked) -> StoreResult<UsageFacts> {
    let answers = store.ask(usage_questions(asked)).await?;
    let mut answers = answers.into_iter();
    let mut next = || answers.next().unwrap_or_default();
    let first = |rows: Vec<Row>| rows.into_iter().next().unwrap_or_default();
    let totals = slices(&next()).pop().unwrap_or_default();
    let (days, plans, models) = (slices(&next()), slices(&next()), slices(&next()));
    let (users, made) = (counted(&next()), counted(&next()));
    let (activity, limits) = (first(next()), first(next()));
    let near = next();
    let (cohort, first_paid) = (first(next()), first(next()));
    let near = near.iter().map(|row| NearLimit {
        user: string(row, 0),
        plan: string(row, 1),
        remaining: number(row, 2),
        granted: number(row, 3),
    });
    Ok(UsageFacts {
        totals,
        days,
        plans,
        models,
        users,
        made,
        heavy: number(&activity, 0),
        returning: number(&activity, 1),
        exhausted: number(&limits, 0),
        near_limit: number(&limits, 1),
        near: near.collect(),
        signed_up: number(&cohort, 0),
        signed_up_paid: number(&cohort, 1),
        first_paid: number(&first_paid, 0),
    })
}

fn usage_questions(asked: UsageAsked) -> Vec<Question> {
    let Span { from, to } = asked.span;
    let (from_us, to_us) = asked.span.micros();
    let days = || vec![day(from), day(to)];
    let times = || vec![time(from_us), time(to_us)];
    let within = "day >= ? AND day < ?";
    // What users have: grants that are not over, with those that were used up lately.
    let had = "SELECT g.user_id AS user_id, u.plan AS plan, CAST(sum(g.remaining) AS bigint) AS remaining,
            CAST(sum(g.amount) AS bigint) AS granted
        FROM credit_grants AS g JOIN users AS u ON u.id = g.user_id AND u.status = 'active'
        WHERE (g.expires_at IS NULL OR g.expires_at > ?) AND (g.remaining > 0 OR g.created_at >= ?)
        GROUP BY g.user_id, u.plan";
    let had_values = || vec![time(asked.now), time(asked.now.saturating_sub(RECENT_US))];
    let little = "remaining > 0 AND remaining * 100 <= granted * ?";
    let with = |mut values: Vec<questions::Value>, more: i64| {
        values.push(int(more));
        values
    };
    vec![
        Question::new(
            format!("SELECT 'all', count(DISTINCT user_id), {FIGURES} FROM usage_days WHERE {within}"),
            days(),
        ),
        Question::new(
            format!(
                "SELECT {{day}}, count(DISTINCT user_id), {FIGURES} FROM usage_days WHERE {within}
                GROUP BY day ORDER BY day"
            ),
            days(),
        ),
        Question::new(
            format!(
                "SELECT u.plan, count(DISTINCT d.user_id), {FIGURES}
                FROM usage_days AS d JOIN users AS u ON u.id = d.user_id WHERE {within}
                GROUP BY u.plan ORDER BY u.plan LIMIT {KINDS_MAX}"
            ),
            days(),
        ),
        Question::new(
            format!(
                "SELECT model, count(DISTINCT user_id), {FIGURES} FROM usage_days WHERE {within}
                GROUP BY model ORDER BY sum(charged) DESC, model LIMIT {MODELS_MAX}"
            ),
            days(),
        ),
        Question::new(
            format!(
                "SELECT plan, count(*) FROM users WHERE status <> 'closed' GROUP BY plan ORDER BY plan LIMIT {KINDS_MAX}"
            ),
            [],
        ),
        Question::new(
            "SELECT {day:created_at} AS made, count(*) FROM users WHERE created_at >= ? AND created_at < ? GROUP BY 1
                ORDER BY 1",
            times(),
        ),
        Question::new(
            format!(
                "SELECT count(*) FILTER (WHERE messages >= ?), count(*) FILTER (WHERE EXISTS (
                    SELECT 1 FROM usage_days AS b WHERE b.user_id = a.user_id AND b.day < ?))
                FROM (SELECT user_id, sum(requests) AS messages FROM usage_days WHERE {within} GROUP BY user_id) AS a"
            ),
            [int(asked.heavy_messages), day(from), day(from), day(to)],
        ),
        Question::new(
            format!("SELECT count(*) FILTER (WHERE remaining = 0), count(*) FILTER (WHERE {little}) FROM ({had}) AS h"),
            [vec![int(asked.near_limit_percent)], had_values()].concat(),
        ),
        Question::new(
            format!(
                "SELECT user_id, plan, remaining, granted FROM ({had}) AS h WHERE {little}
                ORDER BY remaining, user_id LIMIT {NEAR_MAX}"
            ),
            with(had_values(), asked.near_limit_percent),
        ),
        Question::new(
            "SELECT count(*), count(*) FILTER (WHERE EXISTS (
                SELECT 1 FROM purchases AS p WHERE p.user_id = u.id AND p.amount > 0))
            FROM users AS u WHERE created_at >= ? AND created_at < ?",
            times(),
        ),
        Question::new(
            "SELECT count(*) FROM (SELECT user_id, min(created_at) AS began FROM purchases WHERE amount > 0
                GROUP BY user_id) AS p WHERE began >= ? AND began < ?",
            times(),
        ),
    ]
}

/// Money of one month, currency and thing. Amounts are in the currency's smallest unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sales {
    pub month: String,
    pub currency: String,
    /// The plan or pack.
    pub name: String,
    pub pack: bool,
    pub purchases: i64,
    pub amount: i64,
    /// What of it went back, or is disputed.
    pub reversed: i64,
}

/// Subscriptions of one price that stand now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subscribed {
    pub plan: String,
    pub price: String,
    pub currency: String,
    /// In Stripe's words: `active`, `past_due` or `trialing`.
    pub status: String,
    pub count: i64,
}

/// Credits, in micro-credits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CreditFacts {
    /// Given in the span for money, and for nothing.
    pub sold: i64,
    pub given: i64,
    /// Charged in the span.
    pub used: i64,
    /// What users may still use now, by how it was given.
    pub outstanding_sold: i64,
    pub outstanding_given: i64,
    pub debt: i64,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RevenueFacts {
    pub sales: Vec<Sales>,
    pub subscriptions: Vec<Subscribed>,
    /// Invoices and checkouts of the span whose payment failed, and attempts in all; by currency.
    pub failed: Vec<(String, i64, i64)>,
    pub credits: CreditFacts,
    /// Users whose purchases are worth something now.
    pub payers: i64,
}

/// What was sold in a span, and what is owed for it now.
pub async fn revenue(store: &SharedStore, span: Span) -> StoreResult<RevenueFacts> {
    let answers = store.ask(revenue_questions(span)).await?;
    let mut answers = answers.into_iter();
    let mut next = || answers.next().unwrap_or_default();
    let sales = next().iter().map(sale).collect();
    let subscriptions = next().iter().map(subscribed).collect();
    let failed = next().iter().map(|row| (string(row, 0), number(row, 1), number(row, 2))).collect();
    let mut credits = CreditFacts::default();
    for row in next() {
        let (fresh, left) = (number(&row, 1), number(&row, 2));
        if number(&row, 0) == 1 {
            (credits.sold, credits.outstanding_sold) = (fresh, left);
        } else {
            (credits.given, credits.outstanding_given) = (fresh, left);
        }
    }
    credits.used = next().first().map_or(0, |row| number(row, 0));
    credits.debt = next().first().map_or(0, |row| number(row, 0));
    let payers = next().first().map_or(0, |row| number(row, 0));
    Ok(RevenueFacts { sales, subscriptions, failed, credits, payers })
}

fn sale(row: &Row) -> Sales {
    Sales {
        month: string(row, 0),
        currency: string(row, 1),
        name: string(row, 2),
        pack: number(row, 3) == 1,
        purchases: number(row, 4),
        amount: number(row, 5),
        reversed: number(row, 6),
    }
}

fn subscribed(row: &Row) -> Subscribed {
    Subscribed {
        plan: string(row, 0),
        price: string(row, 1),
        currency: string(row, 2),
        status: string(row, 3),
        count: number(row, 4),
    }
}

fn revenue_questions(span: Span) -> Vec<Question> {
    let (from, to) = span.micros();
    let times = || vec![time(from), time(to)];
    vec![
        Question::new(
            format!(
                "SELECT {{month:created_at}} AS month, currency, name, CASE WHEN kind = 'pack' THEN 1 ELSE 0 END AS pack,
                    count(*), CAST(sum(amount) AS bigint), CAST(sum(reversed) AS bigint)
                FROM purchases WHERE amount > 0 AND created_at >= ? AND created_at < ?
                GROUP BY 1, 2, 3, 4 ORDER BY 1, 2, 3, 4 LIMIT {KINDS_MAX}"
            ),
            times(),
        ),
        Question::new(
            format!(
                "SELECT plan, price_id, currency, status, count(*) FROM subscriptions
                WHERE ended_at IS NULL AND NOT paused AND status IN ('active', 'past_due', 'trialing')
                GROUP BY plan, price_id, currency, status ORDER BY plan, price_id, currency, status LIMIT {KINDS_MAX}"
            ),
            [],
        ),
        // Each failed attempt is an event of its own.
        Question::new(
            "SELECT coalesce(currency, ''), count(DISTINCT object_id), count(*) FROM billing_events
                WHERE event_type IN ('invoice.payment_failed', 'checkout.session.async_payment_failed')
                    AND received_at >= ? AND received_at < ?
                GROUP BY 1 ORDER BY 1",
            times(),
        ),
        // What a month leaves for the next, and what a lost dispute gives back, was sold before.
        Question::new(
            "SELECT CASE WHEN p.amount > 0 THEN 1 ELSE 0 END AS paid,
                CAST(coalesce(sum(g.amount) FILTER (WHERE g.created_at >= ? AND g.created_at < ?
                    AND (m.use IS NULL OR m.use = 'main')), 0) AS bigint),
                CAST(coalesce(sum(g.remaining), 0) AS bigint)
            FROM credit_grants AS g LEFT JOIN purchase_grants AS m ON m.source_key = g.source_key
                LEFT JOIN purchases AS p ON p.id = m.purchase_id
            GROUP BY 1",
            times(),
        ),
        Question::new(
            "SELECT CAST(coalesce(sum(charged), 0) AS bigint) FROM usage_days WHERE day >= ? AND day < ?",
            [day(span.from), day(span.to)],
        ),
        Question::new("SELECT CAST(coalesce(sum(debt), 0) AS bigint) FROM credits", []),
        Question::new("SELECT count(DISTINCT user_id) FROM purchases WHERE amount > reversed", []),
    ]
}

/// Which lines of the audit log are shown.
#[derive(Debug, Clone, Default)]
pub struct AuditFilter {
    pub user: Option<AccountId>,
    pub actor: Option<String>,
    pub action: Option<String>,
}

/// Who did what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditLine {
    pub id: i64,
    pub at: Micros,
    pub actor: String,
    pub action: String,
    pub user: Option<String>,
    pub detail: String,
}

/// The audit log, newest first.
pub async fn audit_log(store: &SharedStore, filter: AuditFilter, page: PageRequest) -> StoreResult<Page<AuditLine>> {
    let slice = common::slice(&page)?;
    let mut values = vec![int(common::position(&slice)?)];
    let mut conditions = String::from("id < ?");
    let wanted =
        [("user_id", filter.user.map(|user| user.to_string())), ("actor", filter.actor), ("action", filter.action)];
    for (column, value) in wanted {
        if let Some(value) = value {
            conditions.push_str(&format!(" AND {column} = ?"));
            values.push(text(value));
        }
    }
    let select = format!(
        "SELECT id, {{micros:at}}, actor, action, user_id, detail FROM audit_log WHERE {conditions}
        ORDER BY id DESC LIMIT {}",
        slice.rows
    );
    let rows = store.ask(vec![Question::new(select, values)]).await?.pop().unwrap_or_default();
    let lines = rows.iter().map(|row| AuditLine {
        id: number(row, 0),
        at: row.get(1).and_then(Cell::micros).unwrap_or(0),
        actor: string(row, 2),
        action: string(row, 3),
        user: row.get(4).and_then(Cell::text).map(str::to_owned),
        detail: string(row, 5),
    });
    Ok(common::page(lines.collect(), &slice, |line| line.id.to_string()))
}
