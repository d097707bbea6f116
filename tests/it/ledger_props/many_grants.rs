//! Accounts with as many grants as one may have, and with more: Lua's stack takes 8,000 values, an account may be longer.

use bytes::Bytes;
use faregate::credits::Credits;
use faregate::ledger::{
    AccountId, AccountState, Act, Answer, Change, GrantId, GrantKind, GrantState, LIVE_GRANTS_MAX, Limits, Micros, Op,
    Parts, RecordState, SessionId,
};

use super::driver::{BatchAnswer, Driver};
use super::embedded::Embedded;
use super::model::Model;
use super::redis::RedisDriver;

pub(super) const BEGIN: Micros = 2_200_000_000_000_000;
const EACH: i64 = 7;

/// One operation a batch, on the model and on the driver.
pub(super) struct Both<'a> {
    pub(super) model: Model,
    pub(super) driver: &'a mut dyn Driver,
    pub(super) account: AccountId,
    last: [u64; 2],
    /// What a driver that asks the store for records would find there.
    pub(super) records: Vec<RecordState>,
}

impl Both<'_> {
    pub(super) fn begin(driver: &mut dyn Driver) -> Both<'_> {
        driver.reset();
        driver.set_clock(BEGIN);
        let account = AccountId::parse("ada").unwrap();
        let mut both = Both { model: Model::default(), driver, account, last: [0, 0], records: Vec::new() };
        both.model.set_clock(BEGIN);
        for session in [SessionId(1), SessionId(2)] {
            both.model.open(session);
            both.driver.open(session);
        }
        both
    }

    pub(super) fn ask(&mut self, session: usize, act: Act) -> Answer {
        self.last[session] += 1;
        self.driver.store(&self.account, &self.records);
        let (id, number) = (SessionId(session as u64 + 1), self.last[session]);
        let ops = [Op { account: self.account.clone(), act }];
        let expected = self.model.batch(id, number, &ops);
        assert_eq!(self.driver.batch(id, number, &ops), expected, "{}: {ops:?}", self.driver.name());
        match expected {
            BatchAnswer::Answers(mut answers) => answers.pop().unwrap(),
            BatchAnswer::Fenced => panic!("nobody is fenced"),
        }
    }

    fn reserve(&mut self, session: usize, micro: i64) -> Parts {
        let amount = credits(micro);
        match self.ask(session, Act::Reserve { amount, floor: amount, tokens: 0, limits: Limits::default() }) {
            Answer::Reserved(reserved) => reserved.parts,
            other => panic!("{other:?}"),
        }
    }
}

pub(super) fn credits(micro: i64) -> Credits {
    Credits::from_micro(micro).unwrap()
}

fn check(driver: &mut dyn Driver, grants: u64) {
    let mut both = Both::begin(driver);
    let grant = |id| GrantState {
        id: GrantId(id),
        kind: GrantKind::Topup,
        remaining_micro: EACH,
        expires_at: 0,
        frozen: false,
    };
    let state = AccountState { change: grants, grants: (1..=grants).map(grant).collect(), ..AccountState::default() };
    both.ask(0, Act::Ticket { ticket: 9 });
    assert_eq!(both.ask(0, Act::Load { ticket: 9, state }), Answer::Loaded);
    let all = i64::try_from(grants).unwrap() * EACH;
    // Two sessions hold everything, from every grant; one settles, one releases, and what came back is charged.
    let (first, second) = (both.reserve(0, all / 2 + 1), both.reserve(1, all - all / 2 - 1));
    assert!(first.len() + second.len() > grants as usize);
    let usage = Bytes::from_static(b"usage");
    let (session, actual) = (SessionId(1), credits(all / 2 - 3));
    both.ask(0, Act::Settle { session, parts: first, actual, tokens_back_us: 0, usage: usage.clone() });
    both.ask(1, Act::Release { session: SessionId(2), parts: second, tokens_back_us: 0 });
    both.ask(0, Act::Balance);
    both.ask(1, Act::Charge { actual: credits(4 * EACH), must: false, usage, record: None });
    let revoke = Change::Revoke { grant: GrantId(grants), amount_micro: None };
    assert_eq!(both.ask(0, Act::Apply { number: grants + 1, change: revoke }), Answer::Applied);
    both.ask(1, Act::Balance);
    assert_eq!(both.driver.events(), both.model.events());
}

fn check_all(driver: &mut dyn Driver) {
    for grants in [u64::from(LIVE_GRANTS_MAX), 2_000] {
        check(driver, grants);
    }
}

#[test]
fn many_grants_in_the_embedded_ledger() {
    check_all(&mut Embedded::new());
}

#[test]
fn many_grants_in_the_scripts() {
    check_all(&mut RedisDriver::start());
}
