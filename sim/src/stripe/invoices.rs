//! How an invoice is made: lines, totals, finalization. What happens to its payment is in `collection`.

use serde_json::{Value, json};

use super::kind::Kind;
use super::payments::{self, Payment};
use super::world::{World, int, live, reference, text};

/// One line.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Line {
    /// In minor units; negative for what is given back.
    pub amount: i64,
    pub description: String,
    pub start: i64,
    pub end: i64,
    /// The whole price object.
    pub price: Value,
    pub quantity: i64,
    /// Id of the subscription item; empty for a one-off.
    pub item: String,
    pub proration: bool,
    /// Id of the invoice item this line was made from; empty for none.
    pub invoice_item: String,
}

/// What an invoice is for.
#[derive(Debug, Clone)]
pub(super) struct Draft {
    pub customer: String,
    /// Empty for a one-off invoice.
    pub subscription: String,
    /// `subscription_create`, `subscription_cycle`, `subscription_update`, `manual`.
    pub reason: &'static str,
    pub lines: Vec<Line>,
    /// Looks back one period, as Stripe's does.
    pub period: (i64, i64),
    pub metadata: Value,
    pub live: bool,
    pub currency: String,
}

/// Makes a draft and tells of it; answers its id.
pub(super) fn new(world: &mut World, draft: &Draft) -> String {
    let id = world.new_id(Kind::Invoice);
    let invoice = object(world, &id, draft);
    world.insert(Kind::Invoice, invoice);
    for line in draft.lines.iter().filter(|line| !line.invoice_item.is_empty()) {
        world.edit(Kind::InvoiceItem, &line.invoice_item, |item| item["invoice"] = id.as_str().into());
    }
    if !draft.subscription.is_empty() {
        world.edit(Kind::Subscription, &draft.subscription, |subscription| {
            subscription["latest_invoice"] = id.as_str().into();
        });
    }
    world.tell(Kind::Invoice, &id, "invoice.created");
    id
}

/// The draft as an object that is stored nowhere; its totals are the sums of its lines.
pub(super) fn object(world: &mut World, id: &str, draft: &Draft) -> Value {
    let customer = world.copy(Kind::Customer, &draft.customer);
    let subscription = world.copy(Kind::Subscription, &draft.subscription);
    let lines: Vec<Value> = draft.lines.iter().map(|line| line_object(world, id, draft, line)).collect();
    let total: i64 = draft.lines.iter().map(|line| line.amount).sum();
    let balance = int(&customer, "balance");
    let parent = if draft.subscription.is_empty() {
        Value::Null
    } else {
        let metadata = &subscription["metadata"];
        let details = json!({ "metadata": metadata, "subscription": draft.subscription });
        json!({ "quote_details": null, "subscription_details": details, "type": "subscription_details" })
    };
    let automatic_tax =
        json!({ "disabled_reason": null, "enabled": false, "liability": null, "provider": null, "status": null });
    let due = (total + balance).max(0);
    json!({
        "account_country": "US", "account_name": "Simulator", "account_tax_ids": null, "amount_due": due,
        "amount_overpaid": 0, "amount_paid": 0, "amount_remaining": due, "amount_shipping": 0, "application": null,
        "attempt_count": 0, "attempted": false, "auto_advance": draft.reason != "manual",
        "automatic_tax": automatic_tax, "automatically_finalizes_at": null, "billing_reason": draft.reason,
        "collection_method": "charge_automatically", "created": world.now, "currency": draft.currency,
        "custom_fields": null, "customer": draft.customer, "customer_account": null, "customer_address": customer["address"],
        "customer_email": customer["email"], "customer_name": customer["name"], "customer_phone": customer["phone"],
        "customer_shipping": null, "customer_tax_exempt": "none", "customer_tax_ids": [], "default_payment_method": null,
        "default_source": null, "default_tax_rates": [], "description": null, "discounts": [], "due_date": null,
        "effective_at": null, "ending_balance": null, "footer": null, "from_invoice": null, "hosted_invoice_url": null,
        "id": id, "invoice_pdf": null, "issuer": { "type": "self" }, "last_finalization_error": null,
        "latest_revision": null,
        "lines": { "data": lines, "has_more": false, "object": "list", "url": format!("/v1/invoices/{id}/lines") },
        "livemode": draft.live, "metadata": draft.metadata, "next_payment_attempt": null, "number": null,
        "object": "invoice", "on_behalf_of": null, "parent": parent,
        "payment_settings": { "default_mandate": null, "payment_method_options": null, "payment_method_types": null },
        "period_end": draft.period.1, "period_start": draft.period.0, "post_payment_credit_notes_amount": 0,
        "pre_payment_credit_notes_amount": 0, "receipt_number": null,
        "rendering": null, "shipping_cost": null, "shipping_details": null, "starting_balance": balance,
        "statement_descriptor": null, "status": "draft",
        "status_transitions": { "finalized_at": null, "marked_uncollectible_at": null, "paid_at": null, "voided_at": null },
        "subtotal": total, "subtotal_excluding_tax": total, "test_clock": null, "total": total,
        "total_discount_amounts": [], "total_excluding_tax": total, "total_pretax_credit_amounts": [], "total_taxes": [],
        "webhooks_delivered_at": world.now,
    })
}

