//! Payments that buy something once, and how they are undone.

use serde_json::json;

use super::rig::{Rig, id};

async fn bought(rig: &Rig, card: &str) -> (String, serde_json::Value) {
    let customer = rig.customer().await;
    let form = format!(
        "mode=payment&customer={customer}&line_items[0][price]=price_pack&line_items[0][quantity]=2&success_url=http://shop/ok&payment_intent_data[metadata][pack]=p1"
    );
    let session = rig.post("/v1/checkout/sessions", &form).await;
    assert_eq!((&session["amount_total"], &session["payment_status"]), (&json!(1_000), &json!("unpaid")));
    let done = rig.control.complete_checkout(&id(&session), card).unwrap();
    (done["payment_intent"].as_str().unwrap().to_owned(), done)
}

#[tokio::test]
async fn a_purchase_is_paid_once_and_refunded_in_parts() {
    let rig = Rig::start().await;
    let (intent, session) = bought(&rig, "pm_card_visa").await;
    assert_eq!((&session["status"], &session["payment_status"]), (&json!("complete"), &json!("paid")));
    assert!(rig.control.complete_checkout(&id(&session), "pm_card_visa").is_err());
    let shown = rig.get(&format!("/v1/payment_intents/{intent}?expand[]=latest_charge")).await;
    assert_eq!((&shown["amount_received"], &shown["metadata"]["pack"]), (&json!(1_000), &json!("p1")));
    let charge = id(&shown["latest_charge"]);
    rig.post("/v1/refunds", &format!("payment_intent={intent}&amount=300")).await;
    assert_eq!(rig.control.object(&charge)["amount_refunded"], 300);
    let rest = rig.control.refund(&charge, None).unwrap();
    assert_eq!((&rig.control.object(&charge)["refunded"], rig.count("charge.refunded")), (&json!(true), 2));
    let error = rig.refused(400, "POST", "/v1/refunds", &format!("charge={charge}")).await;
    assert_eq!(error["code"], "charge_already_refunded");
    rig.control.fail_refund(&rest).unwrap();
    assert_eq!(rig.control.object(&charge)["amount_refunded"], 300);
    assert_eq!(rig.count("refund.failed"), 1);
    rig.stop().await;
}

#[tokio::test]
async fn a_slow_payment_completes_unpaid_and_ends_later() {
    let rig = Rig::start().await;
    let (intent, session) = bought(&rig, "pm_usBankAccount_processing").await;
    assert_eq!((&session["status"], &session["payment_status"]), (&json!("complete"), &json!("unpaid")));
    rig.control.settle_payment(&intent, true);
    assert_eq!(rig.control.object(&id(&session))["payment_status"], "paid");
    let (failing, _) = bought(&rig, "pm_usBankAccount_processing").await;
    rig.control.settle_payment(&failing, false);
    assert_eq!(rig.count("checkout.session.async_payment_succeeded"), 1);
    assert_eq!(rig.count("checkout.session.async_payment_failed"), 1);
    rig.stop().await;
}

#[tokio::test]
async fn a_declined_card_leaves_the_session_open() {
    let rig = Rig::start().await;
    let customer = rig.customer().await;
    for (mode, price) in [("payment", "price_pack"), ("subscription", "price_small")] {
        let form = format!(
            "mode={mode}&customer={customer}&line_items[0][price]={price}&line_items[0][quantity]=1&success_url=http://shop/ok"
        );
        let session = id(&rig.post("/v1/checkout/sessions", &form).await);
        let failure = rig.control.complete_checkout(&session, "pm_card_chargeDeclined").unwrap_err();
        assert_eq!(failure.code, Some("card_declined"));
        assert_eq!(rig.control.object(&session)["status"], "open");
        assert_eq!(rig.control.complete_checkout(&session, "pm_card_visa").unwrap()["payment_status"], "paid");
    }
    assert_eq!(rig.count("checkout.session.completed"), 2);
    rig.stop().await;
}

