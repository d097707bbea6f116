//! Answers and events on their way back.

use bytes::Bytes;
use uuid::Uuid;

use super::{Malformed, Reader};
use crate::credits::Credits;
use crate::ledger::log::Unreadable;
use crate::ledger::{
    AccountId, Act, Answer, Balance, Delta, Event, EventKind, GrantId, GrantKind, GrantState, Kept, Limit, Micros, Op,
    Parts, RecordId, RecordState, Reserved, SessionId,
};

/// What became of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BatchReply {
    Applied {
        now: Micros,
        /// The ledger takes no new work.
        backlogged: bool,
        answers: Vec<Answer>,
        /// The shard's last entry after this batch.
        counter: u64,
        /// Entries up to this one are in the store.
        flushed: u64,
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
    // One flat array: what an answer's length is, its kind says.
    reader.array()?;
    let (code, now) = (reader.int()?, reader.uint()?);
    match code {
        0 => {}
        1 => return Ok(BatchReply::Fenced),
        2 => return Ok(BatchReply::Lost { reason: String::from_utf8_lossy(reader.bytes()?).into_owned() }),
        _ => return Err(Malformed("an unknown kind of answer")),
    }
    let backlogged = reader.flag()?;
    let (counter, flushed) = (reader.uint()?, reader.uint()?);
    let answers = ops.map(|op| answer(&mut reader, session, op)).collect::<Result<_, _>>()?;
    if !reader.is_at_end() {
        return Err(Malformed("more answers than operations"));
    }
    Ok(BatchReply::Applied { now, backlogged, answers, counter, flushed })
}

fn answer(reader: &mut Reader<'_>, session: SessionId, op: &Op) -> Result<Answer, Malformed> {
    Ok(match reader.int()? {
        1 => {
            let session = if let Act::Extend { session, .. } = op.act { session } else { session };
            reserved(reader, session)?
        }
        2 => {
            let available = told(reader)?;
            Answer::Settled { charged: credits(reader)?, available }
        }
        3 => Answer::Released { available: told(reader)? },
        4 => {
            let available = told(reader)?;
            Answer::Held { held: credits(reader)?, available, expires_at: reader.uint()? }
        }
        5 => Answer::Insufficient { available: told(reader)?, held: told(reader)? },
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
        21 => balance(reader)?,
        22 => Answer::TooLarge,
        23 => Answer::Unreadable,
        24 => Answer::Backlogged,
        25 => Answer::UnknownRecord,
        26 => reserved_plainly(reader, session, &op.act)?,
        27 => settled_plainly(reader, &op.act)?,
        _ => return Err(Malformed("an unknown answer")),
    })
}

fn reserved(reader: &mut Reader<'_>, session: SessionId) -> Result<Answer, Malformed> {
    let available = told(reader)?;
    let (requests_busy_us, tokens_busy_us) = (reader.uint()?, reader.uint()?);
    let mut parts = Parts::new();
    for _ in 0..reader.uint()? / 2 {
        parts.push((GrantId(reader.uint()?), credits(reader)?));
    }
    Ok(Answer::Reserved(Reserved { session, parts, available, requests_busy_us, tokens_busy_us }))
}

/// The amount asked for, from one grant; there is no limit, or it is idle.
fn reserved_plainly(reader: &mut Reader<'_>, session: SessionId, act: &Act) -> Result<Answer, Malformed> {
    let Act::Reserve { amount, .. } = act else { return Err(Malformed("an answer to another operation")) };
    let available = told(reader)?;
    let parts = Parts::from_iter([(GrantId(reader.uint()?), *amount)]);
    Ok(Answer::Reserved(Reserved { session, parts, available, requests_busy_us: 0, tokens_busy_us: 0 }))
}

/// The amount that was used.
fn settled_plainly(reader: &mut Reader<'_>, act: &Act) -> Result<Answer, Malformed> {
    let Act::Settle { actual, .. } = act else { return Err(Malformed("an answer to another operation")) };
    Ok(Answer::Settled { charged: *actual, available: told(reader)? })
}

fn balance(reader: &mut Reader<'_>) -> Result<Answer, Malformed> {
    let mut balance = Balance {
        available: told(reader)?,
        held: told(reader)?,
        debt: told(reader)?,
        frozen: reader.flag()?,
        seq: reader.uint()?,
        change: reader.uint()?,
        in_flight: reader.uint()?,
        clawed: told(reader)?,
        grants: Vec::new(),
    };
    for _ in 0..reader.uint()? {
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
    kept_fields(reader)
}

fn kept_fields(reader: &mut Reader<'_>) -> Result<Kept, Malformed> {
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
    /// Records as they stood after it.
    pub records: Vec<(AccountId, RecordState)>,
    /// How its bytes begin: session, number and time. No other entry begins so, in whatever history.
    pub mark: Vec<u8>,
    /// Why it cannot be read: then it has no events.
    pub unreadable: Option<Unreadable>,
}

/// As much of an entry's bytes as its head takes, at most.
const MARK_MAX: usize = 32;

impl Entry {
    /// An entry that [`entry`] refused; session and number are known where at least its head can be read.
    pub fn unreadable(epoch: u64, counter: u64, fields: Fields<'_>, reason: Malformed) -> Entry {
        let start = fields.events.get(..fields.events.len().min(MARK_MAX)).unwrap_or_default().to_vec();
        let (session, number, at, mark) = head(fields.events).unwrap_or((SessionId(0), 0, 0, start));
        let bytes = [fields.events, fields.details, fields.records].concat().into();
        let unreadable = Some(Unreadable { epoch, counter, reason: reason.0.to_owned(), bytes });
        Entry { counter, session, number, at, events: Vec::new(), records: Vec::new(), mark, unreadable }
    }
}

fn head(events: &[u8]) -> Result<(SessionId, u64, Micros, Vec<u8>), Malformed> {
    let mut reader = Reader::new(events);
    // One flat array.
    reader.array()?;
    let (session, number, at) = (SessionId(reader.uint()?), reader.uint()?, reader.uint()?);
    let mark = events.get(..events.len().saturating_sub(reader.left())).unwrap_or_default().to_vec();
    Ok((session, number, at, mark))
}

/// An event has more to tell than what was charged.
const MORE: i64 = 16;

/// An entry's fields as the stream has them; those that it lacks are empty.
#[derive(Debug, Clone, Copy, Default)]
pub struct Fields<'a> {
    pub events: &'a [u8],
    /// What the events name.
    pub details: &'a [u8],
    pub records: &'a [u8],
}

