//! Usage by day: what reports are made of, so that they never read usage rows.
//!
//! An account's rows are added to its days behind the flush, from one sequence number to another: each row once, and none
//! of it costs the flush anything.

use std::collections::{BTreeMap, HashMap, HashSet};

use async_trait::async_trait;

use super::books::UsageSpan;
use super::{Page, PageRequest, StoreError, StoreResult, common};
use crate::ledger::AccountId;

/// Models that one account's day tells apart. Clients make names up: the rest of them are counted together.
const MODELS_MAX: usize = 50;
/// What stands for the models beyond.
const OTHER_MODELS: &str = "other";
/// Characters of a model's name.
pub(super) const MODEL_CHARS: i32 = 64;

/// What usage adds up to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Figures {
    pub requests: i64,
    /// Micro-credits.
    pub charged: i64,
    pub input_tokens: i64,
    pub cached_tokens: i64,
    pub output_tokens: i64,
    /// Requests whose tokens were estimated.
    pub estimated: i64,
    /// Requests answered with 4xx, and with 5xx.
    pub client_errors: i64,
    pub server_errors: i64,
}

impl Figures {
    /// In the order of the fields, which is that of the columns in the stores.
    pub fn as_array(&self) -> [i64; 8] {
        [
            self.requests,
            self.charged,
            self.input_tokens,
            self.cached_tokens,
            self.output_tokens,
            self.estimated,
            self.client_errors,
            self.server_errors,
        ]
    }

    pub fn from_array(figures: [i64; 8]) -> Figures {
        let [requests, charged, input_tokens, cached_tokens, output_tokens, estimated, client_errors, server_errors] =
            figures;
        Figures {
            requests,
            charged,
            input_tokens,
            cached_tokens,
            output_tokens,
            estimated,
            client_errors,
            server_errors,
        }
    }

    #[must_use]
    pub fn plus(&self, other: &Figures) -> Figures {
        let (left, right) = (self.as_array(), other.as_array());
        Figures::from_array(std::array::from_fn(|index| left[index].saturating_add(right[index])))
    }

    #[must_use]
    pub fn minus(&self, other: &Figures) -> Figures {
        let (left, right) = (self.as_array(), other.as_array());
        Figures::from_array(std::array::from_fn(|index| left[index].saturating_sub(right[index])))
    }
}

/// What a report tells apart. In the order in which its rows are sorted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Dimension {
    Day,
    User,
    Model,
    Route,
    Key,
}

impl Dimension {
    pub(super) fn column(self) -> &'static str {
        match self {
            Dimension::Day => "day",
            Dimension::User => "user_id",
            Dimension::Model => "model",
            Dimension::Route => "route",
            Dimension::Key => "key_id",
        }
    }
}

#[derive(Debug, Clone)]
pub struct SumsRequest {
    /// Of this account alone.
    pub account: Option<AccountId>,
    /// Of users who are on this plan now.
    pub plan: Option<String>,
    /// Days since 1970, UTC: from this one on, and before that one.
    pub from: Option<i32>,
    pub to: Option<i32>,
    /// At least one, sorted, each once.
    pub by: Vec<Dimension>,
    pub page: PageRequest,
}

/// One row of a report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsageSum {
    /// Values of the dimensions that were asked for, in their order; a day as the number of days since 1970.
    pub of: Vec<String>,
    pub figures: Figures,
}

/// What one step of adding up came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RolledUp {
    /// Sequence numbers passed.
    pub passed: u64,
    /// Where the next step goes on; `None` at the end.
    pub last: Option<AccountId>,
}

#[async_trait]
pub trait UsageSums {
    /// Adds usage that is in no day yet: of `only` this account, or of accounts from `after` on, a bounded piece of it.
    async fn roll_up(&self, only: Option<&AccountId>, after: Option<&AccountId>) -> StoreResult<RolledUp>;

    /// Takes away what an account's days say, as far as the rows are kept, so that it is added up anew; with a line in the
    /// audit log. Answers whether that was done: not while old rows are being pruned.
    async fn redo_days(&self, account: &AccountId, actor: &str) -> StoreResult<bool>;

    /// A report over what has been added up.
    async fn usage_sums(&self, request: SumsRequest) -> StoreResult<Page<UsageSum>>;
}

/// An account's day.
pub(super) type AccountDay = (String, i32);

/// A row of `usage_days`, to be added to what is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct DayRow {
    pub(super) account: String,
    pub(super) day: i32,
    pub(super) model: String,
    pub(super) route: String,
    pub(super) key: String,
    pub(super) figures: Figures,
}

