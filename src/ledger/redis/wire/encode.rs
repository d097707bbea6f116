//! Operations on their way to `batch.lua`.

use super::super::script;
use super::{Keyspace, NUMBER_MAX, Writer};
use crate::ledger::{
    AccountId, AccountState, Act, Change, GrantId, GrantKind, Kept, Limits, Micros, Op, Parts, RecordId, RecordKey,
    RecordState, Scope, SessionId, TOKENS_MAX, limit_increment,
};

/// Steps of a limit, as `admit` reads them.
const NO_LIMIT: i64 = -1;
const NEVER_ADMITTED: i64 = -2;

/// What a batch says besides its operations.
#[derive(Debug, Clone, Copy)]
pub struct Header {
    pub session: SessionId,
    /// The session's batches are numbered from 1.
    pub number: u64,
    /// Unflushed stream entries past which new work is refused.
    pub max_backlog: u64,
    /// Redis's memory is nearly full: new work is refused.
    pub memory_full: bool,
    /// The last entry of this epoch that the sender knows of: a shard that stands before it lost its data.
    pub seen: u64,
}

/// A piece of a batch's operations ends after so many bytes: Lua unpacks each piece at once, on a stack of 8,000 values.
const PIECE_BYTES: usize = 4_000;

/// A batch ready to be sent, as often as it takes: the same bytes each time.
#[derive(Debug, Default)]
pub struct Packed {
    /// All keys in one text, and where each ends.
    keys: String,
    ends: Vec<usize>,
    /// Whose fixed keys those are: the prefix and the session.
    fixed_for: Option<(String, SessionId)>,
    header: Writer,
    /// What was used, by whom: each a name, a usage and a record's id.
    details: Writer,
    details_count: u64,
    operations: Writer,
    /// Where each piece of the operations ends.
    pieces: Vec<usize>,
    /// The accounts named, with the place of their key.
    accounts: Vec<(AccountId, usize)>,
}

impl Packed {
    pub fn keys(&self) -> impl ExactSizeIterator<Item = &str> {
        (0..self.ends.len()).map(|index| {
            let start = index.checked_sub(1).and_then(|before| self.ends.get(before)).copied().unwrap_or(0);
            self.ends.get(index).and_then(|end| self.keys.get(start..*end)).unwrap_or_default()
        })
    }

    /// The call of `batch.lua` with this batch.
    pub fn command(&self) -> redis::Cmd {
        let starts = std::iter::once(0).chain(self.pieces.iter().copied());
        let pieces =
            starts.zip(&self.pieces).map(|(start, end)| self.operations.0.get(start..*end).unwrap_or_default());
        let arguments = [self.header.0.as_slice(), self.details.0.as_slice()].into_iter().chain(pieces);
        let size = self.header.0.len() + self.details.0.len() + self.operations.0.len() + 64;
        script::BATCH.command_with(self.keys(), arguments, size)
    }

