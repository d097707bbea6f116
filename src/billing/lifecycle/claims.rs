//! What went back to the payer is claimed back, and given again where the claim is withdrawn.
//!
//! A claim on a grant reaches what moved on from it. What had lapsed counts as returned; what was spent becomes debt.

use super::draft::{DAY_US, Draft, kind_of};
use crate::store::billing::{GrantUse, PaidGrant, PlannedAct, Purchase};

/// What was given back too late to be used lives so long.
const RESTORED_DAYS: u64 = 30;

impl Draft<'_> {
    pub(super) fn claims(&mut self) {
        let roots: Vec<PaidGrant> =
            self.account.grants.iter().filter(|grant| grant.used_as == GrantUse::Main).cloned().collect();
        for root in roots {
            let Some(purchase) = self.purchase_of(&root).cloned() else { continue };
            let claimed = share(root.amount, purchase.reversed, purchase.amount);
            if claimed != root.claimed {
                self.claim(&root, &purchase, claimed);
            }
        }
    }

    fn claim(&mut self, root: &PaidGrant, purchase: &Purchase, claimed: i64) {
        let family = self.family(root);
        // How much of it lapsed or moved on only the ledger knows, and it has not told yet.
        if family.iter().any(|member| self.is_unsettled(purchase, member)) {
            return self.due_soon();
        }
        let lapsed: i64 = family.iter().map(|member| member.stored.lapsed).sum();
        let target = (claimed - lapsed).max(0);
        let serial = root.serial + 1;
        let taken = if claimed > root.claimed {
            // What lapsed since something was taken does not give that back.
            root.taken + self.take(&family, (target - root.taken).max(0), serial)
        } else {
            let back = (root.taken - target).min(root.claimed - claimed).max(0);
            self.give_back(root, purchase, &family, back, serial);
            root.taken - back
        };
        // As it stands after what was taken from it.
        let root = self.account.grants.iter().find(|grant| grant.key == root.key).unwrap_or(root).clone();
        self.put_grant(PaidGrant { claimed, taken, serial, ..root });
    }

    /// The grant and what came of it, the latest first.
    fn family(&self, root: &PaidGrant) -> Vec<PaidGrant> {
        let mut keys = vec![root.key.clone()];
        let mut family = vec![root.clone()];
        // Made in this order: a child comes after its parent.
        for grant in &self.account.grants {
            if grant.parent.as_ref().is_some_and(|parent| keys.contains(parent)) {
                keys.push(grant.key.clone());
                family.push(grant.clone());
            }
        }
        family.reverse();
        family
    }

    fn is_unsettled(&self, purchase: &Purchase, member: &PaidGrant) -> bool {
        let fresh = self.is_fresh(&member.key);
        let moved = member.ended || member.used_as == GrantUse::Rollover;
        (moved && (fresh || member.stored.waiting || !member.stored.applied))
            || (self.has_lapsed(purchase, member) && member.stored.remaining > 0)
    }

    /// Takes so much, from the latest of the family first. Answers how much was there to be taken.
    fn take(&mut self, family: &[PaidGrant], amount: i64, serial: u32) -> i64 {
        let mut left = amount;
        for member in family {
            let moved: i64 = family
                .iter()
                .filter(|child| child.used_as == GrantUse::Rollover && child.parent.as_ref() == Some(&member.key))
                .map(|child| child.stored.amount)
                .sum();
            let root = member.used_as == GrantUse::Main;
            let granted = if member.used_as == GrantUse::Rollover { member.stored.amount } else { member.amount };
            // Of the first grant the rest, spent or not: its own bound is its amount.
            let before = if root { 0 } else { member.taken };
            let part = left.min(granted - member.stored.lapsed - moved - before).max(0);
            if part == 0 {
                continue;
            }
            let act = PlannedAct::Revoke { grant: member.key.clone(), amount: Some(part) };
            self.change(format!("claim:{}:{serial}", member.key), act, "the payment went back");
            if !root {
                self.put_grant(PaidGrant { taken: member.taken + part, ..member.clone() });
            }
            left -= part;
        }
        amount - left
    }

    /// For as long as what it was taken from would have stood; where that is past, for a while.
    fn give_back(&mut self, root: &PaidGrant, purchase: &Purchase, family: &[PaidGrant], amount: i64, serial: u32) {
        if amount <= 0 {
            return;
        }
        // By when the money came back, not by when that was told.
        let since = purchase.returned_at.unwrap_or(self.now);
        let stood = family.iter().filter_map(|member| member.ends_at).max();
        let ends_at = stood.map(|ends_at| if ends_at > since { ends_at } else { since + RESTORED_DAYS * DAY_US });
        let key = format!("restore:{}:{serial}", root.key);
        let restored = PaidGrant {
            key: key.clone(),
            used_as: GrantUse::Restored,
            parent: Some(root.key.clone()),
            amount,
            starts_at: Some(self.now),
            ends_at,
            ended: false,
            frozen: false,
            claimed: 0,
            taken: 0,
            serial: 0,
            stored: Default::default(),
            ..root.clone()
        };
        let expires_at = match self.expiry(purchase, &restored) {
            // Told of after its time: it still pays what was owed for it.
            expiry if expiry > 0 && expiry <= self.now => self.now + super::periods::SEAM_US,
            expiry => expiry,
        };
        self.change(key, PlannedAct::Grant { kind: kind_of(purchase.kind), amount, expires_at }, "the payment stands");
        self.put_grant(restored);
    }
}

/// The part of a grant that belongs to the part of the payment that went back, rounded down.
fn share(amount: i64, reversed: i64, paid: i64) -> i64 {
    if paid <= 0 || reversed <= 0 {
        return 0;
    }
    let part = i128::from(amount) * i128::from(reversed.min(paid)) / i128::from(paid);
    i64::try_from(part).unwrap_or(amount)
}
