//! Mail addresses: whether two ways to write one reach the same mailbox.

use sha2::{Digest, Sha256};

/// Longer ones are none (RFC 5321 4.5.3.1: 64 and 255 octets, and the sign between them).
const MAX_BYTES: usize = 320;
/// Providers that deliver `a.b` and `ab` to one mailbox, and the domain that stands for theirs.
const WITHOUT_DOTS: [(&str, &str); 2] = [("gmail.com", "gmail.com"), ("googlemail.com", "gmail.com")];
/// Providers whose extra addresses are `name-anything`.
const WITH_DASHES: [&str; 4] = ["yahoo.com", "ymail.com", "rocketmail.com", "myyahoo.com"];

/// The one form of all the ways to write a mailbox: in lower case, without what follows a `+` (RFC 5233), and by the habits
/// of large providers. `None` for what is no address.
pub fn canonical(address: &str) -> Option<String> {
    let address = address.trim();
    if address.len() > MAX_BYTES || address.chars().any(|letter| letter.is_control() || letter.is_whitespace()) {
        return None;
    }
    let (local, domain) = address.rsplit_once('@')?;
    let domain = idna::domain_to_ascii(domain.trim_end_matches('.')).ok()?;
    let local = local.trim_matches('"').to_lowercase();
    let mut mailbox = local.split('+').next().unwrap_or_default().to_owned();
    let mut domain = domain.as_str();
    if let Some((_, known)) = WITHOUT_DOTS.iter().find(|(name, _)| *name == domain) {
        mailbox.retain(|letter| letter != '.');
        domain = known;
    }
    if WITH_DASHES.contains(&domain) {
        mailbox.truncate(mailbox.find('-').unwrap_or(mailbox.len()));
    }
    (!mailbox.is_empty() && domain.contains('.')).then(|| format!("{mailbox}@{domain}"))
}

/// How an address is remembered when its owner is gone: SHA-256 of its canonical form.
pub fn digest(address: &str) -> Option<[u8; 32]> {
    let mut hasher = Sha256::new();
    hasher.update(b"faregate:mail:");
    hasher.update(canonical(address)?.as_bytes());
    Some(hasher.finalize().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// failures 44: aliases of one address are one mailbox (pollinations#6215).
    #[test]
    fn aliases_are_one_mailbox() {
        for alias in [
            "ann.lee@gmail.com",
            "AnnLee@GMAIL.com",
            "a.n.n.l.e.e+shop@googlemail.com",
            " annlee+1+2@gmail.com. ",
            "\"annlee\"@gmail.com",
        ] {
            assert_eq!(canonical(alias).as_deref(), Some("annlee@gmail.com"), "{alias}");
        }
        assert_eq!(canonical("Bob-deals@yahoo.com"), canonical("bob@yahoo.com"));
        assert_eq!(canonical("x@BÜCHER.example"), canonical("x@xn--bcher-kva.example"));
        assert_eq!(digest("a+b@c.example"), digest("A@c.example"));
    }

    #[test]
    fn others_are_others() {
        let kept = ["ann.lee@example.com", "annlee@example.com", "ann-lee@example.com", "annlee@gmail.com"];
        let forms: std::collections::BTreeSet<_> = kept.iter().map(|mail| canonical(mail).unwrap()).collect();
        assert_eq!(forms.len(), kept.len());
        let long = format!("{}@example.com", "x".repeat(400));
        for none in ["", "ann", "@example.com", "ann@", "+x@example.com", "a b@example.com", "a\0@example.com", &long] {
            assert_eq!(canonical(none), None, "{none:?}");
        }
    }
}