    /// Packs a batch into the buffers of an earlier one.
    pub fn pack<'a>(&mut self, keys: &Keyspace, header: Header, ops: impl ExactSizeIterator<Item = &'a Op>) {
        self.fixed_keys(keys, header.session);
        self.header.0.clear();
        self.details.0.clear();
        self.details_count = 0;
        self.operations.0.clear();
        self.pieces.clear();
        self.accounts.clear();
        let out = &mut self.header;
        out.uint(header.session.0);
        out.uint(header.number);
        out.uint(keys.epoch);
        out.uint(header.max_backlog.min(NUMBER_MAX));
        out.flag(header.memory_full);
        out.uint(keys.prefix().len() as u64);
        out.uint(header.seen.min(NUMBER_MAX));
        for op in ops {
            self.op(keys.prefix(), op);
            let begun = self.pieces.last().copied().unwrap_or(0);
            if self.operations.0.len() - begun >= PIECE_BYTES {
                self.pieces.push(self.operations.0.len());
            }
        }
        if self.pieces.last().copied().unwrap_or(0) < self.operations.0.len() {
            self.pieces.push(self.operations.0.len());
        }
    }

    fn fixed_keys(&mut self, keys: &Keyspace, session: SessionId) {
        let same = |known: &(String, SessionId)| known.0 == keys.prefix() && known.1 == session;
        if self.fixed_for.as_ref().is_some_and(same) {
            self.ends.truncate(FIXED_KEYS);
            self.keys.truncate(self.ends.last().copied().unwrap_or(0));
            return;
        }
        self.keys.clear();
        self.ends.clear();
        for key in [keys.touched(session), keys.events(), keys.sessions(), keys.holds(), keys.meta()] {
            self.push_key(&[&key]);
        }
        self.push_key(&[&keys.session(session)]);
        self.fixed_for = Some((keys.prefix().to_owned(), session));
    }

    /// Answers the place of the key among those after the fixed ones, counted from 1 as Lua does.
    fn push_key(&mut self, parts: &[&str]) -> usize {
        for part in parts {
            self.keys.push_str(part);
        }
        self.ends.push(self.keys.len());
        self.ends.len().saturating_sub(FIXED_KEYS)
    }

    fn account(&mut self, prefix: &str, account: &AccountId) -> usize {
        if let Some((_, place)) = self.accounts.iter().find(|(known, _)| known == account) {
            return *place;
        }
        let place = self.push_key(&[prefix, "acct:", account.as_str()]);
        self.accounts.push((account.clone(), place));
        place
    }

    fn record(&mut self, prefix: &str, record: RecordId, account: &AccountId) -> usize {
        let mut buffer = uuid::Uuid::encode_buffer();
        let id: &str = record.0.simple().encode_lower(&mut buffer);
        self.shared_key(&[prefix, "rec:", id, ":", account.as_str()])
    }

    /// A key that another operation of the batch may have named already: each has one place only.
    fn shared_key(&mut self, parts: &[&str]) -> usize {
        let key: String = parts.concat();
        let known = self.keys().position(|known| known == key);
        match known {
            Some(index) => (index + 1).saturating_sub(FIXED_KEYS),
            None => self.push_key(&[&key]),
        }
    }

    fn op(&mut self, prefix: &str, op: &Op) {
        let account = self.account(prefix, &op.account);
        let (record, ticket) = match &op.act {
            Act::Ticket { .. } | Act::Load { .. } => (0, self.shared_key(&[prefix, "tick:", op.account.as_str()])),
            act => (act.record().map_or(0, |id| self.record(prefix, id, &op.account)), 0),
        };
        let detail = self.detail(op);
        OpWriter { out: &mut self.operations, account, record, ticket, detail }.act(&op.act);
    }

    /// The number of the operation's detail, counted from 1; 0 where it has none.
    fn detail(&mut self, op: &Op) -> u64 {
        let (usage, record) = match &op.act {
            Act::Settle { usage, .. } => (usage, None),
            Act::Charge { usage, record, .. } => (usage, record.map(|key| key.id)),
            Act::SettleHold { usage, record, .. } => (usage, Some(*record)),
            _ => return 0,
        };
        self.details.bytes(op.account.as_str().as_bytes());
        self.details.bytes(usage);
        self.details.bytes(record.as_ref().map_or(&[], |id| id.0.as_bytes()));
        self.details_count += 1;
        self.details_count
    }
}

/// Touched set, events, registry, API holds, meta, session.
const FIXED_KEYS: usize = 6;

struct OpWriter<'a> {
    out: &'a mut Writer,
    account: usize,
    record: usize,
    ticket: usize,
    detail: u64,
}

