//! Reports: their figures are those of the rows that they are made of.

use std::collections::{BTreeMap, BTreeSet};

use faregate::config::{Config, Experiment, Plan, PlanPrice, Variant};
use faregate::credits::Credits;
use faregate::store::SharedStore;
use faregate::store::questions::{Question, Row, Value, int, text, time};
use http::{Method, StatusCode};
use serde_json::Value as Json;

use super::rig::{Ground, Rig};
use crate::support::http::Answer;

const DAY_US: u64 = 86_400_000_000;
/// 2026-03-01, and the days of that month.
const FROM: u64 = 20_513;
const DAYS: u64 = 31;
const USERS: u64 = 24;
/// Messages a day.
const HEAVY: i64 = 1;
const PLANS: [&str; 3] = ["free", "none", "tight"];
/// A client chooses what looks like a formula.
const MODELS: [&str; 5] = ["", "=HYPERLINK(\"x\")", "claude-3", "gpt-4o", "o3, mini"];

/// A plan that is sold, at one of two prices.
pub(crate) fn trial(config: &mut Config) {
    let price = |id: &str, amount| PlanPrice { id: id.into(), amount, ..PlanPrice::default() };
    let pro = Plan { credits: Credits::whole(1_000), prices: vec![price("price_own", 2_000)], ..Plan::default() };
    config.plans.insert("pro".into(), pro);
    let control = Variant { name: "control".into(), ..Variant::default() };
    let (prices, credits) = (vec![price("price_less", 1_500)], Some(Credits::whole(800)));
    let cheaper = Variant { name: "cheaper".into(), prices, credits, ..Variant::default() };
    let experiment = Experiment { plan: "pro".into(), variants: vec![control, cheaper], ..Experiment::default() };
    config.experiments.insert("pro_price".into(), experiment);
}

/// The same numbers in every run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % below
    }
}

fn now() -> u64 {
    u64::try_from(jiff::Timestamp::now().as_microsecond()).unwrap()
}

async fn execute(store: &SharedStore, sql: &str, values: Vec<Value>) {
    store.execute(vec![Question::new(sql, values)]).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
}

async fn rows(store: &SharedStore, sql: &str) -> Vec<Row> {
    store.ask(vec![Question::new(sql, [])]).await.unwrap().pop().unwrap()
}

fn number(row: &Row, column: usize) -> i64 {
    row[column].int()
}

fn string(row: &Row, column: usize) -> String {
    row[column].string()
}

fn none() -> Value {
    Value::Text(None)
}

async fn make_user(store: &SharedStore, index: u64, made: u64) {
    let id = format!("u{index:02}");
    let plan = PLANS[usize::try_from(index).unwrap() % PLANS.len()];
    let insert = "INSERT INTO users (id, plan, status, created_at) VALUES (?, ?, 'active', ?)";
    execute(store, insert, vec![text(&id), text(plan), time(made)]).await;
    execute(store, "INSERT INTO credits (user_id) VALUES (?)", vec![text(&id)]).await;
}

async fn make_usage(ground: &Ground, dice: &mut Dice) {
    let store = &ground.store;
    for index in 0..USERS {
        let id = format!("u{index:02}");
        make_user(store, index, (FROM - 20 + dice.roll(60)) * DAY_US + dice.roll(DAY_US)).await;
        // Some never came, some came a lot.
        let count = [0, 3, 9, 120][usize::try_from(dice.roll(4)).unwrap()];
        let mut inserts = Vec::new();
        for seq in 1..=count {
            // The stores write ids of requests in ways of their own.
            let request = format!("{:032x}", (index << 32) | seq);
            let request =
                if ground.config.store.url.is_empty() { format!("x'{request}'") } else { format!("'{request}'::uuid") };
            inserts.push(usage_row(&request, &id, seq, dice));
        }
        store.execute(inserts).await.unwrap();
        let update = "UPDATE credits SET seq = ? WHERE user_id = ?";
        execute(store, update, vec![int(count.cast_signed()), text(&id)]).await;
    }
}

