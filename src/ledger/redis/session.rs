//! A worker's session with one shard: numbered batches, one at a time, each sent until it is answered.

mod loss;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::Cmd;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::loss::Place;
use super::connection::{Backoff, CallError, Link};
use super::loading::Loading;
use super::queue::{Item, Pending, Queue, To};
use super::recall::Recalling;
use super::ring::{self, Ring};
use super::wire::decode::{self, BatchReply};
use super::wire::encode::{Header, Packed};
use super::wire::{Keyspace, Malformed};
use super::{Core, Position, meta, new_session, script, sweeper};
use crate::credits::Credits;
use crate::ledger::{Act, Answer, LedgerError, Op, SessionId};

/// After the stop, how long what was submitted may still take.
const CLOSE_WITHIN: Duration = Duration::from_secs(5);

/// Carries out what comes through `queue`, until `stop`; then what is left, and gives back what nobody settled.
pub(crate) async fn run(core: Arc<Core>, shard: u32, queue: Arc<Queue>, tasks: TaskTracker, stop: CancellationToken) {
    let ended = CancellationToken::new();
    let recalling = Recalling::new(core.clone(), queue.clone(), tasks.clone(), ended.clone());
    let loading = Loading::new(core.clone(), queue.clone(), tasks, ended.clone());
    let mut session = Session {
        id: new_session(),
        number: 0,
        keys: Keyspace::new(shard, 0),
        link: core.link(shard),
        batch: Vec::new(),
        packed: Packed::default(),
        ready: VecDeque::new(),
        ring: Ring::default(),
        loading,
        recalling,
        backoff: Backoff::default(),
        claiming: false,
        follows: None,
        core,
        shard,
        queue,
    };
    let closing = async {
        stop.cancelled().await;
        sleep(CLOSE_WITHIN).await;
    };
    tokio::select! {
        () = session.live(&stop) => {}
        () = closing => {}
    }
    ended.cancel();
    session.end();
}

struct Session {
    core: Arc<Core>,
    shard: u32,
    queue: Arc<Queue>,
    link: Link,
    id: SessionId,
    /// The last batch that was answered.
    number: u64,
    keys: Keyspace,
    /// Under way.
    batch: Vec<Pending>,
    packed: Packed,
    /// To be sent before anything in the queue.
    ready: VecDeque<Item>,
    /// What was charged and is not in the store yet.
    ring: Ring,
    loading: Loading,
    recalling: Recalling,
    backoff: Backoff,
    /// What is remembered has not been claimed yet.
    claiming: bool,
    /// The fenced session that this one goes on from, until it is known that both stand in the same history.
    follows: Option<Place>,
}

impl Session {
    async fn live(&mut self, stop: &CancellationToken) {
        self.open().await;
        let heartbeat = Duration::from_millis(self.core.settings.heartbeat_interval_ms);
        // The first batch opens the session, whether or not there is anything to do.
        self.exchange().await;
        loop {
            self.fill();
            if self.batch.is_empty() {
                let queue = self.queue.clone();
                let stopping = stop.is_cancelled();
                if stopping && self.loading.is_empty() && self.recalling.is_empty() && queue.is_empty() {
                    break;
                }
                tokio::select! {
                    () = queue.wake.notified() => continue,
                    () = stop.cancelled(), if !stopping => continue,
                    () = sleep(heartbeat.saturating_sub(queue.since_acknowledged())) => {}
                }
            }
            self.exchange().await;
        }
        self.close().await;
    }

    /// Begins as a new session, where the shard now stands.
    async fn open(&mut self) {
        loop {
            match meta::find_or_make(&self.core, &mut self.link, self.shard).await {
                // Rolled back to before it was opened anew.
                Ok(position) if position.epoch < self.keys.epoch => self.reopen(self.keys.epoch).await,
                Ok(position) => {
                    self.keys = Keyspace::new(self.shard, position.epoch);
                    self.id = new_session();
                    self.number = 0;
                    return;
                }
                Err(_) => sleep(self.backoff.pause()).await,
            }
        }
    }

