//! `faregate demo --stripe`: a Stripe that is built in, so that the way from a checkout to credits can be walked without an
//! account there.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use faregate_sim::stripe::{self, Control, PriceSpec};
use uuid::Uuid;

use super::stage::Stage;
use crate::billing::plans::Catalog;
use crate::config::{Config, Interval, Pack, PackPrice, Plan, PlanPrice, Secret};
use crate::credits::Credits;
use crate::error::{Exit, Failure};

const CURRENCY: &str = "usd";

/// The Stripe that runs beside the gateway.
pub(super) struct Built {
    control: Control,
    secret: String,
    /// What of the demo can be bought: a plan and a pack.
    pub(super) plan: String,
    pub(super) pack: String,
}

/// A folder of its own, as the built-in Stripe forgets everything when it ends.
///
/// # Errors
/// [`Exit::Settings`] where a Stripe is configured already, or others could reach the demo.
pub(super) fn prepare(config: &mut Config) -> Result<PathBuf, Failure> {
    let refuse = |why: &str| Err(Failure::new(Exit::Settings, format!("the demo is not started: {why}")));
    if config.stripe.secret_key.is_some() {
        return refuse("stripe.secret_key is set, and the demo has a Stripe of its own");
    }
    if !config.listen.ip().is_loopback() || config.tls.certificate.is_some() {
        return refuse("it is for a loopback listener without TLS");
    }
    config.data_dir = std::env::temp_dir().join(format!("faregate-demo-{}", Uuid::now_v7().simple()));
    config.store.url.clear();
    config.ledger.url.clear();
    Ok(config.data_dir.clone())
}

/// Starts it on a port of its own and points the settings at it.
pub(super) async fn start(config: &mut Config, stage: &Stage) -> Result<Built, Failure> {
    let options = stripe::Options { follow: true, ..stripe::Options::default() };
    let bound = stripe::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), options).await;
    let simulator = bound.map_err(Failure::while_doing(Exit::Unavailable, "the built-in Stripe"))?;
    let control = simulator.control();
    let stop = stage.stop.clone();
    stage.spawn("built-in Stripe", async move { simulator.run(stop.cancelled_owned()).await });
    let secret = format!("whsec_{}", Uuid::now_v7().simple());
    config.stripe.api_base = control.url();
    config.stripe.secret_key = Some(Secret::new("sk_test_demo"));
    config.stripe.webhook_secrets = vec![Secret::new(secret.clone())];
    config.stripe.return_url = format!("http://{}/billing", config.listen);
    let (plan, pack) = offer(config);
    let catalog = Catalog::new(std::sync::Arc::new(config.clone()));
    for sold in catalog.prices() {
        let interval = sold.interval.map(|interval| match interval {
            Interval::Month => "month".to_owned(),
            Interval::Year => "year".to_owned(),
        });
        control.price(&PriceSpec {
            id: Some(sold.id.to_owned()),
            product_name: sold.id.to_owned(),
            unit_amount: sold.amount,
            currency: sold.currency.to_owned(),
            interval,
            live: false,
        });
    }
    Ok(Built { control, secret, plan, pack })
}

/// The settings' own plan and pack, or one of each for the demo.
fn offer(config: &mut Config) -> (String, String) {
    let plan = config.plans.iter().find(|(_, plan)| !plan.prices.is_empty()).map(|(name, _)| name.clone());
    let plan = plan.unwrap_or_else(|| {
        let price = |id: &str, interval, amount| PlanPrice {
            id: id.to_owned(),
            currency: CURRENCY.to_owned(),
            interval,
            amount,
        };
        let prices =
            vec![price("price_demo_month", Interval::Month, 2_000), price("price_demo_year", Interval::Year, 20_000)];
        let plan =
            Plan { credits: Credits::whole(1_000), rollover_cap: Credits::whole(300), prices, ..Plan::default() };
        config.plans.insert("pro".to_owned(), plan);
        "pro".to_owned()
    });
    let pack = config.packs.iter().find(|(_, pack)| !pack.prices.is_empty()).map(|(name, _)| name.clone());
    let pack = pack.unwrap_or_else(|| {
        let price = PackPrice { id: "price_demo_pack".to_owned(), currency: CURRENCY.to_owned(), amount: 500 };
        let pack = Pack { credits: Credits::whole(100), expires_after_days: 0, prices: vec![price] };
        config.packs.insert("small".to_owned(), pack);
        "small".to_owned()
    });
    (plan, pack)
}

impl Built {
    /// From now on its events go there.
    pub(super) fn tell(&self, base: &str, prefix: &str) {
        let url = format!("{base}{}/billing/webhook", prefix.trim_end_matches('/'));
        self.control.endpoint(&url, &[&self.secret]);
    }

    pub(super) fn url(&self) -> String {
        self.control.url()
    }
}
