//! What a user asks for: that a pack is bought by itself when little is left.

use super::{Desk, DeskError};
use crate::billing::inbox::now;
use crate::billing::topup::month;
use crate::credits::Credits;
use crate::ledger::AccountId;
use crate::store::topups::{AutoTopup, TopupTerms};

/// What a user wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    pub threshold: Credits,
    pub pack: String,
    /// The first one that there is a price in, when not given.
    pub currency: Option<String>,
    /// In the currency's smallest unit.
    pub monthly_cap: i64,
}

/// How it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AutoStanding {
    pub auto: AutoTopup,
    /// What the pack costs now; `None` when it is sold no more.
    pub amount: Option<i64>,
    /// In this calendar month (UTC), in the currency's smallest unit.
    pub spent: i64,
}

impl Desk {
    /// `None` for who never asked for it.
    pub async fn auto_topup(&self, user: &AccountId) -> Result<Option<AutoStanding>, DeskError> {
        match self.store.auto_topup(user).await? {
            Some(auto) => Ok(Some(self.auto_standing(auto).await?)),
            None => Ok(None),
        }
    }

    /// From now on the pack is bought when less is left than the threshold. There must be something to pay with.
    pub async fn set_auto_topup(&self, user: &AccountId, wanted: &Wanted) -> Result<AutoStanding, DeskError> {
        let offer = self.catalog.pack_offer(&wanted.pack, wanted.currency.as_deref());
        let offer = offer.ok_or(DeskError::Unknown("no such pack is sold in this currency"))?;
        if wanted.monthly_cap < offer.price.amount {
            return Err(DeskError::Unknown("the monthly cap is below the price of the pack"));
        }
        if wanted.threshold >= offer.pack.credits {
            // One purchase would lead to the next.
            return Err(DeskError::Unknown("the threshold must be below the credits of the pack"));
        }
        let account = self.store.billing_account(user).await?;
        let customer = self.customer(&account).await?;
        if self.client.payment_method_of(&customer).await?.is_none() {
            return Err(DeskError::Conflict(
                "there is no card to pay with: save one in the portal first (flow payment_method)",
            ));
        }
        let terms = TopupTerms {
            user: user.clone(),
            threshold: wanted.threshold.micro(),
            pack: offer.name.to_owned(),
            currency: offer.price.currency.clone(),
            monthly_cap: wanted.monthly_cap,
        };
        let auto = self.store.set_auto_topup(terms).await?;
        self.spenders.open(true);
        self.auto_standing(auto).await
    }

    /// Nothing more is bought.
    pub async fn end_auto_topup(&self, user: &AccountId) -> Result<(), DeskError> {
        Ok(self.store.end_auto_topup(user).await?)
    }

    async fn auto_standing(&self, auto: AutoTopup) -> Result<AutoStanding, DeskError> {
        let terms = &auto.terms;
        let spent = self.store.topped_up(&terms.user, &terms.currency, month(now()).0).await?;
        let amount = self.catalog.pack_offer(&terms.pack, Some(&terms.currency)).map(|offer| offer.price.amount);
        Ok(AutoStanding { auto, amount, spent })
    }
}
