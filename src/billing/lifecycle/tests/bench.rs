//! A user, what Stripe says, and the ledger's own model: decisions are written as the store writes them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::super::facts::{Facts, Failure, Payment};
use super::super::{Context, decide};
use crate::billing::plans::Catalog;
use crate::billing::stripe::objects::*;
use crate::config::{Config, Interval, Pack, PackPrice, Plan, PlanPrice};
use crate::credits::Credits;
use crate::ledger::account::{self, Account};
use crate::ledger::{AccountId, AccountState, Act, Answer, Balance, Change, Event, GrantId, Micros, Scope, SessionId};
use crate::store::billing::*;
use crate::store::effects::{GrantRows, Rows};
use crate::store::{User, UserStatus};

pub(super) const DAY: i64 = 24 * 3600;
/// 2026-01-01T00:00:00Z.
pub(super) const BEGIN: i64 = 1_767_225_600;

pub(super) fn catalog() -> Catalog {
    let mut config = Config::default();
    let price = |id: &str, interval, amount| PlanPrice { id: id.into(), currency: "usd".into(), interval, amount };
    let plan = |credits, prices| Plan { credits: Credits::whole(credits), prices, grace_days: 3, ..Plan::default() };
    let basic = vec![price("basic_month", Interval::Month, 1_000)];
    let pro = vec![price("pro_month", Interval::Month, 2_000), price("pro_year", Interval::Year, 20_000)];
    config.plans.insert("basic".into(), plan(400, basic));
    let pro = Plan {
        rollover_cap: Credits::whole(300),
        trial_credits: Credits::whole(50),
        trial_days: 14,
        ..plan(1_000, pro)
    };
    config.plans.insert("pro".into(), pro);
    let pack = vec![PackPrice { id: "small_usd".into(), currency: "usd".into(), amount: 500 }];
    config.packs.insert("small".into(), Pack { credits: Credits::whole(100), expires_after_days: 0, prices: pack });
    Catalog::new(Arc::new(config))
}

pub(super) struct Bench {
    pub(super) catalog: Catalog,
    pub(super) now: i64,
    pub(super) account: BillingAccount,
    id: AccountId,
    ledger: Account,
    /// Key and number of every change.
    numbers: BTreeMap<String, u64>,
    changes: Vec<Change>,
    /// The account's rows, as the flusher keeps them.
    rows: Rows,
    /// What was done, for a failure to show.
    pub(super) log: Vec<String>,
    /// The kinds of what the user was told.
    pub(super) notices: Vec<&'static str>,
    told_keys: BTreeSet<String>,
}

impl Bench {
    pub(super) fn new() -> Bench {
        let id = AccountId::parse("ann").unwrap();
        let user = User {
            id: id.clone(),
            email: None,
            name: None,
            plan: "free".into(),
            status: UserStatus::Active,
            created_at: 0,
        };
        let mut events = Vec::new();
        let ledger = Account::load(&AccountState::default(), &mut context(&id, 1, &mut events));
        Bench {
            catalog: catalog(),
            now: BEGIN,
            account: BillingAccount {
                user,
                version: 0,
                customer: Some("cus_1".into()),
                flagged: false,
                due_at: None,
                subscriptions: Vec::new(),
                purchases: Vec::new(),
                grants: Vec::new(),
            },
            id,
            ledger,
            numbers: BTreeMap::new(),
            changes: Vec::new(),
            rows: Rows::default(),
            log: Vec::new(),
            notices: Vec::new(),
            told_keys: BTreeSet::new(),
        }
    }

    /// Decides on what Stripe says and writes it; then the clock does what was put off.
    pub(super) fn told(&mut self, facts: &Facts) -> Result<(), Failure> {
        self.once(facts)?;
        self.clock();
        Ok(())
    }

    pub(super) fn once(&mut self, facts: &Facts) -> Result<usize, Failure> {
        self.told_by(None, facts)
    }

    /// As an event of this type leads to it. Answers how many billing changes followed.
    pub(super) fn told_by(&mut self, told: Option<&str>, facts: &Facts) -> Result<usize, Failure> {
        let context = Context { catalog: &self.catalog, now: micros(self.now), cause: "a test", told };
        let effects = decide(context, &self.account, facts)?;
        let changes = effects.iter().filter(|effect| matches!(effect, Effect::Change(_))).count();
        for effect in effects {
            self.write(effect);
        }
        self.account.version += 1;
        self.refresh();
        Ok(changes)
    }

    /// Runs the clock for what is due by now.
    pub(super) fn clock(&mut self) {
        for _ in 0..20 {
            if self.account.due_at.is_none_or(|due| due > micros(self.now) + 2_000_000) {
                return;
            }
            self.act(&Act::Sweep, self.now);
            self.refresh();
            self.once(&Facts::default()).unwrap();
        }
        panic!("the clock does not come to rest");
    }

