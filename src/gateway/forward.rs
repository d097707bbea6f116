//! From a request that was paid for to the head of an answer: which upstream, how often, and when to give up.

use std::rc::Rc;
use std::time::Duration;

use http::header::{HeaderMap, HeaderValue};
use http::uri::PathAndQuery;
use http::{Method, StatusCode};

use super::body::{Bounded, ForwardBody, Progress};
use super::common::Peer;
use super::headers::{ConnectionOptions, Forwarding};
use super::memory::Kept;
use super::pool::Answered;
use super::refusal::Refusal;
use super::route::Route;
use super::upstream::{Fault, Outbound, Upstream};

/// Before the same upstream is tried again, for each time round.
const PAUSE: Duration = Duration::from_millis(50);

/// A request, kept so that it can be sent more than once.
pub(super) struct Job {
    pub(super) method: Method,
    pub(super) path: PathAndQuery,
    pub(super) version: http::Version,
    /// The client's own.
    pub(super) headers: HeaderMap,
    pub(super) options: ConnectionOptions,
    pub(super) body: Payload,
    pub(super) peer: Peer,
    pub(super) request_id: HeaderValue,
    /// The answer is read for its usage.
    pub(super) read: bool,
    /// The protocol to change to.
    pub(super) upgrade: Option<HeaderValue>,
}

/// A request's body, and whether it can be sent again.
#[derive(Debug)]
pub(super) enum Payload {
    Empty,
    Whole(Kept),
    /// Passes through unread, once.
    Stream(Option<Box<Bounded>>),
}

impl Payload {
    fn repeatable(&self) -> bool {
        match self {
            Payload::Empty | Payload::Whole(_) => true,
            Payload::Stream(body) => body.is_some(),
        }
    }

    fn send(&mut self) -> ForwardBody {
        match self {
            Payload::Empty => ForwardBody::Empty,
            Payload::Whole(kept) if kept.bytes.is_empty() => ForwardBody::Empty,
            Payload::Whole(kept) => ForwardBody::Full(Some(kept.bytes.clone())),
            Payload::Stream(body) => body.take().map_or(ForwardBody::Empty, ForwardBody::Streamed),
        }
    }

    /// What was not sent after all can be sent another time.
    fn restore(&mut self, unsent: Option<ForwardBody>) {
        if let (Payload::Stream(body), Some(ForwardBody::Streamed(unsent))) = (self, unsent) {
            *body = Some(unsent);
        }
    }

    fn progress(&self) -> Option<Rc<Progress>> {
        match self {
            Payload::Stream(Some(body)) => Some(body.progress()),
            _ => None,
        }
    }
}

/// How an attempt failed.
enum Failure {
    Fault(Fault),
    /// The upstream says that it cannot, and may another time.
    Answer(Box<Answered>),
}

/// Sends a request to the route's upstreams until one answers, within the route's retries and their budget. Whatever
/// happens in here, it is paid once.
pub(super) async fn forward(route: Rc<Route>, mut job: Job) -> Result<Answered, Refusal> {
    route.budget.earn();
    let progress = job.body.progress();
    let count = route.upstreams.len();
    let mut retries = 0;
    let (mut index, mut upstream) = pick(&route, 0)?;
    loop {
        let failure = match attempt(upstream, &route, &mut job).await {
            Ok(answered) => return Ok(answered),
            Err(failure) => failure,
        };
        if let Some(fault) = progress.as_ref().and_then(|progress| progress.fault()) {
            // The client's body failed, not the upstream.
            return Err(fault.into());
        }
        upstream.target.breaker.failed();
        let again = failure.may_pass() && retries < route.settings.max_retries && job.body.repeatable();
        if !again || !route.budget.spend() {
            return failure.outcome();
        }
        let Ok(next) = pick(&route, index + 1) else { return failure.outcome() };
        tracing::info!(upstream = upstream.target.name, route = route.name, reason = failure.reason(), "trying again");
        route.retries.inc();
        retries += 1;
        (index, upstream) = next;
        if retries as usize >= count {
            tokio::time::sleep(PAUSE * (retries / count.max(1) as u32)).await;
        }
    }
}

/// The first upstream from `start` on that is not left alone.
fn pick(route: &Route, start: usize) -> Result<(usize, &Rc<Upstream>), Refusal> {
    let count = route.upstreams.len();
    let mut soonest = Duration::MAX;
    for step in 0..count {
        let index = (start + step) % count;
        match route.upstreams[index].target.breaker.admits() {
            Ok(()) => return Ok((index, &route.upstreams[index])),
            Err(wait) => soonest = soonest.min(wait),
        }
    }
    Err(Refusal::UpstreamsDown(soonest))
}

async fn attempt(upstream: &Rc<Upstream>, route: &Route, job: &mut Job) -> Result<Answered, Failure> {
    let what = Forwarding {
        client: &job.headers,
        options: &job.options,
        kind: route.kind(),
        peer: job.peer.address.ip(),
        https: job.peer.https,
        version: job.version,
        request_id: &job.request_id,
        read: job.read,
        empty: matches!(job.body, Payload::Empty),
        upgrade: job.upgrade.as_ref(),
    };
    let outbound = Outbound { method: &job.method, path: &job.path, what, body: job.body.send() };
    match upstream.send(outbound).await {
        Ok(answered) if cannot_now(answered.head.status) => Err(Failure::Answer(Box::new(answered))),
        Ok(answered) => {
            upstream.target.breaker.succeeded();
            Ok(answered)
        }
        Err(failed) => {
            job.body.restore(failed.unsent);
            Err(Failure::Fault(failed.fault))
        }
    }
}

fn cannot_now(status: StatusCode) -> bool {
    matches!(status, StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT)
}

impl Failure {
    /// Whether another attempt might do better. One that ran out of time would run out of it again, and may still cost.
    fn may_pass(&self) -> bool {
        match self {
            Failure::Fault(fault) => matches!(fault, Fault::Connect | Fault::ConnectTimeout | Fault::Closed),
            Failure::Answer(_) => true,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Failure::Fault(fault) => fault.label(),
            Failure::Answer(_) => "status",
        }
    }

    /// What the client gets when this was the last attempt: the upstream's own word where there is one.
    fn outcome(self) -> Result<Answered, Refusal> {
        match self {
            Failure::Fault(fault) => Err(fault.into()),
            Failure::Answer(answered) => Ok(*answered),
        }
    }
}
