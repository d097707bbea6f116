//! A real store that a test can stop, or make lie about a commit.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use faregate::ledger::{AccountId, AccountState, Micros, RecordId, RecordState};
use faregate::store::billing::*;
use faregate::store::notifications::{Delivered, Delivery, Marked, Notice, NotificationRow, Thresholds};
use faregate::store::reopenings::{SessionNumber, Standing};
use faregate::store::sessions::{SecretHash, Session};
use faregate::store::topups::{AutoTopup, Begun, Topup, TopupEnd, TopupTerms, Topups};
use faregate::store::*;
use tokio::sync::Semaphore;
use uuid::Uuid;

/// Delegates to the store within.
pub(crate) struct Faulty {
    inner: SharedStore,
    /// A flush needs a permit; without one it waits.
    open: Semaphore,
    /// So does a fold.
    fold: Semaphore,
    /// So many folds fail without effect.
    pub(crate) failing_folds: AtomicUsize,
    /// So many folds take effect and are reported as failed.
    pub(crate) lying_folds: AtomicUsize,
    /// So many flushes take effect and are reported as failed.
    lies: AtomicUsize,
    /// So many flushes fail without effect.
    failures: AtomicUsize,
    /// Flushes of more events than this fail without effect.
    pub(crate) most: AtomicUsize,
    /// So many loads fail.
    pub(crate) failing_loads: AtomicUsize,
    pub(crate) loads: AtomicU64,
    /// Loads of accounts whose names begin so fail.
    unloadable: Mutex<Option<String>>,
}

impl Faulty {
    pub(crate) fn new(inner: SharedStore) -> Faulty {
        Faulty {
            inner,
            open: Semaphore::new(Semaphore::MAX_PERMITS),
            fold: Semaphore::new(Semaphore::MAX_PERMITS),
            failing_folds: AtomicUsize::new(0),
            lying_folds: AtomicUsize::new(0),
            lies: AtomicUsize::new(0),
            failures: AtomicUsize::new(0),
            most: AtomicUsize::new(usize::MAX),
            failing_loads: AtomicUsize::new(0),
            loads: AtomicU64::new(0),
            unloadable: Mutex::new(None),
        }
    }

    pub(crate) fn stop(&self) {
        self.open.forget_permits(Semaphore::MAX_PERMITS);
    }

    pub(crate) fn go_on(&self) {
        self.open.add_permits(Semaphore::MAX_PERMITS - self.open.available_permits());
    }

    pub(crate) fn failing_loads_of(&self, prefix: &str) {
        *self.unloadable.lock().unwrap() = Some(prefix.to_owned());
    }

    pub(crate) fn stop_folding(&self) {
        self.fold.forget_permits(Semaphore::MAX_PERMITS);
    }

    pub(crate) fn fold_on(&self) {
        self.fold.add_permits(Semaphore::MAX_PERMITS - self.fold.available_permits());
    }

    pub(crate) fn lie(&self, times: usize) {
        self.lies.store(times, Ordering::SeqCst);
    }

    pub(crate) fn fail(&self, times: usize) {
        self.failures.store(times, Ordering::SeqCst);
    }
}

impl Faulty {
    async fn faults(&self, batch: &FlushBatch) -> StoreResult<()> {
        let _permit = self.open.acquire().await.expect("never closed");
        if batch.events.len() > self.most.load(Ordering::SeqCst) {
            return Err(StoreError::Unavailable("no answer within 5000 ms".into()));
        }
        if take(&self.failures) {
            return Err(StoreError::Unavailable("the disk is full".into()));
        }
        Ok(())
    }

    fn perhaps_lie(&self) -> StoreResult<()> {
        if take(&self.lies) {
            return Err(StoreError::Unavailable("the answer was lost".into()));
        }
        Ok(())
    }

    fn within(&self) -> &dyn Journal {
        self.inner.journal().expect("a store with a journal")
    }
}

fn take(counter: &AtomicUsize) -> bool {
    counter.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok()
}

