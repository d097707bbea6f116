//! `faregate check --online`: whether the prices of the settings are those at Stripe.

use std::fmt::Write as _;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::show;
use crate::billing::plans::{Catalog, Sold};
use crate::billing::stripe::objects::Price;
use crate::billing::stripe::{Client, StripeError};
use crate::config::{Config, Interval};
use crate::error::{Exit, Failure};
use crate::telemetry::Metrics;

pub(super) fn check(config: Config) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(Failure::while_doing(Exit::Internal, "a runtime"))?;
    runtime.block_on(compare(config))
}

async fn compare(config: Config) -> Result<(), Failure> {
    let metrics = Metrics::new().map_err(Failure::while_doing(Exit::Internal, "metrics"))?;
    let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
    let client = Client::new(&config.stripe, metrics, tasks.clone(), stop.clone());
    let client = client.ok_or_else(|| Failure::new(Exit::Settings, "stripe.secret_key is missing"))?;
    let catalog = Catalog::new(Arc::new(config));
    let (mut out, mut wrong) = (String::new(), 0);
    for sold in catalog.prices() {
        let found = match client.price(sold.id).await {
            Ok(price) => differences(&sold, &price),
            Err(StripeError::NotFound(_)) => vec!["Stripe does not know it".to_owned()],
            Err(error @ StripeError::WrongMode(_)) => vec![error.to_string()],
            Err(error) => return Err(Failure::new(Exit::Unavailable, error.to_string())),
        };
        let told = if found.is_empty() { "as at Stripe".to_owned() } else { found.join("; ") };
        let _ = writeln!(out, "price      {}: {told}", sold.id);
        wrong += usize::from(!found.is_empty());
    }
    stop.cancel();
    tasks.close();
    tasks.wait().await;
    show::text(&out)?;
    if wrong == 0 { Ok(()) } else { Err(Failure::new(Exit::Settings, format!("{wrong} prices are not as at Stripe"))) }
}

fn differences(sold: &Sold<'_>, price: &Price) -> Vec<String> {
    let mut found = Vec::new();
    if !price.active {
        found.push("it is not active".to_owned());
    }
    if price.currency != sold.currency {
        found.push(format!("it is in {}, not {}", price.currency, sold.currency));
    }
    if price.unit_amount != Some(sold.amount) {
        let amount = price.unit_amount.map_or_else(|| "of no fixed amount".to_owned(), |amount| amount.to_string());
        found.push(format!("it is {amount}, not {}", sold.amount));
    }
    let interval = |interval| match interval {
        Interval::Month => "month",
        Interval::Year => "year",
    };
    let told = price.recurring.as_ref().map(|recurring| (recurring.interval.as_str(), recurring.interval_count.max(1)));
    if told != sold.interval.map(|wanted| (interval(wanted), 1)) {
        found.push("it is for another interval".to_owned());
    }
    found
}
