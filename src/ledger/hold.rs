//! A hold in the hands of the request that made it. Dropped unfinished, it goes back.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;

use super::{
    AccountId, Act, Answer, LedgerError, Limit, Limits, Micros, Op, Parts, Reply, Reserved, SessionId, SharedLedger,
    limit_increment,
};
use crate::credits::Credits;

/// What a request asks of the ledger before it rides.
#[derive(Debug, Clone, Copy)]
pub struct Ask {
    pub amount: Credits,
    /// Be content with less, down to this.
    pub floor: Credits,
    /// Counted against tokens/min; corrected when the hold is settled.
    pub tokens: u64,
    pub limits: Limits,
}

/// Why the ledger let nothing through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    Insufficient {
        available: Credits,
        held: Credits,
    },
    /// `retry_after_us`: `None` where the limit could never admit it.
    Limited {
        limit: Limit,
        retry_after_us: Option<Micros>,
    },
    Frozen,
    UnknownAccount,
    TooLarge,
    /// The account cannot be read.
    Unreadable,
    /// The ledger takes no new work.
    Backlogged,
    Unavailable,
}

/// Credits taken for one request. Ends by [`Hold::settle`] or [`Hold::release`]; when it is dropped before, by release.
#[derive(Debug)]
pub struct Hold {
    ledger: Option<SharedLedger>,
    account: AccountId,
    session: SessionId,
    parts: Parts,
    tokens: u64,
    tokens_per_minute: u64,
}

/// Reserves credits for a request. Dropping the future on the way leaks nothing.
pub async fn reserve(ledger: &SharedLedger, account: &AccountId, ask: Ask) -> Result<(Hold, Reserved), Refusal> {
    let act = Act::Reserve { amount: ask.amount, floor: ask.floor, tokens: ask.tokens, limits: ask.limits };
    let tokens_back_us = limit_increment(ask.tokens, ask.limits.tokens_per_minute);
    let undo = |reserved: Reserved| Act::Release { session: reserved.session, parts: reserved.parts, tokens_back_us };
    let reserved = admitted(Pending::submit(ledger, account, act, undo).await)?;
    let hold = Hold {
        ledger: Some(ledger.clone()),
        account: account.clone(),
        session: reserved.session,
        parts: reserved.parts.clone(),
        tokens: ask.tokens,
        tokens_per_minute: ask.limits.tokens_per_minute,
    };
    Ok((hold, reserved))
}

impl Hold {
    pub fn account(&self) -> &AccountId {
        &self.account
    }

    /// All that is held.
    pub fn total(&self) -> Credits {
        self.parts.iter().fold(Credits::ZERO, |sum, (_, part)| sum.saturating_add(*part))
    }

    /// Takes `more`, or what there is down to `floor`. When the session that held it is gone, the hold is made anew in
    /// full, without consuming a rate limit again.
    pub async fn extend(&mut self, more: Credits, floor: Credits) -> Result<Credits, Refusal> {
        let Some(ledger) = self.ledger.clone() else { return Err(Refusal::Unavailable) };
        let before = self.total();
        let act = Act::Extend { session: self.session, more, floor };
        let undo = |reserved: Reserved| Act::Shrink { session: reserved.session, parts: reserved.parts };
        match Pending::submit(&ledger, &self.account, act, undo).await {
            Ok(Answer::UnknownHold) => {
                let (amount, floor) = (before.saturating_add(more), before.saturating_add(floor));
                let act = Act::Reserve { amount, floor, tokens: 0, limits: Limits::default() };
                let undo = |reserved: Reserved| Act::Release {
                    session: reserved.session,
                    parts: reserved.parts,
                    tokens_back_us: 0,
                };
                let reserved = admitted(Pending::submit(&ledger, &self.account, act, undo).await)?;
                self.session = reserved.session;
                self.parts = reserved.parts;
            }
            answer => {
                for (grant, amount) in admitted(answer)?.parts {
                    match self.parts.iter_mut().find(|(known, _)| *known == grant) {
                        Some((_, part)) => *part = part.saturating_add(amount),
                        None => self.parts.push((grant, amount)),
                    }
                }
            }
        }
        Ok(self.total().saturating_sub(before))
    }

