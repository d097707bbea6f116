//! Runs a sequence on the model and on another ledger, compares every answer and event, and keeps the books of both.

use std::collections::BTreeMap;

use bytes::Bytes;
use faregate::credits::Credits;
use faregate::ledger::{
    AccountId, AccountState, Act, Answer, Change, Event, EventKind, GrantId, GrantKind, GrantState, Limits, Micros, Op,
    Parts, RecordId, RecordKey, Scope, SessionId,
};
use uuid::Uuid;

use super::driver::{BatchAnswer, Driver};
use super::model::Model;
use super::steps::{ACCOUNTS, Draft, SLOTS, Step};

/// When every sequence begins: later than any real clock, so that a ledger whose clock never runs backwards stands where
/// it is put.
const BEGIN: Micros = 2_200_000_000_000_000;

/// What went wrong, for people.
pub(crate) type Failure = String;

/// Runs `steps` on a fresh model and on `driver`.
pub(crate) fn run(driver: &mut dyn Driver, steps: &[Step]) -> Result<(), Failure> {
    let mut run = Run::new(driver);
    for (index, step) in steps.iter().enumerate() {
        run.step(step).map_err(|failure| format!("step {index}, {step:?}: {failure}"))?;
    }
    run.finish().map_err(|failure| format!("at the end: {failure}"))
}

struct Run<'a> {
    model: Model,
    driver: &'a mut dyn Driver,
    now: Micros,
    accounts: Vec<Shadow>,
    slots: Vec<Slot>,
    sessions: u64,
    /// Makes each usage detail different.
    used: u64,
}

/// The store's view of an account, built from events alone.
struct Shadow {
    id: AccountId,
    seq: u64,
    change: u64,
    frozen: bool,
    debt: i64,
    grants: BTreeMap<GrantId, GrantState>,
    /// Changes that were applied.
    changes: BTreeMap<u64, Change>,
    /// granted - charged - written off.
    net: i64,
}

/// A worker: the session that it has, and what it remembers of its holds.
struct Slot {
    session: SessionId,
    number: u64,
    holds: Vec<Held>,
    ended: Vec<Held>,
    /// Sessions of this slot that were fenced and may still hold something.
    dead: Vec<SessionId>,
}

#[derive(Clone)]
struct Held {
    account: usize,
    parts: Parts,
}

/// What a batch will change in what a worker remembers, once it is answered.
enum Then {
    Nothing,
    Reserved { account: usize },
    Extended { account: usize, index: usize },
    Applied { account: usize, number: u64, change: Change },
}

