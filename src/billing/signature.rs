//! Whether a webhook is Stripe's: `Stripe-Signature: t=<unix>,v1=<hex>[,v1=<hex>…]` over the bytes as they came.
//!
//! While a secret is replaced Stripe signs with the old one and the new, so any signature under any of our secrets counts.

use ring::hmac;

use crate::config::Secret;

/// Longer headers are not Stripe's.
const MAX_HEADER_BYTES: usize = 4_096;
/// Signatures looked at.
const MAX_SIGNATURES: usize = 16;
/// Bytes of an HMAC-SHA256.
const DIGEST_BYTES: usize = 32;

/// Why a webhook is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    #[error("the Stripe-Signature header is missing or cannot be read")]
    Malformed,
    #[error("the signature is not by a secret of this endpoint")]
    Wrong,
    #[error("the signature is too old, or from the future")]
    Stale,
}

impl SignatureError {
    /// A label of the metric.
    pub fn name(self) -> &'static str {
        match self {
            SignatureError::Malformed => "malformed",
            SignatureError::Wrong => "wrong",
            SignatureError::Stale => "stale",
        }
    }
}

/// The secrets of the endpoint, ready to verify with.
pub struct Verifier {
    keys: Vec<hmac::Key>,
    tolerance_s: u64,
}

impl std::fmt::Debug for Verifier {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "Verifier({} secrets)", self.keys.len())
    }
}

impl Verifier {
    pub fn new(secrets: &[Secret], tolerance_ms: u64) -> Verifier {
        // The whole text is the key, `whsec_` included.
        let key = |secret: &Secret| hmac::Key::new(hmac::HMAC_SHA256, secret.reveal().as_bytes());
        Verifier { keys: secrets.iter().map(key).collect(), tolerance_s: tolerance_ms.div_ceil(1_000) }
    }

    /// # Errors
    /// When no signature of the header is by one of the secrets, or it is not of about now (`now_s`, Unix seconds).
    pub fn verify(&self, header: &str, body: &[u8], now_s: u64) -> Result<(), SignatureError> {
        let signed = Signed::parse(header)?;
        // The time as it is written: another writing of the same number is another message.
        let message = [signed.time.as_bytes(), b".", body].concat();
        let by_us = signed.digests.iter().any(|digest| {
            // Constant time: see ring.
            self.keys.iter().any(|key| hmac::verify(key, &message, digest).is_ok())
        });
        if !by_us {
            return Err(SignatureError::Wrong);
        }
        let at: u64 = signed.time.parse().map_err(|_| SignatureError::Malformed)?;
        if now_s.abs_diff(at) > self.tolerance_s { Err(SignatureError::Stale) } else { Ok(()) }
    }
}

struct Signed<'a> {
    time: &'a str,
    digests: Vec<[u8; DIGEST_BYTES]>,
}

impl<'a> Signed<'a> {
    fn parse(header: &'a str) -> Result<Signed<'a>, SignatureError> {
        if header.len() > MAX_HEADER_BYTES {
            return Err(SignatureError::Malformed);
        }
        let (mut time, mut digests) = (None, Vec::new());
        for (name, value) in header.split(',').filter_map(|part| part.trim().split_once('=')) {
            match name {
                "t" if time.is_some() => return Err(SignatureError::Malformed),
                "t" => time = Some(value),
                // What is no digest cannot match; Stripe's test mode adds `v0` of its own.
                "v1" if digests.len() < MAX_SIGNATURES => digests.extend(unhex(value)),
                _ => {}
            }
        }
        let time = time.filter(|time| !time.is_empty() && time.bytes().all(|byte| byte.is_ascii_digit()));
        match time {
            Some(time) if !digests.is_empty() => Ok(Signed { time, digests }),
            _ => Err(SignatureError::Malformed),
        }
    }
}

fn unhex(text: &str) -> Option<[u8; DIGEST_BYTES]> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let text = text.as_bytes();
    if text.len() != 2 * DIGEST_BYTES {
        return None;
    }
    let mut bytes = [0; DIGEST_BYTES];
    for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BODY: &[u8] = br#"{"id":"evt_1","object":"event"}"#;
    const NOW: u64 = 1_700_000_000;
    /// HMAC-SHA256 of `1700000000.` and the body above under `whsec_first` and `whsec_second`, made with Python's hmac.
    const FIRST: &str = "c2361ec286bc5c83ddb2616b639b0986e7ad0f277ddc263aac32ab27c095aa30";
    const SECOND: &str = "7eeb37aa4737513d1a1416501dc8ec1070ede73fbe57f9222f62ab76485a578c";

    fn verifier(secrets: &[&str]) -> Verifier {
        Verifier::new(&secrets.iter().map(|secret| Secret::new(*secret)).collect::<Vec<_>>(), 300_000)
    }

    #[test]
    fn stripes_own_are_accepted() {
        let verifier = verifier(&["whsec_first"]);
        for header in [
            format!("t={NOW},v1={FIRST}"),
            format!("t={NOW}, v1={}", FIRST.to_uppercase()),
            format!("v0=abc,t={NOW},v1={FIRST},v2=x"),
        ] {
            assert_eq!(verifier.verify(&header, BODY, NOW + 300), Ok(()), "{header}");
        }
    }

    /// failures 42: during a rotation events carry signatures by both secrets, in any order, and either may be ours.
    #[test]
    fn both_secrets_count_while_one_is_replaced() {
        let both = [format!("t={NOW},v1={FIRST},v1={SECOND}"), format!("t={NOW},v1={SECOND},v1={FIRST}")];
        for header in &both {
            for secrets in [&["whsec_first"][..], &["whsec_second"], &["whsec_other", "whsec_second"]] {
                assert_eq!(verifier(secrets).verify(header, BODY, NOW), Ok(()), "{secrets:?}");
            }
        }
        let new_only = format!("t={NOW},v1={SECOND}");
        assert_eq!(verifier(&["whsec_first", "whsec_second"]).verify(&new_only, BODY, NOW), Ok(()));
    }

    #[test]
    fn others_are_refused() {
        let verifier = verifier(&["whsec_first"]);
        let good = format!("t={NOW},v1={FIRST}");
        assert_eq!(verifier.verify(&good, b"{}", NOW), Err(SignatureError::Wrong));
        assert_eq!(verifier.verify(&good, BODY, NOW + 301), Err(SignatureError::Stale));
        assert_eq!(verifier.verify(&good, BODY, NOW - 301), Err(SignatureError::Stale));
        let wrong = format!("t={NOW},v1={SECOND}");
        assert_eq!(verifier.verify(&wrong, BODY, NOW), Err(SignatureError::Wrong));
        let moved = format!("t={},v1={FIRST}", NOW + 1);
        assert_eq!(verifier.verify(&moved, BODY, NOW), Err(SignatureError::Wrong));
        let zeros = format!("t=0{NOW},v1={FIRST}");
        assert_eq!(verifier.verify(&zeros, BODY, NOW), Err(SignatureError::Wrong));
        for header in
            ["", "t=1", "v1=aa", "t=,v1=", "t=-1,v1=aa", &format!("t=1,t=2,v1={FIRST}"), &"v1=,".repeat(2_000)]
        {
            assert_eq!(verifier.verify(header, BODY, NOW), Err(SignatureError::Malformed), "{header}");
        }
        assert_eq!(Verifier::new(&[], 300_000).verify(&good, BODY, NOW), Err(SignatureError::Wrong));
    }
}
