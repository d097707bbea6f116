//! The cheap limits, before anything is asked of anybody: requests per second overall and by client address.

use std::net::IpAddr;
use std::time::Duration;

use crate::config::{self, Config};
use crate::limits::{Limit, network};

/// Shared by all workers of the replica.
#[derive(Debug)]
pub(super) struct Shed {
    overall: Option<Limit<()>>,
    by_address: Option<Limit<u128>>,
    ipv6_prefix_bits: u32,
}

impl Shed {
    pub(super) fn new(config: &Config) -> Shed {
        let config::Shed { requests_per_second, per_address_requests_per_second } = config.shed;
        Shed {
            overall: (requests_per_second > 0).then(|| Limit::per_second(requests_per_second)),
            by_address: (per_address_requests_per_second > 0)
                .then(|| Limit::per_second(per_address_requests_per_second)),
            ipv6_prefix_bits: config.server.ipv6_prefix_bits,
        }
    }

    /// `Err`: when to come back.
    pub(super) fn check(&self, address: IpAddr) -> Result<(), Duration> {
        if let Some(limit) = &self.by_address {
            limit.check(network(address, self.ipv6_prefix_bits))?;
        }
        if let Some(limit) = &self.overall {
            limit.check(())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shed(per_address: u32) -> Shed {
        let shed = config::Shed { requests_per_second: 0, per_address_requests_per_second: per_address };
        Shed::new(&Config { shed, ..Config::default() })
    }

    #[test]
    fn one_address_does_not_use_up_anothers_allowance() {
        let shed = shed(3);
        let (one, other): (IpAddr, IpAddr) = ("2001:db8::1".parse().unwrap(), "2001:db8:1::1".parse().unwrap());
        assert_eq!((0..10).filter(|_| shed.check(one).is_ok()).count(), 3);
        assert!(shed.check("2001:db8::2".parse().unwrap()).unwrap_err() <= Duration::from_secs(1), "of one prefix");
        assert!(shed.check(other).is_ok());
    }

    #[test]
    fn zero_means_no_limit() {
        let shed = shed(0);
        assert!((0..10_000).all(|_| shed.check("10.0.0.1".parse().unwrap()).is_ok()));
    }
}
