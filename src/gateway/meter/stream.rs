//! Meters a stream while it passes.

use bytes::Bytes;
use smallvec::SmallVec;

use super::{Endpoint, Inspection, Tally};

/// Bytes that may go to the client now, in order.
pub type Output = SmallVec<[Bytes; 2]>;

/// Meters one answer of `text/event-stream`. Bytes pass as they came, except for the chunk of usage that only we asked
/// for, and the terminal event, which waits for [`StreamMeter::end`].
#[derive(Debug)]
pub struct StreamMeter {
    tally: Tally,
}

impl StreamMeter {
    pub fn new(endpoint: Endpoint, request: &Inspection) -> StreamMeter {
        let _ = (endpoint, request);
        StreamMeter { tally: Tally::default() }
    }

    /// Where the forwarded limit (per choice) is not the request's own.
    pub fn limited(self, output_limit: Option<u64>) -> StreamMeter {
        let _ = output_limit;
        self
    }

    /// Takes the next bytes from the upstream; answers what may go out now.
    pub fn push(&mut self, chunk: Bytes) -> Output {
        smallvec::smallvec![chunk]
    }

    /// Whether the terminal event is here: nothing of use follows it.
    pub fn ended(&self) -> bool {
        self.tally.complete
    }

    /// The upstream's stream is over (or was left): the withheld rest.
    pub fn end(&mut self) -> Bytes {
        Bytes::new()
    }

    /// The protocol's own ending for an answer that ran out of credits. Nothing may be pushed afterwards.
    pub fn cut(&mut self) -> Bytes {
        Bytes::new()
    }

    /// At most so many output tokens were delivered so far: compare with what is held, extend before it is reached.
    pub fn exposure(&self) -> u64 {
        0
    }

    /// What was used so far: as reported, or as estimated from what was delivered.
    pub fn tally(&self) -> Tally {
        self.tally
    }
}
