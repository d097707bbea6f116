//! Answers and events on their way back.

use bytes::Bytes;
use uuid::Uuid;

use super::{Malformed, Reader};
use crate::credits::Credits;
use crate::ledger::{
    AccountId, Act, Answer, Balance, Delta, Event, EventKind, GrantId, GrantKind, GrantState, Kept, Limit, Micros, Op,
    Parts, RecordId, Reserved, SessionId,
};

/// What became of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BatchReply {
    Applied {
        now: Micros,
        /// The ledger takes no new work.
        backlogged: bool,
        answers: Vec<Answer>,
    },
    /// The session was fenced; the batch was not applied.
    Fenced,
    /// The ledger no longer knows what the session was told before; the batch was not applied.
    Lost { reason: String },
}

/// Reads the answer to a batch of `session`. `ops` are those of the batch.
pub fn batch<'a>(
    bytes: &[u8],
    session: SessionId,
    ops: impl ExactSizeIterator<Item = &'a Op>,
) -> Result<BatchReply, Malformed> {
    let mut reader = Reader::new(bytes);
    reader.array()?;
    let (code, now) = (reader.int()?, reader.uint()?);
    match code {
        0 => {}
        1 => return Ok(BatchReply::Fenced),
        2 => return Ok(BatchReply::Lost { reason: String::from_utf8_lossy(reader.bytes()?).into_owned() }),
        _ => return Err(Malformed("an unknown kind of answer")),
    }
    let backlogged = reader.flag()?;
    if reader.array()? != ops.len() {
        return Err(Malformed("not as many answers as operations"));
    }
    let answers = ops.map(|op| answer(&mut reader, session, op)).collect::<Result<_, _>>()?;
    Ok(BatchReply::Applied { now, backlogged, answers })
}

fn answer(reader: &mut Reader<'_>, session: SessionId, op: &Op) -> Result<Answer, Malformed> {
    let len = reader.array()?;
    Ok(match reader.int()? {
        1 => {
            let session = if let Act::Extend { session, .. } = op.act { session } else { session };
            reserved(reader, session, len)?
        }
        2 => {
            let available = credits(reader)?;
            Answer::Settled { charged: credits(reader)?, available }
        }
        3 => Answer::Released { available: credits(reader)? },
        4 => {
            let available = credits(reader)?;
            Answer::Held { held: credits(reader)?, available, expires_at: reader.uint()? }
        }
        5 => Answer::Insufficient { available: credits(reader)?, held: credits(reader)? },
        6 => {
            let limit = match reader.int()? {
                1 => Limit::Requests,
                2 => Limit::Tokens,
                _ => Limit::Concurrency,
            };
            Answer::Limited { limit, retry_after_us: u64::try_from(reader.int()?).ok() }
        }
        7 => Answer::Frozen,
        8 => Answer::NotLoaded,
        9 => Answer::UnknownHold,
        10 => Answer::Finished(kept(reader)?),
        11 => Answer::Repeated(kept(reader)?),
        12 => Answer::Mismatch,
        13 => Answer::Applied,
        14 => Answer::Duplicate,
        15 => Answer::Gap { applied: reader.uint()? },
        16 => Answer::Ticketed,
        17 => Answer::Loaded,
        18 => Answer::Already,
        19 => Answer::Refused,
        20 => Answer::Parked,
        21 => balance(reader, len)?,
        22 => Answer::TooLarge,
        23 => Answer::Unreadable,
        24 => Answer::Backlogged,
        _ => return Err(Malformed("an unknown answer")),
    })
}

fn reserved(reader: &mut Reader<'_>, session: SessionId, len: usize) -> Result<Answer, Malformed> {
    let available = credits(reader)?;
    let (requests_busy_us, tokens_busy_us) = (reader.uint()?, reader.uint()?);
    let mut parts = Parts::new();
    for _ in 0..len.saturating_sub(4) / 2 {
        parts.push((GrantId(reader.uint()?), credits(reader)?));
    }
    Ok(Answer::Reserved(Reserved { session, parts, available, requests_busy_us, tokens_busy_us }))
}

fn balance(reader: &mut Reader<'_>, len: usize) -> Result<Answer, Malformed> {
    let mut balance = Balance {
        available: credits(reader)?,
        held: credits(reader)?,
        debt: credits(reader)?,
        frozen: reader.flag()?,
        seq: reader.uint()?,
        change: reader.uint()?,
        in_flight: reader.uint()?,
        clawed: credits(reader)?,
        grants: Vec::new(),
    };
    for _ in 0..len.saturating_sub(9) / 5 {
        balance.grants.push(GrantState {
            id: GrantId(reader.uint()?),
            kind: grant_kind(reader.int()?)?,
            remaining_micro: reader.int()?,
            expires_at: reader.uint()?,
            frozen: reader.flag()?,
        });
    }
    Ok(Answer::Balance(balance))
}

