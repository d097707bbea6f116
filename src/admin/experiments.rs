//! What came of price experiments, variant by variant.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use http::StatusCode;
use serde::Serialize;
use serde_json::value::RawValue;

use super::reports::percent;
use super::{Admin, grants};
use crate::api::extract::{Paging, json};
use crate::api::problem::Problem;
use crate::config::{Experiment, Variant};
use crate::store::experiments::{VariantFacts, VariantSales, facts};

#[derive(Debug, Serialize)]
struct ExperimentView {
    name: String,
    plan: String,
    active: bool,
    variants: Vec<VariantView>,
}

#[derive(Debug, Serialize)]
struct VariantView {
    name: String,
    weight: u32,
    /// Users who were given it, and those who have paid for the plan since.
    users: i64,
    converted: i64,
    percent: Option<Box<RawValue>>,
    revenue: Vec<Revenue>,
}

/// In the currency's smallest unit.
#[derive(Debug, Serialize)]
struct Revenue {
    currency: String,
    purchases: i64,
    amount: i64,
    refunded: i64,
    net: i64,
}

/// By name. Experiments that left the settings are not told: their plan is not known.
pub(super) async fn list(State(admin): State<Arc<Admin>>, Paging(page): Paging) -> Result<Response, Problem> {
    let (given, sales) = facts(&admin.store).await?;
    let config = admin.current.get();
    let views = config.experiments.iter().map(|(name, experiment)| view(name, experiment, &given, &sales));
    let views = views.collect::<Result<Vec<_>, Problem>>()?;
    Ok(json(StatusCode::OK, &grants::list_page(views, &page, |view| view.name.clone(), |view| view)?))
}

fn view(
    name: &str,
    experiment: &Experiment,
    given: &[VariantFacts],
    sales: &[VariantSales],
) -> Result<ExperimentView, Problem> {
    let one = |variant: &Variant| {
        let ours =
            |row: &&VariantSales| row.experiment == name && row.variant == variant.name && row.plan == experiment.plan;
        let users = given.iter().find(|row| row.experiment == name && row.variant == variant.name);
        let users = users.map_or(0, |row| row.users);
        let (all, by_currency): (Vec<_>, Vec<_>) = sales.iter().filter(ours).partition(|row| row.currency.is_empty());
        let converted = all.iter().map(|row| row.users).sum();
        let revenue = by_currency.iter().map(|row| Revenue {
            currency: row.currency.clone(),
            purchases: row.purchases,
            amount: row.amount,
            refunded: row.reversed,
            net: row.amount - row.reversed,
        });
        Ok(VariantView {
            name: variant.name.clone(),
            weight: variant.weight,
            users,
            converted,
            percent: percent(converted, users)?,
            revenue: revenue.collect(),
        })
    };
    Ok(ExperimentView {
        name: name.to_owned(),
        plan: experiment.plan.clone(),
        active: experiment.active,
        variants: experiment.variants.iter().map(one).collect::<Result<_, Problem>>()?,
    })
}