fn usage_row(request: &str, id: &str, seq: u64, dice: &mut Dice) -> Question {
    // A third of the users was not there before.
    let before = if id.bytes().last().is_some_and(|last| last % 3 == 0) { 0 } else { 15 };
    let at = (FROM - before + dice.roll(60)) * DAY_US + dice.roll(DAY_US);
    let model = MODELS[usize::try_from(dice.roll(5)).unwrap()];
    let model = if model.is_empty() { none() } else { text(model) };
    let status = [200, 200, 429, 500][usize::try_from(dice.roll(4)).unwrap()];
    let estimated = if dice.roll(2) == 1 { "true" } else { "false" };
    let sql = format!(
        "INSERT INTO usage_logs (request_id, user_id, seq, route, model, status, charged, input_tokens, cached_tokens,
            output_tokens, estimated, streamed, latency_ms, created_at, settled_at)
        VALUES ({request}, ?, ?, 'openai', ?, ?, ?, ?, ?, ?, {estimated}, false, 5, ?, ?)"
    );
    let [charged, input, cached, output] = [3_000_000, 5_000, 100, 900].map(|most| int(dice.roll(most).cast_signed()));
    let seq = int(seq.cast_signed());
    Question::new(sql, [text(id), seq, model, int(status), charged, input, cached, output, time(at), time(at)])
}

async fn report(rig: &Rig, path: &str) -> Answer {
    let answer = rig.admin(Method::GET, &format!("/admin/v1/reports/{path}")).send().await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
    answer
}

/// Messages, micro-credits, tokens (in, cached, out), estimated, errors (4xx, 5xx), and who.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Sums([i64; 8], BTreeSet<String>);

impl Sums {
    fn add(&mut self, row: &Row) {
        let status = number(row, 4);
        let more = [
            1,
            number(row, 5),
            number(row, 6),
            number(row, 7),
            number(row, 8),
            number(row, 9),
            i64::from((400..500).contains(&status)),
            i64::from(status >= 500),
        ];
        for (sum, more) in self.0.iter_mut().zip(more) {
            *sum += more;
        }
        self.1.insert(string(row, 0));
    }

    fn of_view(view: &Json) -> [i64; 8] {
        let number = |name: &str| view[name].as_i64().unwrap();
        [
            number("messages"),
            micro(&view["credits"]),
            number("input_tokens"),
            number("cached_tokens"),
            number("output_tokens"),
            number("estimated"),
            number("client_errors"),
            number("server_errors"),
        ]
    }
}

fn micro(value: &Json) -> i64 {
    value.to_string().parse::<Credits>().unwrap().micro()
}

fn date(day: u64) -> String {
    jiff::Timestamp::from_second(day.cast_signed() * 86_400).unwrap().strftime("%Y-%m-%d").to_string()
}

/// Raw usage rows: user, plan, day, model, status, then figures.
async fn raw_usage(store: &SharedStore) -> Vec<Row> {
    let select =
        "SELECT l.user_id, u.plan, {day:l.created_at}, coalesce(l.model, ''), l.status, l.charged, l.input_tokens,
            l.cached_tokens, l.output_tokens, l.estimated
        FROM usage_logs AS l JOIN users AS u ON u.id = l.user_id";
    rows(store, select).await
}

fn grouped(raw: &[Row], within: impl Fn(i64) -> bool, by: impl Fn(&Row) -> String) -> BTreeMap<String, Sums> {
    let mut sums: BTreeMap<String, Sums> = BTreeMap::new();
    for row in raw.iter().filter(|row| within(number(row, 2))) {
        sums.entry(by(row)).or_default().add(row);
    }
    sums
}

fn viewed(list: &Json, name: &str) -> BTreeMap<String, ([i64; 8], i64)> {
    let of = |view: &Json| {
        let key = view[name].as_str().unwrap_or_default().to_owned();
        (key, (Sums::of_view(view), view["active_users"].as_i64().unwrap()))
    };
    list.as_array().unwrap().iter().map(of).filter(|(_, (sums, _))| sums[0] > 0).collect()
}

fn expected(sums: BTreeMap<String, Sums>) -> BTreeMap<String, ([i64; 8], i64)> {
    sums.into_iter().map(|(key, Sums(sums, users))| (key, (sums, signed(users.len())))).collect()
}

fn signed(count: usize) -> i64 {
    i64::try_from(count).unwrap()
}

