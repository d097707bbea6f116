//! Random histories: whatever happens in whatever order, the books are in order, and the same history is the same again.

use serde_json::Value;

use super::rig::{DAY, Rig, id};
use crate::stripe::{AfterRetries, Behaviour, Kind};

const HISTORIES: u64 = 12;
const STEPS: usize = 60;
const CARDS: [&str; 4] =
    ["pm_card_visa", "pm_card_mastercard", "pm_card_chargeDeclined", "pm_card_authenticationRequired"];
const PRICES: [&str; 3] = ["price_small", "price_big", "price_year"];

/// Numbers from a seed: xorshift.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % limit as u64).unwrap()
    }

    fn one<'a>(&mut self, of: &[&'a str]) -> &'a str {
        of[self.below(of.len())]
    }

    fn of(&mut self, rig: &Rig, kind: Kind) -> Option<Value> {
        let all = rig.control.objects(kind);
        (!all.is_empty()).then(|| all[self.below(all.len())].clone())
    }
}

fn number(object: &Value, field: &str) -> i64 {
    object[field].as_i64().unwrap_or_else(|| panic!("{field} of {object}"))
}

/// A refusal is as good as an effect: only the books matter.
async fn step(rig: &Rig, dice: &mut Dice, customer: &str) -> Option<()> {
    let post = |path: String, form: String| async move { rig.send("POST", &path, &form, &[]).await.unwrap() };
    match dice.below(13) {
        0 => {
            let (mode, price) =
                if dice.below(2) == 0 { ("payment", "price_pack") } else { ("subscription", dice.one(&PRICES)) };
            let form = format!(
                "mode={mode}&customer={customer}&line_items[0][price]={price}&line_items[0][quantity]=1&success_url=http://x"
            );
            let session = post("/v1/checkout/sessions".to_owned(), form).await.body;
            let _ = rig.control.complete_checkout(&id(&session), dice.one(&CARDS));
        }
        1 => {
            let form = format!(
                "customer={customer}&items[0][price]={}&trial_period_days={}",
                dice.one(&PRICES),
                dice.below(20)
            );
            post("/v1/subscriptions".to_owned(), form).await;
        }
        2 | 3 => {
            let subscription = dice.of(rig, Kind::Subscription)?;
            let item = id(&subscription["items"]["data"][0]);
            let how = dice.one(&["create_prorations", "always_invoice", "none"]);
            let pay = dice.one(&["allow_incomplete", "pending_if_incomplete", "error_if_incomplete"]);
            let form = format!(
                "items[0][id]={item}&items[0][price]={}&proration_behavior={how}&payment_behavior={pay}",
                dice.one(&PRICES)
            );
            post(format!("/v1/subscriptions/{}", id(&subscription)), form).await;
        }
        4 => {
            let subscription = dice.of(rig, Kind::Subscription)?;
            let form = dice.one(&[
                "cancel_at_period_end=true",
                "cancel_at_period_end=false",
                "pause_collection[behavior]=void",
                "pause_collection=",
                "trial_end=now",
            ]);
            post(format!("/v1/subscriptions/{}", id(&subscription)), form.to_owned()).await;
        }
        5 => {
            let subscription = id(&dice.of(rig, Kind::Subscription)?);
            let form = dice.one(&["", "prorate=true&invoice_now=true"]);
            rig.send("DELETE", &format!("/v1/subscriptions/{subscription}"), form, &[]).await.unwrap();
        }
        6 => {
            let invoice = id(&dice.of(rig, Kind::Invoice)?);
            let what = dice.one(&["pay", "void", "mark_uncollectible", "finalize"]);
            post(format!("/v1/invoices/{invoice}/{what}"), String::new()).await;
        }
        7 => {
            let charge = id(&dice.of(rig, Kind::Charge)?);
            let refund = rig.control.refund(&charge, Some(1 + i64::try_from(dice.below(900)).unwrap())).ok()?;
            if dice.below(3) == 0 {
                rig.control.fail_refund(&refund).unwrap();
            }
        }
        8 => {
            let declines = Behaviour::Declines("x".to_owned());
            let all = [None, None, Some(Behaviour::NeedsAction), Some(Behaviour::Processing), Some(declines)];
            rig.control.set_behaviour(customer, all[dice.below(all.len())].clone());
        }
        10 => {
            let intent = id(&dice.of(rig, Kind::PaymentIntent)?);
            rig.control.settle_payment(&intent, dice.below(3) > 0);
        }
        9 => drop(rig.control.change_card(customer, dice.one(&CARDS)).unwrap()),
        _ => rig.control.advance_by(i64::try_from(dice.below(40)).unwrap() * DAY / 2).unwrap(),
    }
    Some(())
}

