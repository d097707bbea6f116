//! Pages that stand in for Stripe's hosted ones: checkout, invoice, portal.

use bytes::Bytes;
use http::header::LOCATION;
use http::{HeaderValue, StatusCode};
use serde_json::Value;

use super::cards::Card;
use super::collection;
use super::complete;
use super::control::change_card;
use super::kind::Kind;
use super::params::Params;
use super::payments;
use super::portal_page;
use super::server::{Page, plain, typed};
use super::world::{World, int, reference, text};

const CARDS: [(&str, &str); 5] = [
    ("4242424242424242", "4242 4242 4242 4242: pays"),
    ("4000000000000002", "4000 0000 0000 0002: is declined"),
    ("4000002500003155", "4000 0025 0000 3155: the bank asks for a confirmation"),
    ("4000000000000341", "4000 0000 0000 0341: is declined, now and later"),
    ("4000000000000077", "4000 0000 0000 0077: the money takes its time"),
];

pub(super) fn answer(world: &mut World, method: &str, path: &str, params: &Params) -> Page {
    let segments: Vec<&str> = path.trim_matches('/').split('/').collect();
    match (method, segments.as_slice()) {
        ("GET", [""]) => plain(StatusCode::OK, "A simulated Stripe. GET /_sim tells what can be done with it.\n"),
        ("GET", ["c", "pay", id]) => checkout(world, id, None),
        ("POST", ["c", "pay", id]) => pay(world, id, params.text("card").unwrap_or("4242424242424242")),
        ("GET", ["c", "authenticate", id]) => authenticate(world, id),
        ("POST", ["c", "authenticate", id]) => {
            payments::settle(world, id, params.text("do") == Some("confirm"));
            html(StatusCode::OK, "Done", "<p>The bank has told the shop. You can close this page.</p>")
        }
        ("GET", ["i", id]) => invoice(world, id, None),
        ("POST", ["i", id]) => pay_invoice(world, id, params.text("card").unwrap_or("4242424242424242")),
        ("GET", ["i", id, "pdf"]) => pdf(world, id),
        ("GET", ["p", "session", secret]) => portal_page::show(world, secret),
        ("POST", ["p", "session", secret]) => portal_page::act(world, secret, params),
        _ => missing(),
    }
}

fn checkout(world: &World, id: &str, problem: Option<&str>) -> Page {
    let Some(session) = world.get(Kind::Session, id) else { return missing() };
    if session["status"] != "open" {
        let body = format!("<p>This session is {}.</p>", text(session, "status"));
        return html(StatusCode::OK, "Checkout", &body);
    }
    let items: String = session["_line_items"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|item| {
            format!(
                "<li>{} × {}: {}</li>",
                int(item, "quantity"),
                escape(text(item, "description")),
                money(item, "amount_total")
            )
        })
        .collect();
    let back = session["cancel_url"]
        .as_str()
        .map_or(String::new(), |url| format!("<p><a href=\"{}\">Back</a></p>", escape(url)));
    let total = if session["mode"] == "setup" { String::new() } else { money(session, "amount_total") };
    let body = format!("{}<ul>{items}</ul><p>{total}</p>{}{back}", notice(problem), card_form("Pay"));
    html(StatusCode::OK, "Checkout", &body)
}

fn pay(world: &mut World, id: &str, card: &str) -> Page {
    let done = Card::named(card).and_then(|card| complete::complete(world, id, &card));
    if let Err(failure) = done {
        return checkout(world, id, Some(&failure.message));
    }
    let session = world.copy(Kind::Session, id);
    redirect(&text(&session, "success_url").replace("{CHECKOUT_SESSION_ID}", id))
}

fn authenticate(world: &World, id: &str) -> Page {
    let Some(intent) = world.get(Kind::PaymentIntent, id) else { return missing() };
    let body = format!(
        "<p>Your bank asks you to confirm {}.</p><form method=\"post\"><button name=\"do\" value=\"confirm\">Confirm</button> \
         <button name=\"do\" value=\"refuse\">Refuse</button></form>",
        money(intent, "amount")
    );
    html(StatusCode::OK, "Your bank", &body)
}

