//! Stack Auth, as far as a service that trusts it sees it: the key set, access tokens in its shape, and webhooks as Svix
//! sends them.

mod keys;
mod server;
mod webhooks;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use self::keys::{Audience, Ring};
pub use self::server::{StackAuth, bind};
pub use self::webhooks::{Message, sign};

/// How long a token lasts.
pub const TOKEN_S: i64 = 600;

/// How it starts.
#[derive(Debug, Clone)]
pub struct Options {
    pub project: String,
}

impl Default for Options {
    fn default() -> Options {
        Options { project: "11111111-2222-4333-8444-555555555555".to_owned() }
    }
}

/// A user as tokens tell of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Person {
    pub id: String,
    pub name: Option<String>,
    pub email: Option<String>,
    pub email_verified: bool,
    pub anonymous: bool,
    /// Whoever is anonymous is restricted, too.
    pub restricted: bool,
}

impl Person {
    /// With a verified address.
    pub fn new(id: &str, email: &str) -> Person {
        Person { id: id.to_owned(), email: Some(email.to_owned()), email_verified: true, ..Person::default() }
    }

    fn audience(&self) -> Audience {
        match (self.anonymous, self.restricted) {
            (true, _) => Audience::Anonymous,
            (false, true) => Audience::Restricted,
            (false, false) => Audience::Normal,
        }
    }
}

/// What a token says and how it is signed; each part may be made wrong.
#[derive(Debug, Clone)]
pub struct Draft {
    pub header: Value,
    pub claims: Value,
    audience: Audience,
}

struct World {
    project: String,
    base: String,
    keys: Ring,
    down: bool,
    delay: Duration,
    asked: u64,
    endpoints: Vec<(String, String)>,
    sent: u64,
}

/// The handle by which a test does what the installation's people do. Cheap to clone.
#[derive(Clone)]
pub struct Control(Arc<Mutex<World>>);

impl std::fmt::Debug for Control {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Control").finish_non_exhaustive()
    }
}

impl Control {
    fn new(options: Options, base: String) -> Control {
        Control(Arc::new(Mutex::new(World {
            project: options.project,
            base,
            keys: Ring::new(),
            down: false,
            delay: Duration::ZERO,
            asked: 0,
            endpoints: Vec::new(),
            sent: 0,
        })))
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For `stack.base_url`.
    pub fn url(&self) -> String {
        self.world().base.clone()
    }

    /// For `stack.project_id`.
    pub fn project(&self) -> String {
        self.world().project.clone()
    }

    /// Access tokens as they would be issued now.
    pub fn token(&self, person: &Person) -> String {
        self.signed(&self.draft(person))
    }

    /// The same, to be changed before it is signed.
    pub fn draft(&self, person: &Person) -> Draft {
        let world = self.world();
        let audience = person.audience();
        let (now, id) = (now_s(), &world.project);
        let mut claims = json!({
            "sub": person.id,
            "iss": format!("{}/api/v1/projects{}/{id}", world.base, audience.path()),
            "aud": format!("{id}{}", audience.suffix()),
            "iat": now,
            "exp": now + TOKEN_S,
            "project_id": id,
            "branch_id": "main",
            "refresh_token_id": "99999999-8888-4777-8666-555555555555",
            "role": "authenticated",
            "email_verified": person.email_verified,
            "selected_team_id": null,
            "signed_up_at": now - 60,
            "is_anonymous": person.anonymous,
            "is_restricted": person.restricted || person.anonymous,
            "restricted_reason": null,
            "requires_totp_mfa": false,
        });
        for (name, value) in [("name", &person.name), ("email", &person.email)] {
            if let Some(value) = value {
                claims[name] = value.as_str().into();
            }
        }
        if audience == Audience::Restricted {
            claims["restricted_reason"] = json!({"type": "email_not_verified"});
        }
        Draft { header: json!({"alg": "ES256", "kid": world.keys.signing(audience)}), claims, audience }
    }

    /// Signed by the key that the audience signs with now, whatever the header says.
    pub fn signed(&self, draft: &Draft) -> String {
        self.world().keys.sign(draft.audience, &draft.header, &draft.claims)
    }

    /// The second key of each audience signs from now on, and the first is replaced by a new one.
    pub fn rotate(&self) {
        self.world().keys.rotate();
    }

    /// All keys are replaced at once.
    pub fn replace_keys(&self) {
        self.world().keys = Ring::new();
    }

    /// Whether questions are answered with 503.
    pub fn set_down(&self, down: bool) {
        self.world().down = down;
    }

    /// Every answer takes so long.
    pub fn set_delay(&self, delay: Duration) {
        self.world().delay = delay;
    }

    /// How often somebody asked for the keys.
    pub fn asked(&self) -> u64 {
        self.world().asked
    }

    /// Where webhooks go, and the secret that signs them (`whsec_…`).
    pub fn endpoint(&self, url: &str, secret: &str) {
        self.world().endpoints.push((url.to_owned(), secret.to_owned()));
    }

    /// A message about a user, with an id of its own.
    pub fn message(&self, event: &str, person: &Person) -> Message {
        let data = match event {
            "user.deleted" => json!({"id": person.id, "teams": []}),
            _ => json!({
                "id": person.id,
                "primary_email": person.email,
                "primary_email_verified": person.email_verified,
                "primary_email_auth_enabled": true,
                "display_name": person.name,
                "signed_up_at_millis": (now_s() - 60) * 1_000,
                "is_anonymous": person.anonymous,
                "is_restricted": person.restricted || person.anonymous,
                "restricted_reason": null,
                "server_metadata": null,
                "client_metadata": null,
                "country_code": null,
                "risk_scores": {"sign_up": {"bot": 0, "free_trial_abuse": 0}},
            }),
        };
        let mut world = self.world();
        world.sent += 1;
        Message { id: keys::ksuid(now_s(), world.sent), body: json!({"type": event, "data": data}).to_string() }
    }

    /// Sends a message to every endpoint; the statuses that came back.
    pub async fn deliver(&self, message: &Message) -> Vec<Option<u16>> {
        let endpoints = self.world().endpoints.clone();
        webhooks::deliver(&endpoints, message).await
    }
}

fn now_s() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}
