//! One request's life, from its first byte to its last. [`ride`] decides; everything else computes.

use std::convert::Infallible;
use std::future::Future;
use std::net::IpAddr;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use futures_util::FutureExt;
use http::header::{self, HeaderValue};
use http::request::Parts;
use http::{Method, Request, Response, StatusCode, Version};
use http_body::Body;
use hyper::body::Incoming;
use tower::ServiceExt;
use uuid::Uuid;

use super::ask::{self, Terms};
use super::body::{BodyFault, Bounded, BoxError};
use super::client_io::{Activity, InFlight};
use super::common::{Peer, Worker};
use super::delivery::{self, Reading, Waiting};
use super::fare::{self, Errand, Fare, Ticket};
use super::forward::{Job, Payload};
use super::headers::{self, ConnectionOptions};
use super::http2::Streams;
use super::id;
use super::memory::{BodyMemory, Kept};
use super::meter::{self, Inspection};
use super::outgoing::Outgoing;
use super::pool::Answered;
use super::refusal::Refusal;
use super::route::{self, Route};
use super::upstream::Fault;
use super::websocket;
use crate::config::{Mode, RouteKind};
use crate::credits::Credits;
use crate::identity::principal::SharedPrincipal;
use crate::ledger::hold::Ask;
use crate::limits::ClientAddress;
use crate::pricing::Price;
use crate::telemetry::traces::Seed;

/// Bodies that are not read for their content are kept up to this size, so that they can be sent again.
const KEPT_BODY_BYTES: u64 = 64 * 1024;

/// An answer's body; while it lives its connection is busy.
pub(super) struct Seated {
    body: Outgoing,
    /// Of an HTTP/2 connection.
    streams: Option<Streams>,
    _busy: InFlight,
}

impl Body for Seated {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, BoxError>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        match (&self.streams, &polled) {
            (Some(streams), Poll::Ready(Some(Ok(_)))) => streams.gave(),
            (Some(streams), _) => streams.asked(),
            (None, _) => {}
        }
        polled
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

type Answering = Pin<Box<dyn Future<Output = Result<Response<Seated>, Infallible>>>>;

/// Answers a request, whatever happens. Boxed: hyper keeps the room for it for as long as the connection lasts, and a
/// stream may last for hours.
pub(super) fn answer(
    worker: Rc<Worker>,
    peer: Peer,
    activity: Arc<Activity>,
    streams: Option<Streams>,
    request: Request<Incoming>,
) -> Answering {
    Box::pin(answered(worker, peer, activity, streams, request))
}

async fn answered(
    worker: Rc<Worker>,
    peer: Peer,
    activity: Arc<Activity>,
    streams: Option<Streams>,
    request: Request<Incoming>,
) -> Result<Response<Seated>, Infallible> {
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
    let (path, config) = (request.uri().path(), &passage.worker.shared.config);
    let ours =
        route::under(path, &config.api.prefix) || (config.page.enabled && route::under(path, &config.page.prefix));
    let origins = passage.worker.shared.origins.as_ref();
    // The API has its own layer for this.
    let asked = origins.filter(|_| !ours).map(|origins| origins.asked(request.method(), request.headers()));
    let mut response = if ours {
        // Boxed, as below, so that neither carries the other's weight.
        Box::pin(control(&passage, request)).await
    } else if asked.as_ref().is_some_and(|asked| asked.preflight) {
        passage.preflight(&request)
    } else {
        // The hook has counted a panic, and dropping has given back what was held.
        let ridden = AssertUnwindSafe(Box::pin(ride(&mut passage, request))).catch_unwind().await;
        ridden.unwrap_or(Err(Refusal::Internal)).unwrap_or_else(|refusal| passage.refuse(&refusal))
    };
    if let Some(asked) = asked {
        asked.answer(response.headers_mut());
    }
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        activity.becomes_tunnel();
    }
    if let Outgoing::Metered(_) = response.body() {
        activity.spare();
    }
    Ok(response.map(|body| Seated { body, streams, _busy: busy }))
}

