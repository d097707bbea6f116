//! How users come, for whoever judges that.

use std::net::IpAddr;
use std::time::Duration;

use async_trait::async_trait;

use super::resolve::Identity;
use crate::ledger::{AccountId, Micros};
use crate::store::{StoreResult, User, UserStatus};

/// Only users this young are judged by where their tokens come from: whoever stays has shown more than an address.
const YOUNG_US: Micros = 24 * 3600 * 1_000_000;
/// Users whose arrival this replica has judged; one that falls out is judged again, which changes nothing.
const MAX_JUDGED: u64 = 100_000;
const JUDGED_FOR: Duration = Duration::from_secs(3600);

/// How an account came.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Arrival {
    /// Whence, if it is known.
    pub address: Option<IpAddr>,
    /// Stack Auth's `risk_scores.sign_up`, 0 to 100.
    pub bot: Option<u8>,
    pub free_trial_abuse: Option<u8>,
}

/// Looks at how users come, and may hold back what they were given.
#[async_trait]
pub trait Judge: Send + Sync + 'static {
    /// The user is stored. The same arrival again changes nothing.
    async fn judge(&self, user: &AccountId, arrival: &Arrival) -> StoreResult<()>;
}

pub(super) fn judged() -> moka::sync::Cache<AccountId, ()> {
    moka::sync::Cache::builder().max_capacity(MAX_JUDGED).time_to_live(JUDGED_FOR).build()
}

impl Identity {
    /// From now on this one looks at how users come.
    pub fn attach_judge(&self, judge: std::sync::Arc<dyn Judge>) {
        // A second router over the same parts brings the same judge.
        let _ = self.judge.set(judge);
    }

    /// What the issuer tells about a new user, judged; where that fails the event comes again.
    pub(super) async fn judge_told(&self, user: &User, arrival: &Arrival) -> StoreResult<()> {
        match self.judge.get() {
            Some(judge) if user.status != UserStatus::Closed => judge.judge(&user.id, arrival).await,
            _ => Ok(()),
        }
    }

    /// Where a new user's first tokens come from, judged before they are let in. Where that fails they get in all the
    /// same, and the next look-up tries again.
    pub(super) async fn judge_caller(&self, user: &User, address: Option<IpAddr>) {
        let Some((judge, address)) = self.judge.get().zip(address.filter(|address| is_somebodys(*address))) else {
            return;
        };
        let young = super::resolve::now_us().saturating_sub(user.created_at) < YOUNG_US;
        if !young || user.status == UserStatus::Closed || self.judged.contains_key(&user.id) {
            return;
        }
        let arrival = Arrival { address: Some(address), ..Arrival::default() };
        match judge.judge(&user.id, &arrival).await {
            Ok(()) => self.judged.insert(user.id.clone(), ()),
            Err(error) => tracing::warn!(user = %user.id, %error, "how a user came could not be looked at"),
        }
    }
}

/// Whether an address says anything about who uses it: one inside a network is that of a proxy or a service of ours.
fn is_somebodys(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(address) => {
            // RFC 6598: 100.64.0.0/10 is between a carrier and its customers.
            let shared = address.octets()[0] == 100 && (64..128).contains(&address.octets()[1]);
            !(address.is_private()
                || address.is_loopback()
                || address.is_link_local()
                || address.is_unspecified()
                || shared)
        }
        IpAddr::V6(address) => {
            !(address.is_loopback()
                || address.is_unspecified()
                || address.is_unique_local()
                || address.is_unicast_link_local())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_inside_a_network_say_nothing() {
        let says = |address: &str| is_somebodys(address.parse().unwrap());
        for inside in ["10.1.2.3", "192.168.0.1", "172.16.9.9", "127.0.0.1", "100.100.0.1", "169.254.1.1", "0.0.0.0"] {
            assert!(!says(inside) && !says(&format!("::ffff:{inside}")), "{inside}");
        }
        assert!(!says("::1") && !says("fe80::1") && !says("fd00::1"));
        assert!(says("203.0.113.9") && says("100.128.0.1") && says("2001:db8::1"));
    }
}
