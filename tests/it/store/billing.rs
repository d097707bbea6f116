//! Purchases and the inbox, over every store.

use faregate::ledger::{Change, GrantId, GrantKind, Scope};
use faregate::store::billing::*;
use faregate::store::{PageRequest, StoreError, UserStatus};
use uuid::Uuid;

use super::{Under, id, new_user};

suite!(
    an_event_is_stored_once,
    events_are_claimed_by_one_and_come_back_after_the_lease,
    events_are_listed_newest_first_and_replayed,
    a_decision_holds_only_while_its_version_stands,
    of_decisions_at_once_one_is_written,
    books_keep_every_field,
    a_decision_is_written_whole_or_not_at_all,
    one_checkout_is_open_at_a_time,
    a_call_keeps_its_key,
    the_clock_and_the_comparison_are_one_callers,
    a_plan_and_a_freeze_do_not_wait_for_each_other,
    a_period_ends_before_its_grace,
    what_only_helped_is_cleared_away,
);

const LEASE_US: u64 = 60_000_000;

fn event(name: &str) -> NewEvent {
    NewEvent {
        id: format!("evt_{name}"),
        event_type: "invoice.paid".into(),
        object_type: Some("invoice".into()),
        object_id: Some(format!("in_{name}")),
        livemode: false,
        amount: Some(2_000),
        currency: Some("usd".into()),
        created_at: 1_700_000_000_000_000,
        payload: "{\"id\":\"evt\"}".into(),
        state: EventState::Pending,
        error: None,
    }
}

fn decision(version: u64, effects: Vec<Effect>) -> Decision {
    Decision { user: id("ann"), version, actor: "stripe:evt_1".into(), effects, event: Some("evt_1".into()) }
}

fn granting(key: &str, amount: i64) -> Effect {
    let act = PlannedAct::Grant { kind: GrantKind::Topup, amount, expires_at: 0 };
    Effect::Change(PlannedChange { key: key.into(), act, note: "a pack".into() })
}

fn purchase(name: &str) -> Purchase {
    Purchase {
        id: name.into(),
        kind: PurchaseKind::Pack,
        name: "small".into(),
        subscription: Some("sub_1".into()),
        payment_intent: Some("pi_1".into()),
        currency: "usd".into(),
        amount: 1_000,
        reversed: 0,
        frozen: false,
        first: Some(1_000_000),
        returned_at: Some(1_701_000_000_000_000),
        credits: 5_000_000,
        months: 12,
        period_start: Some(1_700_000_000_000_000),
        period_end: Some(1_702_000_000_000_000),
        created_at: 1_700_000_000_000_001,
    }
}

fn paid_grant(key: &str) -> PaidGrant {
    PaidGrant {
        key: key.into(),
        purchase: "pi:pi_1".into(),
        used_as: GrantUse::Main,
        parent: None,
        month: 3,
        amount: 5_000_000,
        starts_at: Some(1_700_000_000_000_000),
        ends_at: Some(1_702_000_000_000_000),
        ended: false,
        frozen: false,
        claimed: 0,
        taken: 0,
        serial: 0,
        stored: StoredGrant::default(),
    }
}

fn subscription() -> SubscriptionRow {
    SubscriptionRow {
        id: "sub_1".into(),
        plan: "pro".into(),
        price: "price_1".into(),
        item: "si_1".into(),
        status: "active".into(),
        currency: "usd".into(),
        period_start: Some(1_700_000_000_000_000),
        period_end: Some(1_702_000_000_000_000),
        trial_end: None,
        cancel_at_period_end: true,
        cancel_at: Some(1_702_000_000_000_000),
        ended_at: None,
        past_due_since: Some(1_700_000_000_000_000),
        paused: false,
        schedule: Some("sub_sched_1".into()),
        created_at: 1_690_000_000_000_000,
    }
}

