//! The cheap limits, before anything is asked of anybody: requests per second overall and by client address.

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use governor::clock::{Clock, DefaultClock};
use governor::{DefaultDirectRateLimiter, DefaultKeyedRateLimiter, Quota, RateLimiter};

use crate::config;

/// Addresses whose rate is remembered; beyond it the newcomers share one allowance.
const MAX_ADDRESSES: usize = 65_536;
/// How many checks pass between two prunings of addresses that have been quiet.
const PRUNE_EVERY: u32 = 65_536;

/// Shared by all workers of the replica.
#[derive(Debug)]
pub(super) struct Shed {
    clock: DefaultClock,
    overall: Option<DefaultDirectRateLimiter>,
    by_address: Option<DefaultKeyedRateLimiter<u64>>,
    checks: AtomicU32,
}

impl Shed {
    pub(super) fn new(settings: &config::Shed) -> Shed {
        let quota = |per_second: u32| NonZeroU32::new(per_second).map(Quota::per_second);
        Shed {
            clock: DefaultClock::default(),
            overall: quota(settings.requests_per_second).map(RateLimiter::direct),
            by_address: quota(settings.per_address_requests_per_second).map(RateLimiter::keyed),
            checks: AtomicU32::new(0),
        }
    }

    /// `Err`: when to come back.
    pub(super) fn check(&self, address: IpAddr) -> Result<(), Duration> {
        if let Some(limiter) = &self.by_address {
            let count = self.checks.fetch_add(1, Ordering::Relaxed);
            if count % PRUNE_EVERY == PRUNE_EVERY - 1 {
                limiter.retain_recent();
            }
            let key = if limiter.len() < MAX_ADDRESSES { key(address) } else { 0 };
            limiter.check_key(&key).map_err(|until| until.wait_time_from(self.clock.now()))?;
        }
        if let Some(limiter) = &self.overall {
            limiter.check().map_err(|until| until.wait_time_from(self.clock.now()))?;
        }
        Ok(())
    }
}

/// A v4 address, or the /64 of a v6 one: whoever has one has all of it.
fn key(address: IpAddr) -> u64 {
    match address {
        IpAddr::V4(address) => u64::from(u32::from(address)),
        IpAddr::V6(address) => match address.to_ipv4_mapped() {
            Some(address) => u64::from(u32::from(address)),
            None => (u128::from(address) >> 64) as u64,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_does_not_use_up_anothers_allowance() {
        let settings = config::Shed { requests_per_second: 0, per_address_requests_per_second: 3 };
        let shed = Shed::new(&settings);
        let (one, other): (IpAddr, IpAddr) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        assert_eq!((0..10).filter(|_| shed.check(one).is_ok()).count(), 3);
        assert!(shed.check(one).unwrap_err() <= Duration::from_secs(1));
        assert!(shed.check(other).is_ok());
        assert_eq!(key("2001:db8::1".parse().unwrap()), key("2001:db8::2".parse().unwrap()));
        assert_eq!(key("::ffff:10.0.0.1".parse().unwrap()), key(one));
    }

    #[test]
    fn zero_means_no_limit() {
        let shed = Shed::new(&config::Shed::default());
        assert!((0..10_000).all(|_| shed.check("10.0.0.1".parse().unwrap()).is_ok()));
    }
}
