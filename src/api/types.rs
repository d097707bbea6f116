//! What the HTTP APIs read and answer, in one place.

use serde::{Deserialize, Deserializer, Serialize};
use uuid::Uuid;

use crate::credits::Credits;
use crate::ledger::{AccountId, Balance, GrantId, GrantKind, Micros};
use crate::store::{GrantRow, KeyKind, KeyRow, UsageRow, User, UserStatus};

/// A time in RFC 3339, UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Time(pub jiff::Timestamp);

/// An amount that a caller names: above zero, below 9·10⁹, at most six decimals, read exactly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Amount(pub Credits);

// The user's API.

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Deduct {
    pub amount: Amount,
    #[serde(default)]
    pub reason: Option<Text<256>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reserve {
    pub amount: Amount,
    /// Seconds.
    #[serde(default, deserialize_with = "whole")]
    pub expires_in: Option<u64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settle {
    pub id: String,
    pub amount: Amount,
    #[serde(default)]
    pub reason: Option<Text<256>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Release {
    pub id: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    pub available: Credits,
    pub held: Credits,
    pub debt: Credits,
    pub plan: String,
    /// Time to think of buying more.
    pub low: bool,
    /// When the soonest of the plan's own grants ends.
    pub resets_at: Option<Time>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Charged {
    pub charged: Credits,
    pub available: Credits,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Held {
    pub id: Uuid,
    pub held: Credits,
    pub available: Credits,
    pub expires_at: Time,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Released {
    pub available: Credits,
}

/// One forwarded request, or one charge through the API.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Use {
    pub request_id: Uuid,
    pub client_request_id: Option<String>,
    pub model: Option<String>,
    pub route: String,
    /// The HTTP status that the client got.
    pub status: u16,
    pub credits: Credits,
    pub input_tokens: u64,
    pub output_tokens: u64,
    pub estimated: bool,
    pub latency_ms: u64,
    pub created_at: Time,
}

/// One page of a list. `next` is null at the end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct List<T> {
    pub data: Vec<T>,
    pub next: Option<String>,
}

// The operator's API.

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateUser {
    #[serde(default)]
    pub id: Option<AccountId>,
    #[serde(default)]
    pub email: Option<Text<320>>,
    #[serde(default)]
    pub plan: Option<String>,
    /// How the user came, where the product knows: fraud checks look at it.
    #[serde(default)]
    pub signup: Option<CreateSignup>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateSignup {
    #[serde(default)]
    pub address: Option<std::net::IpAddr>,
    /// 0 to 100.
    #[serde(default)]
    pub bot: Option<u8>,
    #[serde(default)]
    pub free_trial_abuse: Option<u8>,
}

impl From<CreateSignup> for crate::identity::Arrival {
    fn from(signup: CreateSignup) -> crate::identity::Arrival {
        let CreateSignup { address, bot, free_trial_abuse } = signup;
        crate::identity::Arrival { address, bot, free_trial_abuse }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateKey {
    pub name: Text<128>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateUserKey {
    pub name: Text<128>,
    /// Makes a `fg_test_` key.
    #[serde(default)]
    pub test: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateGrant {
    pub amount: Amount,
    /// `promo` unless given.
    #[serde(default)]
    pub kind: Option<GrantKind>,
    #[serde(default)]
    pub expires_at: Option<Time>,
    #[serde(default)]
    pub note: Option<Text<512>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct UserView {
    pub id: AccountId,
    pub email: Option<String>,
    pub plan: String,
    pub status: UserStatus,
    pub created_at: Time,
    /// Live from the ledger. Left out of lists.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credits: Option<CreditsView>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grants: Option<Vec<GrantView>>,
    /// The ledger is out of reach: what was done is stored, and takes effect there as soon as it answers.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub pending: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct CreditsView {
    pub available: Credits,
    pub held: Credits,
    pub debt: Credits,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct GrantView {
    pub id: GrantId,
    pub kind: GrantKind,
    pub amount: Credits,
    /// What remains, with what is held from it, as of the last flush.
    pub remaining: Credits,
    pub expires_at: Option<Time>,
    pub frozen: bool,
    pub note: Option<String>,
    pub created_at: Time,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub pending: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct KeyView {
    pub id: String,
    /// The whole key; only in the answer that made it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    pub kind: KeyKind,
    pub name: String,
    pub prefix: String,
    pub created_at: Time,
    pub revoked_at: Option<Time>,
}

/// A text of at most `MAX` characters, none of them a control character.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Text<const MAX: usize>(pub String);

impl Time {
    pub fn from_micros(micros: Micros) -> Time {
        let micros = i64::try_from(micros).unwrap_or(i64::MAX);
        Time(jiff::Timestamp::from_microsecond(micros).unwrap_or(jiff::Timestamp::MAX))
    }

    /// `None` before 1970.
    pub fn micros(self) -> Option<Micros> {
        Micros::try_from(self.0.as_microsecond()).ok()
    }
}

impl<'de> Deserialize<'de> for Amount {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Amount, D::Error> {
        let credits = Credits::deserialize(deserializer)?;
        if credits.is_zero() {
            return Err(serde::de::Error::custom("an amount must be above 0"));
        }
        Ok(Amount(credits))
    }
}

impl<'de, const MAX: usize> Deserialize<'de> for Text<MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Text<MAX>, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text.is_empty() || text.chars().count() > MAX || text.chars().any(char::is_control) {
            return Err(serde::de::Error::custom(format_args!(
                "a text here has 1 to {MAX} characters and no control characters"
            )));
        }
        Ok(Text(text))
    }
}

/// A whole number, also written `900.0`: to JSON Schema, as to most clients' languages, that is the same.
fn whole<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    let Some(number) = Option::<serde_json::Number>::deserialize(deserializer)? else { return Ok(None) };
    let exact = |float: f64| (float.fract() == 0.0 && (0.0..9e15).contains(&float)).then_some(float as u64);
    let whole = number.as_u64().or_else(|| number.as_f64().and_then(exact));
    whole
        .map(Some)
        .ok_or_else(|| serde::de::Error::custom(format_args!("{number} is not a whole number that fits here")))
}

impl From<&Balance> for CreditsView {
    fn from(balance: &Balance) -> CreditsView {
        CreditsView { available: balance.available, held: balance.held, debt: balance.debt }
    }
}

impl From<User> for UserView {
    fn from(user: User) -> UserView {
        UserView {
            id: user.id,
            email: user.email,
            plan: user.plan,
            status: user.status,
            created_at: Time::from_micros(user.created_at),
            credits: None,
            grants: None,
            pending: false,
        }
    }
}

impl From<GrantRow> for GrantView {
    fn from(grant: GrantRow) -> GrantView {
        GrantView {
            id: grant.id,
            kind: grant.kind,
            amount: grant.amount,
            remaining: grant.remaining,
            expires_at: grant.expires_at.map(Time::from_micros),
            frozen: grant.frozen,
            note: grant.note,
            created_at: Time::from_micros(grant.created_at),
            pending: false,
        }
    }
}

impl From<KeyRow> for KeyView {
    fn from(key: KeyRow) -> KeyView {
        KeyView {
            id: key.id,
            key: None,
            kind: key.kind,
            name: key.name,
            prefix: key.prefix,
            created_at: Time::from_micros(key.created_at),
            revoked_at: key.revoked_at.map(Time::from_micros),
        }
    }
}

impl From<UsageRow> for Use {
    fn from(row: UsageRow) -> Use {
        let UsageRow { charged, usage, .. } = row;
        Use {
            request_id: usage.request_id,
            client_request_id: usage.client_request_id,
            model: usage.model,
            route: usage.route,
            status: usage.status,
            credits: charged,
            input_tokens: usage.input_tokens,
            output_tokens: usage.output_tokens,
            estimated: usage.estimated,
            latency_ms: usage.latency_ms,
            created_at: Time::from_micros(usage.created_at_ms.saturating_mul(1_000)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_are_whole_however_they_are_written() {
        let read = |text: &str| serde_json::from_str::<Reserve>(&format!(r#"{{"amount":1,"expires_in":{text}}}"#));
        assert_eq!(read("900").unwrap().expires_in, Some(900));
        assert_eq!(read("900.0").unwrap().expires_in, Some(900));
        assert_eq!(read("null").unwrap().expires_in, None);
        for wrong in ["900.5", "-1", "\"900\"", "1e300", "[1]"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
