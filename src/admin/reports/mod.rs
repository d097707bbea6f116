//! Reports for operators: `reports/usage` and `reports/revenue`, as JSON, or as CSV one table at a time.

mod csv;
mod revenue;
mod usage;

use axum::response::Response;
use http::header::ACCEPT;
use http::{HeaderMap, Uri};
use jiff::{Timestamp, ToSpan, tz::TimeZone};
use serde::Deserialize;
use serde_json::value::RawValue;

pub(super) use revenue::revenue;
pub(super) use usage::usage;

use crate::api::problem::Problem;
use crate::api::reports::{date, day};
use crate::credits::MICRO;
use crate::store::reports::Span;

/// Days of a report when the caller does not say, today's with them; and at most.
const DEFAULT_DAYS: i32 = 30;
const MAX_DAYS: i32 = 366;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    from: Option<String>,
    to: Option<String>,
    format: Option<Format>,
    /// Which table, as CSV.
    table: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Format {
    Json,
    Csv,
}

/// A question, understood.
struct Wanted {
    span: Span,
    csv: bool,
    table: Option<String>,
}

fn wanted(uri: &Uri, headers: &HeaderMap) -> Result<Wanted, Problem> {
    let asked = axum::extract::Query::<Asked>::try_from_uri(uri);
    let Asked { from, to, format, table } = asked.map_err(|error| Problem::bad_request(error.body_text()))?.0;
    let tomorrow = Timestamp::now().to_zoned(TimeZone::UTC).date().saturating_add(1.day()).to_string();
    let to = day(to.as_deref().unwrap_or(&tomorrow))?;
    let from = match from {
        Some(from) => day(&from)?,
        None => to - DEFAULT_DAYS,
    };
    if !(1..=MAX_DAYS).contains(&to.saturating_sub(from)) || from < 0 {
        return Err(Problem::bad_request(format!("a report is of 1 to {MAX_DAYS} days: from lies before to")));
    }
    let accepts = |value: &http::HeaderValue| value.to_str().is_ok_and(|value| value.starts_with("text/csv"));
    let csv = match format {
        Some(format) => format == Format::Csv,
        None => table.is_some() || headers.get(ACCEPT).is_some_and(accepts),
    };
    Ok(Wanted { span: Span { from, to }, csv, table })
}

fn no_table(tables: &str) -> Result<Response, Problem> {
    Err(Problem::bad_request(format!("table is one of {tables}")))
}

/// Micro-credits as a decimal number: sums over all users may pass what one account can hold.
fn decimal(micro: i64) -> String {
    let (size, sign) = (micro.unsigned_abs(), if micro < 0 { "-" } else { "" });
    let (whole, part) = (size / MICRO.unsigned_abs(), size % MICRO.unsigned_abs());
    if part == 0 {
        return format!("{sign}{whole}");
    }
    format!("{sign}{whole}.{}", format!("{part:06}").trim_end_matches('0'))
}

fn credits(micro: i64) -> Result<Box<RawValue>, Problem> {
    RawValue::from_string(decimal(micro)).map_err(|_| Problem::internal())
}

/// `part` of `all` in percent, to one decimal; `None` of nothing.
pub(super) fn percent(part: i64, all: i64) -> Result<Option<Box<RawValue>>, Problem> {
    if all <= 0 {
        return Ok(None);
    }
    let tenths = (i128::from(part) * 1_000 + i128::from(all) / 2) / i128::from(all);
    RawValue::from_string(format!("{}.{}", tenths / 10, tenths % 10)).map(Some).map_err(|_| Problem::internal())
}

/// A day of a report by its number.
fn named(day: i32) -> String {
    date(&day.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_exact() {
        assert_eq!((decimal(-1), decimal(5_250_000), decimal(0)), ("-0.000001".into(), "5.25".into(), "0".into()));
        assert_eq!(decimal(i64::MAX), "9223372036854.775807");
        assert_eq!(percent(1, 3).unwrap().unwrap().get(), "33.3");
        assert_eq!(percent(2, 3).unwrap().unwrap().get(), "66.7");
        assert!(percent(0, 0).unwrap().is_none());
    }

    #[test]
    fn a_span_is_bounded() {
        let of = |query: &str| wanted(&format!("/x?{query}").parse().unwrap(), &HeaderMap::new());
        let year = of("from=2025-01-01&to=2026-01-01").unwrap();
        assert_eq!((year.span.to - year.span.from, year.csv), (365, false));
        assert!(of("").unwrap().span.to - of("").unwrap().span.from == DEFAULT_DAYS);
        for wrong in ["from=2025-01-01&to=2027-01-01", "from=2025-01-02&to=2025-01-02", "from=x", "days=3"] {
            assert!(of(wrong).is_err(), "{wrong}");
        }
        assert!(of("format=csv").unwrap().csv && of("table=days").unwrap().csv);
    }
}
