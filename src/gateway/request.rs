//! One request's life, from its first byte to its last. [`ride`] decides; everything else computes.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::FutureExt;
use http::header::{self, HeaderValue};
use http::{Method, Request, Response, StatusCode, Version};
use http_body::Body;
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use tower::ServiceExt;
use uuid::Uuid;

use super::answer::{self, Answer, GATHER_BYTES, Gathered, Meter, Ride};
use super::body::{Bounded, BoxError, Outgoing, ReadyBody};
use super::client_io::{Activity, InFlight};
use super::fare::{self, End, Errand, Fare, Pay, Ticket};
use super::forward::{self, Job, Payload};
use super::headers::{self, ConnectionOptions};
use super::id;
use super::meter::{self, AnswerMeter, Endpoint, Inspection, StreamMeter};
use super::outcome::Outcome;
use super::refusal::Refusal;
use super::route::{self, Route};
use super::upstream::Answered;
use super::websocket;
use super::worker::{Peer, Worker};
use crate::config::{ClientGone, RouteKind};
use crate::credits::Credits;
use crate::identity::principal::SharedPrincipal;
use crate::ledger::hold::{self, Ask};
use crate::pricing::{Price, Tokens};

/// Bodies that are not read for their content are kept up to this size, so that they can be sent again.
const KEPT_BODY_BYTES: u64 = 64 * 1024;

/// An answer's body; while it lives its connection is busy.
pub(super) struct Seated {
    body: Outgoing,
    _busy: InFlight,
}

impl Body for Seated {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, BoxError>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}

/// What is known of a request whatever becomes of it.
struct Passage {
    worker: Rc<Worker>,
    peer: Peer,
    id: Uuid,
    request_id: HeaderValue,
    created_at_ms: u64,
    began: Instant,
    /// Its head named two lengths.
    ambiguous: bool,
    route: Option<Rc<Route>>,
    anthropic: bool,
}

/// Answers a request, whatever happens.
pub(super) async fn answer(
    worker: Rc<Worker>,
    peer: Peer,
    activity: Arc<Activity>,
    request: Request<Incoming>,
) -> Result<Response<Seated>, std::convert::Infallible> {
    let chunked = request.headers().contains_key(header::TRANSFER_ENCODING);
    let (busy, ambiguous) = activity.begin(request.version() == Version::HTTP_2, chunked);
    let (id, created_at_ms) = worker.ids.next();
    let mut passage = Passage {
        request_id: id::header(id),
        began: Instant::now(),
        route: None,
        anthropic: false,
        worker,
        peer,
        id,
        created_at_ms,
        ambiguous,
    };
    let response = if route::under(request.uri().path(), &passage.worker.shared.config.api.prefix) {
        control(&passage, request).await
    } else {
        // The hook has counted a panic, and dropping has given back what was held.
        let ridden = AssertUnwindSafe(ride(&mut passage, request)).catch_unwind().await;
        ridden.unwrap_or(Err(Refusal::Internal)).unwrap_or_else(|refusal| passage.refuse(&refusal))
    };
    Ok(response.map(|body| Seated { body, _busy: busy }))
}

/// The control plane answers under its own prefix.
async fn control(passage: &Passage, request: Request<Incoming>) -> Response<Outgoing> {
    if let Err(wait) = passage.worker.shared.shed.check(passage.peer.address.ip()) {
        return Refusal::Shed(wait).answer(RouteKind::Http, false, passage.request_id.clone());
    }
    if passage.ambiguous {
        return Refusal::Framing.answer(RouteKind::Http, false, passage.request_id.clone());
    }
    let Ok(response) = passage.worker.shared.api.clone().oneshot(request.map(axum::body::Body::new)).await;
    response.map(Outgoing::Api)
}

impl Passage {
    fn refuse(&self, refusal: &Refusal) -> Response<Outgoing> {
        let outcome = refusal.outcome();
        let route = self.route.as_ref().map(|route| route.name.as_str());
        if !refusal.is_settled()
            && let Some(route) = &self.route
        {
            route.count(outcome);
        }
        let latency_ms = self.began.elapsed().as_millis() as u64;
        let status = refusal.status().as_u16();
        tracing::info!(request_id = %self.id, route, status, outcome = outcome.as_str(), reason = %refusal, latency_ms, "refused");
        let kind = self.route.as_ref().map_or(RouteKind::Http, |route| route.kind());
        refusal.answer(kind, self.anthropic, self.request_id.clone())
    }

