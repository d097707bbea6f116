use std::collections::BTreeMap;

use bytes::Bytes;
use proptest::prelude::*;
use smallvec::smallvec;
use uuid::Uuid;

use super::*;
use crate::ledger::{
    Change, EventKind, Kept, LIMIT_WINDOW_US, Limit, Limits, RECORD_KEPT_US, RecordKey, Scope, WRITE_OFF_AFTER_US,
};

const SECOND: Micros = 1_000_000;

/// One account, its clock, its records, and the store that follows its events.
struct Bench {
    account: Account,
    now: Micros,
    records: BTreeMap<RecordId, RecordState>,
    fenced: Vec<SessionId>,
    backlogged: bool,
    events: Vec<Event>,
    store: BTreeMap<GrantId, i64>,
    debt: i64,
    /// Of changes applied.
    granted: i64,
}

impl Bench {
    fn new() -> Bench {
        Bench {
            account: Account::default(),
            now: 1_000 * SECOND,
            records: BTreeMap::new(),
            fenced: Vec::new(),
            backlogged: false,
            events: Vec::new(),
            store: BTreeMap::new(),
            debt: 0,
            granted: 0,
        }
    }

    fn with(amounts: &[i64]) -> Bench {
        let mut bench = Bench::new();
        for amount in amounts {
            bench.grant(*amount, 0);
        }
        bench
    }

    fn run(&mut self, session: u64, act: &Act) -> Answer {
        self.with_context(session, act.record(), |account, context| account.apply(act, context))
    }

    fn abandon(&mut self, session: u64) -> i64 {
        self.with_context(0, None, |account, context| account.abandon(SessionId(session), context))
    }

