//! The little that is believed of a webhook's body: which event it is, and which object it is about. Everything else is
//! asked of Stripe again, in the form of the pinned version: a body has whatever form its endpoint is set to.

use serde::Deserialize;
use serde_json::Value;

use crate::store::billing::{EventState, NewEvent};

/// Stripe's longest ids are far below it.
const MAX_ID_CHARS: usize = 255;
/// Names under which objects tell their amount, the most telling first.
const AMOUNTS: [&str; 5] = ["amount_paid", "amount_received", "amount_total", "amount_refunded", "amount"];

/// A body that is no event of Stripe's.
#[derive(Debug, thiserror::Error)]
pub enum UnreadableEvent {
    #[error("the body is no event: {0}")]
    Json(#[from] serde_json::Error),
    #[error("the event has no usable {0}")]
    Lacks(&'static str),
}

#[derive(Deserialize)]
struct Envelope {
    id: String,
    #[serde(rename = "type")]
    event_type: String,
    #[serde(default)]
    object: String,
    /// Unix seconds; a text in events of version 2.
    #[serde(default)]
    created: Value,
    #[serde(default)]
    livemode: bool,
    #[serde(default)]
    data: Value,
    /// Of events of version 2, which carry no object.
    #[serde(default)]
    related_object: Option<Related>,
}

#[derive(Deserialize)]
struct Related {
    id: String,
    #[serde(rename = "type")]
    kind: String,
}

/// Reads a body whose signature was verified.
pub fn read(body: &[u8]) -> Result<NewEvent, UnreadableEvent> {
    let text = std::str::from_utf8(body).map_err(|_| UnreadableEvent::Lacks("text"))?;
    let envelope: Envelope = serde_json::from_str(text)?;
    let id = usable(Some(&envelope.id)).ok_or(UnreadableEvent::Lacks("id"))?;
    let event_type = usable(Some(&envelope.event_type)).ok_or(UnreadableEvent::Lacks("type"))?;
    if !matches!(envelope.object.as_str(), "" | "event" | "v2.core.event") {
        return Err(UnreadableEvent::Lacks("object"));
    }
    let object = envelope.data.get("object");
    let field = |name: &str| object.and_then(|object| object.get(name));
    let text = |name: &str| usable(field(name).and_then(Value::as_str));
    let (object_type, object_id) = match &envelope.related_object {
        Some(related) => (usable(Some(&related.kind)), usable(Some(&related.id))),
        None => (text("object"), text("id")),
    };
    Ok(NewEvent {
        id,
        event_type,
        object_type,
        object_id,
        livemode: envelope.livemode,
        amount: AMOUNTS.iter().find_map(|name| field(name).and_then(Value::as_i64)),
        currency: text("currency"),
        created_at: created(&envelope.created),
        payload: String::from_utf8_lossy(body).into_owned(),
        state: EventState::Pending,
        error: None,
    })
}

fn usable(text: Option<&str>) -> Option<String> {
    let text = text?;
    let plain = (1..=MAX_ID_CHARS).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic());
    plain.then(|| text.to_owned())
}

fn created(value: &Value) -> u64 {
    let micros = match value {
        Value::Number(seconds) => seconds.as_u64().and_then(|seconds| seconds.checked_mul(1_000_000)),
        Value::String(time) => {
            time.parse::<jiff::Timestamp>().ok().and_then(|time| u64::try_from(time.as_microsecond()).ok())
        }
        _ => None,
    };
    // For people to read only: nothing is ordered by it.
    micros.filter(|micros| *micros < 253_402_300_800_000_000).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_name_their_object() {
        let event = read(
            br#"{"id":"evt_1","object":"event","type":"invoice.paid","created":1700000000,"livemode":true,
                "data":{"object":{"id":"in_1","object":"invoice","amount_paid":2000,"amount":1,"currency":"usd"}}}"#,
        )
        .unwrap();
        assert_eq!((event.object_type.as_deref(), event.object_id.as_deref()), (Some("invoice"), Some("in_1")));
        assert_eq!((event.amount, event.currency.as_deref(), event.livemode), (Some(2000), Some("usd"), true));
        assert_eq!(event.created_at, 1_700_000_000_000_000);
    }

    #[test]
    fn thin_events_name_it_too() {
        let event = read(
            br#"{"id":"evt_2","object":"v2.core.event","type":"v1.invoice.paid","created":"2026-01-01T00:00:00.000Z",
                "livemode":false,"related_object":{"id":"in_2","type":"invoice","url":"/v1/invoices/in_2"}}"#,
        )
        .unwrap();
        assert_eq!((event.object_type.as_deref(), event.object_id.as_deref()), (Some("invoice"), Some("in_2")));
        assert_eq!(event.created_at, 1_767_225_600_000_000);
    }

    #[test]
    fn what_has_no_id_is_none() {
        let upcoming = br#"{"id":"evt_3","type":"invoice.upcoming","data":{"object":{"object":"invoice"}}}"#;
        assert_eq!(read(upcoming).unwrap().object_id, None);
        for body in
            [&b"[]"[..], b"{}", b"\xff", br#"{"id":"a b","type":"x"}"#, br#"{"id":"e","type":"x","object":"y"}"#]
        {
            assert!(read(body).is_err());
        }
    }
}