#[async_trait::async_trait]
impl UsageSums for Faulty {
    async fn roll_up(&self, only: Option<&AccountId>, after: Option<&AccountId>) -> StoreResult<usage_sums::RolledUp> {
        self.inner.roll_up(only, after).await
    }

    async fn redo_days(&self, account: &AccountId, actor: &str) -> StoreResult<bool> {
        self.inner.redo_days(account, actor).await
    }

    async fn usage_sums(&self, request: usage_sums::SumsRequest) -> StoreResult<Page<usage_sums::UsageSum>> {
        self.inner.usage_sums(request).await
    }
}

#[async_trait::async_trait]
impl Books for Faulty {
    async fn books(&self, after: Option<&AccountId>, limit: u32) -> StoreResult<Vec<books::AccountBooks>> {
        self.inner.books(after, limit).await
    }

    async fn books_of(&self, account: &AccountId) -> StoreResult<Option<books::AccountBooks>> {
        self.inner.books_of(account).await
    }

    async fn charged(&self, spans: Vec<books::UsageSpan>, limit: u32) -> StoreResult<Vec<books::SpanCharged>> {
        self.inner.charged(spans, limit).await
    }

    async fn mend(&self, request: books::MendRequest) -> StoreResult<bool> {
        self.inner.mend(request).await
    }
}

#[async_trait::async_trait]
impl DeadLetters for Faulty {
    async fn dead_letters(&self, page: PageRequest) -> StoreResult<Page<letters::DeadLetter>> {
        self.inner.dead_letters(page).await
    }

    async fn dead_letter(&self, id: i64) -> StoreResult<Option<letters::DeadLetter>> {
        self.inner.dead_letter(id).await
    }
}

#[async_trait::async_trait]
impl Sessions for Faulty {
    async fn add_link(&self, hash: SecretHash, user: &AccountId, expires_at: Micros) -> StoreResult<()> {
        self.inner.add_link(hash, user, expires_at).await
    }
    async fn link_user(&self, link: SecretHash) -> StoreResult<Option<AccountId>> {
        self.inner.link_user(link).await
    }
    async fn redeem_link(&self, link: SecretHash, new: SecretHash, until: Micros) -> StoreResult<Option<AccountId>> {
        self.inner.redeem_link(link, new, until).await
    }
    async fn begin_session(&self, session: Session) -> StoreResult<()> {
        self.inner.begin_session(session).await
    }
    async fn session(&self, hash: SecretHash) -> StoreResult<Option<Session>> {
        self.inner.session(hash).await
    }
    async fn end_session(&self, hash: SecretHash) -> StoreResult<()> {
        self.inner.end_session(hash).await
    }
    async fn find_users(&self, text: &str, page: PageRequest) -> StoreResult<Page<User>> {
        self.inner.find_users(text, page).await
    }
}

#[async_trait::async_trait]
impl Questions for Faulty {
    async fn ask(&self, asked: Vec<questions::Question>) -> StoreResult<Vec<Vec<questions::Row>>> {
        self.inner.ask(asked).await
    }

    async fn execute(&self, statements: Vec<questions::Question>) -> StoreResult<Vec<u64>> {
        self.inner.execute(statements).await
    }
}

#[async_trait::async_trait]
impl Upkeep for Faulty {
    async fn keep(&self, retention: Retention) -> StoreResult<upkeep::Pruned> {
        self.inner.keep(retention).await
    }
}

#[async_trait::async_trait]
impl Notifications for Faulty {
    fn set_thresholds(&self, thresholds: Thresholds) {
        self.inner.set_thresholds(thresholds);
    }

    async fn notify(&self, notice: Notice) -> StoreResult<bool> {
        self.inner.notify(notice).await
    }

    async fn notifications(
        &self,
        user: &AccountId,
        unread: bool,
        page: PageRequest,
    ) -> StoreResult<Page<NotificationRow>> {
        self.inner.notifications(user, unread, page).await
    }

    async fn notifications_after(
        &self,
        user: &AccountId,
        number: u64,
        limit: u32,
    ) -> StoreResult<Vec<NotificationRow>> {
        self.inner.notifications_after(user, number, limit).await
    }

