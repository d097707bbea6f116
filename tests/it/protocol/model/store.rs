//! The store: what a flush and a reopening write.

use super::ledger::{Account, Effect, Entry};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub(super) struct Cursor {
    pub(super) epoch: u8,
    pub(super) counter: u8,
    pub(super) reopening: bool,
    pub(super) mark: Option<(u8, u8, u8)>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(super) struct Store {
    pub(super) cursor: Cursor,
    pub(super) sessions: Vec<(u8, u8)>,
    pub(super) account: Account,
    pub(super) granted: i8,
    /// Charges by usage: how often each was written.
    pub(super) charged: Vec<u8>,
}

/// Of a session that is ended: no batch is numbered above it.
const ENDED: u8 = u8::MAX;

impl Store {
    pub(super) fn number(&self, session: u8) -> u8 {
        self.sessions.iter().find(|(id, _)| *id == session).map_or(0, |(_, number)| *number)
    }

    /// Whether the entry charges under a key that is charged.
    pub(super) fn has_key(&self, entry: &Entry, keyed: Option<u8>) -> bool {
        let Effect::Settle { usage, .. } = entry.effect else { return false };
        keyed == Some(usage) && self.charged[usize::from(usage)] > 0
    }

    pub(super) fn end(&mut self, session: u8) {
        self.sessions.retain(|(id, _)| *id != session);
        self.sessions.push((session, ENDED));
        self.sessions.sort_unstable();
    }

    pub(super) fn write(&mut self, entry: &Entry) {
        match entry.effect {
            Effect::Settle { usage, paid } => {
                self.charged[usize::from(usage)] += 1;
                // What does not fit becomes debt.
                let fits = (paid as i8).min(self.account.remaining);
                self.account.remaining -= fits;
                self.account.debt += 1 - fits;
            }
            Effect::Grant if self.account.change == 1 => {}
            Effect::Grant => {
                self.account.change = 1;
                self.account.remaining += 1;
                self.granted += 1;
            }
        }
        match self.sessions.iter_mut().find(|(id, _)| *id == entry.session) {
            Some((_, number)) => *number = entry.number.max(*number),
            None => self.sessions.push((entry.session, entry.number)),
        }
        self.sessions.sort_unstable();
    }
}
