//! Snapshots of Stripe's objects, read after the account they are decided on.

use crate::billing::stripe::StripeError;
use crate::billing::stripe::fetch::Fetch;
use crate::billing::stripe::objects::{CheckoutSession, Dispute, Invoice, PaymentIntent, Subscription};
use crate::ledger::AccountId;
use crate::store::billing::Checkout;
use crate::store::topups::Topup;
use crate::store::{Store, StoreError};

use super::route::Target;

/// What Stripe says now.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    pub checkouts: Vec<CheckoutSession>,
    pub subscriptions: Vec<Subscription>,
    pub invoices: Vec<Invoice>,
    pub payments: Vec<Payment>,
    /// The charge of a fraud warning.
    pub warning: Option<String>,
    /// The customer of a charge, where nothing else names one.
    pub customer: Option<String>,
}

/// A payment and what became of it.
#[derive(Debug, Clone)]
pub struct Payment {
    pub intent: PaymentIntent,
    pub disputes: Vec<Dispute>,
    /// What was to be paid, where it came of a checkout or an automatic top-up of ours.
    pub expected: Option<Expected>,
}

/// What was to be paid when it was begun.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expected {
    pub user: AccountId,
    /// Of the plan or pack.
    pub name: String,
    pub price: String,
    pub currency: String,
    /// In the currency's smallest unit.
    pub amount: i64,
}

impl From<Checkout> for Expected {
    fn from(checkout: Checkout) -> Expected {
        let Checkout { user, name, price, currency, amount, .. } = checkout;
        Expected { user, name, price, currency, amount }
    }
}

impl From<Topup> for Expected {
    fn from(topup: Topup) -> Expected {
        let Topup { user, pack: name, price, currency, amount, .. } = topup;
        Expected { user, name, price, currency, amount }
    }
}

/// Why nothing could be decided.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error(transparent)]
    Stripe(#[from] StripeError),
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Nobody here has this customer, and the object names no user of ours. It may come later.
    #[error("no user is known for {0}")]
    NoUser(String),
    /// Stripe says something that must not be: a person has to look.
    #[error("{0}")]
    Wrong(String),
    /// Others changed the account each time.
    #[error("the account changes too fast")]
    Restless,
}

impl Facts {
    /// Stripe's customer, if an object names one.
    pub fn customer(&self) -> Option<&str> {
        let subscriptions = self.subscriptions.iter().map(|subscription| &subscription.customer);
        let invoices = self.invoices.iter().map(|invoice| &invoice.customer);
        let checkouts = self.checkouts.iter().map(|checkout| &checkout.customer);
        let payments = self.payments.iter().map(|payment| &payment.intent.customer);
        let all = subscriptions.chain(invoices).chain(checkouts).chain(payments).chain([&self.customer]);
        all.flatten().map(String::as_str).next()
    }

    /// The user that we wrote into the metadata of what we made.
    pub fn named_user(&self) -> Option<AccountId> {
        let subscriptions = self.subscriptions.iter().map(|subscription| &subscription.metadata.user);
        let checkouts = self.checkouts.iter().map(|checkout| &checkout.metadata.user);
        let payments = self.payments.iter().map(|payment| &payment.intent.metadata.user);
        // Not by `client_reference_id`: in the address of a payment link it is whatever the payer writes there.
        let all = subscriptions.chain(checkouts).chain(payments);
        all.flatten().find_map(|id| AccountId::parse(id).ok())
    }
}

/// Reads the target and what belongs to it.
pub async fn gather(fetch: &dyn Fetch, store: &dyn Store, target: &Target) -> Result<Facts, Failure> {
    let mut gathering = Gathering { fetch, store, facts: Facts::default() };
    match target {
        Target::Checkout(id) => gathering.checkout(id).await?,
        Target::Subscription(id) => gathering.subscription(id).await?,
        Target::Invoice(id) => gathering.invoice(id).await?,
        Target::Payment(id) => gathering.payment(id).await?,
        Target::Charge(id) => {
            let charge = fetch.charge(id).await?;
            gathering.facts.customer = charge.customer;
            gathering.payment_of(charge.payment_intent).await?;
        }
        Target::Refund(id) => {
            let refund = fetch.refund(id).await?;
            let payment = gathering.payment_or_charge(refund.payment_intent, refund.charge.as_deref()).await?;
            gathering.payment_of(payment).await?;
        }
        Target::Dispute(id) => {
            let dispute = fetch.dispute(id).await?;
            let payment = gathering.payment_or_charge(dispute.payment_intent, dispute.charge.as_deref()).await?;
            gathering.payment_of(payment).await?;
        }
        Target::Warning(id) => {
            let warning = fetch.warning(id).await?;
            let payment = gathering.payment_or_charge(warning.payment_intent, warning.charge.as_deref()).await?;
            gathering.facts.warning = warning.charge.or(Some(warning.id));
            gathering.payment_of(payment).await?;
        }
    }
    Ok(gathering.facts)
}