    async fn mark_read(&self, user: &AccountId, which: Marked) -> StoreResult<u64> {
        self.inner.mark_read(user, which).await
    }

    async fn standings(&self, users: &[AccountId]) -> StoreResult<Vec<notifications::Standing>> {
        self.inner.standings(users).await
    }

    async fn open_outlet(&self, open: bool) -> StoreResult<()> {
        self.inner.open_outlet(open).await
    }

    async fn claim_deliveries(&self, limit: u32, lease_us: u64) -> StoreResult<Vec<Delivery>> {
        self.inner.claim_deliveries(limit, lease_us).await
    }

    async fn finish_delivery(&self, delivery: &Delivery, outcome: Delivered) -> StoreResult<()> {
        self.inner.finish_delivery(delivery, outcome).await
    }

    async fn deliveries_waiting(&self) -> StoreResult<u64> {
        self.inner.deliveries_waiting().await
    }
}

#[async_trait::async_trait]
impl Owners for Faulty {
    async fn own(&self, owner: u64, within_us: Micros) -> StoreResult<bool> {
        self.inner.own(owner, within_us).await
    }

    async fn disown(&self, owner: u64) -> StoreResult<()> {
        self.inner.disown(owner).await
    }
}

#[async_trait::async_trait]
impl Records for Faulty {
    async fn load_open(&self, account: &AccountId) -> StoreResult<Option<AccountState>> {
        self.inner.load_open(account).await
    }

    async fn record(&self, account: &AccountId, id: RecordId) -> StoreResult<Option<RecordState>> {
        self.inner.record(account, id).await
    }
}

#[async_trait::async_trait]
impl Reopenings for Faulty {
    async fn standing(&self, shard: u32) -> StoreResult<Standing> {
        self.inner.standing(shard).await
    }

    async fn begin_reopening(&self, shard: u32, epoch: u64) -> StoreResult<Standing> {
        self.inner.begin_reopening(shard, epoch).await
    }

    async fn end_reopening(&self, shard: u32, at: Cursor) -> StoreResult<()> {
        self.inner.end_reopening(shard, at).await
    }

    async fn session_numbers(&self, shard: u32, sessions: Vec<u64>) -> StoreResult<Vec<SessionNumber>> {
        self.inner.session_numbers(shard, sessions).await
    }

    async fn close_sessions(&self, shard: u32, known: Vec<SessionNumber>) -> StoreResult<()> {
        self.inner.close_sessions(shard, known).await
    }
}

#[async_trait::async_trait]
impl SignUps for Faulty {
    async fn known(&self, id: &AccountId) -> StoreResult<Option<sign_ups::Known>> {
        self.inner.known(id).await
    }

    async fn sign_up(&self, new: sign_ups::SignUp) -> StoreResult<sign_ups::SignedUp> {
        self.inner.sign_up(new).await
    }

    async fn close_user(&self, id: &AccountId, plan: &str, actor: &str) -> StoreResult<bool> {
        self.inner.close_user(id, plan, actor).await
    }

    async fn insert_auth_event(&self, event: sign_ups::NewAuthEvent) -> StoreResult<bool> {
        self.inner.insert_auth_event(event).await
    }

    async fn auth_event(&self, id: &str) -> StoreResult<Option<sign_ups::AuthEvent>> {
        self.inner.auth_event(id).await
    }

    async fn claim_auth_events(&self, limit: u32, lease_us: u64) -> StoreResult<Vec<sign_ups::AuthEvent>> {
        self.inner.claim_auth_events(limit, lease_us).await
    }

    async fn finish_auth_event(&self, id: &str, outcome: EventOutcome) -> StoreResult<()> {
        self.inner.finish_auth_event(id, outcome).await
    }

    async fn auth_event_counts(&self) -> StoreResult<(u64, u64)> {
        self.inner.auth_event_counts().await
    }
}

#[async_trait::async_trait]
impl KeyUse for Faulty {
    async fn touch_keys(&self, keys: &[String], at: Micros) -> StoreResult<()> {
        self.inner.touch_keys(keys, at).await
    }

