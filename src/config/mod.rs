//! Settings: one small struct a concern, each with its defaults here and a word about each in `config/faregate.toml`.
//!
//! The built-in file is overridden by `--config FILE`, that by the environment, and the whole is validated before
//! anything starts. 0 means no limit where a limit is meant. Durations carry their unit in the name.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

pub use environment::CONFIG_FILE;
pub use load::{BUILT_IN, ConfigError};
pub use postgres_url::{PostgresTls, PostgresUrl};
pub use redis_url::{Address, RedisKind, RedisUrl};
use serde::{Deserialize, Serialize};

use crate::credits::Credits;
use crate::ledger::Limits;

/// Everything that can be set.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Data plane, credits API.
    pub listen: SocketAddr,
    /// `/metrics`, `/healthz`, `/readyz`, `/admin/v1`.
    pub admin_listen: SocketAddr,
    /// Bearer token of `/admin/v1`; made into the data directory when unset.
    pub admin_token: Option<Secret>,
    pub data_dir: PathBuf,
    /// Data-plane threads; 0: one per core.
    pub workers: usize,
    pub api: Api,
    pub ledger: Ledger,
    pub store: Store,
    /// The upstream of routes that name none.
    pub upstream: Upstream,
    pub upstreams: BTreeMap<String, Upstream>,
    pub routes: BTreeMap<String, Route>,
    pub prices: BTreeMap<String, Price>,
    pub plans: BTreeMap<String, Plan>,
    pub packs: BTreeMap<String, Pack>,
    pub stripe: Stripe,
    pub page: Page,
    pub notify: Notify,
    pub service_keys: ServiceKeys,
    pub tokens: Tokens,
    pub stack: Stack,
    pub issuers: BTreeMap<String, Issuer>,
    pub server: Server,
    pub tls: Tls,
    pub shed: Shed,
    pub audit: Audit,
    pub traces: Traces,
    pub metering: Metering,
    pub cors: Cors,
    pub enforcement: Enforcement,
    pub flags: BTreeMap<String, Flag>,
    pub experiments: BTreeMap<String, Experiment>,
    pub fraud: Fraud,
    pub reports: Reports,
    pub log: Log,
}

/// A value that never shows in logs, in `Debug` or in a dump of the settings.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Api {
    /// Where the control plane answers on the main listener.
    pub prefix: String,
    /// Time limit of one call.
    pub timeout_ms: u64,
    pub max_body_bytes: usize,
    /// Calls of one user, by key, token or session; 0: no limit. This and the next ones are per replica.
    pub user_requests_per_minute: u32,
    /// Calls with one service key.
    pub service_key_requests_per_minute: u32,
    /// Calls from one address, but those with a service key and signed webhooks.
    pub address_requests_per_minute: u32,
    /// Wrong keys and wrong admin tokens from one address, here and on the proxy; then unknown ones wait.
    pub failures_per_minute: u32,
}

#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Ledger {
    /// `redis://…`, `redis+sentinel://…` or `redis+cluster://…`, with `rediss` for TLS ([`RedisUrl`]); empty: embedded.
    #[serde(serialize_with = "show_places")]
    pub url: String,
    /// A PEM file of the certificate authorities by which the servers are known, instead of the public ones.
    pub ca_file: Option<PathBuf>,
    /// PEM files of our own certificate and its key, for servers that ask for one.
    pub client_certificate: Option<PathBuf>,
    pub client_key: Option<PathBuf>,
    /// Shards of a new ledger; 0: 1, on a Cluster 16. Fixed once created.
    pub shards: u32,
    /// How long a request waits for its reservation before it is refused with 503.
    pub reserve_timeout_ms: u64,
    /// How long the last bytes of an answer wait for the acknowledgement of its settle.
    pub settle_wait_ms: u64,
    /// A worker unacknowledged for so long takes no new requests.
    pub unacknowledged_limit_ms: u64,
    pub heartbeat_interval_ms: u64,
    /// A session that stands still for so long of the sweeper's own unbroken observation is fenced.
    pub fence_after_ms: u64,
    /// How long one call to Redis may take before the connection is replaced and the batch sent again.
    pub call_timeout_ms: u64,
    /// Operations in one batch.
    pub max_batch: usize,
    /// Operations that wait for a batch, per worker; beyond it new work is refused.
    pub max_queue: usize,
    /// Unflushed events past which new work is refused.
    pub max_backlog: u64,
    /// Charges not yet in the store that a worker remembers, per shard, in case Redis loses them; beyond it new work is refused.
    pub max_unflushed: usize,
    /// An account idle for so long is parked.
    pub park_after_ms: u64,
}

