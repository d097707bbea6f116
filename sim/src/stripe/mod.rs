//! A Stripe that runs on a laptop: the part of its API that a billing system needs, with signed webhooks and a clock
//! that is moved by hand.
//!
//! **API** under `/v1`, in the shapes of [`API_VERSION`]: customers, products, prices, checkout sessions,
//! subscriptions and their schedules, invoices with lines, payments and previews, payment intents, charges, refunds,
//! disputes, early fraud warnings, payment methods, portal sessions, events, webhook endpoints. Parameters are
//! form-encoded; `expand`, paging, metadata, idempotency keys and errors are Stripe's; an unknown parameter is refused.
//! Keys are `sk_test_…` and `sk_live_…`, and neither sees the other's objects.
//!
//! **Pages** to click stand in for the hosted ones: checkout, invoice, portal.
//!
//! **Time** stands still until [`Control::advance`]; then everything that falls due happens at its own moment, in
//! order. Nothing is random; ids are numbered behind a tag.
//!
//! **Webhooks** go to every endpoint, signed with all its secrets, one after the other unless told otherwise, and are
//! retried until one answers 2xx. Tests hold, drop, double, delay, reorder and falsify them ([`Act`], [`Twist`]), and
//! make API calls fail ([`Fault`]).

mod api;
mod calendar;
mod cards;
mod checkout;
mod clock;
mod collection;
mod complete;
mod control;
mod customers;
mod delivery;
mod disputes;
mod error;
mod events;
mod faults;
mod intents;
mod invoices;
mod invoices_api;
mod kind;
mod lifecycle;
mod list;
mod old_shape;
mod outbox;
mod pages;
mod params;
mod payment_methods;
mod payments;
mod pending;
mod portal;
mod portal_page;
mod present;
mod prices;
mod proration;
mod refunds;
mod schedules;
mod server;
mod signature;
mod sim_api;
mod subscriptions;
mod subscriptions_api;
#[cfg(test)]
mod tests;
mod updates;
mod world;

pub use cards::Behaviour;
pub use control::{Control, Sent};
pub use error::Failure;
pub use faults::{Fault, FaultRule};
pub use kind::Kind;
pub use outbox::{Act, Order, Rule, State, Twist};
pub use prices::PriceSpec;
pub use server::{Options, Seen, Simulator, bind};
pub use signature::header as signature_header;
pub use world::AfterRetries;

/// The version whose shapes are spoken.
pub const API_VERSION: &str = "2026-03-25.dahlia";
