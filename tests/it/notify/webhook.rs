//! Notifications for the product's backend: signed, claimed by one replica at a time, sent again, given up.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use faregate::ledger::AccountId;
use http::{Method, StatusCode};
use ring::hmac;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::support::{Faregate, Options, Postgres, Redis, eventually};

const OLD: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const NEW: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";
const PATIENCE: Duration = Duration::from_secs(20);

/// What came, as it came.
#[derive(Debug, Clone)]
struct Received {
    id: String,
    timestamp: String,
    signature: String,
    body: String,
}

/// What a receiver does with the next messages; the last goes for all that follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Behaviour {
    Takes,
    Fails,
    /// To a place that would take it.
    Redirects,
    /// Says nothing for longer than is waited for.
    Sleeps,
    /// Takes it, with an answer without end.
    Floods,
}

/// A product's backend.
struct Receiver {
    url: String,
    received: Arc<Mutex<Vec<Received>>>,
    behaviours: Arc<Mutex<Vec<Behaviour>>>,
    _serving: JoinSet<()>,
}

impl Receiver {
    async fn start(behaviours: &[Behaviour]) -> Receiver {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/hook", listener.local_addr().unwrap());
        let received = Arc::new(Mutex::new(Vec::new()));
        let behaviours = Arc::new(Mutex::new(behaviours.to_vec()));
        let mut serving = JoinSet::new();
        let (seen, todo) = (received.clone(), behaviours.clone());
        serving.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(serve(stream, seen.clone(), todo.clone()));
            }
        });
        Receiver { url, received, behaviours, _serving: serving }
    }

    fn all(&self) -> Vec<Received> {
        self.received.lock().unwrap().clone()
    }

    async fn until(&self, count: usize) -> Vec<Received> {
        eventually(PATIENCE, "messages come", || async { Some(self.all()).filter(|all| all.len() >= count) }).await
    }

    fn behave(&self, behaviour: Behaviour) {
        *self.behaviours.lock().unwrap() = vec![behaviour];
    }
}

async fn serve(mut stream: TcpStream, seen: Arc<Mutex<Vec<Received>>>, todo: Arc<Mutex<Vec<Behaviour>>>) {
    let mut bytes = Vec::new();
    let (head, body) = loop {
        let mut chunk = [0; 4096];
        let count = stream.read(&mut chunk).await.unwrap_or(0);
        if count == 0 {
            return;
        }
        bytes.extend_from_slice(&chunk[..count]);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n")
            && body.len() >= header(head, "content-length").parse().unwrap_or(0)
        {
            break (head.to_owned(), body.to_owned());
        }
    };
    assert!(head.starts_with("POST /hook HTTP/1.1\r\n"), "{head}");
    let behaviour = {
        let mut todo = todo.lock().unwrap();
        if todo.len() > 1 { todo.remove(0) } else { todo[0] }
    };
    seen.lock().unwrap().push(Received {
        id: header(&head, "webhook-id"),
        timestamp: header(&head, "webhook-timestamp"),
        signature: header(&head, "webhook-signature"),
        body,
    });
    let answer: &[u8] = match behaviour {
        Behaviour::Takes => b"HTTP/1.1 204 No Content\r\n\r\n",
        Behaviour::Fails => b"HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n",
        Behaviour::Redirects => b"HTTP/1.1 307 There\r\nlocation: /hook\r\ncontent-length: 0\r\n\r\n",
        Behaviour::Sleeps => return std::future::pending().await,
        Behaviour::Floods => b"HTTP/1.1 200 OK\r\n\r\n",
    };
    if stream.write_all(answer).await.is_ok() && behaviour == Behaviour::Floods {
        let noise = [b'x'; 65_536];
        while stream.write_all(&noise).await.is_ok() {}
    }
}

fn header(head: &str, name: &str) -> String {
    let found = head.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        key.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
    });
    found.unwrap_or_default()
}

/// Whether a message is signed with this secret, as the receivers' libraries check it.
fn is_signed(message: &Received, secret: &str) -> bool {
    let key = STANDARD.decode(secret.strip_prefix("whsec_").unwrap()).unwrap();
    let key = hmac::Key::new(hmac::HMAC_SHA256, &key);
    let signed = format!("{}.{}.{}", message.id, message.timestamp, message.body);
    let tag = format!("v1,{}", STANDARD.encode(hmac::sign(&key, signed.as_bytes())));
    message.signature.split(' ').any(|signature| signature == tag)
}

fn options(receiver: &Receiver) -> Options {
    Options::new()
        .set("notify.webhook.url", &receiver.url)
        .set("notify.webhook.secrets", format!("{OLD},{NEW}"))
        .set("notify.webhook.retry_wait_ms", 20)
        .set("notify.webhook.max_retry_wait_ms", 100)
        .set("notify.webhook.max_attempts", 5)
        .set("notify.webhook.timeout_ms", 500)
}

async fn freeze(faregate: &Faregate, user: &str) {
    let frozen = faregate.admin(Method::POST, &format!("/admin/v1/users/{user}/freeze"), None).await;
    assert_eq!(frozen.status, StatusCode::OK, "{}", frozen.text());
}