    /// Lets time pass, with the clock doing what comes due on the way.
    pub(super) fn pass(&mut self, until: i64) {
        while let Some(due) = self.account.due_at.filter(|due| *due <= micros(until)) {
            self.now = self.now.max(i64::try_from(due / 1_000_000).unwrap() + 1);
            self.clock();
        }
        self.now = self.now.max(until);
        self.act(&Act::Sweep, self.now);
        self.refresh();
    }

    pub(super) fn spend(&mut self, credits: u32) {
        let actual = Credits::whole(credits);
        let act = Act::Charge { actual, must: false, usage: bytes::Bytes::new(), record: None };
        assert!(matches!(self.act(&act, self.now), Answer::Settled { .. }));
        self.refresh();
    }

    pub(super) fn balance(&mut self) -> Balance {
        match self.act(&Act::Sweep, self.now) {
            Answer::Balance(balance) => balance,
            other => panic!("{other:?}"),
        }
    }

    /// Whole credits available, and owed.
    pub(super) fn credits(&mut self) -> (i64, i64) {
        let balance = self.balance();
        (balance.available.micro() / 1_000_000, balance.debt.micro() / 1_000_000)
    }

    fn write(&mut self, effect: Effect) {
        match effect {
            Effect::Change(planned) => self.change(planned),
            Effect::Subscription(row) => {
                self.account.subscriptions.retain(|known| known.id != row.id);
                self.account.subscriptions.push(row);
                self.account.subscriptions.sort_by_key(|row| (row.created_at, row.id.clone()));
            }
            Effect::Purchase(purchase) => {
                self.account.purchases.retain(|known| known.id != purchase.id);
                self.account.purchases.push(purchase);
                self.account.purchases.sort_by_key(|known| (known.created_at, known.id.clone()));
            }
            Effect::Grant(grant) => {
                self.account.grants.retain(|known| known.key != grant.key);
                self.account.grants.push(grant);
                let numbers = &self.numbers;
                self.account.grants.sort_by_key(|grant| numbers[&grant.key]);
            }
            Effect::Plan(plan) => self.account.user.plan = plan,
            Effect::Flagged(flagged) => self.account.flagged = flagged,
            Effect::Due(due) => self.account.due_at = due,
            Effect::Customer(customer) => self.account.customer = Some(customer),
            Effect::Notify { kind, dedupe_key, .. } => {
                // As the store does: the same key again says nothing.
                if self.told_keys.insert(dedupe_key) {
                    self.notices.push(kind.name());
                }
            }
            Effect::Checkout { .. } | Effect::TopupPaid(_) | Effect::Note { .. } => {}
        }
    }

    fn change(&mut self, planned: PlannedChange) {
        if self.numbers.contains_key(&planned.key) {
            return;
        }
        let number = self.changes.len() as u64 + 1;
        let named = |key: &String| GrantId(self.numbers[key]);
        let change = match &planned.act {
            PlannedAct::Grant { kind, amount, expires_at } => {
                assert!(*amount > 0);
                Change::Grant { kind: *kind, amount_micro: *amount, expires_at: *expires_at }
            }
            PlannedAct::Revoke { grant, amount } => {
                assert!(amount.is_none_or(|amount| amount > 0));
                Change::Revoke { grant: named(grant), amount_micro: *amount }
            }
            PlannedAct::Rollover { from, cap, kind, expires_at } => {
                Change::Rollover { from: named(from), cap_micro: *cap, kind: *kind, expires_at: *expires_at }
            }
            PlannedAct::Freeze { grant } => Change::Freeze { scope: Scope::Grant { grant: named(grant) } },
            PlannedAct::Unfreeze { grant } => Change::Unfreeze { scope: Scope::Grant { grant: named(grant) } },
        };
        self.log.push(format!("{} {} {:?}", (self.now - BEGIN) / DAY, planned.key, planned.act));
        self.numbers.insert(planned.key, number);
        let made = match &change {
            Change::Grant { amount_micro, expires_at, .. } => Some((*amount_micro, *expires_at)),
            Change::Rollover { expires_at, .. } => Some((0, *expires_at)),
            _ => None,
        };
        let row = |(amount, expires_at)| GrantRows {
            id: GrantId(number),
            amount,
            remaining: amount,
            frozen: false,
            expires_at,
            lapsed: 0,
            changed: false,
        };
        self.rows.grants.extend(made.map(row));
        self.rows.changes.push((number, change.clone()));
        self.changes.push(change.clone());
        assert_eq!(self.act(&Act::Apply { number, change }, self.now), Answer::Applied);
    }

    fn act(&mut self, act: &Act, at: i64) -> Answer {
        let mut events: Vec<Event> = Vec::new();
        let id = self.id.clone();
        let answer = self.ledger.apply(act, &mut context(&id, micros(at), &mut events));
        let mut letters = Vec::new();
        for event in &events {
            self.rows.apply(event, &mut letters);
        }
        assert!(letters.is_empty(), "{letters:?}");
        answer
    }