/// The control plane answers under its own prefix.
async fn control(passage: &Passage, mut request: Request<Incoming>) -> Response<Outgoing> {
    let shared = &passage.worker.shared;
    let address = passage.client(&request);
    let shed = shared.shed.check(address).map_err(Refusal::Shed);
    if let Err(refusal) = shed.and(if passage.ambiguous { Err(Refusal::Framing) } else { Ok(()) }) {
        let mut response = refusal.answer(RouteKind::Http, false, passage.request_id.clone()).map(Outgoing::text);
        if let Some(origins) = &shared.origins {
            origins.asked(request.method(), request.headers()).answer(response.headers_mut());
        }
        return response;
    }
    request.extensions_mut().insert(ClientAddress(address));
    let Ok(response) = passage.worker.shared.api.clone().oneshot(request.map(axum::body::Body::new)).await;
    response.map(Outgoing::Api)
}

impl Passage {
    /// Whence it comes, past our own proxies.
    fn client(&self, request: &Request<Incoming>) -> IpAddr {
        self.worker.shared.proxies.client(self.peer.address.ip(), request.headers())
    }

    /// A browser asks whether it may ask. It sends no credentials with that, so no upstream hears of it.
    fn preflight(&self, request: &Request<Incoming>) -> Response<Outgoing> {
        if let Err(wait) = self.worker.shared.shed.check(self.client(request)) {
            return self.refuse(&Refusal::Shed(wait));
        }
        let mut response = Response::new(Bytes::new());
        *response.status_mut() = StatusCode::NO_CONTENT;
        headers::annotate(response.headers_mut(), RouteKind::Http, self.request_id.clone(), None, None);
        response.map(Outgoing::text)
    }

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
        if matches!(refusal, Refusal::Shed(_)) {
            // Shedding is for floods, and a line for each would be one more; the metrics count them.
            tracing::debug!(request_id = %self.id, route, "shed");
        } else {
            tracing::info!(request_id = %self.id, route, status, outcome = outcome.as_str(), reason = %refusal, latency_ms, "refused");
        }
        let kind = self.route.as_ref().map_or(RouteKind::Http, |route| route.kind());
        refusal.answer(kind, self.anthropic, self.request_id.clone()).map(Outgoing::text)
    }

    fn fare(&self, route: &Rc<Route>, who: &SharedPrincipal, ticket: Ticket, price: Price, head: &Parts) -> Box<Fare> {
        let errand = Errand {
            request_id: self.id,
            client_request_id: headers::client_request_id(&head.headers),
            created_at_ms: self.created_at_ms,
            began: self.began,
            trace: self.trace(route, head),
        };
        Fare::new(&self.worker, route, who, ticket, price, errand)
    }

    /// What its trace begins with, where it is traced.
    fn trace(&self, route: &Route, head: &Parts) -> Option<Box<Seed>> {
        let parent = self.worker.shared.metrics.spans.wants(&head.headers, self.id.as_u128())?;
        let endpoint = meter::classify(route.kind(), &head.method, &route.settings.prefix, head.uri.path());
        let operation = endpoint.operation();
        let provider = operation.map(|_| if endpoint.speaks_anthropic() { "anthropic" } else { "openai" });
        Some(Box::new(Seed { parent, operation, provider }))
    }

    fn job(
        &self,
        head: Parts,
        options: ConnectionOptions,
        body: Payload,
        read: bool,
        upgrade: bool,
    ) -> Result<Job, Refusal> {
        Ok(Job {
            method: head.method,
            path: head.uri.path_and_query().cloned().ok_or(Refusal::Path)?,
            version: head.version,
            headers: head.headers,
            options,
            body,
            peer: self.peer,
            request_id: self.request_id.clone(),
            read,
            upgrade: upgrade.then(|| HeaderValue::from_static("websocket")),
        })
    }
}

/// A request on its way to a fare, by how payment is taken of its user.
struct Boarding<'a> {
    passage: &'a Passage,
    route: &'a Rc<Route>,
    who: &'a SharedPrincipal,
    mode: Mode,
    head: &'a Parts,
}