#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Store {
    /// `postgres://…` ([`PostgresUrl`]); empty: SQLite in the data directory.
    #[serde(serialize_with = "show_places")]
    pub url: String,
    pub max_connections: usize,
    pub timeout_ms: u64,
    /// Migrate at start.
    pub migrate: bool,
    /// The flusher writes at most so many log entries, and about as many events, in one transaction.
    pub flush_batch: usize,
    /// How long the flusher waits for more when the log is empty.
    pub flush_interval_ms: u64,
    /// Whole months for which usage rows are kept beside the current one; 0: for ever.
    pub usage_retention_months: u32,
    /// Days for which dead letters are kept; 0: for ever.
    pub dead_letter_retention_days: u32,
    /// Days for which notifications are kept after they were read; 0: for ever.
    pub read_notification_retention_days: u32,
    /// Days for which they are kept at all; 0: for ever.
    pub notification_retention_days: u32,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Upstream {
    /// Base URL; the request's path is appended, a doubled `/v1` collapsed.
    pub url: String,
    pub api_key: Option<Secret>,
    pub connect_timeout_ms: u64,
    pub first_byte_timeout_ms: u64,
    /// Longest silence between two chunks of an answer.
    pub idle_timeout_ms: u64,
    /// HTTP/2 without TLS, by prior knowledge.
    pub h2c: bool,
    /// Idle connections kept, per worker.
    pub max_idle_connections: usize,
    pub idle_connection_ms: u64,
    /// A PEM file of additional certificate authorities.
    pub ca_file: Option<PathBuf>,
    /// Consecutive failures after which it is left alone.
    pub breaker_failures: u32,
    /// For how long.
    pub breaker_open_ms: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RouteKind {
    Openai,
    Anthropic,
    Http,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClientGone {
    /// Finish reading, charge what the upstream reports.
    Drain,
    /// Stop, charge what was delivered.
    Partial,
    /// Stop, charge nothing.
    Void,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnLedgerDown {
    Refuse,
    /// Bounded by `max_uncharged_requests`, charged later.
    Allow,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Route {
    /// Path prefix; the longest that matches wins.
    pub prefix: String,
    pub kind: RouteKind,
    /// Names in `upstreams`, in order of preference; empty: `upstream`.
    pub upstreams: Vec<String>,
    /// A name in `prices`.
    pub price: String,
    pub client_gone: ClientGone,
    pub on_ledger_down: OnLedgerDown,
    /// Per replica, while the ledger is down.
    pub max_uncharged_requests: u32,
    /// Forward a smaller output limit where the balance cannot pay the full estimate.
    pub clamp: bool,
    /// Read bodies for token counts even at a flat price.
    pub record_tokens: bool,
    /// Attempts beyond the first, over all upstreams, before the first byte of an answer.
    pub max_retries: u32,
    /// Retries allowed per hundred requests of the route, beyond a few to begin with.
    pub retry_budget_percent: u32,
    pub max_body_bytes: usize,
    /// Kind http: pass WebSocket upgrades.
    pub websocket: bool,
}

/// A price list. Amounts are credits; token prices are credits per million tokens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Price {
    #[serde(with = "crate::credits::setting")]
    pub per_request: Credits,
    /// The first glob that matches the model wins.
    pub models: Vec<ModelPrice>,
    pub unknown_model: UnknownModel,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UnknownModel {
    /// Pays `per_request` alone.
    PerRequest,
    Refuse,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ModelPrice {
    /// A glob, such as `gpt-4*`.
    pub model: String,
    #[serde(with = "crate::credits::setting")]
    pub per_request: Credits,
    #[serde(with = "crate::credits::setting")]
    pub input_per_million: Credits,
    /// Unset: as input.
    #[serde(
        deserialize_with = "optional_credits",
        skip_serializing_if = "Option::is_none",
        serialize_with = "show_optional"
    )]
    pub cached_input_per_million: Option<Credits>,
    #[serde(with = "crate::credits::setting")]
    pub output_per_million: Credits,
    /// Per generated image.
    #[serde(with = "crate::credits::setting")]
    pub per_image: Credits,
    #[serde(with = "crate::credits::setting")]
    pub minimum: Credits,
    /// The output a request without a limit of its own may cost at most.
    pub max_output_tokens: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Plan {
    #[serde(with = "crate::credits::setting")]
    pub signup_credits: Credits,
    pub requests_per_minute: u64,
    pub tokens_per_minute: u64,
    pub concurrency: u64,
    /// For each paid month.
    #[serde(with = "crate::credits::setting")]
    pub credits: Credits,
    /// What a month leaves moves into the next, up to this.
    #[serde(with = "crate::credits::setting")]
    pub rollover_cap: Credits,
    #[serde(with = "crate::credits::setting")]
    pub trial_credits: Credits,
    /// Of a subscription that a checkout begins; 0: none.
    pub trial_days: u32,
    /// How long the plan's credits stay usable while a renewal is not paid.
    pub grace_days: u32,
    /// The user is told once the balance falls below this …
    #[serde(with = "crate::credits::setting")]
    pub low_credits: Credits,
    /// … or below so many percent of what the plan gives a month (or at sign-up, where it gives nothing a month).
    pub low_percent: u32,
    /// Empty: it cannot be bought.
    pub prices: Vec<PlanPrice>,
}

/// A price of a plan, as it is at Stripe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PlanPrice {
    /// `price_…`
    pub id: String,
    /// ISO 4217, lower case.
    pub currency: String,
    pub interval: Interval,
    /// For one interval, in the currency's minor units.
    pub amount: i64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Interval {
    Month,
    Year,
}

/// Credits that are bought once.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Pack {
    #[serde(with = "crate::credits::setting")]
    pub credits: Credits,
    /// 0: never.
    pub expires_after_days: u32,
    pub prices: Vec<PackPrice>,
}

/// A price of a pack, as it is at Stripe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PackPrice {
    /// `price_…`
    pub id: String,
    /// ISO 4217, lower case.
    pub currency: String,
    /// In the currency's minor units.
    pub amount: i64,
}

/// Where the money comes from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Stripe {
    /// `sk_test_…`, `sk_live_…` or a restricted `rk_…`; its second word is the mode of everything here.
    pub secret_key: Option<Secret>,
    /// `whsec_…`, each; several while one is replaced.
    pub webhook_secrets: Vec<Secret>,
    pub api_base: String,
    /// What answers look like, whatever the account's own version is.
    pub api_version: String,
    /// The page to which Stripe's pages come back.
    pub return_url: String,
    /// How old a webhook's signature may be.
    pub tolerance_ms: u64,
    /// Time limit of one call to Stripe.
    pub timeout_ms: u64,
    /// Attempts of one call beyond the first.
    pub max_retries: u32,
    /// Calls at the same time, per replica.
    pub max_calls: usize,
    pub max_webhook_bytes: usize,
    /// Attempts to process an event before it is parked.
    pub max_attempts: u32,
    /// How often everything is compared with Stripe.
    pub reconcile_interval_ms: u64,
}

/// The billing page, and the console on the admin listener.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Page {
    pub enabled: bool,
    /// Where it answers on the main listener.
    pub prefix: String,
    /// Where people open it; empty: the main listener's address.
    pub url: String,
    /// How long a link that signs in stays open.
    pub link_ms: u64,
    pub session_ms: u64,
    /// Sites that may show the page in a frame.
    pub frame_ancestors: Vec<String>,
    /// Where operators open the console, if not at the admin listener itself.
    pub console_url: String,
    pub console_session_ms: u64,
}

