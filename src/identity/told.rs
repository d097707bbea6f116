//! What an issuer tells by webhook, read as far as we use it.

use serde::Deserialize;
use serde_json::Value;

use super::arrivals::Arrival;
use super::issuers::{MAX_MAIL_CHARS, MAX_NAME_CHARS, plain, user_id};
use super::svix::Genuine;
use crate::ledger::Micros;
use crate::store::sign_ups::{NewAuthEvent, Profile};

/// Longer names of events are cut; ours are short.
const MAX_TYPE_CHARS: usize = 64;
/// Where the times in message ids begin: seconds of the Unix epoch.
const KSUID_EPOCH_S: u64 = 1_400_000_000;
/// A message can hardly be older than the sender's own retries.
const OLDEST_S: u64 = 30 * 24 * 3_600;
const MICROS: u64 = 1_000_000;

#[derive(Deserialize)]
struct Envelope {
    #[serde(rename = "type")]
    event_type: String,
    #[serde(default)]
    data: Value,
}

/// A user as created and updated events tell of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Told {
    pub(super) profile: Profile,
    pub(super) email_verified: bool,
    pub(super) anonymous: bool,
    pub(super) restricted: bool,
    /// With the issuer's risk scores.
    pub(super) arrival: Arrival,
}

#[derive(Deserialize)]
struct Data {
    #[serde(default)]
    primary_email: Option<String>,
    #[serde(default)]
    primary_email_verified: Option<bool>,
    #[serde(default)]
    display_name: Option<String>,
    #[serde(default)]
    is_anonymous: Option<bool>,
    #[serde(default)]
    is_restricted: Option<bool>,
    #[serde(default)]
    risk_scores: Value,
}

/// The event to store.
///
/// # Errors
/// When the body is not an event, or one about a user who cannot be one here.
pub(crate) fn read(genuine: &Genuine<'_>, body: &[u8]) -> Result<NewAuthEvent, String> {
    let text = std::str::from_utf8(body).map_err(|error| error.to_string())?;
    let envelope: Envelope = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let about_users = envelope.event_type.starts_with("user.");
    let user = envelope.data.get("id").and_then(Value::as_str).filter(|_| about_users);
    let user = user.and_then(|id| user_id("", id));
    if about_users && user.is_none() {
        return Err("it names no user, or one whose id cannot be used here".to_owned());
    }
    Ok(NewAuthEvent {
        id: genuine.id.to_owned(),
        event_type: envelope.event_type.chars().take(MAX_TYPE_CHARS).collect(),
        user,
        at: happened(genuine.id, genuine.sent_s),
        // No store takes the NUL, and JSON writes it as six characters.
        payload: text.replace('\0', ""),
    })
}

/// What a stored event says about the user.
pub(super) fn told(payload: &str, at: Micros) -> Result<Told, String> {
    let envelope: Envelope = serde_json::from_str(payload).map_err(|error| error.to_string())?;
    let data: Data = serde_json::from_value(envelope.data).map_err(|error| error.to_string())?;
    let anonymous = data.is_anonymous.unwrap_or(false);
    Ok(Told {
        profile: Profile {
            email: data.primary_email.and_then(|mail| plain(&mail, MAX_MAIL_CHARS)),
            name: data.display_name.and_then(|name| plain(&name, MAX_NAME_CHARS)),
            whole: true,
            at,
        },
        email_verified: data.primary_email_verified.unwrap_or(false),
        anonymous,
        restricted: anonymous || data.is_restricted.unwrap_or(false),
        arrival: Arrival {
            address: None,
            bot: risk(&data.risk_scores, "/sign_up/bot"),
            free_trial_abuse: risk(&data.risk_scores, "/sign_up/free_trial_abuse"),
        },
    })
}

/// A score from 0 to 100, which may come with decimals; they are cut off.
fn risk(scores: &Value, path: &str) -> Option<u8> {
    let Value::Number(score) = scores.pointer(path)? else { return None };
    let text = score.to_string();
    let whole: u64 = text.split('.').next()?.parse().ok()?;
    u8::try_from(whole.min(100)).ok()
}

