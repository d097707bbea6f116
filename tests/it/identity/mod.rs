//! Users who are signed in elsewhere: their tokens, what their issuer tells, and their own keys.

mod keysets;
mod own_keys;
mod tokens;
mod webhooks;

use faregate::config::Config;
use faregate_sim::stack_auth::Person;
use http::Method;
use serde_json::Value;

use crate::api::rig::{Ground, Rig, settings};
use crate::support::StackAuth;
use crate::support::http::Answer;

fn trusting(issuer: &StackAuth) -> Config {
    issuer.trusted(settings())
}

/// What a caller with this token may spend.
async fn check(rig: &Rig, token: &str) -> Answer {
    rig.api(Method::GET, "/api/credits/check", "").header("x-stack-access-token", token).send().await
}

/// A user's credits and grants, as the operator sees them.
async fn shown(rig: &Rig, user: &str) -> Value {
    rig.admin(Method::GET, &format!("/admin/v1/users/{user}")).send().await.json()
}

/// The signals against a user.
async fn signals(rig: &Rig, user: &str) -> Vec<String> {
    let rows = rig.admin(Method::GET, &format!("/admin/v1/fraud?user={user}")).send().await.json();
    rows["data"].as_array().unwrap().iter().map(|row| row["signal"].as_str().unwrap().to_owned()).collect()
}

fn ann() -> Person {
    Person { name: Some("Ann".into()), ..Person::new("3b2f6d9e-0001-4000-8000-00000000000a", "ann@example.com") }
}

/// Runs tests over both pairs of ledger and store, each with an issuer of its own.
macro_rules! on_every_ground {
    ($($room:ident :: $test:ident),* $(,)?) => {
        mod on_sqlite_and_embedded {
            $(
                #[tokio::test]
                async fn $test() {
                    let issuer = crate::support::StackAuth::start();
                    super::$room::$test(&super::Ground::embedded(super::trusting(&issuer)).await, &issuer).await;
                }
            )*
        }

        mod on_postgres_and_redis {
            $(
                #[tokio::test]
                async fn $test() {
                    let issuer = crate::support::StackAuth::start();
                    super::$room::$test(&super::Ground::distributed(super::trusting(&issuer)).await, &issuer).await;
                }
            )*
        }
    };
}

on_every_ground! {
    tokens::first_tokens_at_once_make_one_user_with_one_grant,
    tokens::who_is_not_verified_gets_nothing_until_they_are,
    tokens::aliases_of_one_mailbox_get_one_grant,
    tokens::deleted_and_back_there_is_no_second_grant,
    webhooks::a_user_is_made_once_however_often_it_is_told,
    webhooks::what_the_issuer_says_of_the_risk_is_judged,
    tokens::where_first_tokens_come_from_is_judged,
    webhooks::what_comes_late_changes_nothing,
    webhooks::a_deleted_user_is_out_everywhere_within_a_second,
    own_keys::keys_are_made_shown_and_ended,
    own_keys::a_live_key_is_never_hidden_nor_one_too_many,
}