/// Each way in which a receiver can fail is tried again, with the same id and body; both secrets sign.
#[tokio::test(flavor = "multi_thread")]
async fn a_message_is_sent_until_it_is_taken() {
    let receiver = Receiver::start(&[
        Behaviour::Fails,
        Behaviour::Redirects,
        Behaviour::Sleeps,
        Behaviour::Floods,
        Behaviour::Takes,
    ])
    .await;
    let faregate = Faregate::start(options(&receiver));
    faregate.user("ann", "5").await;
    freeze(&faregate, "ann").await;
    let all = receiver.until(4).await;
    assert!(all.iter().all(|message| is_signed(message, OLD) && is_signed(message, NEW)), "{all:?}");
    assert!(all.iter().all(|message| (&message.id, &message.body) == (&all[0].id, &all[0].body)));
    let body: Value = serde_json::from_str(&all[0].body).unwrap();
    assert_eq!((&body["type"], &body["data"]["user"]), (&json!("account_frozen"), &json!("ann")));
    assert!(AccountId::parse(body["data"]["user"].as_str().unwrap()).is_ok());
    // The answer without end was an acknowledgement: what comes next is another message.
    let unfrozen = faregate.admin(Method::DELETE, "/admin/v1/users/ann/freeze", None).await;
    assert_eq!(unfrozen.status, StatusCode::OK);
    let all = receiver.until(5).await;
    assert_eq!(all.len(), 5);
    assert_ne!(all[4].id, all[0].id);
    assert_eq!(faregate.metric("faregate_webhook_deliveries_total{result=\"retry\"}").await, 3.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_nobody_takes_is_a_dead_letter() {
    let receiver = Receiver::start(&[Behaviour::Fails]).await;
    let faregate = Faregate::start(options(&receiver));
    faregate.user("ann", "5").await;
    freeze(&faregate, "ann").await;
    let letter = eventually(PATIENCE, "it is given up", || async {
        let letters = faregate.admin(Method::GET, "/admin/v1/dead-letters", None).await.json();
        letters["data"].as_array().unwrap().first().cloned()
    })
    .await;
    assert_eq!((&letter["reason"], &letter["detail"]), (&json!("undelivered"), &json!("status 500")));
    assert_eq!(receiver.all().len(), 5);
}

/// Killed between the commit and the sending: the next start sends it.
#[tokio::test(flavor = "multi_thread")]
async fn a_message_survives_a_crash() {
    let receiver = Receiver::start(&[Behaviour::Sleeps]).await;
    let mut faregate = Faregate::start(options(&receiver).set("notify.webhook.timeout_ms", 60_000));
    faregate.user("ann", "5").await;
    freeze(&faregate, "ann").await;
    let sent = receiver.until(1).await.remove(0);
    faregate.kill9();
    receiver.behave(Behaviour::Takes);
    // What a dead process had claimed is due again when its claim runs out.
    let file = faregate.data_dir().join(faregate::store::SQLITE_FILE);
    let stored = rusqlite::Connection::open(file).unwrap();
    assert_eq!(stored.execute("UPDATE notifications SET due_at = 1 WHERE due_at IS NOT NULL", []).unwrap(), 1);
    drop(stored);
    faregate.restart();
    let all = receiver.until(2).await;
    assert_eq!((&all[1].id, &all[1].body), (&sent.id, &sent.body));
}

/// Two replicas over one store: each message once.
#[tokio::test(flavor = "multi_thread")]
async fn of_two_replicas_one_sends() {
    let receiver = Receiver::start(&[Behaviour::Takes]).await;
    let (postgres, redis) = (Postgres::start(), Redis::start());
    let options = || options(&receiver).store(postgres.url()).ledger(redis.url()).upstream("http://127.0.0.1:1");
    let replica = || Faregate::start(options());
    let replicas = [replica(), replica()];
    for number in 0..12 {
        let user = format!("user{number}");
        replicas[number % 2].user(&user, "5").await;
        freeze(&replicas[(number + 1) % 2], &user).await;
    }
    receiver.until(12).await;
    eventually(PATIENCE, "nothing waits", || async {
        let waiting = postgres.query("SELECT count(*) FROM notifications WHERE due_at IS NOT NULL");
        (waiting == ["0"]).then_some(())
    })
    .await;
    let mut ids: Vec<String> = receiver.all().into_iter().map(|message| message.id).collect();
    ids.sort();
    ids.dedup();
    assert_eq!((ids.len(), receiver.all().len()), (12, 12));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_way_can_be_tried() {
    let receiver = Receiver::start(&[Behaviour::Takes, Behaviour::Fails]).await;
    let faregate = Faregate::start(options(&receiver));
    let (out, _, done) = faregate.command(&["notify", "test"]);
    assert!(done && out.contains("was acknowledged by http://127.0.0.1"), "{out}");
    let message = receiver.all().remove(0);
    assert!(is_signed(&message, NEW) && message.body.contains(r#""type":"test""#), "{message:?}");
    let (_, error, done) = faregate.command(&["notify", "test"]);
    assert!(!done && error.contains("status 500"), "{error}");
}
