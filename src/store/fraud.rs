//! What speaks against accounts, and what was done about it.

use super::questions::{Cell, Question, int, number, string, text, time};
use super::{Page, PageRequest, SharedStore, StoreResult, common};
use crate::ledger::{AccountId, Micros};

/// Accounts that one question answers at most.
pub const ACCOUNTS_MAX: usize = 500;

/// Something that speaks against an account. One of the same user, signal and source is raised once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewSignal {
    pub user: String,
    pub signal: &'static str,
    /// What it was seen in: a day, a card, an event.
    pub source: String,
    /// 0 to 100.
    pub score: i64,
    /// For people.
    pub reason: String,
    pub at: Micros,
}

/// A signal as it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignalRow {
    pub id: i64,
    pub user: String,
    pub signal: String,
    pub source: String,
    pub score: i64,
    pub reason: String,
    pub at: Micros,
    pub cleared_at: Option<Micros>,
    pub cleared_by: Option<String>,
}

/// What an account's signals come to, and what was done about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Case {
    pub user: String,
    pub score: i64,
    /// Of the last signal.
    pub last: i64,
    /// `log`, `warn`, `hold` or `freeze`; `None`: nothing yet.
    pub action: Option<String>,
}

/// Accounts that came from one address block.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Block {
    /// Within the burst's window, this one with them.
    pub burst: i64,
    /// Others, in the longer window, that used all they were given up and paid nothing.
    pub farmed: i64,
}

/// Notes how an account came, and tells who else came that way. Once a user.
pub async fn signed_up(
    store: &SharedStore,
    user: &AccountId,
    block: Option<&str>,
    now: Micros,
    (burst_since, farmed_since): (Micros, Micros),
) -> StoreResult<Block> {
    // Told of by the issuer first, a user's block is known once a token comes.
    let insert = "INSERT INTO fraud_signups (user_id, block, at) VALUES (?, ?, ?)
        ON CONFLICT (user_id) DO UPDATE SET block = excluded.block WHERE fraud_signups.block IS NULL";
    let block_value = super::questions::Value::Text(block.map(str::to_owned));
    store.execute(vec![Question::new(insert, [text(user.as_str()), block_value, time(now)])]).await?;
    // Where an account came from counts, not where it goes.
    let own = Question::new("SELECT block FROM fraud_signups WHERE user_id = ?", [text(user.as_str())]);
    let own = store.ask(vec![own]).await?;
    let own = own.first().and_then(|rows| rows.first()).map(|row| string(row, 0)).unwrap_or_default();
    if own.is_empty() {
        return Ok(Block::default());
    }
    let block = own.as_str();
    let burst = "SELECT count(*) FROM fraud_signups WHERE block = ? AND at >= ?";
    // Whoever has credits left, or has ever paid, is a customer like others.
    let farmed = "SELECT count(*) FROM fraud_signups AS s WHERE s.block = ? AND s.at >= ? AND s.user_id <> ?
        AND EXISTS (SELECT 1 FROM credit_grants AS g WHERE g.user_id = s.user_id AND g.kind = 'free')
        AND NOT EXISTS (SELECT 1 FROM credit_grants AS g WHERE g.user_id = s.user_id AND g.kind = 'free'
            AND g.remaining > 0)
        AND NOT EXISTS (SELECT 1 FROM purchases AS p WHERE p.user_id = s.user_id AND p.amount > 0)";
    let questions = vec![
        Question::new(burst, [text(block), time(burst_since)]),
        Question::new(farmed, [text(block), time(farmed_since), text(user.as_str())]),
    ];
    let answers = store.ask(questions).await?;
    let count = |answer: usize| answers.get(answer).and_then(|rows| rows.first()).map_or(0, |row| number(row, 0));
    Ok(Block { burst: count(0), farmed: count(1) })
}

/// Raises signals, each with a line in the audit log. Answers how many were new.
pub async fn raise(store: &SharedStore, signals: Vec<NewSignal>) -> StoreResult<u64> {
    let mut fresh = 0;
    for signal in signals {
        let insert = "INSERT INTO fraud_signals (user_id, signal, source, score, reason, at) VALUES (?, ?, ?, ?, ?, ?)
            ON CONFLICT (user_id, signal, source) DO NOTHING";
        let NewSignal { user, signal, source, score, reason, at } = signal;
        let values = [text(&user), text(signal), text(&source), int(score), text(&reason), time(at)];
        // In the same transaction; of one that was there already nothing new is told.
        let note = "INSERT INTO audit_log (at, actor, action, user_id, detail)
            SELECT ?, 'fraud', 'fraud.signal', user_id, ? FROM fraud_signals
            WHERE user_id = ? AND signal = ? AND source = ? AND at = ?";
        let detail = format!("{signal} {score} {source}: {reason}");
        // One that was there before has its own time.
        let noted = [time(at), text(&detail), text(&user), text(signal), text(&source), time(at)];
        let changed = store.execute(vec![Question::new(insert, values), Question::new(note, noted)]).await?;
        fresh += changed.first().copied().unwrap_or(0);
    }
    Ok(fresh)
}

