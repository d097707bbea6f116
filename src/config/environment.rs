//! Which setting a variable means.

pub(super) const PREFIX: &str = "FAREGATE_";

/// The variables that have names of their own.
const NAMED: [(&str, &str); 10] = [
    ("FAREGATE_LEDGER_URL", "ledger.url"),
    ("FAREGATE_STORE_URL", "store.url"),
    ("FAREGATE_UPSTREAM_URL", "upstream.url"),
    ("FAREGATE_UPSTREAM_API_KEY", "upstream.api_key"),
    ("FAREGATE_STRIPE_SECRET_KEY", "stripe.secret_key"),
    ("FAREGATE_STRIPE_WEBHOOK_SECRETS", "stripe.webhook_secrets"),
    ("FAREGATE_STRIPE_API_BASE", "stripe.api_base"),
    ("FAREGATE_STACK_PROJECT_ID", "stack.project_id"),
    ("FAREGATE_STACK_BASE_URL", "stack.base_url"),
    ("FAREGATE_STACK_WEBHOOK_SECRET", "stack.webhook_secrets"),
];

/// The file of settings, where no `--config` names one; the command line reads it.
pub const CONFIG_FILE: &str = "FAREGATE_CONFIG";

pub(super) enum Target {
    Setting(Vec<String>),
    /// Not a setting of ours.
    None,
}

pub(super) fn target(name: &str, value: &str) -> Target {
    if name == CONFIG_FILE || value.is_empty() || service_link(name, value) {
        return Target::None;
    }
    if let Some((_, path)) = NAMED.iter().find(|(named, _)| *named == name) {
        return Target::Setting(path.split('.').map(str::to_owned).collect());
    }
    let rest = name.strip_prefix(PREFIX).unwrap_or(name);
    Target::Setting(rest.to_lowercase().split("__").map(str::to_owned).collect())
}

/// How a variable for the known setting could be written, with the names that `wrong` uses where it has a `*`.
pub(super) fn names(known: &str, wrong: &str) -> Vec<String> {
    let own: Vec<&str> = wrong.strip_prefix(PREFIX).unwrap_or(wrong).split("__").collect();
    let part = |(index, name): (usize, &str)| match (name, own.get(index)) {
        ("*", Some(own)) => (*own).to_owned(),
        ("*", None) => "NAME".to_owned(),
        _ => name.to_uppercase(),
    };
    let path: Vec<String> = known.split('.').enumerate().map(part).collect();
    let mut names = vec![format!("{PREFIX}{}", path.join("__"))];
    names.extend(NAMED.iter().filter(|(_, path)| *path == known).map(|(named, _)| (*named).to_owned()));
    names
}

/// Kubernetes puts variables about every service of the namespace into every container, and a service may be called
/// `faregate` or `faregate-redis`.
fn service_link(name: &str, value: &str) -> bool {
    if name.ends_with("_SERVICE_HOST") || name.ends_with("_SERVICE_PORT") || name.contains("_SERVICE_PORT_") {
        return true;
    }
    let address = ["tcp://", "udp://", "sctp://"].iter().any(|scheme| value.starts_with(scheme));
    if address && name.ends_with("_PORT") {
        return true;
    }
    let Some((_, rest)) = name.rsplit_once("_PORT_") else { return false };
    let mut words = rest.split('_');
    let port = words.next().is_some_and(|word| word.parse::<u16>().is_ok());
    let protocol = words.next().is_some_and(|word| ["TCP", "UDP", "SCTP"].contains(&word));
    let last = words.next().is_none_or(|word| ["PROTO", "PORT", "ADDR"].contains(&word));
    port && protocol && last
}
