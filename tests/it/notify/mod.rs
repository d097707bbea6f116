//! What users are told: the list, the warnings, the event streams, and the product's backend.

mod events;
mod list;
mod process;
mod thresholds;
mod webhook;

use std::time::Duration;

use axum::body::Body;
use futures_util::StreamExt;
use http::{Method, StatusCode};
use serde_json::Value;

use crate::api::rig::Rig;

/// No event takes so long on a machine that is not stuck.
const PATIENCE: Duration = Duration::from_secs(10);

/// Runs tests over both pairs of ledger and store.
macro_rules! on_both {
    ($($test:ident),* $(,)?) => {
        mod embedded {
            use crate::api::rig::{Ground, settings};
            $(#[tokio::test(flavor = "multi_thread")] async fn $test() {
                super::$test(&Ground::embedded(settings()).await).await;
            })*
        }
        mod distributed {
            use crate::api::rig::{Ground, settings};
            $(#[tokio::test(flavor = "multi_thread")] async fn $test() {
                super::$test(&Ground::distributed(settings()).await).await;
            })*
        }
    };
}
use on_both;

/// One event as a client reads it.
#[derive(Debug, Clone)]
struct Event {
    name: String,
    id: String,
    data: Value,
}

/// An open event stream.
struct Listener {
    body: axum::body::BodyDataStream,
    text: String,
}

impl Listener {
    async fn open(rig: &Rig, key: &str, last: Option<&str>) -> Listener {
        let mut ask = rig.api(Method::GET, "/api/events", key);
        if let Some(last) = last {
            ask = ask.header("last-event-id", last);
        }
        let response = ask.begin().await;
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Listener::of(response.into_body())
    }

    fn of(body: Body) -> Listener {
        Listener { body: body.into_data_stream(), text: String::new() }
    }

    /// One block of lines; `None` at the end.
    async fn block(&mut self) -> Option<String> {
        loop {
            if let Some((block, rest)) = self.text.split_once("\n\n") {
                let (block, rest) = (block.to_owned(), rest.to_owned());
                self.text = rest;
                return Some(block);
            }
            let chunk = tokio::time::timeout(PATIENCE, self.body.next()).await.expect("nothing came");
            self.text.push_str(std::str::from_utf8(&chunk?.unwrap()).unwrap());
        }
    }

    /// The next event; `None` at the end of the stream.
    async fn next(&mut self) -> Option<Event> {
        loop {
            let block = self.block().await?;
            let field = |name: &str| block.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned);
            let (Some(name), Some(id), Some(data)) = (field("event: "), field("id: "), field("data: ")) else {
                continue;
            };
            return Some(Event { name, id, data: serde_json::from_str(&data).unwrap() });
        }
    }

    /// The next event of this name.
    async fn of_name(&mut self, name: &str) -> Event {
        loop {
            let event = self.next().await.expect("the stream ended");
            if event.name == name {
                return event;
            }
        }
    }

    /// Until the balance is this.
    async fn until_available(&mut self, available: &str) -> Event {
        loop {
            let event = self.of_name("credits").await;
            let shown = event.data["available"].to_string();
            if shown == available {
                return event;
            }
        }
    }

    /// Reads to the end.
    async fn ended(&mut self) {
        while self.next().await.is_some() {}
    }
}