/// Cuts the spans to at most `budget` sequence numbers together. Answers the account with which the rest begins, if there is
/// one: the last one taken, which may have been cut.
pub(super) fn within_budget(mut spans: Vec<UsageSpan>, budget: u64, full: bool) -> (Vec<UsageSpan>, Option<AccountId>) {
    let mut left = budget;
    let count = spans.len();
    let (mut taken, mut cut) = (0, false);
    for span in &mut spans {
        if left == 0 {
            break;
        }
        let upto = span.upto.min(span.after.saturating_add(left));
        cut = upto < span.upto;
        span.upto = upto;
        left -= span.upto - span.after;
        taken += 1;
    }
    spans.truncate(taken);
    let more = full || cut || taken < count;
    let last = spans.last().map(|span| span.account.clone()).filter(|_| more);
    (spans, last)
}

/// Counts models beyond the bound together, and merges what is equal then. Sorted, so that writers meet in one order.
pub(super) fn bounded(rows: Vec<DayRow>, mut known: HashMap<AccountDay, HashSet<String>>) -> Vec<DayRow> {
    let mut merged: BTreeMap<(String, i32, String, String, String), Figures> = BTreeMap::new();
    for row in rows {
        let models = known.entry((row.account.clone(), row.day)).or_default();
        let fits = models.contains(&row.model) || models.len() < MODELS_MAX;
        let model = if fits { row.model } else { OTHER_MODELS.to_owned() };
        if fits {
            models.insert(model.clone());
        }
        let sum = merged.entry((row.account, row.day, model, row.route, row.key)).or_default();
        *sum = sum.plus(&row.figures);
    }
    let row = |((account, day, model, route, key), figures)| DayRow { account, day, model, route, key, figures };
    merged.into_iter().map(row).collect()
}

/// Where a page goes on: the dimensions' values of its last row.
pub(super) fn position(after: Option<&str>, dimensions: usize) -> StoreResult<Option<Vec<String>>> {
    let Some(text) = after else { return Ok(None) };
    let values: Option<Vec<String>> = serde_json::from_str(text).ok();
    let fits = |values: &Vec<String>| values.len() == dimensions && values.iter().all(|value| common::storable(value));
    values.filter(fits).map(Some).ok_or(StoreError::Invalid("the cursor of a page"))
}

pub(super) fn write_position(sum: &UsageSum) -> String {
    serde_json::Value::from(sum.of.clone()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(day: i32, model: &str, requests: i64) -> DayRow {
        let figures = Figures { requests, ..Figures::default() };
        let (account, route, key) = ("u".to_owned(), "chat".to_owned(), String::new());
        DayRow { account, day, model: model.into(), route, key, figures }
    }

    #[test]
    fn a_days_models_are_bounded() {
        let names: Vec<String> = (0..MODELS_MAX + 5).map(|number| format!("m{number:03}")).collect();
        let rows = names.iter().map(|name| row(1, name, 1)).chain([row(2, "m060", 1), row(1, "known", 3)]);
        let known = HashMap::from([(("u".to_owned(), 1), HashSet::from(["known".to_owned()]))]);
        let bounded = bounded(rows.collect(), known);
        let requests = |day, model: &str| {
            let found: Vec<&DayRow> = bounded.iter().filter(|row| row.day == day && row.model == model).collect();
            assert!(found.len() <= 1);
            found.first().map_or(0, |row| row.figures.requests)
        };
        assert_eq!((requests(1, "known"), requests(1, "m000"), requests(2, "m060")), (3, 1, 1));
        assert_eq!((requests(1, OTHER_MODELS), requests(1, "m049")), (6, 0));
        assert_eq!(bounded.iter().map(|row| row.figures.requests).sum::<i64>(), 59);
    }

    #[test]
    fn a_step_is_bounded_and_goes_on() {
        let span = |name: &str, after, upto| UsageSpan { account: AccountId::parse(name).unwrap(), after, upto };
        let spans = vec![span("a", 0, 5), span("b", 10, 30), span("c", 0, 1)];
        let (taken, last) = within_budget(spans.clone(), 10, false);
        assert_eq!(taken, [span("a", 0, 5), span("b", 10, 15)]);
        assert_eq!(last.unwrap().as_str(), "b");
        assert_eq!(within_budget(spans.clone(), 100, false), (spans.clone(), None));
        assert_eq!(within_budget(spans, 100, true).1.unwrap().as_str(), "c");
        // The last account of all, and more of it than one step takes.
        let (taken, last) = within_budget(vec![span("c", 0, 11)], 10, false);
        assert_eq!((taken, last.unwrap().as_str()), (vec![span("c", 0, 10)], "c"));
        assert_eq!(within_budget(vec![span("c", 1, 11)], 10, false).1, None);
    }

    #[test]
    fn a_cursor_names_the_last_row() {
        let sum = UsageSum { of: vec!["20000".into(), "a\"b".into()], figures: Figures::default() };
        let text = write_position(&sum);
        assert_eq!(position(Some(&text), 2).unwrap(), Some(sum.of));
        for hostile in [&text, "x", r#"["\u0000"]"#, "[1]", "{}"] {
            assert!(position(Some(hostile), 1).is_err(), "{hostile}");
        }
        assert_eq!(position(None, 1).unwrap(), None);
    }
}