/// How users, and the product's backend, are told what happens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Notify {
    /// How often it is looked for what changed, for whoever has an event stream open.
    pub poll_interval_ms: u64,
    /// Of the store's connections, those that event streams may use at the same time.
    pub store_connections: usize,
    /// Event streams per replica.
    pub max_streams: usize,
    pub max_streams_per_user: usize,
    /// A stream that has nothing to say gives a sign of life so often.
    pub keep_alive_ms: u64,
    pub webhook: Webhook,
}

/// Notifications for the product's backend, as Standard Webhooks.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Webhook {
    /// Empty: none are sent.
    #[serde(serialize_with = "show_places")]
    pub url: String,
    /// `whsec_…`, each; several while one is replaced: every message is signed with all of them.
    pub secrets: Vec<Secret>,
    /// Time limit of one attempt.
    pub timeout_ms: u64,
    /// Attempts before a message goes to the dead letters.
    pub max_attempts: u32,
    /// The wait before the second attempt; each next one is four times as long, up to `max_retry_wait_ms`.
    pub retry_wait_ms: u64,
    pub max_retry_wait_ms: u64,
    /// Messages under way at the same time, per replica.
    pub max_calls: usize,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ServiceKeys {
    /// Create the user named in `x-faregate-user` at first use.
    pub create_users: bool,
    pub plan: String,
}

