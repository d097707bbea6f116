//! What the hosted page does when its user pays.

use serde_json::{Value, json};

use super::cards::Card;
use super::error::Failure;
use super::invoices::{Draft, Line};
use super::kind::Kind;
use super::params::Params;
use super::payments::{self, Outcome, Payment};
use super::subscriptions::{self, Start};
use super::world::{World, int, live, reference, text};

/// Completes an open session with a card; a card that declines leaves it open and comes back as the failure.
///
/// # Errors
/// When the session is not open, or the card declines.
pub(super) fn complete(world: &mut World, id: &str, card: &Card) -> Result<(), Failure> {
    let session = world.copy(Kind::Session, id);
    if session["status"] != "open" {
        let message = format!("The session {id} is not open.");
        return Err(Failure::state("checkout_session_not_open", message));
    }
    let wanted = Params::from(session["_request"].clone());
    let customer = customer_of(world, &session, &wanted)?;
    let method = super::payment_methods::new(world, card, live(&session));
    match text(&session, "mode") {
        "payment" => pay(world, &session, &wanted, &customer, &method)?,
        "subscription" => subscribe(world, &session, &wanted, &customer, &method)?,
        _ => set_up(world, &session, &wanted, &customer, &method)?,
    }
    let owner = world.copy(Kind::Customer, &customer);
    world.edit(Kind::Session, id, |session| {
        session["status"] = "complete".into();
        session["url"] = Value::Null;
        let email = if owner["email"].is_null() { session["customer_email"].clone() } else { owner["email"].clone() };
        let address =
            json!({ "city": null, "country": "US", "line1": null, "line2": null, "postal_code": null, "state": null });
        session["customer_details"] = json!({
            "address": address, "business_name": null, "email": email, "individual_name": null, "name": owner["name"],
            "phone": null, "tax_exempt": "none", "tax_ids": [],
        });
        if !customer.is_empty() {
            session["customer"] = customer.as_str().into();
        }
    });
    world.tell(Kind::Session, id, "checkout.session.completed");
    Ok(())
}

/// The session's customer; a subscription or a set-up makes one when it has none, a payment goes without.
fn customer_of(world: &mut World, session: &Value, wanted: &Params) -> Result<String, Failure> {
    let given = reference(session, "customer").to_owned();
    let is_guest = session["mode"] == "payment" && wanted.text("customer_creation") != Some("always");
    if !given.is_empty() || is_guest {
        return Ok(given);
    }
    let params = Params::from(json!({ "email": session["customer_email"].as_str().unwrap_or_default() }));
    super::customers::new(world, &params, live(session))
}

fn pay(world: &mut World, session: &Value, wanted: &Params, customer: &str, method: &str) -> Result<(), Failure> {
    let id = text(session, "id");
    let metadata = wanted.metadata("payment_intent_data.metadata", &Value::Null)?;
    let amount = int(session, "amount_total");
    if amount == 0 {
        world.edit(Kind::Session, id, |session| session["payment_status"] = "no_payment_required".into());
        return Ok(());
    }
    let earlier = text(session, "_intent").to_owned();
    let intent = if earlier.is_empty() {
        let payment = Payment {
            customer: customer.to_owned(),
            amount,
            currency: text(session, "currency").to_owned(),
            metadata,
            description: wanted.text("payment_intent_data.description").map(str::to_owned),
            invoice: String::new(),
            live: live(session),
        };
        payments::new_intent(world, &payment)
    } else {
        earlier
    };
    world.edit(Kind::Session, id, |session| {
        session["_intent"] = intent.as_str().into();
        session["payment_intent"] = intent.as_str().into();
    });
    let keeps = wanted.text("payment_intent_data.setup_future_usage").map(str::to_owned);
    world.edit(Kind::PaymentIntent, &intent, |intent| intent["setup_future_usage"] = keeps.clone().into());
    match payments::attempt(world, &intent, method, false) {
        Outcome::Declined(failure) => return Err(failure),
        // The page shows the bank's step, and its user takes it.
        Outcome::NeedsAction => payments::succeed(world, &intent),
        Outcome::Processing => return Ok(()),
        Outcome::Paid => {}
    }
    if keeps.is_some() && !customer.is_empty() {
        super::payment_methods::attach(world, method, customer, live(session))?;
    }
    world.edit(Kind::Session, id, |session| session["payment_status"] = "paid".into());
    if wanted.text("invoice_creation.enabled") == Some("true") {
        let invoice = super::lifecycle::receipt(world, &receipt(session, wanted, customer, world.now)?, &intent);
        world.edit(Kind::Session, id, |session| session["invoice"] = invoice.into());
    }
    Ok(())
}

