//! What was paid becomes a purchase, once, and only as it was priced.

use super::draft::{DAY_US, Draft, Given};
use super::facts::{Failure, Payment};
use crate::billing::stripe::objects::{Invoice, Line, Subscription, micros};
use crate::credits::Credits;
use crate::ledger::Micros;
use crate::store::billing::{Effect, GrantUse, Purchase, PurchaseKind};

/// What the lines of an invoice bring.
#[derive(Default)]
struct Lines {
    /// A whole period: the plan, micro-credits a month, months, from, to.
    period: Option<(String, i64, u32, Micros, Micros)>,
    /// Signed micro-credits of the changes within a period, and the plan and time of the dearest of them.
    prorated: i128,
    dearest: Option<(i64, String, Micros, Micros)>,
}

impl Draft<'_> {
    pub(super) fn invoice(&mut self, invoice: &Invoice) -> Result<(), Failure> {
        let id = format!("inv:{}", invoice.id);
        match invoice.status.as_deref() {
            Some("paid") => {}
            // What was granted for it goes back.
            Some("void" | "uncollectible") => {
                for id in [id.clone(), format!("{id}:proration")] {
                    self.reverse_all(&id);
                }
                return Ok(());
            }
            _ => return Ok(()),
        }
        let Some(subscription) = invoice.subscription() else { return Ok(()) };
        if invoice.amount_remaining > 0 {
            return Err(Failure::Wrong(format!("{} is called paid with {} due", invoice.id, invoice.amount_remaining)));
        }
        let whole = match invoice.billing_reason.as_deref() {
            Some("subscription_create" | "subscription_cycle") => true,
            Some("subscription_update") => false,
            _ => return Ok(()),
        };
        let lines = self.lines(invoice)?;
        let purchase = |id: String, kind| Purchase {
            id,
            kind,
            name: String::new(),
            subscription: Some(subscription.to_owned()),
            payment_intent: invoice.payment_intent().map(str::to_owned),
            currency: invoice.currency.clone(),
            amount: invoice.amount_paid,
            reversed: 0,
            frozen: false,
            returned_at: None,
            credits: 0,
            first: None,
            months: 1,
            period_start: None,
            period_end: None,
            // When it was paid: what had lapsed before does not move on.
            created_at: micros(invoice.status_transitions.paid_at.unwrap_or(invoice.created)),
        };
        let prorated = earned(lines.prorated, invoice);
        let proration_id = if lines.period.is_some() { format!("{id}:proration") } else { id.clone() };
        if let Some((name, credits, months, start, end)) = lines.period {
            // A new interval in mid-period: what was not used up of the old one was credited in money.
            let deducted = if whole { 0 } else { prorated.min(0) };
            let period = (Some(start), Some(end));
            let base = purchase(id, PurchaseKind::Period);
            let first = (deducted < 0).then(|| (credits + deducted).max(0));
            self.buy(Purchase { name, credits, first, months, period_start: period.0, period_end: period.1, ..base });
        }
        if let Some((_, name, start, end)) = lines.dearest.filter(|_| prorated > 0) {
            let base = purchase(proration_id, PurchaseKind::Proration);
            let (period_start, period_end) = (Some(start), Some(end));
            self.buy(Purchase { name, credits: prorated, period_start, period_end, ..base });
        }
        Ok(())
    }

    fn lines(&self, invoice: &Invoice) -> Result<Lines, Failure> {
        let mut lines = Lines::default();
        for line in &invoice.lines.data {
            let Some(price) = line.price() else { continue };
            let wrong = |what: String| Failure::Wrong(format!("{}: {what}", invoice.id));
            let offer =
                self.catalog.plan_of_price(price).ok_or_else(|| wrong(format!("{price} is a price of no plan")))?;
            if offer.price.currency != invoice.currency {
                return Err(wrong(format!("{price} is not sold in {}", invoice.currency)));
            }
            let (start, end) = (micros(line.period.start), micros(line.period.end));
            let credits = i128::from(offer.plan.credits.micro());
            if line.proration() {
                let all = credits * i128::from(offer.months());
                lines.prorated += i128::from(line.amount) * all / i128::from(offer.price.amount);
                let dearest = lines.dearest.as_ref().is_none_or(|(amount, ..)| line.amount > *amount);
                if line.amount > 0 && dearest {
                    lines.dearest = Some((line.amount, offer.name.to_owned(), start, end));
                }
            } else if line.amount != 0 {
                let quantity = quantity(line);
                let expected = i128::from(offer.price.amount) * i128::from(quantity);
                if i128::from(line.amount) != expected {
                    return Err(wrong(format!("{price} costs {expected}, the invoice says {}", line.amount)));
                }
                let credits = bounded(credits * i128::from(quantity));
                lines.period = Some((offer.name.to_owned(), credits, offer.months(), start, end));
            }
            // A line of nothing is a trial's.
        }
        Ok(lines)
    }

    /// Notes a purchase and gives what it brings at once.
    fn buy(&mut self, purchase: Purchase) {
        if self.purchase(&purchase.id).is_some() {
            return;
        }
        self.put_purchase(purchase.clone());
        let (starts_at, ends_at) = self.month(&purchase, 0);
        let why = format!("{} {} {}", purchase.name, purchase.amount, purchase.currency);
        let (key, amount) = (purchase.id.clone(), purchase.month_credits(0));
        let used_as = GrantUse::Main;
        self.give(&purchase, Given { key, used_as, parent: None, month: 0, amount, starts_at, ends_at, why });
    }

    /// The trial's credits, once a user.
    pub(super) fn trial(&mut self, subscription: &Subscription, start: Micros, end: Micros) {
        let id = format!("trial:{}", subscription.id);
        let had_one = self.account.purchases.iter().any(|purchase| purchase.kind == PurchaseKind::Trial);
        let row = self.account.subscriptions.iter().find(|row| row.id == subscription.id).cloned();
        let Some(row) = row.filter(|row| !row.status.starts_with("incomplete")) else { return };
        let credits = self.catalog.plan(&row.plan).map_or(0, |plan| plan.trial_credits.micro());
        if had_one || credits == 0 {
            return;
        }
        let purchase = Purchase {
            id,
            kind: PurchaseKind::Trial,
            name: row.plan,
            subscription: Some(row.id),
            payment_intent: None,
            currency: row.currency,
            amount: 0,
            reversed: 0,
            frozen: false,
            returned_at: None,
            credits,
            first: None,
            months: 1,
            period_start: Some(start),
            period_end: Some(end),
            created_at: row.created_at,
        };
        self.buy(purchase);
    }

    pub(super) fn payment(&mut self, payment: &Payment) -> Result<(), Failure> {
        let intent = &payment.intent;
        if intent.metadata.kind.as_deref() == Some("pack") && intent.status == "succeeded" {
            self.pack(payment)?;
        }
        let refunded = intent.latest_charge.as_ref().map_or(0, |charge| charge.amount_refunded);
        let withdrawn: i64 = payment.disputes.iter().map(|dispute| dispute.withdrawn()).sum();
        let reversed = refunded.saturating_add(withdrawn).clamp(0, intent.amount.max(0));
        let frozen = payment.disputes.iter().any(|dispute| dispute.open());
        let returned_at = payment.disputes.iter().filter_map(|dispute| dispute.returned_at()).max().map(micros);
        let paid = |purchase: &&Purchase| purchase.payment_intent.as_ref() == Some(&intent.id);
        let changed: Vec<Purchase> = self.account.purchases.iter().filter(paid).cloned().collect();
        let given_up = std::mem::take(&mut self.given_up);
        for purchase in changed.into_iter().filter(|purchase| !given_up.contains(&purchase.id)) {
            if (purchase.reversed, purchase.frozen, purchase.returned_at) != (reversed, frozen, returned_at) {
                self.note("billing.reversal", format!("{}: {reversed} {}", purchase.id, purchase.currency));
                self.put_purchase(Purchase { reversed, frozen, returned_at, ..purchase });
            }
        }
        self.given_up = given_up;
        Ok(())
    }

    /// A pack is granted when its price was received, in its currency, by its customer: nothing is taken from what a
    /// client said.
    fn pack(&mut self, payment: &Payment) -> Result<(), Failure> {
        let intent = &payment.intent;
        let id = format!("pi:{}", intent.id);
        if self.purchase(&id).is_some() {
            return Ok(());
        }
        let wrong = |what: String| Failure::Wrong(format!("{}: {what}", intent.id));
        let price = intent.metadata.price.as_deref().unwrap_or_default();
        let no_pack = || wrong("it is for a price of no pack".to_owned());
        let (name, pack, amount, currency) = match &payment.expected {
            Some(expected) if expected.price != price || expected.user != self.account.user.id => {
                return Err(wrong("it is not what its checkout was for".to_owned()));
            }
            // The price as it was when it was begun, should it have changed since, or be no more.
            Some(expected) => {
                let pack = self.catalog.pack(&expected.name).ok_or_else(no_pack)?;
                (expected.name.clone(), pack, expected.amount, expected.currency.as_str())
            }
            None => {
                let offer = self.catalog.pack_of_price(price).ok_or_else(no_pack)?;
                (offer.name.to_owned(), offer.pack, offer.price.amount, offer.price.currency.as_str())
            }
        };
        if intent.amount_received != amount || intent.currency != currency {
            let (received, told) = (intent.amount_received, &intent.currency);
            return Err(wrong(format!("{amount} {currency} were due, {received} {told} came")));
        }
        let user = intent.metadata.user.as_deref();
        if user.is_some_and(|user| user != self.account.user.id.as_str()) {
            return Err(wrong("it names another user than its customer's".to_owned()));
        }
        let created_at = micros(intent.created);
        let days = u64::from(pack.expires_after_days);
        let credits = pack.credits.micro();
        let purchase = Purchase {
            id,
            kind: PurchaseKind::Pack,
            name,
            subscription: None,
            payment_intent: Some(intent.id.clone()),
            currency: intent.currency.clone(),
            amount: intent.amount_received,
            reversed: 0,
            frozen: false,
            returned_at: None,
            credits,
            first: None,
            months: 1,
            period_start: Some(created_at),
            period_end: (days > 0).then(|| created_at + days * DAY_US),
            created_at,
        };
        if let Some(topup) = intent.metadata.topup.as_deref().and_then(|id| id.parse().ok()) {
            self.push(Effect::TopupPaid(topup));
        }
        self.buy(purchase);
        Ok(())
    }

    fn reverse_all(&mut self, id: &str) {
        self.given_up.push(id.to_owned());
        let Some(purchase) = self.purchase(id).cloned() else { return };
        if purchase.reversed < purchase.amount {
            self.note("billing.reversal", format!("{}: the invoice was given up", purchase.id));
            self.put_purchase(Purchase { reversed: purchase.amount, ..purchase });
        }
    }
}

fn quantity(line: &Line) -> i64 {
    line.quantity.unwrap_or(1).max(1)
}

/// Credits of the changes within a period, as far as money was received for them: what a balance from an earlier
/// downgrade paid brings nothing again.
fn earned(prorated: i128, invoice: &Invoice) -> i64 {
    if prorated <= 0 {
        return -bounded(-prorated);
    }
    let (paid, total) = (i128::from(invoice.amount_paid.max(0)), i128::from(invoice.total));
    match total {
        total if total <= 0 => 0,
        total if paid >= total => bounded(prorated),
        total => bounded(prorated * paid / total),
    }
}

fn bounded(micro: i128) -> i64 {
    Credits::saturating_from_micro(micro).min(Credits::INPUT_LIMIT).micro()
}