/// Issue 5, point 6: the figures equal sums computed independently from the raw rows.
pub(super) async fn usage_reports_equal_the_raw_rows(ground: &Ground) {
    let rig = ground.replica();
    let mut dice = Dice(7);
    make_usage(ground, &mut dice).await;
    // Who has little left, who has nothing, who has enough, and whose credits are over.
    for (user, amount, remaining, over) in
        [("u00", 100, 20, false), ("u01", 100, 21, false), ("u02", 5, 0, false), ("u03", 10, 1, true)]
    {
        grant(&ground.store, user, 1, amount, remaining, now(), over, "").await;
    }
    buy(&ground.store, "u05", "inv:1", 0, 500, (FROM + 3) * DAY_US, "trial").await;
    for (user, day) in [("u04", FROM + 1), ("u04", FROM + 40), ("u06", FROM - 1), ("u07", FROM + 30)] {
        buy(&ground.store, user, &format!("inv:{user}{day}"), 2_000, 0, day * DAY_US, "period").await;
    }
    let (from, to) = (FROM.cast_signed(), (FROM + DAYS).cast_signed());
    let raw = raw_usage(&ground.store).await;
    let within = |day: i64| (from..to).contains(&day);
    let query = format!("usage?from={}&to={}", date(FROM), date(FROM + DAYS));
    let report = report_json(&rig, &query).await;

    let all = grouped(&raw, within, |_| String::new()).remove("").unwrap();
    assert!(all.0[0] > 100, "there is something to add up: {all:?}");
    assert_eq!(Sums::of_view(&report["totals"]), all.0);
    let by_day = grouped(&raw, within, |row| date(number(row, 2).cast_unsigned()));
    assert_eq!(viewed(&report["days"], "day"), expected(by_day));
    assert_eq!(viewed(&report["plans"], "plan"), expected(grouped(&raw, within, |row| string(row, 1))));
    assert_eq!(viewed(&report["models"], "model"), expected(grouped(&raw, within, |row| string(row, 3))));

    let users = rows(&ground.store, "SELECT id, {day:created_at} FROM users").await;
    let made: Vec<&Row> = users.iter().filter(|row| within(number(row, 1))).collect();
    let by_user = grouped(&raw, within, |row| string(row, 0));
    let before = grouped(&raw, |day| day < from, |row| string(row, 0));
    let heavy = by_user.values().filter(|sums| sums.0[0] >= HEAVY * DAYS.cast_signed()).count();
    let returning = by_user.keys().filter(|user| before.contains_key(*user)).count();
    let shown = &report["users"];
    assert_eq!(shown["total"], USERS);
    assert_eq!(shown["new"], made.len());
    assert_eq!(shown["active"], by_user.len());
    assert_eq!((&shown["heavy"], heavy > 0), (&heavy.into(), true));
    assert_eq!((&shown["returning"], returning > 0 && returning < by_user.len()), (&returning.into(), true));
    assert_eq!((&shown["near_limit"], &shown["exhausted"]), (&1.into(), &1.into()));
    assert_eq!(report["near_limit"][0]["user"], "u00");
    let new_users: i64 = report["days"].as_array().unwrap().iter().map(|day| day["new_users"].as_i64().unwrap()).sum();
    assert_eq!(new_users, signed(made.len()));

    // A trial is no payment; who paid before the span is no first payer.
    let payers = ["u04", "u06", "u07"];
    let paid = made.iter().filter(|row| payers.contains(&string(row, 0).as_str())).count();
    let conversion = &report["conversion"];
    assert_eq!((&conversion["signed_up"], &conversion["paid"]), (&made.len().into(), &paid.into()));
    assert_eq!(conversion["first_paid"], 2);
    csv_is_safe(&rig, &query).await;
}

async fn report_json(rig: &Rig, query: &str) -> Json {
    report(rig, query).await.json()
}