fn kept(reader: &mut Reader<'_>) -> Result<Kept, Malformed> {
    reader.array()?;
    let (kind, available_micro, amount, expires_at) = (reader.int()?, reader.int()?, reader.int()?, reader.uint()?);
    Ok(match kind {
        1 => Kept::Held { held_micro: amount, available_micro, expires_at },
        2 => Kept::Charged { charged_micro: amount, available_micro },
        3 => Kept::Released { available_micro },
        _ => return Err(Malformed("an unknown kept answer")),
    })
}

/// One entry of the event stream: what one batch did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub counter: u64,
    pub session: SessionId,
    /// The session's batch.
    pub number: u64,
    pub at: Micros,
    pub events: Vec<Event>,
}

/// Reads the entry with id `<counter>-0`.
pub fn entry(counter: u64, bytes: &[u8]) -> Result<Entry, Malformed> {
    let mut reader = Reader::new(bytes);
    reader.array()?;
    let (session, number, at) = (SessionId(reader.uint()?), reader.uint()?, reader.uint()?);
    let count = reader.array()?;
    let events = (0..count).map(|_| event(&mut reader)).collect::<Result<_, _>>()?;
    Ok(Entry { counter, session, number, at, events })
}

fn event(reader: &mut Reader<'_>) -> Result<Event, Malformed> {
    reader.array()?;
    let account = std::str::from_utf8(reader.bytes()?).map_err(|_| Malformed("an account's name"))?;
    let mut event = Event {
        account: AccountId::parse(account).map_err(|_| Malformed("an account's name"))?,
        seq: reader.uint()?,
        at: reader.uint()?,
        kind: event_kind(reader.int()?)?,
        charged: told(reader)?,
        written_off: told(reader)?,
        forfeited: told(reader)?,
        debt_delta: reader.int()?,
        change: reader.uint()?,
        deltas: Default::default(),
        record: None,
        usage: Bytes::new(),
    };
    let record = reader.bytes()?;
    if !record.is_empty() {
        event.record = Some(RecordId(Uuid::from_slice(record).map_err(|_| Malformed("a record's id"))?));
    }
    event.usage = Bytes::copy_from_slice(reader.bytes()?);
    for _ in 0..reader.array()? / 2 {
        event.deltas.push(Delta { grant: GrantId(reader.uint()?), micro: reader.int()? });
    }
    Ok(event)
}

fn credits(reader: &mut Reader<'_>) -> Result<Credits, Malformed> {
    Credits::from_micro(reader.int()?).ok_or(Malformed("an amount is out of bounds"))
}

/// An event's amount is cut to bounds, as the model cuts it: an event must not be refused.
fn told(reader: &mut Reader<'_>) -> Result<Credits, Malformed> {
    Ok(Credits::saturating_from_micro(i128::from(reader.int()?)))
}

fn grant_kind(code: i64) -> Result<GrantKind, Malformed> {
    Ok(match code {
        1 => GrantKind::Free,
        2 => GrantKind::Plan,
        3 => GrantKind::Topup,
        4 => GrantKind::Promo,
        5 => GrantKind::Adjust,
        _ => return Err(Malformed("an unknown kind of grant")),
    })
}

fn event_kind(code: i64) -> Result<EventKind, Malformed> {
    Ok(match code {
        1 => EventKind::Settled,
        2 => EventKind::Charged,
        3 => EventKind::Granted,
        4 => EventKind::Revoked,
        5 => EventKind::RolledOver,
        6 => EventKind::Frozen,
        7 => EventKind::Unfrozen,
        8 => EventKind::Adjusted,
        9 => EventKind::Abandoned,
        _ => return Err(Malformed("an unknown kind of event")),
    })
}

/// An array of whole numbers: the answer of the smaller scripts.
pub fn numbers<const N: usize>(bytes: &[u8]) -> Result<[i64; N], Malformed> {
    let mut reader = Reader::new(bytes);
    if reader.array()? != N {
        return Err(Malformed("not as many numbers as expected"));
    }
    let mut numbers = [0; N];
    for number in &mut numbers {
        *number = reader.int()?;
    }
    Ok(numbers)
}
