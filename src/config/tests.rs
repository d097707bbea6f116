use std::collections::BTreeSet;
use std::io::Write;

use super::tree::{self, Node, Table, Value};
use super::*;

fn load(file: &str, env: &[(&str, &str)]) -> Result<Config, ConfigError> {
    let mut temporary = tempfile::NamedTempFile::new().unwrap();
    temporary.write_all(file.as_bytes()).unwrap();
    let env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    Config::load(Some(temporary.path()), env)
}

fn problems(file: &str, env: &[(&str, &str)]) -> Vec<String> {
    load(file, env).unwrap_err().problems
}

fn one(file: &str, env: &[(&str, &str)]) -> String {
    let found = problems(file, env);
    assert_eq!(found.len(), 1, "{found:?}");
    found[0].clone()
}

#[test]
fn the_built_in_file_is_the_defaults() {
    assert_eq!(Config::load(None, std::iter::empty()).unwrap(), Config::default());
}

/// Settings without a default are lines that begin with `#` and a name, or a table's head.
fn with_examples() -> String {
    let example = |line: &str| {
        let setting = line
            .strip_prefix('#')
            .filter(|rest| rest.starts_with(|first: char| first.is_ascii_lowercase() || first == '['));
        setting.unwrap_or(line).to_owned()
    };
    BUILT_IN.lines().map(example).collect::<Vec<_>>().join("\n")
}

fn paths(table: &Table, prefix: &str, found: &mut BTreeSet<String>) {
    for (name, node) in table {
        let own_names = tree::NAMED_TABLES.contains(&prefix);
        let name = if own_names { "*" } else { name };
        let path = if prefix.is_empty() { name.to_owned() } else { format!("{prefix}.{name}") };
        match &node.value {
            Value::Table(inner) => paths(inner, &path, found),
            Value::List(list) => {
                if let Some(Node { value: Value::Table(inner), .. }) = list.first() {
                    paths(inner, &format!("{path}.0"), found);
                }
            }
            _ => {}
        }
        found.insert(path);
    }
}

#[test]
fn no_setting_is_undocumented() {
    let text = with_examples();
    let root = tree::parse(&text, &std::path::Path::new("examples").into()).unwrap();
    let mut documented = BTreeSet::new();
    paths(&root, "", &mut documented);
    let upstream: Vec<_> =
        documented.iter().filter_map(|path| path.strip_prefix("upstream.")).map(str::to_owned).collect();
    documented.extend(upstream.iter().map(|name| format!("upstreams.*.{name}")));
    let missing: Vec<_> = schema::settings().into_iter().filter(|path| !documented.contains(path)).collect();
    assert!(missing.is_empty(), "not in config/faregate.toml: {missing:?}");
    assert!(schema::settings().contains("prices.*.models.0.cached_input_per_million"));
}

#[test]
fn every_setting_has_a_comment_where_it_is_first_named() {
    let mut named = BTreeSet::new();
    let mut before = "";
    for line in BUILT_IN.lines() {
        let bare = line.strip_prefix('#').unwrap_or(line);
        let setting = bare.split_once(" = ").map(|(name, _)| name).filter(|name| !name.contains(' '));
        if let Some(name) = setting.filter(|_| !line.starts_with("# "))
            && named.insert(name)
        {
            assert!(before.starts_with("# "), "no comment above {line:?}");
        }
        before = line;
    }
}

/// failures 8: what has no price is not free.
#[test]
fn a_price_by_model_leaves_no_model_free() {
    let file = |unknown: &str, each: &str| {
        let model = "[[prices.tokens.models]]\nmodel = \"gpt-4*\"\n";
        format!("[prices.tokens]\nper_request = {each}\nunknown_model = \"{unknown}\"\n{model}")
    };
    let error = load(&file("per_request", "0"), &[]).unwrap_err().to_string();
    assert!(error.contains("prices.tokens.unknown_model"), "{error}");
    load(&file("per_request", "1"), &[]).unwrap();
    load(&file("refuse", "0"), &[]).unwrap();
}

#[test]
fn file_over_built_in_and_environment_over_file() {
    let file =
        "listen = \"127.0.0.1:1000\"\nworkers = 2\n[plans.free]\nsignup_credits = 7\n[plans.pro]\nconcurrency = 3\n";
    let env = [
        ("FAREGATE_LISTEN", "0.0.0.0:2000"),
        ("FAREGATE_PLANS__PRO__SIGNUP_CREDITS", "0.25"),
        ("FAREGATE_CORS__ORIGINS", "https://a.example, https://b.example"),
        ("FAREGATE_UPSTREAM_URL", "http://127.0.0.1:9/v1"),
        ("FAREGATE_UPSTREAM_API_KEY", "12345"),
        ("FAREGATE_TLS__KEY", ""),
        ("HOME", "/root"),
    ];
    let config = load(file, &env).unwrap();
    assert_eq!(config.listen.to_string(), "0.0.0.0:2000");
    assert_eq!(config.workers, 2);
    assert_eq!(config.plans["free"].signup_credits, Credits::whole(7));
    assert_eq!(config.plans["pro"].signup_credits.micro(), 250_000);
    assert_eq!(config.plans["pro"].concurrency, 3);
    assert_eq!(config.cors.origins, ["https://a.example", "https://b.example"]);
    assert_eq!(config.upstream.api_key.as_ref().unwrap().reveal(), "12345");
    assert_eq!(config.tls.key, None);
}

