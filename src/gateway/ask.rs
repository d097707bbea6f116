//! What a request is asked to pay before it rides.

use super::fare::Fare;
use super::meter::{Endpoint, Inspection};
use super::refusal::Refusal;
use super::route::Route;
use crate::credits::Credits;
use crate::identity::principal::SharedPrincipal;
use crate::ledger::hold::{self, Ask};
use crate::pricing::{Price, Tokens};

/// When a request is paid.
pub(super) enum Terms {
    /// It costs nothing, and is recorded.
    Free,
    /// The same whatever its body says: taken before the body is read.
    Early(Price),
    /// By what its body says.
    Late,
}

/// Whether the caller's key is for some models only.
pub(super) fn by_model(who: &SharedPrincipal) -> bool {
    who.scope.as_ref().is_some_and(|scope| scope.names_models())
}

/// Refuses what is no matter of payment, and is refused whether or not payment is enforced: what all users share at the
/// upstream, and a call that names no model through a key for some models only.
pub(super) fn permitted(endpoint: Endpoint, who: &SharedPrincipal) -> Result<(), Refusal> {
    match endpoint {
        Endpoint::Refused(why) => Err(why.into()),
        Endpoint::PerRequest | Endpoint::Unlisted if by_model(who) => Err(Refusal::ModelNotAllowed),
        _ => Ok(()),
    }
}

/// When a request that is [`permitted`] is paid, and whether its body and its answer are read for what they use.
pub(super) fn terms(route: &Route, endpoint: Endpoint, who: &SharedPrincipal) -> Result<(Terms, bool), Refusal> {
    let by_model = by_model(who);
    match endpoint {
        Endpoint::Refused(why) => Err(why.into()),
        Endpoint::Free => Ok((Terms::Free, false)),
        Endpoint::PerRequest | Endpoint::Unlisted => {
            let price = route.flat.ok_or(Refusal::Unpriced)?;
            Ok((Terms::Early(price), false))
        }
        _ => match route.flat {
            Some(price) if !route.settings.record_tokens && !by_model => Ok((Terms::Early(price), false)),
            // A limit of tokens wants to know how many, before anything is taken.
            Some(price) if who.limits.tokens_per_minute == 0 && !by_model => Ok((Terms::Early(price), true)),
            Some(_) | None => Ok((Terms::Late, true)),
        },
    }
}

pub(super) fn flat(price: Price, who: &SharedPrincipal) -> Ask {
    let amount = price.cost(Tokens::default());
    Ask { amount, floor: amount, tokens: 0, limits: who.limits }
}

/// The most that a request may cost; where the route says so, as much of it as the balance affords.
pub(super) fn metered(price: &Price, inspection: &Inspection, route: &Route, who: &SharedPrincipal) -> Ask {
    let upper = inspection.upper_tokens(price, None);
    let amount = price.upper_bound(upper);
    let clamps = route.settings.clamp && price.metered();
    let floor = if clamps { price.upper_bound(inspection.upper_tokens(price, Some(1))).min(amount) } else { amount };
    Ask { amount, floor, tokens: upper.input.saturating_add(upper.output), limits: who.limits }
}

/// The output limit that what is held pays for, where that is less than what was asked.
pub(super) fn clamp(fare: &Fare, ask: Ask, inspection: &Inspection) -> Result<Option<u64>, Refusal> {
    let Some(held) = fare.held().filter(|held| *held < ask.amount) else { return Ok(None) };
    match inspection.affordable_limit(&fare.price, held) {
        Some(limit) => Ok(Some(limit)),
        None => {
            let refusal = hold::Refusal::Insufficient { available: held, held: Credits::ZERO };
            Err(Refusal::Ledger { refusal, asked: ask.amount })
        }
    }
}