impl<'a> Run<'a> {
    fn new(driver: &'a mut dyn Driver) -> Run<'a> {
        driver.reset();
        let shadow = |index: usize| Shadow {
            id: AccountId::parse(&format!("account-{index}")).unwrap(),
            seq: 0,
            change: 0,
            frozen: false,
            debt: 0,
            grants: BTreeMap::new(),
            changes: BTreeMap::new(),
            net: 0,
        };
        let mut run = Run {
            model: Model::default(),
            driver,
            now: BEGIN,
            accounts: (0..ACCOUNTS).map(shadow).collect(),
            slots: Vec::new(),
            sessions: 0,
            used: 0,
        };
        run.set_clock();
        for _ in 0..SLOTS {
            let session = run.open();
            run.slots.push(Slot { session, number: 0, holds: Vec::new(), ended: Vec::new(), dead: Vec::new() });
        }
        run
    }

    fn set_clock(&mut self) {
        self.model.set_clock(self.now);
        self.driver.set_clock(self.now);
    }

    fn open(&mut self) -> SessionId {
        self.sessions += 1;
        let session = SessionId(self.sessions);
        self.model.open(session);
        self.driver.open(session);
        session
    }

    fn step(&mut self, step: &Step) -> Result<(), Failure> {
        match step {
            Step::Batch { slot, ops, lost } => {
                let (ops, then) = self.resolve(*slot, ops);
                if ops.is_empty() {
                    return Ok(());
                }
                self.batch(*slot, &ops, then, *lost)?;
            }
            Step::Fence { slot, stale } => {
                let Slot { session, number, .. } = self.slots[*slot];
                let seen = if *stale && number > 0 { number - 1 } else { number };
                let fenced = self.model.fence(session, seen);
                same("fence", &fenced, &self.driver.fence(session, seen))?;
            }
            Step::Abandon { slot } => {
                for session in self.slots[*slot].dead.clone() {
                    self.model.abandon(session);
                    self.driver.abandon(session);
                }
            }
            Step::Pass { us } => {
                self.now += us;
                self.set_clock();
            }
        }
        self.take_events()
    }

    /// Sends a batch until its reply arrives, and remembers what the answers say.
    fn batch(&mut self, slot: usize, ops: &[Op], then: Vec<Then>, lost: u8) -> Result<(), Failure> {
        let (session, number) = (self.slots[slot].session, self.slots[slot].number + 1);
        let expected = self.model.batch(session, number, ops);
        for attempt in 0..=lost {
            let answer = self.driver.batch(session, number, ops);
            same(&format!("attempt {attempt} of batch {number} of {session:?}, {ops:?}"), &expected, &answer)?;
        }
        let BatchAnswer::Answers(answers) = expected else { return self.replace_session(slot) };
        self.slots[slot].number = number;
        for (op, answer) in ops.iter().zip(&answers) {
            within_bounds(&op.act, answer)?;
        }
        for (then, answer) in then.into_iter().zip(answers) {
            match (then, answer) {
                (Then::Reserved { account }, Answer::Reserved(reserved)) => {
                    self.slots[slot].holds.push(Held { account, parts: reserved.parts });
                }
                (Then::Extended { account, index }, Answer::Reserved(reserved)) => {
                    let Some(held) = self.slots[slot].holds.get_mut(index).filter(|held| held.account == account)
                    else {
                        continue;
                    };
                    for (grant, amount) in reserved.parts {
                        match held.parts.iter_mut().find(|(known, _)| *known == grant) {
                            Some((_, part)) => *part = part.saturating_add(amount),
                            None => held.parts.push((grant, amount)),
                        }
                    }
                }
                (Then::Applied { account, number, change }, Answer::Applied) => {
                    self.accounts[account].changes.insert(number, change);
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// What a worker does that was only asleep: a new session, and late charges for what it had delivered.
    fn replace_session(&mut self, slot: usize) -> Result<(), Failure> {
        let session = self.open();
        let holds = std::mem::take(&mut self.slots[slot].holds);
        let dead = std::mem::replace(&mut self.slots[slot].session, session);
        self.slots[slot].number = 0;
        self.slots[slot].dead.push(dead);
        self.slots[slot].ended.clear();
        let late: Vec<Op> = holds.iter().step_by(2).map(|held| self.late_charge(held)).collect();
        if late.is_empty() { Ok(()) } else { self.batch(slot, &late, Vec::new(), 1) }
    }

    fn late_charge(&mut self, held: &Held) -> Op {
        let actual = held.parts.iter().fold(Credits::ZERO, |sum, (_, part)| sum.saturating_add(*part));
        let usage = self.usage();
        self.op(held.account, Act::Charge { actual, must: true, usage, record: None })
    }

    fn take_events(&mut self) -> Result<(), Failure> {
        let expected = by_account(self.model.events());
        let told = by_account(self.driver.events());
        same("events", &expected, &told)?;
        for shadow in &mut self.accounts {
            for event in expected.get(&shadow.id).into_iter().flatten() {
                shadow.follow(event)?;
            }
        }
        self.driver.flushed();
        Ok(())
    }

    /// Ends everything that is held; then what the ledger has must be what its events said.
    fn finish(&mut self) -> Result<(), Failure> {
        for slot in 0..SLOTS {
            let Slot { session, number, .. } = self.slots[slot];
            let fenced = self.model.fence(session, number);
            same("fence", &fenced, &self.driver.fence(session, number))?;
            self.slots[slot].dead.push(session);
            self.step(&Step::Abandon { slot })?;
        }
        let session = self.open();
        self.slots[0].session = session;
        self.slots[0].number = 0;
        for account in 0..ACCOUNTS {
            let release = |record| Draft::ReleaseHold { account, record, expired_only: false };
            let mut ops: Vec<Draft> = (0..3).map(release).collect();
            ops.extend([Draft::Sweep { account }, Draft::Balance { account }]);
            let (ops, _) = self.resolve(0, &ops);
            let number = self.slots[0].number + 1;
            let expected = self.model.batch(session, number, &ops);
            same("the final answers", &expected, &self.driver.batch(session, number, &ops))?;
            self.slots[0].number = number;
            self.take_events()?;
            let BatchAnswer::Answers(answers) = expected else { return Err("the last session is dead".into()) };
            if let Some(Answer::Balance(balance)) = answers.last() {
                self.accounts[account].check(balance)?;
            }
        }
        Ok(())
    }

    fn resolve(&mut self, slot: usize, drafts: &[Draft]) -> (Vec<Op>, Vec<Then>) {
        // Changes of one account in one batch follow each other.
        let mut changes: Vec<u64> = self.accounts.iter().map(|shadow| shadow.change).collect();
        let mut resolved: Vec<(Op, Then)> = Vec::new();
        for draft in drafts {
            let Some((op, then)) = self.resolve_one(slot, draft, &mut changes) else { continue };
            // The embedded ledger keeps its records in the store, and does not park before they are there.
            let writes = |(earlier, _): &(Op, Then)| earlier.account == op.account && earlier.act.record().is_some();
            if matches!(op.act, Act::Park { .. }) && resolved.iter().any(writes) {
                continue;
            }
            resolved.push((op, then));
        }
        resolved.into_iter().unzip()
    }

    fn resolve_one(&mut self, slot: usize, draft: &Draft, changes: &mut [u64]) -> Option<(Op, Then)> {
        let session = self.slots[slot].session;
        let record = |number: u8| RecordId(Uuid::from_u128(u128::from(number) + 1));
        let plain = |op: Op| Some((op, Then::Nothing));
        match draft {
            Draft::Reserve { account, amount, floor, tokens, limits: [requests, per_minute, concurrency] } => {
                let limits = Limits {
                    requests_per_minute: *requests,
                    tokens_per_minute: *per_minute,
                    concurrency: *concurrency,
                };
                let act = Act::Reserve { amount: credits(*amount), floor: credits(*floor), tokens: *tokens, limits };
                Some((self.op(*account, act), Then::Reserved { account: *account }))
            }
            Draft::Extend { hold, more, floor } => {
                let index = hold.checked_rem(self.slots[slot].holds.len())?;
                let account = self.slots[slot].holds[index].account;
                let act = Act::Extend { session, more: credits(*more), floor: credits(*floor) };
                Some((self.op(account, act), Then::Extended { account, index }))
            }
            Draft::Shrink { hold } => {
                let index = hold.checked_rem(self.slots[slot].holds.len())?;
                let held = &mut self.slots[slot].holds[index];
                let (account, part) = (held.account, held.parts.pop()?);
                plain(self.op(account, Act::Shrink { session, parts: Parts::from_iter([part]) }))
            }
            Draft::Settle { hold, percent, tokens_back_us, again } => {
                let Held { account, parts } = self.end(slot, *hold, *again)?;
                let total: i64 = parts.iter().map(|(_, part)| part.micro()).sum();
                let actual = Credits::saturating_from_micro(i128::from(total) * i128::from(*percent) / 100);
                let usage = self.usage();
                plain(self.op(account, Act::Settle { session, parts, actual, tokens_back_us: *tokens_back_us, usage }))
            }
            Draft::Release { hold, tokens_back_us, again } => {
                let Held { account, parts } = self.end(slot, *hold, *again)?;
                plain(self.op(account, Act::Release { session, parts, tokens_back_us: *tokens_back_us }))
            }
            Draft::Charge { account, actual, must, record: key } => {
                let record = key.map(|(number, fingerprint)| RecordKey { id: record(number), fingerprint });
                let usage = self.usage();
                plain(self.op(*account, Act::Charge { actual: credits(*actual), must: *must, usage, record }))
            }
            Draft::Hold { account, record: number, fingerprint, amount, seconds, must } => {
                let record = RecordKey { id: record(*number), fingerprint: *fingerprint };
                let expires_in_us = seconds * 1_000_000;
                plain(self.op(*account, Act::Hold { record, amount: credits(*amount), expires_in_us, must: *must }))
            }
            Draft::SettleHold { account, record: number, actual, must } => {
                let usage = self.usage();
                let act = Act::SettleHold { record: record(*number), actual: credits(*actual), must: *must, usage };
                plain(self.op(*account, act))
            }
            Draft::ReleaseHold { account, record: number, expired_only } => {
                let act = Act::ReleaseHold { record: record(*number), expired_only: *expired_only };
                plain(self.op(*account, act))
            }
            Draft::Grant { .. } | Draft::Revoke { .. } | Draft::Rollover { .. } | Draft::Freeze { .. } => {
                Some(self.change(draft, changes))
            }
            Draft::Ticket { account, ticket } => plain(self.op(*account, Act::Ticket { ticket: *ticket })),
            Draft::Load { account, ticket } => {
                let state = self.accounts[*account].state(&self.model);
                plain(self.op(*account, Act::Load { ticket: *ticket, state }))
            }
            Draft::Park { account, behind } => {
                let flushed_seq = self.accounts[*account].seq.saturating_sub(u64::from(*behind));
                plain(self.op(*account, Act::Park { flushed_seq }))
            }
            Draft::Sweep { account } => plain(self.op(*account, Act::Sweep)),
            Draft::Balance { account } => plain(self.op(*account, Act::Balance)),
        }
    }

    fn change(&self, draft: &Draft, changes: &mut [u64]) -> (Op, Then) {
        let end = |lives: &Option<u64>| lives.map_or(0, |us| self.now + us);
        let (account, skew, change) = match draft {
            Draft::Grant { account, kind, amount, lives_us, skew } => {
                let kinds = [GrantKind::Free, GrantKind::Plan, GrantKind::Topup, GrantKind::Promo, GrantKind::Adjust];
                let change =
                    Change::Grant { kind: kinds[usize::from(*kind)], amount_micro: *amount, expires_at: end(lives_us) };
                (*account, *skew, change)
            }
            Draft::Revoke { account, grant, amount } => {
                (*account, 0, Change::Revoke { grant: GrantId(*grant), amount_micro: *amount })
            }
            Draft::Rollover { account, from, cap, lives_us } => {
                let (from, expires_at) = (GrantId(*from), end(lives_us));
                (*account, 0, Change::Rollover { from, cap_micro: *cap, kind: GrantKind::Plan, expires_at })
            }
            Draft::Freeze { account, grant, frozen } => {
                let scope = grant.map_or(Scope::Account, |grant| Scope::Grant { grant: GrantId(grant) });
                (*account, 0, if *frozen { Change::Freeze { scope } } else { Change::Unfreeze { scope } })
            }
            _ => unreachable!("no billing change"),
        };
        let number = changes[account].saturating_add_signed(skew) + 1;
        if skew == 0 {
            changes[account] = number;
        }
        let then = Then::Applied { account, number, change: change.clone() };
        (self.op(account, Act::Apply { number, change }), then)
    }

    fn end(&mut self, slot: usize, hold: usize, again: bool) -> Option<Held> {
        let slot = &mut self.slots[slot];
        if again {
            return slot.ended.get(hold.checked_rem(slot.ended.len())?).cloned();
        }
        let held = slot.holds.swap_remove(hold.checked_rem(slot.holds.len())?);
        slot.ended.push(held.clone());
        Some(held)
    }

    fn op(&self, account: usize, act: Act) -> Op {
        Op { account: self.accounts[account].id.clone(), act }
    }

    fn usage(&mut self) -> Bytes {
        self.used += 1;
        Bytes::from(self.used.to_string())
    }
}

impl Shadow {
    fn state(&self, model: &Model) -> AccountState {
        AccountState {
            seq: self.seq,
            change: self.change,
            frozen: self.frozen,
            debt_micro: self.debt,
            grants: self.grants.values().filter(|grant| grant.remaining_micro > 0).cloned().collect(),
            records: model.records_of(&self.id),
        }
    }

    fn follow(&mut self, event: &Event) -> Result<(), Failure> {
        same("the next sequence number", &(self.seq + 1), &event.seq)?;
        self.seq = event.seq;
        if event.change > 0 {
            same("the next change", &(self.change + 1), &event.change)?;
            self.change = event.change;
            let change = self.changes.get(&event.change).ok_or("an event of a change that nobody made")?.clone();
            self.follow_change(GrantId(event.change), event.kind, change);
        }
        for delta in &event.deltas {
            let grant = self.grants.get_mut(&delta.grant).ok_or(format!("{:?} is not known", delta.grant))?;
            grant.remaining_micro += delta.micro;
            if grant.remaining_micro < 0 {
                return Err(format!("{event:?} takes a grant below zero"));
            }
        }
        self.debt += event.debt_delta;
        self.net -= event.charged.micro() + event.written_off.micro();
        Ok(())
    }

    fn follow_change(&mut self, id: GrantId, kind: EventKind, change: Change) {
        let frozen = match &change {
            Change::Rollover { from, .. } => self.grants.get(from).is_some_and(|grant| grant.frozen),
            _ => false,
        };
        let mut insert = |kind, remaining_micro, expires_at, frozen| {
            self.grants.insert(id, GrantState { id, kind, remaining_micro, expires_at, frozen });
        };
        match change {
            Change::Grant { kind, amount_micro, expires_at } => {
                insert(kind, amount_micro, expires_at, false);
                self.net += amount_micro;
            }
            Change::Rollover { kind, expires_at, .. } => insert(kind, 0, expires_at, frozen),
            Change::Revoke { .. } => {}
            Change::Freeze { scope: Scope::Account } | Change::Unfreeze { scope: Scope::Account } => {
                self.frozen = kind == EventKind::Frozen;
            }
            Change::Freeze { scope: Scope::Grant { grant } } | Change::Unfreeze { scope: Scope::Grant { grant } } => {
                if let Some(grant) = self.grants.get_mut(&grant) {
                    grant.frozen = kind == EventKind::Frozen;
                }
            }
        }
    }

    /// With nothing held, the ledger's balance is what the events add up to: grants − usage − written off.
    fn check(&self, balance: &faregate::ledger::Balance) -> Result<(), Failure> {
        same("held", &Credits::ZERO, &balance.held)?;
        same("in flight", &0, &balance.in_flight)?;
        same("debt", &self.debt, &balance.debt.micro())?;
        same("seq and change", &(self.seq, self.change), &(balance.seq, balance.change))?;
        same("frozen", &self.frozen, &balance.frozen)?;
        let mut ledger = balance.grants.clone();
        ledger.sort_by_key(|grant| grant.id);
        let store: Vec<_> = self.grants.values().filter(|grant| grant.remaining_micro > 0).cloned().collect();
        same("grants", &store, &ledger)?;
        let sum: i64 = ledger.iter().map(|grant| grant.remaining_micro).sum();
        same("the books", &self.net, &(sum - self.debt))
    }
}

/// What was taken is neither less than the floor nor more than was asked: the model could be wrong, too.
fn within_bounds(act: &Act, answer: &Answer) -> Result<(), Failure> {
    let (Act::Reserve { amount: most, floor, .. } | Act::Extend { more: most, floor, .. }) = act else { return Ok(()) };
    let Answer::Reserved(reserved) = answer else { return Ok(()) };
    let taken = reserved.parts.iter().fold(Credits::ZERO, |sum, (_, part)| sum.saturating_add(*part));
    if (*floor..=*most).contains(&taken) { Ok(()) } else { Err(format!("{taken:?} were taken for {act:?}")) }
}

fn credits(micro: i64) -> Credits {
    Credits::saturating_from_micro(i128::from(micro))
}

fn by_account(events: Vec<Event>) -> BTreeMap<AccountId, Vec<Event>> {
    let mut accounts: BTreeMap<AccountId, Vec<Event>> = BTreeMap::new();
    for mut event in events {
        // Which grant is named first in an event is nobody's business.
        event.deltas.sort_by_key(|delta| delta.grant);
        accounts.entry(event.account.clone()).or_default().push(event);
    }
    accounts
}

fn same<T: PartialEq + std::fmt::Debug>(what: &str, expected: &T, found: &T) -> Result<(), Failure> {
    if expected == found { Ok(()) } else { Err(format!("{what}\n  expected {expected:?}\n  found    {found:?}")) }
}
