//! What users say.

use super::questions::{self, Cell, Question, Value, number, string, text, time};
use super::{Page, PageRequest, SharedStore, StoreError, StoreResult, common};
use crate::ledger::{AccountId, Micros};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Feedback {
    pub id: String,
    pub user: String,
    /// `bug`, `idea`, `praise`, `billing` or `other`.
    pub category: String,
    /// 1 to 5.
    pub rating: Option<i64>,
    pub message: String,
    /// The request that it is about.
    pub request_id: Option<String>,
    pub at: Micros,
}

/// Which of it is shown.
#[derive(Debug, Clone, Default)]
pub struct FeedbackFilter {
    pub user: Option<AccountId>,
    pub category: Option<String>,
}

/// Keeps what a user said. `false`, with nothing kept, where the user said `most` things after `since` already.
pub async fn add(store: &SharedStore, new: Feedback, since: Micros, most: i64) -> StoreResult<bool> {
    // Two of one user at once: the second sees the first.
    let lock = Question::new("SELECT 1 FROM users WHERE id = ? {lock}", [text(&new.user)]);
    let sql = "INSERT INTO feedback (id, user_id, category, rating, message, request_id, created_at)
        SELECT ?, ?, ?, ?, ?, ?, ? WHERE (SELECT count(*) FROM feedback WHERE user_id = ? AND created_at > ?) < ?";
    let values = [
        text(&new.id),
        text(&new.user),
        text(new.category),
        Value::Int(new.rating),
        text(new.message),
        Value::Text(new.request_id),
        time(new.at),
        text(&new.user),
        time(since),
        questions::int(most),
    ];
    let changed = store.execute(vec![lock, Question::new(sql, values)]).await?;
    Ok(changed.last() == Some(&1))
}

/// Newest first.
pub async fn list(store: &SharedStore, filter: FeedbackFilter, page: PageRequest) -> StoreResult<Page<Feedback>> {
    let slice = common::slice(&page)?;
    let (mut conditions, mut values) = (vec!["true"], Vec::new());
    if let Some(after) = &slice.after {
        let (at, id) = after.split_once(' ').ok_or(StoreError::Invalid("the cursor of a page"))?;
        let at = at.parse().ok().filter(|at| *at < common::TIME_MAX_US);
        let at = at.ok_or(StoreError::Invalid("the cursor of a page"))?;
        conditions.push("(created_at < ? OR (created_at = ? AND id < ?))");
        values.extend([time(at), time(at), text(id)]);
    }
    if let Some(user) = &filter.user {
        conditions.push("user_id = ?");
        values.push(text(user.as_str()));
    }
    if let Some(category) = filter.category {
        conditions.push("category = ?");
        values.push(text(category));
    }
    let select = format!(
        "SELECT id, user_id, category, rating, message, request_id, {{micros:created_at}} FROM feedback WHERE {}
        ORDER BY created_at DESC, id DESC LIMIT {}",
        conditions.join(" AND "),
        slice.rows
    );
    let rows = store.ask(vec![Question::new(select, values)]).await?.pop().unwrap_or_default();
    let found = rows.iter().map(|row| Feedback {
        id: string(row, 0),
        user: string(row, 1),
        category: string(row, 2),
        rating: Some(number(row, 3)).filter(|rating| *rating > 0),
        message: string(row, 4),
        request_id: row.get(5).and_then(Cell::text).map(str::to_owned),
        at: row.get(6).and_then(Cell::micros).unwrap_or(0),
    });
    Ok(common::page(found.collect(), &slice, |row| format!("{} {}", row.at, row.id)))
}
