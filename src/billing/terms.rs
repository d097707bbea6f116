//! The terms at which a plan is offered to one user: the plan's own, or those of an experiment's variant, which the user
//! keeps.

use crate::config::Config;
use crate::ledger::AccountId;
use crate::rollout::Current;
use crate::store::{SharedStore, StoreResult, experiments};

/// An experiment and its variant.
pub type Seen = (String, String);

#[derive(Clone)]
pub struct Terms {
    store: SharedStore,
    current: Current,
}

impl Terms {
    pub fn new(store: SharedStore, current: Current) -> Terms {
        Terms { store, current }
    }

    /// Which variant of a plan the user sees, if any; a user who is new to its experiment is given one.
    pub async fn of(&self, user: &AccountId, plan: &str) -> StoreResult<Option<Seen>> {
        let config = self.current.get();
        let names = about(&config, plan);
        if names.is_empty() {
            return Ok(None);
        }
        if let Some(seen) = experiments::seen(&self.store, &names, user).await? {
            return Ok(Some(seen));
        }
        for name in names {
            let Some(variant) = config.experiments.get(name).and_then(|experiment| experiment.draw(name, user)) else {
                continue;
            };
            return experiments::assign(&self.store, name, user, &variant.name, super::inbox::now()).await;
        }
        Ok(None)
    }
}

/// The experiments with a plan, the active one first.
fn about<'a>(config: &'a Config, plan: &str) -> Vec<&'a str> {
    let mut found: Vec<_> = config.experiments.iter().filter(|(_, experiment)| experiment.plan == plan).collect();
    found.sort_by_key(|(_, experiment)| !experiment.active);
    found.into_iter().map(|(name, _)| name.as_str()).collect()
}
