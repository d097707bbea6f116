//! Tunnels: an upgraded connection, copied both ways until either side ends it or both fall silent.

use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};

use http::{HeaderMap, Method, Version, header};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};

/// What is read at once, in each direction.
const CHUNK_BYTES: usize = 8 * 1024;

/// Whether a request asks to speak WebSocket from here on. Any other protocol is ignored, as RFC 9110 §7.8 allows.
pub(super) fn asked_for(method: &Method, version: Version, headers: &HeaderMap) -> bool {
    let names = |name: header::HeaderName, token: &str| {
        headers.get_all(name).iter().any(|value| {
            value
                .as_bytes()
                .split(|byte| *byte == b',')
                .any(|part| part.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
        })
    };
    version == Version::HTTP_11
        && *method == Method::GET
        && names(header::UPGRADE, "websocket")
        && names(header::CONNECTION, "upgrade")
}

/// Joins both sides once the client has its 101.
pub(super) async fn tunnel(client: OnUpgrade, upstream: OnUpgrade, idle: Duration) {
    let (client, upstream) = match tokio::try_join!(client, upstream) {
        Ok(sides) => sides,
        Err(error) => {
            tracing::debug!(%error, "an upgrade came to nothing");
            return;
        }
    };
    let last = Rc::new(Cell::new(Instant::now()));
    let (client_read, client_write) = split(client);
    let (upstream_read, upstream_write) = split(upstream);
    let both = async {
        tokio::try_join!(copy(client_read, upstream_write, &last), copy(upstream_read, client_write, &last)).map(drop)
    };
    tokio::select! {
        // Either side's error ends the tunnel, as its end does.
        _ = both => {}
        () = silence(&last, idle) => {}
    }
}

type Side = TokioIo<Upgraded>;

fn split(side: Upgraded) -> (ReadHalf<Side>, WriteHalf<Side>) {
    tokio::io::split(TokioIo::new(side))
}

async fn copy(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    last: &Cell<Instant>,
) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        let count = from.read(&mut buffer).await?;
        last.set(Instant::now());
        if count == 0 {
            return to.shutdown().await;
        }
        to.write_all(&buffer[..count]).await?;
        to.flush().await?;
        last.set(Instant::now());
    }
}

/// Until nothing has moved for `idle`.
async fn silence(last: &Cell<Instant>, idle: Duration) {
    loop {
        let quiet = last.get().elapsed();
        if quiet >= idle {
            return;
        }
        tokio::time::sleep(idle - quiet).await;
    }
}
