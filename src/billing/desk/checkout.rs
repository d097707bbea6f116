//! Pages at Stripe: where a plan or a pack is paid, and where a user manages what they have.

use uuid::Uuid;

use super::{Desk, DeskError};
use crate::billing::inbox::now;
use crate::billing::lifecycle::is_live;
use crate::billing::lifecycle::route::Target;
use crate::billing::stripe::StripeError;
use crate::billing::stripe::fetch::{Fetch, path};
use crate::billing::stripe::form::Form;
use crate::billing::stripe::objects::CheckoutSession;
use crate::config::Interval;
use crate::ledger::AccountId;
use crate::store::StoreError;
use crate::store::billing::{BillingAccount, Checkout, CheckoutKind, CheckoutState};

/// Checkouts that are found open one after the other before the caller has to ask again.
const MAX_ROUNDS: usize = 4;
/// A portal's page is handed out again for so long.
const PORTAL_KEY_US: u64 = 60 * 1_000_000;

/// What is to be bought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    Plan { name: String, interval: Interval },
    Pack { name: String },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    pub what: What,
    /// The first one that there is a price in, when not given.
    pub currency: Option<String>,
}

/// A page at Stripe. Its address is a bearer secret, which `Debug` does not show.
#[derive(Clone)]
pub struct Page {
    pub id: String,
    pub url: String,
}

impl std::fmt::Debug for Page {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "Page({})", self.id)
    }
}

/// Which part of the portal opens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Portal {
    Home,
    PaymentMethod,
    Cancel,
}

/// An order with its price.
struct Priced {
    kind: CheckoutKind,
    name: String,
    price: String,
    currency: String,
    amount: i64,
}

impl Desk {
    /// A page where the user pays. The same one for the same order while it is open; another order closes it first.
    pub async fn checkout(&self, user: &AccountId, order: &Order) -> Result<Page, DeskError> {
        let priced = self.priced(user, order).await?;
        for _ in 0..MAX_ROUNDS {
            let account = self.store.billing_account(user).await?;
            if priced.kind == CheckoutKind::Plan && account.subscriptions.iter().any(|row| is_live(&row.status)) {
                return Err(DeskError::Conflict("there is a subscription already: change it instead"));
            }
            let open = match self.store.open_checkout(user).await? {
                Some(open) => open,
                None => match self.begin(user, &priced).await? {
                    Some(begun) => begun,
                    // Another tab was quicker.
                    None => continue,
                },
            };
            let session = self.session(&account, &open).await?;
            let url = session.url.filter(|_| session.status.as_deref() == Some("open"));
            match url {
                Some(url) if open.price == priced.price => return Ok(Page { id: session.id, url }),
                Some(_) => self.expire(&open, &session.id).await?,
                // Paid, or expired: what follows from it is done first.
                None => self.finish(&open, &session.id).await?,
            }
        }
        Err(DeskError::Busy)
    }

    /// The portal: payment method, invoices, cancelling.
    pub async fn portal(&self, user: &AccountId, portal: Portal) -> Result<Page, DeskError> {
        let account = self.store.billing_account(user).await?;
        let customer = self.customer(&account).await?;
        let mut form =
            Form::new().with("customer", customer).with("return_url", format!("{}?portal=done", self.return_url));
        match portal {
            Portal::Home => {}
            Portal::PaymentMethod => form = form.with("flow_data[type]", "payment_method_update"),
            Portal::Cancel => {
                let (_, row) = self.live(user).await?;
                form = form
                    .with("flow_data[type]", "subscription_cancel")
                    .with("flow_data[subscription_cancel][subscription]", row.id);
            }
        }
        let url = "/v1/billing_portal/sessions";
        let scope = format!("portal:{user}");
        let key = self.store.call_key(&scope, super::digest(url, &form), PORTAL_KEY_US).await?;
        let made: Result<PortalSession, StripeError> = self.client.post(url, &form, &key).await;
        if made.is_err() {
            self.store.forget_call(&scope).await?;
        }
        let made = made?;
        Ok(Page { id: made.id, url: made.url })
    }

    async fn priced(&self, user: &AccountId, order: &Order) -> Result<Priced, DeskError> {
        let currency = order.currency.as_deref();
        match &order.what {
            What::Plan { name, interval } => {
                let seen = self.terms.of(user, name).await?;
                let offer = self.catalog.plan_offer(seen.as_ref(), name, currency, *interval);
                let offer = offer.ok_or(DeskError::Unknown("no such plan is sold in this currency and interval"))?;
                Ok(Priced {
                    kind: CheckoutKind::Plan,
                    name: offer.name.to_owned(),
                    price: offer.price.id.clone(),
                    currency: offer.price.currency.clone(),
                    amount: offer.price.amount,
                })
            }
            What::Pack { name } => {
                let offer = self.catalog.pack_offer(name, currency);
                let offer = offer.ok_or(DeskError::Unknown("no such pack is sold in this currency"))?;
                Ok(Priced {
                    kind: CheckoutKind::Pack,
                    name: offer.name.to_owned(),
                    price: offer.price.id.clone(),
                    currency: offer.price.currency.clone(),
                    amount: offer.price.amount,
                })
            }
        }
    }

