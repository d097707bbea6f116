//! Random histories of a subscription: told promptly and in order, or late, twice, shuffled and in part never, they end in
//! the same account.

use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, SeedableRng};

use super::super::facts::{Facts, Payment};
use super::bench::*;
use crate::billing::stripe::objects::*;

const HISTORIES: u64 = 400;
const MONTH: i64 = 30 * DAY;

/// Stripe's side.
#[derive(Clone, Default)]
struct World {
    subscription: Option<Subscription>,
    invoices: Vec<Invoice>,
    payments: Vec<Payment>,
}

/// What an event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum About {
    Subscription,
    Invoice(usize),
    Payment(usize),
}

impl World {
    /// What is read again for an event.
    fn facts(&self, about: About) -> Facts {
        let mut facts = Facts { customer: Some("cus_1".into()), ..Facts::default() };
        let with_invoice = |facts: &mut Facts, invoice: &Invoice| {
            facts.invoices.push(invoice.clone());
            facts.subscriptions.extend(self.subscription.clone());
            let paid =
                self.payments.iter().filter(|payment| Some(payment.intent.id.as_str()) == invoice.payment_intent());
            facts.payments.extend(paid.cloned());
        };
        match about {
            About::Subscription => facts.subscriptions.extend(self.subscription.clone()),
            About::Invoice(index) => with_invoice(&mut facts, &self.invoices[index]),
            About::Payment(index) => {
                let payment = &self.payments[index];
                let id = payment.intent.id.as_str();
                match self.invoices.iter().find(|invoice| invoice.payment_intent() == Some(id)) {
                    Some(invoice) => with_invoice(&mut facts, invoice),
                    None => facts.payments.push(payment.clone()),
                }
            }
        }
        facts
    }

    fn all(&self) -> Facts {
        Facts {
            subscriptions: self.subscription.iter().cloned().collect(),
            invoices: self.invoices.clone(),
            payments: self.payments.clone(),
            customer: Some("cus_1".into()),
            ..Facts::default()
        }
    }

    fn live(&mut self) -> Option<&mut Subscription> {
        self.subscription.as_mut().filter(|subscription| subscription.ended_at.is_none())
    }

    fn price(&self) -> String {
        self.subscription.as_ref().map(|subscription| subscription.items.data[0].price.id.clone()).unwrap_or_default()
    }

    fn paid(&mut self, reason: &str, lines: Vec<Line>, at: i64) -> Vec<About> {
        let id = format!("in_{}", self.invoices.len() + 1);
        let mut made = invoice(&id, "sub_1", reason, lines);
        made.created = at;
        made.status_transitions = StatusTransitions { paid_at: Some(at) };
        let mut payment = payment(&format!("pi_{id}"), made.amount_paid, 0);
        payment.intent.created = at;
        self.payments.push(payment);
        self.invoices.push(made);
        vec![About::Invoice(self.invoices.len() - 1), About::Subscription]
    }

    fn begin(&mut self, price: &str, amount: i64, start: i64, end: i64) -> Vec<About> {
        self.subscription = Some(subscription("sub_1", price, start, end));
        self.paid("subscription_create", vec![line(price, amount, start, end, false)], start)
    }

    fn period(&mut self, start: i64, end: i64) {
        if let Some(subscription) = self.live() {
            subscription.items.data[0].current_period_start = start;
            subscription.items.data[0].current_period_end = end;
        }
    }
}

/// A moment of a history.
struct Moment {
    at: i64,
    world: World,
    told: Vec<About>,
}

fn history(seed: u64) -> (Vec<Moment>, i64) {
    let random = &mut StdRng::seed_from_u64(seed);
    let mut world = World::default();
    let mut moments: Vec<Moment> = Vec::new();
    let (price, amount) =
        [("basic_month", 1_000), ("pro_month", 2_000), ("pro_year", 20_000)][random.random_range(0..3)];
    let length = if price == "pro_year" { 365 * DAY } else { MONTH };
    let months = random.random_range(1..5);
    let mut tell = |at: i64, world: &World, told: Vec<About>| moments.push(Moment { at, world: world.clone(), told });
    let told = world.begin(price, amount, BEGIN, BEGIN + length);
    tell(BEGIN, &world, told);
    for month in 0..months {
        let start = BEGIN + month * MONTH;
        if month > 0 && world.price() != "pro_year" && world.live().is_some() {
            let late = [3_600, 3_600, 2 * DAY, 5 * DAY][random.random_range(0..4)];
            world.period(start, start + MONTH);
            if late > 3_600 {
                world.live().unwrap().status = "past_due".into();
                tell(start + 3_600, &world, vec![About::Subscription]);
                world.live().unwrap().status = "active".into();
            }
            let price = world.price();
            let amount = if price == "basic_month" { 1_000 } else { 2_000 };
            let lines = vec![line(&price, amount, start, start + MONTH, false)];
            let told = world.paid("subscription_cycle", lines, start + late);
            tell(start + late, &world, told);
        }
        let mut at = start + 6 * DAY;
        for _ in 0..random.random_range(0..4) {
            at += random.random_range(1..4) * DAY;
            act(random, &mut world, at, start + MONTH, &mut tell);
        }
    }
    (moments, BEGIN + months * MONTH - DAY)
}

