//! Lists: newest first, paged by `limit`, `starting_after` and `ending_before`.

use serde_json::{Value, json};

use super::error::Failure;
use super::kind::Kind;
use super::params::Params;
use super::world::{World, live, reference, text};

const LIMIT_DEFAULT: i64 = 10;
const LIMIT_MAX: i64 = 100;

/// Parameters that every list takes.
pub(super) const PAGED: [&str; 4] = ["limit", "starting_after", "ending_before", "created"];

/// Objects of one kind whose fields equal the parameters of the same names, further narrowed by `fits`.
///
/// # Errors
/// On an unknown parameter or cursor.
pub(super) fn of(
    world: &World,
    kind: Kind,
    url: &str,
    params: &Params,
    is_live: bool,
    filters: &[&str],
    fits: impl Fn(&Value) -> bool,
) -> Result<Value, Failure> {
    params.only(&[&PAGED, filters].concat())?;
    let equal = |row: &Value| {
        filters.iter().all(|name| match params.text(name) {
            None => true,
            Some("true") => row[*name] == true,
            Some("false") => row[*name] == false,
            Some(wanted) => reference(row, name) == wanted,
        })
    };
    let (from, until) = (created(params, "gte", "gt", 1)?, created(params, "lte", "lt", -1)?);
    let in_time = |row: &Value| {
        let at = row["created"].as_i64().unwrap_or_default();
        from.is_none_or(|from| at >= from) && until.is_none_or(|until| at <= until)
    };
    let rows: Vec<&Value> = world
        .all(kind)
        .rev()
        .filter(|row| live(row) == is_live && row["deleted"] != true && in_time(row) && equal(row) && fits(row))
        .collect();
    page(&rows, url, params)
}

fn created(params: &Params, with: &str, without: &str, step: i64) -> Result<Option<i64>, Failure> {
    if params.text("created").is_some() {
        return params.int("created");
    }
    let excluded = params.int(&format!("created.{without}"))?.map(|bound| bound.saturating_add(step));
    Ok(params.int(&format!("created.{with}"))?.or(excluded))
}

/// One page of rows that are in their order already.
///
/// # Errors
/// On a limit out of bounds or a cursor that is not among the rows.
pub(super) fn page(rows: &[&Value], url: &str, params: &Params) -> Result<Value, Failure> {
    let limit = params.int("limit")?.unwrap_or(LIMIT_DEFAULT);
    if !(1..=LIMIT_MAX).contains(&limit) {
        return Err(Failure::invalid("limit", format!("Invalid limit: must be between 1 and {LIMIT_MAX}")));
    }
    let limit = usize::try_from(limit).unwrap_or(1);
    let place = |param: &str| -> Result<Option<usize>, Failure> {
        let Some(id) = params.text(param) else { return Ok(None) };
        let found = rows.iter().position(|row| text(row, "id") == id);
        found.map(Some).ok_or_else(|| Failure::no_such("object", id, param, None))
    };
    let (rows, has_more) = if let Some(before) = place("ending_before")? {
        let from = before.saturating_sub(limit);
        (&rows[from..before], from > 0)
    } else {
        let from = place("starting_after")?.map_or(0, |at| at + 1);
        let until = rows.len().min(from + limit);
        (&rows[from..until], until < rows.len())
    };
    let data: Vec<Value> = rows.iter().map(|row| super::present::plain(row)).collect();
    Ok(json!({ "object": "list", "data": data, "has_more": has_more, "url": url }))
}
