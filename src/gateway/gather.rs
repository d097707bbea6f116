//! Short answers, read whole before their head leaves.

use bytes::Bytes;
use http::HeaderMap;
use smallvec::SmallVec;

use super::answer::Answer;
use super::outcome::Outcome;
use super::refusal::Refusal;
use super::ride::{Meter, Ride, Step};
use super::upstream::Fault;
use crate::credits::Credits;

/// Whole answers up to this size are read before their head leaves: one write instead of two, and the cost in a header.
pub(super) const GATHER_BYTES: u64 = 64 * 1024;
/// And of so many pieces: a tiny piece may keep all of the read alive that brought it.
const GATHER_PIECES: usize = 256;

/// What came of reading an answer before its head leaves.
pub(super) enum Gathered {
    Whole {
        frames: SmallVec<[Bytes; 2]>,
        trailers: Option<HeaderMap>,
        cost: Credits,
    },
    /// It is larger than that, or in more pieces; what was read is in the queue.
    Larger(Box<Answer>),
}

/// Dropped, leaves nothing unpaid.
struct Gathering(Option<Box<Ride>>);

impl Drop for Gathering {
    fn drop(&mut self) {
        if let Some(ride) = self.0.take() {
            ride.leave(false);
        }
    }
}

/// Reads a whole answer, up to [`GATHER_BYTES`], and settles it.
pub(super) async fn gather(ride: Box<Ride>) -> Result<Gathered, Refusal> {
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
                if (size > GATHER_BYTES || frames.len() > GATHER_PIECES)
                    && let Some(ride) = guard.0.take()
                {
                    return Ok(Gathered::Larger(Box::new(Answer::resumed(ride, frames))));
                }
            }
            Step::Trailers(found) => trailers = Some(found),
            Step::Broken(outcome) => {
                let refusal = match outcome {
                    Outcome::UpstreamTimeout => Refusal::Upstream(Fault::FirstByteTimeout),
                    _ => Refusal::UpstreamCut,
                };
                let refusal = ride.fare.refused(refusal);
                guard.0 = None;
                return Err(refusal);
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
