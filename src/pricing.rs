//! Prices: what a request may cost at most, and what it cost.

use globset::GlobMatcher;

use crate::config;
use crate::credits::Credits;

/// Tokens as the upstream reported them, or as estimated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tokens {
    /// All input tokens, the cached ones included.
    pub input: u64,
    /// Of `input`, those read from the upstream's cache.
    pub cached: u64,
    pub output: u64,
    pub images: u64,
}

/// A route's price list, its globs compiled.
#[derive(Debug, Clone)]
pub struct PriceList {
    per_request: Credits,
    models: Vec<(GlobMatcher, config::ModelPrice)>,
    refuse_unknown: bool,
}

/// The price of one model on one route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Price {
    per_request: Credits,
    /// Credits per million tokens.
    input: Credits,
    cached: Credits,
    output: Credits,
    per_image: Credits,
    minimum: Credits,
    pub max_output_tokens: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum PriceError {
    #[error("`{0}` is not a valid model glob")]
    Glob(String),
}

impl PriceList {
    pub fn new(settings: &config::Price) -> Result<PriceList, PriceError> {
        let compile = |model: &config::ModelPrice| {
            // Some upstreams ignore case, and none has two models that differ by it alone.
            let glob = globset::GlobBuilder::new(&model.model).case_insensitive(true).build();
            let glob = glob.map_err(|_| PriceError::Glob(model.model.clone()))?;
            Ok((glob.compile_matcher(), model.clone()))
        };
        Ok(PriceList {
            per_request: settings.per_request,
            models: settings.models.iter().map(compile).collect::<Result<_, _>>()?,
            refuse_unknown: settings.unknown_model == config::UnknownModel::Refuse,
        })
    }

    /// The same for every request, whatever its body says: it can be reserved before the body is read.
    pub fn flat(&self) -> Option<Price> {
        (self.models.is_empty() && !self.refuse_unknown).then(|| Price::flat(self.per_request))
    }

    /// `None`: the list refuses models that it does not name.
    pub fn price(&self, model: Option<&str>) -> Option<Price> {
        let named = model.and_then(|model| self.models.iter().find(|(glob, _)| glob.is_match(model.trim())));
        match named {
            Some((_, price)) => Some(Price {
                per_request: self.per_request.saturating_add(price.per_request),
                input: price.input_per_million,
                cached: price.cached_input_per_million.unwrap_or(price.input_per_million),
                output: price.output_per_million,
                per_image: price.per_image,
                minimum: price.minimum,
                max_output_tokens: price.max_output_tokens,
            }),
            None if self.refuse_unknown => None,
            None => Some(Price::flat(self.per_request)),
        }
    }
}

impl Price {
    pub fn flat(per_request: Credits) -> Price {
        Price {
            per_request,
            input: Credits::ZERO,
            cached: Credits::ZERO,
            output: Credits::ZERO,
            per_image: Credits::ZERO,
            minimum: Credits::ZERO,
            max_output_tokens: 16_384,
        }
    }

    /// Whether tokens or images cost anything.
    pub fn metered(&self) -> bool {
        [self.input, self.cached, self.output, self.per_image].iter().any(|price| !price.is_zero())
    }

    /// What these tokens cost: exact to the micro-credit, rounded up once; more than everything is everything.
    pub fn cost(&self, tokens: Tokens) -> Credits {
        let cached = tokens.cached.min(tokens.input);
        let part = |count: u64, price: Credits| i128::from(count).saturating_mul(i128::from(price.micro()));
        let per_million = part(tokens.input - cached, self.input)
            .saturating_add(part(cached, self.cached))
            .saturating_add(part(tokens.output, self.output));
        let metered = per_million.saturating_add(999_999) / 1_000_000;
        let sum = i128::from(self.per_request.micro())
            .saturating_add(metered)
            .saturating_add(part(tokens.images, self.per_image));
        Credits::saturating_from_micro(sum).max(self.minimum)
    }

    /// The most that a request with this input and this output limit can cost. Cached tokens may turn out dearer than
    /// fresh ones where a list says so.
    pub fn upper_bound(&self, tokens: Tokens) -> Credits {
        let cached = if self.cached > self.input { tokens.input } else { 0 };
        self.cost(Tokens { cached, ..tokens })
    }

    /// The largest output limit whose upper bound `credits` pays, with the input as given; `None` when not even one
    /// token's is paid.
    pub fn affordable_output(&self, credits: Credits, tokens: Tokens) -> Option<u64> {
        if self.upper_bound(Tokens { output: 1, ..tokens }) > credits {
            return None;
        }
        if self.output.is_zero() {
            return Some(u64::MAX);
        }
        let (mut pays, mut too_much) = (1_u64, 1_u64 << 53);
        while too_much - pays > 1 {
            let middle = pays + (too_much - pays) / 2;
            if self.upper_bound(Tokens { output: middle, ..tokens }) <= credits {
                pays = middle;
            } else {
                too_much = middle;
            }
        }
        Some(pays)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list() -> PriceList {
        PriceList::new(&config::Price {
            per_request: Credits::ZERO,
            models: vec![config::ModelPrice {
                model: "gpt-4*".into(),
                input_per_million: Credits::whole(2),
                cached_input_per_million: Some(Credits::whole(1)),
                output_per_million: Credits::whole(8),
                minimum: "0.001".parse().unwrap(),
                ..config::ModelPrice::default()
            }],
            unknown_model: config::UnknownModel::Refuse,
        })
        .unwrap()
    }

    #[test]
    fn costs_by_token_rounded_up_once() {
        let price = list().price(Some("gpt-4o")).unwrap();
        let tokens = Tokens { input: 1_000, cached: 400, output: 501, images: 0 };
        // 600 * 2 + 400 * 1 + 501 * 8 = 5,608 micro-credits.
        assert_eq!(price.cost(tokens).micro(), 5_608);
        assert_eq!(price.cost(Tokens::default()).micro(), 1_000, "the minimum");
        assert_eq!(price.cost(Tokens { output: u64::MAX, ..tokens }), Credits::MAX);
    }

    #[test]
    fn another_spelling_of_a_model_costs_the_same() {
        let price = list().price(Some("gpt-4o"));
        assert_eq!(list().price(Some("GPT-4o")), price);
        assert_eq!(list().price(Some(" gpt-4o ")), price);
    }

    #[test]
    fn unknown_models_are_refused_where_the_list_says_so() {
        assert_eq!(list().price(Some("claude")), None);
        assert_eq!(list().price(None), None);
        let flat = PriceList::new(&config::Price::default()).unwrap();
        assert_eq!(
            flat.price(Some("any")).unwrap().cost(Tokens { output: 9_999, ..Tokens::default() }),
            Credits::whole(1)
        );
    }

    #[test]
    fn the_affordable_output_is_the_largest() {
        let price = list().price(Some("gpt-4o")).unwrap();
        let input = Tokens { input: 1_000, ..Tokens::default() };
        let credits: Credits = "0.01".parse().unwrap();
        let limit = price.affordable_output(credits, input).unwrap();
        assert!(price.upper_bound(Tokens { output: limit, ..input }) <= credits);
        assert!(price.upper_bound(Tokens { output: limit + 1, ..input }) > credits);
        assert_eq!(price.affordable_output("0.002".parse().unwrap(), input), None);
    }
}