/// Access tokens of signed-in users, whoever issues them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tokens {
    /// Of a user who is made at the first token.
    pub plan: String,
    /// How old an issuer's keys may get before they are asked for again.
    pub jwks_max_age_ms: u64,
    /// At least so long lies between two questions for an issuer's keys.
    pub jwks_min_interval_ms: u64,
    pub jwks_timeout_ms: u64,
}

/// Stack Auth, hosted or one's own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Stack {
    /// Empty: its tokens are not taken.
    pub project_id: String,
    pub base_url: String,
    /// `whsec_…`, each; several while one is replaced.
    pub webhook_secrets: Vec<Secret>,
    /// How old a webhook's signature may be.
    pub tolerance_ms: u64,
    pub max_webhook_bytes: usize,
    /// Attempts to process an event before it is parked.
    pub max_attempts: u32,
    pub anonymous: Unproven,
    pub restricted: Unproven,
    /// Sign-up credits wait until the mail address is verified.
    pub require_verified_email: bool,
}

/// What becomes of users whose issuer does not vouch for them yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unproven {
    /// They get in, without sign-up credits until they are verified.
    Nothing,
    /// As everybody else.
    Credits,
    /// They do not get in.
    Refuse,
}

/// Any other issuer of tokens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Issuer {
    /// As `iss` in its tokens.
    pub issuer: String,
    pub jwks_url: String,
    /// One of them is in `aud`.
    pub audiences: Vec<String>,
    /// Stands before `sub` in a user's id, so that two issuers' users never meet.
    pub user_prefix: String,
    pub require_verified_email: bool,
}

/// How clients are served.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Server {
    /// Connections per replica; beyond it new ones wait to be accepted.
    pub max_connections: usize,
    pub max_headers: usize,
    pub max_header_bytes: usize,
    pub header_timeout_ms: u64,
    /// Longest silence within a request's body.
    pub body_idle_timeout_ms: u64,
    /// A whole request's body.
    pub body_timeout_ms: u64,
    /// What the request bodies of a replica that are kept whole may take together, in bytes; beyond it they wait, and
    /// are then refused. Those up to 16 KB are not counted.
    pub body_memory_bytes: usize,
    pub keep_alive_ms: u64,
    pub http2_max_streams: u32,
    /// After SIGTERM: how long what is in flight may go on.
    pub drain_timeout_ms: u64,
    /// How long one write to a client may stall; over HTTP/2, how long one stream may leave what it was given.
    pub write_timeout_ms: u64,
    /// Proxies in front of us, one behind the other: so many entries of X-Forwarded-For are believed, from the right.
    pub trusted_proxies: u32,
    /// Addresses or blocks of them from which those proxies connect; empty: from anywhere.
    pub proxy_addresses: Vec<String>,
    /// Addresses that share so many leading bits are one client.
    pub ipv6_prefix_bits: u32,
}

#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tls {
    /// PEM files; both or none.
    pub certificate: Option<PathBuf>,
    pub key: Option<PathBuf>,
}

/// Spans for an OpenTelemetry collector.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Traces {
    /// Base URL of its OTLP over HTTP; empty: none.
    pub endpoint: String,
    /// Of requests whose caller did not decide.
    pub sample_percent: u32,
}

impl Traces {
    /// Where spans are posted.
    pub fn collector(&self) -> Result<http::Uri, http::uri::InvalidUri> {
        format!("{}/v1/traces", self.endpoint.trim_end_matches('/')).parse()
    }
}

