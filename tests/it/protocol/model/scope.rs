//! How far an exploration goes, and which guards stand.

pub(in super::super) const WORKERS: usize = 2;

/// How far one exploration goes.
#[derive(Debug, Clone, Copy)]
pub(in super::super) struct Scope {
    /// Reserve-and-settle pairs, by worker.
    pub(in super::super) requests: [u8; WORKERS],
    /// Of a grant beyond the first.
    pub(in super::super) change: bool,
    pub(in super::super) losses: u8,
    /// Replies that get lost after the script has run.
    pub(in super::super) lost_replies: u8,
    /// Workers, reopeners and flushers that die. A dead worker stays dead; the others begin again from nothing.
    pub(in super::super) crashes: u8,
    pub(in super::super) fences: u8,
    /// The charge with an Idempotency-Key that a client sends, to each of these workers.
    pub(in super::super) keyed: [bool; WORKERS],
    /// Usage that a worker remembers before it takes no new work.
    pub(in super::super) ring_max: usize,
    /// What a promotion or an old file brings may be older than another loss.
    pub(in super::super) old_returns: bool,
    pub(in super::super) flushers: usize,
    pub(in super::super) reopeners: usize,
    pub(in super::super) guards: Guards,
}

/// What makes it right; each can be left out, to see that it is missed.
#[derive(Debug, Clone, Copy)]
pub(in super::super) struct Guards {
    /// Workers remember what was acknowledged until it is flushed.
    pub(in super::super) ring: bool,
    /// They charge again only what is numbered above the session's stored number.
    pub(in super::super) stored_number: bool,
    /// A worker that is fenced looks whether the batch under way is in the store all the same.
    pub(in super::super) fenced: bool,
    /// A reopening flushes only entries numbered above it.
    pub(in super::super) survivors: bool,
    /// It closes the shard before it reads what survived.
    pub(in super::super) close: bool,
    /// The closed shard stands in the epoch that is closed, also where it stood in an earlier one.
    pub(in super::super) binding: bool,
    /// It raises the store's epoch before it writes, so that a flusher's write under way fails.
    pub(in super::super) raise: bool,
    /// The flusher compares the entry at its cursor with the one it wrote.
    pub(in super::super) mark: bool,
    /// A batch applies only where the entries are that its worker has seen.
    pub(in super::super) seen: bool,
    /// A worker that went on after a fence makes sure that its new session stands in the history of the fenced one.
    pub(in super::super) same_history: bool,
    /// What a worker claims of sessions ends them in the store: no old history adds to them.
    pub(in super::super) ended_sessions: bool,
    /// A key that an epoch after the first does not have is looked up in the store.
    pub(in super::super) recall: bool,
    /// What the store said of a key counts in the epoch in which it was asked.
    pub(in super::super) recall_epoch: bool,
    /// What is claimed of a charge with a key has the key.
    pub(in super::super) claimed_key: bool,
    /// What survived is not charged where the store has its key.
    pub(in super::super) record_once: bool,
    /// A worker whose memory is full takes no new work.
    pub(in super::super) ring_bound: bool,
}

pub(in super::super) const ALL: Guards = Guards {
    ring: true,
    stored_number: true,
    fenced: true,
    survivors: true,
    close: true,
    binding: true,
    raise: true,
    mark: true,
    seen: true,
    same_history: true,
    ended_sessions: true,
    recall: true,
    recall_epoch: true,
    claimed_key: true,
    record_once: true,
    ring_bound: true,
};
