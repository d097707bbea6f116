//! WebSocket: every message comes back as it was sent (RFC 6455, as far as an echo needs it).

use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::task::JoinSet;

/// Largest frame that is echoed, in bytes.
const FRAME_MAX: u64 = 1024 * 1024;
/// RFC 6455, section 1.3.
const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

pub(super) fn asked_for<B>(request: &Request<B>) -> bool {
    let upgrade = request.headers().get(header::UPGRADE).and_then(|value| value.to_str().ok());
    upgrade.is_some_and(|protocol| protocol.eq_ignore_ascii_case("websocket"))
}

/// The echoing tasks of one connection.
#[derive(Clone, Default)]
pub(super) struct Echoes {
    tasks: Arc<Mutex<JoinSet<()>>>,
}

impl Echoes {
    pub(super) fn accept(&self, request: Request<Incoming>) -> Response<Empty<Bytes>> {
        let mut response = Response::new(Empty::new());
        let key = request.headers().get(header::SEC_WEBSOCKET_KEY);
        let Some(accept) = key.and_then(|key| HeaderValue::from_str(&accept_value(key.as_bytes())).ok()) else {
            *response.status_mut() = StatusCode::BAD_REQUEST;
            return response;
        };
        let upgrade = hyper::upgrade::on(request);
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner).spawn(async move {
            if let Ok(upgraded) = upgrade.await {
                // An error is the other side going away.
                let _ = echo(TokioIo::new(upgraded)).await;
            }
        });
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
        response
    }

    /// Waits until every echo has ended.
    pub(super) async fn finish(self) {
        let mut tasks = std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        while tasks.join_next().await.is_some() {}
    }
}

fn accept_value(key: &[u8]) -> String {
    let mut digest = sha1_smol::Sha1::new();
    digest.update(key);
    digest.update(GUID.as_bytes());
    STANDARD.encode(digest.digest().bytes())
}

async fn echo(mut socket: impl AsyncRead + AsyncWrite + Unpin) -> std::io::Result<()> {
    loop {
        let first = socket.read_u8().await?;
        let second = socket.read_u8().await?;
        let length = match second & 0x7f {
            126 => u64::from(socket.read_u16().await?),
            127 => socket.read_u64().await?,
            short => u64::from(short),
        };
        let mut mask = [0; 4];
        if second & 0x80 != 0 {
            socket.read_exact(&mut mask).await?;
        }
        let Some(length) = usize::try_from(length).ok().filter(|&length| length as u64 <= FRAME_MAX) else {
            return Ok(());
        };
        let mut payload = vec![0; length];
        socket.read_exact(&mut payload).await?;
        for (index, byte) in payload.iter_mut().enumerate() {
            *byte ^= mask[index % 4];
        }
        let opcode = first & 0x0f;
        if opcode != PONG {
            let first = if opcode == PING { first & 0xf0 | PONG } else { first };
            socket.write_all(&frame(first, &payload)).await?;
            socket.flush().await?;
        }
        if opcode == CLOSE {
            return socket.shutdown().await;
        }
    }
}

/// A frame from a server: not masked.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![first];
    match payload.len() {
        short @ 0..126 => frame.push(u8::try_from(short).unwrap_or(0)),
        middle @ 126..65_536 => {
            frame.push(126);
            frame.extend_from_slice(&u16::try_from(middle).unwrap_or(0).to_be_bytes());
        }
        long => {
            frame.push(127);
            frame.extend_from_slice(&(long as u64).to_be_bytes());
        }
    }
    frame.extend_from_slice(payload);
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_as_the_standard_says() {
        // RFC 6455, section 1.3, its own example.
        assert_eq!(accept_value(b"dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }
}