/// Accounts with signals that nobody has cleared, of `user` alone or of all, whose sum is at least `least`.
pub async fn cases(store: &SharedStore, user: Option<&AccountId>, least: i64) -> StoreResult<Vec<Case>> {
    let (one, values) = match user {
        Some(user) => ("AND s.user_id = ?", vec![text(user.as_str()), int(least)]),
        None => ("", vec![int(least)]),
    };
    let select = format!(
        "SELECT s.user_id, CAST(sum(s.score) AS bigint), max(s.id), a.action
        FROM fraud_signals AS s JOIN users AS u ON u.id = s.user_id AND u.status <> 'closed'
            LEFT JOIN fraud_actions AS a ON a.user_id = s.user_id
        WHERE s.cleared_at IS NULL {one} GROUP BY s.user_id, a.action HAVING sum(s.score) >= ?
        ORDER BY s.user_id LIMIT {}",
        super::questions::ROWS_MAX
    );
    let rows = store.ask(vec![Question::new(select, values)]).await?.pop().unwrap_or_default();
    let case = |row: &super::questions::Row| Case {
        user: string(row, 0),
        score: number(row, 1).min(100),
        last: number(row, 2),
        action: row.get(3).and_then(Cell::text).map(str::to_owned),
    };
    Ok(rows.iter().map(case).collect())
}

/// Notes what was done about an account.
pub async fn acted(store: &SharedStore, case: &Case, action: &str, now: Micros) -> StoreResult<()> {
    let upsert = "INSERT INTO fraud_actions (user_id, action, at) VALUES (?, ?, ?)
        ON CONFLICT (user_id) DO UPDATE SET action = excluded.action, at = excluded.at";
    let note = "INSERT INTO audit_log (at, actor, action, user_id, detail) VALUES (?, 'fraud', ?, ?, ?)";
    let detail = format!("score {}", case.score);
    let values = [time(now), text(format!("fraud.{action}")), text(&case.user), text(detail)];
    let upserted = Question::new(upsert, [text(&case.user), text(action), time(now)]);
    store.execute(vec![upserted, Question::new(note, values)]).await.map(drop)
}

/// An operator has looked into it: signals that stand no longer count. Answers what was done because of them.
pub async fn clear(store: &SharedStore, user: &AccountId, by: &str, now: Micros) -> StoreResult<Option<String>> {
    let select = Question::new("SELECT action FROM fraud_actions WHERE user_id = ?", [text(user.as_str())]);
    let action = store.ask(vec![select]).await?.pop().unwrap_or_default();
    let action = action.first().map(|row| string(row, 0));
    let update = "UPDATE fraud_signals SET cleared_at = ?, cleared_by = ? WHERE user_id = ? AND cleared_at IS NULL";
    let clear = Question::new(update, [time(now), text(by), text(user.as_str())]);
    store.execute(vec![clear]).await?;
    Ok(action)
}

/// What was done is undone.
pub async fn undone(store: &SharedStore, user: &AccountId) -> StoreResult<()> {
    let delete = Question::new("DELETE FROM fraud_actions WHERE user_id = ?", [text(user.as_str())]);
    store.execute(vec![delete]).await.map(drop)
}

/// Signals, newest first.
pub async fn signals(store: &SharedStore, user: Option<&AccountId>, page: PageRequest) -> StoreResult<Page<SignalRow>> {
    let slice = common::slice(&page)?;
    let mut values = vec![int(common::position(&slice)?)];
    let mut condition = String::new();
    if let Some(user) = user {
        condition.push_str(" AND user_id = ?");
        values.push(text(user.as_str()));
    }
    let select = format!(
        "SELECT id, user_id, signal, source, score, reason, {{micros:at}}, {{micros:cleared_at}}, cleared_by
        FROM fraud_signals WHERE id < ?{condition} ORDER BY id DESC LIMIT {}",
        slice.rows
    );
    let rows = store.ask(vec![Question::new(select, values)]).await?.pop().unwrap_or_default();
    let found = rows.iter().map(|row| SignalRow {
        id: number(row, 0),
        user: string(row, 1),
        signal: string(row, 2),
        source: string(row, 3),
        score: number(row, 4),
        reason: string(row, 5),
        at: row.get(6).and_then(Cell::micros).unwrap_or(0),
        cleared_at: row.get(7).and_then(Cell::micros),
        cleared_by: row.get(8).and_then(Cell::text).map(str::to_owned),
    });
    Ok(common::page(found.collect(), &slice, |row| row.id.to_string()))
}

