//! `/v1/disputes` and `/v1/radar/early_fraud_warnings`: what banks and cardholders begin.

use serde_json::{Value, json};

use super::api::Call;
use super::error::Failure;
use super::kind::Kind;
use super::list;
use super::world::{World, int, live, text};

const DAY_S: i64 = 86_400;
const EVIDENCE: [&str; 27] = [
    "access_activity_log",
    "billing_address",
    "cancellation_policy",
    "cancellation_policy_disclosure",
    "cancellation_rebuttal",
    "customer_communication",
    "customer_email_address",
    "customer_name",
    "customer_purchase_ip",
    "customer_signature",
    "duplicate_charge_documentation",
    "duplicate_charge_explanation",
    "duplicate_charge_id",
    "product_description",
    "receipt",
    "refund_policy",
    "refund_policy_disclosure",
    "refund_refusal_explanation",
    "service_date",
    "service_documentation",
    "shipping_address",
    "shipping_carrier",
    "shipping_date",
    "shipping_documentation",
    "shipping_tracking_number",
    "uncategorized_file",
    "uncategorized_text",
];

pub(super) fn route(world: &mut World, call: &Call, rest: &[&str]) -> Option<Result<Value, Failure>> {
    let filters = ["charge", "payment_intent"];
    Some(match (call.method.as_str(), rest) {
        ("GET", []) => list::of(world, Kind::Dispute, "/v1/disputes", &call.params, call.live, &filters, |_| true),
        ("GET", [id]) => call.retrieve(world, Kind::Dispute, id),
        ("POST", [id, "close"]) => {
            let found = world.find(Kind::Dispute, id, call.live, "id").map(drop);
            found.and_then(|()| close(world, id, false)).map(|()| world.copy(Kind::Dispute, id))
        }
        _ => return None,
    })
}

pub(super) fn warnings(world: &mut World, call: &Call, rest: &[&str]) -> Option<Result<Value, Failure>> {
    let (url, filters) = ("/v1/radar/early_fraud_warnings", ["charge", "payment_intent"]);
    Some(match (call.method.as_str(), rest) {
        ("GET", []) => list::of(world, Kind::EarlyFraudWarning, url, &call.params, call.live, &filters, |_| true),
        ("GET", [id]) => call.retrieve(world, Kind::EarlyFraudWarning, id),
        _ => return None,
    })
}

/// A cardholder disputes `amount` minor units of a charge (all of it when none); Stripe takes the money at once unless
/// it is only an inquiry. Answers the dispute's id.
///
/// # Errors
/// When there is no such charge that succeeded.
pub(super) fn open(world: &mut World, charge_id: &str, amount: Option<i64>, inquiry: bool) -> Result<String, Failure> {
    let charge = world.copy(Kind::Charge, charge_id);
    if charge["status"] != "succeeded" {
        return Err(Failure::no_such("charge", charge_id, "charge", None));
    }
    let id = world.new_id(Kind::Dispute);
    let mut evidence: Value = EVIDENCE.iter().map(|name| ((*name).to_owned(), Value::Null)).collect();
    evidence["enhanced_evidence"] = json!({});
    let amount = amount.map_or_else(|| charge["amount"].clone(), Value::from);
    let brand = &charge["payment_method_details"]["card"]["brand"];
    let dispute = json!({
        "amount": amount, "balance_transactions": [], "charge": charge_id, "created": world.now,
        "currency": charge["currency"], "enhanced_eligibility_types": [], "evidence": evidence,
        "evidence_details": {
            "due_by": world.now + 7 * DAY_S, "enhanced_eligibility": {}, "has_evidence": false, "past_due": false,
            "submission_count": 0,
        },
        "id": id, "is_charge_refundable": inquiry, "livemode": charge["livemode"], "metadata": {}, "object": "dispute",
        "payment_intent": charge["payment_intent"],
        "payment_method_details": {
            "card": {
                "brand": brand, "case_type": if inquiry { "inquiry" } else { "chargeback" }, "network": brand,
                "network_reason_code": "10.4",
            },
            "type": "card",
        },
        "reason": "fraudulent", "status": if inquiry { "warning_needs_response" } else { "needs_response" },
    });
    world.insert(Kind::Dispute, dispute);
    world.edit(Kind::Charge, charge_id, |charge| charge["disputed"] = true.into());
    world.tell(Kind::Dispute, &id, "charge.dispute.created");
    if !inquiry {
        withdraw(world, &id);
    }
    Ok(id)
}

fn withdraw(world: &mut World, id: &str) {
    move_funds(world, id, -1);
    world.tell(Kind::Dispute, id, "charge.dispute.funds_withdrawn");
}

/// Notes what the dispute took from our balance (`sign` -1), or gave back (1).
fn move_funds(world: &mut World, id: &str, sign: i64) {
    let dispute = world.copy(Kind::Dispute, id);
    let amount = int(&dispute, "amount") * sign;
    let transaction = json!({
        "amount": amount, "available_on": world.now, "balance_type": "payments", "created": world.now,
        "currency": dispute["currency"], "description": format!("Chargeback for {}", text(&dispute, "charge")),
        "exchange_rate": null, "fee": 0, "fee_details": [], "id": world.id("txn"), "net": amount,
        "object": "balance_transaction", "reporting_category": if sign < 0 { "dispute" } else { "dispute_reversal" },
        "source": id, "status": "available", "type": "adjustment",
    });
    world.edit(Kind::Dispute, id, |dispute| {
        if let Some(transactions) = dispute["balance_transactions"].as_array_mut() {
            transactions.push(transaction);
        }
    });
}

/// The bank decides; a won dispute brings the money back.
///
/// # Errors
/// When there is none that is open.
pub(super) fn close(world: &mut World, id: &str, won: bool) -> Result<(), Failure> {
    let dispute = world.copy(Kind::Dispute, id);
    let status = text(&dispute, "status");
    if !status.contains("needs_response") && !status.contains("under_review") {
        return Err(Failure::no_such("dispute", id, "id", None));
    }
    let was_inquiry = status.starts_with("warning_");
    let status = match (was_inquiry, won) {
        (true, _) => "warning_closed",
        (false, true) => "won",
        (false, false) => "lost",
    };
    world.edit(Kind::Dispute, id, |dispute| dispute["status"] = status.into());
    world.tell(Kind::Dispute, id, "charge.dispute.closed");
    if status == "won" {
        move_funds(world, id, 1);
        world.tell(Kind::Dispute, id, "charge.dispute.funds_reinstated");
    }
    Ok(())
}

/// The bank warns of a charge; answers the warning's id.
///
/// # Errors
/// When there is no such charge.
pub(super) fn warn(world: &mut World, charge_id: &str) -> Result<String, Failure> {
    let charge = world.copy(Kind::Charge, charge_id);
    if charge.is_null() {
        return Err(Failure::no_such("charge", charge_id, "charge", None));
    }
    let id = world.new_id(Kind::EarlyFraudWarning);
    let warning = json!({
        "actionable": true, "charge": charge_id, "created": world.now, "fraud_type": "made_with_stolen_card", "id": id,
        "livemode": live(&charge), "object": "radar.early_fraud_warning", "payment_intent": charge["payment_intent"],
    });
    world.insert(Kind::EarlyFraudWarning, warning);
    world.tell(Kind::EarlyFraudWarning, &id, "radar.early_fraud_warning.created");
    Ok(id)
}
