//! Freezing an account: nothing new is admitted, what is in flight is settled.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use http::StatusCode;
use uuid::Uuid;

use super::{Admin, Named, OPERATOR};
use crate::api::credits::balance;
use crate::api::extract::json;
use crate::api::problem::Problem;
use crate::api::types::{CreditsView, UserView};
use crate::ledger::{Change, Scope};
use crate::store::{NewChange, User, UserStatus};

pub(super) async fn freeze(State(admin): State<Arc<Admin>>, Named(user): Named) -> Result<Response, Problem> {
    set(&admin, user, UserStatus::Frozen).await
}

pub(super) async fn unfreeze(State(admin): State<Arc<Admin>>, Named(user): Named) -> Result<Response, Problem> {
    set(&admin, user, UserStatus::Active).await
}

async fn set(admin: &Admin, user: User, wanted: UserStatus) -> Result<Response, Problem> {
    if user.status == UserStatus::Closed {
        return Err(Problem::conflict("the account is closed"));
    }
    let scope = Scope::Account;
    let (verb, change) = match wanted {
        UserStatus::Frozen => ("freeze", Change::Freeze { scope }),
        UserStatus::Active | UserStatus::Closed => ("unfreeze", Change::Unfreeze { scope }),
    };
    if user.status != wanted {
        let source_key = format!("admin:{verb}:{}", Uuid::now_v7());
        let (account, actor) = (user.id.clone(), OPERATOR.to_owned());
        admin.store.add_change(NewChange { account, change, source_key, note: None, actor }).await?;
        admin.identity.forget_user(&user.id);
    }
    let mut view = UserView::from(user);
    view.status = wanted;
    view.pending = admin.pending(&view.id).await;
    match balance(&admin.ledger, &admin.config, &view.id).await {
        Ok(balance) => view.credits = Some(CreditsView::from(&balance)),
        Err(_) => view.pending = true,
    }
    Ok(json(StatusCode::OK, &view))
}
