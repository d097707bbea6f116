//! Which key or token a request carries, and for whom a service key acts.

use std::borrow::Cow;

use base64::Engine;
use base64::alphabet::{STANDARD, URL_SAFE};
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use http::HeaderMap;
use http::header::AUTHORIZATION;
use serde::Deserialize;

use super::principal::AuthError;
use super::token::{MAX_TOKEN_BYTES, TokenFault};
use crate::ledger::AccountId;
use crate::store::KeyKind;

/// Longer texts are no keys; they are not even looked at.
const MAX_KEY_BYTES: usize = 128;
/// The SDK's JSON carries the refresh token too, and may come in base64.
const MAX_HEADER_BYTES: usize = 2 * MAX_TOKEN_BYTES;
/// Stack Auth's headers, by its old name and its new one.
const TOKEN_HEADERS: [&str; 2] = ["x-stack-access-token", "x-hexclave-access-token"];
const JSON_HEADERS: [&str; 2] = ["x-stack-auth", "x-hexclave-auth"];
/// How the SDK begins the same JSON in base64, as a bearer.
const BEARER_PREFIXES: [&str; 2] = ["stackauth_", "hexclave_"];

/// What a caller shows.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Credentials<'a> {
    /// A well-formed key. `user`: for whom a service key acts; empty unless it is one.
    Key { key: Cow<'a, str>, kind: KeyKind, user: &'a str },
    /// Something that may be an access token.
    Token(Cow<'a, str>),
}

/// What the SDK puts into its JSON; the refresh token is not even read.
#[derive(Deserialize)]
struct Session {
    #[serde(default, rename = "accessToken")]
    access_token: Option<String>,
}

impl<'a> Credentials<'a> {
    /// From `Authorization: Bearer`, `x-api-key`, or what Stack Auth's SDK sends. Several are fine when they agree; anything
    /// ambiguous is refused, so that no proxy before us can see another caller than we do.
    pub(super) fn read(headers: &'a HeaderMap) -> Result<Credentials<'a>, AuthError> {
        let mut shown: Option<Cow<'a, str>> = None;
        let mut show = |text: Cow<'a, str>| match &shown {
            _ if text.is_empty() => Ok(()),
            Some(other) if *other != text => Err(AuthError::Ambiguous),
            _ => {
                shown = Some(text);
                Ok(())
            }
        };
        if let Some(value) = single(headers, AUTHORIZATION.as_str())? {
            show(from_bearer(bearer(value)?)?)?;
        }
        if let Some(key) = single(headers, "x-api-key")? {
            show(key.into())?;
        }
        for name in TOKEN_HEADERS {
            if let Some(token) = single(headers, name)? {
                show(token.into())?;
            }
        }
        for name in JSON_HEADERS {
            if let Some(text) = single(headers, name)?.filter(|text| !text.is_empty()) {
                show(from_session(text.as_bytes())?.into())?;
            }
        }
        let shown = shown.ok_or(AuthError::Missing)?;
        // A key has no dots, a token has two.
        if shown.contains('.') {
            return Ok(Credentials::Token(shown));
        }
        if shown.len() > MAX_KEY_BYTES {
            return Err(AuthError::Invalid);
        }
        let kind = super::keys::parse(&shown).ok_or(AuthError::Invalid)?;
        let user = if kind == KeyKind::Service { acting_for(headers)? } else { "" };
        Ok(Credentials::Key { key: shown, kind, user })
    }
}

fn single<'a>(headers: &'a HeaderMap, name: &str) -> Result<Option<&'a str>, AuthError> {
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() || value.len() > MAX_HEADER_BYTES {
        return Err(AuthError::Invalid);
    }
    value.to_str().map(|text| Some(text.trim())).map_err(|_| AuthError::Invalid)
}

/// RFC 9110 11.1: the scheme's name is case-insensitive.
fn bearer(value: &str) -> Result<&str, AuthError> {
    let (scheme, rest) = value.split_once(' ').unwrap_or((value, ""));
    if scheme.eq_ignore_ascii_case("bearer") { Ok(rest.trim()) } else { Err(AuthError::Invalid) }
}

fn from_bearer(text: &str) -> Result<Cow<'_, str>, AuthError> {
    let Some(encoded) = BEARER_PREFIXES.iter().find_map(|prefix| text.strip_prefix(prefix)) else {
        return Ok(text.into());
    };
    let lenient = GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    let alphabet = if encoded.contains(['-', '_']) { &URL_SAFE } else { &STANDARD };
    let decoded = GeneralPurpose::new(alphabet, lenient).decode(encoded);
    from_session(&decoded.map_err(|_| AuthError::Token(TokenFault::Malformed))?).map(Cow::Owned)
}

/// The access token; empty where the session has none.
fn from_session(json: &[u8]) -> Result<String, AuthError> {
    let session: Session = serde_json::from_slice(json).map_err(|_| AuthError::Token(TokenFault::Malformed))?;
    Ok(session.access_token.unwrap_or_default())
}

