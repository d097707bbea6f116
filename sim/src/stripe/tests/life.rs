//! The life of a subscription on a clock that is moved by hand.

use serde_json::json;

use super::rig::{DAY, Rig, START, id};
use crate::stripe::{AfterRetries, Behaviour, Kind};

#[tokio::test]
async fn checkout_makes_a_subscription_that_renews() {
    let rig = Rig::start().await;
    let (_, subscription) = rig.subscribe("price_small", "&subscription_data[metadata][user]=u1").await;
    let made = rig.get(&format!("/v1/subscriptions/{subscription}")).await;
    assert_eq!((&made["status"], &made["metadata"]["user"]), (&json!("active"), &json!("u1")));
    let item = &made["items"]["data"][0];
    assert_eq!(item["current_period_end"], START + 31 * DAY);
    let invoice = rig.control.object(made["latest_invoice"].as_str().unwrap());
    assert_eq!(
        (&invoice["status"], &invoice["amount_paid"], &invoice["billing_reason"]),
        (&json!("paid"), &json!(1_000), &json!("subscription_create"))
    );
    assert_eq!(invoice["lines"]["data"][0]["period"]["end"], START + 31 * DAY);
    assert_eq!(invoice["parent"]["subscription_details"]["metadata"]["user"], "u1");

    rig.control.advance(START + 31 * DAY + 3_600).unwrap();
    assert_eq!((rig.count("invoice.upcoming"), rig.count("invoice.paid")), (1, 2));
    assert!(rig.control.events("invoice.upcoming")[0]["data"]["object"].get("id").is_none());
    let renewed = rig.control.object(&subscription);
    assert_eq!(renewed["items"]["data"][0]["current_period_start"], START + 31 * DAY);
    let cycle = rig.control.object(renewed["latest_invoice"].as_str().unwrap());
    assert_eq!((&cycle["billing_reason"], &cycle["status"]), (&json!("subscription_cycle"), &json!("paid")));
    assert_eq!(cycle["period_end"], START + 31 * DAY, "an invoice's period looks back");
    assert_eq!(cycle["lines"]["data"][0]["period"]["start"], START + 31 * DAY, "its line looks ahead");
    rig.stop().await;
}

#[tokio::test]
async fn a_failing_card_is_tried_again_and_then_given_up() {
    let rig = Rig::start().await;
    let (customer, subscription) = rig.subscribe("price_small", "").await;
    rig.control.set_behaviour(&customer, Some(Behaviour::Declines("insufficient_funds".to_owned())));
    rig.control.advance(START + 32 * DAY).unwrap();
    assert_eq!(rig.control.object(&subscription)["status"], "past_due");
    rig.control.advance(START + 60 * DAY).unwrap();
    assert_eq!(rig.count("invoice.payment_failed"), 4);
    assert_eq!(rig.count("customer.subscription.deleted"), 1);
    assert_eq!(rig.control.object(&subscription)["status"], "canceled");
    rig.stop().await;
}

#[tokio::test]
async fn paying_an_open_invoice_brings_the_subscription_back() {
    let rig = Rig::start().await;
    rig.control.set_after_retries(AfterRetries::PastDue);
    let (customer, subscription) = rig.subscribe("price_small", "").await;
    rig.control.set_behaviour(&customer, Some(Behaviour::NeedsAction));
    rig.control.advance(START + 32 * DAY).unwrap();
    assert_eq!(rig.count("invoice.payment_action_required"), 1);
    rig.control.set_behaviour(&customer, None);
    let invoice = rig.control.object(&subscription)["latest_invoice"].as_str().unwrap().to_owned();
    let paid = rig.post(&format!("/v1/invoices/{invoice}/pay"), "").await;
    assert_eq!(paid["status"], "paid");
    assert_eq!(rig.control.object(&subscription)["status"], "active");
    let again = rig.refused(400, "POST", &format!("/v1/invoices/{invoice}/pay"), "").await;
    assert_eq!(again["code"], "invoice_already_paid");
    rig.stop().await;
}