    fn fare(
        &self,
        route: &Rc<Route>,
        who: &SharedPrincipal,
        ticket: Ticket,
        price: Price,
        named: Option<String>,
    ) -> Fare {
        let errand = Errand {
            request_id: self.id,
            client_request_id: named,
            created_at_ms: self.created_at_ms,
            began: self.began,
        };
        Fare::new(&self.worker, route, who, ticket, price, errand)
    }
}

/// The whole way of a request: what is refused, when it is paid, where it goes, how it is answered.
async fn ride(passage: &mut Passage, mut request: Request<Incoming>) -> Result<Response<Outgoing>, Refusal> {
    let worker = Rc::clone(&passage.worker);
    let route = Rc::clone(worker.routes.find(request.uri().path()).ok_or(Refusal::NoRoute)?);
    passage.route = Some(Rc::clone(&route));
    let endpoint = meter::classify(route.kind(), request.method(), &route.settings.prefix, request.uri().path());
    passage.anthropic = endpoint.speaks_anthropic();
    worker.shared.shed.check(passage.peer.address.ip()).map_err(Refusal::Shed)?;
    let options = well_formed(passage, &request)?;
    let upgrade = websocket::asked_for(request.method(), request.version(), request.headers());
    let client_side = upgrade.then(|| hyper::upgrade::on(&mut request));

    let who = match worker.shared.identity.cached(request.headers()) {
        Some(known) => known?,
        None => worker.shared.identity.authenticate(request.headers()).await?,
    };
    if upgrade && !(route.kind() == RouteKind::Http && route.settings.websocket) {
        return Err(Refusal::Upgrade);
    }
    let named = headers::client_request_id(request.headers());
    let (head, body) = request.into_parts();
    if body.size_hint().exact().is_some_and(|length| length > route.body.max_bytes as u64) {
        return Err(super::body::BodyFault::TooLarge.into());
    }
    let fixed = fixed_price(&route, endpoint)?;
    let unread = !endpoint.metered() || (fixed.is_some() && !route.settings.record_tokens);
    let token_limit = who.limits.tokens_per_minute > 0 && endpoint.metered();

    // What costs the same whatever the body says is taken before the body is read.
    let mut fare = None;
    if let Some(price) = fixed
        && (unread || !token_limit)
    {
        let ticket = if endpoint == Endpoint::Free {
            Ticket { pay: Pay::Free, fares: None }
        } else {
            fare::take(&worker, &route, &who, flat_ask(price, &who)).await?
        };
        fare = Some(passage.fare(&route, &who, ticket, price, named.clone()));
    }
    let (payload, inspection) = if unread {
        (unread_body(body, &route).await?, None)
    } else {
        let bytes = read_body(body, &route).await?;
        let inspection = Inspection::read(endpoint, &bytes, &worker.shared.config.metering)?;
        (Payload::Whole(bytes), Some(inspection))
    };
    let mut clamped = None;
    let mut fare = match (fare, &inspection) {
        (Some(fare), _) => fare,
        (None, Some(inspection)) => {
            let price = route.prices.price(inspection.model.as_deref()).ok_or(Refusal::UnknownModel)?;
            let ask = metered_ask(&price, inspection, &route, &who);
            let ticket = fare::take(&worker, &route, &who, ask).await?;
            let fare = passage.fare(&route, &who, ticket, price, named);
            clamped = clamp(&fare, ask, inspection)?;
            fare
        }
        (None, None) => return Err(Refusal::Internal),
    };
    let payload = match (payload, &inspection) {
        (Payload::Whole(bytes), Some(inspection)) => Payload::Whole(inspection.forward_body(bytes, clamped)),
        (payload, _) => payload,
    };
    if let Some(inspection) = &inspection {
        fare.describe(inspection.model.clone(), inspection.stream);
    }
    let path = head.uri.path_and_query().cloned().ok_or(Refusal::Path)?;
    let bodiless = head.method == Method::HEAD;
    let job = Job {
        method: head.method,
        path,
        version: head.version,
        headers: head.headers,
        options,
        body: payload,
        peer: passage.peer,
        request_id: passage.request_id.clone(),
        read: endpoint.metered() && !unread,
        upgrade: upgrade.then(|| HeaderValue::from_static("websocket")),
    };
    let reading = Reading { endpoint, inspection, clamped, bodiless };
    fare.forwarding();
    let (answered, fare) = Waiting::new(&route, job, fare, reading).await;
    let (mut fare, reading) = fare;
    let answered = match answered {
        Ok(answered) => answered,
        Err(refusal) => {
            fare.upstream_ended();
            drop(fare.finish(End::free(refusal.outcome(), refusal.status().as_u16())));
            fare.observe();
            return Err(Refusal::Settled(Box::new(refusal)));
        }
    };
    let status = answered.response.status();
    if is_our_fault(status, &answered, route.kind()) {
        let upstream = &answered.lease.upstream().target.name;
        tracing::warn!(request_id = %passage.id, upstream, %status, "the upstream does not accept our key");
        drop(fare.finish(End::free(Outcome::UpstreamRefusedKey, 502)));
        fare.observe();
        return Err(Refusal::Settled(Box::new(Refusal::UpstreamKey)));
    }
    if status == StatusCode::SWITCHING_PROTOCOLS {
        return match client_side {
            Some(client_side) => Ok(switch(passage, &route, fare, answered, client_side).await),
            None => Err(Refusal::Settled(Box::new(Refusal::Upstream(super::upstream::Fault::Garbled)))),
        };
    }
    deliver(passage, &route, fare, answered, reading).await
}

