//! An upstream's answer on its way to the client: metered as it passes, its end withheld until the settle is
//! acknowledged, and paid once whoever leaves first.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame};
use hyper::body::Incoming;
use smallvec::SmallVec;
use tokio::time::Sleep;

use super::fare::{CLIENT_GONE, End, Fare};
use super::meter::{AnswerMeter, StreamMeter, Tally};
use super::outcome::Outcome;
use super::refusal::Refusal;
use super::upstream::Lease;
use super::worker::Worker;
use crate::config::ClientGone;
use crate::credits::Credits;
use crate::ledger::Reply;
use crate::pricing::Tokens;

/// Whole answers up to this size are read before their head leaves: one write instead of two, and the cost in a header.
pub(super) const GATHER_BYTES: u64 = 64 * 1024;
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
    pub(super) body: Incoming,
    pub(super) lease: Option<Lease>,
    pub(super) meter: Meter,
    pub(super) fare: Fare,
    pub(super) status: u16,
    pub(super) idle: Duration,
    pub(super) timer: Option<Pin<Box<Sleep>>>,
    /// Output tokens that what is held pays for.
    pub(super) covered: u64,
    /// Of the answer's body, what the upstream says is still to come.
    pub(super) left: Option<u64>,
}

/// What an upstream does next.
#[derive(Debug)]
enum Step {
    Data(Bytes),
    Trailers(HeaderMap),
    End,
    /// It broke off or fell silent.
    Broken(Outcome),
}