#[tokio::test]
async fn an_upgrade_charges_the_difference_at_once() {
    let rig = Rig::start().await;
    let (_, subscription) = rig.subscribe("price_small", "").await;
    let item = rig.control.object(&subscription)["items"]["data"][0]["id"].as_str().unwrap().to_owned();
    rig.control.advance(START + 31 * DAY / 2).unwrap();
    let form = format!(
        "items[0][id]={item}&items[0][price]=price_big&proration_behavior=always_invoice&payment_behavior=pending_if_incomplete"
    );
    let preview = rig
        .post("/v1/invoices/create_preview", &format!("subscription={subscription}&subscription_details[items][0][id]={item}&subscription_details[items][0][price]=price_big&subscription_details[proration_behavior]=always_invoice"))
        .await;
    assert_eq!(preview["amount_due"], 1_000);
    let updated = rig.post(&format!("/v1/subscriptions/{subscription}"), &form).await;
    assert_eq!(updated["items"]["data"][0]["price"]["id"], "price_big");
    let invoice = rig.control.object(updated["latest_invoice"].as_str().unwrap());
    assert_eq!((&invoice["amount_paid"], &invoice["billing_reason"]), (&json!(1_000), &json!("subscription_update")));
    let lines = invoice["lines"]["data"].as_array().unwrap();
    assert_eq!(lines.iter().map(|line| line["amount"].as_i64().unwrap()).collect::<Vec<_>>(), [-500, 1_500]);
    assert!(lines.iter().all(|line| line["parent"]["subscription_item_details"]["proration"] == true));
    assert_eq!(rig.count("invoice.paid"), 2);
    rig.stop().await;
}

#[tokio::test]
async fn an_upgrade_that_cannot_be_paid_waits_and_expires() {
    let rig = Rig::start().await;
    let (customer, subscription) = rig.subscribe("price_small", "").await;
    let item = rig.control.object(&subscription)["items"]["data"][0]["id"].as_str().unwrap().to_owned();
    rig.control.set_behaviour(&customer, Some(Behaviour::Declines("generic_decline".to_owned())));
    let form = format!(
        "items[0][id]={item}&items[0][price]=price_big&proration_behavior=always_invoice&payment_behavior=pending_if_incomplete"
    );
    let waiting = rig.post(&format!("/v1/subscriptions/{subscription}"), &form).await;
    assert_eq!(waiting["items"]["data"][0]["price"]["id"], "price_small");
    assert_eq!(waiting["pending_update"]["subscription_items"][0]["price"]["id"], "price_big");
    assert_eq!(waiting["status"], "active");
    rig.control.advance_by(DAY).unwrap();
    let after = rig.control.object(&subscription);
    assert!(after["pending_update"].is_null());
    assert_eq!((rig.count("customer.subscription.pending_update_expired"), rig.count("invoice.voided")), (1, 1));

    rig.post(&format!("/v1/subscriptions/{subscription}"), &form).await;
    rig.control.set_behaviour(&customer, None);
    let invoice = rig.control.object(&subscription)["latest_invoice"].as_str().unwrap().to_owned();
    rig.post(&format!("/v1/invoices/{invoice}/pay"), "").await;
    let applied = rig.control.object(&subscription);
    assert_eq!(applied["items"]["data"][0]["price"]["id"], "price_big");
    assert_eq!(rig.count("customer.subscription.pending_update_applied"), 1);
    rig.stop().await;
}

#[tokio::test]
async fn a_downgrade_waits_for_the_end_of_the_period() {
    let rig = Rig::start().await;
    let (_, subscription) = rig.subscribe("price_big", "").await;
    let schedule = rig.post("/v1/subscription_schedules", &format!("from_subscription={subscription}")).await;
    let end = START + 31 * DAY;
    let phases = format!(
        "end_behavior=release&phases[0][items][0][price]=price_big&phases[0][items][0][quantity]=1&phases[0][start_date]={START}&phases[0][end_date]={end}&phases[1][items][0][price]=price_small&phases[1][items][0][quantity]=1&phases[1][iterations]=1"
    );
    rig.post(&format!("/v1/subscription_schedules/{}", id(&schedule)), &phases).await;
    rig.control.advance(end - 1).unwrap();
    assert_eq!(rig.control.object(&subscription)["items"]["data"][0]["price"]["id"], "price_big");
    rig.control.advance(end + 3_600).unwrap();
    let after = rig.control.object(&subscription);
    assert_eq!(after["items"]["data"][0]["price"]["id"], "price_small");
    assert_eq!(rig.control.object(after["latest_invoice"].as_str().unwrap())["amount_paid"], 1_000);
    rig.control.advance(end + 40 * DAY).unwrap();
    assert_eq!(rig.count("subscription_schedule.released"), 1);
    rig.stop().await;
}

