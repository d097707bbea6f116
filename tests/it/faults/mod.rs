//! Whatever dies, whatever is slow: who saw the end of an answer has paid for it, once; grants = balance + held +
//! settled; and within fifteen seconds nothing is held. On both ledgers, against the real binary.

mod books;
mod crashes;
mod ledger_out;
mod load;
mod poison;
mod replicas;
mod spending;
mod start;
mod store_out;

use std::time::Duration;

use serde_json::Value;

pub(crate) use self::load::{Load, Seen, ask};
use crate::support::{ChaosProxy, Faregate, Options, Postgres, Redis, Sim, eventually};

/// How soon after a crash nothing may be held any more.
const HEALED: Duration = Duration::from_secs(15);
/// One credit for each ten output tokens, and nothing else: ten tokens' answers cost as much as they hold.
const TOKEN_PRICES: &str = r#"
[prices.message]
per_request = 0
unknown_model = "refuse"
[[prices.message.models]]
model = "sim-*"
output_per_million = 100000
max_output_tokens = 10
"#;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// The embedded ledger over SQLite.
    Embedded,
    /// Redis and Postgres.
    Redis,
}

/// A gateway, its upstream, and the servers under it.
struct Scene {
    gate: Faregate,
    sim: Sim,
    /// Between gateway and Redis.
    proxy: Option<ChaosProxy>,
    redis: Option<Redis>,
    postgres: Option<Postgres>,
}

impl Scene {
    fn start(kind: Kind) -> Scene {
        Scene::with(kind, Options::new())
    }

    fn with(kind: Kind, options: Options) -> Scene {
        let redis = (kind == Kind::Redis).then(Redis::durable);
        Scene::over(redis, options)
    }

    /// Redis and a Postgres of its own, which may be killed and stopped.
    fn durable(options: Options) -> Scene {
        Scene::on(Some(Redis::durable()), Some(Postgres::own()), options)
    }

    /// Over this Redis; over none, the embedded ledger.
    fn over(redis: Option<Redis>, options: Options) -> Scene {
        let postgres = redis.as_ref().map(|_| Postgres::start());
        Scene::on(redis, postgres, options)
    }

    fn on(redis: Option<Redis>, postgres: Option<Postgres>, options: Options) -> Scene {
        let sim = Sim::start();
        let proxy = redis.as_ref().map(|redis| ChaosProxy::start(redis.addr()));
        let mut options = options.set("plans.free.signup_credits", 0).upstream(sim.url());
        if let (Some(proxy), Some(postgres)) = (&proxy, &postgres) {
            options = options.ledger(proxy.redis_url()).store(postgres.url());
        }
        Scene { gate: Faregate::start(options), sim, proxy, redis, postgres }
    }

    fn proxy(&self) -> &ChaosProxy {
        self.proxy.as_ref().unwrap()
    }

    fn redis(&mut self) -> &mut Redis {
        self.redis.as_mut().unwrap()
    }

    fn postgres(&self) -> &Postgres {
        self.postgres.as_ref().unwrap()
    }

    /// Another replica over the same Redis and Postgres.
    fn replica(&self) -> Faregate {
        self.replica_with(Options::new())
    }

    fn replica_with(&self, options: Options) -> Faregate {
        let options = options.set("plans.free.signup_credits", 0).upstream(self.sim.url());
        let postgres = self.postgres.as_ref().unwrap();
        Faregate::start(options.ledger(self.proxy().redis_url()).store(postgres.url()))
    }
}

/// A user's books in micro-credits.
#[derive(Debug)]
pub(crate) struct Books {
    pub(crate) available: i64,
    pub(crate) held: i64,
    pub(crate) debt: i64,
    pub(crate) granted: i64,
    pub(crate) charged: i64,
    pub(crate) usage: Vec<Value>,
}

impl Books {
    pub(crate) async fn read(gate: &Faregate, user: &str) -> Books {
        let shown = gate.show(user).await;
        let usage = gate.usage(user).await;
        let grants = shown["grants"].as_array().unwrap();
        let credits = &shown["credits"];
        Books {
            available: micro(&credits["available"]),
            held: micro(&credits["held"]),
            debt: micro(&credits["debt"]),
            granted: grants.iter().map(|grant| micro(&grant["amount"])).sum(),
            charged: usage.iter().map(|row| micro(&row["credits"])).sum(),
            usage,
        }
    }

    /// What there is to know, but for the rows.
    pub(crate) fn sums(&self) -> (i64, i64, i64, i64, i64, usize) {
        (self.available, self.held, self.debt, self.granted, self.charged, self.usage.len())
    }

    /// grants = balance + held + settled.
    pub(crate) fn balance(&self) -> bool {
        self.granted == self.available - self.debt + self.held + self.charged
    }

    pub(crate) fn has(&self, request_id: &str) -> bool {
        self.usage.iter().any(|row| row["request_id"] == request_id)
    }
}

/// Waits until nothing is held and the books balance; usage rows follow their charges by a moment.
async fn healed(gate: &Faregate, user: &str) -> Books {
    let what = format!("nothing is held of {user}, and the books balance");
    let last = std::cell::RefCell::new(None);
    let result = eventually(HEALED, &what, || async {
        let books = Books::read(gate, user).await;
        let done = books.held == 0 && books.balance();
        if !done {
            let Books { available, held, debt, granted, charged, ref usage } = books;
            let now = (available, held, debt, granted, charged, usage.len());
            if last.replace(Some(now)) != Some(now) {
                eprintln!("{user}: available, held, debt, granted, charged, rows: {now:?}");
            }
        }
        done.then_some(books)
    });
    result.await
}

#[expect(clippy::cast_possible_truncation, reason = "test amounts are small, and six decimals survive a double")]
fn micro(credits: &Value) -> i64 {
    (credits.as_f64().unwrap_or_else(|| panic!("no number: {credits}")) * 1e6).round() as i64
}
