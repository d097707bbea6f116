//! What a test does in the place of cardholders, banks, the network and time.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::cards::{Behaviour, Card};
use super::error::Failure;
use super::faults::FaultRule;
use super::kind::Kind;
use super::outbox::{Order, Rule, State, Twist};
use super::prices::{self, PriceSpec};
use super::server::{Inner, Seen, Shared, wall};
use super::world::{AfterRetries, World, reference, text};
use super::{clock, complete, disputes, events, payment_methods, payments, refunds};

const POLL: Duration = Duration::from_millis(2);

/// A handle on a running simulator; clones are the same simulator.
#[derive(Clone)]
pub struct Control {
    shared: Arc<Shared>,
}

/// What became of one delivery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sent {
    pub event: String,
    pub kind: String,
    pub endpoint: String,
    pub state: State,
    pub attempts: u32,
    pub status: Option<u16>,
}

impl Control {
    pub(super) fn new(shared: Arc<Shared>) -> Control {
        Control { shared }
    }

    fn change<T>(&self, work: impl FnOnce(&mut World) -> T) -> T {
        self.shared.change(|inner| work(&mut inner.world))
    }

    /// For `stripe.api_base`.
    pub fn url(&self) -> String {
        self.shared.with(|world| world.base.clone())
    }

    /// Unix seconds of the simulated clock.
    pub fn now(&self) -> i64 {
        self.shared.with(|world| world.now)
    }

    /// Moves the clock to `to`, in Unix seconds; what falls due on the way happens.
    ///
    /// # Errors
    /// When that lies in the past.
    pub fn advance(&self, to: i64) -> Result<(), Failure> {
        self.shared.change(|inner| advance(inner, to))
    }

    /// Moves the clock on by so many seconds.
    ///
    /// # Errors
    /// As [`Control::advance`].
    pub fn advance_by(&self, seconds: i64) -> Result<(), Failure> {
        self.shared.change(|inner| {
            let to = inner.world.now.saturating_add(seconds);
            advance(inner, to)
        })
    }

    /// Makes a price, unless there is one of that id; answers its id.
    pub fn price(&self, spec: &PriceSpec) -> String {
        self.change(|world| prices::seed(world, spec))
    }

    /// A test-mode endpoint for every event, signed with each of these secrets; answers its id.
    pub fn endpoint(&self, url: &str, secrets: &[&str]) -> String {
        let secrets: Vec<String> = secrets.iter().map(|secret| (*secret).to_owned()).collect();
        self.change(|world| events::new(world, url, &secrets, false))
    }

    /// From now on an endpoint's events are signed with these: how a secret is rotated.
    pub fn set_secrets(&self, endpoint: &str, secrets: &[&str]) {
        let secrets: Vec<String> = secrets.iter().map(|secret| (*secret).to_owned()).collect();
        self.change(|world| events::set_secrets(world, endpoint, &secrets));
    }

    /// Pays on a checkout session's page with a card, by Stripe's test name or a number.
    ///
    /// # Errors
    /// When the session is not open, or the card declines (then it stays open).
    pub fn complete_checkout(&self, session: &str, card: &str) -> Result<Value, Failure> {
        let card = Card::named(card)?;
        self.change(|world| {
            complete::complete(world, session, &card)?;
            Ok(super::present::plain(&world.copy(Kind::Session, session)))
        })
    }

    /// Expires an open session now.
    pub fn expire_checkout(&self, session: &str) {
        self.change(|world| super::checkout::expire(world, session));
    }

    /// Ends a payment that is `processing` or waits for the cardholder, with all that follows from it.
    pub fn settle_payment(&self, intent: &str, paid: bool) {
        self.change(|world| payments::settle(world, intent, paid));
    }

