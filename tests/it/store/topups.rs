//! Packs that are bought by themselves, over every store.

use faregate::store::billing::{Decision, Effect};
use faregate::store::topups::*;
use uuid::Uuid;

use super::{Under, id, new_user};

suite!(
    what_was_asked_for_is_kept_until_it_is_asked_anew,
    one_purchase_runs_at_a_time,
    a_month_has_its_cap,
    a_decline_waits_or_stops,
    what_was_left_is_looked_after_by_one,
    who_is_short_is_found,
);

const LOOK_US: u64 = 60_000_000;
const HOUR_US: u64 = 3_600_000_000;
const MONTH: (u64, u64) = (1_790_000_000_000_000, u64::MAX >> 12);

fn terms() -> TopupTerms {
    TopupTerms {
        user: id("ann"),
        threshold: 5_000_000,
        pack: "small".into(),
        currency: "usd".into(),
        monthly_cap: 1_000,
    }
}

fn topup(number: u128) -> Topup {
    Topup {
        id: Uuid::from_u128(number),
        user: id("ann"),
        customer: "cus_1".into(),
        pack: "small".into(),
        price: "price_small".into(),
        currency: "usd".into(),
        amount: 500,
        payment_method: None,
        looks: 0,
        created_at: MONTH.0 + 1,
    }
}

async fn asked(under: &Under) {
    under.store.create_user(new_user("ann", 0)).await.unwrap();
    under.store.set_auto_topup(terms()).await.unwrap();
}

async fn paid(under: &Under, number: u128) {
    let version = under.store.billing_account(&id("ann")).await.unwrap().version;
    let effects = vec![Effect::TopupPaid(Uuid::from_u128(number))];
    let decision = Decision { user: id("ann"), version, actor: "test".into(), effects, event: None };
    under.store.apply_decision(decision).await.unwrap().unwrap();
}

async fn what_was_asked_for_is_kept_until_it_is_asked_anew(under: Under) {
    assert!(under.store.set_auto_topup(terms()).await.is_err(), "there is no such user");
    assert!(!under.store.any_auto_topup().await.unwrap());
    asked(&under).await;
    let auto = under.store.auto_topup(&id("ann")).await.unwrap().unwrap();
    assert_eq!((&auto.terms, auto.enabled, auto.failures, auto.stopped), (&terms(), true, 0, false));
    assert!(under.store.any_auto_topup().await.unwrap());
    assert_eq!(under.store.topup_wanted(&[id("bob"), id("ann")]).await.unwrap(), [id("ann")]);
    under.store.end_auto_topup(&id("ann")).await.unwrap();
    assert!(!under.store.auto_topup(&id("ann")).await.unwrap().unwrap().enabled);
    assert!(!under.store.any_auto_topup().await.unwrap());
    assert!(under.store.topup_wanted(&[id("ann")]).await.unwrap().is_empty());
    assert_eq!(under.store.begin_topup(topup(1), MONTH, LOOK_US).await.unwrap(), Begun::NotNow);
    let other = TopupTerms { pack: "large".into(), ..terms() };
    assert_eq!(under.store.set_auto_topup(other.clone()).await.unwrap().terms, other);
}

async fn one_purchase_runs_at_a_time(under: Under) {
    asked(&under).await;
    let begun = (1..5).map(|number| under.store.begin_topup(topup(number), MONTH, LOOK_US));
    let begun: Vec<Begun> =
        futures_util::future::join_all(begun).await.into_iter().map(|begun| begun.unwrap()).collect();
    assert_eq!(begun.iter().filter(|begun| **begun == Begun::Begun).count(), 1, "{begun:?}");
    assert_eq!(begun.iter().filter(|begun| **begun == Begun::NotNow).count(), 3, "{begun:?}");
    let number = begun.iter().position(|begun| *begun == Begun::Begun).unwrap() as u128 + 1;
    assert_eq!(under.store.topup(Uuid::from_u128(number)).await.unwrap(), Some(topup(number)));
    assert!(under.store.topup_wanted(&[id("ann")]).await.unwrap().is_empty());
    // Not needed after all: nothing is left of it.
    under.store.end_topup(&topup(number), TopupEnd::Void).await.unwrap();
    assert_eq!(under.store.topup(Uuid::from_u128(number)).await.unwrap(), None);
    assert_eq!(under.store.begin_topup(topup(7), MONTH, LOOK_US).await.unwrap(), Begun::Begun);
    // What it is paid with stands, and then it cannot be unmade.
    assert_eq!(under.store.set_topup_method(Uuid::from_u128(7), "pm_1").await.unwrap(), "pm_1");
    assert_eq!(under.store.set_topup_method(Uuid::from_u128(7), "pm_2").await.unwrap(), "pm_1");
    under.store.end_topup(&topup(7), TopupEnd::Void).await.unwrap();
    assert!(under.store.topup(Uuid::from_u128(7)).await.unwrap().is_some());
}

