//! What follows at Stripe when a user is called otherwise, or leaves for good.

use super::{Desk, DeskError};
use crate::billing::lifecycle::is_live;
use crate::billing::stripe::fetch::path;
use crate::billing::stripe::form::Form;
use crate::billing::stripe::objects::Customer;
use crate::ledger::AccountId;
use crate::store::{StoreError, UserStatus};

use super::subscription::When;

/// Subscriptions of one user that are ended; more than one at a time is a mistake already.
const MAX_SUBSCRIPTIONS: usize = 8;

impl Desk {
    /// Gives the user's customer the name and the mail address that we know. Without a customer there is nothing to do.
    pub async fn rename(&self, user: &AccountId) -> Result<(), DeskError> {
        let account = match self.store.billing_account(user).await {
            Err(StoreError::NotFound(_)) => return Ok(()),
            account => account?,
        };
        let Some(customer) = account.customer.filter(|_| account.user.status != UserStatus::Closed) else {
            return Ok(());
        };
        let text = |value: Option<String>| value.unwrap_or_default();
        // An empty value takes away what was there.
        let form = Form::new().with("email", text(account.user.email)).with("name", text(account.user.name));
        let _: Customer = self.send_once(&format!("rename:{customer}"), &path("customers", &customer), &form).await?;
        Ok(())
    }

    /// Ends at once what the user pays for, and pages on which they could still pay.
    pub async fn leave(&self, user: &AccountId) -> Result<(), DeskError> {
        let account = match self.store.billing_account(user).await {
            Err(StoreError::NotFound(_)) => return Ok(()),
            account => account?,
        };
        if let Some(open) = self.store.open_checkout(user).await?
            && let Some(session) = open.session.clone()
        {
            self.expire(&open, &session).await?;
        }
        let live = account.subscriptions.iter().filter(|row| is_live(&row.status)).count();
        for _ in 0..live.min(MAX_SUBSCRIPTIONS) {
            match self.cancel(user, When::Now).await {
                // It ended meanwhile.
                Ok(()) | Err(DeskError::Conflict(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
