//! How often somebody may come, in this process: by address, by account, by key. What is counted is what we know of a
//! caller, never what the caller says.

use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use governor::clock::{Clock, DefaultClock};
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};
use http::HeaderMap;

use crate::config;

/// Those whose rate is remembered, for each limit; beyond it newcomers share one allowance.
pub const MAX_REMEMBERED: usize = 65_536;
/// How many checks pass between two prunings of those that have been quiet.
const PRUNE_EVERY: u32 = 16_384;
const X_FORWARDED_FOR: &str = "x-forwarded-for";
/// Entries of `X-Forwarded-For` that are looked at: more proxies than that nobody has.
pub(crate) const MAX_HOPS: u32 = 16;
/// A v4 address as a v6 one that stands for it, so that the two are one.
const V4_BITS: u32 = 32;

/// Whence a request came, past our own proxies: in the extensions of requests to the APIs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientAddress(pub IpAddr);

/// Some number of calls for each of many, refilled evenly.
#[derive(Debug)]
pub struct Limit<K: Hash + Eq + Clone> {
    clock: DefaultClock,
    /// `None`: no limit. The key `None` is what newcomers share.
    allowed: Option<DefaultKeyedRateLimiter<Option<K>>>,
    checks: AtomicU32,
}

impl<K: Hash + Eq + Clone> Limit<K> {
    /// As many at once as in a second; 0: no limit.
    pub fn per_second(count: u32) -> Limit<K> {
        Limit::new(NonZeroU32::new(count).map(Quota::per_second))
    }

    /// As many at once as in a minute; 0: no limit.
    pub fn per_minute(count: u32) -> Limit<K> {
        Limit::new(NonZeroU32::new(count).map(Quota::per_minute))
    }

    fn new(quota: Option<Quota>) -> Limit<K> {
        Limit { clock: DefaultClock::default(), allowed: quota.map(RateLimiter::keyed), checks: AtomicU32::new(0) }
    }

    /// `Err`: when to come back. One that is refused uses nothing up.
    pub fn check(&self, key: K) -> Result<(), Duration> {
        let Some(allowed) = &self.allowed else { return Ok(()) };
        let count = self.checks.fetch_add(1, Ordering::Relaxed);
        if count % PRUNE_EVERY == PRUNE_EVERY - 1 {
            allowed.retain_recent();
            allowed.shrink_to_fit();
        }
        let key = (allowed.len() < MAX_REMEMBERED).then_some(key);
        allowed.check_key(&key).map_err(|until| until.wait_time_from(self.clock.now()))
    }
}

/// Addresses that sent so many wrong credentials that they have to wait.
#[derive(Debug)]
pub struct Failures {
    allowed: Limit<u128>,
    waiting: moka::sync::Cache<u128, Instant>,
    prefix: u32,
}

impl Failures {
    /// So many wrong ones a minute from one address; 0: no limit.
    pub fn new(per_minute: u32, ipv6_prefix_bits: u32) -> Failures {
        // Nobody waits longer than it takes for one more to be allowed.
        let waiting = moka::sync::Cache::builder().max_capacity(MAX_REMEMBERED as u64);
        Failures {
            allowed: Limit::per_minute(per_minute),
            waiting: waiting.time_to_live(Duration::from_secs(60)).build(),
            prefix: ipv6_prefix_bits,
        }
    }

    /// How long this address has to wait.
    pub fn wait(&self, address: IpAddr) -> Option<Duration> {
        let until = self.waiting.get(&network(address, self.prefix))?;
        Some(until.saturating_duration_since(Instant::now())).filter(|wait| !wait.is_zero())
    }

    /// Another wrong one. `Some`: one too many; how long to wait.
    pub fn count(&self, address: IpAddr) -> Option<Duration> {
        let network = network(address, self.prefix);
        let wait = self.allowed.check(network).err()?;
        self.waiting.insert(network, Instant::now() + wait);
        Some(wait)
    }
}