async fn csv_is_safe(rig: &Rig, query: &str) {
    let csv = report(rig, &format!("{query}&format=csv&table=models")).await;
    assert_eq!(csv.headers["content-type"], "text/csv; charset=utf-8; header=present");
    let text = csv.text();
    assert!(text.starts_with("model,active_users,messages,credits,input_tokens,"), "{text}");
    assert!(text.contains("\r\n\"'=HYPERLINK(\"\"x\"\")\","), "{text}");
    assert!(text.contains("\r\n\"o3, mini\","), "{text}");
    let accepted =
        rig.admin(Method::GET, &format!("/admin/v1/reports/{query}")).header("accept", "text/csv").send().await;
    assert!(accepted.text().starts_with("day,active_users,new_users,"), "{}", accepted.text());
    for bad in
        ["usage?table=x", "usage?from=2026-01-01&to=2028-01-01", "usage?form=csv", "revenue?table=days&format=csv"]
    {
        let answer = rig.admin(Method::GET, &format!("/admin/v1/reports/{bad}")).send().await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{bad}");
    }
}

/// A grant as the store has it once the ledger knows it.
#[expect(clippy::too_many_arguments, reason = "one row of a table")]
async fn grant(
    store: &SharedStore,
    user: &str,
    id: i64,
    amount: i64,
    remaining: i64,
    at: u64,
    over: bool,
    source_key: &str,
) {
    let key = if source_key.is_empty() { none() } else { text(source_key) };
    let change = "INSERT INTO credit_changes (user_id, number, payload, source_key, actor, created_at, applied)
        VALUES (?, ?, 'x', ?, 'test', ?, true)";
    execute(store, change, vec![text(user), int(id), key.clone(), time(at)]).await;
    let insert = "INSERT INTO credit_grants (user_id, id, kind, amount, remaining, expires_at, source_key, created_at)
        VALUES (?, ?, 'plan', ?, ?, ?, ?, ?)";
    let expires = Value::Time(over.then(|| at - DAY_US));
    let values = vec![text(user), int(id), int(amount), int(remaining), expires, key, time(at)];
    execute(store, insert, values).await;
}

async fn buy(store: &SharedStore, user: &str, id: &str, amount: i64, reversed: i64, at: u64, kind: &str) {
    let account = "INSERT INTO billing_accounts (user_id) VALUES (?) ON CONFLICT DO NOTHING";
    execute(store, account, vec![text(user)]).await;
    let insert = "INSERT INTO purchases (id, user_id, kind, name, currency, amount, reversed, credits, created_at)
        VALUES (?, ?, ?, ?, ?, ?, ?, 0, ?)";
    let name = if kind == "pack" { "small" } else { "pro" };
    let currency = if user == "u07" { "eur" } else { "usd" };
    let reversed = if kind == "trial" { 0 } else { reversed };
    let values =
        vec![text(id), text(user), text(kind), text(name), text(currency), int(amount), int(reversed), time(at)];
    execute(store, insert, values).await;
}