/// What no upstream shall see.
fn well_formed(passage: &Passage, request: &Request<Incoming>) -> Result<ConnectionOptions, Refusal> {
    if passage.ambiguous {
        return Err(Refusal::Framing);
    }
    // CONNECT asks for a tunnel, and TRACE for its own headers, which hold the upstream's key by then.
    if request.method() == Method::CONNECT || request.method() == Method::TRACE {
        return Err(Refusal::Method);
    }
    if route::escapes(request.uri().path()) {
        return Err(Refusal::Path);
    }
    // RFC 9110 §10.1.1: "A server that receives an Expect field value containing a member other than 100-continue MAY
    // respond with a 417 (Expectation Failed)".
    let mut expectations = request.headers().get_all(header::EXPECT).iter();
    if expectations.any(|value| !value.as_bytes().eq_ignore_ascii_case(b"100-continue")) {
        return Err(Refusal::Expectation);
    }
    ConnectionOptions::of(request.headers()).map_err(|_| Refusal::Connection)
}

/// The price that does not depend on the body; `None` where it does.
fn fixed_price(route: &Route, endpoint: Endpoint) -> Result<Option<Price>, Refusal> {
    match endpoint {
        Endpoint::Refused(why) => Err(why.into()),
        Endpoint::Free => Ok(Some(Price::flat(Credits::ZERO))),
        Endpoint::PerRequest | Endpoint::Unlisted => route.flat.map(Some).ok_or(Refusal::Unpriced),
        _ => Ok(route.flat),
    }
}

fn flat_ask(price: Price, who: &SharedPrincipal) -> Ask {
    let amount = price.cost(Tokens::default());
    Ask { amount, floor: amount, tokens: 0, limits: who.limits }
}

/// The most that a request may cost; where the route says so, as much of it as the balance affords.
fn metered_ask(price: &Price, inspection: &Inspection, route: &Route, who: &SharedPrincipal) -> Ask {
    let upper = inspection.upper_tokens(price, None);
    let amount = price.upper_bound(upper);
    let clamps = route.settings.clamp && price.metered();
    let floor = if clamps { price.upper_bound(inspection.upper_tokens(price, Some(1))).min(amount) } else { amount };
    Ask { amount, floor, tokens: upper.input.saturating_add(upper.output), limits: who.limits }
}

/// The output limit that what is held pays for, where that is less than what was asked.
fn clamp(fare: &Fare, ask: Ask, inspection: &Inspection) -> Result<Option<u64>, Refusal> {
    let Some(held) = fare.held().filter(|held| *held < ask.amount) else { return Ok(None) };
    match inspection.affordable_limit(&fare.price, held) {
        Some(limit) => Ok(Some(limit)),
        None => {
            let refusal = hold::Refusal::Insufficient { available: held, held: Credits::ZERO };
            Err(Refusal::Ledger { refusal, asked: ask.amount })
        }
    }
}

async fn read_body(body: Incoming, route: &Route) -> Result<Bytes, Refusal> {
    if body.is_end_stream() {
        return Ok(Bytes::new());
    }
    Ok(Bounded::new(body, route.body).collect().await?)
}

/// A body whose content does not matter here: kept where it is small, otherwise passed through.
async fn unread_body(body: Incoming, route: &Route) -> Result<Payload, Refusal> {
    if body.is_end_stream() {
        return Ok(Payload::Empty);
    }
    let small = body.size_hint().exact().is_some_and(|length| length <= KEPT_BODY_BYTES);
    let body = Bounded::new(body, route.body);
    Ok(if small { Payload::Whole(body.collect().await?) } else { Payload::Stream(Some(Box::new(body))) })
}

/// An upstream's 401 or 403 to a request that carried our key.
fn is_our_fault(status: StatusCode, answered: &Answered, kind: RouteKind) -> bool {
    let refused = status == StatusCode::UNAUTHORIZED || status == StatusCode::FORBIDDEN;
    // An application of one's own that was given no key speaks to its users.
    refused && (kind != RouteKind::Http || answered.lease.upstream().target.key.is_some())
}

