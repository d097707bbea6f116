//! What a flush could not write as it should be.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::StatusCode;
use serde::Serialize;
use serde_json::value::RawValue;

use super::Admin;
use crate::api::extract::{Paging, json};
use crate::api::problem::Problem;
use crate::api::types::{List, Time};
use crate::store::letters::DeadLetter;
use crate::usage::Usage;

#[derive(Debug, Serialize)]
struct LetterView {
    id: i64,
    at: Time,
    shard: u32,
    epoch: u64,
    user: String,
    seq: u64,
    reason: String,
    detail: String,
    /// The event without its usage.
    event: Option<Box<RawValue>>,
    /// Its usage, where that can be read.
    usage: Option<Usage>,
    /// Its bytes, or those of the entry of the log, as base64: where they cannot be read, and where one letter was asked for.
    raw: Option<String>,
}

pub(super) async fn list(State(admin): State<Arc<Admin>>, Paging(page): Paging) -> Result<Response, Problem> {
    let page = admin.store.dead_letters(page).await?;
    let data: Vec<LetterView> = page.data.into_iter().map(view).collect();
    Ok(json(StatusCode::OK, &List { data, next: page.next }))
}

/// One of them, with all its bytes.
pub(super) async fn show(State(admin): State<Arc<Admin>>, Path(id): Path<String>) -> Result<Response, Problem> {
    let unknown = || Problem::not_found("there is no such dead letter");
    let id = id.parse().map_err(|_| unknown())?;
    let letter = admin.store.dead_letter(id).await?.ok_or_else(unknown)?;
    let raw = (!letter.usage.is_empty()).then(|| STANDARD.encode(&letter.usage));
    Ok(json(StatusCode::OK, &LetterView { raw, ..view(letter) }))
}

fn view(letter: DeadLetter) -> LetterView {
    let usage = Usage::decode(&letter.usage).ok();
    LetterView {
        id: letter.id,
        at: Time::from_micros(letter.at),
        shard: letter.shard,
        epoch: letter.epoch,
        user: letter.account,
        seq: letter.seq,
        reason: letter.reason,
        detail: letter.detail,
        event: RawValue::from_string(letter.event).ok(),
        raw: (usage.is_none() && !letter.usage.is_empty()).then(|| STANDARD.encode(&letter.usage)),
        usage,
    }
}