fn acting_for(headers: &HeaderMap) -> Result<&str, AuthError> {
    let mut values = headers.get_all("x-faregate-user").iter();
    let (Some(value), None) = (values.next(), values.next()) else { return Err(AuthError::NoUser) };
    let user = value.to_str().map_err(|_| AuthError::NoUser)?;
    if AccountId::is_valid(user) { Ok(user) } else { Err(AuthError::NoUser) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::keys::NewKey;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn a_key_comes_in_either_header_or_the_same_in_both() {
        let key = NewKey::generate(KeyKind::Live).unwrap();
        let key = key.text.reveal();
        let bearer = format!("Bearer {key}");
        let lower = format!("bearer  {key} ");
        for good in [
            headers(&[("authorization", &bearer)]),
            headers(&[("authorization", &lower)]),
            headers(&[("x-api-key", key)]),
            headers(&[("x-api-key", key), ("authorization", &bearer)]),
            headers(&[("x-api-key", ""), ("authorization", &bearer)]),
            headers(&[("x-api-key", key), ("x-faregate-user", "not a/valid id")]),
        ] {
            let credentials = Credentials::read(&good).unwrap();
            assert_eq!(credentials, Credentials::Key { key: key.into(), kind: KeyKind::Live, user: "" });
        }
    }

    #[test]
    fn what_is_ambiguous_or_no_key_is_refused() {
        let (one, two) = (NewKey::generate(KeyKind::Live).unwrap(), NewKey::generate(KeyKind::Live).unwrap());
        let (one, two) = (one.text.reveal(), two.text.reveal());
        let bearer = format!("Bearer {one}");
        let basic = "Basic dXNlcjpwYXNz";
        let long = "x".repeat(5_000);
        for bad in [
            headers(&[("x-api-key", one), ("x-api-key", one)]),
            headers(&[("authorization", &bearer), ("authorization", &bearer)]),
            headers(&[("authorization", basic)]),
            headers(&[("authorization", basic), ("x-api-key", one)]),
            headers(&[("x-api-key", &long)]),
            headers(&[("x-api-key", "sk-not-ours")]),
            headers(&[("authorization", one)]),
        ] {
            assert_eq!(Credentials::read(&bad), Err(AuthError::Invalid), "{bad:?}");
        }
        let both = headers(&[("authorization", &bearer), ("x-api-key", two)]);
        assert_eq!(Credentials::read(&both), Err(AuthError::Ambiguous));
        for none in [headers(&[]), headers(&[("x-api-key", "")]), headers(&[("authorization", "Bearer ")])] {
            assert_eq!(Credentials::read(&none), Err(AuthError::Missing));
        }
    }

    /// Every form in which Stack Auth's SDK sends an access token, alone and agreeing with others.
    #[test]
    fn tokens_come_in_every_form_of_the_sdk() {
        let token = "eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJ1In0.c2ln";
        let bearer = format!("Bearer {token}");
        let json = format!(r#"{{"accessToken":"{token}","refreshToken":"r"}}"#);
        let padded = base64::engine::general_purpose::STANDARD.encode(&json);
        let url_safe = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(&json);
        let (old, new) = (format!("Bearer stackauth_{padded}"), format!("Bearer hexclave_{url_safe}"));
        for good in [
            headers(&[("authorization", &bearer)]),
            headers(&[("x-api-key", token)]),
            headers(&[("x-stack-access-token", token)]),
            headers(&[("x-hexclave-access-token", token)]),
            headers(&[("x-stack-auth", &json)]),
            headers(&[("authorization", &old)]),
            headers(&[("authorization", &new)]),
            headers(&[("authorization", &bearer), ("x-stack-access-token", token), ("x-stack-auth", &json)]),
            headers(&[("x-stack-auth", r#"{"accessToken":null}"#), ("x-stack-access-token", token)]),
        ] {
            assert_eq!(Credentials::read(&good), Ok(Credentials::Token(token.into())), "{good:?}");
        }
        let other = headers(&[("authorization", "Bearer a.b.c"), ("x-stack-access-token", token)]);
        assert_eq!(Credentials::read(&other), Err(AuthError::Ambiguous));
        let key = NewKey::generate(KeyKind::Live).unwrap();
        let both = headers(&[("x-api-key", key.text.reveal()), ("x-stack-auth", &json)]);
        assert_eq!(Credentials::read(&both), Err(AuthError::Ambiguous));
        for nobody in [r#"{"accessToken":null,"refreshToken":null}"#, "{}", r#"{"refreshToken":"r"}"#] {
            let sent = headers(&[("x-stack-auth", nobody)]);
            assert_eq!(Credentials::read(&sent), Err(AuthError::Missing), "{nobody}");
        }
        for garbage in ["[", "7", r#"{"accessToken":7}"#] {
            let sent = headers(&[("x-stack-auth", garbage)]);
            assert_eq!(Credentials::read(&sent), Err(AuthError::Token(TokenFault::Malformed)), "{garbage}");
        }
        let broken = headers(&[("authorization", "Bearer stackauth_%%%")]);
        assert_eq!(Credentials::read(&broken), Err(AuthError::Token(TokenFault::Malformed)));
    }

    #[test]
    fn a_service_key_names_one_valid_user() {
        let key = NewKey::generate(KeyKind::Service).unwrap();
        let key = key.text.reveal();
        let with = |users: &[&str]| {
            let mut pairs = vec![("x-api-key", key)];
            pairs.extend(users.iter().map(|user| ("x-faregate-user", *user)));
            Credentials::read(&headers(&pairs)).map(|credentials| match credentials {
                Credentials::Key { user, .. } => user.to_owned(),
                Credentials::Token(_) => String::new(),
            })
        };
        assert_eq!(with(&["user-1"]), Ok("user-1".to_owned()));
        for bad in [&[][..], &[""], &["a b"], &["../x"], &["a", "b"]] {
            assert_eq!(with(bad), Err(AuthError::NoUser), "{bad:?}");
        }
    }
}
