//! Stripe's objects, as far as we read them, in the form of the pinned version.

use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::ledger::Micros;

/// Unix seconds, as Stripe tells times.
pub type Seconds = i64;

/// Microseconds; what lies before 1970 is no time of Stripe's.
pub fn micros(seconds: Seconds) -> Micros {
    u64::try_from(seconds).unwrap_or(0).saturating_mul(1_000_000)
}

/// The id of something that may come as an id or, expanded, as the thing itself.
fn id<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let value = Option::<Value>::deserialize(deserializer)?;
    Ok(value.and_then(|value| match value {
        Value::String(id) => Some(id),
        Value::Object(object) => object.get("id").and_then(Value::as_str).map(str::to_owned),
        _ => None,
    }))
}

fn is_there<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    Ok(!Value::deserialize(deserializer)?.is_null())
}

/// One page of a list.
#[derive(Debug, Clone, Deserialize)]
pub struct List<T> {
    pub data: Vec<T>,
    #[serde(default)]
    pub has_more: bool,
}

/// What we wrote into the metadata of what we made.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct Metadata {
    #[serde(default, rename = "faregate_user")]
    pub user: Option<String>,
    /// `plan` or `pack`.
    #[serde(default, rename = "faregate_kind")]
    pub kind: Option<String>,
    #[serde(default, rename = "faregate_name")]
    pub name: Option<String>,
    #[serde(default, rename = "faregate_price")]
    pub price: Option<String>,
    /// The purchase that was made by itself.
    #[serde(default, rename = "faregate_topup")]
    pub topup: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Customer {
    pub id: String,
    #[serde(default)]
    pub deleted: bool,
    #[serde(default)]
    pub metadata: Metadata,
    #[serde(default)]
    pub invoice_settings: InvoiceSettings,
}

