//! Whether a webhook is the issuer's: Standard Webhooks, as Svix signs them. HMAC-SHA256 over `id.timestamp.body`, in
//! base64; while a secret is replaced any signature under any of our secrets counts.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::HeaderMap;
use ring::hmac;

use crate::config::Secret;

/// The three headers, by Svix's names and by the standard's.
const IDS: [&str; 2] = ["svix-id", "webhook-id"];
const TIMES: [&str; 2] = ["svix-timestamp", "webhook-timestamp"];
const SIGNATURES: [&str; 2] = ["svix-signature", "webhook-signature"];
/// Longer headers are not Svix's.
const MAX_HEADER_BYTES: usize = 4_096;
const MAX_ID_BYTES: usize = 256;
/// Signatures looked at.
const MAX_SIGNATURES: usize = 16;

/// Why a webhook is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SvixError {
    #[error("svix-id, svix-timestamp or svix-signature is missing or cannot be read")]
    Malformed,
    #[error("the signature is not by a secret of this endpoint")]
    Wrong,
    #[error("the signature is too old, or from the future")]
    Stale,
}

impl SvixError {
    /// A label of the metric.
    pub(crate) fn name(self) -> &'static str {
        match self {
            SvixError::Malformed => "malformed",
            SvixError::Wrong => "wrong",
            SvixError::Stale => "stale",
        }
    }
}

/// A message that is genuine.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Genuine<'a> {
    /// The same in every delivery.
    pub(crate) id: &'a str,
    /// When this delivery was sent, Unix seconds.
    pub(crate) sent_s: u64,
}

/// The secrets of the endpoint, ready to verify with.
pub(crate) struct Verifier {
    keys: Vec<hmac::Key>,
    tolerance_s: u64,
}

impl Verifier {
    pub(crate) fn new(secrets: &[Secret], tolerance_ms: u64) -> Verifier {
        let key = |bytes: Vec<u8>| hmac::Key::new(hmac::HMAC_SHA256, &bytes);
        Verifier {
            keys: secrets.iter().filter_map(decoded).map(key).collect(),
            tolerance_s: tolerance_ms.div_ceil(1_000),
        }
    }

    /// Without a secret nothing can be believed.
    pub(crate) fn is_set_up(&self) -> bool {
        !self.keys.is_empty()
    }

    /// # Errors
    /// When no signature is by one of the secrets, or it is not of about now (`now_s`, Unix seconds).
    pub(crate) fn verify<'a>(&self, headers: &'a HeaderMap, body: &[u8], now_s: u64) -> Result<Genuine<'a>, SvixError> {
        let id = single(headers, IDS)?;
        // It is part of the signed text, where a dot divides.
        let plain = !id.is_empty() && id.len() <= MAX_ID_BYTES && id.bytes().all(|byte| byte.is_ascii_graphic());
        let time = single(headers, TIMES)?;
        let digits = !time.is_empty() && time.len() <= 20 && time.bytes().all(|byte| byte.is_ascii_digit());
        if !plain || !digits {
            return Err(SvixError::Malformed);
        }
        let signatures = single(headers, SIGNATURES)?;
        let message = [id.as_bytes(), b".", time.as_bytes(), b".", body].concat();
        let mut shown = signatures.split(' ').filter_map(|part| part.trim().strip_prefix("v1,")).take(MAX_SIGNATURES);
        let by_us = shown.any(|text| {
            let digest = STANDARD.decode(text).unwrap_or_default();
            // Constant time: see ring.
            self.keys.iter().any(|key| hmac::verify(key, &message, &digest).is_ok())
        });
        if !by_us {
            return Err(SvixError::Wrong);
        }
        let sent_s: u64 = time.parse().map_err(|_| SvixError::Malformed)?;
        if now_s.abs_diff(sent_s) > self.tolerance_s { Err(SvixError::Stale) } else { Ok(Genuine { id, sent_s }) }
    }
}

