//! Access tokens: what they say, before anybody has checked that it is true, and each way in which they can be wrong.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Deserializer};

use super::jwk::{Algorithm, PublicKey};

/// Longer ones are none. Stack Auth's are about a kilobyte.
pub(super) const MAX_TOKEN_BYTES: usize = 8 * 1024;
/// How far an issuer's clock may be ahead of ours.
const LEEWAY_S: i64 = 60;
/// The latest expiry that is a time at all: the year 9999.
const MAX_TIME_S: i64 = 253_402_300_799;

/// Why an access token is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenFault {
    #[error("it is not a signed JSON Web Token")]
    Malformed,
    #[error("it is too long")]
    TooLong,
    #[error("it is signed by an algorithm that is not accepted")]
    Algorithm,
    #[error("it names extensions that are not understood")]
    Critical,
    #[error("its issuer is not one of ours")]
    Issuer,
    #[error("it is signed by a key that its issuer does not publish")]
    UnknownKey,
    #[error("its signature is wrong")]
    Signature,
    #[error("it has expired")]
    Expired,
    #[error("it is not valid yet")]
    NotYet,
    #[error("it is for another audience")]
    Audience,
    #[error("its audience, its issuer and what it says about the user do not fit together")]
    Flags,
    #[error("it names no user, or one whose id cannot be used here")]
    Subject,
}

impl TokenFault {
    /// A label of the metric.
    pub fn name(self) -> &'static str {
        match self {
            TokenFault::Malformed => "malformed",
            TokenFault::TooLong => "too_long",
            TokenFault::Algorithm => "algorithm",
            TokenFault::Critical => "critical",
            TokenFault::Issuer => "issuer",
            TokenFault::UnknownKey => "unknown_key",
            TokenFault::Signature => "signature",
            TokenFault::Expired => "expired",
            TokenFault::NotYet => "not_yet",
            TokenFault::Audience => "audience",
            TokenFault::Flags => "flags",
            TokenFault::Subject => "subject",
        }
    }
}

/// A token taken apart; nothing in it is to be believed before [`Unverified::signed_by`].
#[derive(Debug)]
pub(super) struct Unverified<'a> {
    pub(super) algorithm: Algorithm,
    pub(super) kid: Option<String>,
    pub(super) claims: Claims,
    signed: &'a [u8],
    signature: Vec<u8>,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    #[serde(default)]
    kid: Option<String>,
    #[serde(default)]
    crit: Option<serde_json::Value>,
    /// An unencoded or encrypted payload would be read as something else.
    #[serde(default)]
    b64: Option<serde_json::Value>,
    #[serde(default)]
    enc: Option<serde_json::Value>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Claims {
    pub(super) iss: String,
    #[serde(default)]
    pub(super) sub: Option<String>,
    #[serde(default, deserialize_with = "one_or_many")]
    pub(super) aud: Vec<String>,
    #[serde(default, deserialize_with = "numeric_date")]
    pub(super) exp: Option<i64>,
    #[serde(default, deserialize_with = "numeric_date")]
    pub(super) nbf: Option<i64>,
    #[serde(default, deserialize_with = "numeric_date")]
    pub(super) iat: Option<i64>,
    #[serde(default)]
    pub(super) name: Option<String>,
    #[serde(default)]
    pub(super) email: Option<String>,
    #[serde(default)]
    pub(super) email_verified: Option<bool>,
    // Stack Auth's own.
    #[serde(default)]
    pub(super) project_id: Option<String>,
    #[serde(default)]
    pub(super) is_anonymous: Option<bool>,
    #[serde(default)]
    pub(super) is_restricted: Option<bool>,
}

impl<'a> Unverified<'a> {
    pub(super) fn read(token: &'a str) -> Result<Unverified<'a>, TokenFault> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(TokenFault::TooLong);
        }
        let (signed, signature) = token.rsplit_once('.').ok_or(TokenFault::Malformed)?;
        let (header, claims) = signed.split_once('.').ok_or(TokenFault::Malformed)?;
        let part = |text: &str| URL_SAFE_NO_PAD.decode(text).map_err(|_| TokenFault::Malformed);
        let header: Header = serde_json::from_slice(&part(header)?).map_err(|_| TokenFault::Malformed)?;
        let algorithm = Algorithm::named(&header.alg).ok_or(TokenFault::Algorithm)?;
        if header.crit.is_some() || header.b64.is_some() || header.enc.is_some() {
            // RFC 7515 4.1.11: "If any of the listed extension Header Parameters are not understood and supported by the
            // recipient, then the JWS is invalid."
            return Err(TokenFault::Critical);
        }
        let claims = serde_json::from_slice(&part(claims)?).map_err(|_| TokenFault::Malformed)?;
        Ok(Unverified { algorithm, kid: header.kid, claims, signed: signed.as_bytes(), signature: part(signature)? })
    }

    /// The key's own algorithm counts; that the header names the same one was to be expected.
    pub(super) fn signed_by(&self, key: &PublicKey) -> Result<(), TokenFault> {
        if key.algorithm != self.algorithm {
            return Err(TokenFault::Algorithm);
        }
        if key.signed(self.signed, &self.signature) { Ok(()) } else { Err(TokenFault::Signature) }
    }
}