    /// Pays `actual`, also beyond what is held. The settle is under way when this returns; the reply is its
    /// acknowledgement, and may be dropped.
    pub fn settle(mut self, actual: Credits, tokens: u64, usage: Bytes) -> Reply {
        let tokens_back_us = self.tokens_back(tokens);
        let (session, parts) = (self.session, std::mem::take(&mut self.parts));
        self.end(Act::Settle { session, parts, actual, tokens_back_us, usage })
    }

    /// Gives everything back.
    pub fn release(mut self) -> Reply {
        self.release_now()
    }

    fn release_now(&mut self) -> Reply {
        let tokens_back_us = self.tokens_back(0);
        let (session, parts) = (self.session, std::mem::take(&mut self.parts));
        self.end(Act::Release { session, parts, tokens_back_us })
    }

    fn end(&mut self, act: Act) -> Reply {
        match self.ledger.take() {
            Some(ledger) => ledger.submit(Op { account: self.account.clone(), act }),
            None => Reply::now(Err(LedgerError::Unavailable)),
        }
    }

    fn tokens_back(&self, used: u64) -> Micros {
        let step = |count| limit_increment(count, self.tokens_per_minute);
        step(self.tokens).saturating_sub(step(used))
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if self.ledger.is_some() {
            drop(self.release_now());
        }
    }
}

/// A reserve or extend under way. Dropped before its answer was read, it undoes what it took: a client that leaves at
/// that very moment must not leave a hold behind (failures 3: litellm#27639).
struct Pending<'a, U: Fn(Reserved) -> Act> {
    ledger: &'a SharedLedger,
    account: &'a AccountId,
    reply: Option<Reply>,
    undo: U,
}

impl<'a, U: Fn(Reserved) -> Act + Unpin> Pending<'a, U> {
    fn submit(ledger: &'a SharedLedger, account: &'a AccountId, act: Act, undo: U) -> Pending<'a, U> {
        let reply = ledger.submit(Op { account: account.clone(), act });
        Pending { ledger, account, reply: Some(reply), undo }
    }
}

impl<U: Fn(Reserved) -> Act + Unpin> Future for Pending<'_, U> {
    type Output = Result<Answer, LedgerError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(reply) = self.reply.as_mut() else { return Poll::Ready(Err(LedgerError::Unavailable)) };
        let answer = std::task::ready!(Pin::new(reply).poll(context));
        self.reply = None;
        Poll::Ready(answer)
    }
}

impl<U: Fn(Reserved) -> Act> Drop for Pending<'_, U> {
    fn drop(&mut self) {
        if let Some(Ok(Answer::Reserved(reserved))) = self.reply.take().and_then(Reply::cancel) {
            drop(self.ledger.submit(Op { account: self.account.clone(), act: (self.undo)(reserved) }));
        }
    }
}