#[test]
fn variables_hold_lists_and_tables_as_toml() {
    let env = [
        (
            "FAREGATE_PRICES__TOKENS__MODELS",
            r#"[{model = "*", input_per_million = 2.5, output_per_million = 0.000001}]"#,
        ),
        ("FAREGATE_ROUTES__OPENAI__PRICE", "tokens"),
        ("FAREGATE_UPSTREAMS__MAIN", r#"{url = "http://127.0.0.1:9"}"#),
        ("FAREGATE_ROUTES__OPENAI__UPSTREAMS", "main"),
        ("FAREGATE_ROUTES__ANTHROPIC", "false"),
        ("FAREGATE_PLANS__FREE", "{signup_credits = 9}"),
    ];
    let config = load("", &env).unwrap();
    assert_eq!(config.prices["tokens"].models[0].input_per_million.micro(), 2_500_000);
    assert_eq!(config.prices["tokens"].models[0].output_per_million.micro(), 1);
    assert_eq!(config.routes.keys().collect::<Vec<_>>(), ["openai"]);
    assert_eq!(config.routes["openai"].upstreams, ["main"]);
    assert_eq!(config.plans["free"].signup_credits, Credits::whole(9));
}

#[test]
fn a_route_is_taken_away_by_false() {
    let config = load("[routes]\nanthropic = false\n", &[]).unwrap();
    assert_eq!(config.routes.keys().collect::<Vec<_>>(), ["openai"]);
}

#[test]
fn unknown_settings_name_the_nearest() {
    let found = one("", &[("FAREGATE_LISTN", "1")]);
    assert_eq!(found, "FAREGATE_LISTN is not a setting; the nearest is FAREGATE_LISTEN");
    let found = one("", &[("FAREGATE_SERVER_MAX_CONNECTIONS", "1")]);
    assert!(found.ends_with("the nearest is FAREGATE_SERVER__MAX_CONNECTIONS"), "{found}");
    let found = one("", &[("FAREGATE_PLANS__PRO__CONCURENCY", "1")]);
    assert!(found.ends_with("the nearest is FAREGATE_PLANS__PRO__CONCURRENCY"), "{found}");
    let found = one("\n[server]\nmax_conections = 5\n", &[]);
    assert!(
        found.contains(":3: `server.max_conections` is not a setting; the nearest is server.max_connections"),
        "{found}"
    );
    let found = one("[servr]\nmax_connections = 5\n", &[]);
    assert!(found.contains(":1: `servr` is not a setting; the nearest is server"), "{found}");
    let found = one("[[prices.tokens.models]]\nmodel = \"*\"\ninput_per_milion = 5\n", &[]);
    assert!(found.contains(":3: `prices.tokens.models.0.input_per_milion`"), "{found}");
    assert!(found.ends_with("the nearest is prices.tokens.models.0.input_per_million"), "{found}");
}

#[test]
fn service_links_are_no_settings() {
    let links = [
        ("FAREGATE_SERVICE_HOST", "10.0.0.1"),
        ("FAREGATE_SERVICE_PORT", "8080"),
        ("FAREGATE_SERVICE_PORT_HTTP", "8080"),
        ("FAREGATE_PORT", "tcp://10.0.0.1:8080"),
        ("FAREGATE_PORT_8080_TCP", "tcp://10.0.0.1:8080"),
        ("FAREGATE_PORT_8080_TCP_PROTO", "tcp"),
        ("FAREGATE_PORT_8080_TCP_PORT", "8080"),
        ("FAREGATE_PORT_8080_TCP_ADDR", "10.0.0.1"),
        ("FAREGATE_REDIS_PORT_6379_TCP_ADDR", "10.0.0.1"),
        ("FAREGATE_CONFIG", "/etc/faregate.toml"),
    ];
    assert_eq!(load("", &links).unwrap(), Config::default());
    assert!(one("", &[("FAREGATE_PORT", "8080")]).contains("is not a setting"));
}

#[test]
fn several_mistakes_are_told_at_once_with_their_places() {
    let file =
        "workers = \"two\"\n[server]\nmax_headers = -1\nnonsense = 1\n[routes.x]\nprefix = \"/x\"\nkind = \"grpc\"\n";
    let found = problems(file, &[("FAREGATE_WORKERS", "many"), ("FAREGATE_LOG__FORMAT", "xml"), ("FAREGATE_H", "1")]);
    let all = found.join("\n");
    assert_eq!(found.len(), 6, "{all}");
    assert!(all.contains("FAREGATE_WORKERS: `workers` must be a whole number"), "{all}");
    assert!(all.contains(":3: `server.max_headers` must be 0 or more"), "{all}");
    assert!(all.contains(":4: `server.nonsense` is not a setting"), "{all}");
    assert!(all.contains(":7: `routes.x.kind` must be one of openai, anthropic, http"), "{all}");
    assert!(all.contains("FAREGATE_LOG__FORMAT: `log.format` must be one of text, json"), "{all}");
}

#[test]
fn values_are_never_quoted() {
    let secret = "hunter2hunter2";
    for (file, env) in [
        (format!("admin_token = \"{secret}"), vec![]),
        (format!("[store]\nurl = \"{secret}\""), vec![]),
        (format!("workers = \"{secret}\""), vec![]),
        (format!("[upstream]\nurl = \"http://user:{secret}@host\""), vec![]),
        (String::new(), vec![("FAREGATE_LEDGER_URL", secret)]),
        (String::new(), vec![("FAREGATE_UPSTREAM", secret)]),
        (String::new(), vec![("FAREGATE_LISTEN", secret)]),
        (String::new(), vec![("FAREGATE_PLANS__FREE__SIGNUP_CREDITS", secret)]),
        (String::new(), vec![("FAREGATE_PRICES__A__MODELS", "[{hunter2hunter2")]),
    ] {
        let error = load(&file, &env).unwrap_err().to_string();
        assert!(!error.contains(secret), "{error}");
    }
    let env = [
        ("FAREGATE_ADMIN_TOKEN", secret),
        ("FAREGATE_UPSTREAM_API_KEY", secret),
        ("FAREGATE_LEDGER_URL", "redis://:hunter2hunter2@cache:6379"),
        ("FAREGATE_STORE_URL", "postgres://user:hunter2hunter2@db/faregate"),
    ];
    let config = load("", &env).unwrap();
    assert!(format!("{config:?}").contains("redis://cache:6379"));
    assert!(!format!("{config:?}").contains(secret));
    assert!(!serde_json::to_string(&config).unwrap().contains(secret));
}

#[test]
fn the_whole_is_validated() {
    for (setting, value, message) in [
        ("FAREGATE_ROUTES__OPENAI__PRICE", "gold", "`routes.openai.price` names no price; there are message"),
        ("FAREGATE_ROUTES__OPENAI__PREFIX", "v1", "must begin with /"),
        ("FAREGATE_ROUTES__OPENAI__PREFIX", "/api/v1", "is taken"),
        ("FAREGATE_ROUTES__OPENAI__PREFIX", "/v1/messages/", "is that of routes.anthropic too"),
        ("FAREGATE_ROUTES__OPENAI__UPSTREAMS", "nowhere", "names `nowhere`"),
        ("FAREGATE_UPSTREAM_URL", "api.openai.com", "must be http://HOST"),
        ("FAREGATE_UPSTREAM_URL", "ftp://api.openai.com", "must be http://HOST"),
        ("FAREGATE_LEDGER_URL", "memcached://x", "must be redis://"),
        ("FAREGATE_LEDGER_URL", "redis://a:6379,b:6379", "names several servers: write redis+cluster://"),
        ("FAREGATE_LEDGER_URL", "redis+sentinel://a:26379", "must end with the name"),
        ("FAREGATE_STORE_URL", "mysql://x", "must be postgres://"),
        ("FAREGATE_STORE_URL", "postgres://h/d?sslmode=prefer", "has an sslmode that is none of"),
        (
            "FAREGATE_STORE_URL",
            "postgres://h/d?sslmode=require&sslrootcert=/none",
            "has an sslrootcert that is not there",
        ),
        ("FAREGATE_LEDGER__CA_FILE", "/etc/passwd", "is for a ledger.url with TLS"),
        ("FAREGATE_LEDGER__CA_FILE", "/none", "names a file that is not there"),
        ("FAREGATE_LEDGER__CLIENT_KEY", "/etc/passwd", "belong together"),
        ("FAREGATE_API__PREFIX", "/", "must begin with /"),
        ("FAREGATE_SERVICE_KEYS__PLAN", "gold", "names no plan"),
        ("FAREGATE_PLANS__FREE", "false", "must have a plan `free`"),
        ("FAREGATE_PLANS__FREE__REQUESTS_PER_MINUTE", "60000001", "must be at most 60000000"),
        ("FAREGATE_PLANS__FREE__SIGNUP_CREDITS", "-1", "credits must not be negative"),
        ("FAREGATE_PLANS__FREE__SIGNUP_CREDITS", "9000000000", "credits must be below"),
        ("FAREGATE_PRICES__T__MODELS", "[{model = \"[\"}]", "is not a valid model glob"),
        ("FAREGATE_TLS__KEY", "/dev/null/none", "needs its certificate"),
        ("FAREGATE_ADMIN_LISTEN", "127.0.0.1:8080", "must differ from `listen`"),
        ("FAREGATE_LEDGER__FENCE_AFTER_MS", "5000", "must be above ledger.unacknowledged_limit_ms"),
        ("FAREGATE_LOG__LEVEL", "faregate=loud", "is not a filter"),
        ("FAREGATE_CORS__ORIGINS", "app.example.com", "must be origins"),
        ("FAREGATE_UPSTREAMS__B__URL", "http://b", "is missing and `upstream.url` is not set"),
    ] {
        let found = problems("", &[(setting, value)]).join("\n");
        assert!(found.contains(message), "{setting}={value}: {found}");
    }
    for (setting, value, message) in [
        ("FAREGATE_STRIPE_SECRET_KEY", "pk_test_1", "must be a secret key"),
        ("FAREGATE_STRIPE_SECRET_KEY", "sk_test_1", "without it nothing that Stripe tells can be believed"),
        ("FAREGATE_STRIPE_WEBHOOK_SECRETS", "whsec_a,b", "must each be a signing secret"),
        ("FAREGATE_STRIPE_API_BASE", "stripe.com", "must be https://HOST"),
        ("FAREGATE_PACKS__S__EXPIRES_AFTER_DAYS", "1", "`packs.s.credits` must be above 0"),
        ("FAREGATE_PLANS__PRO__PRICES", "[{id = \"p\", amount = 1}]", "a plan that is sold gives credits"),
        ("FAREGATE_PLANS__PRO__PRICES", "[{id = \"p\", amount = 0}]", "must be from 1 to 99999999"),
        ("FAREGATE_PLANS__PRO__PRICES", "[{id = \"p\", amount = 1, currency = \"USD\"}]", "must be a currency"),
        ("FAREGATE_PLANS__PRO__PRICES", "[{id = \"p\", amount = 1}, {id = \"q\", amount = 1}]", "have a price already"),
        ("FAREGATE_PLANS__PRO__PRICES", "[{id = \"p\", amount = 1}, {id = \"p\", amount = 1}]", "is that of plans.pro"),
    ] {
        let found = problems("", &[(setting, value)]).join("\n");
        assert!(found.contains(message), "{setting}={value}: {found}");
    }
    let live = [
        ("FAREGATE_STRIPE_SECRET_KEY", "sk_live_1"),
        ("FAREGATE_STRIPE_WEBHOOK_SECRETS", "whsec_a, whsec_b"),
        ("FAREGATE_STRIPE_API_BASE", "http://127.0.0.1:1"),
    ];
    assert!(one("", &live).contains("must be https:// for a live key"));
    let stripe = load("", &live[..2]).unwrap().stripe;
    assert_eq!((stripe.livemode(), stripe.webhook_secrets.len()), (Some(true), 2));
    let slow = [("FAREGATE_LEDGER_URL", "redis://127.0.0.1:6379"), ("FAREGATE_STORE__TIMEOUT_MS", "10000")];
    assert!(one("", &slow).contains("must be above store.timeout_ms"));
    load("", &slow[1..]).expect("the embedded ledger fences nobody");
    load("", &[("FAREGATE_LEDGER_URL", "redis://127.0.0.1:6379")]).expect("Redis over SQLite is one replica");
    load("", &[("FAREGATE_LEDGER_URL", "redis+cluster://:pw@a:6379,b")]).expect("a Cluster");
}

#[test]
fn of_urls_only_places_are_shown() {
    assert_eq!(places("redis://a:6379, rediss://:pw@b:1/0"), "redis://a:6379, rediss://b:1");
    assert_eq!(places("postgres://u:pw@db:5432/faregate?sslmode=require"), "postgres://db:5432");
    let sentinels = "redis+sentinel://u:pw@s1:26379,s2/main/1?sentinel_password=pw";
    assert_eq!(places(sentinels), "redis+sentinel://s1:26379,s2");
    assert_eq!(places("rediss+cluster://:p,w@a:1,b:2"), "rediss+cluster://a:1,b:2");
    assert_eq!(places("redis://:p,w@b"), "redis://b");
    for awkward in ["redis://:p/w@b", "redis://:p?w@b", "redis://u:p@w/x@b", "postgres://u@db/x?password=p@w"] {
        let shown = places(awkward);
        assert!(shown.ends_with("://…"), "{shown}");
    }
}
