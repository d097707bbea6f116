//! What one request pays: taken before it rides, settled exactly once, however it ends.

use std::future::Future;
use std::rc::Rc;
use std::task::Poll;
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::common::Worker;
use super::headers::Fares;
use super::meter::Tally;
use super::outcome::Outcome;
use super::refusal::Refusal;
use super::route::{Route, Uncharged};
use crate::config::OnLedgerDown;
use crate::credits::Credits;
use crate::identity::budget::{BudgetRefusal, BudgetShare};
use crate::identity::principal::SharedPrincipal;
use crate::ledger::hold::{self, Ask, Hold};
use crate::ledger::{AccountId, Act, Limits, Op, Reply, Status};
use crate::pricing::{Price, Tokens};
use crate::telemetry::traces::{Seed, Span};
use crate::usage::Usage;

/// The status in the usage row of a request whose client did not wait for an answer.
pub(super) const CLIENT_GONE: u16 = 499;

/// How a request is paid.
#[derive(Debug)]
pub(super) enum Pay {
    Hold(Hold),
    /// Costs nothing and is recorded.
    Free,
    /// The ledger is out of reach and the route lets it ride: charged when the ledger is back.
    Later(Uncharged),
    /// Costs nothing, and the ledger, which would record it, is out of reach.
    Unrecorded,
}

/// What was taken for a request, and what is said about it in the answer.
#[derive(Debug)]
pub(super) struct Ticket {
    pub(super) pay: Pay,
    /// Of the key's own budget, where it has one.
    pub(super) share: Option<BudgetShare>,
    pub(super) fares: Option<Fares>,
    /// Payment is only tried out: it takes what there is, and neither refuses nor leaves debt.
    shadow: bool,
}

impl Ticket {
    fn new(pay: Pay) -> Ticket {
        Ticket { pay, share: None, fares: None, shadow: false }
    }
}

/// Takes credits for a request, or says why not.
pub(super) async fn take(
    worker: &Worker,
    route: &Route,
    principal: &SharedPrincipal,
    ask: Ask,
    request_id: Uuid,
) -> Result<Ticket, Refusal> {
    let floor = if ask.floor.is_zero() { ask.amount } else { ask.floor };
    let share = share(worker, principal, ask.amount, floor, request_id);
    let share = share.await.map_err(|refusal| Refusal::Budget { refusal, asked: ask.amount })?;
    let amount = share.as_ref().map_or(ask.amount, |share| share.held().min(ask.amount));
    match reserved(worker, principal, Ask { amount, ..ask }).await {
        Ok(ticket) => Ok(Ticket { share, ..ticket }),
        Err(hold::Refusal::Unavailable) if route.settings.on_ledger_down == OnLedgerDown::Allow => {
            match route.uncharged() {
                Some(leave) => Ok(Ticket { share, ..Ticket::new(Pay::Later(leave)) }),
                None => Err(Refusal::Ledger { refusal: hold::Refusal::Unavailable, asked: ask.amount }),
            }
        }
        Err(refusal) => {
            if matches!(refusal, hold::Refusal::Insufficient { .. }) {
                worker.shared.metrics.exhausted.note(principal.account.as_str());
            }
            Err(Refusal::Ledger { refusal, asked: ask.amount })
        }
    }
}

/// The share of the key's own budget, of `floor` at least; `None` where it has none.
async fn share(
    worker: &Worker,
    principal: &SharedPrincipal,
    amount: Credits,
    floor: Credits,
    request_id: Uuid,
) -> Result<Option<BudgetShare>, BudgetRefusal> {
    // Boxed, and only where there is a budget: most keys have none.
    if principal.scope.is_none() {
        return Ok(None);
    }
    let share = worker.shared.identity.share_budget(principal, request_id, amount, floor);
    let limit = Duration::from_millis(worker.shared.config.store.timeout_ms);
    tokio::time::timeout(limit, Box::pin(share)).await.unwrap_or(Err(BudgetRefusal::Unavailable))
}

async fn reserved(worker: &Worker, principal: &SharedPrincipal, ask: Ask) -> Result<Ticket, hold::Refusal> {
    let (hold, reserved) = match worker.ledger.status_of(&principal.account) {
        Status::Ready => {
            let reserve = hold::reserve(&worker.ledger, &principal.account, ask);
            let limit = Duration::from_millis(worker.shared.config.ledger.reserve_timeout_ms);
            within(limit, reserve).await.unwrap_or(Err(hold::Refusal::Unavailable))?
        }
        Status::Unavailable => return Err(hold::Refusal::Unavailable),
        Status::Backlogged => return Err(hold::Refusal::Backlogged),
    };
    let held = hold.total();
    let low = worker.lows.borrow().get(&*principal.plan).is_some_and(|low| reserved.available < *low);
    let fares = Fares::new(&reserved, held, ask.limits, low);
    Ok(Ticket { fares: Some(fares), ..Ticket::new(Pay::Hold(hold)) })
}