impl Ride {
    fn poll_step(&mut self, context: &mut Context<'_>) -> Poll<Step> {
        if self.body.is_end_stream() {
            return Poll::Ready(self.ended());
        }
        match Pin::new(&mut self.body).poll_frame(context) {
            Poll::Ready(Some(Ok(frame))) => {
                self.timer = None;
                match frame.into_data() {
                    Ok(data) => {
                        if let Some(left) = &mut self.left {
                            *left = left.saturating_sub(data.len() as u64);
                        }
                        Poll::Ready(Step::Data(data))
                    }
                    Err(frame) => Poll::Ready(frame.into_trailers().map_or(Step::End, Step::Trailers)),
                }
            }
            Poll::Ready(Some(Err(_))) => Poll::Ready(self.broken(Outcome::UpstreamCut)),
            Poll::Ready(None) => Poll::Ready(self.ended()),
            Poll::Pending => {
                let idle = self.idle;
                let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(idle)));
                ready!(timer.as_mut().poll(context));
                Poll::Ready(self.broken(Outcome::UpstreamTimeout))
            }
        }
    }

    fn ended(&mut self) -> Step {
        self.fare.upstream_ended();
        if let Some(lease) = self.lease.take() {
            lease.done();
        }
        Step::End
    }

    fn broken(&mut self, outcome: Outcome) -> Step {
        self.fare.upstream_ended();
        self.lease = None;
        Step::Broken(outcome)
    }

    /// Whether the body is complete although its end was not read yet.
    fn complete(&self) -> bool {
        self.left == Some(0) || self.body.is_end_stream()
    }

    /// How much a stream outgrew what is held: what to take now, and at least.
    fn outgrown(&self) -> Option<(Credits, Credits)> {
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
    async fn extend(&mut self) -> bool {
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
    fn settle(&mut self) -> (Credits, Option<Reply>) {
        let outcome = self.outcome();
        self.settle_as(outcome, self.status)
    }

    fn settle_as(&mut self, outcome: Outcome, status: u16) -> (Credits, Option<Reply>) {
        self.fare.upstream_ended();
        let (cost, tally) = self.bill();
        (cost, self.fare.finish(End { outcome, status, cost, tally }))
    }

    /// Pays for what was delivered of an answer that did not come to its end. An estimate never asks for more than is
    /// held: what lies beyond was not delivered.
    fn settle_partly(&mut self, outcome: Outcome) -> Option<Reply> {
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
    pub(super) fn leave(mut self, delivered: bool) {
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
    pub(super) async fn finish_reading(self) {
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
    async fn linger(mut self) {
        let rest = async { while let Step::Data(_) = std::future::poll_fn(|context| self.poll_step(context)).await {} };
        // A stream that does not end costs a connection, nothing else.
        let _ = tokio::time::timeout(LINGER, rest).await;
    }
}

/// Settles as delivered a ride that nobody reads any longer.
struct Leaving(Option<Ride>);

impl Drop for Leaving {
    fn drop(&mut self) {
        if let Some(mut ride) = self.0.take() {
            let outcome = ride.fare.worker().abandoned();
            drop(ride.settle_partly(outcome));
        }
    }
}

type Extension = Pin<Box<dyn Future<Output = (Ride, bool)>>>;

enum State {
    Flowing(Ride),
    /// The stream outgrew its hold and waits for more.
    Extending(Option<Extension>),
    /// Everything was said but the last; that waits for the acknowledgement.
    Settling(Ride, Option<Reply>, Option<Pin<Box<Sleep>>>),
    /// What is in the queue is the rest.
    Ending,
    /// What is in the queue still goes out, then the connection is cut.
    Cutting,
    Over,
}

/// The body of an answer that streams through.
pub(super) struct Answer {
    state: State,
    /// What may go out now.
    queue: SmallVec<[Bytes; 2]>,
    /// What goes out once the settle is acknowledged.
    withheld: SmallVec<[Bytes; 2]>,
    trailers: Option<HeaderMap>,
    /// Bytes still to be handed out, where the length is known.
    length: Option<u64>,
    worker: Rc<Worker>,
}

/// An answer that broke off: whoever reads it must not take it for a whole one.
#[derive(Debug, thiserror::Error)]
#[error("the answer broke off")]
pub(super) struct Cut;

/// What came of reading an answer before its head leaves.
pub(super) enum Gathered {
    Whole {
        frames: SmallVec<[Bytes; 2]>,
        trailers: Option<HeaderMap>,
        cost: Credits,
    },
    /// It is larger than that; what was read is in the queue.
    Larger(Box<Answer>),
}

/// Counts its bytes against [`GATHER_BYTES`] and, dropped, leaves nothing unpaid.
struct Gathering(Option<Ride>);

impl Drop for Gathering {
    fn drop(&mut self) {
        if let Some(ride) = self.0.take() {
            ride.leave(false);
        }
    }
}

/// Reads a whole answer, up to [`GATHER_BYTES`], and settles it.
pub(super) async fn gather(ride: Ride) -> Result<Gathered, Refusal> {
    let mut guard = Gathering(Some(ride));
    let mut frames: SmallVec<[Bytes; 2]> = SmallVec::new();
    let (mut size, mut trailers) = (0, None);
    while let Some(ride) = &mut guard.0 {
        match std::future::poll_fn(|context| ride.poll_step(context)).await {
            Step::Data(data) => {
                if let Meter::Whole(meter) = &mut ride.meter {
                    meter.push(&data);
                }
                size += data.len() as u64;
                frames.push(data);
                if size > GATHER_BYTES
                    && let Some(ride) = guard.0.take()
                {
                    return Ok(Gathered::Larger(Box::new(Answer::resumed(ride, frames))));
                }
            }
            Step::Trailers(found) => trailers = Some(found),
            Step::Broken(outcome) => {
                drop(ride.fare.finish(End::free(outcome, 502)));
                ride.fare.observe();
                guard.0 = None;
                return Err(match outcome {
                    Outcome::UpstreamTimeout => Refusal::Upstream(super::upstream::Fault::FirstByteTimeout),
                    _ => Refusal::UpstreamCut,
                });
            }
            Step::End => {
                let (cost, reply) = ride.settle();
                ride.fare.acknowledged(reply).await;
                guard.0 = None;
                return Ok(Gathered::Whole { frames, trailers, cost });
            }
        }
    }
    Err(Refusal::Internal)
}

impl Answer {
    pub(super) fn new(ride: Ride) -> Answer {
        let worker = Rc::clone(ride.fare.worker());
        worker.shared.metrics.streams.inc();
        let length = match ride.meter {
            Meter::Stream(_) => None,
            Meter::Blind | Meter::Whole(_) => ride.left,
        };
        Answer {
            state: State::Flowing(ride),
            queue: SmallVec::new(),
            withheld: SmallVec::new(),
            trailers: None,
            length,
            worker,
        }
    }

    /// Goes on with an answer of which `read` was metered already.
    fn resumed(ride: Ride, read: SmallVec<[Bytes; 2]>) -> Answer {
        let mut answer = Answer::new(ride);
        let size: usize = read.iter().map(Bytes::len).sum();
        answer.length = answer.length.map(|left| left + size as u64);
        answer.queue = read;
        // The last piece of a whole answer waits for what follows it.
        answer.withheld.extend(answer.queue.pop());
        answer
    }

    pub(super) fn length(&self) -> Option<u64> {
        self.length
    }

    pub(super) fn is_over(&self) -> bool {
        let done = matches!(self.state, State::Over | State::Ending) && self.trailers.is_none();
        done && self.queue.is_empty()
    }

    pub(super) fn poll_frame(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        loop {
            if let Some(data) = self.next_queued() {
                return Poll::Ready(Some(Ok(Frame::data(data))));
            }
            match &mut self.state {
                State::Flowing(ride) => {
                    let step = ready!(ride.poll_step(context));
                    self.step(step);
                }
                State::Extending(extension) => {
                    let Some(future) = extension else { return self.over() };
                    let (ride, extended) = ready!(future.as_mut().poll(context));
                    *extension = None;
                    self.extended(ride, extended);
                }
                State::Settling(ride, reply, timer) => {
                    ready!(poll_acknowledged(ride, reply, timer, context));
                    self.acknowledged();
                }
                State::Ending => {
                    if let Some(trailers) = self.trailers.take() {
                        return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
                    }
                    return self.over();
                }
                State::Cutting => {
                    self.state = State::Over;
                    return Poll::Ready(Some(Err(Cut)));
                }
                State::Over => return Poll::Ready(None),
            }
        }
    }

    fn over(&mut self) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        self.state = State::Over;
        Poll::Ready(None)
    }

    fn next_queued(&mut self) -> Option<Bytes> {
        while !self.queue.is_empty() {
            let data = self.queue.remove(0);
            if !data.is_empty() {
                self.length = self.length.map(|left| left.saturating_sub(data.len() as u64));
                return Some(data);
            }
        }
        None
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Data(data) => self.data(data),
            Step::Trailers(trailers) => {
                self.trailers = Some(trailers);
                self.conclude();
            }
            Step::End => self.conclude(),
            Step::Broken(outcome) => self.broken(outcome),
        }
    }

    fn data(&mut self, data: Bytes) {
        let State::Flowing(ride) = &mut self.state else { return };
        match &mut ride.meter {
            Meter::Blind => self.queue.push(data),
            Meter::Whole(meter) => {
                meter.push(&data);
                // Each piece waits for the next: nobody has the whole of an answer before it is paid.
                self.queue.append(&mut self.withheld);
                self.withheld.push(data);
            }
            Meter::Stream(meter) => {
                self.queue.extend(meter.push(data));
                if meter.ended() {
                    self.conclude();
                } else if ride.outgrown().is_some() {
                    self.extend();
                }
                return;
            }
        }
        if ride.complete() {
            // The piece that completes a known length is an end in itself.
            if self.withheld.is_empty() {
                self.withheld.extend(self.queue.pop());
            }
            self.conclude();
        }
    }

    fn extend(&mut self) {
        let State::Flowing(mut ride) = std::mem::replace(&mut self.state, State::Over) else { return };
        // Until there is more, what outgrew the hold stays here.
        self.withheld.append(&mut self.queue);
        let extension = Box::pin(async move {
            let extended = ride.extend().await;
            (ride, extended)
        });
        self.state = State::Extending(Some(extension));
    }

    fn extended(&mut self, mut ride: Ride, extended: bool) {
        if extended {
            self.queue.append(&mut self.withheld);
            self.state = State::Flowing(ride);
            return;
        }
        self.withheld.clear();
        let end = match &mut ride.meter {
            Meter::Stream(meter) => meter.cut(),
            Meter::Blind | Meter::Whole(_) => Bytes::new(),
        };
        self.withheld.push(end);
        // Dropping the connection tells the upstream to stop.
        ride.lease = None;
        let reply = ride.settle_partly(Outcome::CreditsExhausted);
        self.state = State::Settling(ride, reply, None);
    }

    /// Everything came: settle, and let the rest go once that is acknowledged.
    fn conclude(&mut self) {
        let State::Flowing(mut ride) = std::mem::replace(&mut self.state, State::Over) else { return };
        if let Meter::Stream(meter) = &mut ride.meter {
            self.withheld.push(meter.end());
        }
        let (_, reply) = ride.settle();
        self.state = State::Settling(ride, reply, None);
    }

    fn acknowledged(&mut self) {
        let State::Settling(ride, ..) = std::mem::replace(&mut self.state, State::Ending) else { return };
        ride.fare.observe();
        self.streams_end();
        self.queue.append(&mut self.withheld);
        if ride.lease.is_some() {
            let tasks = ride.fare.worker().rides.clone();
            tasks.spawn(ride.linger());
        }
    }

    fn streams_end(&self) {
        self.worker.shared.metrics.streams.dec();
    }

    fn broken(&mut self, outcome: Outcome) {
        let State::Flowing(mut ride) = std::mem::replace(&mut self.state, State::Cutting) else { return };
        drop(ride.settle_partly(outcome));
        ride.fare.observe();
        self.streams_end();
        tracing::info!(request_id = %ride.fare.request_id(), outcome = outcome.as_str(), "an answer broke off");
    }
}

fn poll_acknowledged(
    ride: &Ride,
    reply: &mut Option<Reply>,
    timer: &mut Option<Pin<Box<Sleep>>>,
    context: &mut Context<'_>,
) -> Poll<()> {
    let Some(waiting) = reply else { return Poll::Ready(()) };
    let shared = &ride.fare.worker().shared;
    if let Poll::Ready(result) = Pin::new(waiting).poll(context) {
        if result.is_err() {
            shared.metrics.unacknowledged_answers.inc();
        }
        return Poll::Ready(());
    }
    let limit = Duration::from_millis(shared.config.ledger.settle_wait_ms);
    let timer = timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
    ready!(timer.as_mut().poll(context));
    shared.metrics.unacknowledged_answers.inc();
    Poll::Ready(())
}

impl Drop for Answer {
    fn drop(&mut self) {
        match std::mem::replace(&mut self.state, State::Over) {
            State::Flowing(ride) => {
                self.streams_end();
                ride.leave(true);
            }
            State::Extending(Some(extension)) => {
                self.streams_end();
                // The hold is on its way to the ledger and back: wait for it, then leave.
                self.worker.rides.spawn(async move {
                    let (ride, _) = extension.await;
                    ride.leave(true);
                });
            }
            State::Settling(..) => self.streams_end(),
            State::Extending(None) | State::Ending | State::Cutting | State::Over => {}
        }
    }
}
