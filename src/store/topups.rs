//! Packs that are bought by themselves: what users asked for, and each purchase from before Stripe is asked until its end.
//!
//! One runs at a time for a user, whichever replica began it: a row that runs stands in the way of the next, and the row's
//! id is the Idempotency-Key of its payment, so that it is paid once however often it is sent.

use async_trait::async_trait;
use uuid::Uuid;

use super::StoreResult;
use super::notifications::{Notice, NoticeKind};
use crate::ledger::{AccountId, Micros};

/// What a user asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopupTerms {
    pub user: AccountId,
    /// Micro-credits: a purchase is made when less is left.
    pub threshold: i64,
    pub pack: String,
    pub currency: String,
    /// Most that is paid in one calendar month (UTC), in the currency's smallest unit.
    pub monthly_cap: i64,
}

/// What a user asked for, and how it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AutoTopup {
    pub terms: TopupTerms,
    pub enabled: bool,
    /// Declines in a row.
    pub failures: u32,
    /// What the last decline said, in Stripe's words, or why nothing is bought.
    pub error: Option<String>,
    /// Nothing is tried again until the user asks anew.
    pub stopped: bool,
    /// Nothing is tried before.
    pub next_at: Micros,
}

/// One purchase.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topup {
    pub id: Uuid,
    pub user: AccountId,
    pub customer: String,
    pub pack: String,
    pub price: String,
    pub currency: String,
    /// In the currency's smallest unit.
    pub amount: i64,
    /// `None` until it is chosen: then Stripe was not asked yet.
    pub payment_method: Option<String>,
    /// How often its outcome was looked for.
    pub looks: u32,
    pub created_at: Micros,
}

/// What came of the attempt to begin a purchase.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begun {
    /// It is this caller's to make.
    Begun,
    /// Another runs, or it is not time, or not wanted any more.
    NotNow,
    /// It would go beyond what may be paid this month.
    Capped,
}

/// How a purchase ended that was not paid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TopupEnd {
    /// It was not needed after all, and Stripe was not asked.
    Void,
    /// With Stripe's code.
    Declined {
        code: String,
        /// When another may be tried; `None`: when the user asks anew.
        again_at: Option<Micros>,
        /// Whether the cardholder has to do something.
        action: bool,
    },
}

#[async_trait]
pub trait Topups: Send + Sync {
    /// Takes over what the user asks for, from now on; earlier declines are forgotten.
    async fn set_auto_topup(&self, terms: TopupTerms) -> StoreResult<AutoTopup>;
    /// Nothing is bought any more. What is under way is finished.
    async fn end_auto_topup(&self, user: &AccountId) -> StoreResult<()>;
    async fn auto_topup(&self, user: &AccountId) -> StoreResult<Option<AutoTopup>>;
    async fn topup(&self, id: Uuid) -> StoreResult<Option<Topup>>;
    /// Whether anybody asked for it at all.
    async fn any_auto_topup(&self) -> StoreResult<bool>;
    /// What was paid, or is being paid, since then in this currency.
    async fn topped_up(&self, user: &AccountId, currency: &str, since: Micros) -> StoreResult<i64>;
    /// Those of these users for whom something may be bought now.
    async fn topup_wanted(&self, among: &[AccountId]) -> StoreResult<Vec<AccountId>>;
    /// Users for whom something may be bought now and whose balance, as it is stored, is below their threshold, by id.
    async fn topup_short(&self, after: Option<&AccountId>, limit: u32) -> StoreResult<Vec<AccountId>>;
    /// Begins a purchase, unless it may not be made now: then nothing is written, but that of a month whose cap is reached
    /// nothing more is tried before `month.1`. `month`: from when its payments count, and when the next begins.
    async fn begin_topup(&self, topup: Topup, month: (Micros, Micros), look_us: u64) -> StoreResult<Begun>;
    /// Notes what is paid with, before it is sent. Answers what stands: the first one noted.
    async fn set_topup_method(&self, id: Uuid, method: &str) -> StoreResult<String>;
    /// Ends one that runs, and tells the user what there is to be told. One that has ended stays as it is.
    async fn end_topup(&self, topup: &Topup, end: TopupEnd) -> StoreResult<()>;
    /// Takes up to `limit` that have run for too long, and counts a look at each. Nobody else gets them within `look_us`.
    async fn claim_topups(&self, limit: u32, look_us: u64) -> StoreResult<Vec<Topup>>;
    /// When one is looked at next.
    async fn look_at_topup(&self, id: Uuid, at: Micros) -> StoreResult<()>;
}

impl TopupEnd {
    /// What the user is told of it.
    pub(super) fn notice(&self, topup: &Topup) -> Option<Notice> {
        let TopupEnd::Declined { code, again_at, action } = self else { return None };
        let again = again_at.and_then(|at| jiff::Timestamp::from_microsecond(i64::try_from(at).ok()?).ok());
        Some(Notice {
            user: topup.user.clone(),
            kind: if *action { NoticeKind::PaymentActionRequired } else { NoticeKind::PaymentFailed },
            data: serde_json::json!({
                "source": "auto_topup",
                "pack": topup.pack,
                "amount": topup.amount,
                "currency": topup.currency,
                "code": code,
                "next_attempt_at": again.map(|at| at.to_string()),
            }),
            dedupe_key: format!("topup:{}", topup.id),
        })
    }
}