    fn with_context<T>(
        &mut self,
        session: u64,
        record: Option<RecordId>,
        call: impl FnOnce(&mut Account, &mut Context<'_>) -> T,
    ) -> T {
        let id = AccountId::parse("user").unwrap();
        let mut events = Vec::new();
        let mut kept = record.and_then(|id| self.records.get(&id).cloned());
        let (sum_before, debt_before) = (self.account.known(), self.account.debt);
        let fenced = self.fenced.clone();
        let mut context = Context {
            account: &id,
            now: self.now,
            session: SessionId(session),
            fenced: &|session| fenced.contains(&session),
            backlogged: self.backlogged,
            record: &mut kept,
            events: &mut events,
        };
        let result = call(&mut self.account, &mut context);
        if let Some(record) = kept {
            self.records.insert(record.id, record);
        }
        self.check(&events, sum_before - debt_before);
        self.events.extend(events);
        result
    }

    /// The books after an operation that emitted `events`.
    fn check(&mut self, events: &[Event], net_before: i64) {
        let mut expected = net_before;
        for event in events {
            let mut granted = 0;
            if event.change > 0 && event.kind == EventKind::Granted {
                granted = self.granted;
                self.store.insert(GrantId(event.change), granted);
            }
            expected += granted - event.charged.micro() - event.written_off.micro();
            self.debt += event.debt_delta;
            for delta in &event.deltas {
                *self.store.entry(delta.grant).or_default() += delta.micro;
            }
        }
        let account = &self.account;
        assert_eq!(account.known() - account.debt, expected, "the books balance");
        assert_eq!(account.debt, self.debt, "the store knows the debt");
        assert!(account.debt >= 0);
        assert!(account.debt == 0 || account.drawable(self.now) == 0, "debt only while nothing can be drawn");
        for grant in &account.grants {
            let held = account.held_from(grant.id);
            assert!(grant.remaining >= 0 && grant.claw >= 0 && grant.claw <= held, "{grant:?} held {held}");
            assert!(grant.claw == 0 || grant.remaining == 0, "{grant:?}");
            assert!(grant.remaining > 0 || held > 0, "an empty grant is forgotten");
            assert_eq!(self.store.get(&grant.id), Some(&(grant.remaining + held - grant.claw)), "{grant:?}");
        }
        for (id, remaining) in &self.store {
            assert!(*remaining >= 0);
            assert!(*remaining == 0 || account.grants.iter().any(|grant| grant.id == *id), "{id:?} lost {remaining}");
        }
        for holder in &account.holders {
            assert!(holder.count > 0);
            for (id, taken) in &holder.taken {
                assert!(*taken > 0 && account.grants.iter().any(|grant| grant.id == *id));
            }
        }
    }

    fn change(&mut self, change: Change) -> Answer {
        if let Change::Grant { amount_micro, .. } = &change {
            self.granted = *amount_micro;
        }
        let number = self.account.change + 1;
        self.run(0, &Act::Apply { number, change })
    }

    fn grant(&mut self, amount: i64, expires_at: Micros) {
        let change = Change::Grant { kind: GrantKind::Topup, amount_micro: amount, expires_at };
        assert_eq!(self.change(change), Answer::Applied);
    }

    fn revoke(&mut self, grant: u64, amount: Option<i64>) {
        let change = Change::Revoke { grant: GrantId(grant), amount_micro: amount };
        assert_eq!(self.change(change), Answer::Applied);
    }

    fn reserve(&mut self, session: u64, amount: i64) -> Result<Parts, Answer> {
        self.reserve_within(session, amount, 0, Limits::default())
    }

    fn reserve_within(&mut self, session: u64, amount: i64, tokens: u64, limits: Limits) -> Result<Parts, Answer> {
        match self.run(session, &Act::Reserve { amount: micro(amount), floor: micro(amount), tokens, limits }) {
            Answer::Reserved(reserved) => Ok(reserved.parts),
            other => Err(other),
        }
    }

    fn settle(&mut self, session: u64, parts: &Parts, actual: i64) -> Answer {
        self.run(
            session,
            &Act::Settle {
                session: SessionId(session),
                parts: parts.clone(),
                actual: micro(actual),
                tokens_back_us: 0,
                usage: Bytes::new(),
            },
        )
    }

    fn release(&mut self, session: u64, parts: &Parts) -> Answer {
        let act = Act::Release { session: SessionId(session), parts: parts.clone(), tokens_back_us: 0 };
        self.run(session, &act)
    }

    /// What the store would load after the process died: worker holds are gone, API holds are records.
    fn state(&self) -> AccountState {
        let state_of = |id: &GrantId, remaining: &i64| {
            let grant = self.account.grants.iter().find(|grant| grant.id == *id);
            GrantState {
                id: *id,
                kind: grant.map_or(GrantKind::Topup, |grant| grant.kind),
                remaining_micro: *remaining,
                expires_at: grant.map_or(0, |grant| grant.expires_at),
                frozen: grant.is_some_and(|grant| grant.frozen),
            }
        };
        AccountState {
            seq: self.account.seq,
            change: self.account.change,
            frozen: self.account.frozen,
            debt_micro: self.debt,
            grants: self.store.iter().filter(|(_, left)| **left > 0).map(|(id, left)| state_of(id, left)).collect(),
            records: self.records.values().cloned().collect(),
        }
    }

    fn reload(&mut self) {
        let state = self.state();
        self.account = Account::from_state(&state);
        self.with_context(0, None, |account, context| *account = Account::load(&state, context));
    }
}

impl Account {
    /// What the store knows of: Σ(remaining + held - claw).
    fn known(&self) -> i64 {
        self.total() - self.grants.iter().map(|grant| grant.claw).sum::<i64>()
    }
}

fn key(number: u128, fingerprint: u64) -> RecordKey {
    RecordKey { id: RecordId(Uuid::from_u128(number)), fingerprint }
}

/// failures 1 and 2 (new-api#5690, litellm#34732, one-api#2440): what is held cannot be reserved again, and nothing
/// goes below zero.
#[test]
fn a_balance_is_reserved_once() {
    let mut bench = Bench::with(&[10]);
    let holds: Vec<_> = (0..50).filter_map(|_| bench.reserve(1, 1).ok()).collect();
    assert_eq!(holds.len(), 10);
    assert_eq!(bench.reserve(1, 1), Err(Answer::Insufficient { available: micro(0), held: micro(10) }));
    for hold in &holds {
        assert!(matches!(bench.settle(1, hold, 1), Answer::Settled { .. }));
    }
    assert_eq!(bench.account.total(), 0);
}

/// failures 4 (litellm#35569): a settle pays from its hold, not once more beside it.
#[test]
fn a_settle_replaces_its_hold() {
    let mut bench = Bench::with(&[100]);
    let hold = bench.reserve(1, 60).unwrap();
    assert_eq!(bench.settle(1, &hold, 25), Answer::Settled { charged: micro(25), available: micro(75) });
    assert_eq!(bench.settle(1, &hold, 25), Answer::UnknownHold, "one terminal transition");
    assert_eq!(bench.release(1, &hold), Answer::UnknownHold);
    assert_eq!(bench.account.known(), 75);
}

#[test]
fn an_overrun_draws_on_the_balance_and_then_owes() {
    let mut bench = Bench::with(&[100]);
    let hold = bench.reserve(1, 60).unwrap();
    bench.settle(1, &hold, 150);
    assert_eq!((bench.account.known(), bench.account.debt), (0, 50));
    bench.grant(70, 0);
    assert_eq!((bench.account.known(), bench.account.debt), (20, 0), "new credits pay debt first");
}

#[test]
fn grants_burn_soonest_expiry_first_then_given_then_oldest() {
    let mut bench = Bench::new();
    let soon = bench.now + 100 * SECOND;
    for (kind, expires_at) in
        [(GrantKind::Topup, 0), (GrantKind::Promo, 0), (GrantKind::Plan, soon), (GrantKind::Free, 0)]
    {
        bench.change(Change::Grant { kind, amount_micro: 10, expires_at });
    }
    let parts = bench.reserve(1, 35).unwrap();
    let order: Vec<u64> = parts.iter().map(|(id, _)| id.0).collect();
    assert_eq!(order, [3, 2, 4, 1]);
}

/// failures 12 (litellm#39309): a refused request consumes no rate limit.
#[test]
fn a_refusal_consumes_no_limit() {
    let mut bench = Bench::with(&[5]);
    let limits = Limits { requests_per_minute: 2, tokens_per_minute: 100, concurrency: 1 };
    let hold = bench.reserve_within(1, 1, 10, limits).unwrap();
    let before = (bench.account.requests_idle_at, bench.account.tokens_idle_at);
    let concurrency = Answer::Limited { limit: Limit::Concurrency, retry_after_us: Some(SECOND) };
    assert_eq!(bench.reserve_within(1, 1, 10, limits), Err(concurrency));
    bench.release(1, &hold);
    assert!(matches!(bench.reserve_within(1, 100, 10, limits), Err(Answer::Insufficient { .. })));
    let tokens = Answer::Limited { limit: Limit::Tokens, retry_after_us: Some(600_000) };
    assert_eq!(bench.reserve_within(1, 1, 91, limits), Err(tokens));
    let never = Answer::Limited { limit: Limit::Tokens, retry_after_us: None };
    assert_eq!(bench.reserve_within(1, 1, 101, limits), Err(never));
    assert_eq!((bench.account.requests_idle_at, bench.account.tokens_idle_at), before);
    assert!(bench.reserve_within(1, 1, 90, limits).is_ok());
}

#[test]
fn exactly_the_limit_fits_into_an_idle_window() {
    for per_minute in [1, 3, 7, 59, 61, 1_000] {
        let mut bench = Bench::with(&[1_000_000]);
        let limits = Limits { requests_per_minute: per_minute, ..Limits::default() };
        for _ in 0..per_minute {
            bench.reserve_within(1, 1, 0, limits).unwrap();
        }
        let Err(Answer::Limited { limit: Limit::Requests, retry_after_us: Some(wait) }) =
            bench.reserve_within(1, 1, 0, limits)
        else {
            panic!("one more than {per_minute} passed")
        };
        bench.now += wait;
        bench.reserve_within(1, 1, 0, limits).unwrap();
        assert!(wait <= LIMIT_WINDOW_US);
    }
}

#[test]
fn what_expires_is_neither_drawn_nor_lost_before_its_minute() {
    let mut bench = Bench::new();
    let expiry = bench.now + 10 * SECOND;
    bench.grant(100, expiry);
    let hold = bench.reserve(1, 40).unwrap();
    bench.now = expiry;
    assert!(matches!(bench.reserve(1, 1), Err(Answer::Insufficient { .. })));
    assert_eq!(bench.account.known(), 100);
    bench.now = expiry + WRITE_OFF_AFTER_US;
    bench.run(0, &Act::Sweep);
    assert_eq!(bench.account.known(), 40, "what is held may still be spent");
    bench.settle(1, &hold, 30);
    let event = bench.events.last().unwrap();
    assert_eq!((event.charged.micro(), event.written_off.micro()), (30, 10), "written off in the same event");
}

#[test]
fn a_revoked_grant_gives_nothing_back() {
    let mut bench = Bench::with(&[100]);
    let (one, two) = (bench.reserve(1, 30).unwrap(), bench.reserve(1, 30).unwrap());
    bench.revoke(1, None);
    assert_eq!(bench.events.last().unwrap().written_off.micro(), 100);
    bench.release(1, &one);
    assert_eq!((bench.account.known(), bench.account.debt), (0, 0), "what comes back is discarded");
    bench.settle(1, &two, 20);
    assert_eq!((bench.account.known(), bench.account.debt), (0, 20), "what is settled becomes debt");
    assert!(bench.account.grants.is_empty());
}

#[test]
fn a_revoked_amount_takes_exactly_that_much() {
    let mut bench = Bench::with(&[100, 50]);
    let hold = bench.reserve(1, 80).unwrap();
    bench.settle(1, &hold, 70);
    // 30 remain of the first; 100 are clawed back: 70 were spent, and are paid from the second as far as it goes.
    bench.revoke(1, Some(100));
    assert_eq!((bench.account.known(), bench.account.debt), (0, 20));
}

/// A crash gives every worker's holds back, but not those of a grant that was revoked meanwhile.
#[test]
fn a_revocation_survives_a_crash() {
    let mut bench = Bench::with(&[100]);
    bench.reserve(1, 60).unwrap();
    let held = Act::Hold { record: key(1, 1), amount: micro(40), expires_in_us: SECOND, must: false };
    bench.run(0, &held);
    bench.revoke(1, None);
    bench.reload();
    assert_eq!((bench.account.known(), bench.account.held()), (0, 40));
    let release = Act::ReleaseHold { record: key(1, 1).id, expired_only: false };
    assert_eq!(bench.run(0, &release), Answer::Released { available: micro(0) });
    assert_eq!(bench.account, Account { seq: 4, change: 2, ..Account::default() });
}

/// failures 46: the same charge again is answered, not carried out.
#[test]
fn a_record_is_charged_once_and_repeats_its_answer() {
    let mut bench = Bench::with(&[100]);
    let charge = |fingerprint| Act::Charge {
        actual: micro(30),
        must: false,
        usage: Bytes::new(),
        record: Some(key(7, fingerprint)),
    };
    assert_eq!(bench.run(0, &charge(1)), Answer::Settled { charged: micro(30), available: micro(70) });
    bench.reserve(1, 50).unwrap();
    let kept = Kept::Charged { charged_micro: 30, available_micro: 70 };
    assert_eq!(bench.run(0, &charge(1)), Answer::Repeated(kept));
    assert_eq!(bench.run(0, &charge(2)), Answer::Mismatch);
    assert_eq!(bench.account.known(), 70);
    bench.now += RECORD_KEPT_US;
    assert!(matches!(bench.run(0, &charge(1)), Answer::Insufficient { .. }), "after a day it is a new request");
}

#[test]
fn changes_apply_once_and_in_order() {
    let mut bench = Bench::with(&[10]);
    let grant = Change::Grant { kind: GrantKind::Promo, amount_micro: 5, expires_at: 0 };
    assert_eq!(bench.run(0, &Act::Apply { number: 1, change: grant.clone() }), Answer::Duplicate);
    assert_eq!(bench.run(0, &Act::Apply { number: 3, change: grant }), Answer::Gap { applied: 1 });
    for amount_micro in [-1, i64::MIN, LIMIT + 1, LIMIT - 5] {
        let change = Change::Grant { kind: GrantKind::Promo, amount_micro, expires_at: 0 };
        assert_eq!(bench.change(change), Answer::TooLarge);
    }
    assert_eq!(bench.account.known(), 10);
}

/// A lapsed grant and a revocation in one event: past 2^53 its sum would be no sum.
#[test]
fn what_one_event_writes_off_stays_exact() {
    let mut bench = Bench::with(&[]);
    let expires_at = bench.now + 1;
    let grant = Change::Grant { kind: GrantKind::Promo, amount_micro: LIMIT, expires_at };
    assert_eq!(bench.change(grant), Answer::Applied);
    bench.now += WRITE_OFF_AFTER_US + 2;
    let revoke = |grant| Change::Revoke { grant: GrantId(grant), amount_micro: Some(65) };
    assert_eq!(bench.change(revoke(999)), Answer::TooLarge);
}

#[test]
fn a_settle_passes_however_absurd_the_amount() {
    let mut bench = Bench::with(&[10]);
    let (one, two) = (bench.reserve(1, 5).unwrap(), bench.reserve(1, 5).unwrap());
    bench.settle(1, &one, LIMIT);
    assert_eq!(bench.account.debt, LIMIT - 5);
    bench.settle(1, &two, LIMIT);
    assert_eq!((bench.account.debt, bench.account.known()), (LIMIT - 5, 0));
    let must = Act::Charge { actual: micro(LIMIT), must: true, usage: Bytes::new(), record: None };
    assert_eq!(bench.run(1, &must), Answer::Settled { charged: micro(5), available: micro(0) });
}

#[test]
fn a_fenced_session_stands_in_nobodys_way() {
    let mut bench = Bench::with(&[100]);
    let limits = Limits { concurrency: 1, ..Limits::default() };
    let lost = bench.reserve_within(1, 100, 0, limits).unwrap();
    bench.fenced = vec![SessionId(1)];
    bench.reserve_within(2, 100, 0, limits).unwrap();
    let event = bench.events.last().unwrap();
    assert_eq!((event.kind, event.forfeited.micro()), (EventKind::Abandoned, 100));
    assert_eq!(bench.settle(1, &lost, 10), Answer::UnknownHold);
    assert_eq!(bench.abandon(1), 0, "only once");
}

#[test]
fn a_frozen_account_settles_and_starts_nothing() {
    let mut bench = Bench::with(&[100]);
    let hold = bench.reserve(1, 50).unwrap();
    bench.change(Change::Freeze { scope: Scope::Account });
    assert_eq!(bench.reserve(1, 1), Err(Answer::Frozen));
    let more = Act::Extend { session: SessionId(1), more: micro(1), floor: micro(1) };
    assert_eq!(bench.run(1, &more), Answer::Frozen);
    assert_eq!(bench.settle(1, &hold, 50), Answer::Settled { charged: micro(50), available: micro(0) });
    bench.change(Change::Unfreeze { scope: Scope::Account });
    bench.reserve(1, 50).unwrap();
}

#[test]
fn the_last_hold_of_a_session_gives_back_what_nobody_claimed() {
    let mut bench = Bench::with(&[100]);
    let hold = bench.reserve(1, 10).unwrap();
    // The reply of this extension was dropped, and the shrink that would undo it never came.
    bench.run(1, &Act::Extend { session: SessionId(1), more: micro(20), floor: micro(20) });
    bench.settle(1, &hold, 10);
    assert_eq!((bench.account.known(), bench.account.held()), (90, 0));
}

#[test]
fn an_idle_account_parks_and_a_busy_one_does_not() {
    let mut bench = Bench::with(&[100]);
    let limits = Limits { requests_per_minute: 1, ..Limits::default() };
    let hold = bench.reserve_within(1, 10, 0, limits).unwrap();
    let park = |bench: &mut Bench, flushed_seq| bench.run(0, &Act::Park { flushed_seq });
    assert_eq!(park(&mut bench, 1), Answer::Refused, "something is held");
    bench.release(1, &hold);
    assert_eq!(park(&mut bench, 1), Answer::Refused, "a limit is not idle");
    bench.now += LIMIT_WINDOW_US;
    assert_eq!(park(&mut bench, 0), Answer::Refused, "an event is not in the store");
    assert_eq!(park(&mut bench, 1), Answer::Parked);
}

#[derive(Debug, Clone)]
enum Step {
    Reserve { session: u64, amount: i64, floor: i64, limited: bool },
    Extend { hold: usize, more: i64 },
    Shrink { hold: usize },
    Settle { hold: usize, percent: i64 },
    Release { hold: usize },
    Charge { actual: i64, must: bool, record: Option<u8> },
    Hold { record: u8, amount: i64 },
    SettleHold { record: u8, actual: i64 },
    ReleaseHold { record: u8, expired_only: bool },
    Grant { amount: i64, lives: Option<u64> },
    Revoke { grant: u64, amount: Option<i64> },
    Rollover { from: u64, cap: i64 },
    Freeze { grant: Option<u64>, frozen: bool },
    Pass { seconds: u64 },
    Fence { session: u64 },
    Sweep,
    Crash,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let grant = 1..8_u64;
    let step = prop_oneof![
        6 => (1..4_u64, 0..60_i64, 0..60_i64, any::<bool>())
            .prop_map(|(session, amount, floor, limited)| Step::Reserve { session, amount, floor, limited }),
        2 => (any::<prop::sample::Index>(), 0..40_i64)
            .prop_map(|(hold, more)| Step::Extend { hold: hold.index(1 << 16), more }),
        1 => any::<prop::sample::Index>().prop_map(|hold| Step::Shrink { hold: hold.index(1 << 16) }),
        5 => (any::<prop::sample::Index>(), 0..300_i64)
            .prop_map(|(hold, percent)| Step::Settle { hold: hold.index(1 << 16), percent }),
        2 => any::<prop::sample::Index>().prop_map(|hold| Step::Release { hold: hold.index(1 << 16) }),
        3 => (0..50_i64, any::<bool>(), prop::option::of(0..3_u8))
            .prop_map(|(actual, must, record)| Step::Charge { actual, must, record }),
        3 => (0..3_u8, 0..40_i64).prop_map(|(record, amount)| Step::Hold { record, amount }),
        3 => (0..3_u8, 0..60_i64).prop_map(|(record, actual)| Step::SettleHold { record, actual }),
        1 => (0..3_u8, any::<bool>())
            .prop_map(|(record, expired_only)| Step::ReleaseHold { record, expired_only }),
        4 => (0..120_i64, prop::option::of(0..200_u64)).prop_map(|(amount, lives)| Step::Grant { amount, lives }),
        2 => (grant.clone(), prop::option::of(0..150_i64))
            .prop_map(|(grant, amount)| Step::Revoke { grant, amount }),
        1 => (grant.clone(), 0..60_i64).prop_map(|(from, cap)| Step::Rollover { from, cap }),
        2 => (prop::option::of(grant), any::<bool>()).prop_map(|(grant, frozen)| Step::Freeze { grant, frozen }),
        3 => (0..90_u64).prop_map(|seconds| Step::Pass { seconds }),
        1 => (1..4_u64).prop_map(|session| Step::Fence { session }),
        1 => Just(Step::Sweep),
        1 => Just(Step::Crash),
    ];
    prop::collection::vec(step, 1..60)
}

/// A worker's view of its holds.
type Holds = Vec<(u64, Parts)>;

fn step(bench: &mut Bench, holds: &mut Holds, step: Step) {
    let record = |number: u8| key(u128::from(number), 1).id;
    let at = |holds: &Holds, index: usize| (!holds.is_empty()).then(|| index % holds.len());
    match step {
        Step::Reserve { session, amount, floor, limited } => {
            let limits = Limits { requests_per_minute: 9, tokens_per_minute: 200, concurrency: 4 };
            let limits = if limited { limits } else { Limits::default() };
            let (amount, floor) = (micro(amount.max(floor)), micro(floor));
            bench.fenced.retain(|known| known.0 != session);
            if let Answer::Reserved(reserved) = bench.run(session, &Act::Reserve { amount, floor, tokens: 20, limits })
            {
                holds.push((session, reserved.parts));
            }
        }
        Step::Extend { hold, more } => {
            let Some(index) = at(holds, hold) else { return };
            let session = SessionId(holds[index].0);
            let answer = bench.run(session.0, &Act::Extend { session, more: micro(more), floor: micro(more) });
            let Answer::Reserved(reserved) = answer else { return };
            for (grant, amount) in reserved.parts {
                match holds[index].1.iter_mut().find(|(known, _)| *known == grant) {
                    Some((_, part)) => *part = part.saturating_add(amount),
                    None => holds[index].1.push((grant, amount)),
                }
            }
        }
        Step::Shrink { hold } => {
            let Some(index) = at(holds, hold) else { return };
            let Some((grant, amount)) = holds[index].1.pop() else { return };
            let session = SessionId(holds[index].0);
            bench.run(session.0, &Act::Shrink { session, parts: smallvec![(grant, amount)] });
        }
        Step::Settle { hold, percent } => {
            let Some(index) = at(holds, hold) else { return };
            let (session, parts) = holds.swap_remove(index);
            let total: i64 = parts.iter().map(|(_, part)| part.micro()).sum();
            bench.settle(session, &parts, total * percent / 100);
        }
        Step::Release { hold } => {
            let Some(index) = at(holds, hold) else { return };
            let (session, parts) = holds.swap_remove(index);
            bench.release(session, &parts);
        }
        Step::Charge { actual, must, record } => {
            let record = record.map(|number| key(u128::from(number), 2));
            bench.run(1, &Act::Charge { actual: micro(actual), must, usage: Bytes::new(), record });
        }
        Step::Hold { record: number, amount } => {
            let record = key(u128::from(number), 1);
            bench.run(0, &Act::Hold { record, amount: micro(amount), expires_in_us: 30 * SECOND, must: false });
        }
        Step::SettleHold { record: number, actual } => {
            let act =
                Act::SettleHold { record: record(number), actual: micro(actual), must: false, usage: Bytes::new() };
            bench.run(0, &act);
        }
        Step::ReleaseHold { record: number, expired_only } => {
            bench.run(0, &Act::ReleaseHold { record: record(number), expired_only });
        }
        Step::Grant { amount, lives } => {
            let expires_at = lives.map_or(0, |seconds| bench.now + seconds * SECOND);
            bench.grant(amount, expires_at);
        }
        Step::Revoke { grant, amount } => bench.revoke(grant, amount),
        Step::Rollover { from, cap } => {
            let change = Change::Rollover { from: GrantId(from), cap_micro: cap, kind: GrantKind::Plan, expires_at: 0 };
            bench.change(change);
        }
        Step::Freeze { grant, frozen } => {
            let scope = grant.map_or(Scope::Account, |grant| Scope::Grant { grant: GrantId(grant) });
            bench.change(if frozen { Change::Freeze { scope } } else { Change::Unfreeze { scope } });
        }
        Step::Pass { seconds } => bench.now += seconds * SECOND,
        Step::Fence { session } => {
            bench.fenced.push(SessionId(session));
            holds.retain(|(owner, _)| *owner != session);
        }
        Step::Sweep => {
            bench.run(0, &Act::Sweep);
            for session in std::mem::take(&mut bench.fenced) {
                bench.abandon(session.0);
            }
        }
        Step::Crash => {
            bench.reload();
            holds.clear();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    /// The books balance after every operation, whatever the order; see [`Bench::check`].
    #[test]
    fn the_books_balance(steps in steps()) {
        let mut bench = Bench::new();
        let mut holds = Holds::new();
        for next in steps {
            step(&mut bench, &mut holds, next);
        }
        let seqs: Vec<u64> = bench.events.iter().map(|event| event.seq).collect();
        prop_assert_eq!(seqs, (1..=bench.account.seq()).collect::<Vec<_>>());
    }
}