#[tokio::test]
async fn cancellation_at_the_end_of_the_period_and_at_once() {
    let rig = Rig::start().await;
    let (_, subscription) = rig.subscribe("price_small", "").await;
    let path = format!("/v1/subscriptions/{subscription}");
    let set = rig.post(&path, "cancel_at_period_end=true").await;
    assert_eq!((&set["status"], &set["cancel_at"]), (&json!("active"), &json!(START + 31 * DAY)));
    rig.post(&path, "cancel_at_period_end=false").await;
    rig.control.advance(START + 31 * DAY + 3_600).unwrap();
    assert_eq!(rig.control.object(&subscription)["status"], "active");
    rig.post(&path, "cancel_at_period_end=true").await;
    rig.control.advance(START + 62 * DAY).unwrap();
    assert_eq!(rig.control.object(&subscription)["ended_at"], START + 59 * DAY);
    assert_eq!(rig.count("invoice.paid"), 2);

    let (_, other) = rig.subscribe("price_small", "").await;
    let gone = rig.send("DELETE", &format!("/v1/subscriptions/{other}"), "", &[]).await.unwrap().body;
    assert_eq!(gone["status"], "canceled");
    assert_eq!(rig.count("customer.subscription.deleted"), 2);
    rig.stop().await;
}

#[tokio::test]
async fn a_trial_ends_in_a_payment_or_in_a_pause() {
    let rig = Rig::start().await;
    let (_, subscription) = rig.subscribe("price_small", "&subscription_data[trial_period_days]=14").await;
    assert_eq!(rig.control.object(&subscription)["status"], "trialing");
    let session = rig.control.objects(Kind::Session).pop().unwrap();
    assert_eq!((&session["payment_status"], &session["amount_total"]), (&json!("no_payment_required"), &json!(0)));
    rig.control.advance(START + 11 * DAY).unwrap();
    assert_eq!(rig.count("customer.subscription.trial_will_end"), 1);
    rig.control.advance(START + 14 * DAY + 3_600).unwrap();
    let active = rig.control.object(&subscription);
    assert_eq!(active["status"], "active");
    assert_eq!(rig.control.object(active["latest_invoice"].as_str().unwrap())["amount_paid"], 1_000);

    let customer = rig.customer().await;
    let form = format!(
        "customer={customer}&items[0][price]=price_small&trial_period_days=7&trial_settings[end_behavior][missing_payment_method]=pause"
    );
    let paused = id(&rig.post("/v1/subscriptions", &form).await);
    rig.control.advance_by(8 * DAY).unwrap();
    assert_eq!(rig.control.object(&paused)["status"], "paused");
    rig.control.change_card(&customer, "pm_card_visa").unwrap();
    let resumed = rig.post(&format!("/v1/subscriptions/{paused}/resume"), "").await;
    assert_eq!(resumed["status"], "active");
    assert_eq!((rig.count("customer.subscription.paused"), rig.count("customer.subscription.resumed")), (1, 1));
    rig.stop().await;
}

#[tokio::test]
async fn a_year_is_one_invoice_and_a_month_to_year_change_starts_anew() {
    let rig = Rig::start().await;
    let (_, subscription) = rig.subscribe("price_small", "").await;
    let item = rig.control.object(&subscription)["items"]["data"][0]["id"].as_str().unwrap().to_owned();
    rig.control.advance(START + 31 * DAY / 2).unwrap();
    let form = format!("items[0][id]={item}&items[0][price]=price_year&proration_behavior=always_invoice");
    let yearly = rig.post(&format!("/v1/subscriptions/{subscription}"), &form).await;
    assert_eq!(yearly["items"]["data"][0]["current_period_start"], START + 31 * DAY / 2);
    assert_eq!(rig.control.object(yearly["latest_invoice"].as_str().unwrap())["amount_paid"], 9_500);
    rig.control.advance_by(364 * DAY).unwrap();
    assert_eq!(rig.count("invoice.paid"), 2);
    rig.stop().await;
}

