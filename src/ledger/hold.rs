//! A hold in the hands of the request that made it. Dropped unfinished, it goes back.

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
    let reserved = admitted(ledger.submit(Op { account: account.clone(), act }).await)?;
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
        let op = |act| Op { account: self.account.clone(), act };
        match ledger.submit(op(Act::Extend { session: self.session, more, floor })).await {
            Ok(Answer::UnknownHold) => {
                let (amount, floor) = (self.total().saturating_add(more), self.total().saturating_add(floor));
                let act = Act::Reserve { amount, floor, tokens: 0, limits: Limits::default() };
                let before = self.total();
                let reserved = admitted(ledger.submit(op(act)).await)?;
                self.session = reserved.session;
                self.parts = reserved.parts;
                Ok(self.total().saturating_sub(before))
            }
            answer => {
                let reserved = admitted(answer)?;
                let before = self.total();
                for (grant, amount) in reserved.parts {
                    match self.parts.iter_mut().find(|(known, _)| *known == grant) {
                        Some((_, part)) => *part = part.saturating_add(amount),
                        None => self.parts.push((grant, amount)),
                    }
                }
                Ok(self.total().saturating_sub(before))
            }
        }
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
