//! Cross-origin calls of the API.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::StatusCode;

use crate::cors::Origins;

pub(crate) async fn cors(State(origins): State<Arc<Origins>>, request: Request, next: Next) -> Response {
    let asked = origins.asked(request.method(), request.headers());
    let mut response = if asked.preflight { StatusCode::NO_CONTENT.into_response() } else { next.run(request).await };
    asked.answer(response.headers_mut());
    response
}