    /// `None` where another one is open.
    async fn begin(&self, user: &AccountId, priced: &Priced) -> Result<Option<Checkout>, DeskError> {
        let checkout = Checkout {
            id: Uuid::now_v7(),
            user: user.clone(),
            session: None,
            kind: priced.kind,
            name: priced.name.clone(),
            price: priced.price.clone(),
            currency: priced.currency.clone(),
            amount: priced.amount,
            state: CheckoutState::Open,
            created_at: now(),
        };
        match self.store.begin_checkout(checkout.clone()).await {
            Ok(()) => Ok(Some(checkout)),
            Err(StoreError::Conflict(_)) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Stripe's session of a checkout: as it stands now, or made, should it not be known to be.
    async fn session(&self, account: &BillingAccount, open: &Checkout) -> Result<CheckoutSession, DeskError> {
        if let Some(session) = &open.session {
            return Ok(self.client.checkout(session).await?);
        }
        let customer = self.customer(account).await?;
        let form = self.form(account, open, &customer);
        let made: Result<CheckoutSession, DeskError> =
            self.send(&format!("checkout:{}", open.id), "/v1/checkout/sessions", &form).await;
        if matches!(made, Err(DeskError::Stripe(StripeError::Refused { .. }))) {
            // It is not there, and will not be.
            self.store.set_checkout_state(open.id, CheckoutState::Failed).await?;
        }
        let made = made?;
        self.store.set_checkout_session(open.id, &made.id).await?;
        Ok(made)
    }

    fn form(&self, account: &BillingAccount, open: &Checkout, customer: &str) -> Form {
        let user = &account.user.id;
        let (mode, kind, data) = match open.kind {
            CheckoutKind::Plan => ("subscription", "plan", "subscription_data"),
            CheckoutKind::Pack => ("payment", "pack", "payment_intent_data"),
        };
        let mut form = Form::new()
            .with("mode", mode)
            .with("customer", customer)
            .with("client_reference_id", user)
            .with("line_items[0][price]", &open.price)
            .with("line_items[0][quantity]", 1)
            .with("success_url", format!("{}?checkout=success&session_id={{CHECKOUT_SESSION_ID}}", self.return_url))
            .with("cancel_url", format!("{}?checkout=cancelled", self.return_url));
        for within in ["metadata".to_owned(), format!("{data}[metadata]")] {
            form = form
                .with(format!("{within}[faregate_user]"), user)
                .with(format!("{within}[faregate_kind]"), kind)
                .with(format!("{within}[faregate_name]"), &open.name)
                .with(format!("{within}[faregate_price]"), &open.price);
        }
        // A trial is for who never had a subscription.
        let days = self.catalog.plan(&open.name).map_or(0, |plan| plan.trial_days);
        let first = open.kind == CheckoutKind::Plan && account.subscriptions.is_empty();
        form.with_some("subscription_data[trial_period_days]", (first && days > 0).then_some(days))
    }

    /// Closes a page that is not wanted any more.
    pub(super) async fn expire(&self, open: &Checkout, session: &str) -> Result<(), DeskError> {
        let url = format!("{}/expire", path("checkout/sessions", session));
        let expired: Result<CheckoutSession, DeskError> =
            self.send(&format!("expire:{session}"), &url, &Form::new()).await;
        match expired {
            Ok(_) => Ok(self.store.set_checkout_state(open.id, CheckoutState::Expired).await?),
            // It was paid just now.
            Err(DeskError::Stripe(StripeError::Refused { .. })) => self.finish(open, session).await,
            Err(error) => Err(error),
        }
    }

    async fn finish(&self, open: &Checkout, session: &str) -> Result<(), DeskError> {
        self.processor.object(&Target::Checkout(session.to_owned()), "checkout").await?;
        // Where it changed nothing, such as for a session that Stripe forgot, it is over all the same.
        if self.store.open_checkout(&open.user).await?.is_some_and(|still| still.id == open.id) {
            self.store.set_checkout_state(open.id, CheckoutState::Expired).await?;
        }
        Ok(())
    }
}

#[derive(serde::Deserialize)]
struct PortalSession {
    id: String,
    url: String,
}
