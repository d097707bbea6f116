//! The rest of an answer, and what is owed for it: whoever holds it last settles it.

use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;

use super::fare::{CLIENT_GONE, End, Fare};
use super::headers;
use super::http1::{Broken, Part};
use super::meter::{AnswerMeter, StreamMeter, Tally};
use super::outcome::Outcome;
use super::pool::Rest;
use crate::config::ClientGone;
use crate::credits::Credits;
use crate::ledger::Reply;
use crate::pricing::Tokens;

/// How long the end of an upstream's stream may take after its terminal event, for the connection to be used again.
const LINGER: Duration = Duration::from_secs(1);

/// How an answer is read.
#[derive(Debug)]
pub(super) enum Meter {
    /// Not at all.
    Blind,
    Whole(AnswerMeter),
    Stream(StreamMeter),
}

/// The rest of an answer: what the upstream still has to say, and what is to be paid for it. Whoever holds it last
/// settles it.
#[derive(Debug)]
pub(super) struct Ride {
    pub(super) rest: Rest,
    pub(super) meter: Meter,
    pub(super) fare: Box<Fare>,
    pub(super) status: u16,
    pub(super) idle: Duration,
    /// Output tokens that what is held pays for.
    pub(super) covered: u64,
    /// Of the answer's body, what the upstream says is still to come.
    pub(super) left: Option<u64>,
}

/// What an upstream does next.
#[derive(Debug)]
pub(super) enum Step {
    Data(Bytes),
    Trailers(HeaderMap),
    End,
    /// It broke off or fell silent.
    Broken(Outcome),
}

impl Ride {
    pub(super) fn poll_step(&mut self, context: &mut Context<'_>) -> Poll<Step> {
        Poll::Ready(match ready!(self.rest.poll_part(context, self.idle)) {
            Ok(Part::Data(data)) => {
                if let Some(left) = &mut self.left {
                    *left = left.saturating_sub(data.len() as u64);
                }
                if self.rest.is_over() {
                    self.read();
                }
                Step::Data(data)
            }
            Ok(Part::Trailers(mut trailers)) => {
                // What is not for the client in the head is not for it here.
                headers::strip_answer(&mut trailers, self.fare.route.kind(), false);
                Step::Trailers(trailers)
            }
            Ok(Part::End) => {
                self.read();
                Step::End
            }
            Err(Broken::TimedOut) => self.broken(Outcome::UpstreamTimeout),
            Err(error) => {
                tracing::debug!(%error, "an answer broke off");
                self.broken(Outcome::UpstreamCut)
            }
        })
    }

    /// The upstream has said everything.
    fn read(&mut self) {
        self.fare.upstream_ended();
        self.rest.done();
    }

    fn broken(&mut self, outcome: Outcome) -> Step {
        self.fare.upstream_ended();
        self.rest.cut();
        Step::Broken(outcome)
    }

    /// Whether the body is complete although its end was not read yet.
    pub(super) fn complete(&self) -> bool {
        self.left == Some(0) || self.rest.is_over()
    }

    /// How much a stream outgrew what is held: what to take now, and at least.
    pub(super) fn outgrown(&self) -> Option<(Credits, Credits)> {
        let Meter::Stream(meter) = &self.meter else { return None };
        let exposure = meter.exposure();
        if exposure <= self.covered {
            return None;
        }
        let held = self.fare.held()?;
        let input = Tokens { output: 0, ..meter.tally().tokens };
        let cost = |output: u64| self.fare.price.upper_bound(Tokens { output, ..input });
        let needed = cost(exposure).saturating_sub(held);
        let step = self.fare.worker().shared.config.metering.extend_tokens;
        let wanted = cost(exposure.saturating_add(step)).saturating_sub(held);
        Some((wanted, needed))
    }

    /// Takes what the stream needs to go on. `false`: the balance is used up, or the ledger out of reach.
    pub(super) async fn extend(&mut self) -> bool {
        let Some((wanted, needed)) = self.outgrown() else { return true };
        if !wanted.is_zero() && !self.fare.extend(wanted, needed).await {
            return false;
        }
        if let (Meter::Stream(meter), Some(held)) = (&self.meter, self.fare.held()) {
            let input = Tokens { output: 0, ..meter.tally().tokens };
            let affordable = self.fare.price.affordable_output(held, input).unwrap_or(0);
            self.covered = affordable.max(meter.exposure());
        }
        true
    }

