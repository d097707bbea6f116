//! The simulators alone.
//!
//! - `faregate-sim [address]`: the AI upstream, on 127.0.0.1:8081 when none is given.
//! - `faregate-sim stripe [options]`: Stripe, on 127.0.0.1:8082.
//! - `faregate-sim stack-auth [options]`: Stack Auth, on 127.0.0.1:8083.

use std::io::{Error, Result};
use std::net::SocketAddr;

use faregate_sim::stack_auth;
use faregate_sim::stripe::{self, PriceSpec};
use faregate_sim::upstream;

const STRIPE_HELP: &str = "\
faregate-sim stripe [options]
  --listen ADDRESS                        127.0.0.1:8082
  --webhook URL=SECRET                    an endpoint for every event; may be repeated
  --price ID=AMOUNT:CURRENCY[:INTERVAL]   a price, in minor units; may be repeated
  --frozen                                the clock stands still until POST /_sim/advance
  --start-at UNIX_SECONDS                 now
GET /_sim on it tells what else can be done.";

const STACK_AUTH_HELP: &str = "\
faregate-sim stack-auth [options]
  --listen ADDRESS        127.0.0.1:8083
  --project ID            of the one project there is
  --webhook URL=SECRET    an endpoint for every event (whsec_…); may be repeated
GET /_sim on it tells what else can be done.";

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    match arguments.next().as_deref() {
        Some("stripe") => run_stripe(arguments).await,
        Some("stack-auth") => run_stack_auth(arguments).await,
        address => run_upstream(address.unwrap_or("127.0.0.1:8081")).await,
    }
}

async fn run_upstream(address: &str) -> Result<()> {
    let upstream = upstream::bind(parse(address)?).await?;
    println!("{}", upstream.addr());
    upstream.run(interrupted()).await;
    Ok(())
}

async fn run_stack_auth(mut arguments: impl Iterator<Item = String>) -> Result<()> {
    let mut address = parse("127.0.0.1:8083")?;
    let mut options = stack_auth::Options::default();
    let mut webhooks = Vec::new();
    while let Some(name) = arguments.next() {
        let value = arguments.next().ok_or_else(|| Error::other(STACK_AUTH_HELP))?;
        match name.as_str() {
            "--listen" => address = parse(&value)?,
            "--project" => options.project = value,
            "--webhook" => webhooks.push(value),
            _ => return Err(Error::other(STACK_AUTH_HELP)),
        }
    }
    let simulator = stack_auth::bind(address, options).await?;
    let control = simulator.control();
    for webhook in &webhooks {
        // A secret in base64 may end in =.
        let (url, secret) = webhook.split_once("=whsec_").ok_or_else(|| Error::other(STACK_AUTH_HELP))?;
        control.endpoint(url, &format!("whsec_{secret}"));
    }
    println!("{} {}", control.url(), control.project());
    simulator.run(interrupted()).await;
    Ok(())
}

async fn run_stripe(mut arguments: impl Iterator<Item = String>) -> Result<()> {
    let mut address = parse("127.0.0.1:8082")?;
    let mut options = stripe::Options { follow: true, ..stripe::Options::default() };
    let (mut webhooks, mut prices) = (Vec::new(), Vec::new());
    while let Some(name) = arguments.next() {
        if name == "--frozen" {
            options.follow = false;
            continue;
        }
        let value = arguments.next().ok_or_else(|| Error::other(STRIPE_HELP))?;
        match name.as_str() {
            "--listen" => address = parse(&value)?,
            "--webhook" => webhooks.push(value),
            "--price" => prices.push(price(&value).ok_or_else(|| Error::other(STRIPE_HELP))?),
            "--start-at" => options.start_at = Some(value.parse().map_err(Error::other)?),
            _ => return Err(Error::other(STRIPE_HELP)),
        }
    }
    let simulator = stripe::bind(address, options).await?;
    let control = simulator.control();
    for webhook in &webhooks {
        let (url, secret) = webhook.rsplit_once('=').ok_or_else(|| Error::other(STRIPE_HELP))?;
        control.endpoint(url, &[secret]);
    }
    for price in &prices {
        control.price(price);
    }
    println!("{}", control.url());
    simulator.run(interrupted()).await;
    Ok(())
}

/// `price_pro=2000:usd:month`.
fn price(text: &str) -> Option<PriceSpec> {
    let (id, rest) = text.split_once('=')?;
    let mut parts = rest.split(':');
    let unit_amount = parts.next()?.parse().ok().filter(|amount| *amount >= 0)?;
    let currency = parts.next()?.to_owned();
    let interval = parts.next().map(str::to_owned);
    let known = interval.as_deref().is_none_or(|unit| ["day", "week", "month", "year"].contains(&unit));
    let spec = PriceSpec {
        id: Some(id.to_owned()),
        product_name: id.to_owned(),
        unit_amount,
        currency,
        interval,
        live: false,
    };
    Some(spec).filter(|_| known)
}

fn parse(address: &str) -> Result<SocketAddr> {
    address.parse().map_err(Error::other)
}

async fn interrupted() {
    // Without a handler, ending it is the shell's business.
    let _ = tokio::signal::ctrl_c().await;
}
