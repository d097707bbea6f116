//! The portal's page: the card, the subscriptions, the invoices, and what the session's flow asks to confirm.

use http::StatusCode;
use serde_json::{Value, json};

use super::api::Call;
use super::calendar;
use super::cards::Card;
use super::control::change_card;
use super::error::Failure;
use super::kind::Kind;
use super::lifecycle;
use super::pages::{card_form, escape, html, missing, money, notice, redirect};
use super::params::Params;
use super::server::Page;
use super::subscriptions::period_of;
use super::updates;
use super::world::{World, live, text};

fn session_of(world: &World, secret: &str) -> Option<Value> {
    world.all(Kind::PortalSession).find(|session| session["_secret"] == secret).cloned()
}

pub(super) fn show(world: &World, secret: &str) -> Page {
    let Some(session) = session_of(world, secret) else { return missing() };
    let mut body = format!("<h2>Card</h2>{}", card_form("Use this card"));
    let of_customer = |object: &&Value| object["customer"] == session["customer"];
    let confirms = text(&session["flow"]["subscription_update_confirm"], "subscription");
    for subscription in world.all(Kind::Subscription).filter(of_customer) {
        let (id, until) = (text(subscription, "id"), calendar::date(period_of(subscription).1));
        let button = match (lifecycle::has_ended(subscription), subscription["cancel_at_period_end"] == true) {
            (true, _) => String::new(),
            (false, false) => button("cancel", id, "Cancel at the end of the period"),
            (false, true) => button("keep", id, "Keep it after all"),
        };
        body += &format!("<h2>Subscription {id}</h2><p>{}, until {until}</p>{button}", text(subscription, "status"));
        if id == confirms {
            body += &self::button("confirm", id, "Confirm the change and pay");
        }
    }
    body += "<h2>Invoices</h2><ul>";
    for invoice in world.all(Kind::Invoice).filter(of_customer).filter(|invoice| invoice["status"] != "draft") {
        let (id, number, status) = (text(invoice, "id"), text(invoice, "number"), text(invoice, "status"));
        body += &format!("<li><a href=\"/i/{id}\">{number}</a> {status} {}</li>", money(invoice, "total"));
    }
    body += "</ul>";
    if let Some(url) = session["return_url"].as_str() {
        body += &format!("<p><a href=\"{}\">Back</a></p>", escape(url));
    }
    html(StatusCode::OK, "Billing", &body)
}

fn button(action: &str, subscription: &str, label: &str) -> String {
    format!(
        "<form method=\"post\"><input type=\"hidden\" name=\"subscription\" value=\"{subscription}\">\
         <button name=\"do\" value=\"{action}\">{label}</button></form>"
    )
}

pub(super) fn act(world: &mut World, secret: &str, params: &Params) -> Page {
    let Some(session) = session_of(world, secret) else { return missing() };
    let done = match params.text("card") {
        Some(card) => {
            Card::named(card).and_then(|card| change_card(world, text(&session, "customer"), &card)).map(drop)
        }
        None => change(world, &session, params),
    };
    match done {
        Ok(()) => redirect(&format!("/p/session/{secret}")),
        Err(failure) => html(failure.status, "Billing", &notice(Some(&failure.message))),
    }
}

/// The page updates a subscription as the API does, with the customer's own subscriptions only.
fn change(world: &mut World, session: &Value, params: &Params) -> Result<(), Failure> {
    let id = params.need("subscription")?;
    if world.copy(Kind::Subscription, id)["customer"] != session["customer"] {
        return Err(Failure::no_such("subscription", id, "subscription", None));
    }
    let wanted = match params.need("do")? {
        "cancel" => json!({ "cancel_at_period_end": "true" }),
        "keep" => json!({ "cancel_at_period_end": "false" }),
        _ => confirmed(session, id),
    };
    let call = Call {
        method: "POST".to_owned(),
        path: format!("/v1/subscriptions/{id}"),
        params: Params::from(wanted),
        live: live(session),
        key: None,
        version: None,
    };
    updates::update(world, &call, id).map(drop)
}

/// The change that the session was made for.
fn confirmed(session: &Value, subscription: &str) -> Value {
    let flow = &session["flow"]["subscription_update_confirm"];
    let items = flow["items"].as_array().filter(|_| flow["subscription"] == subscription).into_iter().flatten();
    let text_of = |value: &Value| {
        value.as_str().map_or_else(|| value.as_i64().map(|number| number.to_string()), |text| Some(text.to_owned()))
    };
    let items: Value = items
        .enumerate()
        .map(|(at, item)| {
            let fields = item.as_object().into_iter().flatten();
            let fields: Value = fields.filter_map(|(name, value)| Some((name.clone(), text_of(value)?))).collect();
            (at.to_string(), fields)
        })
        .collect();
    json!({ "items": items, "payment_behavior": "pending_if_incomplete", "proration_behavior": "always_invoice" })
}
