//! The defaults, as `config/faregate.toml` tells them.

use super::*;

const MIB: usize = 1024 * 1024;

impl Default for Config {
    fn default() -> Config {
        let openai = Route { prefix: "/v1".into(), kind: RouteKind::Openai, ..Route::default() };
        let messages = Route { prefix: "/v1/messages".into(), kind: RouteKind::Anthropic, ..Route::default() };
        let free = Plan { signup_credits: Credits::whole(5), ..Plan::default() };
        Config {
            listen: SocketAddr::from(([127, 0, 0, 1], 8080)),
            admin_listen: SocketAddr::from(([127, 0, 0, 1], 9090)),
            admin_token: None,
            data_dir: "./faregate-data".into(),
            workers: 0,
            api: Api::default(),
            ledger: Ledger::default(),
            store: Store::default(),
            upstream: Upstream::default(),
            upstreams: BTreeMap::new(),
            routes: BTreeMap::from([("openai".to_owned(), openai), ("anthropic".to_owned(), messages)]),
            prices: BTreeMap::from([("message".to_owned(), Price::default())]),
            plans: BTreeMap::from([("free".to_owned(), free)]),
            packs: BTreeMap::new(),
            stripe: Stripe::default(),
            page: Page::default(),
            notify: Notify::default(),
            service_keys: ServiceKeys::default(),
            tokens: Tokens::default(),
            stack: Stack::default(),
            issuers: BTreeMap::new(),
            server: Server::default(),
            tls: Tls::default(),
            shed: Shed::default(),
            audit: Audit::default(),
            traces: Traces::default(),
            metering: Metering::default(),
            cors: Cors::default(),
            enforcement: Enforcement::default(),
            flags: BTreeMap::new(),
            experiments: BTreeMap::new(),
            fraud: Fraud::default(),
            reports: Reports::default(),
            log: Log::default(),
        }
    }
}

impl Default for Page {
    fn default() -> Page {
        Page {
            enabled: true,
            prefix: "/billing".into(),
            url: String::new(),
            link_ms: 900_000,
            session_ms: 43_200_000,
            frame_ancestors: Vec::new(),
            console_url: String::new(),
            console_session_ms: 28_800_000,
        }
    }
}

impl Default for Api {
    fn default() -> Api {
        Api {
            prefix: "/api".into(),
            timeout_ms: 10_000,
            max_body_bytes: 64 * 1024,
            user_requests_per_minute: 600,
            service_key_requests_per_minute: 0,
            address_requests_per_minute: 3_000,
            failures_per_minute: 120,
        }
    }
}

impl Default for Ledger {
    fn default() -> Ledger {
        Ledger {
            url: String::new(),
            ca_file: None,
            client_certificate: None,
            client_key: None,
            shards: 0,
            reserve_timeout_ms: 2_000,
            settle_wait_ms: 250,
            unacknowledged_limit_ms: 5_000,
            heartbeat_interval_ms: 1_000,
            fence_after_ms: 10_000,
            call_timeout_ms: 2_000,
            max_batch: 128,
            max_queue: 16_384,
            max_backlog: 1_000_000,
            max_unflushed: 100_000,
            park_after_ms: 600_000,
        }
    }
}

impl Default for Store {
    fn default() -> Store {
        Store {
            url: String::new(),
            max_connections: 8,
            timeout_ms: 5_000,
            migrate: true,
            flush_batch: 8_192,
            flush_interval_ms: 20,
            usage_retention_months: 0,
            dead_letter_retention_days: 0,
            read_notification_retention_days: 90,
            notification_retention_days: 365,
        }
    }
}

impl Default for Upstream {
    fn default() -> Upstream {
        Upstream {
            url: String::new(),
            api_key: None,
            connect_timeout_ms: 5_000,
            first_byte_timeout_ms: 120_000,
            idle_timeout_ms: 120_000,
            h2c: false,
            max_idle_connections: 128,
            idle_connection_ms: 60_000,
            ca_file: None,
            breaker_failures: 5,
            breaker_open_ms: 10_000,
        }
    }
}

impl Default for Route {
    fn default() -> Route {
        Route {
            prefix: String::new(),
            kind: RouteKind::Http,
            upstreams: Vec::new(),
            price: "message".into(),
            client_gone: ClientGone::Partial,
            on_ledger_down: OnLedgerDown::Refuse,
            max_uncharged_requests: 100,
            clamp: true,
            record_tokens: true,
            max_retries: 2,
            retry_budget_percent: 20,
            max_body_bytes: 32 * MIB,
            websocket: true,
        }
    }
}

impl Default for Price {
    fn default() -> Price {
        Price { per_request: Credits::whole(1), models: Vec::new(), unknown_model: UnknownModel::PerRequest }
    }
}

impl Default for ModelPrice {
    fn default() -> ModelPrice {
        ModelPrice {
            model: "*".into(),
            per_request: Credits::ZERO,
            input_per_million: Credits::ZERO,
            cached_input_per_million: None,
            output_per_million: Credits::ZERO,
            per_image: Credits::ZERO,
            minimum: Credits::ZERO,
            max_output_tokens: 16_384,
        }
    }
}

impl Default for Plan {
    fn default() -> Plan {
        Plan {
            signup_credits: Credits::ZERO,
            requests_per_minute: 0,
            tokens_per_minute: 0,
            concurrency: 0,
            credits: Credits::ZERO,
            rollover_cap: Credits::ZERO,
            trial_credits: Credits::ZERO,
            trial_days: 0,
            grace_days: 4,
            low_credits: Credits::whole(2),
            low_percent: 10,
            prices: Vec::new(),
        }
    }
}

