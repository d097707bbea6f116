//! What both stores share: names of the enums in the tables, pages, and the columns of a usage row.

use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::{KeyBudget, KeyKind, Page, PageRequest, StoreError, StoreResult, UserStatus};
use crate::credits::Credits;
use crate::ledger::{AccountId, Event, GrantKind, Micros, RecordState};
use crate::usage::Usage;

/// Rows of lists that have no pages.
pub(super) const LIST_MAX: i64 = 500;
/// The longest page.
const PAGE_MAX: u32 = 500;
/// Identity changes answered at once.
pub(super) const IDENTITY_CHANGES_MAX: i64 = 1_000;
/// How long identity changes are kept for replicas that were away.
pub(super) const IDENTITY_KEPT_US: Micros = 24 * 3600 * 1_000_000;
/// How long the answer to a creating POST is kept.
pub(super) const IDEMPOTENCY_KEPT_US: Micros = 24 * 3600 * 1_000_000;
/// Kept answers are removed so long after they stopped answering: the ledger's clock may differ from the store's.
pub(super) const RECORD_GRACE_US: Micros = 3600 * 1_000_000;
/// A session's last batch number is kept so long after it last wrote: far longer than its entries stay in a log.
pub(super) const SESSION_KEPT_US: Micros = 30 * 24 * 3600 * 1_000_000;
/// Keys of calls to Stripe are used again for less than a day.
pub(super) const CALLS_KEPT_US: Micros = 7 * 24 * 3600 * 1_000_000;
/// Events that changed nothing; Stripe itself lists an event for 30 days, and must not bring it back.
pub(super) const IGNORED_EVENTS_KEPT_US: Micros = 90 * 24 * 3600 * 1_000_000;
/// Texts in a usage row are cut here, in bytes: none of them comes from a trusted place.
const USAGE_TEXT_MAX: usize = 512;
/// The first microsecond of the year 10000: no store keeps later times.
pub(super) const TIME_MAX_US: Micros = 253_402_300_800_000_000;

/// From 1970 to a day that no store knows, forwards and backwards.
const DAYS_MAX: u32 = 700_000;

pub(super) fn now() -> Micros {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Micros::try_from(since.as_micros()).unwrap_or(Micros::MAX)
}

/// For numbers that are far below 2^63 by construction.
pub(super) fn int(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

pub(super) fn uint(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

/// Session ids and fingerprints use all 64 bits.
pub(super) fn bits(value: u64) -> i64 {
    i64::from_ne_bytes(value.to_ne_bytes())
}

pub(super) fn from_bits(value: i64) -> u64 {
    u64::from_ne_bytes(value.to_ne_bytes())
}

/// A value in the store that this program did not write.
pub(super) fn broken(what: &str) -> StoreError {
    StoreError::Unavailable(format!("a stored {what} cannot be read"))
}

pub(super) fn account(text: &str) -> StoreResult<AccountId> {
    AccountId::parse(text).map_err(|_| broken("user id"))
}

pub(super) fn grant_kind_name(kind: GrantKind) -> &'static str {
    match kind {
        GrantKind::Free => "free",
        GrantKind::Plan => "plan",
        GrantKind::Topup => "topup",
        GrantKind::Promo => "promo",
        GrantKind::Adjust => "adjust",
    }
}

pub(super) fn grant_kind(name: &str) -> StoreResult<GrantKind> {
    match name {
        "free" => Ok(GrantKind::Free),
        "plan" => Ok(GrantKind::Plan),
        "topup" => Ok(GrantKind::Topup),
        "promo" => Ok(GrantKind::Promo),
        "adjust" => Ok(GrantKind::Adjust),
        _ => Err(broken("kind of grant")),
    }
}

pub(super) fn key_kind_name(kind: KeyKind) -> &'static str {
    match kind {
        KeyKind::Live => "live",
        KeyKind::Test => "test",
        KeyKind::Service => "service",
    }
}

