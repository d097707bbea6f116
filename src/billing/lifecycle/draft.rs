//! A decision in the making: the account as it will be, and what is to be written for it.

use super::Context;
use crate::billing::plans::Catalog;
use crate::ledger::{GrantKind, Micros, WRITE_OFF_AFTER_US};
use crate::store::billing::{
    BillingAccount, Effect, GrantUse, PaidGrant, PlannedAct, PlannedChange, Purchase, PurchaseKind, StoredGrant,
    SubscriptionRow,
};

pub(super) const DAY_US: Micros = 24 * 3600 * 1_000_000;
/// How soon the clock looks again at what waits for the ledger.
const SOON_US: Micros = 1_000_000;
/// What is granted after its time lives so long: a pack, for use; a month, for what moves on from it in the same step.
const LATE_LIFE_US: Micros = 30 * DAY_US;

pub(super) struct Draft<'a> {
    pub(super) catalog: &'a Catalog,
    pub(super) now: Micros,
    cause: &'a str,
    pub(super) account: BillingAccount,
    /// Keys of grants made by this decision: the store knows nothing of them yet.
    fresh: Vec<String>,
    /// Purchases whose invoice was given up, whatever their payment says.
    pub(super) given_up: Vec<String>,
    effects: Vec<Effect>,
    due: Option<Micros>,
}