    async fn share_budget(&self, share: key_use::Share) -> StoreResult<key_use::Shared> {
        self.inner.share_budget(share).await
    }

    async fn settle_shares(&self, spent: &[key_use::Spent]) -> StoreResult<Vec<key_use::SpentKey>> {
        self.inner.settle_shares(spent).await
    }

    async fn renew_shares(&self, owner: u64) -> StoreResult<()> {
        self.inner.renew_shares(owner).await
    }

    async fn sweep_shares(&self, limit: u32) -> StoreResult<u64> {
        self.inner.sweep_shares(limit).await
    }
}

#[async_trait::async_trait]
impl Store for Faulty {
    async fn flush(&self, batch: FlushBatch) -> StoreResult<Flushed> {
        self.faults(&batch).await?;
        let flushed = self.inner.flush(batch).await?;
        self.perhaps_lie()?;
        Ok(flushed)
    }

    fn journal(&self) -> Option<&dyn Journal> {
        Some(self)
    }

    async fn load_account(&self, account: &AccountId) -> StoreResult<Option<AccountState>> {
        self.loads.fetch_add(1, Ordering::SeqCst);
        let unloadable =
            self.unloadable.lock().unwrap().as_ref().is_some_and(|prefix| account.as_str().starts_with(prefix));
        if unloadable || take(&self.failing_loads) {
            return Err(StoreError::Unavailable("too many connections".into()));
        }
        self.inner.load_account(account).await
    }

    async fn migrate(&self) -> StoreResult<usize> {
        self.inner.migrate().await
    }

    async fn check_schema(&self) -> StoreResult<()> {
        self.inner.check_schema().await
    }

    async fn close(&self) {
        self.inner.close().await
    }

    async fn ping(&self) -> StoreResult<()> {
        self.inner.ping().await
    }

    async fn is_empty(&self) -> StoreResult<bool> {
        self.inner.is_empty().await
    }

    async fn create_user(&self, user: NewUser) -> StoreResult<User> {
        self.inner.create_user(user).await
    }

    async fn user(&self, id: &AccountId) -> StoreResult<Option<User>> {
        self.inner.user(id).await
    }

    async fn users(&self, page: PageRequest) -> StoreResult<Page<User>> {
        self.inner.users(page).await
    }

    async fn set_plan(&self, id: &AccountId, plan: &str, actor: &str) -> StoreResult<User> {
        self.inner.set_plan(id, plan, actor).await
    }

    async fn create_key(&self, key: KeyRow) -> StoreResult<()> {
        self.inner.create_key(key).await
    }

    async fn key_by_hash(&self, hash: &[u8; 32]) -> StoreResult<Option<KeyRow>> {
        self.inner.key_by_hash(hash).await
    }

    async fn keys_of(&self, user: Option<&AccountId>) -> StoreResult<Vec<KeyRow>> {
        self.inner.keys_of(user).await
    }

    async fn revoke_key(&self, user: Option<&AccountId>, id: &str) -> StoreResult<KeyRow> {
        self.inner.revoke_key(user, id).await
    }

    async fn identity_changes(&self, since: u64) -> StoreResult<(u64, Vec<IdentityChange>)> {
        self.inner.identity_changes(since).await
    }

    async fn add_change(&self, change: NewChange) -> StoreResult<ChangeRow> {
        self.inner.add_change(change).await
    }

    async fn unapplied_accounts(&self, after: Option<&AccountId>, limit: u32) -> StoreResult<Vec<Unapplied>> {
        self.inner.unapplied_accounts(after, limit).await
    }

    async fn changes_after(&self, account: &AccountId, number: u64) -> StoreResult<Vec<ChangeRow>> {
        self.inner.changes_after(account, number).await
    }

    async fn grants(&self, account: &AccountId) -> StoreResult<Vec<GrantRow>> {
        self.inner.grants(account).await
    }

    async fn cursor(&self, shard: u32) -> StoreResult<Cursor> {
        self.inner.cursor(shard).await
    }

    async fn raise_epoch(&self, shard: u32, from: Cursor) -> StoreResult<Cursor> {
        self.inner.raise_epoch(shard, from).await
    }

