//! Questions as Postgres takes them.

use async_trait::async_trait;
use deadpool_postgres::{Client, GenericClient, Object};
use tokio_postgres::IsolationLevel;
use tokio_postgres::types::{ToSql, Type};

use super::super::questions::{Cell, Dialect, Question, Questions, Row, Value, bounded};
use super::super::{StoreError, StoreResult};
use super::{PostgresStore, execute, failed, query, time, within};

const DIALECT: Dialect = Dialect {
    place: |number, value| match value {
        Value::Int(_) => format!("${number}::bigint"),
        Value::Text(_) => format!("${number}::text"),
        Value::Time(_) => format!("${number}::timestamptz"),
        Value::Day(_) => format!("(DATE '1970-01-01' + ${number}::integer)"),
    },
    day_column: "(day - DATE '1970-01-01')",
    day: |column| format!("floor(extract(epoch FROM {column}) / 86400)::bigint"),
    month: |column| format!("to_char({column} AT TIME ZONE 'UTC', 'YYYY-MM')"),
    micros: |column| format!("(extract(epoch FROM {column}) * 1000000)::bigint"),
    lock: "FOR NO KEY UPDATE",
};

type Boxed = Box<dyn ToSql + Sync + Send>;

fn boxed(value: &Value) -> Boxed {
    match value {
        Value::Int(value) => Box::new(*value),
        Value::Text(value) => Box::new(value.clone()),
        Value::Time(value) => Box::new(value.map(time)),
        Value::Day(value) => Box::new(*value),
    }
}

fn values(question: &Question) -> Vec<Boxed> {
    question.values.iter().map(boxed).collect()
}

fn places(values: &[Boxed]) -> Vec<&(dyn ToSql + Sync)> {
    values.iter().map(|value| &**value as &(dyn ToSql + Sync)).collect()
}

async fn answer<C: GenericClient>(client: &C, question: &Question) -> StoreResult<Vec<Row>> {
    let values = values(question);
    let rows = query(client, &question.render(&DIALECT), &places(&values)).await?;
    bounded(rows.iter().map(read).collect::<StoreResult<_>>()?)
}

fn read(row: &tokio_postgres::Row) -> StoreResult<Row> {
    let cell = |(place, column): (usize, &tokio_postgres::Column)| {
        let unreadable = |_| StoreError::Unavailable(format!("column {} cannot be read", column.name()));
        let int = |value: Option<i64>| value.map_or(Cell::Null, Cell::Int);
        Ok(match *column.type_() {
            Type::INT8 => int(row.try_get(place).map_err(unreadable)?),
            Type::INT4 => int(row.try_get::<_, Option<i32>>(place).map_err(unreadable)?.map(i64::from)),
            Type::BOOL => int(row.try_get::<_, Option<bool>>(place).map_err(unreadable)?.map(i64::from)),
            _ => row.try_get::<_, Option<String>>(place).map_err(unreadable)?.map_or(Cell::Null, Cell::Text),
        })
    };
    row.columns().iter().enumerate().map(cell).collect()
}

async fn answers(client: &mut Client, questions: &[Question]) -> StoreResult<Vec<Vec<Row>>> {
    let begun = client.build_transaction().isolation_level(IsolationLevel::RepeatableRead).read_only(true).start();
    let tx = begun.await.map_err(failed)?;
    let mut found = Vec::with_capacity(questions.len());
    for question in questions {
        found.push(answer(&tx, question).await?);
    }
    tx.commit().await.map_err(failed)?;
    Ok(found)
}

async fn carry_out(client: &mut Client, statements: &[Question]) -> StoreResult<Vec<u64>> {
    let tx = client.transaction().await.map_err(failed)?;
    let mut changed = Vec::with_capacity(statements.len());
    for statement in statements {
        let values = values(statement);
        let rows = execute(&tx, &statement.render(&DIALECT), &places(&values)).await?;
        changed.push(if statement.sql.starts_with("SELECT") { 0 } else { rows });
    }
    tx.commit().await.map_err(failed)?;
    Ok(changed)
}

#[async_trait]
impl Questions for PostgresStore {
    async fn ask(&self, questions: Vec<Question>) -> StoreResult<Vec<Vec<Row>>> {
        within!(self, |client| answers(client, &questions))
    }

    async fn execute(&self, statements: Vec<Question>) -> StoreResult<Vec<u64>> {
        within!(self, |client| carry_out(client, &statements))
    }
}
