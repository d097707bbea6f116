//! Meters a stream while it passes.

use bytes::Bytes;
use smallvec::SmallVec;

use super::anthropic::Blocks;
use super::openai::Chunks;
use super::responses::{Events, image_event};
use super::sse::{Event, Piece, Splitter};
use super::usage::Progress;
use super::{Endpoint, Inspection, Tally};

/// Bytes that may go to the client now, in order.
pub type Output = SmallVec<[Bytes; 2]>;

/// What may follow the terminal event; more is dropped, because no client reads on.
const MAX_AFTER_END_BYTES: usize = 64 * 1024;

/// Meters one answer of `text/event-stream`. Bytes pass as they came, except for the chunk of usage that only we asked
/// for, and the terminal event, which waits for [`StreamMeter::end`]. An event that has begun is kept until it is whole,
/// up to `metering.max_answer_bytes`; a larger one passes unseen, and what it said is not counted.
#[derive(Debug)]
pub struct StreamMeter {
    splitter: Splitter,
    protocol: Protocol,
    progress: Progress,
    model: Box<str>,
    /// The terminal event and what followed it.
    withheld: Output,
    after_end_bytes: usize,
    stage: Stage,
    last_verdict: Verdict,
}

#[derive(Debug)]
enum Protocol {
    Chunks(Chunks),
    Events(Events),
    Images,
    Blocks(Blocks),
}

/// Where a stream stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Running,
    /// The terminal event is here.
    Ended,
    /// All that goes to the client has gone.
    Closed,
}

/// What becomes of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Pass,
    Hide,
    /// The terminal event: kept back.
    Last,
}

impl StreamMeter {
    pub fn new(endpoint: Endpoint, request: &Inspection) -> StreamMeter {
        StreamMeter {
            splitter: Splitter::new(request.max_answer_bytes),
            protocol: match endpoint {
                Endpoint::Messages => Protocol::Blocks(Blocks::default()),
                Endpoint::Responses => Protocol::Events(Events::default()),
                Endpoint::Images => Protocol::Images,
                _ => Protocol::Chunks(Chunks::new(endpoint, request.wants_usage)),
            },
            progress: Progress::new(request),
            model: request.model.as_deref().unwrap_or_default().into(),
            withheld: Output::new(),
            after_end_bytes: 0,
            stage: Stage::Running,
            last_verdict: Verdict::Pass,
        }
    }

    /// Where the forwarded limit (per choice) is not the request's own.
    pub fn limited(mut self, output_limit: Option<u64>) -> StreamMeter {
        if let Some(limit) = output_limit {
            self.progress.set_limit(limit);
        }
        self
    }

    /// Takes the next bytes from the upstream; answers what may go out now.
    pub fn push(&mut self, chunk: Bytes) -> Output {
        let mut passed = Passed { chunk: chunk.clone(), output: Output::new() };
        let mut rest = chunk;
        while self.stage != Stage::Closed {
            if self.stage == Stage::Ended {
                self.keep(rest);
                break;
            }
            let Some(piece) = self.splitter.next(&mut rest) else { break };
            self.take(piece, &mut passed);
        }
        passed.output
    }

    /// Whether the terminal event is here: nothing of use follows it.
    pub fn ended(&self) -> bool {
        self.stage != Stage::Running
    }

    /// The upstream's stream is over (or was left): the withheld rest.
    pub fn end(&mut self) -> Bytes {
        if self.stage == Stage::Closed {
            return Bytes::new();
        }
        let rest = self.splitter.rest();
        // The upstream may have left out the blank line after its last event; half an event says nothing.
        let hidden =
            self.stage == Stage::Running && Event::parse(&rest).is_whole() && self.judge(&rest) == Verdict::Hide;
        if !hidden && !rest.is_empty() {
            self.withheld.push(rest);
        }
        self.stage = Stage::Closed;
        let mut withheld = std::mem::take(&mut self.withheld);
        match withheld.len() {
            0 => Bytes::new(),
            1 => withheld.swap_remove(0),
            _ => withheld.concat().into(),
        }
    }

