//! Accounts that are loaded with open API holds, as after a loss: held as before, settled and released once.

use bytes::Bytes;
use faregate::ledger::{
    API_HOLDS_MAX, AccountState, Act, Answer, GrantId, GrantKind, GrantState, Kept, RecordId, RecordKey, RecordState,
};
use uuid::Uuid;

use super::driver::Driver;
use super::embedded::Embedded;
use super::many_grants::{BEGIN, Both, credits};
use super::redis::RedisDriver;

const HOUR: u64 = 3_600_000_000;

fn hold(number: u128, held: &[(u64, i64)]) -> RecordState {
    let held_micro = held.iter().map(|(_, micro)| micro).sum();
    RecordState {
        id: RecordId(Uuid::from_u128(number)),
        fingerprint: 5,
        until: BEGIN + HOUR,
        held: Some(held.iter().map(|(grant, micro)| (GrantId(*grant), *micro)).collect()),
        answer: Kept::Held { held_micro, available_micro: 1, expires_at: BEGIN + HOUR },
    }
}

fn grant(id: u64, remaining_micro: i64) -> GrantState {
    GrantState { id: GrantId(id), kind: GrantKind::Topup, remaining_micro, expires_at: 0, frozen: false }
}

fn check(driver: &mut dyn Driver) {
    let mut both = Both::begin(driver);
    // Of the second grant, less is left than is held: it was revoked. The third is gone altogether.
    let records = vec![hold(1, &[(1, 30)]), hold(2, &[(1, 10), (2, 20)]), hold(3, &[(3, 4)]), hold(4, &[])];
    let state = AccountState {
        seq: 9,
        change: 3,
        grants: vec![grant(1, 100), grant(2, 5)],
        records: records.clone(),
        ..AccountState::default()
    };
    both.records = records;
    both.ask(0, Act::Ticket { ticket: 9 });
    assert_eq!(both.ask(0, Act::Load { ticket: 9, state }), Answer::Loaded);
    let Answer::Balance(balance) = both.ask(0, Act::Balance) else { panic!("loaded") };
    assert_eq!((balance.held, balance.available, balance.clawed), (credits(64), credits(60), credits(19)));
    let settle = |number: u128, micro| Act::SettleHold {
        record: RecordId(Uuid::from_u128(number)),
        actual: credits(micro),
        must: false,
        usage: Bytes::from_static(b"usage"),
    };
    let release = |number| Act::ReleaseHold { record: RecordId(Uuid::from_u128(number)), expired_only: false };
    let again = |number| RecordKey { id: RecordId(Uuid::from_u128(number)), fingerprint: 5 };
    let make = |number| Act::Hold { record: again(number), amount: credits(1), expires_in_us: HOUR, must: false };
    assert!(matches!(both.ask(1, make(1)), Answer::Repeated(Kept::Held { held_micro: 30, .. })));
    assert!(matches!(both.ask(0, settle(1, 25)), Answer::Settled { .. }));
    assert!(matches!(both.ask(1, settle(1, 25)), Answer::Finished(Kept::Charged { charged_micro: 25, .. })));
    assert!(matches!(both.ask(1, release(2)), Answer::Released { .. }));
    assert!(matches!(both.ask(0, release(2)), Answer::Finished(Kept::Released { .. })));
    assert!(matches!(both.ask(0, settle(3, 4)), Answer::Settled { .. }));
    assert!(matches!(both.ask(0, settle(4, 2)), Answer::Settled { .. }));
    assert!(matches!(both.ask(0, settle(5, 2)), Answer::UnknownHold));
    both.ask(1, Act::Balance);
    assert_eq!(both.driver.events(), both.model.events());
}

/// failures 3, 16: an account's open holds are bounded, and what is bounded says so.
fn check_most(driver: &mut dyn Driver) {
    let mut both = Both::begin(driver);
    let open = u128::from(API_HOLDS_MAX) - 1;
    let records: Vec<RecordState> = (1..=open).map(|number| hold(number, &[(1, 1)])).collect();
    both.records.clone_from(&records);
    let state = AccountState { change: 1, grants: vec![grant(1, 5_000)], records, ..AccountState::default() };
    both.ask(0, Act::Ticket { ticket: 9 });
    assert_eq!(both.ask(0, Act::Load { ticket: 9, state }), Answer::Loaded);
    let key = |number| RecordKey { id: RecordId(Uuid::from_u128(number)), fingerprint: 5 };
    let make = |number, must| Act::Hold { record: key(number), amount: credits(1), expires_in_us: HOUR, must };
    assert!(matches!(both.ask(0, make(open + 1, false)), Answer::Held { .. }));
    assert!(matches!(both.ask(0, make(open + 2, false)), Answer::Limited { .. }));
    assert!(matches!(both.ask(0, make(open + 2, true)), Answer::Held { .. }), "one that was promised before");
    let Answer::Balance(balance) = both.ask(0, Act::Balance) else { panic!("loaded") };
    assert_eq!(balance.held, credits(i64::try_from(open).unwrap() + 2));
}

#[test]
fn open_holds_come_back_to_the_scripts() {
    check(&mut RedisDriver::start());
    check_most(&mut RedisDriver::start());
}

#[test]
fn open_holds_come_back_to_the_embedded_ledger() {
    check(&mut Embedded::new());
    check_most(&mut Embedded::new());
}
