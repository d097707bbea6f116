//! Events as bytes in the journal: MessagePack, by position, behind a format number.

use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::super::common::broken;
use super::super::{StoreError, StoreResult};
use crate::credits::Credits;
use crate::ledger::{AccountId, Deltas, Event, EventKind, Micros, RecordId};

/// Raised when the form changes; a program reads the forms that released ones wrote.
const FORMAT: u8 = 1;

#[derive(Serialize, Deserialize)]
struct Packed<'a> {
    #[serde(borrow)]
    account: &'a str,
    seq: u64,
    at: Micros,
    kind: EventKind,
    charged: i64,
    written_off: i64,
    forfeited: i64,
    debt_delta: i64,
    change: u64,
    deltas: Deltas,
    record: Option<RecordId>,
    #[serde(borrow)]
    usage: Raw<'a>,
}

pub(super) fn pack(events: &[Event]) -> StoreResult<Vec<u8>> {
    let packed: Vec<Packed<'_>> = events.iter().map(Packed::of).collect();
    rmp_serde::to_vec(&(FORMAT, packed)).map_err(|error| StoreError::Unavailable(error.to_string()))
}

/// The usage of the events stays in `bytes`, uncopied.
pub(super) fn unpack(bytes: &Bytes) -> StoreResult<Vec<Event>> {
    let unreadable = |_| broken("journal entry");
    let (format, packed): (u8, Vec<Packed<'_>>) = rmp_serde::from_slice(bytes).map_err(unreadable)?;
    if format != FORMAT {
        return Err(broken("journal entry"));
    }
    packed.iter().map(|packed| packed.event(bytes)).collect()
}

impl Packed<'_> {
    fn of(event: &Event) -> Packed<'_> {
        Packed {
            account: event.account.as_str(),
            seq: event.seq,
            at: event.at,
            kind: event.kind,
            charged: event.charged.micro(),
            written_off: event.written_off.micro(),
            forfeited: event.forfeited.micro(),
            debt_delta: event.debt_delta,
            change: event.change,
            deltas: event.deltas.clone(),
            record: event.record,
            usage: Raw(&event.usage),
        }
    }

    fn event(&self, bytes: &Bytes) -> StoreResult<Event> {
        let credits = |micro| Credits::from_micro(micro).ok_or_else(|| broken("journal entry"));
        Ok(Event {
            account: AccountId::parse(self.account).map_err(|_| broken("journal entry"))?,
            seq: self.seq,
            at: self.at,
            kind: self.kind,
            charged: credits(self.charged)?,
            written_off: credits(self.written_off)?,
            forfeited: credits(self.forfeited)?,
            debt_delta: self.debt_delta,
            change: self.change,
            deltas: self.deltas.clone(),
            record: self.record,
            usage: bytes.slice_ref(self.usage.0),
        })
    }
}

/// Bytes as bytes: serde would write a slice number by number.
struct Raw<'a>(&'a [u8]);

impl Serialize for Raw<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.0)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Raw<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Raw<'a>, D::Error> {
        struct Borrowed;
        impl<'de> de::Visitor<'de> for Borrowed {
            type Value = &'de [u8];

            fn expecting(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                out.write_str("bytes")
            }

            fn visit_borrowed_bytes<E: de::Error>(self, bytes: &'de [u8]) -> Result<&'de [u8], E> {
                Ok(bytes)
            }
        }
        deserializer.deserialize_bytes(Borrowed).map(Raw)
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::ledger::{Delta, GrantId};

    fn events() -> Vec<Event> {
        let full = Event {
            account: AccountId::parse("ada@example.org").unwrap(),
            seq: u64::MAX,
            at: 1_760_000_000_000_000,
            kind: EventKind::Settled,
            charged: Credits::MAX,
            written_off: Credits::whole(2),
            forfeited: Credits::whole(3),
            debt_delta: i64::MIN,
            change: 7,
            deltas: (1..5).map(|grant| Delta { grant: GrantId(grant), micro: -1_000 }).collect(),
            record: Some(RecordId(Uuid::from_u128(9))),
            usage: Bytes::from_static(b"\xc1\x00 anything"),
        };
        let bare = Event { deltas: Deltas::new(), record: None, usage: Bytes::new(), change: 0, ..full.clone() };
        vec![full, bare]
    }

    #[test]
    fn events_come_back_as_they_were() {
        let bytes = Bytes::from(pack(&events()).unwrap());
        assert_eq!(unpack(&bytes).unwrap(), events());
        assert_eq!(unpack(&Bytes::from(pack(&[]).unwrap())).unwrap(), []);
    }

    #[test]
    fn what_cannot_be_read_is_an_error() {
        let bytes = pack(&events()).unwrap();
        for cut in 0..bytes.len() {
            assert!(unpack(&Bytes::copy_from_slice(&bytes[..cut])).is_err(), "cut at {cut}");
        }
        let newer = rmp_serde::to_vec(&(FORMAT + 1, Vec::<Packed<'_>>::new())).unwrap();
        assert!(unpack(&Bytes::from(newer)).is_err());
    }
}
