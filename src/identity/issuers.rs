//! Whose tokens are taken, and what each must say. Stack Auth is the first; any other issuer with a key set is one by its
//! settings.

use std::sync::Arc;

use http::Uri;

use super::jwk::Algorithm;
use super::jwks::{KeySet, NoKey};
use super::token::{Claims, TokenFault, Unverified};
use crate::config::{self, Config, Unproven};
use crate::ledger::{AccountId, Micros};
use crate::store::sign_ups::Profile;
use crate::telemetry::Metrics;

/// What is kept of a name, and of a mail address, in characters.
pub(super) const MAX_NAME_CHARS: usize = 256;
pub(super) const MAX_MAIL_CHARS: usize = 320;

/// Who a token is for, once everything about it was found right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Verified {
    pub(super) user: AccountId,
    /// The issuer's name in the settings.
    pub(super) issuer: Arc<str>,
    pub(super) profile: Profile,
    pub(super) standing: Standing,
    /// Unix seconds.
    pub(super) until: i64,
}

/// What an issuer says of a user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    Proven,
    /// Anonymous, restricted, or with a mail address that is not verified.
    Unproven(Unproven),
}

/// Why nobody is known by a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NotVerified {
    Fault(TokenFault),
    /// The issuer's keys could not be had.
    Unavailable,
}

impl From<TokenFault> for NotVerified {
    fn from(fault: TokenFault) -> NotVerified {
        NotVerified::Fault(fault)
    }
}

pub(super) struct Issuers(Vec<Issuer>);

struct Issuer {
    name: Arc<str>,
    keys: KeySet,
    /// `None`: any that is safe.
    algorithm: Option<Algorithm>,
    voices: Vec<Voice>,
    project: Option<String>,
    prefix: String,
    require_verified_email: bool,
}

/// One of the names under which an issuer speaks.
struct Voice {
    iss: String,
    audiences: Vec<String>,
    /// What the flags must say, and what follows for such users; `None` where there are no flags.
    users: Option<(Users, Unproven)>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Users {
    Normal,
    Restricted,
    Anonymous,
}

impl Issuers {
    /// Asks nobody.
    pub(super) fn new(config: &Config, metrics: &Metrics) -> Issuers {
        let mut issuers = Vec::new();
        let key_set = |url: &str| {
            let url: Uri = url.parse().ok()?;
            let made = KeySet::new(url, &config.tokens, metrics.clone());
            made.inspect_err(|error| tracing::error!(%error, "TLS to issuers cannot be set up")).ok()
        };
        if !config.stack.project_id.is_empty()
            && let Some(keys) = key_set(&stack_jwks_url(&config.stack))
        {
            issuers.push(stack(&config.stack, keys));
        }
        for (name, settings) in &config.issuers {
            let Some(keys) = key_set(&settings.jwks_url) else { continue };
            issuers.push(Issuer {
                name: name.as_str().into(),
                keys,
                algorithm: None,
                voices: vec![Voice {
                    iss: settings.issuer.clone(),
                    audiences: settings.audiences.clone(),
                    users: None,
                }],
                project: None,
                prefix: settings.user_prefix.clone(),
                require_verified_email: settings.require_verified_email,
            });
        }
        Issuers(issuers)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether the token is genuine, ours, and in time.
    pub(super) async fn verify(&self, token: &str) -> Result<Verified, NotVerified> {
        let unverified = Unverified::read(token)?;
        let claims = &unverified.claims;
        let (issuer, voice) = self.speaking(&claims.iss).ok_or(TokenFault::Issuer)?;
        if issuer.algorithm.is_some_and(|algorithm| algorithm != unverified.algorithm) {
            return Err(TokenFault::Algorithm.into());
        }
        // Before the key is looked for: an old token is no reason to ask anybody.
        let until = claims.in_time(now_s())?;
        let key = issuer.keys.find(unverified.kid.as_deref()).await.map_err(|none| match none {
            NoKey::Unknown => NotVerified::Fault(TokenFault::UnknownKey),
            NoKey::Unavailable => NotVerified::Unavailable,
        })?;
        unverified.signed_by(&key)?;
        issuer.accept(voice, claims, until).map_err(NotVerified::Fault)
    }

    fn speaking(&self, iss: &str) -> Option<(&Issuer, &Voice)> {
        self.0.iter().find_map(|issuer| Some((issuer, issuer.voices.iter().find(|voice| voice.iss == iss)?)))
    }

    /// Asks for keys that grow old.
    pub(super) async fn keep_fresh(&self) {
        for issuer in &self.0 {
            issuer.keys.keep_fresh().await;
        }
    }
}

impl Issuer {
    fn accept(&self, voice: &Voice, claims: &Claims, until: i64) -> Result<Verified, TokenFault> {
        let ours = |audience: &String| voice.audiences.contains(audience);
        // A Stack Auth token is for one audience, whose suffix says which kind of user it is.
        let fits = match voice.users {
            Some(_) => claims.aud.len() == 1 && claims.aud.iter().all(ours),
            None => claims.aud.iter().any(ours),
        };
        if !fits || claims.project_id.as_ref().is_some_and(|id| self.project.as_ref().is_some_and(|ours| ours != id)) {
            return Err(TokenFault::Audience);
        }
        let standing = match voice.users {
            None => self.by_mail(claims),
            Some((users, policy)) => {
                let flags = (claims.is_restricted.unwrap_or(false), claims.is_anonymous.unwrap_or(false));
                let expected = match users {
                    Users::Normal => (false, false),
                    Users::Restricted => (true, false),
                    // Whoever is anonymous is restricted, too.
                    Users::Anonymous => (true, true),
                };
                if flags != expected {
                    return Err(TokenFault::Flags);
                }
                match (users, policy) {
                    (Users::Normal, _) => self.by_mail(claims),
                    (_, Unproven::Credits) => Standing::Proven,
                    (_, policy) => Standing::Unproven(policy),
                }
            }
        };
        let subject = claims.sub.as_deref().filter(|sub| !sub.is_empty()).ok_or(TokenFault::Subject)?;
        Ok(Verified {
            user: user_id(&self.prefix, subject).ok_or(TokenFault::Subject)?,
            issuer: self.name.clone(),
            profile: profile(claims),
            standing,
            until,
        })
    }

