//! The kinds of objects, by the prefix of their ids.

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Charge,
    Customer,
    Dispute,
    EarlyFraudWarning,
    Event,
    Invoice,
    InvoiceItem,
    InvoicePayment,
    PaymentIntent,
    PaymentMethod,
    PortalSession,
    Price,
    Product,
    Refund,
    Schedule,
    Session,
    SetupIntent,
    Subscription,
    WebhookEndpoint,
}

const ALL: [(Kind, &str, &str); 19] = [
    (Kind::Charge, "ch", "charge"),
    (Kind::Customer, "cus", "customer"),
    (Kind::Dispute, "du", "dispute"),
    (Kind::EarlyFraudWarning, "issfr", "early fraud warning"),
    (Kind::Event, "evt", "event"),
    (Kind::Invoice, "in", "invoice"),
    (Kind::InvoiceItem, "ii", "invoiceitem"),
    (Kind::InvoicePayment, "inpay", "invoice payment"),
    (Kind::PaymentIntent, "pi", "payment_intent"),
    (Kind::PaymentMethod, "pm", "PaymentMethod"),
    (Kind::PortalSession, "bps", "portal session"),
    (Kind::Price, "price", "price"),
    (Kind::Product, "prod", "product"),
    (Kind::Refund, "re", "refund"),
    (Kind::Schedule, "sub_sched", "subscription schedule"),
    (Kind::Session, "cs", "checkout.session"),
    (Kind::SetupIntent, "seti", "setupintent"),
    (Kind::Subscription, "sub", "subscription"),
    (Kind::WebhookEndpoint, "we", "webhook endpoint"),
];

impl Kind {
    /// Every kind there is.
    pub fn all() -> impl Iterator<Item = Kind> {
        ALL.iter().map(|(kind, ..)| *kind)
    }

    pub fn prefix(self) -> &'static str {
        ALL.iter().find(|(kind, ..)| *kind == self).map_or("obj", |(_, prefix, _)| prefix)
    }

    /// As Stripe's messages call it.
    pub fn name(self) -> &'static str {
        ALL.iter().find(|(kind, ..)| *kind == self).map_or("object", |(.., name)| name)
    }

    /// `sub_sched_…` is a schedule, not a subscription: the longest prefix wins.
    pub fn of(id: &str) -> Option<Kind> {
        let fits = |prefix: &str| id.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('_'));
        ALL.iter()
            .filter(|(_, prefix, _)| fits(prefix))
            .max_by_key(|(_, prefix, _)| prefix.len())
            .map(|(kind, ..)| *kind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_prefix_wins() {
        assert_eq!(Kind::of("sub_sched_1"), Some(Kind::Schedule));
        assert_eq!(Kind::of("sub_1"), Some(Kind::Subscription));
        assert_eq!(Kind::of("nothing"), None);
    }
}
