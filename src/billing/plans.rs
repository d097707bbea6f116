//! What is sold: plans and packs of the settings, by name and by their prices at Stripe.

use std::collections::HashMap;
use std::sync::Arc;

use super::terms::Seen;
use crate::config::{Config, Interval, Pack, PackPrice, Plan, PlanPrice, Variant};

/// The plan of users without a subscription.
pub const FREE: &str = "free";

/// The settings' plans and packs, and which thing each price is for.
#[derive(Debug)]
pub struct Catalog {
    config: Arc<Config>,
    prices: HashMap<String, Place>,
    /// Plans as the variants of experiments offer them, with their names.
    variants: HashMap<Seen, (String, Plan)>,
}

#[derive(Debug, Clone)]
enum Place {
    Plan(String, usize),
    Pack(String, usize),
    /// Of a variant of an experiment.
    Variant(Seen, usize),
}

/// A plan at one of its prices.
#[derive(Debug, Clone, Copy)]
pub struct PlanOffer<'a> {
    pub name: &'a str,
    pub plan: &'a Plan,
    pub price: &'a PlanPrice,
}

/// A pack at one of its prices.
#[derive(Debug, Clone, Copy)]
pub struct PackOffer<'a> {
    pub name: &'a str,
    pub pack: &'a Pack,
    pub price: &'a PackPrice,
}

fn offered(plan: &Plan, variant: &Variant) -> Plan {
    let prices = if variant.prices.is_empty() { plan.prices.clone() } else { variant.prices.clone() };
    Plan { prices, credits: variant.credits.unwrap_or(plan.credits), ..plan.clone() }
}

impl Catalog {
    pub fn new(config: Arc<Config>) -> Catalog {
        let mut prices = HashMap::new();
        for (name, plan) in &config.plans {
            let place = |(index, price): (usize, &PlanPrice)| (price.id.clone(), Place::Plan(name.clone(), index));
            prices.extend(plan.prices.iter().enumerate().map(place));
        }
        for (name, pack) in &config.packs {
            let place = |(index, price): (usize, &PackPrice)| (price.id.clone(), Place::Pack(name.clone(), index));
            prices.extend(pack.prices.iter().enumerate().map(place));
        }
        let mut variants = HashMap::new();
        for (name, experiment) in &config.experiments {
            let Some(plan) = config.plans.get(&experiment.plan) else { continue };
            for variant in &experiment.variants {
                let seen = (name.clone(), variant.name.clone());
                let place =
                    |(index, price): (usize, &PlanPrice)| (price.id.clone(), Place::Variant(seen.clone(), index));
                prices.extend(variant.prices.iter().enumerate().map(place));
                variants.insert(seen.clone(), (experiment.plan.clone(), offered(plan, variant)));
            }
        }
        Catalog { config, prices, variants }
    }

    pub fn plan(&self, name: &str) -> Option<&Plan> {
        self.config.plans.get(name)
    }

    pub fn pack(&self, name: &str) -> Option<&Pack> {
        self.config.packs.get(name)
    }

    /// The plan that is sold at this price.
    pub fn plan_of_price(&self, price: &str) -> Option<PlanOffer<'_>> {
        let (name, plan, index) = match self.prices.get(price)? {
            Place::Plan(name, index) => (name, self.config.plans.get(name)?, index),
            Place::Variant(seen, index) => {
                let (name, plan) = self.variants.get(seen)?;
                (name, plan, index)
            }
            Place::Pack(..) => return None,
        };
        Some(PlanOffer { name, plan, price: plan.prices.get(*index)? })
    }

    /// A plan as the variant that a user has seen offers it.
    pub fn variant(&self, seen: &Seen) -> Option<&Plan> {
        self.variants.get(seen).map(|(_, plan)| plan)
    }

    /// The pack that is sold at this price.
    pub fn pack_of_price(&self, price: &str) -> Option<PackOffer<'_>> {
        let Some(Place::Pack(name, index)) = self.prices.get(price) else { return None };
        let pack = self.config.packs.get(name)?;
        Some(PackOffer { name, pack, price: pack.prices.get(*index)? })
    }

    /// A plan by name, at the terms that the user has seen. Without a currency its first one.
    pub fn plan_offer(
        &self,
        seen: Option<&Seen>,
        name: &str,
        currency: Option<&str>,
        interval: Interval,
    ) -> Option<PlanOffer<'_>> {
        let (name, own) = self.config.plans.get_key_value(name)?;
        let plan = seen.and_then(|seen| self.variant(seen)).unwrap_or(own);
        let fits =
            |price: &&PlanPrice| price.interval == interval && currency.is_none_or(|wanted| wanted == price.currency);
        Some(PlanOffer { name, plan, price: plan.prices.iter().find(fits)? })
    }

    /// A pack by name. Without a currency its first one.
    pub fn pack_offer(&self, name: &str, currency: Option<&str>) -> Option<PackOffer<'_>> {
        let (name, pack) = self.config.packs.get_key_value(name)?;
        let fits = |price: &&PackPrice| currency.is_none_or(|wanted| wanted == price.currency);
        Some(PackOffer { name, pack, price: pack.prices.iter().find(fits)? })
    }

    /// Plans that users may see: those that are sold, and the free one.
    pub fn plans(&self) -> impl Iterator<Item = (&str, &Plan)> {
        let shown = |(name, plan): &(&String, &Plan)| *name == FREE || !plan.prices.is_empty();
        self.config.plans.iter().filter(shown).map(|(name, plan)| (name.as_str(), plan))
    }

    /// Packs that can be bought.
    pub fn packs(&self) -> impl Iterator<Item = (&str, &Pack)> {
        self.config.packs.iter().filter(|(_, pack)| !pack.prices.is_empty()).map(|(name, pack)| (name.as_str(), pack))
    }

    /// Every price, by id: what the settings say about it.
    pub fn prices(&self) -> impl Iterator<Item = Sold<'_>> {
        let plans = self.config.every_plan_price().map(|price| Sold {
            id: &price.id,
            currency: &price.currency,
            amount: price.amount,
            interval: Some(price.interval),
        });
        let packs = self.config.packs.values().flat_map(|pack| &pack.prices).map(|price| Sold {
            id: &price.id,
            currency: &price.currency,
            amount: price.amount,
            interval: None,
        });
        plans.chain(packs)
    }
}

/// One price of the settings, of whatever it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sold<'a> {
    pub id: &'a str,
    pub currency: &'a str,
    pub amount: i64,
    /// `None`: paid once.
    pub interval: Option<Interval>,
}

impl PlanOffer<'_> {
    /// Months that one payment buys.
    pub fn months(&self) -> u32 {
        match self.price.interval {
            Interval::Month => 1,
            Interval::Year => 12,
        }
    }
}