/// Takes what [`take`] would, and where that is refused what there is: balances fall as they would have, never below
/// nothing. Also answers the refusal that was spared.
pub(super) async fn try_out(
    worker: &Worker,
    principal: &SharedPrincipal,
    ask: Ask,
    request_id: Uuid,
) -> (Ticket, Option<Refusal>) {
    // Whatever is left of a budget: what the request comes to counts in full when it ends.
    let (share, spared) = match share(worker, principal, ask.amount, Credits::ZERO, request_id).await {
        Ok(share) => {
            let least = if ask.floor.is_zero() { ask.amount } else { ask.floor };
            let short = share.as_ref().map(BudgetShare::held).filter(|held| *held < least);
            let refusal = short.map(|left| BudgetRefusal::Exhausted { left, held: Credits::ZERO });
            (share, refusal)
        }
        Err(refusal) => (None, Some(refusal)),
    };
    let spared = spared.map(|refusal| Refusal::Budget { refusal, asked: ask.amount });
    let (taken, refusal) = match reserved(worker, principal, ask).await {
        Ok(ticket) => (Ok(ticket), None),
        Err(refusal @ (hold::Refusal::Insufficient { .. } | hold::Refusal::Limited { .. })) => {
            let whatever = Ask { floor: Credits::ZERO, limits: Limits::default(), ..ask };
            (reserved(worker, principal, whatever).await, Some(refusal))
        }
        Err(refusal) => (Err(refusal), Some(refusal)),
    };
    let ticket = taken.unwrap_or_else(|_| unmetered(worker));
    let refusal = refusal.map(|refusal| Refusal::Ledger { refusal, asked: ask.amount });
    (Ticket { share, shadow: true, ..ticket }, spared.or(refusal))
}

/// A ticket that costs nothing, whatever the price; recorded where the ledger is there for it.
pub(super) fn unmetered(worker: &Worker) -> Ticket {
    let recorded = matches!(worker.ledger.status(), Status::Ready);
    Ticket { shadow: true, ..Ticket::new(if recorded { Pay::Free } else { Pay::Unrecorded }) }
}

/// As tokio's timeout, which it becomes where the first poll leaves something to wait for: what answers at once, as a
/// ledger in the process does, needs no timer.
async fn within<F: Future>(limit: Duration, future: F) -> Result<F::Output, tokio::time::error::Elapsed> {
    let mut future = std::pin::pin!(future);
    let at_once = std::future::poll_fn(|context| Poll::Ready(future.as_mut().poll(context))).await;
    match at_once {
        Poll::Ready(output) => Ok(output),
        Poll::Pending => tokio::time::timeout(limit, future).await,
    }
}

/// A ticket that costs nothing. What it records goes through the ledger all the same, so without one it is refused, or
/// takes one of the route's leaves: nothing may pile up without bound.
pub(super) fn free(worker: &Worker, route: &Route) -> Result<Ticket, Refusal> {
    let refusal = match worker.ledger.status() {
        Status::Ready => return Ok(Ticket::new(Pay::Free)),
        Status::Backlogged => hold::Refusal::Backlogged,
        Status::Unavailable => hold::Refusal::Unavailable,
    };
    if refusal == hold::Refusal::Unavailable
        && route.settings.on_ledger_down == OnLedgerDown::Allow
        && let Some(leave) = route.uncharged()
    {
        return Ok(Ticket::new(Pay::Later(leave)));
    }
    Err(Refusal::Ledger { refusal, asked: Credits::ZERO })
}

/// Who asks for what, as the usage row tells it.
#[derive(Debug)]
pub(super) struct Errand {
    pub(super) request_id: Uuid,
    pub(super) client_request_id: Option<String>,
    pub(super) created_at_ms: u64,
    pub(super) began: Instant,
    /// There where the request is traced.
    pub(super) trace: Option<Box<Seed>>,
}

/// A request's fare, from the moment credits were taken. Dropped unfinished it is given back where the request was never
/// forwarded, and ends at nothing where it was.
#[derive(Debug)]
pub(super) struct Fare {
    worker: Rc<Worker>,
    pub(super) route: Rc<Route>,
    account: AccountId,
    pay: Option<Pay>,
    share: Option<BudgetShare>,
    /// See [`Ticket`].
    shadow: bool,
    /// In shadow: the balance had nothing more for it, and is not asked again.
    exhausted: bool,
    /// In shadow: nor had the key's budget.
    over_budget: bool,
    pub(super) fares: Option<Fares>,
    pub(super) price: Price,
    usage: Usage,
    began: Instant,
    /// How long it took until the request was forwarded; `None` before.
    before: Option<Duration>,
    /// When the upstream had nothing more to say.
    upstream_ended: Option<Instant>,
    trace: Option<Box<Seed>>,
}