/// An address as one of a network: whoever has one address of a v6 prefix has all of them.
pub fn network(address: IpAddr, ipv6_prefix_bits: u32) -> u128 {
    let (bits, prefix) = match address.to_canonical() {
        IpAddr::V4(address) => (u128::from(address.to_ipv6_mapped()), u128::BITS),
        IpAddr::V6(address) => (u128::from(address), ipv6_prefix_bits),
    };
    bits & mask(prefix)
}

fn mask(bits: u32) -> u128 {
    u128::MAX.checked_shl(u128::BITS.saturating_sub(bits)).unwrap_or(0)
}

/// The proxies in front of us, which tell where requests come from.
#[derive(Debug, Clone, Default)]
pub struct Proxies {
    count: u32,
    networks: Vec<Network>,
}

impl Proxies {
    pub fn new(settings: &config::Server) -> Proxies {
        // Validated with the settings.
        let networks = settings.proxy_addresses.iter().filter_map(|text| Network::parse(text));
        Proxies { count: settings.trusted_proxies.min(MAX_HOPS), networks: networks.collect() }
    }

    /// Who sent a request that came over a connection from `peer`. Each proxy appends whom it heard from, so of what
    /// X-Forwarded-For says only as much is believed as there are proxies, from the right; what a client wrote itself
    /// stands further left. Where that entry is missing or unreadable it is the peer.
    pub fn client(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        if self.count == 0 || !(self.networks.is_empty() || self.networks.iter().any(|network| network.has(peer))) {
            return peer;
        }
        let lines = headers.get_all(X_FORWARDED_FOR).iter().rev();
        let mut entries = lines.flat_map(|line| line.as_bytes().rsplit(|byte| *byte == b','));
        let entry = entries.nth(self.count as usize - 1).and_then(|entry| std::str::from_utf8(entry).ok());
        entry.and_then(address).unwrap_or(peer)
    }
}

/// `203.0.113.7`, `203.0.113.7:4711`, `2001:db8::1` or `[2001:db8::1]:4711`.
fn address(text: &str) -> Option<IpAddr> {
    let text = text.trim();
    if let Ok(address) = text.parse() {
        return Some(address);
    }
    if let Ok(address) = text.parse::<std::net::SocketAddr>() {
        return Some(address.ip());
    }
    let inner = text.strip_prefix('[')?.strip_suffix(']')?;
    inner.parse::<Ipv6Addr>().ok().map(IpAddr::V6)
}

/// A block of addresses: `10.0.0.0/8`, `2001:db8::/32`, or one address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Network {
    bits: u128,
    mask: u128,
}

impl Network {
    pub(crate) fn parse(text: &str) -> Option<Network> {
        let (start, length) = text.split_once('/').map_or((text, None), |(start, length)| (start, Some(length)));
        let address: IpAddr = start.parse().ok()?;
        let (all, before) = match address {
            IpAddr::V4(_) => (V4_BITS, u128::BITS - V4_BITS),
            IpAddr::V6(_) => (u128::BITS, 0),
        };
        let length = length.map_or(Some(all), |length| length.parse().ok()).filter(|length| *length <= all)?;
        let mask = mask(before + length);
        Some(Network { bits: network(address, u128::BITS) & mask, mask })
    }

