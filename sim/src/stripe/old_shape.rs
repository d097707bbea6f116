//! Objects as versions before 2025-03-31 (basil) showed them: what moved since is back in its old place.
//!
//! An endpoint of such a version gets its events in this shape, so payloads cannot be trusted to be in ours.

use serde_json::{Value, json};

use super::kind::Kind;
use super::world::{World, text};

const FIRST_NEW: &str = "2025-03-31";

pub(super) fn is_old(version: &str) -> bool {
    version < FIRST_NEW
}

pub(super) fn render(world: &World, mut object: Value) -> Value {
    match object["object"].as_str() {
        Some("list") => {
            let rows = object["data"].as_array_mut().map(std::mem::take).unwrap_or_default();
            object["data"] = rows.into_iter().map(|row| render(world, row)).collect();
        }
        Some("event") => {
            let inner = object["data"]["object"].take();
            object["data"]["object"] = render(world, inner);
        }
        Some("invoice") => invoice(world, &mut object),
        Some("subscription") => subscription(&mut object),
        Some("charge") => {
            let invoice = invoice_of(world, text(&object, "payment_intent"));
            object["invoice"] = invoice;
        }
        Some("payment_intent") => {
            let invoice = invoice_of(world, text(&object, "id"));
            object["invoice"] = invoice;
        }
        Some("checkout.session") if object["ui_mode"] == "hosted_page" => object["ui_mode"] = "hosted".into(),
        _ => {}
    }
    object
}

fn remove(object: &mut Value, names: &[&str]) {
    if let Some(fields) = object.as_object_mut() {
        names.iter().for_each(|name| drop(fields.remove(*name)));
    }
}

fn invoice_of(world: &World, intent: &str) -> Value {
    let mut payments = world.all(Kind::InvoicePayment).rev();
    payments.find(|row| row["payment"]["payment_intent"] == intent).map_or(Value::Null, |row| row["invoice"].clone())
}

fn invoice(world: &World, invoice: &mut Value) {
    let details = invoice["parent"]["subscription_details"].clone();
    invoice["subscription"] = details["subscription"].clone();
    invoice["subscription_details"] = json!({ "metadata": details["metadata"] });
    let mut payments = world.all(Kind::InvoicePayment).rev();
    let payment =
        payments.find(|row| row["invoice"] == invoice["id"]).map(|row| row["payment"]["payment_intent"].clone());
    let intent = payment.as_ref().and_then(|id| world.get(Kind::PaymentIntent, id.as_str()?));
    invoice["charge"] = intent.map_or(Value::Null, |intent| intent["latest_charge"].clone());
    invoice["payment_intent"] = payment.unwrap_or_default();
    invoice["paid"] = (invoice["status"] == "paid").into();
    for line in invoice["lines"]["data"].as_array_mut().into_iter().flatten() {
        let price = text(&line["pricing"]["price_details"], "price").to_owned();
        let item = line["parent"]["subscription_item_details"].clone();
        let one_off = line["parent"]["invoice_item_details"].clone();
        line["price"] = world.get(Kind::Price, &price).cloned().unwrap_or_default();
        line["proration"] = (item["proration"] == true || one_off["proration"] == true).into();
        line["subscription_item"] = item["subscription_item"].clone();
        line["type"] = if item.is_null() { "invoiceitem" } else { "subscription" }.into();
        remove(line, &["parent", "pricing", "taxes"]);
    }
    remove(invoice, &["parent", "total_taxes", "amount_overpaid"]);
}

fn subscription(subscription: &mut Value) {
    let first = subscription["items"]["data"][0].clone();
    for name in ["current_period_start", "current_period_end"] {
        subscription[name] = first[name].clone();
    }
    for item in subscription["items"]["data"].as_array_mut().into_iter().flatten() {
        remove(item, &["current_period_start", "current_period_end"]);
    }
    remove(subscription, &["billing_mode", "billing_schedules"]);
}