    /// Takes the next batch: all that waits, up to the limit.
    fn fill(&mut self) {
        let max = self.core.settings.max_batch;
        if self.ready.len() < max {
            let room = max - self.ready.len();
            self.queue.take(room, &mut self.ready);
        }
        while self.batch.len() < max {
            let Some(item) = self.ready.pop_front() else { break };
            let pending = match item {
                Item::Op(pending) => self.admit(pending),
                Item::Found { account, ticket, result } => self.loading.found(account, ticket, result),
                Item::LoadAgain(account) => self.loading.again(account),
                Item::Recalled { pending, epoch, result } => {
                    self.recalling.found(pending, epoch, result).and_then(|pending| self.admit(pending))
                }
            };
            let recall = pending.as_ref().and_then(|pending| pending.recall(self.keys.epoch));
            self.batch.extend(recall);
            self.batch.extend(pending);
        }
    }

    /// The operation as this session can send it, if there is anything to send.
    fn admit(&mut self, mut pending: Pending) -> Option<Pending> {
        if pending.is_pointless() {
            return None;
        }
        if !matches!(pending.to, To::Loading) && self.loading.is_loading(&pending.op.account) && waits(&pending.op.act)
        {
            return self.loading.wait(pending);
        }
        match &mut pending.op.act {
            // Its holds went back when its session ended; what was used is charged all the same.
            Act::Settle { session, actual, usage, .. } if *session != self.id => {
                self.core.metrics.holds_in_flight.dec();
                let (actual, usage) = (*actual, std::mem::take(usage));
                pending.op.act = Act::Charge { actual, must: true, usage, record: None };
            }
            Act::Release { session, .. } if *session != self.id => {
                self.core.metrics.holds_in_flight.dec();
                pending.answer(Ok(Answer::Released { available: Credits::ZERO }));
                return None;
            }
            Act::Shrink { session, .. } | Act::Extend { session, .. } if *session != self.id => {
                pending.answer(Ok(Answer::UnknownHold));
                return None;
            }
            _ => {}
        }
        Some(pending)
    }

    /// Sends the batch until it is answered, and hands out the answers.
    async fn exchange(&mut self) {
        let header = Header {
            session: self.id,
            number: self.number + 1,
            max_backlog: self.core.settings.max_backlog,
            memory_full: self.core.is_memory_full() || self.is_ring_full(),
            seen: self.core.state(self.shard).seen(self.keys.epoch),
        };
        self.packed.pack(&self.keys, header, self.batch.iter().map(|pending| &pending.op));
        let command = self.packed.command();
        let reply = self.send(&command).await;
        self.backoff.reset();
        match reply {
            BatchReply::Applied { backlogged, answers, counter, flushed, .. } => {
                self.number += 1;
                self.core.state(self.shard).note(Position { epoch: self.keys.epoch, counter });
                self.core.metrics.ledger_batch_size.observe(answers.len() as f64);
                let charges = self.hand_out(answers);
                self.ring.keep(self.id, self.number, counter, charges);
                if let Some(fenced) = self.follows.take()
                    && !self.is_there(fenced).await
                {
                    tracing::error!(
                        shard = self.shard,
                        session = fenced.session.0,
                        "the ledger lost what this session had acknowledged before it was fenced"
                    );
                    self.recover().await;
                    return;
                }
                self.ring.flushed(flushed);
                self.queue.acknowledged(backlogged || self.is_ring_full());
            }
            BatchReply::Fenced => {
                tracing::warn!(shard = self.shard, session = self.id.0, "fenced: this worker stood still for too long");
                let fenced = self.place();
                if self.is_stored().await {
                    self.recover().await;
                } else {
                    self.open().await;
                    // What is remembered goes by its epoch's entries, and that epoch may have ended since.
                    if self.keys.epoch > fenced.epoch {
                        self.claim(fenced).await;
                    } else {
                        if self.follows.is_none() && self.ring.len() > 0 {
                            self.follows = Some(fenced);
                        }
                        self.resend_batch();
                    }
                }
            }
            BatchReply::Lost { reason } => {
                tracing::error!(
                    shard = self.shard,
                    session = self.id.0,
                    reason,
                    "this session does not go on: the ledger lost what it had acknowledged, or is being opened anew"
                );
                self.recover().await;
            }
        }
    }

    fn is_ring_full(&self) -> bool {
        self.ring.len() >= self.core.settings.max_unflushed
    }