/// The books, proven now and then by each replica.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Audit {
    /// 0: only when it is asked for.
    pub interval_ms: u64,
}

/// The cheap limits before the ledger is asked; per replica.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Shed {
    pub requests_per_second: u32,
    pub per_address_requests_per_second: u32,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Metering {
    /// Text bytes that count as one input token in an estimate.
    pub bytes_per_token: u64,
    pub tokens_per_image: u64,
    /// A stream's hold grows by at least so many output tokens' price at a time.
    pub extend_tokens: u64,
    /// Answers up to this size are read for their usage; larger ones are estimated.
    pub max_answer_bytes: usize,
}

#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Cors {
    pub origins: Vec<String>,
}

/// How payment is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Nothing is metered or charged; callers are still authenticated.
    Off,
    /// Metered and charged as far as the balance goes, never into debt; what would have been refused is counted, and
    /// nothing is refused.
    Shadow,
    On,
}

/// Whom payment is enforced for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Enforcement {
    pub mode: Mode,
    /// Of the users, always the same ones; the others get the next weaker mode.
    pub percent: u32,
}

/// A feature that some users have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Flag {
    pub enabled: bool,
    /// Of the users on one of the plans, always the same ones.
    pub percent: u32,
    /// Empty: any plan.
    pub plans: Vec<String>,
    /// Users who have it whatever their plan.
    pub users: Vec<String>,
}

/// Offers a plan to different users at different terms.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Experiment {
    /// One that is sold.
    pub plan: String,
    /// Whether users who have not seen it yet get a variant.
    pub active: bool,
    pub variants: Vec<Variant>,
}

/// One of an experiment's terms. What a payment brings is known from its price alone, so credits of its own need
/// prices of its own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Variant {
    pub name: String,
    /// Of the sum of all weights.
    pub weight: u32,
    /// Empty: the plan's own.
    pub prices: Vec<PlanPrice>,
    /// For each paid month; unset: the plan's own.
    #[serde(
        deserialize_with = "optional_credits",
        skip_serializing_if = "Option::is_none",
        serialize_with = "show_optional"
    )]
    pub credits: Option<Credits>,
}

/// What is done against an account, the stronger the later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Action {
    Log,
    Warn,
    /// Free credits are held back.
    Hold,
    Freeze,
}

impl Action {
    pub fn name(self) -> &'static str {
        match self {
            Action::Log => "log",
            Action::Warn => "warn",
            Action::Hold => "hold",
            Action::Freeze => "freeze",
        }
    }

    pub fn by_name(name: &str) -> Option<Action> {
        [Action::Log, Action::Warn, Action::Hold, Action::Freeze].into_iter().find(|action| action.name() == name)
    }
}

/// What speaks against accounts, by how much, and what follows. Scores are 0 to 100; a score of 0 turns its signal off, a
/// limit of 0 its action.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Fraud {
    pub enabled: bool,
    pub interval_ms: u64,
    /// From which sum of an account's scores on.
    pub warn_score: u32,
    pub hold_score: u32,
    pub freeze_score: u32,
    /// Leading bits of an address that its block shares.
    pub block_bits_v4: u32,
    pub block_bits_v6: u32,
    /// More accounts than this from one block within `burst_minutes`.
    pub burst_accounts: u32,
    pub burst_minutes: u32,
    pub burst_score: u32,
    /// So many accounts of the block, within `farmed_days`, used up what was free and never paid.
    pub farmed_accounts: u32,
    pub farmed_days: u32,
    pub farmed_score: u32,
    /// Stack Auth's risk scores from this on; so many percent of them count.
    pub risk_from: u32,
    pub risk_weight_percent: u32,
    /// More than so many times the account's daily average, and at least the minimum.
    pub spending_factor: u32,
    #[serde(with = "crate::credits::setting")]
    pub spending_minimum: Credits,
    pub spending_score: u32,
    /// More accounts than this pay with one card.
    pub card_accounts: u32,
    pub card_score: u32,
    /// Stripe's early fraud warnings.
    pub warning_score: u32,
}

