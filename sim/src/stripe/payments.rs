//! Payment intents and charges: how an attempt to pay goes, and what becomes of it.

use serde_json::{Value, json};

use super::cards::Behaviour;
use super::error::Failure;
use super::kind::Kind;
use super::world::{World, int, live, reference, text};

/// What is to be paid.
#[derive(Debug, Clone)]
pub(super) struct Payment {
    /// May be empty.
    pub customer: String,
    /// In minor units, above 0.
    pub amount: i64,
    pub currency: String,
    pub metadata: Value,
    pub description: Option<String>,
    /// Empty unless an invoice is paid.
    pub invoice: String,
    pub live: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Outcome {
    Paid,
    Declined(Failure),
    /// The cardholder must do something first; off session that is a decline.
    NeedsAction,
    Processing,
}

/// Makes a payment intent that waits for a payment method; answers its id.
pub(super) fn new_intent(world: &mut World, payment: &Payment) -> String {
    let id = world.new_id(Kind::PaymentIntent);
    let secret = format!("{id}_secret_{}", world.serial());
    let customer = Some(payment.customer.as_str()).filter(|customer| !customer.is_empty());
    let intent = json!({
        "amount": payment.amount, "amount_capturable": 0, "amount_details": { "tip": {} }, "amount_received": 0,
        "application": null, "application_fee_amount": null,
        "automatic_payment_methods": { "allow_redirects": "always", "enabled": true }, "canceled_at": null,
        "cancellation_reason": null, "capture_method": "automatic", "client_secret": secret,
        "confirmation_method": "automatic", "created": world.now, "currency": payment.currency, "customer": customer,
        "customer_account": null, "description": payment.description, "excluded_payment_method_types": null, "id": id,
        "last_payment_error": null, "latest_charge": null, "livemode": payment.live, "metadata": payment.metadata,
        "next_action": null, "object": "payment_intent", "on_behalf_of": null, "payment_method": null,
        "payment_method_configuration_details": null, "payment_method_options": {}, "payment_method_types": ["card"],
        "processing": null, "receipt_email": null, "review": null, "setup_future_usage": null, "shipping": null,
        "source": null, "statement_descriptor": null, "statement_descriptor_suffix": null,
        "status": "requires_payment_method", "transfer_data": null, "transfer_group": null,
        "_invoice": payment.invoice,
    });
    world.insert(Kind::PaymentIntent, intent);
    world.tell(Kind::PaymentIntent, &id, "payment_intent.created");
    id
}

/// Tries to pay an intent with a method. What follows from it for an invoice is the caller's business.
pub(super) fn attempt(world: &mut World, intent: &str, method: &str, off_session: bool) -> Outcome {
    let customer = reference(&world.copy(Kind::PaymentIntent, intent), "customer").to_owned();
    let behaviour = world.behaviour_of(Some(&customer), method);
    world.edit(Kind::PaymentIntent, intent, |intent| intent["payment_method"] = method.into());
    match behaviour {
        Behaviour::Pays => {
            succeed(world, intent);
            Outcome::Paid
        }
        Behaviour::Declines(code) => {
            let failure = Failure::card("card_declined", Some(&code), "Your card was declined.");
            Outcome::Declined(decline(world, intent, failure))
        }
        Behaviour::NeedsAction if off_session => {
            let message = "Your card was declined. This transaction requires authentication.";
            let failure = Failure::card("authentication_required", Some("authentication_required"), message);
            Outcome::Declined(decline(world, intent, failure))
        }
        Behaviour::NeedsAction => {
            let url = format!("{}/c/authenticate/{intent}", world.base);
            world.edit(Kind::PaymentIntent, intent, |intent| {
                intent["status"] = "requires_action".into();
                intent["next_action"] =
                    json!({ "type": "redirect_to_url", "redirect_to_url": { "return_url": null, "url": url } });
            });
            world.tell(Kind::PaymentIntent, intent, "payment_intent.requires_action");
            Outcome::NeedsAction
        }
        Behaviour::Processing => {
            world.edit(Kind::PaymentIntent, intent, |intent| {
                intent["status"] = "processing".into();
                intent["processing"] = json!({ "type": "card", "card": { "customer_notification": null } });
            });
            world.tell(Kind::PaymentIntent, intent, "payment_intent.processing");
            Outcome::Processing
        }
    }
}

/// The money arrives.
pub(super) fn succeed(world: &mut World, intent: &str) {
    let charge = new_charge(world, intent, None);
    world.tell(Kind::Charge, &charge, "charge.succeeded");
    world.edit(Kind::PaymentIntent, intent, |intent| {
        intent["status"] = "succeeded".into();
        intent["amount_received"] = intent["amount"].clone();
        intent["latest_charge"] = charge.as_str().into();
        for name in ["next_action", "processing", "last_payment_error"] {
            intent[name] = Value::Null;
        }
    });
    world.tell(Kind::PaymentIntent, intent, "payment_intent.succeeded");
}

/// The money does not; the failure comes back with the intent in it.
pub(super) fn decline(world: &mut World, intent: &str, mut failure: Failure) -> Failure {
    let charge = new_charge(world, intent, Some(&failure));
    world.tell(Kind::Charge, &charge, "charge.failed");
    let method = world.copy(Kind::PaymentMethod, reference(&world.copy(Kind::PaymentIntent, intent), "payment_method"));
    let mut error = failure.body()["error"].clone();
    error["charge"] = charge.as_str().into();
    error["payment_method"] = super::present::plain(&method);
    world.edit(Kind::PaymentIntent, intent, |intent| {
        intent["status"] = "requires_payment_method".into();
        intent["latest_charge"] = charge.as_str().into();
        intent["last_payment_error"] = error;
        intent["payment_method"] = Value::Null;
        intent["next_action"] = Value::Null;
        intent["processing"] = Value::Null;
    });
    world.tell(Kind::PaymentIntent, intent, "payment_intent.payment_failed");
    failure.payment_intent = Some(Box::new(super::present::plain(&world.copy(Kind::PaymentIntent, intent))));
    failure
}

/// Ends what waits for a slow method or for the cardholder, with all that follows from it.
pub(super) fn settle(world: &mut World, intent: &str, paid: bool) {
    if !matches!(text(&world.copy(Kind::PaymentIntent, intent), "status"), "processing" | "requires_action") {
        return;
    }
    if paid {
        succeed(world, intent);
    } else {
        decline(world, intent, Failure::card("payment_intent_authentication_failure", None, "The payment failed."));
    }
    after(world, intent, paid);
}

/// What a payment that ended means for its invoice and its checkout session.
pub(super) fn after(world: &mut World, intent: &str, paid: bool) {
    let invoice = text(&world.copy(Kind::PaymentIntent, intent), "_invoice").to_owned();
    if !invoice.is_empty() && paid {
        super::collection::paid(world, &invoice);
    } else if !invoice.is_empty() {
        super::collection::failed(world, &invoice, false);
    }
    super::checkout::async_payment(world, intent, paid);
}

/// Cancels an intent that has not ended.
pub(super) fn cancel(world: &mut World, intent: &str, reason: &str) {
    if matches!(text(&world.copy(Kind::PaymentIntent, intent), "status"), "succeeded" | "canceled" | "") {
        return;
    }
    let now = world.now;
    world.edit(Kind::PaymentIntent, intent, |intent| {
        intent["status"] = "canceled".into();
        intent["canceled_at"] = now.into();
        intent["cancellation_reason"] = reason.into();
        intent["next_action"] = Value::Null;
    });
    world.tell(Kind::PaymentIntent, intent, "payment_intent.canceled");
}

fn new_charge(world: &mut World, intent_id: &str, failure: Option<&Failure>) -> String {
    let intent = world.copy(Kind::PaymentIntent, intent_id);
    let method = world.copy(Kind::PaymentMethod, reference(&intent, "payment_method"));
    let id = world.new_id(Kind::Charge);
    let paid = failure.is_none();
    let amount = int(&intent, "amount");
    let transaction = paid.then(|| world.id("txn"));
    let outcome = json!({
        "advice_code": null, "network_advice_code": null, "network_decline_code": null,
        "network_status": if paid { "approved_by_network" } else { "declined_by_network" },
        "reason": failure.and_then(|failure| failure.decline_code.as_deref()), "risk_level": "normal",
        "seller_message": if paid { "Payment complete." } else { "The bank did not approve the payment." },
        "type": if paid { "authorized" } else { "issuer_declined" },
    });
    let charge = json!({
        "amount": amount, "amount_captured": if paid { amount } else { 0 }, "amount_refunded": 0, "application": null,
        "application_fee": null, "application_fee_amount": null, "balance_transaction": transaction,
        "billing_details": method["billing_details"], "calculated_statement_descriptor": "SIMULATOR", "captured": paid,
        "created": world.now, "currency": intent["currency"], "customer": intent["customer"],
        "description": intent["description"], "disputed": false, "failure_balance_transaction": null,
        "failure_code": failure.and_then(|failure| failure.code),
        "failure_message": failure.map(|failure| &*failure.message), "fraud_details": {}, "id": id,
        "livemode": live(&intent), "metadata": intent["metadata"], "object": "charge", "on_behalf_of": null,
        "outcome": outcome, "paid": paid, "payment_intent": intent_id, "payment_method": method["id"],
        "payment_method_details": { "card": card_details(&method, amount), "type": "card" },
        "receipt_email": null, "receipt_number": null, "receipt_url": format!("{}/r/{id}", world.base), "refunded": false,
        "review": null, "shipping": null, "source": null, "source_transfer": null, "statement_descriptor": null,
        "statement_descriptor_suffix": null, "status": if paid { "succeeded" } else { "failed" }, "transfer_data": null,
        "transfer_group": null,
    });
    world.insert(Kind::Charge, charge);
    id
}

fn card_details(method: &Value, amount: i64) -> Value {
    let card = &method["card"];
    json!({
        "amount_authorized": amount, "authorization_code": null, "brand": card["brand"], "checks": card["checks"],
        "country": card["country"], "exp_month": card["exp_month"], "exp_year": card["exp_year"],
        "extended_authorization": { "status": "disabled" }, "fingerprint": card["fingerprint"],
        "funding": card["funding"], "incremental_authorization": { "status": "unavailable" }, "installments": null,
        "last4": card["last4"], "mandate": null, "multicapture": { "status": "unavailable" }, "network": card["brand"],
        "network_token": { "used": false }, "network_transaction_id": null,
        "overcapture": { "maximum_amount_capturable": amount, "status": "unavailable" }, "regulated_status": "unregulated",
        "three_d_secure": null, "transaction_link_id": null, "wallet": null,
    })
}
