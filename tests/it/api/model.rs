//! A stand-in for the ledger: the account model behind a lock, and a switch that takes it out of reach. For what the
//! faces do when the ledger is away, which no real ledger does on demand.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use faregate::bridge::StoreSource;
use faregate::ledger::account::{Account, Context};
use faregate::ledger::{
    AccountId, AccountSource, Act, Answer, Ledger, LedgerError, Op, RecordId, RecordState, Reply, SessionId, Status,
};
use faregate::store::SharedStore;
use tokio::sync::{Mutex, oneshot};

pub(crate) struct ModelLedger {
    source: Arc<StoreSource>,
    state: Arc<Mutex<State>>,
    down: AtomicBool,
}

#[derive(Default)]
struct State {
    accounts: HashMap<AccountId, Account>,
    records: HashMap<(AccountId, RecordId), RecordState>,
}

impl std::fmt::Debug for ModelLedger {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("ModelLedger")
    }
}

impl ModelLedger {
    pub(crate) fn new(store: SharedStore) -> Arc<ModelLedger> {
        Arc::new(ModelLedger {
            source: Arc::new(StoreSource::whole(store)),
            state: Arc::default(),
            down: AtomicBool::new(false),
        })
    }

    pub(crate) fn take_down(&self, down: bool) {
        self.down.store(down, Ordering::SeqCst);
    }
}

impl Ledger for ModelLedger {
    fn submit(&self, op: Op) -> Reply {
        if self.down.load(Ordering::SeqCst) {
            return Reply::now(Err(LedgerError::Unavailable));
        }
        let (sender, receiver) = oneshot::channel();
        let (source, state) = (self.source.clone(), self.state.clone());
        tokio::spawn(async move {
            let mut state = state.lock().await;
            let _ = sender.send(state.carry_out(&source, op).await);
        });
        Reply::Later(receiver)
    }

    fn status(&self) -> Status {
        if self.down.load(Ordering::SeqCst) { Status::Unavailable } else { Status::Ready }
    }
}

impl State {
    async fn carry_out(&mut self, source: &StoreSource, op: Op) -> Result<Answer, LedgerError> {
        let Op { account, act } = op;
        let record = match &act {
            Act::Charge { record, .. } => record.map(|key| key.id),
            Act::Hold { record, .. } => Some(record.id),
            Act::SettleHold { record, .. } | Act::ReleaseHold { record, .. } => Some(*record),
            _ => None,
        };
        let name = record.map(|id| (account.clone(), id));
        let mut kept = name.as_ref().and_then(|name| self.records.get(name).cloned());
        let mut loaded = None;
        if !self.accounts.contains_key(&account) {
            loaded = source.load(&account).await?;
            if loaded.is_none() {
                return Ok(Answer::NotLoaded);
            }
        }
        let mut events = Vec::new();
        let mut context = Context {
            account: &account,
            now: jiff::Timestamp::now().as_microsecond() as u64,
            session: SessionId(1),
            fenced: &|_| false,
            backlogged: false,
            record: &mut kept,
            events: &mut events,
        };
        if let Some(state) = loaded {
            self.accounts.insert(account.clone(), Account::load(&state, &mut context));
        }
        let answer = self.accounts.get_mut(&account).unwrap().apply(&act, &mut context);
        if let (Some(name), Some(kept)) = (name, kept) {
            self.records.insert(name, kept);
        }
        Ok(answer)
    }
}