fn check(rig: &Rig) {
    for invoice in rig.control.objects(Kind::Invoice) {
        let (total, due, paid, left) = (
            number(&invoice, "total"),
            number(&invoice, "amount_due"),
            number(&invoice, "amount_paid"),
            number(&invoice, "amount_remaining"),
        );
        assert!(due >= 0 && paid >= 0 && paid + left == due, "{invoice}");
        let before = number(&invoice, "starting_balance");
        assert_eq!(due, (total + before).max(0), "{invoice}");
        if invoice["status"] != "draft" {
            assert_eq!(number(&invoice, "ending_balance"), total + before - due, "{invoice}");
        }
        if invoice["lines"]["has_more"] == false {
            let lines = invoice["lines"]["data"].as_array().unwrap();
            assert_eq!(lines.iter().map(|line| number(line, "amount")).sum::<i64>(), total, "{invoice}");
        }
        let charged = rig.control.object(&rig.control.charge_of(&id(&invoice)));
        if invoice["status"] == "paid" && due > 0 {
            assert_eq!((number(&charged, "amount"), &charged["status"]), (due, &"succeeded".into()), "{invoice}");
        } else {
            assert_ne!(charged["status"], "succeeded", "{invoice}");
        }
    }
    for charge in rig.control.objects(Kind::Charge) {
        let sum: i64 = rig
            .control
            .objects(Kind::Refund)
            .iter()
            .filter(|refund| refund["charge"] == charge["id"] && refund["status"] == "succeeded")
            .map(|refund| number(refund, "amount"))
            .sum();
        assert_eq!(number(&charge, "amount_refunded"), sum);
        assert!(sum <= number(&charge, "amount_captured"));
    }
    let now = rig.control.now();
    for subscription in rig.control.objects(Kind::Subscription) {
        let item = &subscription["items"]["data"][0];
        let running =
            ["active", "trialing", "past_due", "unpaid"].iter().any(|status| subscription["status"] == *status);
        assert!(number(item, "current_period_start") < number(item, "current_period_end"), "{subscription}");
        assert!(!running || number(item, "current_period_end") > now, "{subscription}");
        assert_eq!(
            running || subscription["status"] == "incomplete" || subscription["status"] == "paused",
            subscription["ended_at"].is_null(),
            "{subscription}"
        );
    }
}

async fn history(seed: u64) -> Vec<Value> {
    let rig = Rig::start().await;
    let mut dice = Dice(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
    rig.control.set_after_retries([AfterRetries::Cancel, AfterRetries::Unpaid, AfterRetries::PastDue][dice.below(3)]);
    let customer = rig.customer().await;
    rig.control.change_card(&customer, "pm_card_visa").unwrap();
    for _ in 0..STEPS {
        step(&rig, &mut dice, &customer).await;
        check(&rig);
    }
    let events = rig.control.events("*");
    let mut paid: Vec<String> =
        rig.control.events("invoice.paid").iter().map(|event| id(&event["data"]["object"])).collect();
    paid.sort();
    assert!(paid.windows(2).all(|two| two[0] != two[1]), "an invoice is paid once");
    rig.stop().await;
    // The port is in some urls, and differs.
    let told = |event: &Value| {
        let object = &event["data"]["object"];
        serde_json::json!([
            event["type"],
            event["created"],
            object["id"],
            object["status"],
            object["total"],
            object["amount"]
        ])
    };
    events.iter().map(told).collect()
}

#[tokio::test]
async fn the_books_stay_in_order() {
    let mut told = Vec::new();
    for seed in 1..=HISTORIES {
        told.extend(history(seed).await);
    }
    let count = |kind: &str| told.iter().filter(|event| event[0] == kind).count();
    for kind in
        ["invoice.paid", "invoice.payment_failed", "invoice.voided", "charge.refunded", "customer.subscription.deleted"]
    {
        assert!(count(kind) >= 10, "{kind}: {}", count(kind));
    }
    assert!(
        count("customer.subscription.pending_update_applied") + count("customer.subscription.pending_update_expired")
            > 0
    );
}

#[tokio::test]
async fn the_same_history_is_the_same_again() {
    let (first, second) = (history(7).await, history(7).await);
    assert!(!first.is_empty());
    assert_eq!(first, second);
}
