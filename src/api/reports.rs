//! Usage by day, model, route and key.

use std::collections::BTreeSet;
use std::time::Duration;

use axum::extract::Query;
use http::Uri;
use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};

use super::extract::checked_page;
use super::problem::Problem;
use crate::bridge::usage_sums::catch_up;
use crate::credits::Credits;
use crate::ledger::AccountId;
use crate::store::SharedStore;
use crate::store::usage_sums::{Dimension, SumsRequest, UsageSum};

/// How long a report waits for usage to be added up that was flushed just now.
const CATCH_UP: Duration = Duration::from_secs(1);

/// What a report may be asked for. Users ask without `user` and `plan`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Asked {
    pub(crate) group_by: Option<String>,
    from: Option<String>,
    to: Option<String>,
    pub(crate) user: Option<AccountId>,
    pub(crate) plan: Option<String>,
    limit: Option<u32>,
    cursor: Option<String>,
}

/// One row: the dimensions that were asked for, then the figures.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct SumView {
    #[serde(skip_serializing_if = "Option::is_none")]
    day: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<String>,
    /// Null: no model was named.
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<Option<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    route: Option<String>,
    /// Null: no API key was used.
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<Option<String>>,
    requests: i64,
    credits: Credits,
    input_tokens: i64,
    cached_tokens: i64,
    output_tokens: i64,
    /// Requests whose tokens were estimated.
    estimated: i64,
    errors: Errors,
}

#[derive(Debug, Default, PartialEq, Eq, Serialize)]
struct Errors {
    #[serde(rename = "4xx")]
    client: i64,
    #[serde(rename = "5xx")]
    server: i64,
}

/// A page of a report.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    data: Vec<SumView>,
    next: Option<String>,
    /// `false`: there is so much fresh usage that not all of it is in yet.
    complete: bool,
}

pub(crate) fn asked(uri: &Uri) -> Result<Asked, Problem> {
    let Query(asked) = Query::<Asked>::try_from_uri(uri).map_err(|error| Problem::bad_request(error.body_text()))?;
    Ok(asked)
}

/// Whether the question is for a report, and not for rows.
pub(crate) fn is_report(uri: &Uri) -> bool {
    let names = uri.query().unwrap_or_default().split('&').map(|pair| pair.split('=').next().unwrap_or_default());
    names.into_iter().any(|name| matches!(name, "group_by" | "from" | "to"))
}

/// A report over the usage of `account`, or of everybody.
pub(crate) async fn report(
    store: &SharedStore,
    account: Option<AccountId>,
    asked: Asked,
    may_group_by_user: bool,
) -> Result<Report, Problem> {
    let by = dimensions(asked.group_by.as_deref().unwrap_or("day"), may_group_by_user)?;
    let (from, to) = (asked.from.as_deref().map(day).transpose()?, asked.to.as_deref().map(day).transpose()?);
    let page = checked_page(asked.limit, asked.cursor)?;
    let complete = catch_up(store, account.as_ref(), CATCH_UP).await?;
    let request = SumsRequest { account, plan: asked.plan, from, to, by: by.clone(), page };
    let page = store.usage_sums(request).await?;
    let data = page.data.into_iter().map(|sum| view(&by, sum)).collect();
    Ok(Report { data, next: page.next, complete })
}

fn dimensions(text: &str, may_group_by_user: bool) -> Result<Vec<Dimension>, Problem> {
    let one = |name: &str| match name {
        "day" => Ok(Dimension::Day),
        "user" if may_group_by_user => Ok(Dimension::User),
        "model" => Ok(Dimension::Model),
        "route" => Ok(Dimension::Route),
        "key" => Ok(Dimension::Key),
        _ => Err(Problem::bad_request(match may_group_by_user {
            true => "group_by is a list of day, user, model, route and key",
            false => "group_by is a list of day, model, route and key",
        })),
    };
    let named: BTreeSet<Dimension> = text.split(',').map(one).collect::<Result<_, _>>()?;
    Ok(named.into_iter().collect())
}

/// The day that begins at this time, in days since 1970: sums are of whole days, UTC.
pub(crate) fn day(text: &str) -> Result<i32, Problem> {
    let wrong = || Problem::bad_request("from and to are days, UTC: 2026-01-31 or 2026-01-31T00:00:00Z");
    let date = match text.parse::<Timestamp>() {
        Ok(time) => {
            let zoned = time.to_zoned(TimeZone::UTC);
            let date = zoned.date();
            if date.to_zoned(TimeZone::UTC).map_err(|_| wrong())?.timestamp() != time {
                return Err(wrong());
            }
            date
        }
        Err(_) => text.parse::<Date>().map_err(|_| wrong())?,
    };
    let seconds = date.to_zoned(TimeZone::UTC).map_err(|_| wrong())?.timestamp().as_second();
    i32::try_from(seconds.div_euclid(24 * 3600)).map_err(|_| wrong())
}

pub(crate) fn date(day: &str) -> String {
    let seconds = day.parse::<i64>().unwrap_or(0).saturating_mul(24 * 3600);
    let time = Timestamp::from_second(seconds).unwrap_or(Timestamp::UNIX_EPOCH);
    time.to_zoned(TimeZone::UTC).date().to_string()
}

fn view(by: &[Dimension], sum: UsageSum) -> SumView {
    let UsageSum { of, figures } = sum;
    let mut view = SumView {
        requests: figures.requests,
        credits: Credits::saturating_from_micro(i128::from(figures.charged)),
        input_tokens: figures.input_tokens,
        cached_tokens: figures.cached_tokens,
        output_tokens: figures.output_tokens,
        estimated: figures.estimated,
        errors: Errors { client: figures.client_errors, server: figures.server_errors },
        ..SumView::default()
    };
    for (dimension, text) in by.iter().zip(of) {
        match dimension {
            Dimension::Day => view.day = Some(date(&text)),
            Dimension::User => view.user = Some(text),
            Dimension::Model => view.model = Some(Some(text).filter(|text| !text.is_empty())),
            Dimension::Route => view.route = Some(text),
            Dimension::Key => view.key = Some(Some(text).filter(|text| !text.is_empty())),
        }
    }
    view
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_whole() {
        assert_eq!(day("1970-01-02").unwrap(), 1);
        assert_eq!(day("2026-11-22T00:00:00Z").unwrap(), day("2026-11-22").unwrap());
        assert_eq!(day("2026-11-22T02:00:00+02:00").unwrap(), day("2026-11-22").unwrap());
        assert_eq!(date(&day("2026-11-22").unwrap().to_string()), "2026-11-22");
        for wrong in ["2026-11-22T00:00:01Z", "yesterday", "", "2026-13-01"] {
            assert!(day(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn dimensions_are_named_once_and_sorted() {
        assert_eq!(dimensions("model,day,model", false).unwrap(), [Dimension::Day, Dimension::Model]);
        assert!(dimensions("user", false).is_err());
        assert_eq!(dimensions("user", true).unwrap(), [Dimension::User]);
        assert!(dimensions("", true).is_err() && dimensions("day;model", true).is_err());
    }
}