fn receipt(session: &Value, wanted: &Params, customer: &str, now: i64) -> Result<Draft, Failure> {
    let lines = session["_line_items"].as_array().into_iter().flatten().map(|item| Line {
        amount: int(item, "amount_total"),
        description: text(item, "description").to_owned(),
        start: now,
        end: now,
        price: item["price"].clone(),
        quantity: int(item, "quantity"),
        item: String::new(),
        proration: false,
        invoice_item: String::new(),
    });
    Ok(Draft {
        customer: customer.to_owned(),
        subscription: String::new(),
        reason: "manual",
        lines: lines.collect(),
        period: (now, now),
        metadata: wanted.metadata("invoice_creation.invoice_data.metadata", &Value::Null)?,
        live: live(session),
        currency: text(session, "currency").to_owned(),
    })
}

fn subscribe(world: &mut World, session: &Value, wanted: &Params, customer: &str, method: &str) -> Result<(), Failure> {
    let data = wanted.sub("subscription_data");
    let trial_end = subscriptions::trial_end(&data, world.now)?;
    // Stripe makes no subscription when the first payment fails: the card is tried before anything is kept.
    if trial_end.is_none()
        && let super::cards::Behaviour::Declines(code) = world.behaviour_of(Some(customer), method)
    {
        return Err(Failure::card("card_declined", Some(&code), "Your card was declined."));
    }
    super::payment_methods::attach(world, method, customer, live(session))?;
    let items = session["_line_items"].as_array().into_iter().flatten();
    let begin = Start {
        customer: customer.to_owned(),
        items: items
            .filter(|item| !item["price"]["recurring"].is_null())
            .map(|item| (item["price"].clone(), int(item, "quantity")))
            .collect(),
        metadata: data.metadata("metadata", &Value::Null)?,
        trial_end,
        default_method: Some(method.to_owned()),
        missing_method: subscriptions::missing_method(&data)?,
        live: live(session),
    };
    let (subscription, invoice) = subscriptions::start(world, &begin);
    if world.copy(Kind::Invoice, &invoice)["status"] == "open" {
        let outcome = super::collection::collect(world, &invoice, Some(method), false);
        if outcome == Outcome::NeedsAction {
            let intent = text(&world.copy(Kind::Invoice, &invoice), "_intent").to_owned();
            payments::settle(world, &intent, true);
        }
    }
    let is_paid = world.copy(Kind::Invoice, &invoice)["status"] == "paid";
    let status = match (trial_end, is_paid) {
        (Some(_), _) => "no_payment_required",
        (None, true) => "paid",
        (None, false) => "unpaid",
    };
    world.edit(Kind::Session, text(session, "id"), |session| {
        session["subscription"] = subscription.into();
        session["invoice"] = invoice.into();
        session["payment_status"] = status.into();
    });
    Ok(())
}

fn set_up(world: &mut World, session: &Value, wanted: &Params, customer: &str, method: &str) -> Result<(), Failure> {
    super::payment_methods::attach(world, method, customer, live(session))?;
    let id = world.new_id(Kind::SetupIntent);
    let setup = json!({
        "application": null, "automatic_payment_methods": null, "cancellation_reason": null,
        "client_secret": format!("{id}_secret_{}", world.serial()), "created": world.now, "customer": customer,
        "description": null, "excluded_payment_method_types": null, "flow_directions": null,
        "id": id, "last_setup_error": null, "latest_attempt": null, "livemode": live(session), "mandate": null,
        "metadata": wanted.metadata("setup_intent_data.metadata", &Value::Null)?, "next_action": null,
        "object": "setup_intent", "on_behalf_of": null, "payment_method": method,
        "payment_method_configuration_details": null, "payment_method_options": {}, "payment_method_types": ["card"],
        "single_use_mandate": null, "status": "succeeded", "usage": "off_session",
    });
    world.insert(Kind::SetupIntent, setup);
    world.tell(Kind::SetupIntent, &id, "setup_intent.created");
    world.tell(Kind::SetupIntent, &id, "setup_intent.succeeded");
    world.edit(Kind::Session, text(session, "id"), |session| session["setup_intent"] = id.into());
    Ok(())
}
