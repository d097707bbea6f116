//! Money: what is sold, what Stripe says was paid, and which credits follow.

pub mod envelope;
pub mod plans;
pub mod signature;

use tokio::sync::Notify;

use self::signature::Verifier;
use crate::config::Config;

/// What the faces need of billing. Only there with a key of Stripe's.
#[derive(Debug)]
pub struct Billing {
    pub verifier: Verifier,
    /// Whether the key is for real money; everything of the other mode is refused.
    pub livemode: bool,
    /// Told when an event was stored.
    pub wake: Notify,
}

impl Billing {
    /// `None` without a key.
    pub fn new(config: &Config) -> Option<Billing> {
        let stripe = &config.stripe;
        Some(Billing {
            livemode: stripe.livemode()?,
            verifier: Verifier::new(&stripe.webhook_secrets, stripe.tolerance_ms),
            wake: Notify::new(),
        })
    }
}