impl Boarding<'_> {
    /// When it is paid, and whether it is read. Without enforcement what has no price rides, too.
    fn terms(&self, endpoint: meter::Endpoint) -> Result<(Terms, bool), Refusal> {
        ask::permitted(endpoint, self.who)?;
        if self.mode == Mode::Off {
            return Ok((Terms::Free, endpoint.metered() && ask::by_model(self.who)));
        }
        Ok(self.spared(ask::terms(self.route, endpoint, self.who))?.unwrap_or((Terms::Free, false)))
    }

    fn free(&self) -> Result<Ticket, Refusal> {
        match self.mode {
            Mode::On => fare::free(&self.passage.worker, self.route),
            Mode::Off | Mode::Shadow => Ok(fare::unmetered(&self.passage.worker)),
        }
    }

    async fn take(&self, ask: Ask) -> Result<Ticket, Refusal> {
        let worker = &self.passage.worker;
        match self.mode {
            Mode::On => fare::take(worker, self.route, self.who, ask, self.passage.id).await,
            Mode::Off => Ok(fare::unmetered(worker)),
            Mode::Shadow => {
                let (ticket, refusal) = fare::try_out(worker, self.who, ask, self.passage.id).await;
                if let Some(refusal) = refusal {
                    self.would_refuse(&refusal);
                }
                Ok(ticket)
            }
        }
    }

    fn unmetered(&self) -> Box<Fare> {
        let ticket = fare::unmetered(&self.passage.worker);
        self.passage.fare(self.route, self.who, ticket, Price::flat(Credits::ZERO), self.head)
    }

    /// The fare by what the body says, and the output limit that it pays for.
    async fn late(&self, inspection: &Inspection) -> Result<(Box<Fare>, Option<u64>), Refusal> {
        let listed = if self.route.flat.is_none() { inspection.as_listed().map_err(Refusal::from) } else { Ok(()) };
        let price = || self.route.prices.price(inspection.model.as_deref()).ok_or(Refusal::UnknownModel);
        let Some(price) = self.spared(listed.and_then(|()| price()))? else { return Ok((self.unmetered(), None)) };
        let ask = ask::metered(&price, inspection, self.route, self.who);
        let ticket = self.take(ask).await?;
        let fare = self.passage.fare(self.route, self.who, ticket, price, self.head);
        let clamped = if self.mode == Mode::On { ask::clamp(&fare, ask, inspection)? } else { None };
        Ok((fare, clamped))
    }

    /// What a key may ask for is its owner's word, whether or not payment is enforced. A body that names no model, or
    /// cannot be read, is for none of the key's.
    fn allowed(&self, inspection: Option<&Inspection>) -> Result<(), Refusal> {
        let model = inspection.and_then(|inspection| inspection.model.as_deref());
        match &self.who.scope {
            Some(scope) if !scope.allows(model) => Err(Refusal::ModelNotAllowed),
            Some(_) | None => Ok(()),
        }
    }

    /// A refusal that is only for payment's sake: `None`, counted, where payment is not enforced.
    fn spared<T>(&self, result: Result<T, Refusal>) -> Result<Option<T>, Refusal> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(refusal) if self.mode == Mode::On => Err(refusal),
            Err(refusal) => {
                self.would_refuse(&refusal);
                Ok(None)
            }
        }
    }

    fn would_refuse(&self, refusal: &Refusal) {
        self.passage.worker.would_refuse(self.passage.id, self.route, refusal.outcome().as_str(), refusal);
    }
}

