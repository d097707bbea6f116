//! Money: what is sold, what Stripe says was paid, and which credits follow.
//!
//! A webhook is verified ([`signature`]), stored and answered. The [`inbox`] reads the object that it is about again
//! ([`stripe`]), decides what follows ([`lifecycle`]) and writes it. [`reconcile`] finds what no webhook told.

pub mod desk;
pub mod envelope;
pub mod inbox;
pub mod lifecycle;
pub mod plans;
pub mod process;
pub mod reconcile;
pub mod signature;
pub mod stripe;
pub mod terms;
pub mod topup;

use std::sync::Arc;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::desk::Desk;
use self::plans::Catalog;
use self::process::Processor;
use self::signature::Verifier;
use self::stripe::Client;
use crate::bridge::Pusher;
use crate::bridge::spenders::Spenders;
use crate::config::Config;
use crate::rollout::Current;
use crate::store::SharedStore;
use crate::telemetry::Metrics;

/// What the faces need of billing. Only there with a key of Stripe's.
pub struct Billing {
    pub verifier: Verifier,
    /// Whether the key is for real money; everything of the other mode is refused.
    pub livemode: bool,
    /// Told when an event was stored.
    pub wake: Notify,
    pub client: Arc<Client>,
    pub processor: Arc<Processor>,
    pub desk: Desk,
}

impl std::fmt::Debug for Billing {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Billing").field("livemode", &self.livemode).finish_non_exhaustive()
    }
}

/// What billing works with.
pub struct BillingParts {
    pub config: Arc<Config>,
    /// The settings as they are now.
    pub current: Current,
    pub store: SharedStore,
    pub pusher: Arc<Pusher>,
    /// Who spent just now.
    pub spenders: Arc<Spenders>,
    pub metrics: Metrics,
    /// Own the connections to Stripe, which end with `stop`.
    pub tasks: TaskTracker,
    pub stop: CancellationToken,
}

impl Billing {
    /// `None` without a key. Calls nobody.
    pub fn new(parts: BillingParts) -> Option<Arc<Billing>> {
        let BillingParts { config, current, store, pusher, spenders, metrics, tasks, stop } = parts;
        let settings = &config.stripe;
        let client = Arc::new(Client::new(settings, metrics, tasks, stop)?);
        let catalog = Catalog::new(config.clone());
        let processor = Processor::new(store.clone(), client.clone(), catalog, Some(pusher), inbox::now);
        let processor = Arc::new(processor);
        let desk = Desk::new(&config, current, store, client.clone(), processor.clone(), spenders);
        Some(Arc::new(Billing {
            verifier: Verifier::new(&settings.webhook_secrets, settings.tolerance_ms),
            livemode: client.livemode(),
            wake: Notify::new(),
            client,
            processor,
            desk,
        }))
    }
}
