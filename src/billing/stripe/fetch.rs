//! Reading Stripe's objects again: what an event says of them is not believed.

use async_trait::async_trait;

use super::form::{Form, escape};
use super::objects::{
    Charge, CheckoutSession, Customer, Dispute, EarlyFraudWarning, Invoice, InvoicePayment, Line, List, PaymentIntent,
    PaymentMethod, Price, RawEvent, Refund, Subscription,
};
use super::{Client, StripeError};

/// Items of a page of Stripe's.
const PAGE: usize = 100;
/// Pages of one list that are read.
const MAX_PAGES: usize = 50;

/// Where snapshots of Stripe's objects come from: Stripe, or a test.
#[async_trait]
pub trait Fetch: Send + Sync {
    async fn subscription(&self, id: &str) -> Result<Subscription, StripeError>;
    /// With all its lines and its payments.
    async fn invoice(&self, id: &str) -> Result<Invoice, StripeError>;
    async fn checkout(&self, id: &str) -> Result<CheckoutSession, StripeError>;
    /// With its latest charge.
    async fn payment(&self, id: &str) -> Result<PaymentIntent, StripeError>;
    async fn charge(&self, id: &str) -> Result<Charge, StripeError>;
    async fn refund(&self, id: &str) -> Result<Refund, StripeError>;
    async fn dispute(&self, id: &str) -> Result<Dispute, StripeError>;
    async fn warning(&self, id: &str) -> Result<EarlyFraudWarning, StripeError>;
    async fn disputes_of(&self, payment_intent: &str) -> Result<Vec<Dispute>, StripeError>;
    /// The invoice that a payment paid, if it paid one.
    async fn invoice_of(&self, payment_intent: &str) -> Result<Option<String>, StripeError>;
    /// The checkout that a payment came from, if there was one.
    async fn checkout_of(&self, payment_intent: &str) -> Result<Option<CheckoutSession>, StripeError>;
    /// Ended ones too, newest first.
    async fn subscriptions_of(&self, customer: &str) -> Result<Vec<Subscription>, StripeError>;
    /// Newest first, as they are listed: lines and payments may be missing. From `since` (Unix seconds) on.
    async fn invoices_of(&self, customer: &str, since: i64) -> Result<Vec<Invoice>, StripeError>;
    /// Newest first, with their charges.
    async fn payments_of(&self, customer: &str, since: i64) -> Result<Vec<PaymentIntent>, StripeError>;
}

#[async_trait]
impl Fetch for Client {
    async fn subscription(&self, id: &str) -> Result<Subscription, StripeError> {
        self.get(&path("subscriptions", id), &Form::new()).await
    }

    async fn invoice(&self, id: &str) -> Result<Invoice, StripeError> {
        let mut invoice: Invoice = self.get(&path("invoices", id), &Form::new().with("expand[]", "payments")).await?;
        if invoice.lines.has_more {
            let lines = format!("{}/lines", path("invoices", id));
            invoice.lines.data = self.all(&lines, &Form::new(), |line: &Line| line.id.clone()).await?;
            invoice.lines.has_more = false;
        }
        Ok(invoice)
    }

    async fn checkout(&self, id: &str) -> Result<CheckoutSession, StripeError> {
        self.get(&path("checkout/sessions", id), &Form::new()).await
    }

    async fn payment(&self, id: &str) -> Result<PaymentIntent, StripeError> {
        self.get(&path("payment_intents", id), &Form::new().with("expand[]", "latest_charge")).await
    }

    async fn charge(&self, id: &str) -> Result<Charge, StripeError> {
        self.get(&path("charges", id), &Form::new()).await
    }

    async fn refund(&self, id: &str) -> Result<Refund, StripeError> {
        self.get(&path("refunds", id), &Form::new()).await
    }

    async fn dispute(&self, id: &str) -> Result<Dispute, StripeError> {
        self.get(&path("disputes", id), &Form::new()).await
    }

    async fn warning(&self, id: &str) -> Result<EarlyFraudWarning, StripeError> {
        self.get(&path("radar/early_fraud_warnings", id), &Form::new()).await
    }

    async fn disputes_of(&self, payment_intent: &str) -> Result<Vec<Dispute>, StripeError> {
        let of = Form::new().with("payment_intent", payment_intent);
        self.all("/v1/disputes", &of, |dispute: &Dispute| dispute.id.clone()).await
    }