impl Fraud {
    /// What a sum of scores leads to.
    pub fn action(&self, score: i64) -> Action {
        let reaches = |limit: u32| limit > 0 && score >= i64::from(limit);
        match () {
            () if reaches(self.freeze_score) => Action::Freeze,
            () if reaches(self.hold_score) => Action::Hold,
            () if reaches(self.warn_score) => Action::Warn,
            () => Action::Log,
        }
    }
}

/// What the operator's reports count as what.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Reports {
    /// Messages a day, on average, from which on a user is heavy.
    pub heavy_messages_per_day: u32,
    /// Percent of the credits that a user had, from which down the user is near the limit.
    pub near_limit_percent: u32,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// A tracing filter, such as `info` or `faregate=debug`.
    pub level: String,
    pub format: LogFormat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    Text,
    Json,
}

impl Secret {
    pub fn new(text: impl Into<String>) -> Secret {
        Secret(text.into())
    }

    /// The value itself, for the one place that sends or compares it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("(secret)")
    }
}

impl Serialize for Secret {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str("(secret)")
    }
}

// Their URLs may carry passwords.
impl std::fmt::Debug for Ledger {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Ledger").field("url", &places(&self.url)).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Webhook {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Webhook").field("url", &places(&self.url)).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Store").field("url", &places(&self.url)).finish_non_exhaustive()
    }
}

/// Scheme, hosts and ports of a URL, or of a list of URLs with commas: what may be shown of it.
pub fn places(urls: &str) -> String {
    let place = |url: &str| {
        let (scheme, rest) = url.split_once("://").unwrap_or(("", "…"));
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        // A password that holds a separator itself moves everything: then nothing is shown.
        let host = match (rest.matches('@').count(), authority.split_once('@')) {
            (0, _) => authority,
            (1, Some((_, host))) => host,
            _ => "…",
        };
        format!("{scheme}://{host}")
    };
    match urls.matches("://").count() {
        0 if urls.is_empty() => String::new(),
        // Its commas are between hosts, or in its password.
        0 | 1 => place(urls),
        _ => urls.split(',').map(|url| place(url.trim())).collect::<Vec<_>>().join(", "),
    }
}

fn show_places<S: serde::Serializer>(urls: &str, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&places(urls))
}

impl Plan {
    /// Below this a balance is low.
    pub fn low_below(&self) -> Credits {
        let period = if self.credits.is_zero() { self.signup_credits } else { self.credits };
        let share = i128::from(period.micro()) * i128::from(self.low_percent) / 100;
        Credits::saturating_from_micro(share).max(self.low_credits)
    }

    pub fn limits(&self) -> Limits {
        Limits {
            requests_per_minute: self.requests_per_minute,
            tokens_per_minute: self.tokens_per_minute,
            concurrency: self.concurrency,
        }
    }
}

impl Config {
    /// Every price at which a plan is sold, those of experiments with them.
    pub fn every_plan_price(&self) -> impl Iterator<Item = &PlanPrice> {
        let variants = self.experiments.values().flat_map(|experiment| &experiment.variants);
        let plans = self.plans.values().flat_map(|plan| &plan.prices);
        plans.chain(variants.flat_map(|variant| &variant.prices))
    }
}

impl Stripe {
    /// Whether the key is one for real money; `None` without a key.
    pub fn livemode(&self) -> Option<bool> {
        let key = self.secret_key.as_ref()?.reveal();
        key_mode(key)
    }
}

/// `None` for what is no secret key of Stripe's.
pub(crate) fn key_mode(key: &str) -> Option<bool> {
    let begins = |prefixes: [&str; 2]| prefixes.iter().any(|prefix| key.starts_with(prefix));
    match () {
        () if begins(["sk_live_", "rk_live_"]) => Some(true),
        () if begins(["sk_test_", "rk_test_"]) => Some(false),
        () => None,
    }
}

fn optional_credits<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Credits>, D::Error> {
    crate::credits::setting::deserialize(deserializer).map(Some)
}

fn show_optional<S: serde::Serializer>(credits: &Option<Credits>, serializer: S) -> Result<S::Ok, S::Error> {
    match credits {
        Some(credits) => crate::credits::setting::serialize(credits, serializer),
        None => serializer.serialize_none(),
    }
}

mod defaults;
mod environment;
mod load;
mod postgres_url;
mod read;
mod redis_url;
mod schema;
#[cfg(test)]
mod tests;
mod tree;
mod validate;
