//! One purchase: the payment without the user, and what came of it.

use super::{Buyer, Trouble, may_pay, next_look};
use crate::billing::inbox::now;
use crate::billing::lifecycle::route::Target;
use crate::billing::stripe::StripeError;
use crate::billing::stripe::fetch::Fetch;
use crate::billing::stripe::form::Form;
use crate::billing::stripe::objects::{LastError, Metadata};
use crate::store::topups::{Topup, TopupEnd};

const HOUR_US: u64 = 3600 * 1_000_000;
/// After so many declines in a row the next is tried so much later; after more, not before the user asks anew.
const PAUSES_US: [u64; 3] = [HOUR_US, 6 * HOUR_US, 24 * HOUR_US];
/// The same call is sent again for so long and so often; Stripe may forget its key after a day.
const SENT_AGAIN_US: u64 = 20 * HOUR_US;
const SENDS_MAX: u32 = 5;
/// How far Stripe's clock may be behind.
const SLACK_S: i64 = 24 * 3600;
/// Codes that ask for the cardholder.
const ASKS_FOR_OWNER: [&str; 3] =
    ["authentication_required", "payment_intent_authentication_failure", "payment_intent_action_required"];
const NO_METHOD: &str = "no_payment_method";
/// The account was closed, frozen, flagged or disputed a payment after it was begun.
const NOT_ALLOWED: &str = "not_allowed";

/// What is read of a payment: its answer need not be expanded.
#[derive(serde::Deserialize)]
struct Intent {
    id: String,
    status: String,
    #[serde(default)]
    last_payment_error: Option<LastError>,
}

impl Buyer {
    /// Sends the payment, unless it may not be made any more; again and again it is the same call.
    pub(super) async fn pay(&self, topup: &Topup) -> Result<(), Trouble> {
        if topup.payment_method.is_none() {
            // Stripe was not asked yet: whatever happened since it was begun still counts.
            match self.is_wanted(&topup.user).await {
                Ok(true) => {}
                not_now => {
                    self.store.end_topup(topup, TopupEnd::Void).await?;
                    self.count("void");
                    return not_now.map(drop);
                }
            }
        } else if !may_pay(&self.store.billing_account(&topup.user).await?) {
            return self.declined(topup, NOT_ALLOWED).await;
        }
        let method = match &topup.payment_method {
            Some(method) => method.clone(),
            None => match self.client.payment_method_of(&topup.customer).await? {
                Some(method) => self.store.set_topup_method(topup.id, &method).await?,
                None => return self.declined(topup, NO_METHOD).await,
            },
        };
        let form = form(topup, &method);
        let sent = self.client.post::<Intent>("/v1/payment_intents", &form, &topup.id.to_string()).await;
        match sent {
            Ok(intent) => self.judge(topup, &intent).await,
            // That our key may not do it is the operator's affair, not the card's.
            Err(StripeError::Refused { status, code, .. }) if !matches!(status, 401 | 403) => {
                self.declined(topup, &code).await
            }
            Err(StripeError::NotFound(_)) => self.declined(topup, "customer_missing").await,
            // Whether it was paid is not known: it is looked after.
            Err(error) => Err(error.into()),
        }
    }

    /// Finds out about a purchase that was left: by what Stripe has of it, else by sending it again.
    pub(super) async fn recover(&self, topup: &Topup) -> Result<(), Trouble> {
        let since = i64::try_from(topup.created_at / 1_000_000).unwrap_or(i64::MAX).saturating_sub(SLACK_S);
        let id = topup.id.to_string();
        let ours = |metadata: &Metadata| metadata.topup.as_ref() == Some(&id);
        let found = self.client.payments_of(&topup.customer, since).await?;
        if let Some(intent) = found.into_iter().find(|intent| ours(&intent.metadata)) {
            let (id, status, last_payment_error) = (intent.id, intent.status, intent.last_payment_error);
            return self.judge(topup, &Intent { id, status, last_payment_error }).await;
        }
        if now().saturating_sub(topup.created_at) < SENT_AGAIN_US && topup.looks <= SENDS_MAX {
            return self.pay(topup).await;
        }
        // There is none, and there will be none.
        self.declined(topup, "no_answer").await
    }

    async fn judge(&self, topup: &Topup, intent: &Intent) -> Result<(), Trouble> {
        match intent.status.as_str() {
            "succeeded" => {
                let cause = format!("topup:{}", topup.id);
                let user = self.processor.object(&Target::Payment(intent.id.clone()), &cause).await?;
                let id = format!("pi:{}", intent.id);
                if self.store.billing_account(&user).await?.purchases.iter().any(|purchase| purchase.id == id) {
                    self.count("paid");
                    tracing::info!(user = %topup.user, topup = %topup.id, payment = intent.id, "topped up");
                } else {
                    self.count("nothing_granted");
                    tracing::error!(user = %topup.user, topup = %topup.id, payment = intent.id, "paid, and nothing was granted");
                }
                Ok(())
            }
            "processing" => Ok(self.store.look_at_topup(topup.id, next_look(topup.looks)).await?),
            status => {
                let code = intent.last_payment_error.as_ref().and_then(|error| error.code.clone());
                let action = status == "requires_action";
                let code = code.unwrap_or_else(|| if action { ASKS_FOR_OWNER[0] } else { status }.to_owned());
                self.declined(topup, &code).await
            }
        }
    }

    async fn declined(&self, topup: &Topup, code: &str) -> Result<(), Trouble> {
        let action = ASKS_FOR_OWNER.contains(&code) || code == NO_METHOD;
        let before = self.store.auto_topup(&topup.user).await?.map_or(0, |auto| auto.failures);
        let pause = PAUSES_US.get(before as usize).filter(|_| !action);
        let again_at = pause.map(|pause| now().saturating_add(*pause));
        tracing::info!(user = %topup.user, topup = %topup.id, code, "an automatic top-up was declined");
        self.count("declined");
        let end = TopupEnd::Declined { code: code.to_owned(), again_at, action };
        Ok(self.store.end_topup(topup, end).await?)
    }
}

fn form(topup: &Topup, method: &str) -> Form {
    Form::new()
        .with("amount", topup.amount)
        .with("currency", &topup.currency)
        .with("customer", &topup.customer)
        .with("payment_method", method)
        .with("off_session", true)
        .with("confirm", true)
        .with("metadata[faregate_user]", &topup.user)
        .with("metadata[faregate_kind]", "pack")
        .with("metadata[faregate_name]", &topup.pack)
        .with("metadata[faregate_price]", &topup.price)
        .with("metadata[faregate_topup]", topup.id)
}