impl OpWriter<'_> {
    /// `length, account, code, arguments…`; the codes are those of `dispatch` in batch.lua.
    fn act(&mut self, act: &Act) {
        match act {
            Act::Reserve { amount, floor, tokens, limits } => {
                self.head(1, 5);
                self.out.int(amount.micro());
                self.out.int(floor.micro());
                self.limits(*tokens, limits);
            }
            Act::Extend { session, more, floor } => {
                self.head(2, 3);
                self.out.uint(session.0);
                self.out.int(more.micro());
                self.out.int(floor.micro());
            }
            Act::Settle { session, parts, actual, tokens_back_us, .. } => {
                self.head(3, 5 + parts.len() * 2);
                self.out.uint(session.0);
                self.out.int(actual.micro());
                self.out.uint((*tokens_back_us).min(NUMBER_MAX));
                self.out.uint(self.detail);
                self.out.uint(parts.len() as u64 * 2);
                self.flat_parts(parts);
            }
            Act::Shrink { session, parts } => {
                self.head(4, 2);
                self.out.uint(session.0);
                self.parts(parts);
            }
            Act::Release { session, parts, tokens_back_us } => {
                self.head(5, 3);
                self.out.uint(session.0);
                self.parts(parts);
                self.out.uint((*tokens_back_us).min(NUMBER_MAX));
            }
            Act::Charge { actual, must, record, .. } => {
                self.head(6, 5);
                self.out.int(actual.micro());
                self.out.flag(*must);
                self.out.uint(self.detail);
                self.record(*record);
            }
            Act::Hold { record, amount, expires_in_us, must } => {
                self.head(7, 5);
                self.out.int(amount.micro());
                self.out.uint((*expires_in_us).min(LONGEST_HOLD_US));
                self.out.flag(*must);
                self.record(Some(*record));
            }
            Act::SettleHold { actual, must, .. } => {
                self.head(8, 4);
                self.out.int(actual.micro());
                self.out.flag(*must);
                self.out.uint(self.detail);
                self.out.uint(self.record as u64);
            }
            Act::ReleaseHold { expired_only, .. } => {
                self.head(9, 4);
                self.out.flag(*expired_only);
                self.out.uint(0);
                self.out.uint(0);
                self.out.uint(self.record as u64);
            }
            Act::Apply { number, change } => self.change(*number, change),
            Act::Ticket { ticket } => {
                self.head(11, 2);
                self.ticket(*ticket);
            }
            Act::Load { ticket, state } => {
                self.head(12, 10);
                self.ticket(*ticket);
                self.state(state);
            }
            Act::Park { flushed_seq } => {
                self.head(13, 1);
                self.out.uint((*flushed_seq).min(NUMBER_MAX));
            }
            Act::Recall { state, .. } => {
                self.head(16, 2);
                self.out.uint(self.record as u64);
                match state {
                    None => self.out.uint(0),
                    Some(state) => self.kept_record(state),
                }
            }
            Act::Sweep => self.head(14, 0),
            Act::Balance => self.head(15, 0),
        }
    }

    fn head(&mut self, code: u8, arguments: usize) {
        self.out.uint(arguments as u64 + 3);
        self.out.uint(self.account as u64);
        self.out.uint(u64::from(code));
    }

    fn parts(&mut self, parts: &Parts) {
        self.out.array(parts.len() * 2);
        self.flat_parts(parts);
    }

    fn flat_parts(&mut self, parts: &Parts) {
        for (grant, amount) in parts {
            self.out.uint(grant.0.min(NUMBER_MAX));
            self.out.int(amount.micro());
        }
    }

    fn limits(&mut self, tokens: u64, limits: &Limits) {
        self.out.int(step(1, limits.requests_per_minute));
        self.out.int(step(tokens, limits.tokens_per_minute));
        self.out.uint(limits.concurrency.min(NUMBER_MAX));
    }

    fn record(&mut self, record: Option<RecordKey>) {
        self.out.uint(self.record as u64);
        self.out.uint(record.map_or(0, |key| key.fingerprint.min(NUMBER_MAX)));
    }

    /// As bytes: it may be any number of 64 bits.
    fn ticket(&mut self, ticket: u64) {
        self.out.uint(self.ticket as u64);
        self.out.bytes(&ticket.to_be_bytes());
    }

    fn change(&mut self, number: u64, change: &Change) {
        let number = number.min(NUMBER_MAX);
        let head = |writer: &mut Self, code: u8, arguments: usize| {
            writer.head(10, arguments + 2);
            writer.out.uint(number);
            writer.out.uint(u64::from(code));
        };
        match change {
            Change::Grant { kind, amount_micro, expires_at } => {
                head(self, 3, 3);
                self.out.int(*amount_micro);
                self.out.uint(kind_code(*kind));
                self.out.uint(instant(*expires_at));
            }
            Change::Revoke { grant, amount_micro } => {
                head(self, 4, 2);
                // -1 stands for all; a negative amount is refused there as it is by the model.
                self.out.int(amount_micro.map_or(-1, |amount| if amount < 0 { -2 } else { amount }));
                self.out.uint(grant.0.min(NUMBER_MAX));
            }
            Change::Rollover { from, cap_micro, kind, expires_at } => {
                head(self, 5, 4);
                self.out.int(*cap_micro);
                self.out.uint(kind_code(*kind));
                self.out.uint(instant(*expires_at));
                self.out.uint(from.0.min(NUMBER_MAX));
            }
            Change::Freeze { scope } => {
                head(self, 6, 1);
                self.scope(*scope);
            }
            Change::Unfreeze { scope } => {
                head(self, 7, 1);
                self.scope(*scope);
            }
        }
    }

    fn scope(&mut self, scope: Scope) {
        self.out.uint(match scope {
            Scope::Account => 0,
            Scope::Grant { grant } => grant.0.min(NUMBER_MAX),
        });
    }

    /// `{fingerprint, until, parts held or 0, {kind, available, amount, expires at}}`
    fn kept_record(&mut self, record: &RecordState) {
        self.out.array(4);
        self.out.uint(record.fingerprint.min(NUMBER_MAX));
        self.out.uint(record.until.min(NUMBER_MAX));
        match &record.held {
            None => self.out.uint(0),
            Some(held) => self.micro_parts(held),
        }
        let (kind, available, amount, expires_at) = match record.answer {
            Kept::Held { held_micro, available_micro, expires_at } => (1, available_micro, held_micro, expires_at),
            Kept::Charged { charged_micro, available_micro } => (2, available_micro, charged_micro, 0),
            Kept::Released { available_micro } => (3, available_micro, 0, 0),
        };
        self.out.array(4);
        self.out.uint(kind);
        self.out.int(available);
        self.out.int(amount);
        self.out.uint(expires_at.min(NUMBER_MAX));
    }

    fn micro_parts(&mut self, parts: &[(GrantId, i64)]) {
        self.out.array(parts.len() * 2);
        for (grant, micro) in parts {
            self.out.uint(grant.0.min(NUMBER_MAX));
            self.out.int(*micro);
        }
    }

    /// What the open API holds hold together, how many they are, and when each expires. Kept answers stay in the store
    /// until they are asked for ([`Act::Recall`]).
    fn open_holds(&mut self, records: &[RecordState]) {
        let (mut parts, mut open): (Vec<(GrantId, i64)>, Vec<&RecordState>) = Default::default();
        for record in records {
            let Some(held) = &record.held else { continue };
            open.push(record);
            for (id, micro) in held {
                match parts.iter_mut().find(|(grant, _)| grant == id) {
                    Some((_, sum)) => *sum = sum.saturating_add(*micro),
                    None => parts.push((*id, *micro)),
                }
            }
        }
        self.micro_parts(&parts);
        self.out.uint(open.len() as u64);
        self.out.array(open.len() * 2);
        for record in open {
            let mut buffer = uuid::Uuid::encode_buffer();
            self.out.bytes(record.id.0.simple().encode_lower(&mut buffer).as_bytes());
            self.out.uint(record.until.min(NUMBER_MAX));
        }
    }

    fn state(&mut self, state: &AccountState) {
        self.out.uint(state.seq.min(NUMBER_MAX));
        self.out.uint(state.change.min(NUMBER_MAX));
        self.out.flag(state.frozen);
        self.out.int(state.debt_micro);
        self.out.array(state.grants.len() * 5);
        for grant in &state.grants {
            self.out.uint(grant.id.0.min(NUMBER_MAX));
            self.out.uint(kind_code(grant.kind));
            self.out.int(grant.remaining_micro);
            self.out.uint(instant(grant.expires_at));
            self.out.flag(grant.frozen);
        }
        self.open_holds(&state.records);
    }
}

/// About 142 years, so that a time plus this is a number Lua counts exactly.
const LONGEST_HOLD_US: Micros = NUMBER_MAX / 2;

/// A grant's expiry, early enough that a minute can be added to it.
fn instant(at: Micros) -> Micros {
    at.min(NUMBER_MAX - 60_000_000)
}

fn step(count: u64, per_minute: u64) -> i64 {
    if per_minute == 0 {
        NO_LIMIT
    } else if count > per_minute {
        NEVER_ADMITTED
    } else {
        i64::try_from(limit_increment(count.min(TOKENS_MAX), per_minute)).unwrap_or(NEVER_ADMITTED)
    }
}

pub(super) fn kind_code(kind: GrantKind) -> u64 {
    match kind {
        GrantKind::Free => 1,
        GrantKind::Plan => 2,
        GrantKind::Topup => 3,
        GrantKind::Promo => 4,
        GrantKind::Adjust => 5,
    }
}

/// One array of whole numbers: the argument of the smaller scripts.
pub fn numbers(numbers: &[u64]) -> Vec<u8> {
    let mut writer = Writer::default();
    writer.array(numbers.len());
    numbers.iter().for_each(|number| writer.uint(*number));
    writer.0
}
