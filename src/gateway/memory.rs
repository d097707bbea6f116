//! What request bodies may take of the memory together, and a request's share of it.
//!
//! A body is counted as it comes, not as it is announced: who announces much and sends little takes little.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::body::BodyFault;

/// Bytes are counted in pieces of this size.
const UNIT: usize = 1_024;
/// Bodies up to this size are not counted: a connection's own buffers take as much.
const UNCOUNTED_BYTES: usize = 16 * 1_024;
/// How long one body waits, in all, for others to make room.
const WAIT: Duration = Duration::from_secs(2);

/// The memory for request bodies that are kept whole, of a replica.
#[derive(Debug)]
pub(super) struct BodyMemory {
    free: Arc<Semaphore>,
    wait: Duration,
}

impl BodyMemory {
    pub(super) fn new(bytes: usize) -> BodyMemory {
        BodyMemory { free: Arc::new(Semaphore::new((bytes / UNIT).clamp(1, Semaphore::MAX_PERMITS))), wait: WAIT }
    }

    /// Nothing yet.
    pub(super) fn share(&self) -> Share<'_> {
        Share { memory: self, taken: None, covered: UNCOUNTED_BYTES, until: None }
    }
}

/// What one body takes, while it is read.
pub(super) struct Share<'a> {
    memory: &'a BodyMemory,
    taken: Option<OwnedSemaphorePermit>,
    covered: usize,
    /// When the wait is over.
    until: Option<Instant>,
}

impl Share<'_> {
    /// Makes room for a body of `bytes`, which will not outgrow `most`.
    pub(super) async fn cover(&mut self, bytes: usize, most: usize) -> Result<(), BodyFault> {
        if bytes <= self.covered {
            return Ok(());
        }
        // By doubling, so that a body of many pieces asks seldom.
        let wanted = bytes.saturating_mul(2).min(most).max(bytes);
        let missing =
            wanted.div_ceil(UNIT).saturating_sub(self.taken.as_ref().map_or(0, OwnedSemaphorePermit::num_permits));
        let missing = u32::try_from(missing).map_err(|_| BodyFault::TooLarge)?;
        let free = Arc::clone(&self.memory.free);
        let more = match Arc::clone(&free).try_acquire_many_owned(missing) {
            Ok(more) => more,
            Err(_) => {
                let until = *self.until.get_or_insert_with(|| Instant::now() + self.memory.wait);
                let waited = tokio::time::timeout_at(until, free.acquire_many_owned(missing)).await;
                waited.ok().and_then(Result::ok).ok_or(BodyFault::NoRoom)?
            }
        };
        match &mut self.taken {
            Some(taken) => taken.merge(more),
            none => *none = Some(more),
        }
        self.covered = wanted;
        Ok(())
    }

    /// The body that was read, with its share.
    pub(super) fn keep(self, bytes: Bytes) -> Kept {
        Kept { bytes, share: self.taken }
    }
}

/// A whole request body; its share of the memory goes back when it is dropped.
#[derive(Debug, Default)]
pub(super) struct Kept {
    pub(super) bytes: Bytes,
    share: Option<OwnedSemaphorePermit>,
}

impl Kept {
    /// The body as it is forwarded: about as large.
    pub(super) fn map(self, edit: impl FnOnce(Bytes) -> Bytes) -> Kept {
        Kept { bytes: edit(self.bytes), share: self.share }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: usize = 1_024;

    fn memory(bytes: usize, wait: Duration) -> BodyMemory {
        BodyMemory { wait, ..BodyMemory::new(bytes) }
    }

    #[tokio::test]
    async fn small_bodies_are_not_counted_and_large_ones_by_what_came() {
        let memory = memory(100 * KIB, Duration::ZERO);
        let free = || memory.free.available_permits();
        let mut small = memory.share();
        small.cover(16 * KIB, 16 * KIB).await.unwrap();
        assert_eq!(free(), 100);
        let mut one = memory.share();
        one.cover(17 * KIB, 60 * KIB).await.unwrap();
        assert_eq!(free(), 66);
        one.cover(34 * KIB, 60 * KIB).await.unwrap();
        assert_eq!(free(), 66);
        one.cover(34 * KIB + 1, 60 * KIB).await.unwrap();
        assert_eq!(free(), 40);
        let mut other = memory.share();
        assert_eq!(other.cover(50 * KIB, 50 * KIB).await, Err(BodyFault::NoRoom));
        // What is forwarded keeps the room, edited or not.
        let kept = one.keep(Bytes::from_static(b"body")).map(|bytes| bytes.slice(..1));
        assert_eq!(free(), 40);
        drop(kept);
        assert_eq!(free(), 100);
    }

    #[tokio::test]
    async fn who_waits_gets_what_others_give_back() {
        let memory = memory(64 * KIB, Duration::from_secs(60));
        let mut one = memory.share();
        one.cover(60 * KIB, 60 * KIB).await.unwrap();
        let mut other = memory.share();
        let (covered, ()) = tokio::join!(other.cover(50 * KIB, 50 * KIB), async { drop(one) });
        covered.unwrap();
        drop(other);
        assert_eq!(memory.free.available_permits(), 64);
    }

    #[tokio::test]
    async fn a_body_waits_once_for_all_of_its_pieces() {
        let memory = memory(64 * KIB, Duration::from_millis(50));
        let mut one = memory.share();
        one.cover(60 * KIB, 60 * KIB).await.unwrap();
        let mut other = memory.share();
        assert_eq!(other.cover(20 * KIB, 20 * KIB).await, Err(BodyFault::NoRoom));
        let until = other.until;
        assert_eq!(other.cover(20 * KIB, 20 * KIB).await, Err(BodyFault::NoRoom));
        assert!(until.is_some() && other.until == until);
    }
}
