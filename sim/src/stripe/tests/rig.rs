//! A running simulator, a client for it, and an endpoint that notes what it is sent.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::service::service_fn;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::stripe::{Control, Kind, Options, PriceSpec, bind};

pub(super) const START: i64 = 1_767_225_600;
pub(super) const DAY: i64 = 86_400;
pub(super) const WAIT: Duration = Duration::from_secs(20);

pub(super) struct Rig {
    pub control: Control,
    pub client: Client<HttpConnector, Full<Bytes>>,
    pub url: String,
    stop: Option<oneshot::Sender<()>>,
    task: Option<JoinHandle<()>>,
}

pub(super) struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Value,
}

impl Rig {
    pub(super) async fn start() -> Rig {
        let options = Options { start_at: Some(START), tag: Some("T".to_owned()), follow: false };
        let simulator = bind(SocketAddr::from(([127, 0, 0, 1], 0)), options).await.unwrap();
        let control = simulator.control();
        for (id, amount, interval) in [
            ("price_small", 1_000, Some("month")),
            ("price_big", 3_000, Some("month")),
            ("price_year", 10_000, Some("year")),
            ("price_pack", 500, None),
        ] {
            control.price(&PriceSpec {
                id: Some(id.to_owned()),
                product_name: id.to_owned(),
                unit_amount: amount,
                currency: "usd".to_owned(),
                interval: interval.map(str::to_owned),
                live: false,
            });
        }
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(simulator.run(async {
            let _ = stopped.await;
        }));
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        let client = Client::builder(TokioExecutor::new()).build(connector);
        Rig { url: control.url(), control, client, stop: Some(stop), task: Some(task) }
    }

    /// Where `FAREGATE_STRIPE_OBJECTS` names a folder, all that the test made goes there, for `make test-stripe-types`.
    pub(super) async fn stop(mut self) {
        if let Some(folder) = std::env::var_os("FAREGATE_STRIPE_OBJECTS") {
            let objects: Vec<Value> = Kind::all().flat_map(|kind| self.control.objects(kind)).collect();
            let test = std::thread::current().name().unwrap_or("test").replace("::", "-");
            let file = std::path::Path::new(&folder).join(test).with_extension("json");
            std::fs::write(file, Value::from(objects).to_string()).unwrap();
        }
        drop(self.stop.take());
        self.task.take().unwrap().await.unwrap();
    }

    pub(super) async fn send(
        &self,
        method: &str,
        path: &str,
        form: &str,
        headers: &[(&str, &str)],
    ) -> Result<Answer, String> {
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.url));
        if !headers.iter().any(|(name, _)| *name == "authorization") {
            request = request.header("authorization", "Bearer sk_test_rig");
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(Bytes::from(form.to_owned()))).unwrap();
        let response = self.client.request(request).await.map_err(|error| error.to_string())?;
        let (head, body) = response.into_parts();
        let body = body.collect().await.map_err(|error| error.to_string())?.to_bytes();
        let body = serde_json::from_slice(&body)
            .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&body).into_owned()));
        Ok(Answer { status: head.status.as_u16(), headers: head.headers, body })
    }

    pub(super) async fn post(&self, path: &str, form: &str) -> Value {
        let answer = self.send("POST", path, form, &[]).await.unwrap();
        assert_eq!(answer.status, 200, "POST {path} {form}: {}", answer.body);
        answer.body
    }

    pub(super) async fn get(&self, path: &str) -> Value {
        let answer = self.send("GET", path, "", &[]).await.unwrap();
        assert_eq!(answer.status, 200, "GET {path}: {}", answer.body);
        answer.body
    }

    /// The error of a call that is refused with this status.
    pub(super) async fn refused(&self, status: u16, method: &str, path: &str, form: &str) -> Value {
        let answer = self.send(method, path, form, &[]).await.unwrap();
        assert_eq!(answer.status, status, "{method} {path} {form}: {}", answer.body);
        answer.body["error"].clone()
    }

    pub(super) async fn customer(&self) -> String {
        id(&self.post("/v1/customers", "email=a@example.com&metadata[user]=u1").await)
    }

    /// A subscription made through checkout: customer, subscription.
    pub(super) async fn subscribe(&self, price: &str, more: &str) -> (String, String) {
        let customer = self.customer().await;
        let form = format!(
            "mode=subscription&customer={customer}&line_items[0][price]={price}&line_items[0][quantity]=1&success_url=http://shop/ok{more}"
        );
        let session = self.post("/v1/checkout/sessions", &form).await;
        let done = self.control.complete_checkout(&id(&session), "pm_card_visa").unwrap();
        (customer, done["subscription"].as_str().unwrap().to_owned())
    }

    pub(super) fn types(&self) -> Vec<String> {
        self.control.events("*").iter().map(|event| event["type"].as_str().unwrap().to_owned()).collect()
    }

    pub(super) fn count(&self, kind: &str) -> usize {
        self.control.events(kind).len()
    }
}

pub(super) fn id(object: &Value) -> String {
    object["id"].as_str().unwrap_or_else(|| panic!("no id in {object}")).to_owned()
}

/// An endpoint that answers with the statuses given, then 200.
pub(super) struct Listener {
    pub url: String,
    pub got: Arc<Mutex<Vec<(HeaderMap, Bytes)>>>,
    task: JoinHandle<()>,
}

impl Listener {
    pub(super) async fn start(statuses: &[u16]) -> Listener {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/hook", listener.local_addr().unwrap());
        let got = Arc::new(Mutex::new(Vec::new()));
        let statuses = Arc::new(Mutex::new(statuses.to_vec()));
        let kept = got.clone();
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((connection, _)) = listener.accept().await {
                let (kept, statuses) = (kept.clone(), statuses.clone());
                connections.spawn(async move {
                    let service = service_fn(|request: Request<hyper::body::Incoming>| async {
                        let (head, body) = request.into_parts();
                        let body = body.collect().await?.to_bytes();
                        kept.lock().unwrap().push((head.headers, body));
                        let mut statuses = statuses.lock().unwrap();
                        let status = if statuses.is_empty() { 200 } else { statuses.remove(0) };
                        let mut response = Response::new(Full::new(Bytes::new()));
                        *response.status_mut() = StatusCode::from_u16(status).unwrap();
                        Ok::<_, hyper::Error>(response)
                    });
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(connection), service)
                        .await;
                });
            }
        });
        Listener { url, got, task }
    }

    pub(super) fn payloads(&self) -> Vec<Value> {
        self.got.lock().unwrap().iter().map(|(_, body)| serde_json::from_slice(body).unwrap()).collect()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.task.abort();
    }
}