struct Gathering<'a> {
    fetch: &'a dyn Fetch,
    store: &'a dyn Store,
    facts: Facts,
}

impl Gathering<'_> {
    async fn checkout(&mut self, id: &str) -> Result<(), Failure> {
        let session = self.fetch.checkout(id).await?;
        let (subscription, payment) = (session.subscription.clone(), session.payment_intent.clone());
        self.facts.checkouts.push(session);
        if let Some(subscription) = subscription {
            self.subscription(&subscription).await?;
        }
        if let Some(payment) = payment {
            self.only_payment(&payment).await?;
        }
        Ok(())
    }

    async fn subscription(&mut self, id: &str) -> Result<(), Failure> {
        let subscription = self.fetch.subscription(id).await?;
        self.facts.subscriptions.push(subscription);
        Ok(())
    }

    /// With its subscription and its payment: a refund may have been told before.
    async fn invoice(&mut self, id: &str) -> Result<(), Failure> {
        let invoice = self.fetch.invoice(id).await?;
        let subscription = invoice.subscription().map(str::to_owned);
        let paid = invoice.status.as_deref() == Some("paid");
        let payment = invoice.payment_intent().map(str::to_owned).filter(|_| paid);
        self.facts.invoices.push(invoice);
        if let Some(subscription) = subscription {
            self.subscription(&subscription).await?;
        }
        if let Some(payment) = payment {
            self.only_payment(&payment).await?;
        }
        Ok(())
    }

    /// A payment, and the invoice that it paid.
    async fn payment(&mut self, id: &str) -> Result<(), Failure> {
        match self.fetch.invoice_of(id).await? {
            Some(invoice) => self.invoice(&invoice).await?,
            None => self.only_payment(id).await?,
        }
        // One that paid nothing yet is not among the invoice's.
        if self.facts.payments.iter().any(|payment| payment.intent.id == id) {
            Ok(())
        } else {
            self.only_payment(id).await
        }
    }

    async fn only_payment(&mut self, id: &str) -> Result<(), Failure> {
        let intent = self.fetch.payment(id).await?;
        let payment = self.with_disputes(intent).await?;
        self.facts.payments.push(payment);
        Ok(())
    }

    pub(super) async fn with_disputes(&self, intent: PaymentIntent) -> Result<Payment, Failure> {
        let disputed = intent.latest_charge.as_ref().is_some_and(|charge| charge.disputed);
        let disputes = if disputed { self.fetch.disputes_of(&intent.id).await? } else { Vec::new() };
        let mut expected = None;
        if let Some(topup) = intent.metadata.topup.as_deref().and_then(|id| id.parse().ok()) {
            expected = self.store.topup(topup).await?.map(Expected::from);
        } else if intent.metadata.kind.as_deref() == Some("pack") {
            let known = self.facts.checkouts.iter().find(|session| session.payment_intent.as_ref() == Some(&intent.id));
            let session = match known {
                Some(session) => Some(session.id.clone()),
                None => self.fetch.checkout_of(&intent.id).await?.map(|session| session.id),
            };
            if let Some(session) = session {
                expected = self.store.checkout_of_session(&session).await?.map(Expected::from);
            }
        }
        Ok(Payment { intent, disputes, expected })
    }

    async fn payment_or_charge(
        &mut self,
        payment: Option<String>,
        charge: Option<&str>,
    ) -> Result<Option<String>, Failure> {
        match (payment, charge) {
            (Some(payment), _) => Ok(Some(payment)),
            (None, Some(charge)) => {
                let charge = self.fetch.charge(charge).await?;
                self.facts.customer = charge.customer;
                Ok(charge.payment_intent)
            }
            (None, None) => Ok(None),
        }
    }

    async fn payment_of(&mut self, payment: Option<String>) -> Result<(), Failure> {
        match payment {
            Some(payment) => self.payment(&payment).await,
            None => Ok(()),
        }
    }
}

/// Everything of a customer from `since` (Unix seconds) on: for the comparison with Stripe.
pub async fn gather_all(fetch: &dyn Fetch, store: &dyn Store, customer: &str, since: i64) -> Result<Facts, Failure> {
    let mut gathering = Gathering { fetch, store, facts: Facts::default() };
    gathering.facts.customer = Some(customer.to_owned());
    gathering.facts.subscriptions = fetch.subscriptions_of(customer).await?;
    for listed in fetch.invoices_of(customer, since).await? {
        let invoice = fetch.invoice(&listed.id).await?;
        gathering.facts.invoices.push(invoice);
    }
    for intent in fetch.payments_of(customer, since).await? {
        let payment = gathering.with_disputes(intent).await?;
        gathering.facts.payments.push(payment);
    }
    Ok(gathering.facts)
}