async fn an_event_is_stored_once(under: Under) {
    assert!(under.store.insert_event(event("1")).await.unwrap());
    let other = NewEvent { payload: "{}".into(), ..event("1") };
    assert!(!under.store.insert_event(other).await.unwrap());
    let kept = under.store.billing_event("evt_1").await.unwrap().unwrap();
    assert_eq!((kept.payload.as_str(), kept.state, kept.attempts), ("{\"id\":\"evt\"}", EventState::Pending, 0));
    assert_eq!((kept.amount, kept.object_id.as_deref()), (Some(2_000), Some("in_1")));
    assert_eq!(under.store.billing_event("evt_2").await.unwrap(), None);
}

async fn events_are_claimed_by_one_and_come_back_after_the_lease(under: Under) {
    for name in ["1", "2", "3"] {
        under.store.insert_event(event(name)).await.unwrap();
    }
    let parked = NewEvent { state: EventState::Parked, error: Some("live".into()), ..event("4") };
    under.store.insert_event(parked).await.unwrap();
    let claims = (0..4).map(|_| under.store.claim_events(2, LEASE_US));
    let claimed = futures_util::future::join_all(claims).await;
    let mut ids: Vec<String> = claimed.into_iter().flat_map(|events| events.unwrap()).map(|event| event.id).collect();
    ids.sort();
    assert_eq!(ids, ["evt_1", "evt_2", "evt_3"]);
    under.store.finish_event("evt_1", EventOutcome::Processed { user: None }).await.unwrap();
    under.store.finish_event("evt_2", EventOutcome::Parked { error: "no such price".into() }).await.unwrap();
    under.store.finish_event("evt_3", EventOutcome::Retry { error: "away".into(), at: 0 }).await.unwrap();
    assert_eq!(under.store.event_counts().await.unwrap(), (1, 2));
    let again = under.store.claim_events(10, LEASE_US).await.unwrap();
    assert_eq!(again.len(), 1);
    assert_eq!((again[0].id.as_str(), again[0].attempts, again[0].error.as_deref()), ("evt_3", 2, Some("away")));
    // The process that took it dies.
    under.age("billing_events", "next_attempt_at", 61);
    let left = under.store.claim_events(10, LEASE_US).await.unwrap();
    assert_eq!((left.len(), left[0].attempts), (1, 3));
}

async fn events_are_listed_newest_first_and_replayed(under: Under) {
    for name in ["1", "2", "3"] {
        under.store.insert_event(event(name)).await.unwrap();
    }
    let page = |cursor| PageRequest { limit: 2, cursor };
    let first = under.store.billing_events(EventFilter::default(), page(None)).await.unwrap();
    let second = under.store.billing_events(EventFilter::default(), page(first.next.clone())).await.unwrap();
    let ids: Vec<&str> = first.data.iter().chain(&second.data).map(|event| event.id.as_str()).collect();
    assert_eq!((ids, second.next), (vec!["evt_3", "evt_2", "evt_1"], None));
    assert!(first.data.iter().all(|event| event.payload.is_empty()));
    under.store.finish_event("evt_2", EventOutcome::Parked { error: "no".into() }).await.unwrap();
    let parked = EventFilter { state: Some(EventState::Parked), user: None };
    assert_eq!(under.store.billing_events(parked, page(None)).await.unwrap().data.len(), 1);
    let replayed = under.store.replay_event("evt_2").await.unwrap();
    assert_eq!((replayed.state, replayed.attempts, replayed.error), (EventState::Pending, 0, None));
    assert!(matches!(under.store.replay_event("evt_9").await, Err(StoreError::NotFound(_))));
}

async fn a_decision_holds_only_while_its_version_stands(under: Under) {
    assert!(matches!(under.store.billing_account(&id("ann")).await, Err(StoreError::NotFound(_))));
    under.store.create_user(new_user("ann", 0)).await.unwrap();
    under.store.insert_event(event("1")).await.unwrap();
    let books = under.store.billing_account(&id("ann")).await.unwrap();
    assert_eq!((books.version, books.customer.as_deref()), (0, None));
    let first = decision(0, vec![Effect::Customer("cus_1".into()), granting("pi:1", 5)]);
    assert_eq!(under.store.apply_decision(first.clone()).await.unwrap().unwrap().len(), 1);
    let told = under.store.billing_event("evt_1").await.unwrap().unwrap();
    assert_eq!((told.state, told.user), (EventState::Processed, Some(id("ann"))));
    // The same decision, made on what has changed since.
    assert_eq!(under.store.apply_decision(first).await.unwrap(), None);
    assert_eq!(under.store.grants(&id("ann")).await.unwrap().len(), 1);
    assert_eq!(under.store.user_of_customer("cus_1").await.unwrap(), Some(id("ann")));
    assert_eq!(under.store.billed_users(None, 10).await.unwrap(), [id("ann")]);
    assert_eq!(under.store.billed_users(Some(&id("ann")), 10).await.unwrap(), []);
}