/// Issue 5, point 6.
pub(super) async fn revenue_reports_equal_the_raw_rows(ground: &Ground) {
    let rig = ground.replica();
    let mut dice = Dice(11);
    make_usage(ground, &mut dice).await;
    for number in 0..40_i64 {
        let user = format!("u{:02}", dice.roll(8));
        let at = (FROM - 20 + dice.roll(70)) * DAY_US + dice.roll(DAY_US);
        let kind = ["period", "pack", "trial"][usize::try_from(dice.roll(3)).unwrap()];
        let amount = if kind == "trial" { 0 } else { 100 + dice.roll(5_000).cast_signed() };
        let reversed = if dice.roll(4) == 0 { amount / 2 } else { 0 };
        let id = format!("inv:{number}");
        buy(&ground.store, &user, &id, amount, reversed, at, kind).await;
        let granted = 1_000_000 + dice.roll(9_000_000).cast_signed();
        let remaining = granted / (1 + dice.roll(5).cast_signed());
        let key = format!("g:{number}");
        grant(&ground.store, &user, 10 + number, granted, remaining, at, false, &key).await;
        let used_as = if dice.roll(5) == 0 { "rollover" } else { "main" };
        let insert =
            "INSERT INTO purchase_grants (source_key, purchase_id, user_id, use, amount) VALUES (?, ?, ?, ?, ?)";
        execute(&ground.store, insert, vec![text(key), text(id), text(user), text(used_as), int(granted)]).await;
    }
    for number in 0..6_i64 {
        let user = format!("u{number:02}");
        grant(&ground.store, &user, 500, 5_000_000, 1_000_000 * number, (FROM + 2) * DAY_US, false, "").await;
    }
    events(&ground.store).await;
    let query = format!("revenue?from={}&to={}", date(FROM), date(FROM + DAYS));
    let report = report_json(&rig, &query).await;

    let raw =
        rows(&ground.store, "SELECT {day:created_at}, currency, kind, name, amount, reversed, user_id FROM purchases")
            .await;
    let within = |day: i64| (FROM.cast_signed()..(FROM + DAYS).cast_signed()).contains(&day);
    let mut months: BTreeMap<(String, String, String), [i64; 3]> = BTreeMap::new();
    for row in raw.iter().filter(|row| within(number(row, 0)) && number(row, 4) > 0) {
        let kind = if string(row, 2) == "pack" { "pack" } else { "plan" };
        let sums = months.entry((string(row, 1), string(row, 3), kind.to_owned())).or_default();
        for (sum, more) in sums.iter_mut().zip([1, number(row, 4), number(row, 5)]) {
            *sum += more;
        }
    }
    let shown: BTreeMap<(String, String, String), [i64; 3]> = report["months"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| {
            assert_eq!(row["month"], "2026-03");
            assert_eq!(
                row["net"].as_i64().unwrap(),
                row["amount"].as_i64().unwrap() - row["refunded"].as_i64().unwrap()
            );
            let text = |name: &str| row[name].as_str().unwrap().to_owned();
            let figure = |name: &str| row[name].as_i64().unwrap();
            (
                (text("currency"), text("name"), text("kind")),
                [figure("purchases"), figure("amount"), figure("refunded")],
            )
        })
        .collect();
    assert!(months.len() >= 3, "{months:?}");
    assert_eq!(shown, months);
    let payers: BTreeSet<String> =
        raw.iter().filter(|row| number(row, 4) > number(row, 5)).map(|row| string(row, 6)).collect();
    assert_eq!(report["payers"], payers.len());
    // The event of another kind and the one before the span are left out; two attempts at one invoice are one payment.
    let failed = &report["failed_payments"];
    assert_eq!(
        (failed.as_array().unwrap().len(), &failed[0]["payments"], &failed[0]["attempts"]),
        (1, &2.into(), &3.into())
    );
    credits_equal_the_raw_rows(ground, &report["credits"], within).await;
}

async fn events(store: &SharedStore) {
    let told = [
        ("evt_1", "invoice.payment_failed", "in_1", FROM),
        ("evt_2", "invoice.payment_failed", "in_1", FROM + 3),
        ("evt_3", "checkout.session.async_payment_failed", "cs_1", FROM + 5),
        ("evt_4", "invoice.paid", "in_1", FROM + 5),
        ("evt_5", "invoice.payment_failed", "in_2", FROM - 1),
    ];
    for (id, kind, object, day) in told {
        let insert =
            "INSERT INTO billing_events (id, event_type, object_type, object_id, livemode, currency, created_at,
                received_at, state, next_attempt_at, payload)
            VALUES (?, ?, 'invoice', ?, false, 'usd', ?, ?, 'processed', ?, 'x')";
        let at = || time(day * DAY_US);
        execute(store, insert, vec![text(id), text(kind), text(object), at(), at(), at()]).await;
    }
}

async fn credits_equal_the_raw_rows(ground: &Ground, shown: &Json, within: impl Fn(i64) -> bool) {
    let grants = rows(
        &ground.store,
        "SELECT g.amount, g.remaining, {day:g.created_at}, coalesce(p.amount, 0), coalesce(m.use, '')
            FROM credit_grants AS g LEFT JOIN purchase_grants AS m ON m.source_key = g.source_key
            LEFT JOIN purchases AS p ON p.id = m.purchase_id",
    )
    .await;
    let (mut sold, mut given, mut left_sold, mut left_given) = (0, 0, 0, 0);
    for row in &grants {
        let fresh = within(number(row, 2)) && string(row, 4) != "rollover";
        let (sum, left) = if number(row, 3) > 0 { (&mut sold, &mut left_sold) } else { (&mut given, &mut left_given) };
        *sum += if fresh { number(row, 0) } else { 0 };
        *left += number(row, 1);
    }
    let raw = raw_usage(&ground.store).await;
    let used: i64 = raw.iter().filter(|row| within(number(row, 2))).map(|row| number(row, 5)).sum();
    assert!([sold, given, left_sold, left_given, used].iter().all(|sum| *sum > 0));
    assert_eq!((micro(&shown["sold"]), micro(&shown["given"]), micro(&shown["used"])), (sold, given, used));
    let outstanding = &shown["outstanding"];
    assert_eq!((micro(&outstanding["sold"]), micro(&outstanding["given"])), (left_sold, left_given));
    assert_eq!(micro(&outstanding["total"]), left_sold + left_given);
}

