//! Questions and statements that both stores understand: written once, in what SQL they share. What reports, feedback,
//! experiments and fraud checks need is asked this way; nothing here is on a request's way.

use async_trait::async_trait;

use super::{StoreError, StoreResult};
use crate::ledger::Micros;

/// Rows that one question answers at most; those that may have more say `LIMIT` themselves.
pub(super) const ROWS_MAX: usize = 20_000;

/// One statement. Its `?` stand for the values, in their order. What the stores write differently stands in braces:
/// `{day}` the column `day` as a number of days since 1970, `{day:x}` and `{month:x}` the day and the month (`2026-01`) of
/// a time, `{micros:x}` a time as microseconds, `{lock}` the lock that a row of a `SELECT` is to keep until the commit.
#[derive(Debug, Clone)]
pub struct Question {
    pub(super) sql: String,
    pub(super) values: Vec<Value>,
}

/// A value for a `?`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    Int(Option<i64>),
    Text(Option<String>),
    Time(Option<Micros>),
    /// Days since 1970.
    Day(i32),
}

/// What stands in a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cell {
    Null,
    Int(i64),
    Text(String),
}

pub type Row = Vec<Cell>;

/// How a store writes what the others write differently.
pub(super) struct Dialect {
    /// The place of a value, by its number and kind.
    pub(super) place: fn(usize, &Value) -> String,
    pub(super) day_column: &'static str,
    pub(super) day: fn(&str) -> String,
    pub(super) month: fn(&str) -> String,
    pub(super) micros: fn(&str) -> String,
    pub(super) lock: &'static str,
}

#[async_trait]
pub trait Questions {
    /// The answers, all as of one moment.
    async fn ask(&self, questions: Vec<Question>) -> StoreResult<Vec<Vec<Row>>>;
    /// Carries statements out, in their order, in one transaction. Answers how many rows each changed; a `SELECT` among
    /// them is there for its lock and changes none. `Conflict` where a rule of the schema forbids it.
    async fn execute(&self, statements: Vec<Question>) -> StoreResult<Vec<u64>>;
}

impl Question {
    pub fn new(sql: impl Into<String>, values: impl Into<Vec<Value>>) -> Question {
        Question { sql: sql.into(), values: values.into() }
    }

    /// The statement as a store takes it.
    pub(super) fn render(&self, dialect: &Dialect) -> String {
        let mut out = String::with_capacity(self.sql.len() + 64);
        let mut rest = self.sql.as_str();
        let mut next = 0;
        while let Some(found) = rest.find(['?', '{']) {
            let (before, from) = rest.split_at(found);
            out.push_str(before);
            if let Some(after) = from.strip_prefix('?') {
                if let Some(value) = self.values.get(next) {
                    next += 1;
                    out.push_str(&(dialect.place)(next, value));
                }
                rest = after;
            } else {
                let (inside, after) = from[1..].split_once('}').unwrap_or((&from[1..], ""));
                match inside.split_once(':') {
                    None if inside == "lock" => out.push_str(dialect.lock),
                    Some(("day", column)) => out.push_str(&(dialect.day)(column)),
                    Some(("month", column)) => out.push_str(&(dialect.month)(column)),
                    Some(("micros", column)) => out.push_str(&(dialect.micros)(column)),
                    _ => out.push_str(dialect.day_column),
                }
                rest = after;
            }
        }
        out.push_str(rest);
        out
    }
}

pub fn int(value: i64) -> Value {
    Value::Int(Some(value))
}

pub fn text(value: impl Into<String>) -> Value {
    Value::Text(Some(value.into()))
}

pub fn time(micros: Micros) -> Value {
    Value::Time(Some(micros))
}

pub fn day(day: i32) -> Value {
    Value::Day(day)
}

impl Cell {
    /// 0 where there is none.
    pub fn int(&self) -> i64 {
        match self {
            Cell::Int(value) => *value,
            _ => 0,
        }
    }

    pub fn text(&self) -> Option<&str> {
        match self {
            Cell::Text(text) => Some(text),
            _ => None,
        }
    }

    /// Empty where there is none.
    pub fn string(&self) -> String {
        self.text().unwrap_or_default().to_owned()
    }

    pub fn micros(&self) -> Option<Micros> {
        match self {
            Cell::Int(value) => Micros::try_from(*value).ok(),
            _ => None,
        }
    }
}

/// The number in one column of a row; 0 where there is no such thing.
pub fn number(row: &[Cell], column: usize) -> i64 {
    row.get(column).map_or(0, Cell::int)
}

/// The text in one column of a row; empty where there is none.
pub fn string(row: &[Cell], column: usize) -> String {
    row.get(column).map(Cell::string).unwrap_or_default()
}

/// An answer that is longer than any that was expected.
pub(super) fn bounded(rows: Vec<Row>) -> StoreResult<Vec<Row>> {
    if rows.len() > ROWS_MAX { Err(StoreError::Invalid("the length of the answer")) } else { Ok(rows) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_is_written_by_the_store() {
        let dialect = Dialect {
            place: |number, value| match value {
                Value::Day(_) => format!("d({number})"),
                _ => format!("${number}"),
            },
            day_column: "(day)",
            day: |x| format!("day({x})"),
            month: |x| format!("month({x})"),
            micros: |x| format!("micros({x})"),
            lock: "FOR UPDATE",
        };
        let sql = "SELECT {day}, {day:a.at}, {month:at}, {micros:b.at} FROM t WHERE day >= ? AND x = ? {lock}";
        let question = Question::new(sql, [day(3), text("y")]);
        assert_eq!(
            question.render(&dialect),
            "SELECT (day), day(a.at), month(at), micros(b.at) FROM t WHERE day >= d(1) AND x = $2 FOR UPDATE"
        );
    }
}