impl Default for PlanPrice {
    fn default() -> PlanPrice {
        PlanPrice { id: String::new(), currency: "usd".into(), interval: Interval::Month, amount: 0 }
    }
}

impl Default for Pack {
    fn default() -> Pack {
        Pack { credits: Credits::ZERO, expires_after_days: 0, prices: Vec::new() }
    }
}

impl Default for PackPrice {
    fn default() -> PackPrice {
        PackPrice { id: String::new(), currency: "usd".into(), amount: 0 }
    }
}

impl Default for Stripe {
    fn default() -> Stripe {
        Stripe {
            secret_key: None,
            webhook_secrets: Vec::new(),
            api_base: "https://api.stripe.com".into(),
            api_version: "2026-03-25.dahlia".into(),
            return_url: "http://127.0.0.1:8080/billing".into(),
            tolerance_ms: 300_000,
            timeout_ms: 10_000,
            max_retries: 2,
            max_calls: 8,
            max_webhook_bytes: MIB,
            max_attempts: 36,
            reconcile_interval_ms: 24 * 3600 * 1000,
        }
    }
}

impl Default for Notify {
    fn default() -> Notify {
        Notify {
            poll_interval_ms: 200,
            store_connections: 2,
            max_streams: 4_096,
            max_streams_per_user: 8,
            keep_alive_ms: 15_000,
            webhook: Webhook::default(),
        }
    }
}

impl Default for Webhook {
    fn default() -> Webhook {
        Webhook {
            url: String::new(),
            secrets: Vec::new(),
            timeout_ms: 15_000,
            max_attempts: 12,
            retry_wait_ms: 5_000,
            max_retry_wait_ms: 24 * 3600 * 1000,
            max_calls: 8,
        }
    }
}

impl Default for ServiceKeys {
    fn default() -> ServiceKeys {
        ServiceKeys { create_users: true, plan: "free".into() }
    }
}

impl Default for Tokens {
    fn default() -> Tokens {
        Tokens { plan: "free".into(), jwks_max_age_ms: 3_600_000, jwks_min_interval_ms: 10_000, jwks_timeout_ms: 4_000 }
    }
}

impl Default for Stack {
    fn default() -> Stack {
        Stack {
            project_id: String::new(),
            base_url: "https://api.stack-auth.com".into(),
            webhook_secrets: Vec::new(),
            tolerance_ms: 300_000,
            max_webhook_bytes: MIB,
            max_attempts: 36,
            anonymous: Unproven::Nothing,
            restricted: Unproven::Nothing,
            require_verified_email: true,
        }
    }
}

impl Default for Issuer {
    fn default() -> Issuer {
        Issuer {
            issuer: String::new(),
            jwks_url: String::new(),
            audiences: Vec::new(),
            user_prefix: String::new(),
            require_verified_email: true,
        }
    }
}

impl Default for Server {
    fn default() -> Server {
        Server {
            max_connections: 16_384,
            max_headers: 100,
            max_header_bytes: 64 * 1024,
            header_timeout_ms: 10_000,
            body_idle_timeout_ms: 30_000,
            body_timeout_ms: 300_000,
            body_memory_bytes: 512 * MIB,
            keep_alive_ms: 75_000,
            http2_max_streams: 250,
            drain_timeout_ms: 30_000,
            write_timeout_ms: 60_000,
            trusted_proxies: 0,
            proxy_addresses: Vec::new(),
            ipv6_prefix_bits: 64,
        }
    }
}

impl Default for Metering {
    fn default() -> Metering {
        Metering { bytes_per_token: 2, tokens_per_image: 2_000, extend_tokens: 512, max_answer_bytes: 16 * MIB }
    }
}

impl Default for Enforcement {
    fn default() -> Enforcement {
        Enforcement { mode: Mode::On, percent: 100 }
    }
}

impl Default for Flag {
    fn default() -> Flag {
        Flag { enabled: true, percent: 100, plans: Vec::new(), users: Vec::new() }
    }
}

impl Default for Experiment {
    fn default() -> Experiment {
        Experiment { plan: String::new(), active: true, variants: Vec::new() }
    }
}

impl Default for Variant {
    fn default() -> Variant {
        Variant { name: String::new(), weight: 1, prices: Vec::new(), credits: None }
    }
}

impl Default for Fraud {
    fn default() -> Fraud {
        Fraud {
            enabled: true,
            interval_ms: 30_000,
            warn_score: 30,
            hold_score: 60,
            freeze_score: 100,
            block_bits_v4: 24,
            block_bits_v6: 48,
            burst_accounts: 5,
            burst_minutes: 60,
            burst_score: 40,
            farmed_accounts: 3,
            farmed_days: 30,
            farmed_score: 60,
            risk_from: 60,
            risk_weight_percent: 100,
            spending_factor: 20,
            spending_minimum: Credits::whole(500),
            spending_score: 40,
            card_accounts: 3,
            card_score: 60,
            warning_score: 80,
        }
    }
}

impl Default for Reports {
    fn default() -> Reports {
        Reports { heavy_messages_per_day: 50, near_limit_percent: 20 }
    }
}

impl Default for Traces {
    fn default() -> Traces {
        Traces { endpoint: String::new(), sample_percent: 100 }
    }
}

impl Default for Audit {
    fn default() -> Audit {
        Audit { interval_ms: 24 * 3600 * 1_000 }
    }
}

impl Default for Log {
    fn default() -> Log {
        Log { level: "info".into(), format: LogFormat::Text }
    }
}