    /// The same bytes, until there is an answer.
    async fn send(&mut self, command: &Cmd) -> BatchReply {
        let core = self.core.clone();
        let metrics = &core.metrics;
        loop {
            let begun = Instant::now();
            let result = self.link.call_bytes(&script::BATCH, command).await;
            metrics.ledger_call_seconds.observe(begun.elapsed().as_secs_f64());
            let result = match result {
                Ok(bytes) => self.read(&bytes).map_err(|error| CallError::Refused(error.to_string())),
                Err(error) => Err(error),
            };
            match result {
                Ok(reply) => {
                    metrics.ledger_calls.with_label_values(&["answered"]).inc();
                    return reply;
                }
                Err(error) => {
                    metrics.ledger_calls.with_label_values(&[error.kind()]).inc();
                    if self.backoff.is_notable() {
                        tracing::warn!(shard = self.shard, %error, "a batch got no answer; it is sent again");
                    }
                    sleep(self.backoff.pause()).await;
                }
            }
        }
    }

    fn read(&self, bytes: &[u8]) -> Result<BatchReply, Malformed> {
        decode::batch(bytes, self.id, self.batch.iter().map(|pending| &pending.op))
    }

    /// Answers what was charged.
    fn hand_out(&mut self, answers: Vec<Answer>) -> Vec<Op> {
        let mut charges = Vec::new();
        let mut batch = std::mem::take(&mut self.batch);
        for (mut pending, answer) in batch.drain(..).zip(answers) {
            if matches!(pending.to, To::Loading) {
                self.loading.answered(pending.op, &answer, &mut self.ready);
                continue;
            }
            if matches!(pending.op.act, Act::Recall { .. }) {
                continue;
            }
            match (&answer, &mut pending.op.act) {
                (Answer::NotLoaded, act) if waits(act) && !matches!(act, Act::Sweep) => {
                    let begin = self.loading.wait(pending);
                    self.ready.extend(begin.map(Item::Op));
                    continue;
                }
                (Answer::UnknownRecord, _) => {
                    self.recalling.ask(self.keys.epoch, pending);
                    continue;
                }
                // While the shard settles in an unknown hold may still be claimed, after which it is released all the same.
                (Answer::Backlogged, Act::ReleaseHold { .. }) if matches!(pending.to, To::Nobody) => {
                    self.recalling.ask_again(self.keys.epoch, pending);
                    continue;
                }
                // The key was used for another request since: what was acknowledged is charged all the same.
                (Answer::Mismatch, Act::Charge { must: true, record, .. }) if record.is_some() => {
                    *record = None;
                    self.ready.push_back(Item::Op(pending));
                    continue;
                }
                // Whatever became of the hold (the account may have come anew from the store), what was used is charged.
                (Answer::UnknownHold, Act::Settle { session, .. }) => {
                    if !pending.reloaded {
                        let account = pending.op.account.as_str();
                        tracing::error!(
                            shard = self.shard,
                            account,
                            "a hold of this session is unknown: charged instead"
                        );
                    }
                    *session = SessionId::API;
                    self.ready.push_back(Item::Op(pending));
                    continue;
                }
                _ => {}
            }
            if answer == Answer::Unreadable && pending.is_owed() {
                let account = pending.op.account.as_str();
                tracing::error!(
                    shard = self.shard,
                    account,
                    "the account cannot be read: what is owed stays uncharged"
                );
            }
            self.core.counters.count(&pending.op.act, &answer);
            charges.extend(ring::claim(&mut pending.op, &answer));
            let back = pending.answer(Ok(answer));
            self.ready.extend(back.map(Item::Op));
        }
        self.batch = batch;
        charges
    }

    /// Ends the session in the ledger: what nobody settled goes back.
    async fn close(&mut self) {
        let fenced = sweeper::end_session(&mut self.link, &self.keys, self.id, self.number).await;
        if let Err(error) = fenced {
            tracing::warn!(shard = self.shard, %error, "the session could not be closed; it will be fenced");
        }
    }

    /// Nothing is answered after this.
    fn end(&mut self) {
        let mut owed = self.loading.give_up() + if self.claiming { self.ring.len() } else { 0 };
        let left = self.batch.drain(..).map(Item::Op).chain(self.ready.drain(..)).chain(self.queue.close());
        for item in left {
            if let Item::Op(pending) = item {
                owed += usize::from(pending.is_owed());
                pending.answer(Err(LedgerError::Unavailable));
            }
        }
        if owed > 0 {
            tracing::error!(shard = self.shard, owed, "the ledger was out of reach until the end: settles are lost");
        }
    }
}

/// Operations that wait for their account to be loaded; the raw ones say `NotLoaded`.
fn waits(act: &Act) -> bool {
    !matches!(act, Act::Apply { .. } | Act::Ticket { .. } | Act::Load { .. } | Act::Park { .. })
}
