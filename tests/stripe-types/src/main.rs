//! `faregate-stripe-types FIXTURES OBJECTS…`: reads Stripe's own example objects and then the simulator's with the types of
//! async-stripe, as that library reads an answer. Both are JSON: the examples an object by resource, ours lists.

use std::collections::BTreeMap;
use std::process::ExitCode;

use miniserde::Deserialize;
use serde_json::Value;

/// `None` where async-stripe does not read a text, else whether it knows every value of a fixed set in it.
type Reads = fn(&str) -> Option<bool>;

fn reads<T: Deserialize + std::fmt::Debug>(text: &str) -> Option<bool> {
    // A status or a currency that Stripe has not is kept as `Unknown("…")`.
    miniserde::json::from_str::<T>(text).ok().map(|read| !format!("{read:?}").contains("Unknown(\""))
}

const KINDS: [(&str, Reads); 19] = [
    ("billing_portal.session", reads::<stripe_billing::BillingPortalSession>),
    ("charge", reads::<stripe_shared::Charge>),
    ("checkout.session", reads::<stripe_shared::CheckoutSession>),
    ("customer", reads::<stripe_shared::Customer>),
    ("dispute", reads::<stripe_shared::Dispute>),
    ("event", reads::<stripe_shared::Event>),
    ("invoice", reads::<stripe_shared::Invoice>),
    ("invoice_payment", reads::<stripe_shared::InvoicePayment>),
    ("invoiceitem", reads::<stripe_billing::InvoiceItem>),
    ("payment_intent", reads::<stripe_shared::PaymentIntent>),
    ("payment_method", reads::<stripe_shared::PaymentMethod>),
    ("price", reads::<stripe_shared::Price>),
    ("product", reads::<stripe_shared::Product>),
    ("radar.early_fraud_warning", reads::<stripe_fraud::RadarEarlyFraudWarning>),
    ("refund", reads::<stripe_shared::Refund>),
    ("setup_intent", reads::<stripe_shared::SetupIntent>),
    ("subscription", reads::<stripe_shared::Subscription>),
    ("subscription_schedule", reads::<stripe_shared::SubscriptionSchedule>),
    ("webhook_endpoint", reads::<stripe_misc::WebhookEndpoint>),
];

/// How many of a kind were read, and how many were not.
type Counts = BTreeMap<&'static str, (usize, usize)>;

fn main() -> ExitCode {
    let mut files = std::env::args().skip(1);
    let fixtures = read(&files.next().unwrap_or_default());
    let (mut counts, mut failed) = (Counts::new(), 0);
    for (kind, reads) in KINDS {
        let readable = fixtures.get(kind).is_some_and(|fixture| reads(&fixture.to_string()).is_some());
        // Its values are partly placeholders.
        if !readable {
            println!("Stripe's own example of {kind} is not read by async-stripe");
            failed += 1;
        }
    }
    for object in files.flat_map(|file| read(&file).as_array().cloned().unwrap_or_default()) {
        failed += check(&object, &fixtures, &mut counts);
        // What an event carries is such an object too.
        if let Some(inner) = object.pointer("/data/object").filter(|_| object["object"] == "event") {
            failed += check(inner, &fixtures, &mut counts);
        }
    }
    let missing: Vec<_> = KINDS.iter().map(|(kind, _)| *kind).filter(|kind| !counts.contains_key(kind)).collect();
    for kind in &missing {
        println!("no {kind} to read");
    }
    failed += missing.len();
    for (kind, (good, bad)) in &counts {
        println!("{kind}: {good} read, {bad} not");
    }
    let passed: usize = counts.values().map(|(good, _)| good).sum();
    println!("{passed} passed, {failed} failed");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn read(file: &str) -> Value {
    let text = std::fs::read_to_string(file).unwrap_or_else(|error| panic!("{file}: {error}"));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{file}: {error}"))
}

/// Answers how many failed: none, or this one.
fn check(object: &Value, fixtures: &Value, counts: &mut Counts) -> usize {
    let Some((kind, reads)) = KINDS.iter().find(|(kind, _)| object["object"] == *kind) else {
        println!("an object of no known kind: {}", object["object"]);
        return 1;
    };
    // A deleted object is another type there.
    if object["deleted"] == true {
        return 0;
    }
    let count = counts.entry(kind).or_default();
    if reads(&object.to_string()) == Some(true) {
        count.0 += 1;
        return 0;
    }
    count.1 += 1;
    println!("{kind} {} is not read: {}", object["id"], blame(object, &fixtures[*kind], *reads));
    1
}

/// The fields any of which, taken from Stripe's example or left out, makes the object readable: miniserde does not say
/// where it stopped.
fn blame(object: &Value, fixture: &Value, reads: Reads) -> String {
    let mut blamed = Vec::new();
    for pointer in pointers(object, "") {
        let mut changed = object.clone();
        let Some(place) = changed.pointer_mut(&pointer) else { continue };
        *place = fixture.pointer(&pointer).cloned().unwrap_or(Value::Null);
        if reads(&changed.to_string()) == Some(true) {
            let theirs = fixture.pointer(&pointer).unwrap_or(&Value::Null);
            blamed
                .push(format!("{pointer} = {} (example: {theirs})", object.pointer(&pointer).unwrap_or(&Value::Null)));
        }
    }
    let lacking = fixture.as_object().into_iter().flatten().filter(|(name, _)| object.get(name).is_none());
    blamed.extend(lacking.map(|(name, _)| format!("no {name}")));
    // The outer ones contain the first.
    blamed.truncate(2);
    blamed.join("; ")
}

/// The inner ones first: the shortest explanation leads.
fn pointers(value: &Value, at: &str) -> Vec<String> {
    let inner: Vec<(String, &Value)> = match value {
        Value::Object(fields) => fields.iter().map(|(name, value)| (format!("{at}/{name}"), value)).collect(),
        Value::Array(items) => {
            items.iter().enumerate().map(|(index, value)| (format!("{at}/{index}"), value)).collect()
        }
        _ => Vec::new(),
    };
    inner.into_iter().flat_map(|(path, value)| [pointers(value, &path), vec![path]].concat()).collect()
}
