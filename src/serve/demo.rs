//! The demo: with nothing configured, a user with credits, a key, and an upstream that answers.

use std::net::{Ipv4Addr, SocketAddr};

use faregate_sim::upstream;

use super::data_dir::DataDir;
use super::stage::Stage;
use crate::config::{Config, Secret};
use crate::error::{Exit, Failure};
use crate::identity::keys::{self, NewKey};
use crate::ledger::AccountId;
use crate::store::{KeyKind, NewUser, SharedStore, StoreError};

const USER: &str = "demo";
const PLAN: &str = "free";

/// Whether the demo is wanted, and its key if it ran here before.
pub(super) enum Demo {
    No,
    Yes { key: Option<Secret> },
}

/// The demo's user and their key.
pub(super) struct Caller {
    pub(super) user: AccountId,
    pub(super) key: Secret,
}

impl Demo {
    /// The demo appears only with an empty store, no upstream and a loopback listener; and again where it ran before.
    ///
    /// # Errors
    /// [`Exit::Settings`] when there is neither an upstream nor a place for the demo.
    pub(super) async fn wanted(config: &Config, store: &SharedStore, directory: &DataDir) -> Result<Demo, Failure> {
        if !config.upstream.url.is_empty() || !config.upstreams.is_empty() {
            return Ok(Demo::No);
        }
        let missing = |why: &str| {
            let how = "set FAREGATE_UPSTREAM_URL and FAREGATE_UPSTREAM_API_KEY";
            Err(Failure::new(
                Exit::Settings,
                format!("no upstream is configured, and the demo is not started: {why}; {how}"),
            ))
        };
        if !config.listen.ip().is_loopback() {
            return missing("the listener is not on loopback");
        }
        let key = directory.demo_key()?;
        if key.is_none() && !store.is_empty().await.map_err(Failure::while_doing(Exit::Unavailable, "the store"))? {
            return missing("the store has users already");
        }
        Ok(Demo::Yes { key })
    }
}

/// Starts the demo upstream on a port of its own, and points the settings at it.
pub(super) async fn start_upstream(config: &mut Config, stage: &Stage) -> Result<(), Failure> {
    let bound = upstream::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).await;
    let upstream = bound.map_err(Failure::while_doing(Exit::Unavailable, "the demo upstream"))?;
    config.upstream.url = format!("http://{}", upstream.addr());
    let stop = stage.stop.clone();
    stage.spawn("demo upstream", async move { upstream.run(stop.cancelled_owned()).await });
    Ok(())
}

/// Makes the demo user and key, as far as they are not there.
pub(super) async fn ensure_user(
    config: &Config,
    store: &SharedStore,
    directory: &DataDir,
    kept: Option<Secret>,
) -> Result<Caller, Failure> {
    let failed = || Failure::while_doing(Exit::Unavailable, "the demo user");
    let user = AccountId::parse(USER).map_err(Failure::while_doing(Exit::Internal, "the demo user"))?;
    let key = match kept.and_then(NewKey::from_text) {
        Some(key) => key,
        None => {
            let key = NewKey::generate(KeyKind::Live).map_err(Failure::while_doing(Exit::Internal, "the demo key"))?;
            // Kept first: were the process to die in between, the next start goes on from here.
            directory.keep_demo_key(&key.text)?;
            key
        }
    };
    let signup_credits = config.plans.get(PLAN).map(|plan| plan.signup_credits).unwrap_or_default();
    let new = NewUser { id: user.clone(), email: None, plan: PLAN.to_owned(), signup_credits };
    match store.create_user(new).await {
        Ok(_) | Err(StoreError::Conflict(_)) => {}
        Err(error) => return Err(failed()(error)),
    }
    let hash = keys::hash(key.text.reveal());
    if store.key_by_hash(&hash).await.map_err(failed())?.is_none() {
        let row = key.row(keys::new_key_id(), Some(user.clone()), USER.to_owned(), super::now_us());
        store.create_key(row).await.map_err(failed())?;
    }
    Ok(Caller { user, key: key.text })
}
