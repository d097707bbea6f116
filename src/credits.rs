//! Money inside the gate: whole micro-credits, never floats.
//!
//! People see decimal numbers (`5`, `0.25`); inside, a credit is 1,000,000 micro-credits in an
//! `i64`. Values stay below 2^53 so that a Lua number (a double) holds each of them exactly.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;

/// Micro-credits in one credit.
pub const MICRO: i64 = 1_000_000;

/// An amount of credits in micro-credits, `0 ..= Credits::MAX`.
///
/// Never negative: what can be owed is a separate amount (debt), what can shrink is a [`Delta`].
///
/// [`Delta`]: crate::ledger::Delta
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Credits(i64);

/// Why a text or a number is no amount of credits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CreditsError {
    #[error("credits must be a decimal number such as 5 or 0.25")]
    NotANumber,
    #[error("credits have at most six decimals")]
    TooPrecise,
    #[error("credits must not be negative")]
    Negative,
    #[error("credits must be below 9000000000")]
    TooLarge,
}

impl Credits {
    pub const ZERO: Credits = Credits(0);
    /// 2^53 - 1 micro-credits: the largest amount a Lua number holds exactly.
    pub const MAX: Credits = Credits((1 << 53) - 1);
    /// Amounts that come from outside are below 9·10⁹ credits, so that any one of them is below [`Credits::MAX`].
    pub const INPUT_LIMIT: Credits = Credits(9_000_000_000 * MICRO);

    /// From micro-credits; `None` when negative or above [`Credits::MAX`].
    pub const fn from_micro(micro: i64) -> Option<Credits> {
        if micro >= 0 && micro <= Self::MAX.0 { Some(Credits(micro)) } else { None }
    }

    /// From micro-credits, cut to `0 ..= MAX`. For estimates, where more than everything is everything.
    pub const fn saturating_from_micro(micro: i128) -> Credits {
        if micro <= 0 {
            Credits(0)
        } else if micro >= Self::MAX.0 as i128 {
            Self::MAX
        } else {
            Credits(micro as i64)
        }
    }

    /// Whole credits, for constants and tests; cut to [`Credits::MAX`].
    pub const fn whole(credits: u32) -> Credits {
        Credits(credits as i64 * MICRO)
    }

    pub const fn micro(self) -> i64 {
        self.0
    }

    pub const fn is_zero(self) -> bool {
        self.0 == 0
    }

    /// `None` above [`Credits::MAX`].
    pub const fn checked_add(self, other: Credits) -> Option<Credits> {
        Self::from_micro(self.0 + other.0)
    }

    /// `None` below zero.
    pub const fn checked_sub(self, other: Credits) -> Option<Credits> {
        Self::from_micro(self.0 - other.0)
    }

    /// The difference, or zero.
    pub const fn saturating_sub(self, other: Credits) -> Credits {
        if self.0 > other.0 { Credits(self.0 - other.0) } else { Credits(0) }
    }

    /// The sum, or [`Credits::MAX`].
    pub const fn saturating_add(self, other: Credits) -> Credits {
        Self::saturating_from_micro(self.0 as i128 + other.0 as i128)
    }
}

impl FromStr for Credits {
    type Err = CreditsError;

    /// Reads a JSON number exactly. An exponent is accepted when the value still has at most six decimals.
    fn from_str(text: &str) -> Result<Credits, CreditsError> {
        let (mantissa, exponent) = match text.split_once(['e', 'E']) {
            Some((mantissa, exponent)) => {
                let exponent: i32 = exponent.parse().map_err(|_| CreditsError::NotANumber)?;
                (mantissa, exponent)
            }
            None => (text, 0),
        };
        let (negative, digits) = match mantissa.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, mantissa),
        };
        let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
        let digits_only = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
        if whole.is_empty() || !digits_only(whole) || !digits_only(fraction) || mantissa.ends_with('.') {
            return Err(CreditsError::NotANumber);
        }
        let micro = scaled(whole, fraction, exponent)?;
        if negative && micro != 0 {
            return Err(CreditsError::Negative);
        }
        Ok(Credits(micro))
    }
}

/// `whole.fraction * 10^exponent` in micro-credits.
fn scaled(whole: &str, fraction: &str, exponent: i32) -> Result<i64, CreditsError> {
    let digits = format!("{whole}{fraction}");
    let digits = digits.trim_start_matches('0');
    // The power of ten by which the digits, read as a whole number, must be multiplied.
    let power = i64::from(exponent) - fraction.len() as i64 + 6;
    if digits.is_empty() {
        return Ok(0);
    }
    let trimmed = digits.trim_end_matches('0');
    let power = power + (digits.len() - trimmed.len()) as i64;
    if power < 0 {
        return Err(CreditsError::TooPrecise);
    }
    if trimmed.len() as i64 + power > 17 {
        return Err(CreditsError::TooLarge);
    }
    let value: i64 = trimmed.parse().map_err(|_| CreditsError::TooLarge)?;
    let micro = value.checked_mul(10_i64.pow(power as u32)).ok_or(CreditsError::TooLarge)?;
    if micro >= Credits::INPUT_LIMIT.0 {
        return Err(CreditsError::TooLarge);
    }
    Ok(micro)
}