/// The key in a secret of the form `whsec_<base64>`; `None` where it is none.
pub(crate) fn decoded(secret: &Secret) -> Option<Vec<u8>> {
    let text = secret.reveal().strip_prefix("whsec_")?;
    STANDARD.decode(text).ok().filter(|key| !key.is_empty())
}

/// A header that came once, by one of its names.
fn single<'a>(headers: &'a HeaderMap, names: [&str; 2]) -> Result<&'a str, SvixError> {
    let mut values = names.iter().flat_map(|name| headers.get_all(*name));
    let (Some(value), None) = (values.next(), values.next()) else { return Err(SvixError::Malformed) };
    value.to_str().ok().filter(|text| text.len() <= MAX_HEADER_BYTES).ok_or(SvixError::Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From the Standard Webhooks specification's own libraries.
    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    const ID: &str = "msg_p5jXN8AQM9LWM0D4loKWxJek";
    const TIME: u64 = 1_614_265_330;
    const BODY: &[u8] = br#"{"test": 2432232314}"#;
    const SIGNATURE: &str = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, value.parse().unwrap());
        }
        headers
    }

    fn verify(pairs: &[(&'static str, &str)], body: &[u8], now_s: u64) -> Result<String, SvixError> {
        let secrets = [Secret::new("whsec_b3RoZXI="), Secret::new(SECRET)];
        Verifier::new(&secrets, 300_000).verify(&headers(pairs), body, now_s).map(|genuine| genuine.id.to_owned())
    }

    #[test]
    fn svixs_own_are_accepted() {
        let time = TIME.to_string();
        let several = format!("v1,Ceo5qEr07ixe2NLpvHk3FH9bwy/WavXrAFQ/9tdO6mc= v2,x {SIGNATURE}");
        for signature in [SIGNATURE, &several] {
            let svix = [("svix-id", ID), ("svix-timestamp", time.as_str()), ("svix-signature", signature)];
            assert_eq!(verify(&svix, BODY, TIME + 300).as_deref(), Ok(ID));
            let standard = [("webhook-id", ID), ("webhook-timestamp", time.as_str()), ("webhook-signature", signature)];
            assert_eq!(verify(&standard, BODY, TIME - 300).as_deref(), Ok(ID));
        }
    }

    #[test]
    fn others_are_refused() {
        let time = TIME.to_string();
        let with = |id: &str, time: &str, signature: &str, body: &[u8], now_s| {
            verify(&[("svix-id", id), ("svix-timestamp", time), ("svix-signature", signature)], body, now_s)
        };
        assert_eq!(with(ID, &time, SIGNATURE, b"{}", TIME), Err(SvixError::Wrong));
        assert_eq!(with("msg_other", &time, SIGNATURE, BODY, TIME), Err(SvixError::Wrong));
        assert_eq!(with(ID, "1614265331", SIGNATURE, BODY, TIME), Err(SvixError::Wrong));
        assert_eq!(with(ID, &format!("0{time}"), SIGNATURE, BODY, TIME), Err(SvixError::Wrong));
        assert_eq!(with(ID, &time, &SIGNATURE.replace("v1", "v2"), BODY, TIME), Err(SvixError::Wrong));
        for now_s in [TIME - 301, TIME + 301] {
            assert_eq!(with(ID, &time, SIGNATURE, BODY, now_s), Err(SvixError::Stale));
        }
        for (id, time) in [("", time.as_str()), (ID, ""), (ID, "-1"), (ID, "soon"), ("a b", &time)] {
            assert_eq!(with(id, time, SIGNATURE, BODY, TIME), Err(SvixError::Malformed), "{id} {time}");
        }
        let twice = [("svix-id", ID), ("webhook-id", ID), ("svix-timestamp", &time), ("svix-signature", SIGNATURE)];
        assert_eq!(verify(&twice, BODY, TIME), Err(SvixError::Malformed), "which one was signed?");
        assert_eq!(verify(&[], BODY, TIME), Err(SvixError::Malformed));
        assert!(!Verifier::new(&[Secret::new("whsec_"), Secret::new("x")], 1).is_set_up());
    }
}
