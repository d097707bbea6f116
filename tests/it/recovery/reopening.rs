//! What happens in the middle of a reopening: a gateway dies, a grant is written.

use http::{HeaderValue, Method};
use serde_json::json;
use tokio_postgres::{Client, NoTls};
use tokio_util::task::TaskTracker;

use super::{HEALED, Scene, exact, rounds};
use crate::faults::{Books, Load};
use crate::support::http::request;
use crate::support::{Redis, eventually};

/// Where the store stands still: a flush as every other, and the three steps of a reopening that it takes part in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Point {
    Flush = 0,
    /// The shard is closed, the store's epoch is not raised yet.
    Closed = 1,
    /// What survived is being written.
    Surviving = 2,
    /// All is written, and the store does not say so yet.
    Written = 3,
}

/// Whoever has a point's advisory lock holds up everybody who gets there.
const HELD_UP: &str = "CREATE FUNCTION held_up() RETURNS trigger LANGUAGE plpgsql AS $$
    DECLARE point int := 4200 + CASE WHEN NOT old.reopening AND NOT new.reopening THEN 0 WHEN NOT old.reopening THEN 1
        WHEN new.reopening THEN 2 ELSE 3 END;
    BEGIN
        PERFORM pg_advisory_lock_shared(point);
        PERFORM pg_advisory_unlock_shared(point);
        RETURN new;
    END $$;
    CREATE TRIGGER held_up BEFORE UPDATE ON ledger_cursors FOR EACH ROW EXECUTE FUNCTION held_up()";

/// Holds the store up at some points.
struct Bars {
    client: Client,
    tasks: TaskTracker,
}

impl Bars {
    async fn new(scene: &Scene) -> Bars {
        scene.postgres.query(HELD_UP);
        let (client, connection) = tokio_postgres::connect(&scene.postgres.url(), NoTls).await.unwrap();
        let tasks = TaskTracker::new();
        tasks.spawn(async move { drop(connection.await) });
        Bars { client, tasks }
    }

    async fn lower(&self, point: Point) {
        self.client.execute("SELECT pg_advisory_lock($1)", &[&(4200 + point as i64)]).await.unwrap();
    }

    async fn raise(&self, point: Point) {
        self.client.execute("SELECT pg_advisory_unlock($1)", &[&(4200 + point as i64)]).await.unwrap();
    }

    /// Somebody stands there.
    async fn held_up(&self, point: Point) {
        let select = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND objid::bigint = $1";
        eventually(HEALED, &format!("the gateway comes to {point:?}"), || async {
            let row = self.client.query_one(select, &[&(4200 + point as i64)]).await.unwrap();
            (row.get::<_, i64>(0) > 0).then_some(())
        })
        .await;
    }

    /// Besides the flush that is held up somebody wants the cursor's row.
    async fn behind_a_flush(&self) {
        let select = "SELECT count(*) FROM pg_locks AS l JOIN pg_stat_activity AS a USING (pid)
            WHERE a.datname = current_database() AND NOT l.granted AND l.locktype IN ('transactionid', 'tuple')
                AND a.query LIKE 'SELECT epoch, counter FROM ledger_cursors%'";
        eventually(HEALED, "a reopening waits for the cursor", || async {
            let row = self.client.query_one(select, &[]).await.unwrap();
            (row.get::<_, i64>(0) > 0).then_some(())
        })
        .await;
    }

