//! What was paid and what is due, newest first: Stripe's invoices, and the packs, which have none.

use super::{Desk, DeskError};
use crate::billing::stripe::form::Form;
use crate::billing::stripe::objects::{Invoice, List, micros};
use crate::ledger::{AccountId, Micros};
use crate::store::billing::{BillingAccount, PurchaseKind};

/// One line of the history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paid {
    pub id: String,
    /// Whether it is an invoice of a subscription, or a pack.
    pub invoice: bool,
    pub number: Option<String>,
    /// Of an invoice in Stripe's words; of a pack `paid`, `refunded` or `disputed`.
    pub status: String,
    /// In the currency's smallest unit.
    pub amount: i64,
    pub currency: String,
    pub created_at: Micros,
    /// Where an open invoice can be paid.
    pub hosted_url: Option<String>,
    pub pdf_url: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryPage {
    pub data: Vec<Paid>,
    pub next: Option<String>,
}

impl Desk {
    /// A page of at most `limit` invoices, and the packs of the same time. The cursor is of an earlier page.
    pub async fn history(&self, user: &AccountId, limit: u32, cursor: Option<&str>) -> Result<HistoryPage, DeskError> {
        let account = self.store.billing_account(user).await?;
        let (before, after) = match cursor.map(|cursor| cursor.split_once('.')) {
            None => (Micros::MAX, None),
            Some(Some((time, invoice))) => {
                let time = time.parse().map_err(|_| DeskError::Unknown("the cursor is not of an earlier page"))?;
                (time, Some(invoice))
            }
            Some(None) => return Err(DeskError::Unknown("the cursor is not of an earlier page")),
        };
        let invoices: List<Invoice> = match &account.customer {
            None => List { data: Vec::new(), has_more: false },
            Some(customer) => {
                let form = Form::new()
                    .with("customer", customer)
                    .with("limit", limit.min(100))
                    .with_some("starting_after", after);
                self.client.get("/v1/invoices", &form).await?
            }
        };
        let last = invoices.data.last().filter(|_| invoices.has_more);
        let until = last.map_or(0, |invoice| micros(invoice.created));
        let next = last.map(|invoice| format!("{}.{}", micros(invoice.created), invoice.id));
        let shown = |invoice: &Invoice| invoice.status.as_deref().is_some_and(|status| status != "draft");
        let mut data: Vec<Paid> = invoices.data.into_iter().filter(shown).map(of_invoice).collect();
        data.extend(packs(&account).filter(|pack| (until..before).contains(&pack.created_at)));
        data.sort_by(|left, right| right.created_at.cmp(&left.created_at).then(right.id.cmp(&left.id)));
        Ok(HistoryPage { data, next })
    }
}

fn of_invoice(invoice: Invoice) -> Paid {
    let paid = invoice.status.as_deref() == Some("paid");
    Paid {
        amount: if paid { invoice.amount_paid } else { invoice.amount_due },
        id: invoice.id,
        invoice: true,
        number: invoice.number,
        status: invoice.status.unwrap_or_default(),
        currency: invoice.currency,
        created_at: micros(invoice.created),
        hosted_url: invoice.hosted_invoice_url,
        pdf_url: invoice.invoice_pdf,
    }
}

fn packs(account: &BillingAccount) -> impl Iterator<Item = Paid> {
    account.purchases.iter().filter(|purchase| purchase.kind == PurchaseKind::Pack).map(|purchase| Paid {
        id: purchase.id.clone(),
        invoice: false,
        number: None,
        status: match (purchase.frozen, purchase.reversed) {
            (true, _) => "disputed",
            (false, 0) => "paid",
            (false, _) => "refunded",
        }
        .to_owned(),
        amount: purchase.amount,
        currency: purchase.currency.clone(),
        created_at: purchase.created_at,
        hosted_url: None,
        pdf_url: None,
    })
}
