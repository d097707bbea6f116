//! Clients that ask on and on, and remember the answers whose end they saw.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hyper::Method;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::support::http::request;
use crate::support::{Http, eventually};

/// Requests that one client sends at most.
const REQUESTS_MAX: usize = 50_000;

/// A running load; stops when asked, and then says what it saw.
pub(crate) struct Load {
    clients: JoinSet<Seen>,
    stop: CancellationToken,
    answered: Arc<AtomicUsize>,
}

#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// Of answers with status 200 whose end came, by their request id.
    pub(crate) paid: Vec<String>,
    pub(crate) statuses: BTreeMap<u16, usize>,
    /// Answers that broke off, and requests without any.
    pub(crate) broken: usize,
}

impl Load {
    /// `clients` of them at `base`, each asking for plain answers and streams in turn.
    pub(crate) fn start(base: &str, key: &str, clients: usize) -> Load {
        let stop = CancellationToken::new();
        let answered = Arc::new(AtomicUsize::new(0));
        let mut tasks = JoinSet::new();
        for number in 0..clients {
            let client = Client {
                url: format!("{base}/v1/chat/completions"),
                key: key.to_owned(),
                number,
                stop: stop.clone(),
                answered: answered.clone(),
            };
            tasks.spawn(client.run());
        }
        Load { clients: tasks, stop, answered }
    }

    /// Waits until so many more answers came to their end with status 200.
    pub(crate) async fn more(&self, count: usize) {
        let goal = self.answered.load(Ordering::Relaxed) + count;
        eventually(Duration::from_secs(60), &format!("{count} more answers"), || async {
            (self.answered.load(Ordering::Relaxed) >= goal).then_some(())
        })
        .await;
    }

    pub(crate) async fn stop(mut self) -> Seen {
        self.stop.cancel();
        let mut all = Seen::default();
        while let Some(seen) = self.clients.join_next().await {
            let seen = seen.unwrap();
            all.paid.extend(seen.paid);
            all.broken += seen.broken;
            for (status, count) in seen.statuses {
                *all.statuses.entry(status).or_default() += count;
            }
        }
        all
    }
}

struct Client {
    url: String,
    key: String,
    number: usize,
    stop: CancellationToken,
    answered: Arc<AtomicUsize>,
}

impl Client {
    async fn run(self) -> Seen {
        let http = Http::new();
        let mut seen = Seen::default();
        for turn in 0..REQUESTS_MAX {
            if self.stop.is_cancelled() {
                break;
            }
            self.ask(&http, (turn + self.number).is_multiple_of(2), &mut seen).await;
        }
        seen
    }

    async fn ask(&self, http: &Http, stream: bool, seen: &mut Seen) {
        let body = ask(stream, "chunk-ms=2,first-byte-ms=2");
        let Ok(response) = http.send(request(Method::POST, &self.url, &self.key, Some(&body))).await else {
            seen.broken += 1;
            // A gateway that is down is not hammered.
            tokio::time::sleep(Duration::from_millis(20)).await;
            return;
        };
        let (head, body) = response.into_parts();
        let id = head.headers.get("x-request-id").and_then(|id| id.to_str().ok()).unwrap_or("").to_owned();
        let Ok(body) = http_body_util::BodyExt::collect(body).await else {
            seen.broken += 1;
            return;
        };
        let status = head.status.as_u16();
        *seen.statuses.entry(status).or_default() += 1;
        let body = body.to_bytes();
        if status == 200 && (!stream || body.ends_with(b"data: [DONE]\n\n")) {
            seen.paid.push(id);
            self.answered.fetch_add(1, Ordering::Relaxed);
        } else {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// A chat request for ten tokens, and as many is its limit.
pub(crate) fn ask(stream: bool, knobs: &str) -> Value {
    json!({
        "model": format!("sim-1@tokens=10,{knobs}"), "stream": stream, "max_tokens": 10,
        "messages": [{ "role": "user", "content": "How far is the harbour?" }],
    })
}