    async fn invoice_of(&self, payment_intent: &str) -> Result<Option<String>, StripeError> {
        let of = Form::new()
            .with("payment[type]", "payment_intent")
            .with("payment[payment_intent]", payment_intent)
            .with("limit", 1);
        let payments: List<InvoicePayment> = self.get("/v1/invoice_payments", &of).await?;
        Ok(payments.data.into_iter().find_map(|payment| payment.invoice))
    }

    async fn checkout_of(&self, payment_intent: &str) -> Result<Option<CheckoutSession>, StripeError> {
        let of = Form::new().with("payment_intent", payment_intent).with("limit", 1);
        let sessions: List<CheckoutSession> = self.get("/v1/checkout/sessions", &of).await?;
        Ok(sessions.data.into_iter().next())
    }

    async fn subscriptions_of(&self, customer: &str) -> Result<Vec<Subscription>, StripeError> {
        let of = Form::new().with("customer", customer).with("status", "all");
        self.all("/v1/subscriptions", &of, |subscription: &Subscription| subscription.id.clone()).await
    }

    async fn invoices_of(&self, customer: &str, since: i64) -> Result<Vec<Invoice>, StripeError> {
        let of = Form::new().with("customer", customer).with("created[gte]", since);
        self.all("/v1/invoices", &of, |invoice: &Invoice| invoice.id.clone()).await
    }

    async fn payments_of(&self, customer: &str, since: i64) -> Result<Vec<PaymentIntent>, StripeError> {
        let of =
            Form::new().with("customer", customer).with("created[gte]", since).with("expand[]", "data.latest_charge");
        self.all("/v1/payment_intents", &of, |payment: &PaymentIntent| payment.id.clone()).await
    }
}

impl Client {
    pub async fn customer(&self, id: &str) -> Result<Customer, StripeError> {
        self.get(&path("customers", id), &Form::new()).await
    }

    /// What a customer's payments without the customer go to: their default, else the card attached last.
    pub async fn payment_method_of(&self, customer: &str) -> Result<Option<String>, StripeError> {
        let found = self.customer(customer).await?;
        if let Some(method) = found.invoice_settings.default_payment_method {
            return Ok(Some(method));
        }
        let of = Form::new().with("customer", customer).with("type", "card").with("limit", 1);
        let methods: List<PaymentMethod> = self.get("/v1/payment_methods", &of).await?;
        Ok(methods.data.into_iter().next().map(|method| method.id))
    }

    pub async fn price(&self, id: &str) -> Result<Price, StripeError> {
        self.get(&path("prices", id), &Form::new()).await
    }

    /// Events of these types from `since` (Unix seconds) on, newest first; `undelivered`: only those that no endpoint took.
    pub async fn events(&self, types: &[&str], since: i64, undelivered: bool) -> Result<Vec<RawEvent>, StripeError> {
        let mut of = Form::new().with("created[gte]", since);
        if undelivered {
            of = of.with("delivery_success", false);
        }
        for kind in types {
            of = of.with("types[]", kind);
        }
        let id = |event: &RawEvent| event.get("id").and_then(|id| id.as_str()).unwrap_or_default().to_owned();
        self.all("/v1/events", &of, id).await
    }

    /// All items of a list, page by page.
    async fn all<T: serde::de::DeserializeOwned>(
        &self,
        path: &str,
        form: &Form,
        id: impl Fn(&T) -> String,
    ) -> Result<Vec<T>, StripeError> {
        let mut found: Vec<T> = Vec::new();
        for _ in 0..MAX_PAGES {
            let page = form.clone().with("limit", PAGE).with_some("starting_after", found.last().map(&id));
            let list: List<T> = self.get(path, &page).await?;
            let more = list.has_more && !list.data.is_empty();
            found.extend(list.data);
            if !more {
                return Ok(found);
            }
        }
        Err(StripeError::Unreadable(path.to_owned(), format!("it has more than {} items", MAX_PAGES * PAGE)))
    }
}

/// The path of one object. Ids come from outside: nothing in them leads elsewhere.
pub fn path(kind: &str, id: &str) -> String {
    let mut path = format!("/v1/{kind}/");
    escape(id, &mut path);
    path
}