    /// How every charge of a customer goes from now on; none: as its cards say.
    pub fn set_behaviour(&self, customer: &str, behaviour: Option<Behaviour>) {
        self.change(|world| match behaviour {
            Some(behaviour) => drop(world.behaviours.insert(customer.to_owned(), behaviour)),
            None => drop(world.behaviours.remove(customer)),
        });
    }

    /// Gives a customer another card, as the portal does; answers the payment method's id.
    ///
    /// # Errors
    /// When there is no such customer or card.
    pub fn change_card(&self, customer: &str, card: &str) -> Result<String, Failure> {
        let card = Card::named(card)?;
        self.change(|world| change_card(world, customer, &card))
    }

    /// Gives a charge (or a payment intent's, or an invoice's) back, all that is left or `amount` minor units; answers the refund's id.
    ///
    /// # Errors
    /// When that much is not left.
    pub fn refund(&self, of: &str, amount: Option<i64>) -> Result<String, Failure> {
        self.change(|world| refunds::refund(world, &charge_of(world, of), amount))
    }

    /// A refund fails after all.
    ///
    /// # Errors
    /// When there is none that succeeded.
    pub fn fail_refund(&self, refund: &str) -> Result<(), Failure> {
        self.change(|world| refunds::fail(world, refund))
    }

    /// The cardholder disputes a charge (or a payment intent's, or an invoice's); the money is withdrawn. Answers the dispute's id.
    ///
    /// # Errors
    /// When there is no such charge.
    pub fn dispute(&self, of: &str, amount: Option<i64>) -> Result<String, Failure> {
        self.change(|world| disputes::open(world, &charge_of(world, of), amount, false))
    }

    /// As [`Control::dispute`], only an inquiry: no money moves.
    ///
    /// # Errors
    /// When there is no such charge.
    pub fn inquiry(&self, of: &str) -> Result<String, Failure> {
        self.change(|world| disputes::open(world, &charge_of(world, of), None, true))
    }

    /// The bank decides.
    ///
    /// # Errors
    /// When there is no such dispute that is open.
    pub fn close_dispute(&self, dispute: &str, won: bool) -> Result<(), Failure> {
        self.change(|world| disputes::close(world, dispute, won))
    }

    /// The bank warns of a charge (or a payment intent's, or an invoice's); answers the warning's id.
    ///
    /// # Errors
    /// When there is no such charge.
    pub fn fraud_warning(&self, of: &str) -> Result<String, Failure> {
        self.change(|world| disputes::warn(world, &charge_of(world, of)))
    }

    pub fn set_after_retries(&self, after: AfterRetries) {
        self.change(|world| world.after_retries = after);
    }

    /// How many deliveries are under way at a time; 1 keeps their order.
    pub fn set_concurrency(&self, deliveries: usize) {
        self.shared.concurrency.store(deliveries, Ordering::Relaxed);
    }

    /// Keeps deliveries of what happens from now on, until released.
    pub fn hold_webhooks(&self) {
        self.change(|world| world.outbox.holding = true);
    }

    /// Lets held deliveries go, in this order; answers how many.
    pub fn release_webhooks(&self, order: Order) -> usize {
        self.change(|world| world.outbox.release(order))
    }

    pub fn rule(&self, rule: Rule) {
        self.change(|world| world.outbox.rule(rule));
    }

    pub fn clear_rules(&self) {
        self.change(|world| world.outbox.clear_rules());
    }

    /// Delivers an event once more to every endpoint of its mode.
    pub fn deliver(&self, event: &str, twist: Twist) {
        self.change(|world| {
            let object = world.copy(Kind::Event, event);
            let fits = |endpoint: &Value| endpoint["status"] == "enabled" && endpoint["livemode"] == object["livemode"];
            for endpoint in world.ids(Kind::WebhookEndpoint, fits) {
                world.outbox.queue_again(event, text(&object, "type"), &endpoint, twist);
            }
        });
    }

    /// Makes failed deliveries due at once.
    pub fn retry_now(&self) {
        self.change(|world| world.outbox.retry_now());
    }

