//! The table of what follows from what, row by row.

use super::super::facts::{Expected, Facts, Failure, Payment};
use super::bench::*;
use crate::billing::stripe::objects::*;
use crate::ledger::AccountId;
use crate::store::billing::*;

const M1: i64 = BEGIN;
const M2: i64 = BEGIN + 31 * DAY;
const M3: i64 = BEGIN + 59 * DAY;
const M4: i64 = BEGIN + 90 * DAY;

fn period(number: u32, price: &str, amount: i64, start: i64, end: i64) -> Facts {
    let reason = if number == 1 { "subscription_create" } else { "subscription_cycle" };
    let paid = invoice(&format!("in_{number}"), "sub_1", reason, vec![line(price, amount, start, end, false)]);
    let subscription = subscription("sub_1", price, start, end);
    let payment = payment(&format!("pi_in_{number}"), amount, 0);
    Facts { subscriptions: vec![subscription], invoices: vec![paid], payments: vec![payment], ..Facts::default() }
}

fn pro(number: u32, start: i64, end: i64) -> Facts {
    period(number, "pro_month", 2_000, start, end)
}

fn begun() -> Bench {
    let mut bench = Bench::new();
    bench.told(&pro(1, M1, M2)).unwrap();
    bench
}

fn with(payment: Payment) -> Facts {
    Facts { payments: vec![payment], ..Facts::default() }
}

fn refunded(id: &str, amount: i64, refunded: i64) -> Facts {
    with(payment(id, amount, refunded))
}

fn disputed(status: &str, withdrawn: i64) -> Facts {
    let mut payment = payment("pi_in_1", 2_000, 0);
    payment.disputes = vec![dispute(status, 2_000, withdrawn)];
    with(payment)
}

fn sub(change: impl FnOnce(&mut Subscription)) -> Facts {
    let mut subscription = subscription("sub_1", "pro_month", M1, M2);
    change(&mut subscription);
    Facts { subscriptions: vec![subscription], ..Facts::default() }
}