/// When a message came to be. Webhooks overtake each other, and the payload does not say; but Svix's message ids are
/// KSUIDs, which begin with the second (and 256ths of it) of their making. Where an id is none, the delivery's time counts.
fn happened(id: &str, sent_s: u64) -> Micros {
    let made = id.strip_prefix("msg_").and_then(ksuid_time);
    let sent = sent_s.saturating_mul(MICROS);
    let likely = |made: &Micros| *made <= sent + MICROS && sent.saturating_sub(*made) <= OLDEST_S * MICROS;
    made.filter(likely).unwrap_or(sent)
}

fn ksuid_time(text: &str) -> Option<Micros> {
    if text.len() != 27 {
        return None;
    }
    let mut bytes = [0_u8; 20];
    for letter in text.bytes() {
        let digit = match letter {
            b'0'..=b'9' => letter - b'0',
            b'A'..=b'Z' => letter - b'A' + 10,
            b'a'..=b'z' => letter - b'a' + 36,
            _ => return None,
        };
        let mut carry = u32::from(digit);
        for byte in bytes.iter_mut().rev() {
            let value = u32::from(*byte) * 62 + carry;
            *byte = (value & 0xff) as u8;
            carry = value >> 8;
        }
        if carry > 0 {
            return None;
        }
    }
    let seconds = u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    let part = u64::from(bytes[4]) * MICROS / 256;
    Some((KSUID_EPOCH_S + u64::from(seconds)) * MICROS + part)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(id: &str, body: &str) -> Result<NewAuthEvent, String> {
        read(&Genuine { id, sent_s: 1_700_000_000 }, body.as_bytes())
    }

    #[test]
    fn events_are_read_as_far_as_they_are_understood() {
        let body = r#"{"type":"user.updated","data":{"id":"u-1","primary_email":" a@b.example ","primary_email_verified":true,
            "display_name":"A\u0007nn","is_anonymous":false,"is_restricted":true,"risk_scores":{"sign_up":{"bot":3.9,"free_trial_abuse":400}}}}"#;
        let stored = event("msg_1", body).unwrap();
        let user = stored.user.map(|id| id.to_string());
        assert_eq!((stored.event_type.as_str(), user.as_deref()), ("user.updated", Some("u-1")));
        assert_eq!(stored.at, 1_700_000_000_000_000);
        let told = told(&stored.payload, 7).unwrap();
        assert_eq!((told.profile.email.as_deref(), told.profile.name.as_deref()), (Some("a@b.example"), Some("Ann")));
        assert_eq!((told.arrival.bot, told.arrival.free_trial_abuse), (Some(3), Some(100)));
        assert!(told.restricted && !told.anonymous && told.email_verified && told.profile.whole);
        assert!(event("msg_1", r#"{"type":"team.created","data":{"id":7}}"#).unwrap().user.is_none());
        for broken in ["", "[]", "{}", r#"{"type":"user.created"}"#, r#"{"type":"user.created","data":{"id":""}}"#] {
            assert!(event("msg_1", broken).is_err(), "{broken}");
        }
    }

    /// The first and the last are from KSUID's own documentation, the second was worked out apart from this code.
    #[test]
    fn ids_tell_when_messages_were_made() {
        let seconds = |id: &str| ksuid_time(id).map(|at| at / MICROS);
        assert_eq!(seconds("0ujtsYcgvSTl8PAuAdqWYSMnLOv"), Some(1_507_608_047));
        assert_eq!(seconds("0ujsszgFvbiEr7CDgE3z8MAUPFt"), Some(1_507_607_557));
        assert_eq!(seconds("aWgEPTl1tmebfsQzFP4bxwgy80V"), Some(u64::from(u32::MAX) + KSUID_EPOCH_S));
        for none in ["", "aWgEPTl1tmebfsQzFP4bxwgy80W", "0ujtsYcgvSTl8PAuAdqWYSMnLO-"] {
            assert_eq!(ksuid_time(none), None, "{none}");
        }
        // One that lies is not believed.
        assert_eq!(happened("msg_aWgEPTl1tmebfsQzFP4bxwgy80V", 1_700_000_000), 1_700_000_000 * MICROS);
        assert_eq!(happened("msg_0ujtsYcgvSTl8PAuAdqWYSMnLOv", 1_507_608_100) / MICROS, 1_507_608_047);
    }
}
