//! Every object against Stripe's own fixture of its resource: the same fields, of the same types.

use serde_json::Value;

use super::rig::{Listener, Rig, WAIT, id};
use crate::stripe::Kind;

/// Stripe's public fixtures, reduced to what is served here (MIT: `LICENSE-stripe` beside it).
const FIXTURES: &str = include_str!("../../../fixtures/stripe.json");

/// Fields that fixtures show and answers have not: leftovers of older versions, and lists that come only when expanded.
const ABSENT: [(&str, &str); 5] = [
    ("invoice", "subscription"),
    ("checkout.session", "line_items"),
    ("charge", "refunds"),
    ("payment_intent", "managed_payments"),
    ("invoiceitem", "tax_rates"),
];
/// Fields that answers have and fixtures do not show.
const ADDED: [(&str, &str); 5] = [
    ("radar.early_fraud_warning", "payment_intent"),
    ("refund", "failure_reason"),
    ("refund", "failure_balance_transaction"),
    ("event", "previous_attributes"),
    ("invoiceitem", "subscription_item"),
];
/// Objects with fields of their own choosing, or of one of several kinds.
const OPEN: [&str; 13] = [
    "metadata",
    "previous_attributes",
    "data.object",
    "payment_method_options",
    "discount",
    "processing",
    "next_action",
    "last_payment_error",
    "subscription_update",
    "subscription_cancel",
    "subscription_update_confirm",
    "billing_mode",
    "flow",
];

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn compare(resource: &str, path: &str, ours: &Value, theirs: &Value, wrong: &mut Vec<String>) {
    let at = format!("{resource} {path}");
    if ours.is_null()
        || theirs.is_null()
        || OPEN.iter().any(|open| path == *open || path.ends_with(&format!(".{open}")))
    {
        return;
    }
    match (ours, theirs) {
        (Value::Object(ours), Value::Object(theirs)) => {
            for name in theirs.keys().filter(|name| !ours.contains_key(*name)) {
                if !ABSENT.contains(&(resource, name.as_str())) && !theirs.is_empty() && !optional(path) {
                    wrong.push(format!("{at}: no field {name}"));
                }
            }
            for name in ours.keys().filter(|name| !theirs.contains_key(*name) && !theirs.is_empty()) {
                if !ADDED.contains(&(resource, name.as_str())) && !optional(path) {
                    wrong.push(format!("{at}: {name} is unknown to Stripe"));
                }
            }
            for (name, value) in ours {
                let inner = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                compare(resource, &inner, value, theirs.get(name).unwrap_or(&Value::Null), wrong);
            }
        }
        (Value::Array(ours), Value::Array(theirs)) => {
            if let Some(theirs) = theirs.first() {
                ours.iter().for_each(|ours| compare(resource, path, ours, theirs, wrong));
            }
        }
        // An expandable field is an id or the object.
        (Value::String(_), Value::Object(_)) | (Value::Object(_), Value::String(_)) => {}
        _ if kind_of(ours) == kind_of(theirs) => {}
        _ => wrong.push(format!("{at}: {} for {}", kind_of(ours), kind_of(theirs))),
    }
}

/// Where fixtures show one of several forms, or less than there is.
fn optional(path: &str) -> bool {
    [
        "pricing",
        "parent",
        "payment",
        "destination_details.card",
        "outcome",
        "balance_transactions",
        "trial_settings",
        "automatic_payment_methods",
        "price_details",
    ]
    .iter()
    .any(|name| path == *name || path.ends_with(&format!(".{name}")))
}

#[tokio::test]
async fn every_resource_has_the_shape_of_its_fixture() {
    let rig = Rig::start().await;
    let listener = Listener::start(&[]).await;
    rig.control.endpoint(&listener.url, &["whsec_a"]);
    let (customer, subscription) = rig.subscribe("price_small", "").await;
    rig.post(&format!("/v1/customers/{customer}"), "address[city]=Bern&name=A").await;
    let item = rig.control.object(&subscription)["items"]["data"][0]["id"].as_str().unwrap().to_owned();
    rig.control.advance_by(1_000_000).unwrap();
    rig.post(&format!("/v1/subscriptions/{subscription}"), &format!("items[0][id]={item}&items[0][price]=price_big"))
        .await;
    rig.post("/v1/subscription_schedules", &format!("from_subscription={subscription}")).await;
    rig.post("/v1/checkout/sessions", &format!("mode=setup&customer={customer}&success_url=http://x&currency=usd"))
        .await;
    let setup = id(rig.control.objects(Kind::Session).last().unwrap());
    rig.control.complete_checkout(&setup, "pm_card_mastercard").unwrap();
    rig.post("/v1/checkout/sessions", "mode=payment&line_items[0][price]=price_pack&line_items[0][quantity]=1&success_url=http://x&invoice_creation[enabled]=true").await;
    let open = id(rig.control.objects(Kind::Session).last().unwrap());
    rig.control.complete_checkout(&open, "pm_card_chargeDeclined").unwrap_err();
    rig.control.complete_checkout(&open, "pm_card_visa").unwrap();
    let invoice = rig.control.object(&subscription)["latest_invoice"].as_str().unwrap().to_owned();
    let refund = rig.control.refund(&invoice, Some(100)).unwrap();
    rig.control.fail_refund(&refund).unwrap();
    rig.control.dispute(&invoice, None).unwrap();
    rig.control.fraud_warning(&invoice).unwrap();
    rig.post("/v1/billing_portal/sessions", &format!("customer={customer}&return_url=http://x")).await;
    rig.control.advance_by(60 * 86_400).unwrap();
    assert!(rig.control.delivered(WAIT).await);

    let fixtures: Value = serde_json::from_str(FIXTURES).unwrap();
    let kinds = [
        Kind::Charge,
        Kind::Customer,
        Kind::Dispute,
        Kind::EarlyFraudWarning,
        Kind::Event,
        Kind::Invoice,
        Kind::InvoiceItem,
        Kind::InvoicePayment,
        Kind::PaymentIntent,
        Kind::PaymentMethod,
        Kind::PortalSession,
        Kind::Price,
        Kind::Product,
        Kind::Refund,
        Kind::Schedule,
        Kind::Session,
        Kind::SetupIntent,
        Kind::Subscription,
        Kind::WebhookEndpoint,
    ];
    let mut wrong = Vec::new();
    for kind in kinds {
        let objects = rig.control.objects(kind);
        assert!(!objects.is_empty(), "the story makes no {}", kind.name());
        for object in objects {
            let resource = object["object"].as_str().unwrap();
            compare(resource, "", &object, &fixtures[resource], &mut wrong);
        }
    }
    let session = rig.get(&format!("/v1/checkout/sessions/{open}?expand[]=line_items")).await;
    compare("item", "", &session["line_items"]["data"][0], &fixtures["item"], &mut wrong);
    wrong.sort();
    wrong.dedup();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    rig.stop().await;
}