/// Reads the entry with id `<counter>-0`.
pub fn entry(counter: u64, fields: Fields<'_>) -> Result<Entry, Malformed> {
    let Fields { events, details, records } = fields;
    let details = read_details(details)?;
    let mut reader = Reader::new(events);
    // One flat array.
    reader.array()?;
    let (session, number, at) = (SessionId(reader.uint()?), reader.uint()?, reader.uint()?);
    let mark = events.get(..events.len().saturating_sub(reader.left())).unwrap_or_default().to_vec();
    let records = read_records(records)?;
    let mut entry = Entry {
        counter,
        session,
        number,
        at,
        events: Vec::with_capacity(details.len()),
        records,
        mark,
        unreadable: None,
    };
    while !reader.is_at_end() {
        entry.events.push(event(&mut reader, at, &details)?);
    }
    Ok(entry)
}

/// One flat array: of each record `<id>:<account>`, fingerprint, until, parts held or 0, and its answer.
fn read_records(bytes: &[u8]) -> Result<Vec<(AccountId, RecordState)>, Malformed> {
    let mut records = Vec::new();
    if bytes.is_empty() {
        return Ok(records);
    }
    let mut reader = Reader::new(bytes);
    reader.array()?;
    while !reader.is_at_end() {
        let member = std::str::from_utf8(reader.bytes()?).ok().and_then(|member| member.split_once(':'));
        let (id, account) = member.ok_or(Malformed("a record's name"))?;
        let id = Uuid::try_parse(id).map_err(|_| Malformed("a record's id"))?;
        let account = AccountId::parse(account).map_err(|_| Malformed("an account's name"))?;
        let (fingerprint, until) = (reader.uint()?, reader.uint()?);
        let held = if reader.is_number() { reader.uint().map(|_| None)? } else { Some(held_parts(&mut reader)?) };
        let answer = kept_fields(&mut reader)?;
        records.push((account, RecordState { id: RecordId(id), fingerprint, until, held, answer }));
    }
    Ok(records)
}

fn held_parts(reader: &mut Reader<'_>) -> Result<Vec<(GrantId, i64)>, Malformed> {
    let mut parts = Vec::new();
    for _ in 0..reader.array()? / 2 {
        parts.push((GrantId(reader.uint()?), reader.int()?));
    }
    Ok(parts)
}

/// Of whom an event tells, and what was used.
#[derive(Default)]
struct Detail<'a> {
    account: &'a [u8],
    usage: &'a [u8],
    record: &'a [u8],
}

fn read_details(bytes: &[u8]) -> Result<Vec<Detail<'_>>, Malformed> {
    let mut reader = Reader::new(bytes);
    let mut details = Vec::new();
    while !reader.is_at_end() {
        details.push(Detail { account: reader.bytes()?, usage: reader.bytes()?, record: reader.bytes()? });
    }
    Ok(details)
}

fn event(reader: &mut Reader<'_>, at: Micros, details: &[Detail<'_>]) -> Result<Event, Malformed> {
    let kind = reader.int()?;
    let by_name;
    let detail = if reader.is_number() {
        let index = usize::try_from(reader.uint()?).ok().and_then(|number| number.checked_sub(1));
        index.and_then(|index| details.get(index)).ok_or(Malformed("a detail is missing"))?
    } else {
        by_name = Detail { account: reader.bytes()?, ..Detail::default() };
        &by_name
    };
    let account = std::str::from_utf8(detail.account).map_err(|_| Malformed("an account's name"))?;
    let mut event = Event {
        account: AccountId::parse(account).map_err(|_| Malformed("an account's name"))?,
        seq: reader.uint()?,
        at,
        kind: event_kind(if kind >= MORE { kind - MORE } else { kind })?,
        charged: told(reader)?,
        written_off: Credits::ZERO,
        forfeited: Credits::ZERO,
        debt_delta: 0,
        change: 0,
        deltas: Default::default(),
        record: None,
        usage: Bytes::copy_from_slice(detail.usage),
    };
    if kind >= MORE {
        (event.written_off, event.forfeited) = (told(reader)?, told(reader)?);
        (event.debt_delta, event.change) = (reader.int()?, reader.uint()?);
    }
    if !detail.record.is_empty() {
        let record = Uuid::from_slice(detail.record).map_err(|_| Malformed("a record's id"))?;
        event.record = Some(RecordId(record));
    }
    for _ in 0..reader.uint()? / 2 {
        event.deltas.push(Delta { grant: GrantId(reader.uint()?), micro: reader.int()? });
    }
    Ok(event)
}

fn credits(reader: &mut Reader<'_>) -> Result<Credits, Malformed> {
    Credits::from_micro(reader.int()?).ok_or(Malformed("an amount is out of bounds"))
}

/// What is told of an account is cut to bounds, as the model cuts it: an event must not be refused, nor a whole batch because of
/// one account that was damaged.
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
