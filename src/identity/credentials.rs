//! Which key a request carries, and for whom a service key acts.

use http::HeaderMap;
use http::header::AUTHORIZATION;

use super::principal::AuthError;
use crate::ledger::AccountId;
use crate::store::KeyKind;

/// Longer header values are no keys; they are not even looked at.
const MAX_KEY_BYTES: usize = 128;

/// A well-formed key, and for a service key the user it acts for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Credentials<'a> {
    pub(super) key: &'a str,
    pub(super) kind: KeyKind,
    /// Empty unless it is a service key.
    pub(super) user: &'a str,
}

impl<'a> Credentials<'a> {
    /// From `Authorization: Bearer` or `x-api-key`. Both are fine when they agree; anything ambiguous is refused, so that
    /// no proxy before us can see another key than we do.
    pub(super) fn read(headers: &'a HeaderMap) -> Result<Credentials<'a>, AuthError> {
        let bearer = single(headers, AUTHORIZATION.as_str())?.map(bearer).transpose()?.filter(|key| !key.is_empty());
        let header = single(headers, "x-api-key")?.filter(|key| !key.is_empty());
        let key = match (bearer, header) {
            (Some(one), Some(two)) if one != two => return Err(AuthError::Invalid),
            (Some(key), _) | (None, Some(key)) => key,
            (None, None) => return Err(AuthError::Missing),
        };
        let kind = super::keys::parse(key).ok_or(AuthError::Invalid)?;
        let user = if kind == KeyKind::Service { acting_for(headers)? } else { "" };
        Ok(Credentials { key, kind, user })
    }
}

fn single<'a>(headers: &'a HeaderMap, name: &str) -> Result<Option<&'a str>, AuthError> {
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() || value.len() > MAX_KEY_BYTES {
        return Err(AuthError::Invalid);
    }
    value.to_str().map(|text| Some(text.trim())).map_err(|_| AuthError::Invalid)
}

/// RFC 9110 11.1: the scheme's name is case-insensitive.
fn bearer(value: &str) -> Result<&str, AuthError> {
    let (scheme, rest) = value.split_once(' ').unwrap_or((value, ""));
    if scheme.eq_ignore_ascii_case("bearer") { Ok(rest.trim()) } else { Err(AuthError::Invalid) }
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
            assert_eq!(credentials, Credentials { key, kind: KeyKind::Live, user: "" });
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
            headers(&[("authorization", &bearer), ("x-api-key", two)]),
            headers(&[("authorization", basic)]),
            headers(&[("authorization", basic), ("x-api-key", one)]),
            headers(&[("x-api-key", &long)]),
            headers(&[("x-api-key", "sk-not-ours")]),
            headers(&[("authorization", one)]),
        ] {
            assert_eq!(Credentials::read(&bad), Err(AuthError::Invalid), "{bad:?}");
        }
        for none in [headers(&[]), headers(&[("x-api-key", "")]), headers(&[("authorization", "Bearer ")])] {
            assert_eq!(Credentials::read(&none), Err(AuthError::Missing));
        }
    }

    #[test]
    fn a_service_key_names_one_valid_user() {
        let key = NewKey::generate(KeyKind::Service).unwrap();
        let key = key.text.reveal();
        let with = |users: &[&str]| {
            let mut pairs = vec![("x-api-key", key)];
            pairs.extend(users.iter().map(|user| ("x-faregate-user", *user)));
            Credentials::read(&headers(&pairs)).map(|credentials| credentials.user.to_owned())
        };
        assert_eq!(with(&["user-1"]), Ok("user-1".to_owned()));
        for bad in [&[][..], &[""], &["a b"], &["../x"], &["a", "b"]] {
            assert_eq!(with(bad), Err(AuthError::NoUser), "{bad:?}");
        }
    }
}