/// How an answer shall be read.
struct Reading {
    endpoint: Endpoint,
    inspection: Option<Inspection>,
    clamped: Option<u64>,
    bodiless: bool,
}

impl Reading {
    fn meter(&self, answered: &Answered) -> Meter {
        let Some(inspection) = &self.inspection else { return Meter::Blind };
        if !answered.response.status().is_success() {
            return Meter::Blind;
        }
        let content_type = answered.response.headers().get(header::CONTENT_TYPE);
        let is_stream = content_type.is_some_and(|value| {
            value.as_bytes().get(..17).is_some_and(|start| start.eq_ignore_ascii_case(b"text/event-stream"))
        });
        if is_stream {
            Meter::Stream(StreamMeter::new(self.endpoint, inspection).limited(self.clamped))
        } else {
            Meter::Whole(AnswerMeter::new(self.endpoint, inspection))
        }
    }

    /// The answer as something to be read, metered and paid. The response's own body stays behind empty.
    fn board(&self, mut fare: Fare, answered: Answered) -> (http::response::Parts, Ride) {
        let meter = self.meter(&answered);
        let Answered { response, lease } = answered;
        fare.answered_by(&lease.upstream().target.name);
        let (head, body) = response.into_parts();
        let covered = match &self.inspection {
            Some(inspection) if fare.price.metered() => inspection.upper_tokens(&fare.price, self.clamped).output,
            _ => u64::MAX,
        };
        let idle = Duration::from_millis(lease.upstream().target.settings.idle_timeout_ms);
        let left = body.size_hint().exact();
        let status = head.status.as_u16();
        let lease = Some(lease);
        (head, Ride { body, lease, meter, fare, status, idle, timer: None, covered, left })
    }
}

type Forwarded = Pin<Box<dyn Future<Output = Result<Answered, Refusal>>>>;

/// A request that waits for the head of its answer. Where the client leaves meanwhile and the route drains, the wait
/// goes on without it.
struct Waiting {
    future: Option<Forwarded>,
    rest: Option<(Fare, Reading)>,
}

impl Waiting {
    fn new(route: &Rc<Route>, job: Job, fare: Fare, reading: Reading) -> Waiting {
        let future = Box::pin(forward::forward(Rc::clone(route), job));
        Waiting { future: Some(future), rest: Some((fare, reading)) }
    }
}

impl Future for Waiting {
    type Output = (Result<Answered, Refusal>, (Fare, Reading));

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
                        drop(fare.finish(End::free(refusal.outcome(), refusal.status().as_u16())));
                    }
                }
            });
        }
    }
}

/// Hands an answer to the client: at once where it is short or has no body, as it comes where not.
async fn deliver(
    passage: &Passage,
    route: &Route,
    fare: Fare,
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
        (Some(length), _) => length <= GATHER_BYTES,
        (None, Meter::Whole(_)) => true,
        (None, Meter::Blind | Meter::Stream(_)) => false,
    };
    let mut cost = None;
    let body = if bodiless || short {
        match answer::gather(ride).await? {
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
    headers::annotate(&mut head.headers, route.kind(), passage.request_id.clone(), fares.as_ref(), cost);
    head.extensions.clear();
    // The client's own version is hyper's business.
    head.version = Version::HTTP_11;
    Ok(Response::from_parts(head, body))
}

/// Both sides change protocols: paid now, per request, then joined.
async fn switch(
    passage: &Passage,
    route: &Route,
    mut fare: Fare,
    mut answered: Answered,
    client_side: OnUpgrade,
) -> Response<Outgoing> {
    let target = &answered.lease.upstream().target;
    let idle = Duration::from_millis(target.settings.idle_timeout_ms);
    fare.answered_by(&target.name);
    fare.upstream_ended();
    let cost = fare.price.cost(Tokens::default());
    let reply = fare.finish(End { outcome: Outcome::Ok, status: 101, cost, tally: None });
    fare.acknowledged(reply).await;
    let upstream_side = hyper::upgrade::on(&mut answered.response);
    passage.worker.rides.spawn(websocket::tunnel(client_side, upstream_side, idle));
    let (mut head, _) = answered.response.into_parts();
    headers::strip_answer(&mut head.headers, route.kind(), false);
    head.headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    head.headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers::annotate(&mut head.headers, route.kind(), passage.request_id.clone(), fare.fares.as_ref(), Some(cost));
    head.extensions.clear();
    Response::from_parts(head, Outgoing::Empty)
}