    fn by_mail(&self, claims: &Claims) -> Standing {
        if self.require_verified_email && claims.email_verified != Some(true) {
            return Standing::Unproven(Unproven::Nothing);
        }
        Standing::Proven
    }
}

/// Stack Auth: three kinds of users, told apart by issuer, audience and flags at once.
fn stack(settings: &config::Stack, keys: KeySet) -> Issuer {
    let (base, id) = (settings.base_url.trim_end_matches('/'), &settings.project_id);
    let voice = |kind: &str, suffix: &str, users, policy| Voice {
        iss: format!("{base}/api/v1/projects{kind}/{id}"),
        audiences: vec![format!("{id}{suffix}")],
        users: Some((users, policy)),
    };
    Issuer {
        name: "stack".into(),
        keys,
        algorithm: Some(Algorithm::Es256),
        voices: vec![
            voice("", "", Users::Normal, Unproven::Credits),
            voice("-restricted-users", ":restricted", Users::Restricted, settings.restricted),
            voice("-anonymous-users", ":anon", Users::Anonymous, settings.anonymous),
        ],
        project: Some(id.clone()),
        prefix: String::new(),
        require_verified_email: settings.require_verified_email,
    }
}

/// One question brings the keys of all three audiences.
fn stack_jwks_url(settings: &config::Stack) -> String {
    let (base, id) = (settings.base_url.trim_end_matches('/'), &settings.project_id);
    format!("{base}/api/v1/projects/{id}/.well-known/jwks.json?include_restricted=true&include_anonymous=true")
}

/// A user's id here. What an id may not contain (`|`, `/`, …), the `+` itself, and the `:` that ends a prefix are written as
/// `+` and two hexadecimal digits for each byte, so that two subjects never become one id, whoever their issuers are.
pub(super) fn user_id(prefix: &str, subject: &str) -> Option<AccountId> {
    let mut id = String::with_capacity(prefix.len() + subject.len());
    id.push_str(prefix);
    for byte in subject.bytes() {
        if byte.is_ascii_alphanumeric() || b"._@-".contains(&byte) {
            id.push(char::from(byte));
        } else {
            id.push_str(&format!("+{byte:02x}"));
        }
    }
    AccountId::parse(&id).ok()
}

fn profile(claims: &Claims) -> Profile {
    Profile {
        email: claims.email.as_deref().and_then(|mail| plain(mail, MAX_MAIL_CHARS)),
        name: claims.name.as_deref().and_then(|name| plain(name, MAX_NAME_CHARS)),
        whole: false,
        at: claims.iat.and_then(|at| Micros::try_from(at).ok()).unwrap_or(0).saturating_mul(1_000_000),
    }
}

/// A text that can be stored and shown: without control characters, and cut.
pub(super) fn plain(text: &str, max_chars: usize) -> Option<String> {
    let text: String = text.chars().filter(|letter| !letter.is_control()).take(max_chars).collect();
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

pub(super) fn now_s() -> i64 {
    jiff::Timestamp::now().as_second()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subjects_become_ids_one_to_one() {
        let id = |subject: &str| user_id("", subject).map(|id| id.to_string());
        assert_eq!(id("6f9b1c9e-1111-4222-8333-444455556666").as_deref(), Some("6f9b1c9e-1111-4222-8333-444455556666"));
        assert_eq!(id("auth0|5f7c").as_deref(), Some("auth0+7c5f7c"));
        assert_eq!(id("auth0+7c5f7c").as_deref(), Some("auth0+2b7c5f7c"));
        assert_eq!((id(""), id(&"x".repeat(129))), (None, None));
        assert_eq!(user_id("a:", "b").unwrap().as_str(), "a:b");
        assert_eq!(id("a:b").as_deref(), Some("a+3ab"), "not the user of another issuer");
    }

    #[test]
    fn names_are_made_storable() {
        assert_eq!(plain(" A\0nn\n ", 10).as_deref(), Some("Ann"));
        assert_eq!(plain("\u{7}", 10), None);
        assert_eq!(plain(&"é".repeat(20), 3).as_deref(), Some("ééé"));
    }
}
