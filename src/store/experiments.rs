//! Who sees which variant of an experiment, and what came of it.

use super::questions::{Question, number, string, text, time};
use super::{SharedStore, StoreResult};
use crate::ledger::{AccountId, Micros};

/// Variants that are told at most.
const VARIANTS_MAX: usize = 5_000;

/// The variant that a user was given of one of these experiments, the first that has one.
pub async fn seen(
    store: &SharedStore,
    experiments: &[&str],
    user: &AccountId,
) -> StoreResult<Option<(String, String)>> {
    let select = "SELECT experiment, variant FROM experiment_users WHERE user_id = ?";
    let question = Question::new(select, [text(user.as_str())]);
    let rows = store.ask(vec![question]).await?.pop().unwrap_or_default();
    let of = |experiment: &&str| rows.iter().find(|row| string(row, 0) == **experiment);
    Ok(experiments.iter().find_map(of).map(|row| (string(row, 0), string(row, 1))))
}

/// Gives a user a variant. Answers the one that the user has then: another call may have been quicker.
pub async fn assign(
    store: &SharedStore,
    experiment: &str,
    user: &AccountId,
    variant: &str,
    at: Micros,
) -> StoreResult<Option<(String, String)>> {
    let insert = "INSERT INTO experiment_users (experiment, user_id, variant, assigned_at) VALUES (?, ?, ?, ?)
        ON CONFLICT (experiment, user_id) DO NOTHING";
    // Stripe tells times by the second: what is bought in this one was bought afterwards.
    let values = [text(experiment), text(user.as_str()), text(variant), time(at / 1_000_000 * 1_000_000)];
    store.execute(vec![Question::new(insert, values)]).await?;
    seen(store, &[experiment], user).await
}

/// What one variant came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VariantFacts {
    pub experiment: String,
    pub variant: String,
    /// Who was given it.
    pub users: i64,
}

/// What users of a variant paid for one plan since they were given it, in one currency; empty: in all of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VariantSales {
    pub experiment: String,
    pub variant: String,
    pub plan: String,
    pub currency: String,
    pub users: i64,
    pub purchases: i64,
    /// In the currency's smallest unit.
    pub amount: i64,
    pub reversed: i64,
}

/// All variants that anybody was given, and their sales.
pub async fn facts(store: &SharedStore) -> StoreResult<(Vec<VariantFacts>, Vec<VariantSales>)> {
    let users = format!(
        "SELECT experiment, variant, count(*) FROM experiment_users GROUP BY experiment, variant
        ORDER BY experiment, variant LIMIT {VARIANTS_MAX}"
    );
    let sales = |currency: &str, by: &str| {
        format!(
            "SELECT e.experiment, e.variant, p.name, {currency}, count(DISTINCT p.user_id), count(*),
                CAST(sum(p.amount) AS bigint), CAST(sum(p.reversed) AS bigint)
            FROM experiment_users AS e JOIN purchases AS p ON p.user_id = e.user_id AND p.created_at >= e.assigned_at
            WHERE p.amount > 0 AND p.kind <> 'pack'
            GROUP BY e.experiment, e.variant, p.name{by} ORDER BY 1, 2, 3, 4 LIMIT {VARIANTS_MAX}"
        )
    };
    let asked = [users, sales("''", ""), sales("p.currency", ", p.currency")];
    let mut answers = store.ask(asked.map(|sql| Question::new(sql, [])).into()).await?.into_iter();
    let mut next = || answers.next().unwrap_or_default();
    let (given, sales) = (next(), [next(), next()].concat());
    let given = given.iter().map(|row| VariantFacts {
        experiment: string(row, 0),
        variant: string(row, 1),
        users: number(row, 2),
    });
    let sales = sales.iter().map(|row| VariantSales {
        experiment: string(row, 0),
        variant: string(row, 1),
        plan: string(row, 2),
        currency: string(row, 3),
        users: number(row, 4),
        purchases: number(row, 5),
        amount: number(row, 6),
        reversed: number(row, 7),
    });
    Ok((given.collect(), sales.collect()))
}