    async fn usage(&self, account: &AccountId, page: PageRequest) -> StoreResult<Page<UsageRow>> {
        self.inner.usage(account, page).await
    }

    async fn record_account(&self, id: Uuid) -> StoreResult<Option<AccountId>> {
        self.inner.record_account(id).await
    }

    async fn idempotency_begin(&self, scope: &str, key: &str, fingerprint: u64) -> StoreResult<Idempotent> {
        self.inner.idempotency_begin(scope, key, fingerprint).await
    }

    async fn idempotency_finish(&self, scope: &str, key: &str, status: u16, body: &str) -> StoreResult<()> {
        self.inner.idempotency_finish(scope, key, status, body).await
    }

    async fn idempotency_forget(&self, scope: &str, key: &str) -> StoreResult<()> {
        self.inner.idempotency_forget(scope, key).await
    }

    async fn audit(&self, actor: &str, action: &str, account: Option<&AccountId>, detail: &str) -> StoreResult<()> {
        self.inner.audit(actor, action, account, detail).await
    }

    async fn prune(&self) -> StoreResult<()> {
        self.inner.prune().await
    }
}

#[async_trait::async_trait]
impl Journal for Faulty {
    async fn journal_end(&self, shard: u32) -> StoreResult<Cursor> {
        self.within().journal_end(shard).await
    }

    async fn append(&self, batch: FlushBatch) -> StoreResult<()> {
        self.faults(&batch).await?;
        self.within().append(batch).await?;
        self.perhaps_lie()
    }

    async fn fold(&self, shard: u32) -> StoreResult<Option<Folded>> {
        let _permit = self.fold.acquire().await.expect("never closed");
        if take(&self.failing_folds) {
            return Err(StoreError::Unavailable("the disk is full".into()));
        }
        let folded = self.within().fold(shard).await?;
        if folded.is_some() && take(&self.lying_folds) {
            return Err(StoreError::Unavailable("the answer was lost".into()));
        }
        Ok(folded)
    }
}

#[async_trait::async_trait]
impl BillingStore for Faulty {
    async fn insert_event(&self, event: NewEvent) -> StoreResult<bool> {
        self.inner.insert_event(event).await
    }

    async fn billing_event(&self, id: &str) -> StoreResult<Option<EventRow>> {
        self.inner.billing_event(id).await
    }

    async fn billing_events(&self, filter: EventFilter, page: PageRequest) -> StoreResult<Page<EventRow>> {
        self.inner.billing_events(filter, page).await
    }

    async fn claim_events(&self, limit: u32, lease_us: u64) -> StoreResult<Vec<EventRow>> {
        self.inner.claim_events(limit, lease_us).await
    }

    async fn finish_event(&self, id: &str, outcome: EventOutcome) -> StoreResult<()> {
        self.inner.finish_event(id, outcome).await
    }

    async fn replay_event(&self, id: &str) -> StoreResult<EventRow> {
        self.inner.replay_event(id).await
    }

    async fn event_counts(&self) -> StoreResult<(u64, u64)> {
        self.inner.event_counts().await
    }

    async fn billing_account(&self, user: &AccountId) -> StoreResult<BillingAccount> {
        self.inner.billing_account(user).await
    }

    async fn period_ends(&self, user: &AccountId) -> StoreResult<Vec<(faregate::ledger::GrantId, Micros)>> {
        self.inner.period_ends(user).await
    }

    async fn apply_decision(&self, decision: Decision) -> StoreResult<Option<Vec<ChangeRow>>> {
        self.inner.apply_decision(decision).await
    }

    async fn user_of_customer(&self, customer: &str) -> StoreResult<Option<AccountId>> {
        self.inner.user_of_customer(customer).await
    }

    async fn user_of_subscription(&self, subscription: &str) -> StoreResult<Option<AccountId>> {
        self.inner.user_of_subscription(subscription).await
    }

    async fn user_of_payment(&self, payment_intent: &str) -> StoreResult<Option<AccountId>> {
        self.inner.user_of_payment(payment_intent).await
    }