/// The whole way of a request: what is refused, when it is paid, where it goes, how it is answered.
async fn ride(passage: &mut Passage, mut request: Request<Incoming>) -> Result<Response<Outgoing>, Refusal> {
    let worker = Rc::clone(&passage.worker);
    let found = worker.route(request.uri().path());
    passage.route.clone_from(&found);
    let address = passage.client(&request);
    worker.shared.shed.check(address).map_err(Refusal::Shed)?;
    let route = found.ok_or(Refusal::NoRoute)?;
    let endpoint = meter::classify(route.kind(), request.method(), &route.settings.prefix, request.uri().path());
    passage.anthropic = endpoint.speaks_anthropic();
    let options = well_formed(passage, &request)?;
    let who = match worker.shared.identity.cached(request.headers()) {
        Some(Ok(known)) => known,
        // Also who was refused a moment ago: that is counted.
        _ => Box::pin(worker.shared.identity.authenticate_from(request.headers(), Some(address))).await?,
    };
    let upgrade = websocket::asked_for(request.method(), request.version(), request.headers());
    if upgrade && !(route.kind() == RouteKind::Http && route.settings.websocket) {
        return Err(Refusal::Upgrade);
    }
    let client_side = upgrade.then(|| hyper::upgrade::on(&mut request));
    let (head, body) = request.into_parts();
    if body.size_hint().exact().is_some_and(|length| length > route.body.max_bytes as u64) {
        return Err(BodyFault::TooLarge.into());
    }
    let mode = worker.enforcement.get().mode_of(&who.account);
    let boarding = Boarding { passage, route: &route, who: &who, mode, head: &head };
    let (terms, mut read) = boarding.terms(endpoint)?;
    let early = match terms {
        Terms::Free => Some((boarding.free()?, Price::flat(Credits::ZERO))),
        Terms::Early(price) => Some((boarding.take(ask::flat(price, &who)).await?, price)),
        Terms::Late => None,
    };
    let early = early.map(|(ticket, price)| passage.fare(&route, &who, ticket, price, &head));
    let (payload, inspection) = if read {
        let kept = read_body(body, &route, &worker.shared.bodies).await?;
        let inspected = Inspection::read(endpoint, &kept.bytes, &worker.shared.config.metering);
        let inspection = boarding.spared(inspected.map_err(Refusal::from))?;
        boarding.allowed(inspection.as_ref())?;
        read = inspection.is_some();
        (Payload::Whole(kept), inspection)
    } else {
        (unread_body(body, &route, &worker.shared.bodies).await?, None)
    };
    let (mut fare, clamped) = match (early, &inspection) {
        (Some(fare), _) => (fare, None),
        (None, Some(inspection)) => boarding.late(inspection).await?,
        (None, None) if mode == Mode::On => return Err(Refusal::Internal),
        (None, None) => (boarding.unmetered(), None),
    };
    let bodiless = head.method == Method::HEAD;
    let payload = edited(payload, inspection.as_ref(), clamped, &mut fare);
    let job = passage.job(head, options, payload, read, upgrade)?;
    fare.forwarding();
    let reading = Reading { endpoint, inspection, clamped, bodiless };
    let (answered, (mut fare, reading)) = Waiting::new(&route, job, fare, reading).await;
    match answered {
        Err(refusal) => Err(fare.refused(refusal)),
        Ok(answered) if is_our_fault(&answered, route.kind()) => {
            let upstream = &answered.rest.target().name;
            tracing::warn!(request_id = %passage.id, upstream, "the upstream does not accept our key");
            Err(fare.refused(Refusal::UpstreamKey))
        }
        Ok(answered) if fare.price.metered() && delivery::is_encoded(&answered) => {
            let upstream = &answered.rest.target().name;
            tracing::warn!(request_id = %passage.id, upstream, "the upstream compresses its answer although asked not to");
            Err(fare.refused(Refusal::UpstreamEncoding))
        }
        Ok(answered) if answered.head.status == StatusCode::SWITCHING_PROTOCOLS => match client_side {
            Some(client_side) => {
                let id = passage.request_id.clone();
                Ok(Box::pin(delivery::switch(id, &route, fare, answered, client_side)).await)
            }
            None => Err(fare.refused(Fault::Garbled.into())),
        },
        Ok(answered) => delivery::deliver(passage.request_id.clone(), &route, fare, answered, reading).await,
    }
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

/// The body as it is forwarded, and what the usage row says of it.
fn edited(payload: Payload, inspection: Option<&Inspection>, clamped: Option<u64>, fare: &mut Fare) -> Payload {
    let Some(inspection) = inspection else { return payload };
    fare.describe(inspection.model.clone(), inspection.stream);
    match payload {
        Payload::Whole(kept) => Payload::Whole(kept.map(|bytes| inspection.forward_body(bytes, clamped))),
        other => other,
    }
}

async fn read_body(body: Incoming, route: &Route, memory: &BodyMemory) -> Result<Kept, Refusal> {
    if body.is_end_stream() {
        return Ok(Kept::default());
    }
    Ok(Bounded::new(body, route.body).collect(memory).await?)
}

/// A body whose content does not matter here: kept where it is small, otherwise passed through.
async fn unread_body(body: Incoming, route: &Route, memory: &BodyMemory) -> Result<Payload, Refusal> {
    if body.is_end_stream() {
        return Ok(Payload::Empty);
    }
    let small = body.size_hint().exact().is_some_and(|length| length <= KEPT_BODY_BYTES);
    let body = Bounded::new(body, route.body);
    Ok(if small { Payload::Whole(body.collect(memory).await?) } else { Payload::Stream(Some(Box::new(body))) })
}

/// An upstream's 401 or 403 to a request that carried our key.
fn is_our_fault(answered: &Answered, kind: RouteKind) -> bool {
    let refused = matches!(answered.head.status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN);
    // An application of one's own that was given no key speaks to its users.
    refused && (kind != RouteKind::Http || answered.rest.target().key.is_some())
}
