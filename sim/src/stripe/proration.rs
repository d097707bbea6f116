//! What a change in mid-period costs: the unused time of the old price comes back, the rest of the new one is due.

use serde_json::Value;

use super::invoices::Line;
use super::subscriptions::{end_of_period, period_of};
use super::world::{int, text};

/// A change of a subscription's items.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Change {
    /// The items after it, with their periods.
    pub items: Vec<Value>,
    /// What it costs, when it is prorated.
    pub lines: Vec<Line>,
    /// The period starts anew: the interval changed, or it was asked for.
    pub resets: bool,
}

/// The change to `items` at `at`; `free` during a trial.
pub(super) fn change(subscription: &Value, items: Vec<Value>, at: i64, resets: bool, free: bool) -> Change {
    let old: Vec<Value> = subscription["items"]["data"].as_array().cloned().unwrap_or_default();
    let interval = |item: &Value| item["price"]["recurring"].clone();
    let changes_interval = old.first().zip(items.first()).is_some_and(|(old, new)| interval(old) != interval(new));
    let resets = (resets || changes_interval) && !free;
    let (start, end) = period_of(subscription);
    let mut items = items;
    for item in &mut items {
        let (start, end) = if resets { (at, end_of_period(&item["price"], at, at)) } else { (start, end) };
        item["current_period_start"] = start.into();
        item["current_period_end"] = end.into();
    }
    let mut lines = Vec::new();
    if !free {
        let same = |item: &Value, other: &Value| {
            item["id"] == other["id"]
                && item["price"]["id"] == other["price"]["id"]
                && item["quantity"] == other["quantity"]
        };
        let gone = old.iter().filter(|old| resets || !items.iter().any(|new| same(old, new)));
        lines.extend(gone.map(|item| part(item, -1, at, start, end)));
        let fresh = items.iter().filter(|new| resets || !old.iter().any(|old| same(old, new)));
        lines.extend(fresh.map(|item| {
            let (from, until) = (int(item, "current_period_start"), int(item, "current_period_end"));
            let mut line = part(item, 1, at, from, until);
            line.proration = !resets;
            line
        }));
    }
    Change { items, lines, resets }
}

/// The part of an item's price from `at` to the end of its period, rounded to the nearest minor unit.
fn part(item: &Value, sign: i64, at: i64, start: i64, end: i64) -> Line {
    let (price, quantity) = (item["price"].clone(), int(item, "quantity"));
    let whole = i128::from(int(&price, "unit_amount")) * i128::from(quantity);
    let (left, length) = (i128::from((end - at).clamp(0, end - start)), i128::from((end - start).max(1)));
    let amount = i64::try_from((whole * left * 2 + length) / (length * 2)).unwrap_or(i64::MAX) * sign;
    let words = if sign < 0 { "Unused time" } else { "Remaining time" };
    let description = format!("{words} on {quantity} × {}", text(&price, "product"));
    let item = text(item, "id").to_owned();
    Line { amount, description, start: at, end, price, quantity, item, proration: true, invoice_item: String::new() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn item(id: &str, price: &str, amount: i64, interval: &str) -> Value {
        let price =
            json!({ "id": price, "unit_amount": amount, "recurring": { "interval": interval, "interval_count": 1 } });
        json!({ "id": id, "price": price, "quantity": 1, "current_period_start": 0, "current_period_end": 3_000 })
    }

    #[test]
    fn half_a_period_costs_half_the_difference() {
        let subscription = json!({ "items": { "data": [item("si", "cheap", 1_000, "month")] } });
        let change = change(&subscription, vec![item("si", "dear", 3_001, "month")], 1_500, false, false);
        let amounts: Vec<i64> = change.lines.iter().map(|line| line.amount).collect();
        assert_eq!(amounts, [-500, 1_501]);
        assert!(!change.resets && change.lines.iter().all(|line| line.proration && line.end == 3_000));
    }

    #[test]
    fn another_interval_starts_a_new_period() {
        let subscription = json!({ "items": { "data": [item("si", "cheap", 1_000, "month")] } });
        let change = change(&subscription, vec![item("si", "year", 9_000, "year")], 1_500, false, false);
        let amounts: Vec<i64> = change.lines.iter().map(|line| line.amount).collect();
        assert_eq!(amounts, [-500, 9_000]);
        assert!(change.resets && !change.lines[1].proration);
        assert_eq!(change.items[0]["current_period_start"], 1_500);
    }
}