/// failures 31: two deliveries of one payment at the same time.
async fn of_decisions_at_once_one_is_written(under: Under) {
    under.store.create_user(new_user("ann", 0)).await.unwrap();
    under.store.billing_account(&id("ann")).await.unwrap();
    let decided = (0..4).map(|number| {
        let decision = Decision { event: None, ..decision(0, vec![granting(&format!("pi:{number}"), 5)]) };
        under.store.apply_decision(decision)
    });
    let written = futures_util::future::join_all(decided).await;
    assert_eq!(written.into_iter().filter(|done| done.as_ref().unwrap().is_some()).count(), 1);
    assert_eq!(under.store.grants(&id("ann")).await.unwrap().len(), 1);
}

async fn books_keep_every_field(under: Under) {
    under.store.create_user(new_user("ann", 0)).await.unwrap();
    let grant = PaidGrant { claimed: 7, taken: 6, serial: 2, frozen: true, ..paid_grant("pi:pi_1") };
    let effects = vec![
        Effect::Subscription(subscription()),
        Effect::Purchase(purchase("pi:pi_1")),
        granting("pi:pi_1", 5_000_000),
        Effect::Grant(grant.clone()),
        Effect::Plan("pro".into()),
        Effect::Flagged(true),
        Effect::Due(Some(1_800_000_000_000_000)),
        Effect::Note { action: "billing.test", detail: "told".into() },
    ];
    under.store.billing_account(&id("ann")).await.unwrap();
    under.store.apply_decision(decision(0, effects)).await.unwrap().unwrap();
    let books = under.store.billing_account(&id("ann")).await.unwrap();
    assert_eq!((books.version, books.flagged, books.due_at), (1, true, Some(1_800_000_000_000_000)));
    assert_eq!((books.user.plan.as_str(), books.user.status), ("pro", UserStatus::Active));
    assert_eq!(books.subscriptions, [subscription()]);
    assert_eq!(books.purchases, [purchase("pi:pi_1")]);
    let stored = StoredGrant { applied: false, amount: 5_000_000, remaining: 5_000_000, lapsed: 0, waiting: true };
    assert_eq!(books.grants, [PaidGrant { stored, ..grant }]);
    for (user, found) in [
        (under.store.user_of_subscription("sub_1").await, "a subscription"),
        (under.store.user_of_payment("pi_1").await, "a payment"),
    ] {
        assert_eq!(user.unwrap(), Some(id("ann")), "{found}");
    }
    let ended = SubscriptionRow { status: "canceled".into(), ended_at: Some(1_701_000_000_000_000), ..subscription() };
    let reversed = Purchase { reversed: 500, frozen: true, returned_at: None, ..purchase("pi:pi_1") };
    let effects = vec![Effect::Subscription(ended.clone()), Effect::Purchase(reversed.clone()), Effect::Flagged(false)];
    under.store.apply_decision(decision(1, effects)).await.unwrap().unwrap();
    let books = under.store.billing_account(&id("ann")).await.unwrap();
    assert_eq!((books.subscriptions, books.purchases, books.flagged), (vec![ended], vec![reversed], false));
    assert_eq!(under.sql("SELECT action FROM audit_log WHERE action = 'billing.test'").len(), 1);
}