/// What an account spent today, and on how many of the days before how much. Micro-credits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spending {
    pub user: String,
    pub today: i64,
    pub past: i64,
    pub days: i64,
}

/// Accounts that spent at least `least` on `day`, with what they spent since `since` before it; the biggest first.
pub async fn spending(store: &SharedStore, day: i32, since: i32, least: i64) -> StoreResult<Vec<Spending>> {
    let select = format!(
        "SELECT t.user_id, t.today,
            CAST(coalesce((SELECT sum(p.charged) FROM usage_days AS p
                WHERE p.user_id = t.user_id AND p.day >= ? AND p.day < ?), 0) AS bigint),
            (SELECT count(DISTINCT p.day) FROM usage_days AS p
                WHERE p.user_id = t.user_id AND p.day >= ? AND p.day < ? AND p.charged > 0)
        FROM (SELECT user_id, CAST(sum(charged) AS bigint) AS today FROM usage_days WHERE day = ?
            GROUP BY user_id HAVING sum(charged) >= ?) AS t
        ORDER BY t.today DESC, t.user_id LIMIT {ACCOUNTS_MAX}"
    );
    let at = super::questions::day;
    let values = [at(since), at(day), at(since), at(day), at(day), int(least)];
    let rows = store.ask(vec![Question::new(select, values)]).await?.pop().unwrap_or_default();
    let found = rows.iter().map(|row| Spending {
        user: string(row, 0),
        today: number(row, 1),
        past: number(row, 2),
        days: number(row, 3),
    });
    Ok(found.collect())
}

/// Something that Stripe told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    pub id: String,
    pub kind: String,
    pub payload: String,
    pub received_at: Micros,
}

/// What Stripe told of cards and of fraud after what was looked through last, oldest first; `until` leaves out what is so
/// fresh that something before it may still be on its way into the store.
pub async fn told(store: &SharedStore, until: Micros, limit: usize) -> StoreResult<Vec<Told>> {
    let select = format!(
        "SELECT e.id, e.event_type, e.payload, {{micros:e.received_at}} FROM billing_events AS e, fraud_cursor AS c
        WHERE (e.received_at > c.received_at OR (e.received_at = c.received_at AND e.id > c.event))
            AND e.received_at < ?
            AND e.event_type IN ('charge.succeeded', 'payment_method.attached', 'radar.early_fraud_warning.created')
        ORDER BY e.received_at, e.id LIMIT {limit}"
    );
    let rows = store.ask(vec![Question::new(select, [time(until)])]).await?.pop().unwrap_or_default();
    let found = rows.iter().map(|row| Told {
        id: string(row, 0),
        kind: string(row, 1),
        payload: string(row, 2),
        received_at: row.get(3).and_then(Cell::micros).unwrap_or(0),
    });
    Ok(found.collect())
}

/// Looked through as far as this.
pub async fn looked_through(store: &SharedStore, last: &Told) -> StoreResult<()> {
    let update = "UPDATE fraud_cursor SET received_at = ?, event = ?
        WHERE received_at < ? OR (received_at = ? AND event < ?)";
    let at = || time(last.received_at);
    let values = [at(), text(&last.id), at(), at(), text(&last.id)];
    store.execute(vec![Question::new(update, values)]).await.map(drop)
}

/// Notes that a user paid with a card. Answers everybody who did, at most [`ACCOUNTS_MAX`].
pub async fn paid_with(
    store: &SharedStore,
    fingerprint: &str,
    user: &AccountId,
    now: Micros,
) -> StoreResult<Vec<String>> {
    let insert = "INSERT INTO fraud_cards (fingerprint, user_id, at) VALUES (?, ?, ?)
        ON CONFLICT (fingerprint, user_id) DO NOTHING";
    store.execute(vec![Question::new(insert, [text(fingerprint), text(user.as_str()), time(now)])]).await?;
    let select =
        format!("SELECT user_id FROM fraud_cards WHERE fingerprint = ? ORDER BY at, user_id LIMIT {ACCOUNTS_MAX}");
    let rows = store.ask(vec![Question::new(select, [text(fingerprint)])]).await?.pop().unwrap_or_default();
    Ok(rows.iter().map(|row| string(row, 0)).collect())
}

/// Forgets how accounts came before `until`.
pub async fn forget(store: &SharedStore, until: Micros) -> StoreResult<()> {
    let delete = Question::new("DELETE FROM fraud_signups WHERE at < ?", [time(until)]);
    store.execute(vec![delete]).await.map(drop)
}