impl Claims {
    /// Whether it counts now (`now_s`: Unix seconds). Answers until when.
    pub(super) fn in_time(&self, now_s: i64) -> Result<i64, TokenFault> {
        let until = self.exp.filter(|exp| *exp <= MAX_TIME_S).ok_or(TokenFault::Expired)?;
        if until <= now_s {
            return Err(TokenFault::Expired);
        }
        let latest = now_s.saturating_add(LEEWAY_S);
        let early = |time: Option<i64>| time.is_some_and(|time| time > latest);
        if early(self.nbf) || early(self.iat) { Err(TokenFault::NotYet) } else { Ok(until) }
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

/// RFC 7519 4.1.3: an array of strings, or a single one.
fn one_or_many<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    Ok(match OneOrMany::deserialize(deserializer)? {
        OneOrMany::One(one) => vec![one],
        OneOrMany::Many(many) => many,
    })
}

/// RFC 7519 2: seconds since the Unix epoch, which may have decimals; they are cut off.
fn numeric_date<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<i64>, D::Error> {
    let wrong = || serde::de::Error::custom("no time");
    let Some(number) = Option::<serde_json::Number>::deserialize(deserializer)? else { return Ok(None) };
    if let Some(whole) = number.as_i64() {
        return Ok(Some(whole));
    }
    let text = number.to_string();
    let whole = text.split('.').next().filter(|_| !text.contains(['e', 'E'])).ok_or_else(wrong)?;
    whole.parse().map(Some).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(header: &str, claims: &str) -> String {
        let part = |text: &str| URL_SAFE_NO_PAD.encode(text);
        format!("{}.{}.{}", part(header), part(claims), part("signature"))
    }

    fn fault(header: &str, claims: &str) -> TokenFault {
        Unverified::read(&token(header, claims)).unwrap_err()
    }

    const HEADER: &str = r#"{"alg":"ES256","kid":"k"}"#;

    #[test]
    fn what_is_no_token() {
        let good = token(HEADER, r#"{"iss":"i"}"#);
        assert!(Unverified::read(&good).is_ok());
        let long = format!("{good}{}", "x".repeat(MAX_TOKEN_BYTES));
        assert_eq!(Unverified::read(&long).unwrap_err(), TokenFault::TooLong);
        for garbage in ["", ".", "..", "a.b", "a.b.c", "a.b.c.d", &good.replace('.', "=."), &format!(" {good}")] {
            assert_eq!(Unverified::read(garbage).unwrap_err(), TokenFault::Malformed, "{garbage}");
        }
        for claims in ["[]", "{}", r#"{"iss":1}"#, r#"{"iss":"a","iss":"b"}"#, r#"{"iss":"a","exp":"soon"}"#] {
            assert_eq!(fault(HEADER, claims), TokenFault::Malformed, "{claims}");
        }
    }

    /// Neither no signature, nor one by a secret that everybody can read in the key set.
    #[test]
    fn only_public_keys_sign() {
        for algorithm in ["none", "None", "HS256", "es256", "PS256", ""] {
            let header = format!(r#"{{"alg":"{algorithm}","kid":"k"}}"#);
            assert_eq!(fault(&header, r#"{"iss":"i"}"#), TokenFault::Algorithm, "{algorithm}");
        }
        for extension in [r#""crit":["exp"]"#, r#""b64":false"#, r#""enc":"A128GCM""#] {
            let header = format!(r#"{{"alg":"ES256",{extension}}}"#);
            assert_eq!(fault(&header, r#"{"iss":"i"}"#), TokenFault::Critical, "{extension}");
        }
    }

    #[test]
    fn times_are_kept() {
        let claims = |text: &str| {
            let token = token(HEADER, &format!(r#"{{"iss":"i"{text}}}"#));
            Unverified::read(&token).unwrap().claims
        };
        assert_eq!(claims(r#","exp":1001"#).in_time(1_000), Ok(1_001));
        assert_eq!(claims(r#","exp":1001.9,"iat":1060"#).in_time(1_000), Ok(1_001));
        for expired in ["", r#","exp":1000"#, r#","exp":null"#, r#","exp":-1"#, r#","exp":999999999999999"#] {
            assert_eq!(claims(expired).in_time(1_000), Err(TokenFault::Expired), "{expired}");
        }
        for early in [r#","exp":2000,"nbf":1061"#, r#","exp":2000,"iat":1061"#] {
            assert_eq!(claims(early).in_time(1_000), Err(TokenFault::NotYet), "{early}");
        }
        assert_eq!(claims(r#","aud":["a","b"]"#).aud, ["a", "b"]);
    }
}