    async fn claim_due_accounts(&self, limit: u32, lease_us: u64) -> StoreResult<Vec<AccountId>> {
        self.inner.claim_due_accounts(limit, lease_us).await
    }

    async fn billed_users(&self, after: Option<&AccountId>, limit: u32) -> StoreResult<Vec<AccountId>> {
        self.inner.billed_users(after, limit).await
    }

    async fn begin_checkout(&self, checkout: Checkout) -> StoreResult<()> {
        self.inner.begin_checkout(checkout).await
    }

    async fn open_checkout(&self, user: &AccountId) -> StoreResult<Option<Checkout>> {
        self.inner.open_checkout(user).await
    }

    async fn checkout_of_session(&self, session: &str) -> StoreResult<Option<Checkout>> {
        self.inner.checkout_of_session(session).await
    }

    async fn set_checkout_session(&self, id: Uuid, session: &str) -> StoreResult<()> {
        self.inner.set_checkout_session(id, session).await
    }

    async fn set_checkout_state(&self, id: Uuid, state: CheckoutState) -> StoreResult<()> {
        self.inner.set_checkout_state(id, state).await
    }

    async fn call_key(&self, scope: &str, fingerprint: u64, life_us: u64) -> StoreResult<String> {
        self.inner.call_key(scope, fingerprint, life_us).await
    }

    async fn claim_reconciliation(&self, next_us: u64) -> StoreResult<Option<Option<Micros>>> {
        self.inner.claim_reconciliation(next_us).await
    }

    async fn forget_call(&self, scope: &str) -> StoreResult<()> {
        self.inner.forget_call(scope).await
    }

    async fn expedite_reconciliation(&self, older_us: u64) -> StoreResult<()> {
        self.inner.expedite_reconciliation(older_us).await
    }

    async fn finish_reconciliation(&self, until: Micros) -> StoreResult<()> {
        self.inner.finish_reconciliation(until).await
    }
}

#[async_trait::async_trait]
impl Topups for Faulty {
    async fn set_auto_topup(&self, terms: TopupTerms) -> StoreResult<AutoTopup> {
        self.inner.set_auto_topup(terms).await
    }

    async fn end_auto_topup(&self, user: &AccountId) -> StoreResult<()> {
        self.inner.end_auto_topup(user).await
    }

    async fn auto_topup(&self, user: &AccountId) -> StoreResult<Option<AutoTopup>> {
        self.inner.auto_topup(user).await
    }

    async fn topup(&self, id: Uuid) -> StoreResult<Option<Topup>> {
        self.inner.topup(id).await
    }

    async fn any_auto_topup(&self) -> StoreResult<bool> {
        self.inner.any_auto_topup().await
    }

    async fn topped_up(&self, user: &AccountId, currency: &str, since: Micros) -> StoreResult<i64> {
        self.inner.topped_up(user, currency, since).await
    }

    async fn topup_wanted(&self, among: &[AccountId]) -> StoreResult<Vec<AccountId>> {
        self.inner.topup_wanted(among).await
    }

    async fn topup_short(&self, after: Option<&AccountId>, limit: u32) -> StoreResult<Vec<AccountId>> {
        self.inner.topup_short(after, limit).await
    }

    async fn begin_topup(&self, topup: Topup, month: (Micros, Micros), look_us: u64) -> StoreResult<Begun> {
        self.inner.begin_topup(topup, month, look_us).await
    }

    async fn set_topup_method(&self, id: Uuid, method: &str) -> StoreResult<String> {
        self.inner.set_topup_method(id, method).await
    }

    async fn end_topup(&self, topup: &Topup, end: TopupEnd) -> StoreResult<()> {
        self.inner.end_topup(topup, end).await
    }

    async fn claim_topups(&self, limit: u32, look_us: u64) -> StoreResult<Vec<Topup>> {
        self.inner.claim_topups(limit, look_us).await
    }

    async fn look_at_topup(&self, id: Uuid, at: Micros) -> StoreResult<()> {
        self.inner.look_at_topup(id, at).await
    }
}