fn admitted(answer: Result<Answer, LedgerError>) -> Result<Reserved, Refusal> {
    Err(match answer {
        Ok(Answer::Reserved(reserved)) => return Ok(reserved),
        Ok(Answer::Insufficient { available, held }) => Refusal::Insufficient { available, held },
        Ok(Answer::Limited { limit, retry_after_us }) => Refusal::Limited { limit, retry_after_us },
        Ok(Answer::Frozen) => Refusal::Frozen,
        Ok(Answer::NotLoaded) => Refusal::UnknownAccount,
        Ok(Answer::TooLarge) => Refusal::TooLarge,
        Ok(Answer::Backlogged) | Err(LedgerError::Busy) => Refusal::Backlogged,
        Ok(Answer::Unreadable) => Refusal::Unreadable,
        Ok(_) | Err(LedgerError::Unavailable) => Refusal::Unavailable,
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parking_lot::Mutex;
    use tokio::sync::oneshot;

    use super::*;
    use crate::ledger::{GrantId, Ledger, Status};

    /// Keeps what was submitted, and answers when the test says so.
    #[derive(Debug, Default)]
    struct Slow {
        acts: Mutex<Vec<Act>>,
        senders: Mutex<Vec<oneshot::Sender<Result<Answer, LedgerError>>>>,
    }

    impl Ledger for Slow {
        fn submit(&self, op: Op) -> Reply {
            let (sender, receiver) = oneshot::channel();
            self.acts.lock().push(op.act);
            self.senders.lock().push(sender);
            Reply::Later(receiver)
        }

        fn status(&self) -> Status {
            Status::Ready
        }
    }

    impl Slow {
        fn answer(&self, answer: Answer) {
            let sender = self.senders.lock().pop().unwrap();
            sender.send(Ok(answer)).unwrap();
        }

        fn last(&self) -> Act {
            self.acts.lock().last().cloned().unwrap()
        }
    }

    fn reserved(micro: i64) -> Answer {
        let parts = Parts::from_iter([(GrantId(1), Credits::from_micro(micro).unwrap())]);
        let (session, available) = (SessionId(7), Credits::ZERO);
        Answer::Reserved(Reserved { session, parts, available, requests_busy_us: 0, tokens_busy_us: 0 })
    }

    fn ask() -> Ask {
        let limits = Limits { tokens_per_minute: 60, ..Limits::default() };
        Ask { amount: Credits::whole(1), floor: Credits::whole(1), tokens: 2, limits }
    }

    fn context() -> Context<'static> {
        Context::from_waker(std::task::Waker::noop())
    }

    /// failures 3 (litellm#27639, new-api#4429): the client leaves after the ledger has answered and before the
    /// answer is read.
    #[test]
    fn a_reserve_whose_answer_nobody_read_is_released() {
        let slow = Arc::new(Slow::default());
        let (ledger, account): (SharedLedger, _) = (slow.clone(), AccountId::parse("ada").unwrap());
        let mut request = Box::pin(reserve(&ledger, &account, ask()));
        assert!(request.as_mut().poll(&mut context()).is_pending());
        slow.answer(reserved(5));
        drop(request);
        let Act::Release { session: SessionId(7), tokens_back_us: 2_000_000, .. } = slow.last() else {
            panic!("{:?}", slow.last())
        };
    }

    #[test]
    fn an_extension_whose_answer_nobody_read_shrinks_again() {
        let slow = Arc::new(Slow::default());
        let (ledger, account): (SharedLedger, _) = (slow.clone(), AccountId::parse("ada").unwrap());
        let mut request = Box::pin(reserve(&ledger, &account, ask()));
        assert!(request.as_mut().poll(&mut context()).is_pending());
        slow.answer(reserved(5));
        let Poll::Ready(Ok((mut hold, _))) = request.as_mut().poll(&mut context()) else { panic!("no hold") };
        let mut extension = Box::pin(hold.extend(Credits::whole(1), Credits::ZERO));
        assert!(extension.as_mut().poll(&mut context()).is_pending());
        slow.answer(reserved(3));
        drop(extension);
        assert!(matches!(slow.last(), Act::Shrink { session: SessionId(7), .. }), "{:?}", slow.last());
        assert_eq!(hold.total().micro(), 5);
        drop(hold);
        assert!(matches!(slow.last(), Act::Release { .. }), "a dropped hold goes back");
    }

    /// The session was fenced while the stream ran: what it held is held anew, in full.
    #[test]
    fn an_extension_in_a_dead_session_reserves_again() {
        let slow = Arc::new(Slow::default());
        let (ledger, account): (SharedLedger, _) = (slow.clone(), AccountId::parse("ada").unwrap());
        let mut request = Box::pin(reserve(&ledger, &account, ask()));
        assert!(request.as_mut().poll(&mut context()).is_pending());
        slow.answer(reserved(5));
        let Poll::Ready(Ok((mut hold, _))) = request.as_mut().poll(&mut context()) else { panic!("no hold") };
        let mut extension = Box::pin(hold.extend(Credits::from_micro(3).unwrap(), Credits::ZERO));
        assert!(extension.as_mut().poll(&mut context()).is_pending());
        slow.answer(Answer::UnknownHold);
        assert!(extension.as_mut().poll(&mut context()).is_pending());
        let Act::Reserve { amount, floor, tokens: 0, limits } = slow.last() else { panic!("{:?}", slow.last()) };
        assert_eq!((amount.micro(), floor.micro(), limits), (8, 5, Limits::default()));
        slow.answer(reserved(8));
        assert_eq!(extension.as_mut().poll(&mut context()), Poll::Ready(Ok(Credits::from_micro(3).unwrap())));
    }
}