#[tokio::test]
async fn disputes_take_the_money_and_may_bring_it_back() {
    let rig = Rig::start().await;
    let (intent, _) = bought(&rig, "pm_card_visa").await;
    let won = rig.control.dispute(&intent, None).unwrap();
    rig.control.close_dispute(&won, true).unwrap();
    let moved = rig.control.object(&won)["balance_transactions"].clone();
    assert_eq!((&moved[0]["net"], &moved[1]["net"]), (&json!(-1_000), &json!(1_000)));
    let lost = rig.control.dispute(&intent, Some(400)).unwrap();
    rig.control.close_dispute(&lost, false).unwrap();
    rig.control.inquiry(&intent).unwrap();
    rig.control.fraud_warning(&intent).unwrap();
    assert!(rig.control.close_dispute(&lost, true).is_err());
    let disputes: Vec<String> = rig
        .types()
        .into_iter()
        .filter(|kind| kind.starts_with("charge.dispute.") || kind.starts_with("radar."))
        .collect();
    let wanted = [
        "charge.dispute.created",
        "charge.dispute.funds_withdrawn",
        "charge.dispute.closed",
        "charge.dispute.funds_reinstated",
        "charge.dispute.created",
        "charge.dispute.funds_withdrawn",
        "charge.dispute.closed",
        "charge.dispute.created",
        "radar.early_fraud_warning.created",
    ];
    assert_eq!(disputes, wanted);
    let listed = rig.get(&format!("/v1/disputes?payment_intent={intent}")).await;
    assert_eq!(listed["data"].as_array().unwrap().len(), 3);
    rig.stop().await;
}

#[tokio::test]
async fn off_session_payments_decline_with_the_intent_in_the_error() {
    let rig = Rig::start().await;
    let customer = rig.customer().await;
    let off = "amount=700&currency=usd&confirm=true&off_session=true";
    let good = rig.control.change_card(&customer, "pm_card_visa").unwrap();
    let paid = rig.post("/v1/payment_intents", &format!("{off}&customer={customer}&payment_method={good}")).await;
    assert_eq!(paid["status"], "succeeded");
    let bad = rig.control.change_card(&customer, "pm_card_authenticationRequired").unwrap();
    let error = rig
        .refused(402, "POST", "/v1/payment_intents", &format!("{off}&customer={customer}&payment_method={bad}"))
        .await;
    assert_eq!(
        (&error["code"], &error["payment_intent"]["status"]),
        (&json!("authentication_required"), &json!("requires_payment_method"))
    );
    let on = rig
        .post(
            "/v1/payment_intents",
            &format!("amount=700&currency=usd&confirm=true&customer={customer}&payment_method={bad}"),
        )
        .await;
    assert_eq!(on["status"], "requires_action");
    rig.control.settle_payment(&id(&on), true);
    assert_eq!(rig.control.object(&id(&on))["status"], "succeeded");
    rig.stop().await;
}

#[tokio::test]
async fn a_refund_of_a_subscription_leads_to_its_invoice() {
    let rig = Rig::start().await;
    let (_, subscription) = rig.subscribe("price_small", "").await;
    let invoice = rig.control.object(&subscription)["latest_invoice"].as_str().unwrap().to_owned();
    let intent = rig.control.object(&rig.control.charge_of(&invoice))["payment_intent"].as_str().unwrap().to_owned();
    let payments =
        rig.get(&format!("/v1/invoice_payments?payment[type]=payment_intent&payment[payment_intent]={intent}")).await;
    assert_eq!(payments["data"][0]["invoice"], invoice);
    let with = rig.get(&format!("/v1/invoices/{invoice}?expand[]=payments")).await;
    assert_eq!(with["payments"]["data"][0]["payment"]["payment_intent"], intent);
    rig.stop().await;
}

#[tokio::test]
async fn the_page_pays_and_goes_back_to_the_shop() {
    let rig = Rig::start().await;
    let form = "mode=payment&line_items[0][price]=price_pack&line_items[0][quantity]=1&success_url=http://shop/ok?s={CHECKOUT_SESSION_ID}";
    let session = rig.post("/v1/checkout/sessions", form).await;
    let path = session["url"].as_str().unwrap().strip_prefix(&rig.url).unwrap().to_owned();
    let page = rig.send("GET", &path, "", &[]).await.unwrap();
    assert!(page.body.as_str().unwrap().contains("5.00 usd"));
    let declined = rig.send("POST", &path, "card=4000000000000002", &[]).await.unwrap();
    assert!(declined.body.as_str().unwrap().contains("declined"));
    let done = rig.send("POST", &path, "card=4242424242424242", &[]).await.unwrap();
    assert_eq!(
        (done.status, done.headers["location"].to_str().unwrap()),
        (303, format!("http://shop/ok?s={}", id(&session)).as_str())
    );
    rig.stop().await;
}