    /// What is owed for what came so far.
    fn bill(&mut self) -> (Credits, Option<Tally>) {
        let tally = match std::mem::replace(&mut self.meter, Meter::Blind) {
            Meter::Blind => None,
            Meter::Whole(meter) => Some(meter.finish()),
            Meter::Stream(meter) => Some(meter.tally()),
        };
        if self.status >= 400 {
            return (Credits::ZERO, None);
        }
        let Some(tally) = tally else { return (self.fare.price.cost(Tokens::default()), None) };
        let nothing = tally.failed && tally.tokens.output == 0 && tally.tokens.images == 0;
        let cost = if nothing { Credits::ZERO } else { self.fare.price.cost(tally.tokens) };
        (cost, Some(tally))
    }

    fn outcome(&self) -> Outcome {
        if self.status >= 400 { Outcome::UpstreamError } else { Outcome::Ok }
    }

    /// Pays for an answer that came to its end.
    pub(super) fn settle(&mut self) -> (Credits, Option<Reply>) {
        let outcome = self.outcome();
        self.settle_as(outcome, self.status)
    }

    fn settle_as(&mut self, outcome: Outcome, status: u16) -> (Credits, Option<Reply>) {
        self.fare.upstream_ended();
        let (cost, tally) = self.bill();
        let payable = self.fare.payable(cost);
        (payable, self.fare.finish(End { outcome, status, cost, tally }))
    }

    /// Pays for what was delivered of an answer that did not come to its end. An estimate never asks for more than is
    /// held: what lies beyond was not delivered.
    pub(super) fn settle_partly(&mut self, outcome: Outcome) -> Option<Reply> {
        self.fare.upstream_ended();
        let (mut cost, tally) = self.bill();
        if let Some(held) = self.fare.held()
            && !tally.is_some_and(|tally| tally.reported)
        {
            cost = cost.min(held);
        }
        self.fare.finish(End { outcome, status: self.status, cost, tally })
    }

    /// The client is gone: what the route says about that. `delivered`: whether it saw anything.
    pub(super) fn leave(mut self: Box<Self>, delivered: bool) {
        let worker = self.fare.worker().clone();
        let policy = self.fare.route.settings.client_gone;
        match policy {
            ClientGone::Drain if !worker.closing() => {
                let tasks = worker.rides.clone();
                tasks.spawn(self.finish_reading());
            }
            ClientGone::Drain | ClientGone::Partial if delivered => {
                drop(self.settle_partly(worker.abandoned()));
            }
            ClientGone::Drain | ClientGone::Partial | ClientGone::Void => {
                drop(self.fare.finish(End::free(worker.abandoned(), CLIENT_GONE)));
            }
        }
    }

    /// Reads on without a client, and pays what the upstream reports.
    pub(super) async fn finish_reading(self: Box<Self>) {
        // Where this is dropped at the drain deadline, the guard settles what came until then.
        let mut guard = Leaving(Some(self));
        let Some(ride) = &mut guard.0 else { return };
        loop {
            match std::future::poll_fn(|context| ride.poll_step(context)).await {
                Step::Data(data) => {
                    match &mut ride.meter {
                        Meter::Blind => {}
                        Meter::Whole(meter) => meter.push(&data),
                        Meter::Stream(meter) => drop(meter.push(data)),
                    }
                    if !ride.extend().await {
                        drop(ride.settle_partly(Outcome::CreditsExhausted));
                        break;
                    }
                }
                Step::Trailers(_) | Step::End => {
                    drop(ride.settle_as(Outcome::ClientGone, ride.status));
                    break;
                }
                Step::Broken(outcome) => {
                    drop(ride.settle_partly(outcome));
                    break;
                }
            }
        }
        guard.0 = None;
    }

    /// Reads the few bytes after a stream's terminal event, so that its connection can be used again.
    pub(super) async fn linger(mut self: Box<Self>) {
        let rest = async { while let Step::Data(_) = std::future::poll_fn(|context| self.poll_step(context)).await {} };
        // A stream that does not end costs a connection, nothing else.
        let _ = tokio::time::timeout(LINGER, rest).await;
    }
}

/// Settles as delivered a ride that nobody reads any longer.
struct Leaving(Option<Box<Ride>>);

impl Drop for Leaving {
    fn drop(&mut self) {
        if let Some(mut ride) = self.0.take() {
            let outcome = ride.fare.worker().abandoned();
            drop(ride.settle_partly(outcome));
        }
    }
}
