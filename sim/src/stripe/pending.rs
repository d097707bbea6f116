//! Changes of a subscription that wait: for a payment (`pending_update`), or for the next invoice (invoice items).

use serde_json::{Value, json};

use super::collection;
use super::invoices::Line;
use super::kind::Kind;
use super::subscriptions::INCOMPLETE_S;
use super::world::{Timer, World, int, reference, text};

/// Keeps new prices until `invoice` is paid.
pub(super) fn hold(world: &mut World, id: &str, items: &[Value], invoice: &str) {
    let expires = world.now + INCOMPLETE_S;
    let items = items.to_vec();
    world.touch(Kind::Subscription, id, "customer.subscription.updated", |sub| {
        sub["pending_update"] = json!({
            "billing_cycle_anchor": null, "discounts": [], "expires_at": expires, "metadata": null,
            "subscription_items": items, "trial_end": null, "trial_from_plan": null, "_invoice": invoice,
        });
    });
    world.at(expires, Timer::PendingUpdate(id.to_owned()));
}

/// Its invoice was paid.
pub(super) fn applied(world: &mut World, id: &str) {
    world.touch(Kind::Subscription, id, "customer.subscription.updated", |sub| {
        let items = sub["pending_update"]["subscription_items"].take();
        if items[0]["current_period_start"] != sub["items"]["data"][0]["current_period_start"] {
            sub["billing_cycle_anchor"] = items[0]["current_period_start"].clone();
        }
        sub["items"]["data"] = items;
        sub["pending_update"] = Value::Null;
    });
    super::subscriptions::schedule_timers(world, id);
    world.tell(Kind::Subscription, id, "customer.subscription.pending_update_applied");
}

/// Its invoice was never paid: void.
pub(super) fn expired(world: &mut World, id: &str) {
    let subscription = world.copy(Kind::Subscription, id);
    if subscription["pending_update"]["expires_at"] != world.now {
        return;
    }
    let invoice = text(&subscription["pending_update"], "_invoice").to_owned();
    world.touch(Kind::Subscription, id, "customer.subscription.updated", |sub| sub["pending_update"] = Value::Null);
    world.tell(Kind::Subscription, id, "customer.subscription.pending_update_expired");
    collection::void(world, &invoice);
}

/// Gives the first items these prices and quantities.
pub(super) fn put_prices(subscription: &mut Value, prices: &[(Value, i64)]) {
    let items = subscription["items"]["data"].as_array_mut();
    for (item, (price, quantity)) in items.into_iter().flatten().zip(prices) {
        put_price(item, price, *quantity);
    }
}

pub(super) fn put_price(item: &mut Value, price: &Value, quantity: i64) {
    item["price"] = price.clone();
    item["quantity"] = quantity.into();
    for (field, of) in
        [("id", "id"), ("amount", "unit_amount"), ("amount_decimal", "unit_amount_decimal"), ("product", "product")]
    {
        item["plan"][field] = price[of].clone();
    }
    for field in ["interval", "interval_count"] {
        item["plan"][field] = price["recurring"][field].clone();
    }
}

/// Keeps a line for the subscription's next invoice.
pub(super) fn add_invoice_item(world: &mut World, subscription_id: &str, line: &Line) {
    let subscription = world.copy(Kind::Subscription, subscription_id);
    let id = world.new_id(Kind::InvoiceItem);
    let item = json!({
        "amount": line.amount, "currency": subscription["currency"], "customer": reference(&subscription, "customer"),
        "customer_account": null, "date": world.now, "description": line.description, "discountable": false,
        "discounts": [], "id": id, "invoice": null, "livemode": subscription["livemode"], "metadata": {},
        "net_amount": line.amount, "object": "invoiceitem",
        "parent": {
            "subscription_details": { "subscription": subscription_id, "subscription_item": line.item },
            "type": "subscription_details",
        },
        "period": { "end": line.end, "start": line.start },
        "pricing": {
            "price_details": { "price": line.price["id"], "product": line.price["product"] }, "type": "price_details",
            "unit_amount_decimal": line.price["unit_amount_decimal"],
        },
        "proration": line.proration, "quantity": line.quantity, "quantity_decimal": line.quantity.to_string(),
        "tax_rates": [], "test_clock": null, "_subscription": subscription_id,
    });
    world.insert(Kind::InvoiceItem, item);
    world.tell(Kind::InvoiceItem, &id, "invoiceitem.created");
}

/// Forgets a line that waits.
pub(super) fn drop_invoice_item(world: &mut World, id: &str) -> Value {
    let gone = json!({ "id": id, "object": "invoiceitem", "deleted": true });
    world.edit(Kind::InvoiceItem, id, |item| *item = gone.clone());
    gone
}

/// The lines kept for a subscription, which are now on an invoice.
pub(super) fn take_invoice_items(world: &mut World, subscription: &str) -> Vec<Line> {
    let waiting = |item: &Value| item["_subscription"] == subscription && item["invoice"].is_null();
    let ids = world.ids(Kind::InvoiceItem, waiting);
    ids.iter()
        .map(|id| {
            let item = world.copy(Kind::InvoiceItem, id);
            world.edit(Kind::InvoiceItem, id, |item| item["invoice"] = "taken".into());
            Line {
                amount: int(&item, "amount"),
                description: text(&item, "description").to_owned(),
                start: int(&item["period"], "start"),
                end: int(&item["period"], "end"),
                price: world.copy(Kind::Price, text(&item["pricing"]["price_details"], "price")),
                quantity: int(&item, "quantity"),
                item: text(&item["parent"]["subscription_details"], "subscription_item").to_owned(),
                proration: item["proration"] == true,
                invoice_item: id.clone(),
            }
        })
        .collect()
}