    async fn end(self) {
        drop(self.client);
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// Redis loses what says how far the shard is, with entries in the log that the store does not have; the reopening stands
/// still at `point`.
async fn stopped_at(scene: &Scene, bars: &Bars, point: Point, load: &Load) {
    bars.lower(Point::Flush).await;
    load.more(20).await;
    bars.held_up(Point::Flush).await;
    load.more(10).await;
    bars.lower(point).await;
    let meta = scene.redis.command(&["KEYS", "fg:*:meta"]);
    assert_eq!(scene.redis.command(&["DEL", &meta]), "1");
    // Whoever opens the shard anew waits behind the flush that stands still, and goes before the next one.
    bars.behind_a_flush().await;
    bars.raise(Point::Flush).await;
    bars.held_up(point).await;
}

/// Five credits more, under a key. Whatever holds the store up may hold this up, too: `false` where it was answered with
/// 503, and is to be sent again.
async fn given(scene: &Scene, user: &str) -> bool {
    let url = format!("http://{}/admin/v1/users/{user}/grants", scene.gate.admin_addr());
    let mut ask = request(Method::POST, &url, scene.gate.admin_token(), Some(&json!({"amount": 5})));
    ask.headers_mut().insert("idempotency-key", HeaderValue::try_from(user).unwrap());
    let answer = scene.gate.http.call(ask).await;
    assert!([201, 503].contains(&answer.status.as_u16()), "{}", answer.text());
    answer.status == 201
}

/// 100,000 credits and this grant, once each.
async fn granted_once(scene: &Scene, user: &str) {
    let books = eventually(HEALED, "the grant is there", || async {
        let books = Books::read(&scene.gate, user).await;
        (books.available + books.charged == 100_005_000_000 && books.held == 0).then_some(books)
    })
    .await;
    assert_eq!((books.granted, books.debt), (100_005_000_000, 0));
    let rows = format!("SELECT count(*), count(*) FILTER (WHERE applied) FROM credit_changes WHERE user_id = '{user}'");
    // Its event follows what the ledger says by a moment.
    eventually(HEALED, "it is applied", || async { (scene.postgres.query(&rows) == ["2|2"]).then_some(()) }).await;
}

/// failures 22, 46, 47: the gateway that opens the shard anew is killed at each of its steps, a grant having been written
/// meanwhile. The next one goes on; what survived in the log is written once, and the grant counts once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_dies_in_the_middle_of_a_reopening() {
    let mut scene = Scene::start(Redis::durable());
    let bars = Bars::new(&scene).await;
    for round in 0..rounds() {
        let user = format!("dies-{round}");
        let load = scene.load(&user, &[&scene.gate]).await.remove(0);
        load.more(10).await;
        // The last one stands between the store's word that all is written and the opening.
        let (point, opening) =
            [(Point::Closed, false), (Point::Surviving, false), (Point::Written, false), (Point::Written, true)]
                [round % 4];
        stopped_at(&scene, &bars, point, &load).await;
        let given_before = given(&scene, &user).await;
        if opening {
            scene.redis.pause();
            bars.raise(point).await;
            eventually(HEALED, "the store says that all is written", || async {
                (scene.postgres.query("SELECT count(*) FROM ledger_cursors WHERE reopening") == ["0"]).then_some(())
            })
            .await;
            scene.gate.kill9();
            scene.redis.resume();
        } else {
            scene.gate.kill9();
            bars.raise(point).await;
        }
        let seen = load.stop().await;
        tokio::task::block_in_place(|| scene.gate.restart());
        assert!(given_before || given(&scene, &user).await);
        exact(&scene.gate, &user, &[seen]).await;
        granted_once(&scene, &user).await;
    }
    bars.end().await;
    tokio::task::block_in_place(|| scene.gate.audit().unwrap());
}

/// failures 16, 37: a grant that is written while the shard is opened anew, at each of its steps, with a gateway that lives.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_grant_written_during_a_reopening_counts_once() {
    let scene = Scene::start(Redis::durable());
    let bars = Bars::new(&scene).await;
    for round in 0..rounds() {
        let user = format!("granted-{round}");
        let load = scene.load(&user, &[&scene.gate]).await.remove(0);
        load.more(10).await;
        let point = [Point::Closed, Point::Surviving, Point::Written][round % 3];
        stopped_at(&scene, &bars, point, &load).await;
        let given_before = given(&scene, &user).await;
        bars.raise(point).await;
        assert!(given_before || given(&scene, &user).await);
        load.more(20).await;
        exact(&scene.gate, &user, &[load.stop().await]).await;
        granted_once(&scene, &user).await;
    }
    bars.end().await;
    assert!(scene.gate.metric("faregate_ledger_reopenings_total").await >= rounds() as f64);
    tokio::task::block_in_place(|| scene.gate.audit().unwrap());
}