impl fmt::Display for Credits {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, fraction) = (self.0 / MICRO, self.0 % MICRO);
        if fraction == 0 {
            return write!(out, "{whole}");
        }
        let fraction = format!("{fraction:06}");
        write!(out, "{whole}.{}", fraction.trim_end_matches('0'))
    }
}

impl fmt::Debug for Credits {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{self}cr")
    }
}

/// As a JSON number with its exact digits (serde_json only, through its raw values).
impl Serialize for Credits {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        RawValue::from_string(self.to_string()).map_err(serde::ser::Error::custom)?.serialize(serializer)
    }
}

/// From the text of a JSON number, so that no float stands between (serde_json only).
impl<'de> Deserialize<'de> for Credits {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Credits, D::Error> {
        let raw = Box::<RawValue>::deserialize(deserializer)?;
        raw.get().parse().map_err(serde::de::Error::custom)
    }
}

/// For the configuration file, whose numbers are integers, decimals, or decimals in quotes.
/// Use with `#[serde(with = "crate::credits::setting")]`.
pub mod setting {
    use super::{Credits, CreditsError};
    use serde::{Deserialize, Deserializer, Serializer};

    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Number {
        Integer(i64),
        Decimal(f64),
        Text(String),
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Credits, D::Error> {
        let text = match Number::deserialize(deserializer)? {
            Number::Integer(whole) => whole.to_string(),
            // The shortest text that reads back as this double is the text that was written, up to 15 digits.
            Number::Decimal(decimal) if decimal.is_finite() && decimal.abs() < 1e9 => format!("{decimal}"),
            Number::Decimal(_) => return Err(serde::de::Error::custom(CreditsError::TooLarge)),
            Number::Text(text) => text,
        };
        text.parse().map_err(serde::de::Error::custom)
    }

    pub fn serialize<S: Serializer>(credits: &Credits, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&credits.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn micro(text: &str) -> Result<i64, CreditsError> {
        text.parse::<Credits>().map(Credits::micro)
    }

    #[test]
    fn reads_decimals_exactly() {
        assert_eq!(micro("5"), Ok(5_000_000));
        assert_eq!(micro("0.25"), Ok(250_000));
        assert_eq!(micro("0.000001"), Ok(1));
        assert_eq!(micro("1.500000"), Ok(1_500_000));
        assert_eq!(micro("1.50000000"), Ok(1_500_000));
        assert_eq!(micro("25e-2"), Ok(250_000));
        assert_eq!(micro("1E3"), Ok(1_000_000_000));
        assert_eq!(micro("-0"), Ok(0));
        assert_eq!(micro("8999999999.999999"), Ok(8_999_999_999_999_999));
    }

    #[test]
    fn refuses_what_is_no_amount() {
        for text in ["", "-", ".5", "5.", "NaN", "inf", "0x1", "1 ", "1e", "true", "\"1\"", "+1"] {
            assert_eq!(micro(text), Err(CreditsError::NotANumber), "{text:?}");
        }
        assert_eq!(micro("0.0000001"), Err(CreditsError::TooPrecise));
        assert_eq!(micro("-1"), Err(CreditsError::Negative));
        assert_eq!(micro("9000000000"), Err(CreditsError::TooLarge));
        assert_eq!(micro("1e400"), Err(CreditsError::TooLarge));
        assert_eq!(micro("1e2147483647"), Err(CreditsError::TooLarge));
        assert_eq!(micro("9223372036854775808"), Err(CreditsError::TooLarge));
    }

    #[test]
    fn json_keeps_every_digit() {
        let credits: Credits = serde_json::from_str("0.000550").unwrap();
        assert_eq!(serde_json::to_string(&credits).unwrap(), "0.00055");
        let big: Credits = serde_json::from_str("8999999999.999999").unwrap();
        assert_eq!(serde_json::to_string(&big).unwrap(), "8999999999.999999");
        assert!(serde_json::from_str::<Credits>("\"5\"").is_err());
        assert!(serde_json::from_str::<Credits>("null").is_err());
    }

    #[test]
    fn arithmetic_stops_at_the_edges() {
        assert_eq!(Credits::MAX.checked_add(Credits(1)), None);
        assert_eq!(Credits::ZERO.checked_sub(Credits(1)), None);
        assert_eq!(Credits(3).saturating_sub(Credits(5)), Credits::ZERO);
        assert_eq!(Credits::MAX.saturating_add(Credits::MAX), Credits::MAX);
    }
}
