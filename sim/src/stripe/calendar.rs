//! Months and years by Stripe's rule: the anchor's day of the month, or the month's last day.

const DAY_S: i64 = 86_400;

/// The end of the period that begins at `start`, of `count` times `unit` (`day`, `week`, `month`, `year`), on a
/// subscription anchored at `anchor`. Times in Unix seconds.
pub(super) fn period_end(anchor: i64, start: i64, unit: &str, count: i64) -> i64 {
    let count = count.max(1);
    let days = match unit {
        "day" => count,
        "week" => 7 * count,
        _ => {
            let months = if unit == "year" { 12 * count } else { count };
            return next_by_months(anchor, start, months);
        }
    };
    start + days * DAY_S
}

fn next_by_months(anchor: i64, start: i64, months: i64) -> i64 {
    let (from_year, from_month, _) = civil(anchor.div_euclid(DAY_S));
    let (year, month, _) = civil(start.div_euclid(DAY_S));
    let between = (year - from_year) * 12 + (month - from_month);
    // One step back first: a start in the anchor's month may lie before its day.
    let mut steps = between.div_euclid(months) - 1;
    loop {
        let end = add_months(anchor, steps * months);
        if end > start {
            return end;
        }
        steps += 1;
    }
}

/// `time` so many months on, on the same day or the month's last.
pub(super) fn add_months(time: i64, months: i64) -> i64 {
    let (year, month, day) = civil(time.div_euclid(DAY_S));
    let index = year * 12 + (month - 1) + months;
    let (year, month) = (index.div_euclid(12), index.rem_euclid(12) + 1);
    days(year, month, day.min(month_days(year, month))) * DAY_S + time.rem_euclid(DAY_S)
}

/// `2026-01-31`, for people.
pub(super) fn date(time: i64) -> String {
    let (year, month, day) = civil(time.div_euclid(DAY_S));
    format!("{year:04}-{month:02}-{day:02}")
}

/// `2026-01-31T10:20:30Z`.
pub(super) fn rfc3339(time: i64) -> String {
    let second = time.rem_euclid(DAY_S);
    format!("{}T{:02}:{:02}:{:02}Z", date(time), second / 3600, second / 60 % 60, second % 60)
}

fn month_days(year: i64, month: i64) -> i64 {
    let (next_year, next) = if month == 12 { (year + 1, 1) } else { (year, month + 1) };
    days(next_year, next, 1) - days(year, month, 1)
}

/// Days from 1970-01-01 to a date of the Gregorian calendar, by eras of 400 years that begin in March.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let of_era = year.rem_euclid(400);
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

/// The date of a day counted from 1970-01-01: year, month, day.
fn civil(day: i64) -> (i64, i64, i64) {
    let day = day + 719_468;
    let era = day.div_euclid(146_097);
    let of_era = day.rem_euclid(146_097);
    let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let shifted = (5 * of_year + 2) / 153;
    let date = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (year + era * 400 + i64::from(month <= 2), month, date)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(year: i64, month: i64, day: i64) -> i64 {
        days(year, month, day) * DAY_S + 3_661
    }

    #[test]
    fn dates_go_there_and_back() {
        assert_eq!(days(1970, 1, 1), 0);
        assert_eq!(rfc3339(1_767_225_600), "2026-01-01T00:00:00Z");
        for day in (-800_000..800_000).step_by(17) {
            let (year, month, date) = civil(day);
            assert_eq!(days(year, month, date), day);
        }
    }

    #[test]
    fn the_31st_falls_back_and_returns() {
        let anchor = at(2026, 1, 31);
        let february = period_end(anchor, anchor, "month", 1);
        assert_eq!(february, at(2026, 2, 28));
        assert_eq!(period_end(anchor, february, "month", 1), at(2026, 3, 31));
        assert_eq!(period_end(at(2024, 2, 29), at(2024, 2, 29), "year", 1), at(2025, 2, 28));
        assert_eq!(period_end(anchor, anchor, "week", 2), anchor + 14 * DAY_S);
        assert_eq!(period_end(anchor, at(2026, 1, 20), "month", 1), anchor);
    }
}