    fn refresh(&mut self) {
        for grant in &mut self.account.grants {
            let number = GrantId(self.numbers[&grant.key]);
            let row = self.rows.grants.iter().find(|row| row.id == number).unwrap();
            let (amount, remaining, lapsed) = (row.amount, row.remaining, row.lapsed);
            grant.stored = StoredGrant { applied: true, amount, remaining, lapsed, waiting: false };
        }
    }
}

fn context<'a>(id: &'a AccountId, now: Micros, events: &'a mut Vec<Event>) -> account::Context<'a> {
    account::Context {
        account: id,
        now,
        session: SessionId(1),
        fenced: &|_| false,
        backlogged: false,
        record: Box::leak(Box::new(None)),
        events,
    }
}

// What Stripe says.

pub(super) fn subscription(id: &str, price: &str, start: i64, end: i64) -> Subscription {
    Subscription {
        id: id.into(),
        customer: Some("cus_1".into()),
        status: "active".into(),
        created: BEGIN,
        currency: "usd".into(),
        cancel_at_period_end: false,
        cancel_at: None,
        ended_at: None,
        trial_start: None,
        trial_end: None,
        pause_collection: false,
        schedule: None,
        latest_invoice: None,
        items: List {
            data: vec![SubscriptionItem {
                id: format!("si_{id}"),
                price: Price {
                    id: price.into(),
                    active: true,
                    currency: "usd".into(),
                    unit_amount: None,
                    recurring: None,
                },
                quantity: Some(1),
                current_period_start: start,
                current_period_end: end,
            }],
            has_more: false,
        },
        metadata: Metadata::default(),
    }
}

pub(super) fn line(price: &str, amount: i64, start: i64, end: i64, proration: bool) -> Line {
    let details = ItemDetails { proration, subscription: Some("sub_1".into()) };
    Line {
        id: format!("il_{price}_{start}_{amount}"),
        amount,
        period: Period { start, end },
        quantity: Some(1),
        pricing: Some(Pricing { price_details: Some(PriceDetails { price: Some(price.into()) }) }),
        parent: Some(LineParent { subscription_item_details: Some(details), invoice_item_details: None }),
    }
}

pub(super) fn invoice(id: &str, subscription: &str, reason: &str, lines: Vec<Line>) -> Invoice {
    let total: i64 = lines.iter().map(|line| line.amount).sum();
    let payment = PaymentOfInvoice { payment_intent: Some(format!("pi_{id}")) };
    let paid = InvoicePayment { invoice: Some(id.into()), status: "paid".into(), payment: Some(payment) };
    let details = SubscriptionDetails { subscription: Some(subscription.into()) };
    Invoice {
        id: id.into(),
        number: Some(id.to_uppercase()),
        status: Some("paid".into()),
        customer: Some("cus_1".into()),
        billing_reason: Some(reason.into()),
        currency: "usd".into(),
        amount_due: total.max(0),
        amount_paid: total.max(0),
        amount_remaining: 0,
        attempt_count: 1,
        total,
        created: lines.first().map_or(BEGIN, |line| line.period.start),
        status_transitions: StatusTransitions::default(),
        hosted_invoice_url: None,
        invoice_pdf: None,
        parent: Some(InvoiceParent { subscription_details: Some(details) }),
        lines: List { data: lines, has_more: false },
        payments: Some(List { data: vec![paid], has_more: false }),
    }
}

pub(super) fn payment(id: &str, amount: i64, refunded: i64) -> Payment {
    let charge = Charge {
        id: format!("ch_{id}"),
        amount,
        amount_refunded: refunded,
        disputed: false,
        payment_intent: Some(id.into()),
        customer: Some("cus_1".into()),
    };
    let intent = PaymentIntent {
        id: id.into(),
        status: "succeeded".into(),
        amount,
        amount_received: amount,
        currency: "usd".into(),
        created: BEGIN,
        customer: Some("cus_1".into()),
        latest_charge: Some(charge),
        last_payment_error: None,
        metadata: Metadata::default(),
    };
    Payment { intent, disputes: Vec::new(), expected: None }
}

pub(super) fn pack(id: &str, amount: i64) -> Payment {
    let mut payment = payment(id, amount, 0);
    let text = |text: &str| Some(text.to_owned());
    payment.intent.metadata =
        Metadata { user: text("ann"), kind: text("pack"), name: text("small"), price: text("small_usd"), topup: None };
    payment
}

pub(super) fn dispute(status: &str, amount: i64, withdrawn: i64) -> Dispute {
    Dispute {
        id: "dp_1".into(),
        status: status.into(),
        amount,
        charge: None,
        payment_intent: None,
        balance_transactions: vec![BalanceTransaction { amount: -withdrawn, created: 0 }],
    }
}