    /// The protocol's own ending for an answer that ran out of credits. Nothing may be pushed afterwards.
    pub fn cut(&mut self) -> Bytes {
        if self.stage != Stage::Running {
            return self.end();
        }
        self.stage = Stage::Closed;
        let tally = self.progress.tally();
        let mut ending = match &self.protocol {
            Protocol::Chunks(chunks) => chunks.cut(&self.model, self.progress.choices(), &tally),
            Protocol::Events(events) => events.cut(&self.model, &tally),
            Protocol::Blocks(blocks) => blocks.cut(&self.model, &tally),
            Protocol::Images => Vec::new(),
        };
        if self.splitter.within_oversized() {
            ending.splice(..0, *b"\n\n");
        }
        ending.into()
    }

    /// At most so many output tokens were delivered so far: compare with what is held, extend before it is reached.
    pub fn exposure(&self) -> u64 {
        self.progress.exposure()
    }

    /// What was used so far: as reported, or as estimated from what was delivered.
    pub fn tally(&self) -> Tally {
        self.progress.tally()
    }

    fn take(&mut self, piece: Piece, passed: &mut Passed) {
        match piece {
            Piece::Oversized(bytes) => {
                self.last_verdict = Verdict::Pass;
                passed.push(bytes);
            }
            Piece::LineFeed(bytes) => {
                if self.last_verdict == Verdict::Pass {
                    passed.push(bytes);
                }
            }
            Piece::Event(bytes) => match self.judge(&bytes) {
                Verdict::Pass => passed.push(bytes),
                Verdict::Hide => {}
                Verdict::Last => {
                    self.stage = Stage::Ended;
                    self.withheld.push(bytes);
                }
            },
        }
    }

    fn judge(&mut self, bytes: &[u8]) -> Verdict {
        let event = Event::parse(bytes);
        self.last_verdict = match &mut self.protocol {
            Protocol::Chunks(chunks) => chunks.event(&event, &mut self.progress),
            Protocol::Events(events) => events.event(&event, &mut self.progress),
            Protocol::Blocks(blocks) => blocks.event(&event, &mut self.progress),
            Protocol::Images => image_event(&event, &mut self.progress),
        };
        if self.last_verdict == Verdict::Last {
            self.progress.complete |= !self.progress.failed;
        }
        self.last_verdict
    }

    fn keep(&mut self, mut bytes: Bytes) {
        bytes.truncate(MAX_AFTER_END_BYTES.saturating_sub(self.after_end_bytes));
        self.after_end_bytes = self.after_end_bytes.saturating_add(bytes.len());
        if !bytes.is_empty() {
            self.withheld.push(bytes);
        }
    }
}

/// Collects what passes; neighbours in one chunk stay one slice of it.
struct Passed {
    chunk: Bytes,
    output: Output,
}

impl Passed {
    fn push(&mut self, bytes: Bytes) {
        if let Some(last) = self.output.last_mut()
            && let Some(begin) = offset(&self.chunk, last)
            && let Some(next) = offset(&self.chunk, &bytes)
            && begin.saturating_add(last.len()) == next
        {
            *last = self.chunk.slice(begin..next.saturating_add(bytes.len()));
            return;
        }
        self.output.push(bytes);
    }
}

/// Where a slice lies in its chunk; `None` where it is none of it.
fn offset(chunk: &Bytes, slice: &Bytes) -> Option<usize> {
    let offset = (slice.as_ptr() as usize).checked_sub(chunk.as_ptr() as usize)?;
    (offset.checked_add(slice.len())? <= chunk.len()).then_some(offset)
}

/// Writes one event.
pub(super) fn event(out: &mut Vec<u8>, name: Option<&str>, data: &serde_json::Value) {
    if let Some(name) = name {
        out.extend_from_slice(b"event: ");
        out.extend_from_slice(name.as_bytes());
        out.push(b'\n');
    }
    out.extend_from_slice(b"data: ");
    out.extend_from_slice(data.to_string().as_bytes());
    out.extend_from_slice(b"\n\n");
}

#[cfg(test)]
mod tests;
