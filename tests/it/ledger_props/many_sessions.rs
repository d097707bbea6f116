//! One account, held by more sessions at once than Lua's stack takes numbers: a popular account behind many workers.

use bytes::Bytes;
use faregate::ledger::{AccountState, Act, Answer, GrantId, GrantKind, GrantState, Limits, Op, Parts, SessionId};

use super::driver::{BatchAnswer, Driver};
use super::embedded::Embedded;
use super::many_grants::{Both, credits};
use super::redis::RedisDriver;

const SESSIONS: u64 = 2_500;

impl Both<'_> {
    /// One operation of a session as its batch `number`, on both.
    fn ask_as(&mut self, session: u64, number: u64, act: Act) -> Answer {
        let id = SessionId(session);
        if number == 1 {
            self.model.open(id);
            self.driver.open(id);
        }
        let ops = [Op { account: self.account.clone(), act }];
        let expected = self.model.batch(id, number, &ops);
        assert_eq!(self.driver.batch(id, number, &ops), expected, "{}: {ops:?}", self.driver.name());
        match expected {
            BatchAnswer::Answers(mut answers) => answers.pop().unwrap(),
            BatchAnswer::Fenced => panic!("nobody is fenced"),
        }
    }
}

fn check(driver: &mut dyn Driver) {
    let mut both = Both::begin(driver);
    let grant = |id| GrantState {
        id: GrantId(id),
        kind: GrantKind::Topup,
        remaining_micro: 3_000,
        expires_at: 0,
        frozen: false,
    };
    let state = AccountState { change: 2, grants: vec![grant(1), grant(2)], ..AccountState::default() };
    both.ask(0, Act::Ticket { ticket: 9 });
    assert_eq!(both.ask(0, Act::Load { ticket: 9, state }), Answer::Loaded);
    let amount = credits(2);
    let mut holds: Vec<(u64, Parts)> = Vec::new();
    for session in 10..10 + SESSIONS {
        let act = Act::Reserve { amount, floor: amount, tokens: 0, limits: Limits::default() };
        match both.ask_as(session, 1, act) {
            Answer::Reserved(reserved) => holds.push((session, reserved.parts)),
            other => panic!("session {session}: {other:?}"),
        }
    }
    both.ask(1, Act::Balance);
    // Every third of them is dead; whoever needs what they hold returns it.
    for (session, _) in holds.iter().step_by(3) {
        both.model.fence(SessionId(*session), 1);
        assert!(both.driver.fence(SessionId(*session), 1));
    }
    let act = Act::Charge { actual: credits(2_000), must: false, usage: Bytes::new(), record: None };
    assert!(matches!(both.ask(0, act), Answer::Settled { .. }));
    for (index, (session, parts)) in holds.into_iter().enumerate().filter(|(index, _)| index % 3 > 0) {
        let session_id = SessionId(session);
        let act = match index % 2 {
            0 => Act::Settle { session: session_id, parts, actual: credits(1), tokens_back_us: 0, usage: Bytes::new() },
            _ => Act::Release { session: session_id, parts, tokens_back_us: 0 },
        };
        both.ask_as(session, 2, act);
    }
    let Answer::Balance(balance) = both.ask(1, Act::Balance) else { panic!("it is loaded") };
    assert_eq!((balance.in_flight, balance.held), (0, credits(0)));
    assert_eq!(both.driver.events(), both.model.events());
}

#[test]
fn many_sessions_in_the_embedded_ledger() {
    check(&mut Embedded::new());
}

#[test]
fn many_sessions_in_the_scripts() {
    check(&mut RedisDriver::start());
}