/// failures 30: an event is marked in the transaction of its effect, and not without it.
async fn a_decision_is_written_whole_or_not_at_all(under: Under) {
    under.store.create_user(new_user("ann", 0)).await.unwrap();
    under.store.insert_event(event("1")).await.unwrap();
    under.store.billing_account(&id("ann")).await.unwrap();
    let refused = Effect::Change(PlannedChange {
        key: "end:nothing".into(),
        act: PlannedAct::Revoke { grant: "pi:nothing".into(), amount: None },
        note: String::new(),
    });
    let wrong = decision(0, vec![granting("pi:1", 5), refused]);
    assert!(matches!(under.store.apply_decision(wrong).await, Err(StoreError::NotFound(_))));
    assert!(under.store.grants(&id("ann")).await.unwrap().is_empty());
    assert_eq!(under.store.billing_account(&id("ann")).await.unwrap().version, 0);
    assert_eq!(under.store.billing_event("evt_1").await.unwrap().unwrap().state, EventState::Pending);
    // Grants are named by the keys of the changes that made them, those of the same decision too.
    let revoke = PlannedAct::Revoke { grant: "pi:1".into(), amount: Some(2) };
    let taken = Effect::Change(PlannedChange { key: "claim:pi:1:1".into(), act: revoke, note: String::new() });
    let changes = under.store.apply_decision(decision(0, vec![granting("pi:1", 5), taken])).await.unwrap().unwrap();
    assert_eq!(changes.iter().map(|change| change.number).collect::<Vec<_>>(), [1, 2]);
}

/// failures 39: two tabs.
async fn one_checkout_is_open_at_a_time(under: Under) {
    under.store.create_user(new_user("ann", 0)).await.unwrap();
    let checkout = |number| Checkout {
        id: Uuid::from_u128(number),
        user: id("ann"),
        session: None,
        kind: CheckoutKind::Plan,
        name: "pro".into(),
        price: "price_1".into(),
        currency: "usd".into(),
        amount: 2_000,
        state: CheckoutState::Open,
        created_at: 1_700_000_000_000_000,
    };
    assert_eq!(under.store.open_checkout(&id("ann")).await.unwrap(), None);
    let begun = futures_util::future::join_all((1..4).map(|number| under.store.begin_checkout(checkout(number)))).await;
    assert_eq!(begun.iter().filter(|begun| begun.is_ok()).count(), 1);
    assert!(begun.iter().all(|begun| matches!(begun, Ok(()) | Err(StoreError::Conflict(_)))));
    let open = under.store.open_checkout(&id("ann")).await.unwrap().unwrap();
    assert_eq!(open, checkout(open.id.as_u128()));
    under.store.set_checkout_session(open.id, "cs_1").await.unwrap();
    under.store.set_checkout_session(open.id, "cs_2").await.unwrap();
    let found = under.store.checkout_of_session("cs_1").await.unwrap().unwrap();
    assert_eq!((found.id, found.session.as_deref()), (open.id, Some("cs_1")));
    under.store.set_checkout_state(open.id, CheckoutState::Expired).await.unwrap();
    under.store.begin_checkout(checkout(9)).await.unwrap();
}

async fn a_call_keeps_its_key(under: Under) {
    let day = 24 * 3600 * 1_000_000;
    let asked = futures_util::future::join_all((0..4).map(|_| under.store.call_key("customer:ann", 1, day))).await;
    let keys: Vec<String> = asked.into_iter().map(Result::unwrap).collect();
    assert!(keys.iter().all(|key| *key == keys[0] && !key.is_empty()));
    assert_ne!(under.store.call_key("customer:bob", 1, day).await.unwrap(), keys[0]);
    // Another request must not go under the key of this one; nor may one that Stripe may have forgotten.
    let other = under.store.call_key("customer:ann", 2, day).await.unwrap();
    assert_ne!(other, keys[0]);
    under.age("billing_calls", "created_at", 25 * 3600);
    assert_ne!(under.store.call_key("customer:ann", 2, day).await.unwrap(), other);
}

