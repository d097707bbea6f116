//! `/v1/refunds`.

use serde_json::{Value, json};

use super::api::Call;
use super::error::Failure;
use super::kind::Kind;
use super::list;
use super::world::{World, int, live, reference, text};

pub(super) fn route(world: &mut World, call: &Call, rest: &[&str]) -> Option<Result<Value, Failure>> {
    let filters = ["charge", "payment_intent"];
    Some(match (call.method.as_str(), rest) {
        ("POST", []) => create(world, call),
        ("GET", []) => list::of(world, Kind::Refund, "/v1/refunds", &call.params, call.live, &filters, |_| true),
        ("GET", [id]) => call.retrieve(world, Kind::Refund, id),
        ("POST", [id]) => update(world, call, id),
        _ => return None,
    })
}

fn create(world: &mut World, call: &Call) -> Result<Value, Failure> {
    let params = &call.params;
    params.only(&["amount", "charge", "metadata", "payment_intent", "reason"])?;
    let charge = if let Some(charge) = params.text("charge") {
        world.find(Kind::Charge, charge, call.live, "charge")?;
        charge.to_owned()
    } else {
        let intent = params.need("payment_intent")?;
        let intent = world.find(Kind::PaymentIntent, intent, call.live, "payment_intent")?;
        if intent["status"] != "succeeded" {
            return Err(Failure::invalid(
                "payment_intent",
                "This PaymentIntent does not have a successful charge to refund.",
            ));
        }
        reference(intent, "latest_charge").to_owned()
    };
    let reason = params.one_of("reason", &["duplicate", "fraudulent", "requested_by_customer"])?;
    let id = refund(world, &charge, params.int("amount")?)?;
    let metadata = params.metadata("metadata", &Value::Null)?;
    world.edit(Kind::Refund, &id, |refund| {
        refund["reason"] = reason.into();
        refund["metadata"] = metadata;
    });
    Ok(world.copy(Kind::Refund, &id))
}

/// Gives a charge back, all that is left of it or `amount` minor units; answers the refund's id.
///
/// # Errors
/// When that much is not left.
pub(super) fn refund(world: &mut World, charge_id: &str, amount: Option<i64>) -> Result<String, Failure> {
    let charge = world.copy(Kind::Charge, charge_id);
    if charge["status"] != "succeeded" {
        return Err(Failure::no_such("charge", charge_id, "charge", None));
    }
    let left = int(&charge, "amount") - int(&charge, "amount_refunded");
    if left == 0 {
        return Err(Failure::state(
            "charge_already_refunded",
            format!("Charge {charge_id} has already been refunded."),
        ));
    }
    let amount = amount.unwrap_or(left);
    if !(1..=left).contains(&amount) {
        let message = format!("Refund amount ({amount}) is greater than unrefunded amount on charge ({left})");
        return Err(Failure::invalid("amount", message));
    }
    let id = world.new_id(Kind::Refund);
    let transaction = world.id("txn");
    let card = json!({ "reference": null, "reference_status": "pending", "reference_type": "acquirer_reference_number", "type": "refund" });
    let refund = json!({
        "amount": amount, "balance_transaction": transaction, "charge": charge_id, "created": world.now,
        "currency": charge["currency"], "customer": charge["customer"], "customer_account": null,
        "destination_details": { "card": card, "type": "card" }, "id": id, "metadata": {}, "object": "refund",
        "payment_intent": charge["payment_intent"], "payment_method": charge["payment_method"], "reason": null,
        "receipt_number": null, "source_transfer_reversal": null, "status": "succeeded", "transfer_reversal": null,
        "_live": live(&charge),
    });
    world.insert(Kind::Refund, refund);
    put_refunded(world, charge_id, int(&charge, "amount_refunded") + amount);
    world.tell(Kind::Refund, &id, "refund.created");
    world.tell(Kind::Charge, charge_id, "charge.refunded");
    world.tell(Kind::Refund, &id, "refund.updated");
    Ok(id)
}

fn put_refunded(world: &mut World, charge: &str, amount: i64) {
    world.edit(Kind::Charge, charge, |charge| {
        charge["amount_refunded"] = amount.into();
        charge["refunded"] = (amount == int(charge, "amount")).into();
    });
}

/// The bank sends a refund back: it failed after all.
///
/// # Errors
/// When there is none that succeeded.
pub(super) fn fail(world: &mut World, id: &str) -> Result<(), Failure> {
    let refund = world.copy(Kind::Refund, id);
    if refund["status"] != "succeeded" {
        return Err(Failure::no_such("refund", id, "id", None));
    }
    let charge = text(&refund, "charge").to_owned();
    let transaction = world.id("txn");
    world.edit(Kind::Refund, id, |refund| {
        refund["status"] = "failed".into();
        refund["failure_reason"] = "lost_or_stolen_card".into();
        refund["failure_balance_transaction"] = transaction.into();
    });
    let left = int(&world.copy(Kind::Charge, &charge), "amount_refunded") - int(&refund, "amount");
    put_refunded(world, &charge, left);
    world.tell(Kind::Refund, id, "refund.updated");
    world.tell(Kind::Refund, id, "refund.failed");
    Ok(())
}

fn update(world: &mut World, call: &Call, id: &str) -> Result<Value, Failure> {
    call.params.only(&["metadata"])?;
    let old = world.find(Kind::Refund, id, call.live, "id")?;
    let metadata = call.params.metadata("metadata", &old["metadata"])?;
    world.touch(Kind::Refund, id, "refund.updated", |refund| refund["metadata"] = metadata);
    Ok(world.copy(Kind::Refund, id))
}
