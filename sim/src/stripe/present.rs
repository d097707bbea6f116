//! From a stored object to what is shown: hidden fields out, long lists cut, asked-for references expanded.

use serde_json::{Value, json};

use super::error::Failure;
use super::kind::Kind;
use super::world::{World, text};

/// Lines of an invoice that come with it; the rest is paged.
pub(super) const LINES_SHOWN: usize = 10;
/// Deepest path of one `expand`.
const EXPAND_DEPTH_MAX: usize = 4;
/// Most paths of one request.
const EXPAND_MAX: usize = 20;

/// Without what is only the simulator's business (fields that begin with `_`).
pub(super) fn plain(object: &Value) -> Value {
    match object {
        Value::Object(fields) => {
            let shown = fields.iter().filter(|(name, _)| !name.starts_with('_'));
            let mut shown: Value = shown.map(|(name, value)| (name.clone(), plain(value))).collect();
            if fields.get("object") == Some(&json!("invoice")) {
                cut_lines(&mut shown);
            }
            shown
        }
        Value::Array(members) => members.iter().map(plain).collect(),
        other => other.clone(),
    }
}

fn cut_lines(invoice: &mut Value) {
    if let Some(lines) = invoice["lines"]["data"].as_array_mut()
        && lines.len() > LINES_SHOWN
    {
        lines.truncate(LINES_SHOWN);
        invoice["lines"]["has_more"] = true.into();
    }
}

/// What a request sees of an object.
///
/// # Errors
/// When `expand` names what cannot be expanded.
pub(super) fn shown(world: &World, object: &Value, expand: &[String]) -> Result<Value, Failure> {
    let mut shown = plain(object);
    if expand.len() > EXPAND_MAX {
        return Err(Failure::invalid("expand", "Too many properties to expand."));
    }
    for path in expand {
        let names: Vec<&str> = path.split('.').collect();
        if names.len() > EXPAND_DEPTH_MAX {
            let message = format!("You cannot expand more than {EXPAND_DEPTH_MAX} levels of a property: {path}");
            return Err(Failure::invalid("expand", message));
        }
        expand_in(world, &mut shown, &names, path)?;
    }
    Ok(shown)
}

fn expand_in(world: &World, at: &mut Value, names: &[&str], path: &str) -> Result<(), Failure> {
    if let Value::Array(members) = at {
        return members.iter_mut().try_for_each(|member| expand_in(world, member, names, path));
    }
    if at["deleted"] == true {
        return Ok(());
    }
    let Some((name, rest)) = names.split_first() else { return Ok(()) };
    if at[*name].is_null()
        && let Some(list) = included(world, at, name)
    {
        at[*name] = list;
    }
    let Some(value) = at.get_mut(*name) else {
        let message = format!("This property cannot be expanded ({path}).");
        return Err(Failure::invalid("expand", message));
    };
    if let Some(id) = value.as_str()
        && let Some(object) = Kind::of(id).and_then(|kind| world.get(kind, id))
    {
        *value = plain(object);
    }
    if value.is_null() { Ok(()) } else { expand_in(world, value, rest, path) }
}

/// Lists that are only there when asked for.
fn included(world: &World, owner: &Value, name: &str) -> Option<Value> {
    let id = text(owner, "id");
    let (kind, field, url) = match (text(owner, "object"), name) {
        ("invoice", "payments") => (Kind::InvoicePayment, "invoice", format!("/v1/invoice_payments?invoice={id}")),
        ("charge", "refunds") => (Kind::Refund, "charge", format!("/v1/charges/{id}/refunds")),
        ("customer", "subscriptions") => (Kind::Subscription, "customer", format!("/v1/customers/{id}/subscriptions")),
        ("checkout.session", "line_items") => {
            let session = world.get(Kind::Session, id)?;
            let items = plain(&session["_line_items"]);
            let url = format!("/v1/checkout/sessions/{id}/line_items");
            return Some(json!({ "object": "list", "data": items, "has_more": false, "url": url }));
        }
        _ => return None,
    };
    let rows: Vec<Value> = world
        .all(kind)
        .rev()
        .filter(|row| text(row, field) == id && (kind != Kind::Subscription || row["status"] != "canceled"))
        .map(plain)
        .collect();
    Some(json!({ "object": "list", "data": rows, "has_more": false, "url": url }))
}
