//! Questions as SQLite takes them.

use async_trait::async_trait;
use rusqlite::types::Value as Stored;
use rusqlite::{Transaction, params_from_iter};

use super::super::StoreResult;
use super::super::common::int;
use super::super::questions::{Cell, Dialect, Question, Questions, ROWS_MAX, Row, Value, bounded};
use super::{SqliteStore, failed};

const DIALECT: Dialect = Dialect {
    place: |number, _| format!("?{number}"),
    day_column: "day",
    day: |column| format!("({column} / 86400000000)"),
    month: |column| format!("strftime('%Y-%m', {column} / 1000000, 'unixepoch')"),
    micros: |column| column.to_owned(),
    // One connection writes.
    lock: "",
};

fn stored(value: Value) -> Stored {
    match value {
        Value::Int(value) => value.into(),
        Value::Text(value) => value.into(),
        Value::Time(value) => value.map(int).into(),
        Value::Day(value) => i64::from(value).into(),
    }
}

fn answer(tx: &Transaction<'_>, question: Question) -> StoreResult<Vec<Row>> {
    let sql = question.render(&DIALECT);
    let mut statement = tx.prepare_cached(&sql).map_err(failed)?;
    let columns = statement.column_count();
    let read = |row: &rusqlite::Row<'_>| (0..columns).map(|column| row.get(column).map(cell)).collect();
    let rows = statement.query_map(params_from_iter(question.values.into_iter().map(stored)), read).map_err(failed)?;
    bounded(rows.take(ROWS_MAX + 1).collect::<Result<_, _>>().map_err(failed)?)
}

fn cell(value: Stored) -> Cell {
    match value {
        Stored::Integer(value) => Cell::Int(value),
        Stored::Text(text) => Cell::Text(text),
        Stored::Null | Stored::Real(_) | Stored::Blob(_) => Cell::Null,
    }
}

fn carry_out(tx: &Transaction<'_>, statement: Question) -> StoreResult<u64> {
    if statement.sql.starts_with("SELECT") {
        return Ok(0);
    }
    let mut prepared = tx.prepare_cached(&statement.render(&DIALECT)).map_err(failed)?;
    let changed = prepared.execute(params_from_iter(statement.values.into_iter().map(stored))).map_err(failed)?;
    Ok(changed as u64)
}

#[async_trait]
impl Questions for SqliteStore {
    async fn ask(&self, questions: Vec<Question>) -> StoreResult<Vec<Vec<Row>>> {
        self.threads.read(move |tx| questions.into_iter().map(|question| answer(tx, question)).collect()).await
    }

    async fn execute(&self, statements: Vec<Question>) -> StoreResult<Vec<u64>> {
        self.threads.write(move |tx| statements.into_iter().map(|each| carry_out(tx, each)).collect()).await
    }
}