/// How a request ended.
#[derive(Debug, Clone, Copy)]
pub(super) struct End {
    pub(super) outcome: Outcome,
    pub(super) status: u16,
    pub(super) cost: Credits,
    pub(super) tally: Option<Tally>,
}

impl End {
    /// Nothing to pay.
    pub(super) fn free(outcome: Outcome, status: u16) -> End {
        End { outcome, status, cost: Credits::ZERO, tally: None }
    }
}

impl Fare {
    pub(super) fn new(
        worker: &Rc<Worker>,
        route: &Rc<Route>,
        principal: &SharedPrincipal,
        ticket: Ticket,
        price: Price,
        errand: Errand,
    ) -> Box<Fare> {
        let usage = Usage {
            request_id: errand.request_id,
            client_request_id: errand.client_request_id,
            key_id: Some(principal.key_id.to_string()),
            route: route.name.clone(),
            created_at_ms: errand.created_at_ms,
            ..Usage::default()
        };
        // Boxed, because it goes through many hands.
        Box::new(Fare {
            worker: Rc::clone(worker),
            route: Rc::clone(route),
            account: principal.account.clone(),
            pay: Some(ticket.pay),
            share: ticket.share,
            shadow: ticket.shadow,
            exhausted: false,
            over_budget: false,
            fares: ticket.fares,
            price,
            usage,
            began: errand.began,
            before: None,
            upstream_ended: None,
            trace: errand.trace,
        })
    }

    pub(super) fn worker(&self) -> &Rc<Worker> {
        &self.worker
    }

    pub(super) fn request_id(&self) -> Uuid {
        self.usage.request_id
    }

    /// What the request may cost before more must be reserved.
    pub(super) fn held(&self) -> Option<Credits> {
        match &self.pay {
            Some(Pay::Hold(hold)) if !self.exhausted => Some(hold.total()),
            _ => None,
        }
    }

    /// What of a cost is charged: where payment is only tried out, no more than is held.
    pub(super) fn payable(&self, cost: Credits) -> Credits {
        match &self.pay {
            _ if !self.shadow => cost,
            Some(Pay::Hold(hold)) => cost.min(hold.total()),
            _ => Credits::ZERO,
        }
    }

    pub(super) fn describe(&mut self, model: Option<String>, streamed: bool) {
        self.usage.model = model;
        self.usage.streamed = streamed;
    }

    /// From here on the request counts as used, and has a row of its own.
    pub(super) fn forwarding(&mut self) {
        self.before = Some(self.began.elapsed());
    }

    pub(super) fn answered_by(&mut self, upstream: &str) {
        self.usage.upstream = Some(upstream.to_owned());
    }

    pub(super) fn upstream_ended(&mut self) {
        self.upstream_ended.get_or_insert_with(Instant::now);
    }

    /// Takes `more` into the hold, or as little as `floor`.
    pub(super) async fn extend(&mut self, more: Credits, floor: Credits) -> bool {
        let limit = Duration::from_millis(self.worker.shared.config.ledger.reserve_timeout_ms);
        let mut more = more;
        if let Some(share) = &mut self.share
            && !self.over_budget
        {
            // What the ledger then refuses goes back to the budget when the request ends.
            match tokio::time::timeout(limit, Box::pin(share.grow(more, floor))).await {
                Ok(Ok(grown)) => more = grown,
                Ok(Err(BudgetRefusal::Exhausted { .. })) if self.shadow => {
                    self.over_budget = true;
                    let (id, reason) = (self.usage.request_id, Outcome::CreditsExhausted.as_str());
                    self.worker.would_refuse(id, &self.route, reason, &"the key's budget is used up");
                }
                Ok(Err(BudgetRefusal::Exhausted { .. })) => return false,
                // A stream that rides is not cut because the store is slow: what it comes to counts in full.
                Ok(Err(BudgetRefusal::Unavailable)) | Err(_) => {}
            }
        }
        match &mut self.pay {
            Some(Pay::Hold(hold)) => {
                let least = if self.shadow { Credits::ZERO } else { floor };
                let got = tokio::time::timeout(limit, hold.extend(more, least)).await;
                if self.shadow && !matches!(got, Ok(Ok(got)) if got >= floor) {
                    self.exhausted = true;
                    let reason = Outcome::CreditsExhausted.as_str();
                    self.worker.would_refuse(self.usage.request_id, &self.route, reason, &"no more credits");
                    return true;
                }
                matches!(got, Ok(Ok(_)))
            }
            Some(Pay::Free | Pay::Later(_) | Pay::Unrecorded) => true,
            None => false,
        }
    }

