//! TLS on both sides, HTTP/1.1 and HTTP/2 by ALPN, and trailers, which need a hand-made upstream.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use faregate::config::Tls;
use http::{Request, StatusCode, Version};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::rig::{Rig, settings, upstream};
use crate::support::Sim;
use crate::support::http::raw;

struct Certificate {
    chain: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
    dir: tempfile::TempDir,
}

/// A self-signed certificate for `localhost`, also as files.
fn certificate() -> Certificate {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("cert.pem"), made.cert.pem()).unwrap();
    std::fs::write(dir.path().join("key.pem"), made.signing_key.serialize_pem()).unwrap();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    Certificate { chain: made.cert.der().clone(), key, dir }
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// Takes TLS off and passes the bytes on. Ends with the tasks.
async fn terminator(certificate: &Certificate, to: SocketAddr, alpn: &[&[u8]], tasks: &mut JoinSet<()>) -> SocketAddr {
    let mut config = rustls::ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.chain.clone()], certificate.key.clone_key())
        .unwrap();
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let addr = listener.local_addr().unwrap();
    tasks.spawn(async move {
        let mut pipes = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            pipes.spawn(async move {
                let Ok(mut outside) = acceptor.accept(stream).await else { return };
                let mut inside = TcpStream::connect(to).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut outside, &mut inside).await;
            });
        }
    });
    addr
}

async fn call(rig: &Rig, certificate: &Certificate, alpn: &[u8], key: &str) -> (StatusCode, Version, Bytes) {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate.chain.clone()).unwrap();
    let mut config = rustls::ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![alpn.to_vec()];
    let stream = TcpStream::connect(rig.addr).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(alpn));
    let body = Full::new(Bytes::from(super::chat("hello").to_string()));
    let request = Request::post("https://localhost/v1/chat/completions")
        .header("authorization", format!("Bearer {key}"))
        .header("host", "localhost")
        .body(body)
        .unwrap();
    let io = TokioIo::new(stream);
    let mut driver = JoinSet::new();
    let response = if alpn == b"h2" {
        let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
        driver.spawn(async move { drop(connection.await) });
        sender.send_request(request).await.unwrap()
    } else {
        let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
        driver.spawn(async move { drop(connection.await) });
        sender.send_request(request).await.unwrap()
    };
    let (head, body) = response.into_parts();
    (head.status, head.version, body.collect().await.unwrap().to_bytes())
}

#[tokio::test]
async fn tls_in_and_out_with_either_version() {
    let sim = Sim::start();
    let (ours, theirs) = (certificate(), certificate());
    let mut tasks = JoinSet::new();
    for upstream_alpn in [&[&b"h2"[..], b"http/1.1"][..], &[&b"http/1.1"[..]], &[]] {
        let behind = terminator(&theirs, sim.addr(), upstream_alpn, &mut tasks).await;
        let mut config = settings(&format!("https://localhost:{}", behind.port()));
        config.upstream.ca_file = Some(theirs.dir.path().join("cert.pem"));
        config.tls =
            Tls { certificate: Some(ours.dir.path().join("cert.pem")), key: Some(ours.dir.path().join("key.pem")) };
        let rig = Rig::start(config).await;
        let key = rig.user("ann", "9").await;
        for (alpn, version) in [(&b"h2"[..], Version::HTTP_2), (b"http/1.1", Version::HTTP_11)] {
            let (status, answered, body) = call(&rig, &ours, alpn, &key).await;
            assert_eq!((status, answered), (StatusCode::OK, version), "{body:?}");
        }
        assert_eq!(rig.idle("ann").await.available.to_string(), "7");
    }
}

#[tokio::test]
async fn an_upstream_with_a_certificate_of_nobodys_is_not_talked_to() {
    let sim = Sim::start();
    let mut tasks = JoinSet::new();
    let behind = terminator(&certificate(), sim.addr(), &[], &mut tasks).await;
    let rig = Rig::start(settings(&format!("https://localhost:{}", behind.port()))).await;
    let key = rig.user("ann", "9").await;
    let answer = rig.http.post(&rig.url("/v1/chat/completions"), &key, &super::chat("x")).await;
    assert_eq!(answer.status, StatusCode::BAD_GATEWAY);
    assert_eq!(sim.stats().requests(), 0);
    assert_eq!(rig.idle("ann").await.available.to_string(), "9");
}