fn line_object(world: &mut World, invoice: &str, draft: &Draft, line: &Line) -> Value {
    let subscription = Some(draft.subscription.as_str()).filter(|id| !id.is_empty());
    let credited = if line.proration { json!({ "credited_items": null }) } else { Value::Null };
    let parent = if line.item.is_empty() || !line.invoice_item.is_empty() {
        json!({
            "invoice_item_details": {
                "invoice_item": line.invoice_item, "proration": line.proration, "proration_details": credited,
                "subscription": subscription,
            },
            "subscription_item_details": null, "type": "invoice_item_details",
        })
    } else {
        json!({
            "invoice_item_details": null,
            "subscription_item_details": {
                "invoice_item": null, "proration": line.proration, "proration_details": credited,
                "subscription": subscription, "subscription_item": line.item,
            },
            "type": "subscription_item_details",
        })
    };
    json!({
        "amount": line.amount, "currency": draft.currency, "description": line.description, "discount_amounts": [],
        "discountable": !line.proration, "discounts": [], "id": world.id("il"), "invoice": invoice,
        "livemode": draft.live, "metadata": {}, "object": "line_item", "parent": parent,
        "period": { "end": line.end, "start": line.start }, "pretax_credit_amounts": [],
        "pricing": {
            "price_details": { "price": line.price["id"], "product": line.price["product"] }, "type": "price_details",
            "unit_amount_decimal": line.price["unit_amount_decimal"],
        },
        "quantity": line.quantity, "quantity_decimal": line.quantity.to_string(), "subscription": subscription,
        "subtotal": line.amount, "taxes": [],
    })
}

/// Gives a draft its number and what is due after the customer's balance; nothing due means paid.
pub(super) fn finalize(world: &mut World, id: &str) {
    let invoice = world.copy(Kind::Invoice, id);
    if invoice["status"] != "draft" {
        return;
    }
    let customer_id = reference(&invoice, "customer").to_owned();
    let customer = world.copy(Kind::Customer, &customer_id);
    let (total, balance, number) =
        (int(&invoice, "total"), int(&customer, "balance"), int(&customer, "next_invoice_sequence"));
    let due = (total + balance).max(0);
    // What a positive total does not use up of a credit stays; a negative total adds to it.
    let ending = total + balance - due;
    debug_assert_eq!(total, sum_of_lines(&invoice), "an invoice's total is the sum of its lines");
    if ending != balance {
        world.touch(Kind::Customer, &customer_id, "customer.updated", |customer| customer["balance"] = ending.into());
    }
    world.edit(Kind::Customer, &customer_id, |customer| {
        customer["next_invoice_sequence"] = (number + 1).into();
        customer["currency"] = invoice["currency"].clone();
    });
    let (now, base) = (world.now, world.base.clone());
    world.edit(Kind::Invoice, id, |invoice| {
        invoice["status"] = "open".into();
        invoice["number"] = format!("{}-{number:04}", text(&customer, "invoice_prefix")).into();
        invoice["amount_due"] = due.into();
        invoice["amount_remaining"] = due.into();
        invoice["starting_balance"] = balance.into();
        invoice["ending_balance"] = ending.into();
        invoice["effective_at"] = now.into();
        invoice["automatically_finalizes_at"] = Value::Null;
        invoice["status_transitions"]["finalized_at"] = now.into();
        invoice["hosted_invoice_url"] = format!("{base}/i/{id}").into();
        invoice["invoice_pdf"] = format!("{base}/i/{id}/pdf").into();
    });
    if due > 0 {
        new_payment(world, id, due);
    }
    world.tell(Kind::Invoice, id, "invoice.finalized");
    if due == 0 {
        super::collection::paid(world, id);
    }
}

fn sum_of_lines(invoice: &Value) -> i64 {
    invoice["lines"]["data"].as_array().into_iter().flatten().map(|line| int(line, "amount")).sum()
}

fn new_payment(world: &mut World, invoice_id: &str, due: i64) {
    let invoice = world.copy(Kind::Invoice, invoice_id);
    let intent = payments::new_intent(
        world,
        &Payment {
            customer: reference(&invoice, "customer").to_owned(),
            amount: due,
            currency: text(&invoice, "currency").to_owned(),
            metadata: json!({}),
            description: Some(format!("Payment for Invoice {}", text(&invoice, "number"))),
            invoice: invoice_id.to_owned(),
            live: live(&invoice),
        },
    );
    let id = world.new_id(Kind::InvoicePayment);
    let payment = json!({
        "amount_paid": null, "amount_requested": due, "created": world.now, "currency": invoice["currency"], "id": id,
        "invoice": invoice_id, "is_default": true, "livemode": invoice["livemode"], "object": "invoice_payment",
        "payment": { "payment_intent": intent, "type": "payment_intent" }, "status": "open",
        "status_transitions": { "canceled_at": null, "paid_at": null },
    });
    world.insert(Kind::InvoicePayment, payment);
    world.edit(Kind::Invoice, invoice_id, |invoice| {
        invoice["_payment"] = id.into();
        invoice["_intent"] = intent.into();
    });
}