    pub fn deliveries(&self) -> Vec<Sent> {
        self.shared.with(|world| {
            world
                .outbox
                .all()
                .map(|(_, delivery)| Sent {
                    event: delivery.event.clone(),
                    kind: delivery.kind.clone(),
                    endpoint: delivery.endpoint.clone(),
                    state: delivery.state,
                    attempts: delivery.attempts,
                    status: delivery.status,
                })
                .collect()
        })
    }

    /// Waits until nothing is left to deliver, at most so long; answers whether it came to that.
    pub async fn delivered(&self, within: Duration) -> bool {
        let end = Instant::now() + within;
        while self.shared.with(|world| world.outbox.pending()) > 0 {
            if Instant::now() >= end {
                return false;
            }
            tokio::time::sleep(POLL).await;
        }
        true
    }

    pub fn fault(&self, rule: FaultRule) {
        self.shared.change(|inner| inner.faults.add(rule));
    }

    pub fn clear_faults(&self) {
        self.shared.change(|inner| inner.faults.clear());
    }

    /// An object by its id; null when there is none.
    pub fn object(&self, id: &str) -> Value {
        self.shared.with(|world| Kind::of(id).map_or(Value::Null, |kind| super::present::plain(&world.copy(kind, id))))
    }

    /// All of a kind, oldest first.
    pub fn objects(&self, kind: Kind) -> Vec<Value> {
        self.shared.with(|world| world.all(kind).map(super::present::plain).collect())
    }

    /// Events of a type, or of types that begin with what stands before a `*`; oldest first.
    pub fn events(&self, kind: &str) -> Vec<Value> {
        let fits = |event: &&Value| super::outbox::matches(kind, text(event, "type"));
        self.shared.with(|world| world.all(Kind::Event).filter(fits).cloned().collect())
    }

    /// The API requests of late, oldest first.
    pub fn requests(&self) -> Vec<Seen> {
        self.shared.inner(|inner| inner.seen.iter().cloned().collect())
    }

    /// The charge behind a payment intent or an invoice; empty when there is none.
    pub fn charge_of(&self, of: &str) -> String {
        self.shared.with(|world| charge_of(world, of))
    }
}

pub(super) fn advance(inner: &mut Inner, to: i64) -> Result<(), Failure> {
    clock::advance(&mut inner.world, to)?;
    if inner.offset.is_some() {
        inner.offset = Some(to - wall());
    }
    Ok(())
}

pub(super) fn charge_of(world: &World, of: &str) -> String {
    let intent = match Kind::of(of) {
        Some(Kind::Invoice) => text(&world.copy(Kind::Invoice, of), "_intent").to_owned(),
        Some(Kind::PaymentIntent) => of.to_owned(),
        _ => return of.to_owned(),
    };
    reference(&world.copy(Kind::PaymentIntent, &intent), "latest_charge").to_owned()
}

/// A new card for a customer and for the subscriptions it has.
pub(super) fn change_card(world: &mut World, customer: &str, card: &Card) -> Result<String, Failure> {
    let owner = world.get(Kind::Customer, customer).filter(|owner| owner["deleted"] != true);
    let is_live = super::world::live(owner.ok_or_else(|| Failure::no_such("customer", customer, "id", None))?);
    let method = payment_methods::new(world, card, is_live);
    payment_methods::attach(world, &method, customer, is_live)?;
    world.touch(Kind::Customer, customer, "customer.updated", |owner| {
        owner["invoice_settings"]["default_payment_method"] = method.as_str().into();
    });
    let running = |sub: &Value| sub["customer"] == customer && !super::lifecycle::has_ended(sub);
    for subscription in world.ids(Kind::Subscription, running) {
        world.touch(Kind::Subscription, &subscription, "customer.subscription.updated", |sub| {
            sub["default_payment_method"] = method.as_str().into();
        });
    }
    Ok(method)
}