async fn a_month_has_its_cap(under: Under) {
    asked(&under).await;
    for number in 1..3 {
        assert_eq!(under.store.begin_topup(topup(number), MONTH, LOOK_US).await.unwrap(), Begun::Begun);
        paid(&under, number).await;
    }
    assert_eq!(under.store.topped_up(&id("ann"), "usd", MONTH.0).await.unwrap(), 1_000);
    assert_eq!(under.store.topped_up(&id("ann"), "usd", MONTH.0 + 2).await.unwrap(), 0);
    assert_eq!(under.store.topped_up(&id("ann"), "eur", MONTH.0).await.unwrap(), 0);
    assert_eq!(under.store.begin_topup(topup(3), MONTH, LOOK_US).await.unwrap(), Begun::Capped);
    let auto = under.store.auto_topup(&id("ann")).await.unwrap().unwrap();
    assert_eq!((auto.next_at, auto.error.as_deref()), (MONTH.1, Some("monthly_cap")));
    assert_eq!(under.store.begin_topup(topup(3), MONTH, LOOK_US).await.unwrap(), Begun::NotNow);
    // Asked anew it may go on, within the cap.
    under.store.set_auto_topup(TopupTerms { monthly_cap: 1_500, ..terms() }).await.unwrap();
    assert_eq!(under.store.begin_topup(topup(3), MONTH, LOOK_US).await.unwrap(), Begun::Begun);
}

async fn a_decline_waits_or_stops(under: Under) {
    asked(&under).await;
    let declined = |again_at, action| TopupEnd::Declined { code: "card_declined".into(), again_at, action };
    let later = faregate::billing::inbox::now() + HOUR_US;
    under.store.begin_topup(topup(1), MONTH, LOOK_US).await.unwrap();
    for _ in 0..2 {
        // The second time it has ended already.
        under.store.end_topup(&topup(1), declined(Some(later), false)).await.unwrap();
    }
    let auto = under.store.auto_topup(&id("ann")).await.unwrap().unwrap();
    assert_eq!((auto.failures, auto.next_at, auto.stopped), (1, later, false));
    assert_eq!(under.store.topped_up(&id("ann"), "usd", MONTH.0).await.unwrap(), 0);
    assert_eq!(under.store.begin_topup(topup(2), MONTH, LOOK_US).await.unwrap(), Begun::NotNow);
    under.age("auto_topups", "next_at", 3_601);
    assert_eq!(under.store.begin_topup(topup(2), MONTH, LOOK_US).await.unwrap(), Begun::Begun);
    under.store.end_topup(&topup(2), declined(None, true)).await.unwrap();
    let auto = under.store.auto_topup(&id("ann")).await.unwrap().unwrap();
    assert_eq!((auto.failures, auto.stopped), (2, true));
    assert_eq!(under.store.begin_topup(topup(3), MONTH, LOOK_US).await.unwrap(), Begun::NotNow);
    let told = under.sql("SELECT kind FROM notifications ORDER BY number");
    assert_eq!(told, ["payment_failed", "payment_action_required"]);
    // The payment arrives after all.
    paid(&under, 2).await;
    let auto = under.store.auto_topup(&id("ann")).await.unwrap().unwrap();
    assert_eq!((auto.failures, auto.stopped, auto.error), (0, false, None));
    assert_eq!(under.store.topped_up(&id("ann"), "usd", MONTH.0).await.unwrap(), 500);
}

async fn what_was_left_is_looked_after_by_one(under: Under) {
    asked(&under).await;
    under.store.begin_topup(topup(1), MONTH, LOOK_US).await.unwrap();
    assert!(under.store.claim_topups(10, LOOK_US).await.unwrap().is_empty());
    under.age("topups", "look_at", 61);
    let claims = futures_util::future::join_all((0..3).map(|_| under.store.claim_topups(10, LOOK_US))).await;
    let claimed: Vec<Topup> = claims.into_iter().flat_map(|claim| claim.unwrap()).collect();
    assert_eq!(claimed, [Topup { looks: 1, ..topup(1) }]);
    under.store.look_at_topup(Uuid::from_u128(1), 1).await.unwrap();
    assert_eq!(under.store.claim_topups(10, LOOK_US).await.unwrap().len(), 1);
    paid(&under, 1).await;
    under.store.look_at_topup(Uuid::from_u128(1), 1).await.unwrap();
    assert!(under.store.claim_topups(10, LOOK_US).await.unwrap().is_empty());
}

async fn who_is_short_is_found(under: Under) {
    asked(&under).await;
    assert_eq!(under.store.topup_short(None, 10).await.unwrap(), [id("ann")]);
    under.sql("UPDATE credits SET balance = 5000000 WHERE user_id = 'ann'");
    assert!(under.store.topup_short(None, 10).await.unwrap().is_empty());
    under.sql("UPDATE credits SET debt = 1 WHERE user_id = 'ann'");
    assert_eq!(under.store.topup_short(None, 10).await.unwrap(), [id("ann")]);
    // In turn, whoever stays short.
    assert!(under.store.topup_short(Some(&id("ann")), 10).await.unwrap().is_empty());
    assert_eq!(under.store.topup_short(Some(&id("al")), 10).await.unwrap(), [id("ann")]);
}