pub(super) async fn the_audit_log_is_read_by_the_page(ground: &Ground) {
    let rig = ground.replica();
    for user in ["ann", "bob"] {
        rig.user(user, "1").await;
    }
    let read = async |query: &str| {
        let answer = rig.admin(Method::GET, &format!("/admin/v1/audit{query}")).send().await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
        answer.json()
    };
    let all = read("?limit=500").await;
    let ids: Vec<i64> = all["data"].as_array().unwrap().iter().map(|line| line["id"].as_i64().unwrap()).collect();
    assert!(ids.len() >= 6 && ids.is_sorted_by(|a, b| a > b), "{all}");
    let (mut paged, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = read(&format!("?limit=2&cursor={cursor}")).await;
        paged.extend(page["data"].as_array().unwrap().iter().map(|line| line["id"].as_i64().unwrap()));
        match page["next"].as_str() {
            Some(next) => cursor = next.to_owned(),
            None => break,
        }
    }
    assert_eq!(paged, ids);
    let of_ann = read("?user=ann&actor=operator&action=user.create").await;
    assert_eq!(of_ann["data"].as_array().unwrap().len(), 1);
    assert!(of_ann["data"][0]["user_id"] == "ann" && of_ann["data"][0]["at"].is_string());
    for bad in ["?cursor=x", "?limit=0", "?who=me", "?actor=%00"] {
        let answer = rig.admin(Method::GET, &format!("/admin/v1/audit{bad}")).send().await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{bad}");
    }
    assert_eq!(rig.open(Method::GET, "/admin/v1/audit").send().await.status, StatusCode::UNAUTHORIZED);
}

pub(super) async fn feedback_is_kept_bounded_and_read(ground: &Ground) {
    let rig = ground.replica();
    let (ann, bob) = (rig.user("ann", "1").await, rig.user("bob", "1").await);
    let say = async |key: &str, body: Json| rig.api(Method::POST, "/api/feedback", key).json(&body).send().await;
    let said =
        say(&ann, serde_json::json!({"message": " It works.\nMostly. ", "rating": 4, "category": "praise"})).await;
    assert_eq!(said.status, StatusCode::CREATED, "{}", said.text());
    for bad in [
        serde_json::json!({"message": ""}),
        serde_json::json!({"message": "x".repeat(4_001)}),
        serde_json::json!({"message": "\u{0}"}),
        serde_json::json!({"message": "x", "rating": 6}),
        serde_json::json!({"message": "x", "category": "spam"}),
        serde_json::json!({"message": "x", "request_id": "x"}),
        serde_json::json!({"message": "x", "user": "bob"}),
    ] {
        assert_eq!(say(&ann, bad.clone()).await.status, StatusCode::BAD_REQUEST, "{bad}");
    }
    assert_eq!(say("", serde_json::json!({"message": "x"})).await.status, StatusCode::UNAUTHORIZED);
    // All at once: ten an hour is ten, with the one above.
    let bodies = (0..20).map(|number| serde_json::json!({"message": format!("again {number}")}));
    let answers = futures_util::future::join_all(bodies.map(|body| say(&ann, body))).await;
    let count = |status: StatusCode| answers.iter().filter(|answer| answer.status == status).count();
    assert_eq!((count(StatusCode::CREATED), count(StatusCode::TOO_MANY_REQUESTS)), (9, 11));
    // Another user is not held to it, and a repetition is kept once.
    for _ in 0..2 {
        let ask = rig.api(Method::POST, "/api/feedback", &bob).header("idempotency-key", "k1");
        assert_eq!(ask.json(&serde_json::json!({"message": "once"})).send().await.status, StatusCode::CREATED);
    }
    let read = async |query: &str| {
        let answer = rig.admin(Method::GET, &format!("/admin/v1/feedback{query}")).send().await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
        answer.json()
    };
    assert_eq!(read("?user=bob").await["data"].as_array().unwrap().len(), 1);
    let praise = read("?category=praise").await;
    assert_eq!(
        (&praise["data"][0]["message"], &praise["data"][0]["rating"]),
        (&"It works.\nMostly.".into(), &4.into())
    );
    let (mut seen, mut cursor) = (BTreeSet::new(), String::new());
    loop {
        let page = read(&format!("?limit=4&cursor={cursor}")).await;
        seen.extend(page["data"].as_array().unwrap().iter().map(|row| row["id"].as_str().unwrap().to_owned()));
        match page["next"].as_str() {
            Some(next) => cursor = next.to_owned(),
            None => break,
        }
    }
    assert_eq!(seen.len(), 11);
    assert_eq!(rig.admin(Method::GET, "/admin/v1/feedback?cursor=x").send().await.status, StatusCode::BAD_REQUEST);
}

