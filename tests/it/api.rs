//! The credits API and the operator's API, through their routers.

mod credits;
mod fraud;
mod input;
mod insight;
mod limits;
mod model;
mod openapi;
mod operator;
mod reports;
pub(crate) mod rig;

use crate::admission;

/// Runs tests over both pairs of ledger and store.
macro_rules! on_every_ground {
    ($($room:ident :: $test:ident),* $(,)?) => {
        mod on_sqlite_and_embedded {
            use super::rig::{Ground, settings};
            $(
                #[tokio::test]
                async fn $test() {
                    super::$room::$test(&Ground::embedded(settings()).await).await;
                }
            )*
        }

        mod on_postgres_and_redis {
            use super::rig::{Ground, settings};
            $(
                #[tokio::test]
                async fn $test() {
                    super::$room::$test(&Ground::distributed(settings()).await).await;
                }
            )*
        }
    };
}

on_every_ground! {
    credits::amounts_are_exact,
    credits::concurrent_deductions_never_overspend,
    credits::a_hold_is_settled_once_and_the_rest_comes_back,
    credits::what_does_not_fit_is_refused_whole,
    credits::holds_of_others_and_of_nobody_are_unknown,
    credits::a_deduction_is_done_once_for_its_key,
    credits::duplicates_at_once_charge_once,
    credits::reserve_settle_and_release_answer_repetitions,
    credits::a_refused_request_may_try_its_key_again,
    credits::a_check_shows_what_was_true_a_second_ago_at_most,
    credits::a_frozen_account_only_settles,
    credits::an_unfinished_hold_expires,
    credits::every_charge_leaves_a_usage_row,
    reports::usage_is_reported_by_what_is_asked,
    insight::usage_reports_equal_the_raw_rows,
    insight::revenue_reports_equal_the_raw_rows,
    insight::the_audit_log_is_read_by_the_page,
    insight::feedback_is_kept_bounded_and_read,
    insight::experiments_are_sticky_and_reported_by_variant,
    fraud::a_burst_of_sign_ups_is_caught_and_an_office_spared,
    fraud::farmed_credits_are_held_and_customers_spared,
    fraud::risk_scores_count_and_low_ones_do_not,
    fraud::spending_beyond_ones_past_is_caught_and_a_big_customer_spared,
    fraud::one_card_of_many_accounts_is_caught_and_a_couple_spared,
    fraud::an_early_warning_counts_against_its_payer_alone,
    operator::users_are_made_with_their_plans_credits,
    operator::grants_are_live_when_the_answer_leaves_and_given_once,
    admission::a_revoked_key_is_refused_at_once_here_and_within_a_second_elsewhere,
    admission::a_revoked_service_key_is_refused_for_every_user_it_acted_for,
    admission::first_uses_at_once_make_one_user_with_one_grant,
    admission::a_refusal_consumes_no_rate_limit,
    admission::limits_hold_across_keys_labels_and_replicas,
}
