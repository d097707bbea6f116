//! Usage rows in bulk: COPY in its binary form, which costs the server about a third of an INSERT of the same rows.
//!
//! <https://www.postgresql.org/docs/current/sql-copy.html> describes the form: a header, then for each row the number of
//! its columns, and for each column its length (-1: null) and its bytes as the type's own binary form, then a trailer.

use std::pin::pin;

use bytes::{BufMut, Bytes, BytesMut};
use deadpool_postgres::Transaction;
use futures_util::SinkExt;

use super::super::StoreResult;
use super::super::common::{TIME_MAX_US, UsageColumns, int};
use super::failed;
use crate::ledger::{Event, Micros};

/// In the order in which [`put_row`] writes them.
const COPY: &str = "COPY usage_logs (request_id, user_id, seq, client_request_id, key_id, route, upstream, model, status,
    charged, input_tokens, cached_tokens, output_tokens, estimated, streamed, latency_ms, created_at, settled_at, reason)
    FROM STDIN (FORMAT binary)";
const COLUMNS: i16 = 19;
const HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
const TRAILER: i16 = -1;
/// Sent when so much has gathered: the server works on it while the next rows are encoded.
const PIECE_BYTES: usize = 64 * 1024;
/// Postgres counts time from 2000-01-01.
const POSTGRES_EPOCH_US: i64 = 946_684_800_000_000;

/// Writes rows, all or none: a `Conflict` where the server refuses one of them, and then the transaction is over.
pub(super) async fn rows(tx: &Transaction<'_>, rows: &[(&Event, UsageColumns)]) -> StoreResult<()> {
    let statement = tx.prepare_cached(COPY).await.map_err(failed)?;
    let mut sink = pin!(tx.copy_in::<_, Bytes>(&statement).await.map_err(failed)?);
    let mut piece = BytesMut::with_capacity(PIECE_BYTES + PIECE_BYTES / 8);
    piece.put_slice(HEADER);
    for (event, columns) in rows {
        put_row(&mut piece, event, columns);
        if piece.len() >= PIECE_BYTES {
            sink.feed(piece.split().freeze()).await.map_err(failed)?;
            piece.reserve(PIECE_BYTES + PIECE_BYTES / 8);
        }
    }
    piece.put_i16(TRAILER);
    sink.feed(piece.freeze()).await.map_err(failed)?;
    sink.as_mut().finish().await.map_err(failed).map(drop)
}

fn put_row(out: &mut BytesMut, event: &Event, columns: &UsageColumns) {
    let usage = &columns.usage;
    out.put_i16(COLUMNS);
    put(out, usage.request_id.as_bytes());
    put(out, event.account.as_str().as_bytes());
    put_i64(out, int(event.seq));
    put_text(out, usage.client_request_id.as_deref());
    put_text(out, usage.key_id.as_deref());
    put(out, usage.route.as_bytes());
    put_text(out, usage.upstream.as_deref());
    put_text(out, usage.model.as_deref());
    put(out, &i32::from(usage.status).to_be_bytes());
    put_i64(out, event.charged.micro());
    put_i64(out, columns.input_tokens);
    put_i64(out, columns.cached_tokens);
    put_i64(out, columns.output_tokens);
    put(out, &[u8::from(usage.estimated)]);
    put(out, &[u8::from(usage.streamed)]);
    put_i64(out, columns.latency_ms);
    put_time(out, columns.created_at);
    put_time(out, event.at.min(TIME_MAX_US));
    put_text(out, usage.reason.as_deref());
}

fn put(out: &mut BytesMut, value: &[u8]) {
    // Texts are cut far below 2^31, see `UsageColumns`.
    out.put_i32(i32::try_from(value.len()).unwrap_or(i32::MAX));
    out.put_slice(value);
}

fn put_text(out: &mut BytesMut, value: Option<&str>) {
    match value {
        Some(text) => put(out, text.as_bytes()),
        None => out.put_i32(-1),
    }
}

fn put_i64(out: &mut BytesMut, value: i64) {
    out.put_i32(8);
    out.put_i64(value);
}

fn put_time(out: &mut BytesMut, at: Micros) {
    put_i64(out, int(at).saturating_sub(POSTGRES_EPOCH_US));
}