/// Answers every connection's first request with these bytes, and hands back what it was asked.
pub(super) async fn canned(
    answer: impl Into<String>,
    tasks: &mut JoinSet<()>,
) -> (SocketAddr, tokio::sync::mpsc::Receiver<String>) {
    let answer = answer.into();
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (heard, asked) = tokio::sync::mpsc::channel(8);
    tasks.spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut bytes = vec![0; 16 * 1024];
            let count = stream.read(&mut bytes).await.unwrap();
            heard.send(String::from_utf8_lossy(&bytes[..count]).into_owned()).await.unwrap();
            stream.write_all(answer.as_bytes()).await.unwrap();
            stream.flush().await.unwrap();
        }
    });
    (addr, asked)
}

async fn ask(answer: &'static str, extra: &str) -> (String, String, Rig) {
    let mut tasks = JoinSet::new();
    let (addr, mut asked) = canned(answer, &mut tasks).await;
    let mut config = settings(&format!("http://{addr}"));
    config.upstream = upstream(&format!("http://{addr}"));
    for route in config.routes.values_mut() {
        route.max_retries = 0;
    }
    let rig = Rig::start(config).await;
    let key = rig.user("ann", "9").await;
    let head =
        format!("GET /echo/x HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\nconnection: close\r\n{extra}\r\n");
    let at = rig.addr;
    let got = tokio::task::spawn_blocking(move || raw(at, head.as_bytes(), Duration::from_secs(3))).await.unwrap();
    (got, asked.recv().await.unwrap(), rig)
}

#[tokio::test]
async fn trailers_pass_to_whoever_says_so() {
    let answer = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-sum, x-credits-cost\r\n\r\n2\r\nhi\r\n0\r\n\
                  x-credits-cost: 1\r\nx-sum: 7\r\n\r\n";
    let (got, asked, _rig) = ask(answer, "te: trailers\r\n").await;
    assert!(asked.contains("te: trailers\r\n"), "{asked}");
    assert!(got.contains("trailer: x-sum, x-credits-cost\r\n") && got.ends_with("0\r\nx-sum: 7\r\n\r\n"), "{got}");
    let (got, _, rig) = ask(answer, "").await;
    assert!(got.ends_with("0\r\n\r\n"), "{got}");
    assert_eq!(rig.idle("ann").await.available.to_string(), "8");
}

/// RFC 9110 §15.2: a client "MUST be able to parse one or more 1xx responses received prior to a final response".
#[tokio::test]
async fn interim_answers_are_no_answers() {
    let answer = "HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n\
                  HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi";
    let (got, _, rig) = ask(answer, "").await;
    assert!(got.starts_with("HTTP/1.1 200 OK\r\n") && got.ends_with("\r\n\r\nhi"), "{got}");
    assert_eq!(rig.idle("ann").await.available.to_string(), "8");
}

#[tokio::test]
async fn garbage_from_an_upstream_is_a_502_and_free() {
    let bad = [
        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nhi",
        "not http at all\r\n\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\nhi\r\n0\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nupgrade: other\r\n\r\n",
    ];
    for answer in bad {
        let (got, _, rig) = ask(answer, "").await;
        assert!(got.starts_with("HTTP/1.1 502") || !got.ends_with("0\r\n\r\n"), "{answer:?} became {got:?}");
        assert!(rig.idle("ann").await.debt.is_zero());
        assert_eq!(rig.metrics.panics.get(), 0);
    }
    let (got, _, _rig) = ask("HTTP/1.1 204 No Content\r\nset-cookie: a=b\r\n\r\n", "").await;
    assert!(got.starts_with("HTTP/1.1 204") && got.contains("set-cookie: a=b"), "{got}");
}