fn act(random: &mut StdRng, world: &mut World, at: i64, end: i64, tell: &mut impl FnMut(i64, &World, Vec<About>)) {
    let any = random.random_range(0..world.payments.len());
    match random.random_range(0..9) {
        0 if world.live().is_some() && world.price() == "basic_month" => {
            world.live().unwrap().items.data[0].price.id = "pro_month".into();
            let share = (end - at) / DAY;
            let lines = vec![
                line("basic_month", -1_000 * share / 30, at, end, true),
                line("pro_month", 2_000 * share / 30, at, end, true),
            ];
            let told = world.paid("subscription_update", lines, at);
            tell(at, world, told);
        }
        1 => {
            let id = format!("pi_pack_{}", world.payments.len());
            let mut bought = pack(&id, 500);
            bought.intent.created = at;
            world.payments.push(bought);
            tell(at, world, vec![About::Payment(world.payments.len() - 1)]);
        }
        2 | 3 => {
            let payment = &mut world.payments[any].intent;
            let (amount, charge) = (payment.amount, payment.latest_charge.as_mut().unwrap());
            charge.amount_refunded = amount.min(charge.amount_refunded + amount * random.random_range(1..5) / 4);
            tell(at, world, vec![About::Payment(any)]);
        }
        4 => {
            let latest = world.payments.len() - 1;
            if !world.payments[latest].disputes.is_empty() {
                return;
            }
            let intent = &world.payments[latest].intent;
            // What is given back after its month lives on for a while: that depends on when it was taken, and should.
            let in_time = at < intent.created + 25 * DAY;
            let (amount, won) = (intent.amount, in_time && random.random_bool(0.5));
            for status in ["needs_response", if won { "won" } else { "lost" }] {
                world.payments[latest].disputes = vec![dispute(status, amount, amount)];
                tell(at, world, vec![About::Payment(latest)]);
            }
        }
        8 if world.live().is_some() && world.price() == "pro_month" => {
            let share = (end - at) / DAY;
            let lines = vec![
                line("pro_month", -2_000 * share / 30, at, end, true),
                line("pro_year", 20_000, at, at + 365 * DAY, false),
            ];
            world.live().unwrap().items.data[0].price.id = "pro_year".into();
            world.period(at, at + 365 * DAY);
            let told = world.paid("subscription_update", lines, at);
            tell(at, world, told);
        }
        5 if world.live().is_some() => {
            for status in ["paused", "active"] {
                world.live().unwrap().status = status.into();
                tell(at, world, vec![About::Subscription]);
            }
        }
        6 if world.live().is_some() && random.random_bool(0.5) => {
            let subscription = world.live().unwrap();
            subscription.status = "canceled".into();
            subscription.ended_at = Some(at);
            tell(at, world, vec![About::Subscription]);
        }
        _ => {}
    }
}

/// What must not depend on how it was told.
fn outcome(bench: &mut Bench) -> String {
    let (available, debt) = bench.credits();
    let account = &bench.account;
    let mut purchases: Vec<String> = account
        .purchases
        .iter()
        .map(|purchase| format!("{} {} {} {}", purchase.id, purchase.amount, purchase.reversed, purchase.frozen))
        .collect();
    purchases.sort();
    let plan = &account.user.plan;
    format!("{available} available, {debt} owed, {plan}, {:?}, {purchases:?}", account.subscriptions)
}

#[test]
fn however_a_history_is_told_it_ends_the_same() {
    for seed in 0..HISTORIES {
        let (moments, end) = history(seed);
        let mut prompt = Bench::new();
        for moment in &moments {
            prompt.pass(moment.at);
            for about in &moment.told {
                prompt.told(&moment.world.facts(*about)).unwrap();
            }
        }
        prompt.pass(end);
        let expected = outcome(&mut prompt);
        let world = moments.last().map(|moment| moment.world.clone()).unwrap_or_default();
        let random = &mut StdRng::seed_from_u64(seed ^ 0x5eed);
        for _ in 0..3 {
            let mut told: Vec<About> = moments.iter().flat_map(|moment| moment.told.clone()).collect();
            told.extend(told.clone());
            told.shuffle(random);
            told.truncate(random.random_range(0..=told.len()));
            let mut late = Bench::new();
            late.now = end;
            for about in &told {
                late.told(&world.facts(*about)).unwrap();
            }
            // What was lost is found.
            late.told(&world.all()).unwrap();
            assert_eq!(
                outcome(&mut late),
                expected,
                "seed {seed}, told {told:?}\nlate {:#?}\nprompt {:#?}",
                late.log,
                prompt.log
            );
        }
    }
}

/// Events of one moment come in any order, and again later, while time passes as it does.
#[test]
fn repetitions_change_nothing() {
    for seed in 0..HISTORIES / 2 {
        let (moments, end) = history(seed);
        let (mut once, mut twice) = (Bench::new(), Bench::new());
        let random = &mut StdRng::seed_from_u64(seed ^ 0xd0b1e);
        let mut earlier: Vec<About> = Vec::new();
        for moment in &moments {
            once.pass(moment.at);
            twice.pass(moment.at);
            for about in &moment.told {
                once.told(&moment.world.facts(*about)).unwrap();
            }
            earlier.extend(&moment.told);
            let mut told = [moment.told.clone(), moment.told.clone()].concat();
            told.extend(earlier.choose_multiple(random, 2));
            told.shuffle(random);
            for about in told {
                twice.told(&moment.world.facts(about)).unwrap();
            }
        }
        once.pass(end);
        twice.pass(end);
        let (again, expected) = (outcome(&mut twice), outcome(&mut once));
        assert_eq!(again, expected, "seed {seed}\ntwice {:#?}\nonce {:#?}", twice.log, once.log);
    }
}
