//! One span for each forwarded request, to an OpenTelemetry collector (OTLP over HTTP, as JSON), with the attributes of the
//! GenAI semantic conventions. Off unless `traces.endpoint` is set. A full queue drops spans and counts them: a request
//! never waits for its trace.

mod export;

use http::HeaderMap;
use prometheus::IntCounter;
use tokio::sync::mpsc::{self, Receiver, Sender};

pub use export::run;

use crate::credits::Credits;
use crate::usage::Usage;

/// Spans that wait for the exporter.
const MAX_WAITING: usize = 8_192;

/// Takes spans, or nothing while traces are off.
#[derive(Debug, Clone, Default)]
pub struct Spans(Option<Taker>);

#[derive(Debug, Clone)]
struct Taker {
    queue: Sender<Span>,
    sample_percent: u32,
    dropped: IntCounter,
}

/// What a request brings, and what it is.
#[derive(Debug, Clone)]
pub struct Seed {
    pub parent: Option<Parent>,
    /// `gen_ai.operation.name`, where it is one.
    pub operation: Option<&'static str>,
    /// `gen_ai.provider.name`: the protocol that is spoken.
    pub provider: Option<&'static str>,
}

/// The caller's span, from its `traceparent` (W3C Trace Context).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parent {
    pub trace: u128,
    pub span: u64,
    pub sampled: bool,
}

/// A request that has ended.
#[derive(Debug, Clone)]
pub struct Span {
    pub seed: Seed,
    pub usage: Usage,
    pub cost: Credits,
    pub outcome: &'static str,
}

impl Spans {
    /// `dropped` counts spans that found the queue full.
    pub fn new(sample_percent: u32, dropped: IntCounter) -> (Spans, Receiver<Span>) {
        let (queue, spans) = mpsc::channel(MAX_WAITING);
        (Spans(Some(Taker { queue, sample_percent, dropped })), spans)
    }

    /// Whether a request shall be traced: as its caller decided, else so many of a hundred.
    pub fn wants(&self, headers: &HeaderMap, request_id: u128) -> Option<Option<Parent>> {
        let taker = self.0.as_ref()?;
        let parent = Parent::read(headers);
        let wanted = match parent {
            Some(parent) => parent.sampled,
            // The last bytes of our ids are random.
            None => ((request_id & 0xffff_ffff) * 100) >> 32 < u128::from(taker.sample_percent),
        };
        wanted.then_some(parent)
    }

    pub fn note(&self, span: Span) {
        if let Some(taker) = &self.0
            && taker.queue.try_send(span).is_err()
        {
            taker.dropped.inc();
        }
    }
}

impl Parent {
    /// `00-<trace id>-<span id>-<flags>`. What is not of this form is no parent.
    fn read(headers: &HeaderMap) -> Option<Parent> {
        let text = headers.get("traceparent")?.to_str().ok()?;
        let mut parts = text.split('-');
        let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let hex = |part: &str, digits: usize| {
            let lower = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
            (part.len() == digits && part.bytes().all(lower)).then(|| u128::from_str_radix(part, 16).ok()).flatten()
        };
        let (version, flags) = (hex(version, 2)?, hex(flags, 2)?);
        let (trace, span) = (hex(trace, 32)?, u64::try_from(hex(span, 16)?).ok()?);
        // Later versions may say more behind the flags, the first may not.
        if version == 0xff || trace == 0 || span == 0 || (version == 0 && parts.next().is_some()) {
            return None;
        }
        Some(Parent { trace, span, sampled: flags & 1 == 1 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parent(text: &str) -> Option<Parent> {
        Parent::read(&HeaderMap::from_iter([(http::HeaderName::from_static("traceparent"), text.parse().unwrap())]))
    }

    #[test]
    fn parents_are_read_as_the_standard_says() {
        let known = parent("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01").unwrap();
        assert_eq!(known.trace, 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c);
        assert_eq!((known.span, known.sampled), (0xb7ad_6b71_6920_3331, true));
        assert!(!parent("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00").unwrap().sampled);
        for wrong in [
            "",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        ] {
            assert_eq!(parent(wrong), None, "{wrong}");
        }
        assert!(parent("01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more").is_some());
    }

    #[test]
    fn a_share_is_sampled_and_a_full_queue_drops() {
        let dropped = IntCounter::new("dropped", "Dropped").unwrap();
        let (spans, mut queue) = Spans::new(25, dropped.clone());
        let none = HeaderMap::new();
        let sampled = (0..100_u128).filter(|share| spans.wants(&none, (share << 32) | ((share << 32) / 100)).is_some());
        assert_eq!(sampled.count(), 25);
        assert!(Spans::default().wants(&none, 0).is_none());
        let seed = Seed { parent: None, operation: None, provider: None };
        let span = Span { seed, usage: Usage::default(), cost: Credits::ZERO, outcome: "ok" };
        for _ in 0..=MAX_WAITING {
            spans.note(span.clone());
        }
        assert_eq!(dropped.get(), 1);
        assert!(queue.try_recv().is_ok());
    }
}