pub(super) fn key_kind(name: &str) -> StoreResult<KeyKind> {
    match name {
        "live" => Ok(KeyKind::Live),
        "test" => Ok(KeyKind::Test),
        "service" => Ok(KeyKind::Service),
        _ => Err(broken("kind of key")),
    }
}

/// Keys of one owner that open something.
pub(super) const LIVE_KEYS_MAX: i64 = 100;

/// Whether an owner of so many live keys may have another.
pub(super) fn check_keys(live: i64) -> StoreResult<()> {
    if live < LIVE_KEYS_MAX {
        return Ok(());
    }
    Err(StoreError::Conflict(format!("there are {LIVE_KEYS_MAX} keys already: revoke one first")))
}

pub(super) fn newest_first(mut keys: Vec<super::KeyRow>) -> Vec<super::KeyRow> {
    keys.sort_by(|a, b| (b.created_at, &b.id).cmp(&(a.created_at, &a.id)));
    keys
}

pub(super) fn key_budget(limit: Option<i64>, used: i64) -> StoreResult<Option<KeyBudget>> {
    let credits = |micro| Credits::from_micro(micro).ok_or_else(|| broken("budget of a key"));
    limit.map(|limit| Ok(KeyBudget { limit: credits(limit)?, used: credits(used)? })).transpose()
}

/// As JSON.
pub(super) fn models_text(models: Option<&[String]>) -> StoreResult<Option<String>> {
    let text = models.map(serde_json::to_string).transpose();
    text.map_err(|error| StoreError::Unavailable(error.to_string()))
}

pub(super) fn models(text: Option<&str>) -> StoreResult<Option<Vec<String>>> {
    text.map(|text| serde_json::from_str(text).map_err(|_| broken("list of models"))).transpose()
}

pub(super) fn status_name(status: UserStatus) -> &'static str {
    match status {
        UserStatus::Active => "active",
        UserStatus::Frozen => "frozen",
        UserStatus::Closed => "closed",
    }
}

pub(super) fn status(name: &str) -> StoreResult<UserStatus> {
    match name {
        "active" => Ok(UserStatus::Active),
        "frozen" => Ok(UserStatus::Frozen),
        "closed" => Ok(UserStatus::Closed),
        _ => Err(broken("user status")),
    }
}

/// A page request as the query needs it: where to go on, and one row more than asked for, which tells whether there is a next page.
pub(super) struct Slice {
    pub(super) after: Option<String>,
    pub(super) rows: i64,
}

pub(super) fn slice(page: &PageRequest) -> StoreResult<Slice> {
    if page.limit == 0 || page.limit > PAGE_MAX {
        return Err(StoreError::Invalid("the limit of a page"));
    }
    let after = match &page.cursor {
        None => None,
        Some(cursor) => {
            let invalid = StoreError::Invalid("the cursor of a page");
            let bytes = URL_SAFE_NO_PAD.decode(cursor).ok();
            let text = bytes.and_then(|bytes| String::from_utf8(bytes).ok());
            Some(text.filter(|text| storable(text)).ok_or(invalid)?)
        }
    };
    Ok(Slice { after, rows: i64::from(page.limit) + 1 })
}

/// Makes a page of the rows of a [`Slice`].
pub(super) fn page<T>(mut data: Vec<T>, slice: &Slice, position: impl Fn(&T) -> String) -> Page<T> {
    let limit = usize::try_from(slice.rows - 1).unwrap_or(0);
    let more = data.len() > limit;
    data.truncate(limit);
    let next = data.last().filter(|_| more).map(|last| URL_SAFE_NO_PAD.encode(position(last)));
    Page { data, next }
}

/// Where a list goes on that runs downwards by number.
pub(super) fn position(slice: &Slice) -> StoreResult<i64> {
    match &slice.after {
        None => Ok(i64::MAX),
        Some(number) => number.parse().map_err(|_| StoreError::Invalid("the cursor of a page")),
    }
}

/// A day in the cursor of a page: one that every store can write as a date.
pub(super) fn day(text: &str) -> StoreResult<i32> {
    let day = text.parse().ok().filter(|day: &i32| day.unsigned_abs() < DAYS_MAX);
    day.ok_or(StoreError::Invalid("the cursor of a page"))
}

