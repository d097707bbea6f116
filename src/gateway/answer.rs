//! An upstream's answer on its way to the client: metered as it passes, its end withheld until the settle is
//! acknowledged, and paid once whoever leaves first.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http_body::Frame;
use smallvec::SmallVec;
use tokio::time::Sleep;

use super::common::Worker;
use super::outcome::Outcome;
use super::ride::{Meter, Ride, Step};
use crate::ledger::Reply;

type Extension = Pin<Box<dyn Future<Output = (Box<Ride>, bool)>>>;

enum State {
    Flowing(Box<Ride>),
    /// The stream outgrew its hold and waits for more.
    Extending(Option<Extension>),
    /// Everything was said but the last; that waits for the acknowledgement.
    Settling(Box<Ride>, Option<Reply>, Option<Pin<Box<Sleep>>>),
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

impl Answer {
    pub(super) fn new(ride: Box<Ride>) -> Answer {
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
    pub(super) fn resumed(ride: Box<Ride>, read: SmallVec<[Bytes; 2]>) -> Answer {
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

    fn extended(&mut self, mut ride: Box<Ride>, extended: bool) {
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
        ride.rest.cut();
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
        if ride.rest.is_open() {
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
