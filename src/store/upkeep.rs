//! What is done in the background, so that the store neither grows for ever nor runs out of partitions.

use async_trait::async_trait;
use jiff::tz::TimeZone;
use jiff::{Span, Timestamp};

use super::StoreResult;
use crate::config;
use crate::ledger::Micros;

/// How long what was written is kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Retention {
    /// Usage rows of whole months, beside the current one. 0: for ever.
    pub usage_months: u32,
    /// Dead letters, in days. 0: for ever.
    pub dead_letter_days: u32,
    /// Notifications, in days after they were read. 0: for ever.
    pub read_notification_days: u32,
    /// Notifications that nobody reads, in days after they were raised. 0: for ever.
    pub notification_days: u32,
}

/// What was taken away.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pruned {
    pub usage_rows: u64,
    pub dead_letters: u64,
    pub notifications: u64,
}

/// Every replica calls it now and then; in Postgres one at a time does it.
#[async_trait]
pub trait Upkeep {
    /// Makes the partitions of the coming months, and prunes what is past its time. What usage charged stays known per
    /// account in `usage_pruned`, so that the books add up without the rows. In bounded pieces; what is not done yet is
    /// done the next time.
    async fn keep(&self, retention: Retention) -> StoreResult<Pruned>;
}

impl Retention {
    pub fn of(settings: &config::Store) -> Retention {
        Retention {
            usage_months: settings.usage_retention_months,
            dead_letter_days: settings.dead_letter_retention_days,
            read_notification_days: settings.read_notification_retention_days,
            notification_days: settings.notification_retention_days,
        }
    }

    /// Usage of months that began before this is not kept.
    pub(super) fn usage_until(self, now: Timestamp) -> Option<Micros> {
        let months = Span::new().try_months(self.usage_months).ok().filter(|_| self.usage_months > 0)?;
        let month = now.to_zoned(TimeZone::UTC).date().first_of_month().checked_sub(months).ok()?;
        let begin = month.to_zoned(TimeZone::UTC).ok()?.timestamp();
        Micros::try_from(begin.as_microsecond()).ok()
    }

    /// Dead letters older than this are not kept.
    pub(super) fn letters_until(self, now: Timestamp) -> Option<Micros> {
        days_before(now, self.dead_letter_days)
    }

    /// Notifications that were read before this are not kept.
    pub(super) fn read_until(self, now: Timestamp) -> Option<Micros> {
        days_before(now, self.read_notification_days)
    }

    /// Notifications that were raised before this are not kept, read or not.
    pub(super) fn unread_until(self, now: Timestamp) -> Option<Micros> {
        days_before(now, self.notification_days)
    }
}

fn days_before(now: Timestamp, days: u32) -> Option<Micros> {
    let kept = u64::from(days) * 24 * 3600 * 1_000_000;
    let now = Micros::try_from(now.as_microsecond()).ok()?;
    (kept > 0).then(|| now.saturating_sub(kept))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_months_are_kept_beside_the_current_one() {
        let now: Timestamp = "2026-03-31T23:00:00Z".parse().unwrap();
        let until = |usage_months| {
            let until = Retention { usage_months, ..Retention::default() }.usage_until(now)?;
            Timestamp::from_microsecond(i64::try_from(until).unwrap()).ok().map(|time| time.to_string())
        };
        assert_eq!(until(0), None);
        assert_eq!(until(1).as_deref(), Some("2026-02-01T00:00:00Z"));
        assert_eq!(until(13).as_deref(), Some("2025-02-01T00:00:00Z"));
        let letters = Retention { dead_letter_days: 1, ..Retention::default() }.letters_until(now).unwrap();
        assert_eq!(
            Timestamp::from_microsecond(i64::try_from(letters).unwrap()).unwrap().to_string(),
            "2026-03-30T23:00:00Z"
        );
        assert_eq!(Retention::default().letters_until(now), None);
    }
}