    fn has(self, address: IpAddr) -> bool {
        network(address, u128::BITS) & self.mask == self.bits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn headers(lines: &[&str]) -> HeaderMap {
        lines.iter().map(|line| (http::HeaderName::from_static(X_FORWARDED_FOR), line.parse().unwrap())).collect()
    }

    #[test]
    fn one_does_not_use_up_anothers_allowance() {
        let limit = Limit::per_second(3);
        assert_eq!((0..10).filter(|_| limit.check(1).is_ok()).count(), 3);
        assert!(limit.check(1).unwrap_err() <= Duration::from_secs(1));
        assert!(limit.check(2).is_ok());
        let none = Limit::per_minute(0);
        assert!((0..1_000).all(|_| none.check(1).is_ok()), "0 is no limit");
    }

    /// failures 29: what is remembered is bounded, and who does not fit in is limited with the others who do not.
    #[test]
    fn newcomers_beyond_the_bound_share_one_allowance() {
        let limit = Limit::per_minute(2);
        let fits = u32::try_from(MAX_REMEMBERED).unwrap();
        for number in 0..fits {
            limit.check(number).unwrap();
        }
        let late = (fits..fits + 100).filter(|number| limit.check(*number).is_ok()).count();
        assert!(late <= 3, "{late}");
    }

    #[test]
    fn addresses_are_those_of_their_networks() {
        assert_eq!(network(ip("2001:db8::1"), 64), network(ip("2001:db8::ffff:1"), 64));
        assert_ne!(network(ip("2001:db8::1"), 64), network(ip("2001:db8:0:1::1"), 64));
        assert_eq!(network(ip("2001:db8:0:1::1"), 48), network(ip("2001:db8:0:2::1"), 48));
        assert_ne!(network(ip("2001:db8::1"), 128), network(ip("2001:db8::2"), 128));
        assert_ne!(network(ip("10.0.0.1"), 64), network(ip("10.0.0.2"), 64));
        assert_eq!(network(ip("::ffff:10.0.0.1"), 64), network(ip("10.0.0.1"), 64));
    }

    /// failures 13: whoever writes the header itself is believed by nobody.
    #[test]
    fn only_what_our_proxies_say_is_believed() {
        let (peer, client) = (ip("192.0.2.1"), ip("203.0.113.9"));
        let of = |count, networks: &[&str], lines: &[&str]| {
            let settings = config::Server {
                trusted_proxies: count,
                proxy_addresses: networks.iter().map(|text| (*text).to_owned()).collect(),
                ..config::Server::default()
            };
            Proxies::new(&settings).client(peer, &headers(lines))
        };
        assert_eq!(of(0, &[], &["203.0.113.9"]), peer, "nothing by default");
        assert_eq!(of(1, &[], &["203.0.113.9"]), client);
        assert_eq!(of(1, &[], &["198.51.100.1, 203.0.113.9"]), client, "what the client wrote stands further left");
        assert_eq!(of(1, &[], &["198.51.100.1", "203.0.113.9"]), client, "also in a line of its own");
        assert_eq!(of(2, &[], &["198.51.100.1, 203.0.113.9, 10.0.0.1"]), client);
        assert_eq!(of(2, &[], &["203.0.113.9, 10.0.0.1:80"]), client);
        assert_eq!(of(2, &[], &["203.0.113.9"]), peer, "it did not come past both");
        assert_eq!(of(1, &[], &["garbage"]), peer);
        assert_eq!(of(1, &[], &[]), peer);
        assert_eq!(of(1, &[], &["[2001:db8::1]:4711"]), ip("2001:db8::1"));
        assert_eq!(of(1, &["192.0.2.0/24"], &["203.0.113.9"]), client);
        assert_eq!(of(1, &["192.0.2.2", "10.0.0.0/8"], &["203.0.113.9"]), peer, "it did not come from a proxy");
    }

    #[test]
    fn networks_are_read() {
        for good in ["10.0.0.0/8", "10.1.2.3", "::1", "2001:db8::/32", "0.0.0.0/0"] {
            assert!(Network::parse(good).is_some(), "{good}");
        }
        for bad in ["", "10.0.0.0/33", "10.0.0.0/", "localhost", "10.0.0.0/8/8", "::/129", "10.0.0/8"] {
            assert_eq!(Network::parse(bad), None, "{bad}");
        }
        let all = Network::parse("0.0.0.0/0").unwrap();
        assert!(all.has(ip("9.9.9.9")) && !all.has(ip("2001:db8::1")));
    }

    #[test]
    fn who_sends_wrong_ones_waits() {
        let failures = Failures::new(2, 64);
        let (bad, good) = (ip("2001:db8::1"), ip("203.0.113.1"));
        assert_eq!((failures.count(bad), failures.count(bad), failures.wait(bad)), (None, None, None));
        assert!(failures.count(ip("2001:db8::2")).is_some_and(|wait| wait <= Duration::from_secs(30)));
        assert!(failures.wait(bad).is_some() && failures.wait(good).is_none());
    }
}
