//! How a request ended, as a metric label: a closed set.

/// The `outcome` label of `faregate_requests_total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Answered by the upstream with a success or a redirect, to the end.
    Ok,
    /// Answered by the upstream with an error; free.
    UpstreamError,
    /// No upstream could be reached, or none answered properly.
    UpstreamUnavailable,
    /// The upstream took too long.
    UpstreamTimeout,
    /// The upstream broke off in the middle of an answer.
    UpstreamCut,
    /// The upstream does not accept our credentials.
    UpstreamRefusedKey,
    /// The client left before the end.
    ClientGone,
    /// The balance ran out in the middle of a stream.
    CreditsExhausted,
    /// Cut off by the drain deadline.
    Drained,
    InsufficientCredits,
    RateLimited,
    Shed,
    Unauthorized,
    Forbidden,
    NotFound,
    BadRequest,
    TooLarge,
    BodyTimeout,
    LedgerUnavailable,
    Internal,
}

impl Outcome {
    pub(super) const ALL: [Outcome; 20] = [
        Outcome::Ok,
        Outcome::UpstreamError,
        Outcome::UpstreamUnavailable,
        Outcome::UpstreamTimeout,
        Outcome::UpstreamCut,
        Outcome::UpstreamRefusedKey,
        Outcome::ClientGone,
        Outcome::CreditsExhausted,
        Outcome::Drained,
        Outcome::InsufficientCredits,
        Outcome::RateLimited,
        Outcome::Shed,
        Outcome::Unauthorized,
        Outcome::Forbidden,
        Outcome::NotFound,
        Outcome::BadRequest,
        Outcome::TooLarge,
        Outcome::BodyTimeout,
        Outcome::LedgerUnavailable,
        Outcome::Internal,
    ];

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Outcome::Ok => "ok",
            Outcome::UpstreamError => "upstream_error",
            Outcome::UpstreamUnavailable => "upstream_unavailable",
            Outcome::UpstreamTimeout => "upstream_timeout",
            Outcome::UpstreamCut => "upstream_cut",
            Outcome::UpstreamRefusedKey => "upstream_refused_key",
            Outcome::ClientGone => "client_gone",
            Outcome::CreditsExhausted => "credits_exhausted",
            Outcome::Drained => "drained",
            Outcome::InsufficientCredits => "insufficient_credits",
            Outcome::RateLimited => "rate_limited",
            Outcome::Shed => "shed",
            Outcome::Unauthorized => "unauthorized",
            Outcome::Forbidden => "forbidden",
            Outcome::NotFound => "not_found",
            Outcome::BadRequest => "bad_request",
            Outcome::TooLarge => "too_large",
            Outcome::BodyTimeout => "body_timeout",
            Outcome::LedgerUnavailable => "ledger_unavailable",
            Outcome::Internal => "internal",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_outcome_has_its_place() {
        for (index, outcome) in Outcome::ALL.iter().enumerate() {
            assert_eq!(*outcome as usize, index, "{}", outcome.as_str());
        }
    }
}
