//! From a request that was sent to an answer that the client reads.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::header::{self, HeaderValue};
use http::{Response, StatusCode, Version};
use hyper::upgrade::OnUpgrade;

use super::answer::Answer;
use super::fare::{End, Fare};
use super::forward::{self, Job};
use super::gather::{self, GATHER_BYTES, Gathered};
use super::headers;
use super::meter::{AnswerMeter, Endpoint, Inspection, StreamMeter};
use super::outcome::Outcome;
use super::outgoing::{Outgoing, ReadyBody};
use super::pool::Answered;
use super::refusal::Refusal;
use super::ride::{Meter, Ride};
use super::route::Route;
use super::websocket;
use crate::config::ClientGone;
use crate::credits::Credits;
use crate::pricing::Tokens;

/// How an answer shall be read.
pub(super) struct Reading {
    pub(super) endpoint: Endpoint,
    pub(super) inspection: Option<Inspection>,
    pub(super) clamped: Option<u64>,
    /// A HEAD's answer has a length and no body.
    pub(super) bodiless: bool,
}

impl Reading {
    fn meter(&self, answered: &Answered) -> Meter {
        let Some(inspection) = &self.inspection else { return Meter::Blind };
        if !answered.head.status.is_success() || is_encoded(answered) {
            return Meter::Blind;
        }
        let content_type = answered.head.headers.get(header::CONTENT_TYPE);
        let is_stream = content_type.is_some_and(|value| {
            value.as_bytes().get(..17).is_some_and(|start| start.eq_ignore_ascii_case(b"text/event-stream"))
        });
        if is_stream {
            Meter::Stream(StreamMeter::new(self.endpoint, inspection).limited(self.clamped))
        } else {
            Meter::Whole(AnswerMeter::new(self.endpoint, inspection).limited(self.clamped))
        }
    }

    /// The answer as something to be read, metered and paid.
    fn board(&self, mut fare: Box<Fare>, answered: Answered) -> (http::response::Parts, Box<Ride>) {
        let meter = self.meter(&answered);
        let Answered { head, rest } = answered;
        fare.answered_by(&rest.target().name);
        let covered = match &self.inspection {
            Some(inspection) if fare.price.metered() => inspection.upper_tokens(&fare.price, self.clamped).output,
            _ => u64::MAX,
        };
        let idle = Duration::from_millis(rest.target().settings.idle_timeout_ms);
        let left = rest.left();
        let status = head.status.as_u16();
        (head, Box::new(Ride { rest, meter, fare, status, idle, covered, left }))
    }
}

/// A successful answer in a coding that the request did not allow (RFC 9110 §12.5.3): nothing in it can be read.
pub(super) fn is_encoded(answered: &Answered) -> bool {
    let mut codings = answered.head.headers.get_all(header::CONTENT_ENCODING).iter();
    let named = codings.any(|value| !value.as_bytes().trim_ascii().eq_ignore_ascii_case(b"identity"));
    named && answered.head.status.is_success()
}

type Forwarded = Pin<Box<dyn Future<Output = Result<Answered, Refusal>>>>;

/// A request that waits for the head of its answer. Where the client leaves meanwhile and the route drains, the wait
/// goes on without it.
pub(super) struct Waiting {
    future: Option<Forwarded>,
    rest: Option<(Box<Fare>, Reading)>,
}

impl Waiting {
    pub(super) fn new(route: &Rc<Route>, job: Job, fare: Box<Fare>, reading: Reading) -> Waiting {
        let future = Box::pin(forward::forward(Rc::clone(route), job));
        Waiting { future: Some(future), rest: Some((fare, reading)) }
    }
}

impl Future for Waiting {
    type Output = (Result<Answered, Refusal>, (Box<Fare>, Reading));

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(future) = &mut self.future else { return Poll::Pending };
        let Poll::Ready(answered) = future.as_mut().poll(context) else { return Poll::Pending };
        self.future = None;
        match self.rest.take() {
            Some(rest) => Poll::Ready((answered, rest)),
            None => Poll::Pending,
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let (Some(future), Some((fare, reading))) = (self.future.take(), self.rest.take()) else { return };
        let worker = Rc::clone(fare.worker());
        if fare.route.settings.client_gone == ClientGone::Drain && !worker.closing() && !std::thread::panicking() {
            worker.rides.spawn(async move {
                match future.await {
                    Ok(answered) => reading.board(fare, answered).1.finish_reading().await,
                    Err(refusal) => {
                        let mut fare = fare;
                        drop(fare.refused(refusal));
                    }
                }
            });
        }
    }
}

/// Hands an answer to the client: at once where it is short or has no body, as it comes where not.
pub(super) async fn deliver(
    request_id: HeaderValue,
    route: &Route,
    fare: Box<Fare>,
    answered: Answered,
    reading: Reading,
) -> Result<Response<Outgoing>, Refusal> {
    let fares = fare.fares.clone();
    let flat = fare.price;
    let (mut head, ride) = reading.board(fare, answered);
    let length = ride.left;
    let bodiless = reading.bodiless || length == Some(0) || head.status == StatusCode::NOT_MODIFIED;
    headers::strip_answer(&mut head.headers, route.kind(), reading.bodiless || head.status == StatusCode::NOT_MODIFIED);
    let short = match (length, &ride.meter) {
        // A stream is read event by event, also where its length is known.
        (_, Meter::Stream(_)) | (None, Meter::Blind) => false,
        (Some(length), _) => length <= GATHER_BYTES,
        (None, Meter::Whole(_)) => true,
    };
    let mut cost = None;
    let body = if bodiless || short {
        match gather::gather(ride).await? {
            Gathered::Whole { frames, trailers, cost: paid } => {
                cost = Some(paid);
                if bodiless { Outgoing::Empty } else { Outgoing::Ready(ReadyBody::new(frames, trailers)) }
            }
            Gathered::Larger(answer) => Outgoing::Metered(answer),
        }
    } else {
        if matches!(ride.meter, Meter::Blind) {
            cost = Some(if head.status.as_u16() >= 400 { Credits::ZERO } else { flat.cost(Tokens::default()) });
        }
        Outgoing::Metered(Box::new(Answer::new(ride)))
    };
    headers::annotate(&mut head.headers, route.kind(), request_id, fares.as_ref(), cost);
    head.extensions.clear();
    // The client's own version is hyper's business.
    head.version = Version::HTTP_11;
    Ok(Response::from_parts(head, body))
}

/// Both sides change protocols: paid now, per request, then joined.
pub(super) async fn switch(
    request_id: HeaderValue,
    route: &Route,
    mut fare: Box<Fare>,
    answered: Answered,
    client_side: OnUpgrade,
) -> Response<Outgoing> {
    let target = answered.rest.target();
    let idle = Duration::from_millis(target.settings.idle_timeout_ms);
    fare.answered_by(&target.name);
    fare.upstream_ended();
    let cost = fare.price.cost(Tokens::default());
    let reply = fare.finish(End { outcome: Outcome::Ok, status: 101, cost, tally: None });
    fare.acknowledged(reply).await;
    let mut response = Response::from_parts(answered.head, ());
    let upstream_side = hyper::upgrade::on(&mut response);
    fare.worker().rides.spawn(websocket::tunnel(client_side, upstream_side, idle));
    let (mut head, ()) = response.into_parts();
    headers::strip_answer(&mut head.headers, route.kind(), false);
    head.headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    head.headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers::annotate(&mut head.headers, route.kind(), request_id, fare.fares.as_ref(), Some(cost));
    head.extensions.clear();
    Response::from_parts(head, Outgoing::Empty)
}