fn invoice(world: &World, id: &str, problem: Option<&str>) -> Page {
    let Some(invoice) = world.get(Kind::Invoice, id) else { return missing() };
    let form = if invoice["status"] == "open" { card_form("Pay") } else { String::new() };
    let due = money(invoice, "amount_due");
    let body = format!(
        "{}<p>Invoice {} is {}: {due}.</p>{form}",
        notice(problem),
        text(invoice, "number"),
        text(invoice, "status")
    );
    html(StatusCode::OK, "Invoice", &body)
}

fn pay_invoice(world: &mut World, id: &str, card: &str) -> Page {
    let Some(found) = world.get(Kind::Invoice, id) else { return missing() };
    let customer = reference(found, "customer").to_owned();
    let paid = Card::named(card).and_then(|card| change_card(world, &customer, &card));
    let outcome = paid.map(|method| collection::collect(world, id, Some(&method), false));
    match outcome {
        Ok(payments::Outcome::NeedsAction) => {
            let intent = text(&world.copy(Kind::Invoice, id), "_intent").to_owned();
            redirect(&format!("/c/authenticate/{intent}"))
        }
        Ok(payments::Outcome::Declined(failure)) | Err(failure) => invoice(world, id, Some(&failure.message)),
        Ok(_) => invoice(world, id, None),
    }
}

/// The smallest document that viewers take for one.
fn pdf(world: &World, id: &str) -> Page {
    let Some(invoice) = world.get(Kind::Invoice, id) else { return missing() };
    let line = format!("Invoice {} {} {}", text(invoice, "number"), text(invoice, "status"), money(invoice, "total"));
    let stream = format!("BT /F1 18 Tf 40 780 Td ({}) Tj ET", line.replace(['(', ')', '\\'], " "));
    let body = format!(
        "%PDF-1.4\n1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj\n2 0 obj<</Type/Pages/Kids[3 0 R]/Count 1>>endobj\n\
         3 0 obj<</Type/Page/Parent 2 0 R/MediaBox[0 0 595 842]/Contents 4 0 R/Resources<</Font<</F1 5 0 R>>>>>>endobj\n\
         4 0 obj<</Length {}>>stream\n{stream}\nendstream endobj\n\
         5 0 obj<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>endobj\ntrailer<</Root 1 0 R>>\n%%EOF\n",
        stream.len()
    );
    typed(StatusCode::OK, "application/pdf", body)
}

pub(super) fn card_form(button: &str) -> String {
    let cards: String =
        CARDS.iter().map(|(number, what)| format!("<option value=\"{number}\">{what}</option>")).collect();
    format!("<form method=\"post\"><select name=\"card\">{cards}</select> <button>{button}</button></form>")
}

pub(super) fn notice(problem: Option<&str>) -> String {
    problem.map_or(String::new(), |problem| format!("<p role=\"alert\">{}</p>", escape(problem)))
}

/// `20.00 usd`; every currency here has two decimals.
pub(super) fn money(object: &Value, field: &str) -> String {
    let amount = int(object, field);
    let sign = if amount < 0 { "-" } else { "" };
    format!("{sign}{}.{:02} {}", amount.abs() / 100, amount.abs() % 100, escape(text(object, "currency")))
}

pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

pub(super) fn html(status: StatusCode, title: &str, body: &str) -> Page {
    let page = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>{title}</title>\
         <body style=\"font:16px/1.5 sans-serif;max-width:36em;margin:3em auto\"><h1>{title} (simulated)</h1>{body}</body></html>\n"
    );
    typed(status, "text/html; charset=utf-8", page)
}

pub(super) fn redirect(url: &str) -> Page {
    let Ok(location) = HeaderValue::from_str(url) else {
        return plain(StatusCode::OK, "Done; there is no address to go back to.\n");
    };
    let mut page = typed(StatusCode::SEE_OTHER, "text/plain", Bytes::new());
    page.headers_mut().insert(LOCATION, location);
    page
}

pub(super) fn missing() -> Page {
    plain(StatusCode::NOT_FOUND, "There is no such page.\n")
}
