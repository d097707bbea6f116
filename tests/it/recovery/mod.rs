//! Redis loses what it had acknowledged, while gateways serve: it is emptied, comes back from an old file, or a replica that
//! lacks the last writes is promoted. Nothing that was spent comes back, nothing is charged twice, and what a living gateway
//! remembers is charged. On real servers, through the real binary.

mod alone;
mod keyed;
mod loss;
mod reopening;

use std::time::Duration;

use crate::faults::{Books, Load, Seen, ask};
use crate::support::{ChaosProxy, Faregate, Options, Postgres, Redis, Sim, eventually};

/// How soon after a loss the books balance again.
const HEALED: Duration = Duration::from_secs(30);
const CREDITS: &str = "100000";

/// Rounds of each fault. `FAREGATE_FAULT_ROUNDS` sets another number.
pub(crate) fn rounds() -> usize {
    std::env::var("FAREGATE_FAULT_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(5)
}

/// Gateways over one Redis and one Postgres.
struct Scene {
    gate: Faregate,
    sim: Sim,
    proxy: ChaosProxy,
    redis: Redis,
    postgres: Postgres,
}

impl Scene {
    fn start(redis: Redis) -> Scene {
        Scene::with(redis, Options::new())
    }

    fn with(redis: Redis, settings: Options) -> Scene {
        let (sim, postgres) = (Sim::start(), Postgres::start());
        let proxy = ChaosProxy::start(redis.addr());
        let gate = Faregate::start(over(settings, &sim, &proxy, &postgres));
        Scene { gate, sim, proxy, redis, postgres }
    }

    fn another(&self) -> Faregate {
        Faregate::start(options(&self.sim, &self.proxy, &self.postgres))
    }

    /// A user with nothing spent, and a load on their credits.
    async fn load(&self, user: &str, gates: &[&Faregate]) -> Vec<Load> {
        let key = self.gate.user(user, CREDITS).await;
        gates.iter().map(|gate| Load::start(&gate.url(""), &key, 8)).collect()
    }

    async fn metric(&self, name: &str, gates: &[&Faregate]) -> f64 {
        let mut sum = 0.0;
        for gate in gates {
            sum += gate.metric(name).await;
        }
        sum
    }
}

/// The last bytes of an answer wait for its charge, however long that takes: so who saw the end was charged.
fn options(sim: &Sim, proxy: &ChaosProxy, postgres: &Postgres) -> Options {
    over(Options::new(), sim, proxy, postgres)
}

fn over(settings: Options, sim: &Sim, proxy: &ChaosProxy, postgres: &Postgres) -> Options {
    settings
        .set("plans.free.signup_credits", 0)
        .set("ledger.settle_wait_ms", 60_000)
        .set("ledger.heartbeat_interval_ms", 200)
        .upstream(sim.url())
        .ledger(proxy.redis_url())
        .store(postgres.url())
}

/// Waits until the books balance, then holds them against what clients saw: every answer whose end came is charged
/// exactly once, and besides those at most the ones that broke off.
pub(crate) async fn exact(gate: &Faregate, user: &str, seen: &[Seen]) {
    let last = std::cell::RefCell::new(String::new());
    let books = eventually(HEALED, &format!("the books of {user} balance"), || async {
        let books = Books::read(gate, user).await;
        let now = format!("{:?}", books.sums());
        if *last.borrow() != now {
            eprintln!("{user}: {now}");
            last.replace(now);
        }
        (books.held == 0 && books.balance() && seen.iter().all(|seen| seen.paid.iter().all(|id| books.has(id))))
            .then_some(books)
    })
    .await;
    let paid: usize = seen.iter().map(|seen| seen.paid.len()).sum();
    let broken: usize = seen.iter().map(|seen| seen.broken).sum();
    assert_eq!(books.debt, 0);
    assert_eq!(books.charged, i64::try_from(books.usage.len()).unwrap() * 1_000_000, "each once, at its price");
    assert!((paid..=paid + broken).contains(&books.usage.len()), "{paid} paid, {broken} broken, {}", books.usage.len());
    for seen in seen {
        let only = seen.statuses.keys().all(|status| [200, 503].contains(status));
        assert!(only, "while it is opened anew, a request is refused with 503: {:?}", seen.statuses);
    }
}

async fn serves(scene: &Scene, user: &str) {
    let key = scene.gate.key(user).await;
    let url = scene.gate.url("/v1/chat/completions");
    eventually(HEALED, "requests pass again", || async {
        (scene.gate.http.post(&url, &key, &ask(false, "")).await.status == 200).then_some(())
    })
    .await;
}