#[tokio::test]
async fn the_portal_changes_cancels_and_keeps() {
    let rig = Rig::start().await;
    let (customer, subscription) = rig.subscribe("price_small", "").await;
    let item = rig.control.object(&subscription)["items"]["data"][0]["id"].as_str().unwrap().to_owned();
    let flow = format!(
        "customer={customer}&flow_data[type]=subscription_update_confirm&flow_data[subscription_update_confirm][subscription]={subscription}\
         &flow_data[subscription_update_confirm][items][0][id]={item}&flow_data[subscription_update_confirm][items][0][price]=price_big\
         &flow_data[subscription_update_confirm][items][0][quantity]=1"
    );
    let session = rig.post("/v1/billing_portal/sessions", &flow).await;
    let path = session["url"].as_str().unwrap().strip_prefix(&rig.url).unwrap().to_owned();
    let page = rig.send("GET", &path, "", &[]).await.unwrap();
    assert!(page.body.as_str().unwrap().contains("Confirm the change"));
    for (action, cancels) in [("confirm", false), ("cancel", true), ("keep", false)] {
        let done = rig.send("POST", &path, &format!("subscription={subscription}&do={action}"), &[]).await.unwrap();
        assert_eq!(done.status, 303, "{}", done.body);
        let now = rig.control.object(&subscription);
        assert_eq!(
            (&now["items"]["data"][0]["price"]["id"], &now["cancel_at_period_end"]),
            (&json!("price_big"), &json!(cancels))
        );
    }
    rig.send("POST", &path, "card=5555555555554444", &[]).await.unwrap();
    let method = rig.control.object(&subscription)["default_payment_method"].as_str().unwrap().to_owned();
    assert_eq!(rig.control.object(&method)["card"]["last4"], "4444");
    let (_, other) = rig.subscribe("price_small", "").await;
    let foreign = rig.send("POST", &path, &format!("subscription={other}&do=cancel"), &[]).await.unwrap();
    assert_eq!(foreign.status, 400, "somebody else's");
    rig.stop().await;
}

#[tokio::test]
async fn what_a_downgrade_gives_back_pays_the_next_invoice() {
    let rig = Rig::start().await;
    let (customer, subscription) = rig.subscribe("price_big", "").await;
    let item = rig.control.object(&subscription)["items"]["data"][0]["id"].as_str().unwrap().to_owned();
    rig.control.advance(START + 31 * DAY / 2).unwrap();
    let form = format!("items[0][id]={item}&items[0][price]=price_small&proration_behavior=always_invoice");
    let changed = rig.post(&format!("/v1/subscriptions/{subscription}"), &form).await;
    let credit = rig.control.object(changed["latest_invoice"].as_str().unwrap());
    assert_eq!(
        (&credit["total"], &credit["amount_due"], &credit["status"]),
        (&json!(-1_000), &json!(0), &json!("paid"))
    );
    assert_eq!(rig.control.object(&customer)["balance"], -1_000);
    rig.control.advance(START + 32 * DAY).unwrap();
    let next = rig.control.object(&subscription)["latest_invoice"].as_str().unwrap().to_owned();
    let next = rig.control.object(&next);
    assert_eq!((&next["total"], &next["amount_due"], &next["ending_balance"]), (&json!(1_000), &json!(0), &json!(0)));
    rig.stop().await;
}

#[tokio::test]
async fn an_invoice_paid_by_hand_is_not_paid_again_by_its_intent() {
    let rig = Rig::start().await;
    let (customer, subscription) = rig.subscribe("price_small", "").await;
    rig.control.set_behaviour(&customer, Some(Behaviour::Processing));
    rig.control.advance(START + 31 * DAY + 3_600).unwrap();
    let invoice = rig.control.object(&subscription)["latest_invoice"].as_str().unwrap().to_owned();
    assert_eq!(rig.control.object(&invoice)["status"], "open");
    let intent = rig.get(&format!("/v1/invoices/{invoice}?expand[]=payments")).await["payments"]["data"][0]["payment"]
        ["payment_intent"]
        .as_str()
        .unwrap()
        .to_owned();
    rig.post(&format!("/v1/invoices/{invoice}/pay"), "paid_out_of_band=true").await;
    rig.control.settle_payment(&intent, true);
    assert_eq!((rig.count("invoice.paid"), rig.count("payment_intent.canceled")), (2, 1));
    rig.stop().await;
}