/// Issue 5, point 7: sticky per user, reported by variant with conversion and revenue.
pub(super) async fn experiments_are_sticky_and_reported_by_variant(ground: &Ground) {
    let (rig, other) = (ground.replica(), ground.replica());
    let mut seen: BTreeMap<String, i64> = BTreeMap::new();
    let price = async |rig: &Rig, key: &str| {
        let plans = rig.api(Method::GET, "/api/plans", key).send().await;
        assert_eq!(plans.status, StatusCode::OK, "{}", plans.text());
        let plan = plans.json()["plans"].as_array().unwrap().iter().find(|plan| plan["name"] == "pro").unwrap().clone();
        (plan["prices"][0]["amount"].as_i64().unwrap(), plan["credits"].as_i64().unwrap())
    };
    for number in 0..12 {
        let name = format!("x{number}");
        let key = rig.user(&name, "0").await;
        let (amount, credits) = price(&rig, &key).await;
        assert_eq!(credits, if amount == 1_500 { 800 } else { 1_000 });
        // On another replica and again: the same.
        assert_eq!(price(&other, &key).await, (amount, credits));
        seen.insert(name, amount);
    }
    assert_eq!(price(&rig, "").await, (2_000, 1_000), "who sends no key sees the plan's own");
    let cheap: Vec<&String> = seen.iter().filter(|(_, amount)| **amount == 1_500).map(|(name, _)| name).collect();
    assert!(!cheap.is_empty() && cheap.len() < seen.len(), "{seen:?}");
    // Two of the cheap ones pay, one of them twice; a payment from before does not count, nor a pack.
    let later = now() + 1_000_000;
    buy(&ground.store, cheap[0], "inv:a", 1_500, 0, later, "period").await;
    buy(&ground.store, cheap[0], "inv:b", 1_500, 500, later, "period").await;
    buy(&ground.store, cheap[0], "inv:c", 700, 0, later, "pack").await;
    let control = seen.iter().find(|(_, amount)| **amount == 2_000).unwrap().0;
    buy(&ground.store, control, "inv:d", 2_000, 0, 1_000_000, "period").await;
    let told = rig.admin(Method::GET, "/admin/v1/experiments").send().await;
    assert_eq!(told.status, StatusCode::OK, "{}", told.text());
    let told = told.json();
    let experiment = &told["data"][0];
    assert_eq!((&experiment["name"], &experiment["plan"]), (&"pro_price".into(), &"pro".into()));
    let variant = |name: &str| {
        let variants = experiment["variants"].as_array().unwrap();
        variants.iter().find(|variant| variant["name"] == name).unwrap().clone()
    };
    let (own, less) = (variant("control"), variant("cheaper"));
    assert_eq!((&own["users"], &own["converted"]), (&(seen.len() - cheap.len()).into(), &0.into()));
    assert_eq!((&less["users"], &less["converted"]), (&cheap.len().into(), &1.into()));
    let expected =
        serde_json::json!([{"currency": "usd", "purchases": 2, "amount": 3_000, "refunded": 500, "net": 2_500}]);
    assert_eq!(less["revenue"], expected);
    assert_eq!(own["revenue"], serde_json::json!([]));
}