async fn the_clock_and_the_comparison_are_one_callers(under: Under) {
    under.store.create_user(new_user("ann", 0)).await.unwrap();
    under.store.billing_account(&id("ann")).await.unwrap();
    assert!(under.store.claim_due_accounts(10, LEASE_US).await.unwrap().is_empty());
    under.store.apply_decision(decision(0, vec![Effect::Due(Some(1))])).await.unwrap();
    let claims = futures_util::future::join_all((0..3).map(|_| under.store.claim_due_accounts(10, LEASE_US))).await;
    assert_eq!(claims.into_iter().map(|claim| claim.unwrap().len()).sum::<usize>(), 1);
    let claims = futures_util::future::join_all((0..3).map(|_| under.store.claim_reconciliation(LEASE_US))).await;
    let claims: Vec<_> = claims.into_iter().filter_map(Result::unwrap).collect();
    assert_eq!(claims, [None]);
    under.store.finish_reconciliation(1_700_000_000_000_000).await.unwrap();
    under.age("billing_reconciliation", "due_at", 61);
    assert_eq!(under.store.claim_reconciliation(LEASE_US).await.unwrap(), Some(Some(1_700_000_000_000_000)));
}

/// Two transactions that both want an account's credits and its user: each in an order of its own they would end in a
/// deadlock before long.
async fn a_plan_and_a_freeze_do_not_wait_for_each_other(under: Under) {
    under.store.create_user(new_user("ann", 0)).await.unwrap();
    under.store.billing_account(&id("ann")).await.unwrap();
    for round in 0..40 {
        let plan = if round % 2 == 0 { "pro" } else { "free" };
        let effects = vec![Effect::Plan(plan.into()), granting(&format!("pi:{round}"), 5)];
        let decision = Decision { event: None, ..decision(round, effects) };
        let freezes = (0..3).map(|number| {
            under.store.add_change(faregate::store::NewChange {
                account: id("ann"),
                change: Change::Freeze { scope: Scope::Account },
                source_key: format!("freeze:{round}:{number}"),
                note: None,
                actor: "test".into(),
            })
        });
        let (decided, frozen) =
            tokio::join!(under.store.apply_decision(decision), futures_util::future::join_all(freezes));
        assert_eq!(decided.unwrap().unwrap().len(), 1);
        frozen.into_iter().for_each(|frozen| drop(frozen.unwrap()));
    }
}

async fn a_period_ends_before_its_grace(under: Under) {
    under.store.create_user(new_user("ann", 0)).await.unwrap();
    under.store.billing_account(&id("ann")).await.unwrap();
    let act = PlannedAct::Grant { kind: GrantKind::Plan, amount: 5, expires_at: 1_900_000_000_000_000 };
    let month = Effect::Change(PlannedChange { key: "inv:1".into(), act, note: String::new() });
    let ended = PaidGrant { ended: true, ..paid_grant("pi:pi_1") };
    let effects = vec![
        Effect::Purchase(purchase("pi:pi_1")),
        granting("pi:pi_1", 5),
        Effect::Grant(ended),
        month,
        Effect::Grant(paid_grant("inv:1")),
    ];
    under.store.apply_decision(decision(0, effects)).await.unwrap().unwrap();
    assert_eq!(under.store.period_ends(&id("ann")).await.unwrap(), [(GrantId(2), 1_702_000_000_000_000)]);
    assert_eq!(under.store.period_ends(&id("bob")).await.unwrap(), []);
}

async fn what_only_helped_is_cleared_away(under: Under) {
    let day = 24 * 3600;
    under.store.call_key("customer:ann", 1, LEASE_US).await.unwrap();
    for (name, outcome) in [("1", EventOutcome::Ignored), ("2", EventOutcome::Processed { user: None })] {
        under.store.insert_event(event(name)).await.unwrap();
        under.store.finish_event(&format!("evt_{name}"), outcome).await.unwrap();
    }
    under.age("billing_calls", "created_at", 6 * day);
    under.age("billing_events", "received_at", 89 * day);
    under.store.prune().await.unwrap();
    assert_eq!(under.sql("SELECT scope FROM billing_calls").len(), 1);
    assert!(under.store.billing_event("evt_1").await.unwrap().is_some());
    under.age("billing_calls", "created_at", 2 * day);
    under.age("billing_events", "received_at", 2 * day);
    under.store.prune().await.unwrap();
    assert_eq!(under.sql("SELECT scope FROM billing_calls").len(), 0);
    assert!(under.store.billing_event("evt_1").await.unwrap().is_none());
    assert!(under.store.billing_event("evt_2").await.unwrap().is_some(), "what it led to is told by it");
}