    /// Ends it without cost: what was forwarded came to nothing. Answers the refusal as one that is settled.
    pub(super) fn refused(&mut self, refusal: Refusal) -> Refusal {
        if let Refusal::UpstreamsDown(_) = refusal {
            // Nothing was sent to anybody: dropping gives everything back.
            self.before = None;
            return refusal;
        }
        self.upstream_ended();
        drop(self.finish(End::free(refusal.outcome(), refusal.status().as_u16())));
        self.observe();
        Refusal::Settled(Box::new(refusal))
    }

    /// Ends it. The settle is under way when this returns; the reply is its acknowledgement, and is there only when
    /// something was charged: nobody needs to wait for nothing.
    pub(super) fn finish(&mut self, end: End) -> Option<Reply> {
        let cost = self.payable(end.cost);
        let pay = self.pay.take()?;
        if let Some(share) = self.share.take() {
            share.settle(cost);
        }
        self.route.count(end.outcome);
        let usage = self.usage(&end);
        if let Some(seed) = self.trace.take() {
            let (usage, outcome) = (usage.clone(), end.outcome.as_str());
            self.worker.shared.metrics.spans.note(Span { seed: *seed, usage, cost, outcome });
        }
        let usage = usage.encode();
        let tokens = end.tally.map_or(Tokens::default(), |tally| tally.tokens);
        let counters = &self.worker.counters;
        if end.tally.is_some_and(|tally| !tally.reported) {
            counters.estimated.inc_by(cost.micro() as u64);
        }
        counters.waived.inc_by(end.cost.saturating_sub(cost).micro() as u64);
        let reply = match pay {
            Pay::Hold(hold) => hold.settle(cost, tokens.input.saturating_add(tokens.output), usage),
            Pay::Free => self.charge(cost, usage),
            Pay::Unrecorded => return None,
            Pay::Later(leave) => {
                counters.uncharged.inc_by(cost.micro() as u64);
                let reply = self.charge(cost, usage);
                // Nobody waits for a ledger that is out of reach; the leave ends when the charge has arrived.
                self.worker.rides.spawn(async move {
                    let _ = reply.await;
                    drop(leave);
                });
                return None;
            }
        };
        (!cost.is_zero()).then_some(reply)
    }

    fn charge(&self, actual: Credits, usage: bytes::Bytes) -> Reply {
        let act = Act::Charge { actual, must: true, usage, record: None };
        self.worker.ledger.submit(Op { account: self.account.clone(), act })
    }

    fn usage(&mut self, end: &End) -> Usage {
        let mut usage = std::mem::take(&mut self.usage);
        self.usage.request_id = usage.request_id;
        usage.status = end.status;
        let ended = self.upstream_ended.unwrap_or_else(Instant::now);
        usage.latency_ms = ended.duration_since(self.began).as_millis() as u64;
        if let Some(tally) = end.tally {
            usage.input_tokens = tally.tokens.input;
            usage.cached_tokens = tally.tokens.cached;
            usage.output_tokens = tally.tokens.output;
            usage.estimated = !tally.reported;
        }
        tracing::debug!(
            request_id = %usage.request_id,
            route = usage.route,
            upstream = usage.upstream,
            status = usage.status,
            outcome = end.outcome.as_str(),
            cost = %end.cost,
            latency_ms = usage.latency_ms,
            "request"
        );
        usage
    }

    /// Notes how long the gateway itself took: until the request was forwarded, and from the upstream's last byte on.
    pub(super) fn observe(&self) {
        if let Some(before) = self.before {
            let after = self.upstream_ended.map_or(Duration::ZERO, |ended| ended.elapsed());
            self.route.added_latency.observe((before + after).as_secs_f64());
        }
    }

    /// Waits for a settle's acknowledgement, but not for long: the answer's last bytes wait with it.
    pub(super) async fn acknowledged(&self, reply: Option<Reply>) {
        if let Some(reply) = reply {
            let limit = Duration::from_millis(self.worker.shared.config.ledger.settle_wait_ms);
            if !matches!(tokio::time::timeout(limit, reply).await, Ok(Ok(_))) {
                self.worker.shared.metrics.unacknowledged_answers.inc();
            }
        }
        self.observe();
    }
}

impl Drop for Fare {
    fn drop(&mut self) {
        if self.pay.is_none() {
            return;
        }
        if self.before.is_some() {
            let outcome = if std::thread::panicking() { Outcome::Internal } else { self.worker.abandoned() };
            drop(self.finish(End::free(outcome, CLIENT_GONE)));
        } else if let Some(Pay::Hold(hold)) = self.pay.take() {
            drop(hold.release());
        }
    }
}