/// Whether every store takes it as a text.
pub(super) fn storable(text: &str) -> bool {
    !text.contains('\0')
}

pub(super) fn write_record(record: &RecordState) -> StoreResult<Vec<u8>> {
    rmp_serde::to_vec(record).map_err(|error| StoreError::Unavailable(error.to_string()))
}

pub(super) fn read_record(bytes: &[u8]) -> StoreResult<RecordState> {
    rmp_serde::from_slice(bytes).map_err(|_| broken("record"))
}

/// A usage detail that every store can write.
#[derive(Debug)]
pub(super) struct UsageColumns {
    pub(super) usage: Usage,
    pub(super) input_tokens: i64,
    pub(super) cached_tokens: i64,
    pub(super) output_tokens: i64,
    pub(super) latency_ms: i64,
    pub(super) created_at: Micros,
}

impl UsageColumns {
    /// `None` where the event has no detail; an error says why it cannot be a row.
    pub(super) fn read(event: &Event) -> Result<Option<UsageColumns>, String> {
        if event.usage.is_empty() {
            return Ok(None);
        }
        let mut usage = Usage::decode(&event.usage).map_err(|error| error.to_string())?;
        if usage.created_at_ms >= TIME_MAX_US / 1_000 {
            return Err("created_at_ms lies beyond the year 9999".to_owned());
        }
        let count = |name: &str, value: u64| i64::try_from(value).map_err(|_| format!("{name} is too large"));
        let columns = UsageColumns {
            input_tokens: count("input_tokens", usage.input_tokens)?,
            cached_tokens: count("cached_tokens", usage.cached_tokens)?,
            output_tokens: count("output_tokens", usage.output_tokens)?,
            latency_ms: count("latency_ms", usage.latency_ms)?,
            created_at: usage.created_at_ms * 1_000,
            usage: {
                clean(&mut usage.route);
                let texts = [
                    &mut usage.client_request_id,
                    &mut usage.key_id,
                    &mut usage.upstream,
                    &mut usage.model,
                    &mut usage.reason,
                ];
                texts.into_iter().flatten().for_each(clean);
                usage
            },
        };
        Ok(Some(columns))
    }
}

/// Postgres refuses the NUL character in texts; SQLite stops reading at it.
fn clean(text: &mut String) {
    if text.len() > USAGE_TEXT_MAX {
        text.truncate(text.floor_char_boundary(USAGE_TEXT_MAX));
    }
    if text.contains('\0') {
        *text = text.replace('\0', "\u{fffd}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_tell_whether_more_follows() {
        let request = PageRequest { limit: 2, cursor: None };
        let asked = slice(&request).unwrap();
        assert_eq!((asked.after.as_deref(), asked.rows), (None, 3));
        let first = page(vec![1, 2, 3], &asked, ToString::to_string);
        assert_eq!(first.data, [1, 2]);
        let asked = slice(&PageRequest { limit: 2, cursor: first.next }).unwrap();
        assert_eq!(asked.after.as_deref(), Some("2"));
        assert_eq!(page(vec![3], &asked, ToString::to_string).next, None);
        for limit in [0, 501] {
            assert!(slice(&PageRequest { limit, cursor: None }).is_err());
        }
        for hostile in ["?".to_owned(), URL_SAFE_NO_PAD.encode("a\0"), URL_SAFE_NO_PAD.encode(b"\xff")] {
            assert!(slice(&PageRequest { limit: 1, cursor: Some(hostile) }).is_err());
        }
        assert_eq!(day("-1").unwrap(), -1);
        assert!(["2147483647", "-2147483648", "700000", "x"].iter().all(|text| day(text).is_err()));
    }

    #[test]
    fn texts_are_made_storable() {
        let mut text = format!("a\0{}", "é".repeat(600));
        clean(&mut text);
        assert!(text.starts_with("a\u{fffd}é") && text.len() <= USAGE_TEXT_MAX + 2 && !text.contains('\0'));
    }
}