impl<'a> Draft<'a> {
    pub(super) fn new(context: Context<'a>, account: BillingAccount) -> Draft<'a> {
        let Context { catalog, now, cause, told: _ } = context;
        Draft { catalog, now, cause, account, fresh: Vec::new(), given_up: Vec::new(), effects: Vec::new(), due: None }
    }

    pub(super) fn push(&mut self, effect: Effect) {
        self.effects.push(effect);
    }

    pub(super) fn note(&mut self, action: &'static str, detail: String) {
        self.push(Effect::Note { action, detail: format!("{detail} ({})", self.cause) });
    }

    pub(super) fn change(&mut self, key: String, act: PlannedAct, why: &str) {
        let note = format!("{why} ({})", self.cause);
        self.push(Effect::Change(PlannedChange { key, act, note }));
    }

    pub(super) fn put_subscription(&mut self, row: SubscriptionRow) {
        self.account.subscriptions.retain(|known| known.id != row.id);
        self.account.subscriptions.push(row.clone());
        self.push(Effect::Subscription(row));
    }

    pub(super) fn put_purchase(&mut self, purchase: Purchase) {
        match self.account.purchases.iter_mut().find(|known| known.id == purchase.id) {
            Some(known) => *known = purchase.clone(),
            None => self.account.purchases.push(purchase.clone()),
        }
        self.push(Effect::Purchase(purchase));
    }

    pub(super) fn put_grant(&mut self, grant: PaidGrant) {
        match self.account.grants.iter_mut().find(|known| known.key == grant.key) {
            Some(known) => *known = grant.clone(),
            None => {
                self.fresh.push(grant.key.clone());
                self.account.grants.push(grant.clone());
            }
        }
        self.push(Effect::Grant(grant));
    }

    pub(super) fn is_fresh(&self, key: &str) -> bool {
        self.fresh.iter().any(|fresh| fresh == key)
    }

    pub(super) fn purchase(&self, id: &str) -> Option<&Purchase> {
        self.account.purchases.iter().find(|purchase| purchase.id == id)
    }

    pub(super) fn purchase_of(&self, grant: &PaidGrant) -> Option<&Purchase> {
        self.purchase(&grant.purchase)
    }

    pub(super) fn subscription_of(&self, purchase: &Purchase) -> Option<&SubscriptionRow> {
        let id = purchase.subscription.as_ref()?;
        self.account.subscriptions.iter().find(|row| row.id == *id)
    }

    /// Gives credits of a purchase, once.
    pub(super) fn give(&mut self, purchase: &Purchase, given: Given) {
        if given.amount <= 0 || self.account.grants.iter().any(|grant| grant.key == given.key) {
            return;
        }
        let over = self.is_over(purchase, given.ends_at);
        if purchase.subscription.is_some() {
            // Told of after its time it brings what would have moved on, and of an ended subscription nothing.
            let ended = self.subscription_of(purchase).is_some_and(|row| row.ended_at.is_some());
            if ended || (over && !given.ends_at.is_some_and(|ends_at| self.moves_on(purchase, ends_at))) {
                return;
            }
        }
        let kind = kind_of(purchase.kind);
        let grant = PaidGrant {
            key: given.key,
            purchase: purchase.id.clone(),
            used_as: given.used_as,
            parent: given.parent,
            month: given.month,
            amount: given.amount,
            starts_at: given.starts_at,
            ends_at: given.ends_at,
            ended: false,
            frozen: false,
            claimed: 0,
            taken: 0,
            serial: 0,
            stored: StoredGrant::default(),
        };
        let expires_at = if over { self.now + LATE_LIFE_US } else { self.expiry(purchase, &grant) };
        let act = PlannedAct::Grant { kind, amount: grant.amount, expires_at };
        self.change(grant.key.clone(), act, &given.why);
        self.put_grant(grant);
    }

    /// When a grant lapses by itself; 0: never. What a plan gave stays usable for the plan's grace, in which a renewal is
    /// paid, and ends when the renewal's credits come.
    pub(super) fn expiry(&self, purchase: &Purchase, grant: &PaidGrant) -> Micros {
        self.expiry_of(purchase, grant.ends_at)
    }

    fn expiry_of(&self, purchase: &Purchase, ends_at: Option<Micros>) -> Micros {
        let Some(ends_at) = ends_at else { return 0 };
        let graced = matches!(purchase.kind, PurchaseKind::Period | PurchaseKind::Proration);
        let days = self.catalog.plan(&purchase.name).map_or(0, |plan| plan.grace_days);
        if graced { ends_at + u64::from(days) * DAY_US } else { ends_at }
    }

    /// When what ends then is written off; `None`: never.
    pub(super) fn lapses_at(&self, purchase: &Purchase, ends_at: Option<Micros>) -> Option<Micros> {
        let expiry = self.expiry_of(purchase, ends_at);
        (expiry > 0).then(|| expiry.saturating_add(WRITE_OFF_AFTER_US))
    }

    /// Whether what ends then can no longer be drawn.
    pub(super) fn is_over(&self, purchase: &Purchase, ends_at: Option<Micros>) -> bool {
        let expiry = self.expiry_of(purchase, ends_at);
        expiry > 0 && expiry <= self.now
    }

    /// Whether the ledger has written off what remained by now, or will before anything else.
    pub(super) fn has_lapsed(&self, purchase: &Purchase, grant: &PaidGrant) -> bool {
        let lapses = self.lapses_at(purchase, grant.ends_at);
        lapses.is_some_and(|lapses| lapses <= self.now) && !self.is_fresh(&grant.key)
    }

    /// Asks for the clock at this time.
    pub(super) fn due_at(&mut self, time: Micros) {
        self.due = Some(self.due.map_or(time, |due| due.min(time)));
    }

    pub(super) fn due_soon(&mut self) {
        self.due_at(self.now + SOON_US);
    }

    pub(super) fn finish(mut self) -> Vec<Effect> {
        if self.account.due_at != self.due {
            let due = self.due;
            self.push(Effect::Due(due));
        }
        self.effects
    }

    /// Only what is known, nothing that is to be done.
    pub(super) fn without_changes(self) -> Vec<Effect> {
        let known = |effect: &Effect| {
            matches!(
                effect,
                Effect::Subscription(_)
                    | Effect::Checkout { .. }
                    | Effect::Customer(_)
                    | Effect::Notify { .. }
                    | Effect::TopupPaid(_)
                    | Effect::Note { .. }
            )
        };
        // The clock has nothing more to do here.
        let due = self.account.due_at.map(|_| Effect::Due(None));
        self.effects.into_iter().filter(known).chain(due).collect()
    }
}

/// Credits to be given.
pub(super) struct Given {
    pub(super) key: String,
    pub(super) used_as: GrantUse,
    pub(super) parent: Option<String>,
    pub(super) month: u32,
    pub(super) amount: i64,
    pub(super) starts_at: Option<Micros>,
    pub(super) ends_at: Option<Micros>,
    pub(super) why: String,
}

pub(super) fn kind_of(kind: PurchaseKind) -> GrantKind {
    match kind {
        PurchaseKind::Period | PurchaseKind::Proration => GrantKind::Plan,
        PurchaseKind::Pack => GrantKind::Topup,
        PurchaseKind::Trial => GrantKind::Promo,
    }
}