#[derive(Debug, Clone, Default, Deserialize)]
pub struct InvoiceSettings {
    #[serde(default, deserialize_with = "id")]
    pub default_payment_method: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
pub struct PaymentMethod {
    pub id: String,
}

/// Why a payment was declined.
#[derive(Debug, Clone, Deserialize)]
pub struct LastError {
    #[serde(default)]
    pub code: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Price {
    pub id: String,
    #[serde(default)]
    pub active: bool,
    #[serde(default)]
    pub currency: String,
    #[serde(default)]
    pub unit_amount: Option<i64>,
    #[serde(default)]
    pub recurring: Option<Recurring>,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Recurring {
    pub interval: String,
    #[serde(default)]
    pub interval_count: i64,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Subscription {
    pub id: String,
    #[serde(deserialize_with = "id")]
    pub customer: Option<String>,
    pub status: String,
    pub created: Seconds,
    #[serde(default)]
    pub currency: String,
    #[serde(default)]
    pub cancel_at_period_end: bool,
    #[serde(default)]
    pub cancel_at: Option<Seconds>,
    #[serde(default)]
    pub ended_at: Option<Seconds>,
    #[serde(default)]
    pub trial_start: Option<Seconds>,
    #[serde(default)]
    pub trial_end: Option<Seconds>,
    #[serde(default, deserialize_with = "is_there")]
    pub pause_collection: bool,
    #[serde(default, deserialize_with = "id")]
    pub schedule: Option<String>,
    #[serde(default, deserialize_with = "id")]
    pub latest_invoice: Option<String>,
    pub items: List<SubscriptionItem>,
    #[serde(default)]
    pub metadata: Metadata,
}

#[derive(Debug, Clone, Deserialize)]
pub struct SubscriptionItem {
    pub id: String,
    pub price: Price,
    #[serde(default)]
    pub quantity: Option<i64>,
    pub current_period_start: Seconds,
    pub current_period_end: Seconds,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Invoice {
    pub id: String,
    #[serde(default)]
    pub number: Option<String>,
    /// `None` only for a preview.
    #[serde(default)]
    pub status: Option<String>,
    #[serde(default, deserialize_with = "id")]
    pub customer: Option<String>,
    #[serde(default)]
    pub billing_reason: Option<String>,
    pub currency: String,
    #[serde(default)]
    pub amount_due: i64,
    #[serde(default)]
    pub amount_paid: i64,
    #[serde(default)]
    pub amount_remaining: i64,
    #[serde(default)]
    pub attempt_count: i64,
    #[serde(default)]
    pub total: i64,
    pub created: Seconds,
    #[serde(default)]
    pub status_transitions: StatusTransitions,
    #[serde(default)]
    pub hosted_invoice_url: Option<String>,
    #[serde(default)]
    pub invoice_pdf: Option<String>,
    #[serde(default)]
    pub parent: Option<InvoiceParent>,
    pub lines: List<Line>,
    /// Only where it was asked for.
    #[serde(default)]
    pub payments: Option<List<InvoicePayment>>,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
pub struct StatusTransitions {
    #[serde(default)]
    pub paid_at: Option<Seconds>,
}

#[derive(Debug, Clone, Deserialize)]
pub struct InvoiceParent {
    #[serde(default)]
    pub subscription_details: Option<SubscriptionDetails>,
}

#[derive(Debug, Clone, Deserialize)]
pub struct SubscriptionDetails {
    #[serde(deserialize_with = "id")]
    pub subscription: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Line {
    pub id: String,
    pub amount: i64,
    pub period: Period,
    #[serde(default)]
    pub quantity: Option<i64>,
    #[serde(default)]
    pub pricing: Option<Pricing>,
    #[serde(default)]
    pub parent: Option<LineParent>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
pub struct Period {
    pub start: Seconds,
    pub end: Seconds,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Pricing {
    #[serde(default)]
    pub price_details: Option<PriceDetails>,
}

#[derive(Debug, Clone, Deserialize)]
pub struct PriceDetails {
    #[serde(deserialize_with = "id")]
    pub price: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
pub struct LineParent {
    #[serde(default)]
    pub subscription_item_details: Option<ItemDetails>,
    #[serde(default)]
    pub invoice_item_details: Option<ItemDetails>,
}

#[derive(Debug, Clone, Deserialize)]
pub struct ItemDetails {
    #[serde(default)]
    pub proration: bool,
    #[serde(default, deserialize_with = "id")]
    pub subscription: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
pub struct InvoicePayment {
    #[serde(default, deserialize_with = "id")]
    pub invoice: Option<String>,
    #[serde(default)]
    pub status: String,
    #[serde(default)]
    pub payment: Option<PaymentOfInvoice>,
}

#[derive(Debug, Clone, Deserialize)]
pub struct PaymentOfInvoice {
    #[serde(default, deserialize_with = "id")]
    pub payment_intent: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
pub struct CheckoutSession {
    pub id: String,
    pub mode: String,
    #[serde(default)]
    pub status: Option<String>,
    #[serde(default)]
    pub payment_status: String,
    #[serde(default, deserialize_with = "id")]
    pub customer: Option<String>,
    #[serde(default)]
    pub amount_total: Option<i64>,
    #[serde(default)]
    pub currency: Option<String>,
    #[serde(default, deserialize_with = "id")]
    pub subscription: Option<String>,
    #[serde(default, deserialize_with = "id")]
    pub payment_intent: Option<String>,
    #[serde(default)]
    pub metadata: Metadata,
    /// A bearer secret: whoever has it pays as this user. Never logged.
    #[serde(default)]
    pub url: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
pub struct PaymentIntent {
    pub id: String,
    pub status: String,
    pub amount: i64,
    #[serde(default)]
    pub amount_received: i64,
    pub currency: String,
    pub created: Seconds,
    #[serde(default, deserialize_with = "id")]
    pub customer: Option<String>,
    #[serde(default)]
    pub latest_charge: Option<Charge>,
    #[serde(default)]
    pub last_payment_error: Option<LastError>,
    #[serde(default)]
    pub metadata: Metadata,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Charge {
    pub id: String,
    #[serde(default)]
    pub amount: i64,
    #[serde(default)]
    pub amount_refunded: i64,
    #[serde(default)]
    pub disputed: bool,
    #[serde(default, deserialize_with = "id")]
    pub payment_intent: Option<String>,
    #[serde(default, deserialize_with = "id")]
    pub customer: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Refund {
    pub id: String,
    #[serde(default, deserialize_with = "id")]
    pub charge: Option<String>,
    #[serde(default, deserialize_with = "id")]
    pub payment_intent: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Dispute {
    pub id: String,
    pub status: String,
    pub amount: i64,
    #[serde(default, deserialize_with = "id")]
    pub charge: Option<String>,
    #[serde(default, deserialize_with = "id")]
    pub payment_intent: Option<String>,
    #[serde(default)]
    pub balance_transactions: Vec<BalanceTransaction>,
}

#[derive(Debug, Clone, Deserialize)]
pub struct BalanceTransaction {
    /// In our own currency at Stripe, which need not be the payment's.
    #[serde(default)]
    pub amount: i64,
    #[serde(default)]
    pub created: Seconds,
}

#[derive(Debug, Clone, Deserialize)]
pub struct EarlyFraudWarning {
    pub id: String,
    #[serde(deserialize_with = "id")]
    pub charge: Option<String>,
    #[serde(default, deserialize_with = "id")]
    pub payment_intent: Option<String>,
}

/// An event of the list of undelivered ones, whole.
pub type RawEvent = Value;

impl Invoice {
    pub fn subscription(&self) -> Option<&str> {
        self.parent.as_ref()?.subscription_details.as_ref()?.subscription.as_deref()
    }

    /// What paid it, where money moved.
    pub fn payment_intent(&self) -> Option<&str> {
        let payments = self.payments.as_ref()?;
        let paid = payments.data.iter().find(|payment| payment.status == "paid").or_else(|| payments.data.first())?;
        paid.payment.as_ref()?.payment_intent.as_deref()
    }
}

impl Line {
    pub fn price(&self) -> Option<&str> {
        self.pricing.as_ref()?.price_details.as_ref()?.price.as_deref()
    }

    pub fn proration(&self) -> bool {
        let Some(parent) = &self.parent else { return false };
        let details = [&parent.subscription_item_details, &parent.invoice_item_details];
        details.into_iter().flatten().any(|details| details.proration)
    }
}

impl Dispute {
    /// Whether it is decided yet.
    pub fn open(&self) -> bool {
        matches!(
            self.status.as_str(),
            "needs_response" | "under_review" | "warning_needs_response" | "warning_under_review"
        )
    }

    /// What it took from us, in the payment's smallest unit: all that is disputed, or nothing.
    pub fn withdrawn(&self) -> i64 {
        let taken = match self.status.as_str() {
            "lost" => true,
            "won" | "warning_closed" | "prevented" => false,
            // How much was taken is told in another currency, perhaps; that it was is enough.
            _ => self.balance_transactions.iter().map(|transaction| i128::from(transaction.amount)).sum::<i128>() < 0,
        };
        if taken { self.amount } else { 0 }
    }

    /// When what it had taken came back (Unix seconds).
    pub fn returned_at(&self) -> Option<Seconds> {
        let back = self.balance_transactions.iter().filter(|transaction| transaction.amount > 0);
        back.map(|transaction| transaction.created).filter(|created| *created > 0).max()
    }
}