fn wrong(result: Result<(), Failure>) -> String {
    match result {
        Err(Failure::Wrong(why)) => why,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_paid_invoice_brings_the_period_once() {
    let mut bench = begun();
    assert_eq!((bench.credits(), bench.account.user.plan.as_str()), ((1_000, 0), "pro"));
    let grant = bench.account.grants[0].clone();
    assert_eq!((grant.key.as_str(), grant.ends_at), ("inv:in_1", Some(micros(M2))));
    // failures 30 and 32: a duplicate, the alias, and the checkout's own event bring nothing more.
    assert_eq!(bench.once(&pro(1, M1, M2)).unwrap(), 0);
    assert_eq!(bench.credits(), (1_000, 0));
}

/// failures 32: the checkout links, the invoice grants.
#[test]
fn a_checkout_of_a_plan_brings_no_credits() {
    let mut bench = Bench::new();
    let facts = Facts {
        checkouts: vec![session("subscription", "complete", "paid")],
        subscriptions: vec![subscription("sub_1", "pro_month", M1, M2)],
        ..Facts::default()
    };
    bench.told(&facts).unwrap();
    assert_eq!((bench.credits(), bench.account.user.plan.as_str()), ((0, 0), "pro"));
}

fn session(mode: &str, status: &str, paid: &str) -> CheckoutSession {
    CheckoutSession {
        id: "cs_1".into(),
        mode: mode.into(),
        status: Some(status.into()),
        payment_status: paid.into(),
        customer: Some("cus_1".into()),
        amount_total: Some(500),
        currency: Some("usd".into()),
        subscription: None,
        payment_intent: Some("pi_p".into()),
        metadata: Metadata::default(),
        url: None,
    }
}

/// failures 38: an unpaid checkout brings nothing; its success later does.
#[test]
fn a_pack_is_granted_when_it_is_paid() {
    let mut bench = Bench::new();
    let mut unpaid = pack("pi_p", 500);
    unpaid.intent.status = "processing".into();
    unpaid.intent.amount_received = 0;
    let checkout = |paid| vec![session("payment", "complete", paid)];
    let facts = |paid, payment| Facts { checkouts: checkout(paid), payments: vec![payment], ..Facts::default() };
    bench.told(&facts("unpaid", unpaid)).unwrap();
    assert_eq!(bench.credits(), (0, 0));
    bench.told(&facts("paid", pack("pi_p", 500))).unwrap();
    bench.told(&facts("paid", pack("pi_p", 500))).unwrap();
    assert_eq!((bench.credits(), bench.account.grants[0].key.as_str()), ((100, 0), "pi:pi_p"));
    assert_eq!(bench.account.user.plan, "free");
}

#[test]
fn what_was_not_paid_as_priced_brings_nothing() {
    let mut bench = Bench::new();
    assert!(wrong(bench.told(&with(pack("pi_p", 499)))).contains("500 usd were due, 499 usd came"));
    let mut euros = pack("pi_p", 500);
    euros.intent.currency = "eur".into();
    assert!(wrong(bench.told(&with(euros))).contains("500 usd were due"));
    let mut other = pack("pi_p", 500);
    other.intent.metadata.user = Some("bob".into());
    assert!(wrong(bench.told(&with(other))).contains("another user"));
    let mut unknown = pack("pi_p", 500);
    unknown.intent.metadata.price = Some("pro_month".into());
    assert!(wrong(bench.told(&with(unknown))).contains("no pack"));
    let mut stranger = pack("pi_p", 500);
    stranger.intent.customer = Some("cus_2".into());
    assert!(wrong(bench.told(&with(stranger))).contains("not this user's customer"));
    assert!(wrong(bench.told(&period(1, "pro_month", 1_999, M1, M2))).contains("costs 2000"));
    assert!(wrong(bench.told(&period(1, "gold", 2_000, M1, M2))).contains("price of no plan"));
    let mut due = pro(1, M1, M2);
    due.invoices[0].amount_remaining = 1;
    assert!(wrong(bench.told(&due)).contains("with 1 due"));
    assert_eq!(bench.credits(), (0, 0));
}

#[test]
fn a_renewal_rolls_over_up_to_the_cap() {
    let mut bench = begun();
    bench.spend(100);
    bench.pass(M2 + 3_600);
    // Stripe takes the money an hour after the period's end: what is left works until then.
    assert_eq!(bench.credits(), (900, 0));
    bench.told(&pro(2, M2, M3)).unwrap();
    assert_eq!(bench.credits(), (1_300, 0));
    bench.pass(M3 + 3_600);
    bench.told(&pro(3, M3, M4)).unwrap();
    // What rolled over once does not roll over again.
    assert_eq!(bench.credits(), (1_300, 0));
}

/// Of a month that is switched to a year the rest is credited in money: the year's first month brings that much less, and no
/// more of it moves on when it is told late.
#[test]
fn a_switch_told_late_moves_on_what_its_first_month_brought() {
    let start = M1 + 24 * DAY;
    let year = |begun: i64| {
        let lines =
            vec![line("pro_month", -1_900, start, M2, true), line("pro_year", 20_000, begun, begun + 365 * DAY, false)];
        let mut invoice = invoice("in_2", "sub_1", "subscription_update", lines);
        invoice.created = begun;
        invoice.status_transitions.paid_at = Some(begun);
        let subscription = subscription("sub_1", "pro_year", begun, begun + 365 * DAY);
        Facts { subscriptions: vec![subscription], invoices: vec![invoice], ..Facts::default() }
    };
    let mut prompt = begun();
    prompt.spend(1_000);
    prompt.pass(start);
    prompt.told(&year(start)).unwrap();
    // Nineteen twentieths of 1,000 were credited: the year's first month brings 50.
    assert_eq!(prompt.credits(), (50, 0));
    prompt.pass(start + 45 * DAY);
    assert_eq!(prompt.credits(), (1_050, 0));
    let mut late = begun();
    late.spend(1_000);
    late.pass(start + 45 * DAY);
    late.told(&year(start)).unwrap();
    assert_eq!(late.credits(), (1_050, 0));
}

/// However many grants end at about the same time, and whenever that is decided: a month takes in the plan's cap once.
#[test]
fn the_cap_is_the_months_not_the_grants() {
    let mut bench = begun();
    let end = M1 + 29 * DAY;
    let lines = vec![line("pro_month", -100, end, M2, true), line("pro_year", 20_000, end, end + 365 * DAY, false)];
    let mut switched = invoice("in_2", "sub_1", "subscription_update", lines);
    switched.created = end;
    switched.status_transitions.paid_at = Some(end);
    bench.pass(end);
    let subscription = subscription("sub_1", "pro_year", end, end + 365 * DAY);
    bench.told(&Facts { subscriptions: vec![subscription], invoices: vec![switched], ..Facts::default() }).unwrap();
    // The month's 1,000, and of the year's first 950.
    assert_eq!(bench.credits(), (1_950, 0));
    // The year's second month begins while the old month is in its grace: both could move into it.
    bench.pass(end + 31 * DAY + 3_600);
    assert_eq!(bench.credits(), (1_300, 0));
}

#[test]
fn without_a_renewal_it_lapses_after_the_grace() {
    let mut bench = begun();
    bench.pass(M2 + 3 * DAY - 10);
    assert_eq!(bench.credits(), (1_000, 0));
    bench.pass(M2 + 3 * DAY + 120);
    assert_eq!(bench.credits(), (0, 0));
}

#[test]
fn a_plan_without_rollover_ends_with_its_month() {
    let mut bench = Bench::new();
    bench.told(&period(1, "basic_month", 1_000, M1, M2)).unwrap();
    bench.pass(M2 + 3_600);
    bench.told(&period(2, "basic_month", 1_000, M2, M3)).unwrap();
    assert_eq!(bench.credits(), (400, 0));
}

/// failures 36: what was used stays used. failures 35: going down and up again brings nothing twice.
#[test]
fn an_upgrade_brings_the_difference_that_was_paid() {
    let mut bench = Bench::new();
    let month = |price: &str| subscription("sub_1", price, M1, M1 + 30 * DAY);
    bench.told(&period(1, "basic_month", 1_000, M1, M1 + 30 * DAY)).unwrap();
    bench.spend(300);
    bench.pass(M1 + 15 * DAY);
    let (start, end) = (M1 + 15 * DAY, M1 + 30 * DAY);
    let up = |id: &str, paid: i64| {
        let lines = vec![line("basic_month", -500, start, end, true), line("pro_month", 1_000, start, end, true)];
        let mut invoice = invoice(id, "sub_1", "subscription_update", lines);
        invoice.amount_paid = paid;
        Facts { subscriptions: vec![month("pro_month")], invoices: vec![invoice], ..Facts::default() }
    };
    bench.told(&up("in_2", 500)).unwrap();
    assert_eq!((bench.credits(), bench.account.user.plan.as_str()), ((400, 0), "pro"));
    bench.told(&Facts { subscriptions: vec![month("basic_month")], ..Facts::default() }).unwrap();
    // The balance that the downgrade left pays the second upgrade: no money, no credits.
    bench.told(&up("in_3", 0)).unwrap();
    assert_eq!(bench.credits(), (400, 0));
    bench.told(&up("in_4", 250)).unwrap();
    assert_eq!(bench.credits(), (550, 0));
}

#[test]
fn a_discount_and_a_balance_bring_the_whole_period() {
    let mut bench = Bench::new();
    let mut facts = pro(1, M1, M2);
    facts.invoices[0].amount_paid = 0;
    facts.invoices[0].total = 0;
    bench.told(&facts).unwrap();
    assert_eq!(bench.credits(), (1_000, 0));
}

#[test]
fn a_trial_brings_its_credits_once_a_user() {
    let mut bench = Bench::new();
    let trial = |id: &str| {
        let mut subscription = subscription(id, "pro_month", M1, M1 + 14 * DAY);
        subscription.status = "trialing".into();
        (subscription.trial_start, subscription.trial_end) = (Some(M1), Some(M1 + 14 * DAY));
        // Its first invoice is one of nothing.
        let free = invoice(&format!("in_{id}"), id, "subscription_create", vec![line("pro_month", 0, M1, M2, false)]);
        Facts { subscriptions: vec![subscription], invoices: vec![free], ..Facts::default() }
    };
    bench.told(&trial("sub_1")).unwrap();
    bench.told(&trial("sub_2")).unwrap();
    assert_eq!((bench.credits(), bench.account.user.plan.as_str()), ((50, 0), "pro"));
    assert_eq!(bench.account.grants[0].key, "trial:sub_1");
    bench.pass(M1 + 14 * DAY + 120);
    assert_eq!(bench.credits(), (0, 0));
}

#[test]
fn pausing_freezes_the_plan_and_not_what_was_bought() {
    let mut bench = begun();
    bench.told(&with(pack("pi_p", 500))).unwrap();
    bench.told(&sub(|subscription| subscription.status = "paused".into())).unwrap();
    assert_eq!(bench.credits(), (100, 0));
    bench.told(&sub(|_| {})).unwrap();
    assert_eq!(bench.credits(), (1_100, 0));
    // And again: each freeze is a change of its own.
    bench.told(&sub(|subscription| subscription.status = "paused".into())).unwrap();
    assert_eq!(bench.credits(), (100, 0));
}

#[test]
fn an_ended_subscription_takes_the_plan_with_it() {
    let mut bench = begun();
    bench.told(&with(pack("pi_p", 500))).unwrap();
    bench.spend(10);
    let ended = sub(|subscription| {
        subscription.status = "canceled".into();
        subscription.ended_at = Some(M1 + DAY);
    });
    bench.told(&ended).unwrap();
    assert_eq!((bench.credits(), bench.account.user.plan.as_str()), ((100, 0), "free"));
    // failures 33: an older event comes after; what Stripe says now is what counts.
    bench.told(&Facts { invoices: pro(1, M1, M2).invoices, ..ended }).unwrap();
    assert_eq!(bench.credits(), (100, 0));
}

#[test]
fn an_unpaid_renewal_has_its_grace() {
    let mut bench = Bench::new();
    let year = M1 + 365 * DAY;
    bench.told(&period(1, "pro_year", 20_000, M1, year)).unwrap();
    let failing = |status: &str| {
        let mut subscription = subscription("sub_1", "pro_year", M1, year);
        subscription.status = status.into();
        Facts { subscriptions: vec![subscription], ..Facts::default() }
    };
    bench.told(&failing("past_due")).unwrap();
    assert_eq!(bench.credits(), (1_000, 0));
    bench.pass(M1 + 3 * DAY + 10);
    assert_eq!((bench.credits(), bench.account.user.plan.as_str()), ((0, 0), "pro"));
    bench.told(&failing("active")).unwrap();
    assert_eq!(bench.credits(), (1_000, 0));
    bench.told(&failing("unpaid")).unwrap();
    assert_eq!(bench.credits(), (0, 0));
}

/// failures 43: month by month, and not after the end.
#[test]
fn a_year_comes_month_by_month() {
    let mut bench = Bench::new();
    let year = M1 + 365 * DAY;
    bench.told(&period(1, "pro_year", 20_000, M1, year)).unwrap();
    assert_eq!(bench.credits(), (1_000, 0));
    bench.spend(1_000);
    bench.pass(M2 + 10);
    assert_eq!(bench.credits(), (1_000, 0));
    bench.pass(M3 + 10);
    assert_eq!(bench.credits(), (1_300, 0));
    let mut ended = subscription("sub_1", "pro_year", M1, year);
    ended.status = "canceled".into();
    ended.ended_at = Some(M3 + DAY);
    bench.told(&Facts { subscriptions: vec![ended], ..Facts::default() }).unwrap();
    bench.pass(year + 40 * DAY);
    assert_eq!(bench.credits(), (0, 0));
    assert_eq!(bench.account.grants.iter().filter(|grant| grant.used_as == GrantUse::Main).count(), 3);
    // Of a whole year, twelve.
    let mut bench = Bench::new();
    bench.told(&period(1, "pro_year", 20_000, M1, year)).unwrap();
    bench.pass(year - DAY);
    assert_eq!(bench.account.grants.iter().filter(|grant| grant.used_as == GrantUse::Main).count(), 12);
}

/// failures 40.
#[test]
fn a_refund_claims_its_share_once() {
    let mut bench = begun();
    bench.spend(300);
    bench.told(&refunded("pi_in_1", 2_000, 1_000)).unwrap();
    bench.told(&refunded("pi_in_1", 2_000, 1_000)).unwrap();
    assert_eq!(bench.credits(), (200, 0));
    bench.told(&refunded("pi_in_1", 2_000, 2_000)).unwrap();
    assert_eq!(bench.credits(), (0, 300));
    // A refund that failed gives back exactly what it took.
    bench.told(&refunded("pi_in_1", 2_000, 1_000)).unwrap();
    assert_eq!(bench.credits(), (200, 0));
    bench.told(&refunded("pi_in_1", 2_000, 0)).unwrap();
    assert_eq!(bench.credits(), (700, 0));
    bench.told(&refunded("pi_in_1", 2_000, 2_000)).unwrap();
    assert_eq!(bench.credits(), (0, 300));
}

#[test]
fn a_refund_of_what_lapsed_owes_only_what_was_used() {
    let mut bench = Bench::new();
    bench.told(&period(1, "basic_month", 1_000, M1, M2)).unwrap();
    bench.spend(100);
    bench.pass(M2 + 3_600);
    bench.told(&period(2, "basic_month", 1_000, M2, M3)).unwrap();
    bench.told(&refunded("pi_in_1", 1_000, 1_000)).unwrap();
    assert_eq!(bench.credits(), (300, 0));
}

#[test]
fn a_refund_reaches_what_rolled_over() {
    let mut bench = begun();
    bench.spend(600);
    bench.pass(M2 + 3_600);
    bench.told(&pro(2, M2, M3)).unwrap();
    assert_eq!(bench.credits(), (1_300, 0));
    // 1,000 were paid for: 100 lapsed, 300 moved on and are taken, 600 were used and are owed.
    bench.told(&refunded("pi_in_1", 2_000, 2_000)).unwrap();
    assert_eq!(bench.credits(), (400, 0));
}

/// failures 40: a dispute takes, and gives back when it is won.
#[test]
fn a_dispute_freezes_takes_and_gives_back() {
    let mut bench = begun();
    bench.spend(300);
    bench.told(&disputed("needs_response", 0)).unwrap();
    assert_eq!(bench.credits(), (0, 0));
    bench.told(&disputed("under_review", 2_000)).unwrap();
    assert_eq!(bench.credits(), (0, 300));
    bench.told(&disputed("won", 0)).unwrap();
    assert_eq!(bench.credits(), (700, 0));
    bench.told(&disputed("lost", 2_000)).unwrap();
    assert_eq!(bench.credits(), (0, 300));
}

/// A won dispute tells when the money came back: that decides how long the credits live, not when it was told.
#[test]
fn what_a_won_dispute_gives_back_lives_by_its_own_dates() {
    let won = |at: i64| {
        let mut payment = payment("pi_in_1", 2_000, 0);
        let mut dispute = dispute("won", 2_000, 2_000);
        dispute.balance_transactions.push(BalanceTransaction { amount: 2_000, created: at });
        payment.disputes = vec![dispute];
        with(payment)
    };
    let back = M2 + 10 * DAY;
    for told in [back, back + 20 * DAY, back + 40 * DAY] {
        let mut bench = begun();
        bench.spend(300);
        bench.told(&disputed("under_review", 2_000)).unwrap();
        assert_eq!(bench.credits(), (0, 300));
        bench.pass(told);
        bench.told(&won(back)).unwrap();
        // Told after its time it pays what was owed for it, and lapses.
        bench.pass((back + 30 * DAY - 60).max(told + 2 * 3_600));
        let left = if told < back + 30 * DAY { 700 } else { 0 };
        assert_eq!(bench.credits(), (left, 0), "told {} days late", (told - back) / DAY);
        bench.pass((back + 30 * DAY).max(told) + 4 * DAY);
        assert_eq!(bench.credits(), (0, 0));
    }
}

/// Nothing was taken, so nothing is given back: until its month ended it could be spent.
#[test]
fn a_dispute_told_of_once_it_is_won_changes_nothing() {
    let mut bench = begun();
    bench.spend(300);
    bench.pass(M2 + 4 * DAY);
    assert_eq!(bench.credits(), (0, 0));
    let mut payment = payment("pi_in_1", 2_000, 0);
    let mut won = dispute("won", 2_000, 2_000);
    won.balance_transactions.push(BalanceTransaction { amount: 2_000, created: M2 + 3 * DAY });
    payment.disputes = vec![won];
    bench.told(&with(payment)).unwrap();
    assert_eq!((bench.credits(), bench.account.grants.len()), ((0, 0), 1));
}

/// A pack that was bought when it had another price, which the settings do not know any more, is still what it was.
#[test]
fn a_pack_counts_at_the_price_it_was_begun_at() {
    let mut bench = Bench::new();
    let mut old = pack("pi_p", 450);
    old.intent.metadata.price = Some("small_old".into());
    let expected = |name: &str| Expected {
        user: AccountId::parse("ann").unwrap(),
        name: name.into(),
        price: "small_old".into(),
        currency: "usd".into(),
        amount: 450,
    };
    old.expected = Some(expected("gone"));
    assert!(wrong(bench.told(&with(old.clone()))).contains("no pack"));
    old.expected = Some(expected("small"));
    bench.told(&with(old)).unwrap();
    assert_eq!(bench.credits(), (100, 0));
}

/// A dispute's amount is in the payment's currency, what was taken for it in that of our balance.
#[test]
fn a_dispute_takes_all_that_is_disputed_in_whatever_currency_we_paid() {
    let mut foreign = dispute("under_review", 2_000, 31);
    assert_eq!(foreign.withdrawn(), 2_000);
    foreign.balance_transactions.push(BalanceTransaction { amount: 31, created: M1 });
    assert_eq!((foreign.withdrawn(), foreign.returned_at()), (0, Some(M1)));
}

#[test]
fn a_dispute_that_takes_nothing_only_freezes() {
    let mut bench = begun();
    bench.told(&disputed("warning_needs_response", 0)).unwrap();
    assert_eq!(bench.credits(), (0, 0));
    bench.told(&disputed("warning_closed", 0)).unwrap();
    assert_eq!(bench.credits(), (1_000, 0));
}

#[test]
fn a_fraud_warning_freezes_what_was_paid_for() {
    let mut bench = begun();
    let facts = Facts { warning: Some("ch_1".into()), customer: Some("cus_1".into()), ..Facts::default() };
    bench.told(&facts).unwrap();
    assert_eq!((bench.credits(), bench.account.flagged), ((0, 0), true));
    bench.told(&with(pack("pi_p", 500))).unwrap();
    assert_eq!(bench.credits(), (0, 0));
    // An operator decides.
    bench.account.flagged = false;
    bench.told(&Facts::default()).unwrap();
    assert_eq!(bench.credits(), (1_100, 0));
}

#[test]
fn an_invoice_that_was_given_up_brings_nothing() {
    let mut bench = begun();
    let mut voided = pro(1, M1, M2);
    voided.invoices[0].status = Some("uncollectible".into());
    bench.told(&voided).unwrap();
    assert_eq!(bench.credits(), (0, 0));
    let mut open = pro(2, M2, M3);
    open.invoices[0].status = Some("open".into());
    bench.told(&open).unwrap();
    assert_eq!(bench.credits(), (0, 0));
}

#[test]
fn other_invoices_are_left_alone() {
    let mut bench = Bench::new();
    let mut once = pro(1, M1, M2);
    once.invoices[0].parent = None;
    once.subscriptions.clear();
    bench.told(&once).unwrap();
    let mut manual = pro(2, M1, M2);
    manual.invoices[0].billing_reason = Some("manual".into());
    bench.told(&manual).unwrap();
    assert_eq!(bench.credits(), (0, 0));
}

#[test]
fn nothing_is_given_to_whoever_left() {
    let mut bench = Bench::new();
    bench.account.user.status = crate::store::UserStatus::Closed;
    assert_eq!(bench.once(&pro(1, M1, M2)).unwrap(), 0);
    assert!(bench.account.grants.is_empty() && bench.account.subscriptions.len() == 1);
}

#[test]
fn a_plan_that_an_operator_gave_stays() {
    let mut bench = Bench::new();
    bench.account.user.plan = "partner".into();
    let ended = sub(|subscription| {
        subscription.status = "canceled".into();
        subscription.ended_at = Some(M1);
    });
    bench.told(&ended).unwrap();
    assert_eq!(bench.account.user.plan, "partner");
}

/// Each is told once, whatever is delivered twice, and nothing that is past.
#[test]
fn the_user_is_told() {
    let mut bench = begun();
    assert_eq!(bench.notices, ["subscription_changed"]);
    bench.told(&pro(1, M1, M2)).unwrap();
    assert_eq!(bench.notices.len(), 1, "nothing changed");
    let mut due = pro(2, M2, M3);
    due.subscriptions[0].status = "past_due".into();
    due.invoices[0].status = Some("open".into());
    due.payments.clear();
    for _ in 0..2 {
        bench.told_by(Some("invoice.payment_failed"), &due).unwrap();
        bench.told_by(Some("v1.invoice.payment_action_required"), &due).unwrap();
    }
    due.invoices[0].attempt_count = 2;
    bench.told_by(Some("invoice.payment_failed"), &due).unwrap();
    let wanted = ["payment_failed", "subscription_changed", "payment_action_required", "payment_failed"];
    assert_eq!(bench.notices[1..], wanted);
    // It was paid before the event came.
    bench.told_by(Some("invoice.payment_failed"), &pro(2, M2, M3)).unwrap();
    assert_eq!(bench.notices[5..], ["subscription_changed"]);
    bench.told(&disputed("needs_response", 0)).unwrap();
    bench.told(&disputed("under_review", 2_000)).unwrap();
    bench.told(&disputed("won", 0)).unwrap();
    assert_eq!(bench.notices[6..], ["account_frozen", "account_unfrozen"]);
    let warned = Facts { warning: Some("ch_1".into()), customer: Some("cus_1".into()), ..Facts::default() };
    bench.told(&warned).unwrap();
    bench.told(&warned).unwrap();
    assert_eq!(bench.notices[8..], ["account_frozen"]);
    let mut bench = Bench::new();
    let trial = sub(|subscription| {
        subscription.status = "trialing".into();
        (subscription.trial_start, subscription.trial_end) = (Some(M1), Some(M1 + 14 * DAY));
    });
    bench.told_by(Some("customer.subscription.trial_will_end"), &trial).unwrap();
    bench.told_by(Some("customer.subscription.trial_will_end"), &trial).unwrap();
    assert_eq!(bench.notices, ["trial_ending", "subscription_changed"]);
}
