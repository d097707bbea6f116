//! What a card does when it is charged. Behaviour belongs to the card (its number or Stripe's test name), unless a
//! test sets it for the whole customer.

use super::error::Failure;

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Behaviour {
    #[default]
    Pays,
    /// With this decline code.
    Declines(String),
    /// The bank asks for a step that only the cardholder can do.
    NeedsAction,
    /// A slow method: it stays `processing` until told how it ended.
    Processing,
}

/// A card as a payment method knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Card {
    pub brand: &'static str,
    pub number: String,
    pub behaviour: Behaviour,
}

/// Stripe's test names and numbers that are known here.
const KNOWN: [(&str, &str, &str, &str); 10] = [
    ("pm_card_visa", "4242424242424242", "visa", "pays"),
    ("pm_card_visa_debit", "4000056655665556", "visa", "pays"),
    ("pm_card_mastercard", "5555555555554444", "mastercard", "pays"),
    ("pm_card_amex", "378282246310005", "amex", "pays"),
    ("pm_card_chargeDeclined", "4000000000000002", "visa", "declines:generic_decline"),
    ("pm_card_visa_chargeDeclined", "4000000000000002", "visa", "declines:generic_decline"),
    ("pm_card_chargeCustomerFail", "4000000000000341", "visa", "declines:generic_decline"),
    ("pm_card_visa_chargeDeclinedInsufficientFunds", "4000000000009995", "visa", "declines:insufficient_funds"),
    ("pm_card_authenticationRequired", "4000002500003155", "visa", "needs_action"),
    ("pm_usBankAccount_processing", "4000000000000077", "visa", "processing"),
];

impl Behaviour {
    /// `pays`, `declines`, `declines:<code>`, `needs_action`, `processing`; anything else pays.
    pub fn parse(text: &str) -> Behaviour {
        match text.split_once(':').unwrap_or((text, "generic_decline")) {
            ("declines", code) => Behaviour::Declines(code.to_owned()),
            ("needs_action", _) => Behaviour::NeedsAction,
            ("processing", _) => Behaviour::Processing,
            _ => Behaviour::Pays,
        }
    }

    pub fn text(&self) -> String {
        match self {
            Behaviour::Pays => "pays".to_owned(),
            Behaviour::Declines(code) => format!("declines:{code}"),
            Behaviour::NeedsAction => "needs_action".to_owned(),
            Behaviour::Processing => "processing".to_owned(),
        }
    }
}

impl Card {
    /// By Stripe's test name (`pm_card_visa`, `tok_visa`) or by number; an unknown number is a visa that pays.
    ///
    /// # Errors
    /// When it is neither.
    pub(super) fn named(name: &str) -> Result<Card, Failure> {
        let compact: String = name.chars().filter(|sign| !sign.is_whitespace()).collect();
        let as_method = compact.strip_prefix("tok_").map(|rest| format!("pm_card_{rest}"));
        let known = KNOWN.iter().find(|(method, number, ..)| {
            *method == compact || *number == compact || as_method.as_deref() == Some(*method)
        });
        if let Some((_, number, brand, behaviour)) = known {
            return Ok(Card { brand, number: (*number).to_owned(), behaviour: Behaviour::parse(behaviour) });
        }
        if (12..=19).contains(&compact.len()) && compact.bytes().all(|digit| digit.is_ascii_digit()) {
            return Ok(Card { brand: "visa", number: compact, behaviour: Behaviour::Pays });
        }
        Err(Failure::card("incorrect_number", None, "Your card number is incorrect."))
    }

    pub(super) fn last4(&self) -> &str {
        self.number.get(self.number.len().saturating_sub(4)..).unwrap_or_default()
    }

    /// The same for the same number, under whatever customer.
    pub(super) fn fingerprint(&self) -> String {
        use sha2::Digest;
        let digest = sha2::Sha256::digest(self.number.as_bytes());
        digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_is_known_by_name_token_and_number() {
        let by_name = Card::named("pm_card_chargeDeclined").unwrap();
        assert_eq!(by_name.behaviour, Behaviour::Declines("generic_decline".to_owned()));
        assert_eq!(Card::named("tok_visa").unwrap(), Card::named("4242 4242 4242 4242").unwrap());
        assert_eq!(Card::named("4111111111111111").unwrap().last4(), "1111");
        assert!(Card::named("nonsense").is_err());
        assert_eq!(Behaviour::parse(&by_name.behaviour.text()), by_name.behaviour);
    }
}
