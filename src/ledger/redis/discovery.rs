//! Who is primary for a shard now: the one server, the one that Sentinels name, or the Cluster's node for the shard's slot.
//!
//! Nothing is sent again here: a batch is numbered, and its session sends it until it is answered. A redirection is
//! followed, since a server that redirects has done nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::RwLock;
use redis::aio::MultiplexedConnection;
use redis::io::tcp::TcpSettings;
use redis::{AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ConnectionInfo, RedisError, Value};

use super::connection::CallError;
use crate::config::{Address, RedisKind, RedisUrl};

/// Slots of a Cluster.
const SLOTS: u16 = 16_384;
/// Calls that may wait on one connection for their answers.
const PIPELINE_BUFFER: usize = 16;
/// Servers asked in one round.
const ASKED_MAX: usize = 16;
/// Longest wait for one of them.
const ASK_TIMEOUT: Duration = Duration::from_secs(1);
/// Time between two rounds that nothing called for.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// What all links of one ledger know of its servers.
pub(super) struct Discovery {
    url: RedisUrl,
    timeout: Duration,
    known: RwLock<Known>,
    /// Held while servers are asked: one round serves all who wait for it.
    asking: tokio::sync::Mutex<Round>,
    rounds: AtomicU64,
}

#[derive(Default)]
struct Known {
    map: Arc<Map>,
    /// Somebody found it wrong.
    stale: bool,
}

/// The last round.
struct Round {
    at: Option<Instant>,
    failed: Option<String>,
}

#[derive(Debug, Default, PartialEq)]
struct Map {
    primaries: Vec<Arc<Address>>,
    /// First and last slot, and who has them; the first that fits counts.
    ranges: Vec<(u16, u16, Arc<Address>)>,
}

impl Map {
    fn whole(address: Address) -> Map {
        let address = Arc::new(address);
        Map { primaries: vec![address.clone()], ranges: vec![(0, SLOTS - 1, address)] }
    }

    fn of(&self, slot: u16) -> Option<Arc<Address>> {
        let range = self.ranges.iter().find(|(first, last, _)| (*first..=*last).contains(&slot));
        range.map(|(_, _, address)| address.clone())
    }

    /// One slot has moved.
    fn with(&self, slot: u16, address: Arc<Address>) -> Map {
        let others = self.ranges.iter().filter(|(first, last, _)| (*first, *last) != (slot, slot)).cloned();
        let ranges = std::iter::once((slot, slot, address.clone())).chain(others).collect();
        let mut primaries = self.primaries.clone();
        if !primaries.contains(&address) {
            primaries.push(address);
        }
        Map { primaries, ranges }
    }
}

impl std::fmt::Debug for Discovery {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Discovery").field("url", &self.url).finish_non_exhaustive()
    }
}

/// The slot of a shard's keys: they all carry its tag.
pub fn slot_of(shard: u32) -> u16 {
    crc16(format!("{shard:02x}").as_bytes()) % SLOTS
}

/// CRC-16/XMODEM, by which a Cluster spreads keys.
fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |crc: u16, byte| {
        (0..8).fold(
            crc ^ (u16::from(*byte) << 8),
            |crc, _| {
                if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 }
            },
        )
    })
}

impl Discovery {
    pub(super) fn new(url: RedisUrl, timeout: Duration) -> Discovery {
        let known = match (&url.kind, url.hosts.first()) {
            (RedisKind::Single, Some(address)) => Known { map: Arc::new(Map::whole(address.clone())), stale: false },
            _ => Known { map: Arc::default(), stale: true },
        };
        let asking = tokio::sync::Mutex::new(Round { at: None, failed: None });
        Discovery { url, timeout, known: RwLock::new(known), asking, rounds: AtomicU64::new(0) }
    }

    pub(super) fn is_cluster(&self) -> bool {
        matches!(self.url.kind, RedisKind::Cluster)
    }

    fn is_single(&self) -> bool {
        matches!(self.url.kind, RedisKind::Single)
    }

    /// Who has the slot now; asks where that is not known.
    pub(super) async fn primary(&self, slot: u16) -> Result<Arc<Address>, CallError> {
        {
            let known = self.known.read();
            if !known.stale
                && let Some(address) = known.map.of(slot)
            {
                return Ok(address);
            }
        }
        self.refresh().await?;
        let found = self.known.read().map.of(slot);
        found.ok_or_else(|| CallError::Again("no node of the Cluster has the shard's slot".to_owned()))
    }

    pub(super) async fn primaries(&self) -> Result<Vec<Arc<Address>>, CallError> {
        if self.known.read().stale {
            self.refresh().await?;
        }
        Ok(self.known.read().map.primaries.clone())
    }

    pub(super) fn is_primary(&self, address: &Address) -> bool {
        self.known.read().map.primaries.iter().any(|primary| **primary == *address)
    }

    /// That server failed, or says that it is none to ask: the next call asks who is. Nothing happens where that is known.
    pub(super) fn distrust(&self, slot: u16, address: &Address) {
        if self.is_single() {
            return;
        }
        let mut known = self.known.write();
        if known.map.of(slot).is_none_or(|primary| *primary == *address) {
            known.stale = true;
        }
    }

    pub(super) fn moved(&self, slot: u16, address: Arc<Address>) {
        let mut known = self.known.write();
        known.map = Arc::new(known.map.with(slot, address));
    }

    /// Now and then: a primary that was cut off from the others does not know that it is none any more.
    pub(super) async fn poll(&self) {
        if self.is_single() {
            return;
        }
        let due = match self.asking.try_lock() {
            Ok(round) => round.at.is_none_or(|at| at.elapsed() >= POLL_INTERVAL),
            Err(_) => false,
        };
        if due && let Err(error) = self.refresh().await {
            tracing::debug!(%error, "nobody says who is primary");
        }
    }

    async fn refresh(&self) -> Result<(), CallError> {
        let before = self.rounds.load(Ordering::Acquire);
        let mut round = self.asking.lock().await;
        if self.rounds.load(Ordering::Acquire) == before {
            let found = self.ask(before).await;
            round.at = Some(Instant::now());
            round.failed = match found {
                Ok(map) => {
                    self.learn(map);
                    None
                }
                Err(error) => Some(error),
            };
            self.rounds.fetch_add(1, Ordering::Release);
        }
        match &round.failed {
            Some(error) => Err(CallError::Broken(error.clone())),
            None => Ok(()),
        }
    }

    fn learn(&self, map: Map) {
        let mut known = self.known.write();
        if known.map.primaries != map.primaries {
            let primaries: Vec<String> = map.primaries.iter().map(ToString::to_string).collect();
            tracing::info!(primaries = primaries.join(", "), "the primaries of the ledger");
        }
        *known = Known { map: Arc::new(map), stale: false };
    }

    /// Asks one server after the other, beginning with another one each round: one that is cut off must not be
    /// believed for ever.
    async fn ask(&self, round: u64) -> Result<Map, String> {
        let mut hosts: Vec<Address> = Vec::new();
        if self.is_cluster() {
            hosts.extend(self.known.read().map.primaries.iter().map(|address| (**address).clone()));
        }
        for host in &self.url.hosts {
            if !hosts.contains(host) {
                hosts.push(host.clone());
            }
        }
        let begin = usize::try_from(round).unwrap_or(0) % hosts.len().max(1);
        hosts.rotate_left(begin);
        let mut last = "nobody to ask".to_owned();
        for host in hosts.iter().take(ASKED_MAX) {
            match self.ask_one(host).await {
                Ok(map) => return Ok(map),
                Err(error) => last = format!("{host}: {error}"),
            }
        }
        Err(last)
    }

    async fn ask_one(&self, host: &Address) -> Result<Map, String> {
        let timeout = self.timeout.min(ASK_TIMEOUT);
        let text = |error: RedisError| error.to_string();
        let (info, command) = match &self.url.kind {
            RedisKind::Single => return Ok(Map::whole(host.clone())),
            RedisKind::Sentinel { master, sentinel } => {
                let mut command = Cmd::new();
                command.arg("SENTINEL").arg("GET-MASTER-ADDR-BY-NAME").arg(master);
                (&**sentinel, command)
            }
            RedisKind::Cluster => {
                let mut command = Cmd::new();
                command.arg("CLUSTER").arg("SLOTS");
                (&self.url.server, command)
            }
        };
        let mut connection = open(info, host, timeout).await.map_err(text)?;
        let answer = send(&mut connection, &command).await.map_err(text)?;
        if self.is_cluster() { slots(&answer, host) } else { master(&answer) }
    }

    /// A connection to a server. Of what a Sentinel names, only a primary will do: it may not know yet.
    pub(super) async fn connect(&self, address: &Address) -> Result<MultiplexedConnection, CallError> {
        let broken = |error: RedisError| CallError::Broken(error.to_string());
        let mut connection = open(&self.url.server, address, self.timeout).await.map_err(broken)?;
        if let RedisKind::Sentinel { .. } = &self.url.kind {
            let mut command = Cmd::new();
            command.arg("ROLE");
            let role = send(&mut connection, &command).await.map_err(broken)?;
            let role = array(&role).and_then(|role| role.first()).and_then(text);
            if role.as_deref() != Some("master") {
                return Err(CallError::Broken(format!("{address} is no primary (yet)")));
            }
        }
        Ok(connection)
    }
}

async fn open(info: &ConnectionInfo, to: &Address, timeout: Duration) -> Result<MultiplexedConnection, RedisError> {
    let host = to.host.clone();
    let address = match info.addr() {
        ConnectionAddr::TcpTls { insecure, tls_params, .. } => {
            let (insecure, tls_params) = (*insecure, tls_params.clone());
            ConnectionAddr::TcpTls { host, port: to.port, insecure, tls_params }
        }
        _ => ConnectionAddr::Tcp(host, to.port),
    };
    let settings = info.redis_settings().clone().set_skip_set_lib_name();
    let tcp = TcpSettings::default().set_nodelay(true);
    let info = info.clone().set_addr(address).set_tcp_settings(tcp).set_redis_settings(settings);
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(timeout))
        .set_response_timeout(Some(timeout))
        .set_pipeline_buffer_size(PIPELINE_BUFFER);
    Client::open(info)?.get_multiplexed_async_connection_with_config(&config).await
}

pub(super) async fn send(connection: &mut MultiplexedConnection, command: &Cmd) -> Result<Value, RedisError> {
    connection.send_packed_command(command).await.and_then(Value::extract_error)
}

fn array(value: &Value) -> Option<&[Value]> {
    match value {
        Value::Array(values) => Some(values),
        _ => None,
    }
}

fn text(value: &Value) -> Option<String> {
    match value {
        Value::BulkString(bytes) => String::from_utf8(bytes.clone()).ok(),
        Value::SimpleString(text) => Some(text.clone()),
        _ => None,
    }
}

/// A Sentinel's `[host, port]`.
fn master(answer: &Value) -> Result<Map, String> {
    let Some([host, port]) = array(answer) else { return Err("knows no master of that name".to_owned()) };
    let address = text(host).zip(text(port).and_then(|port| port.parse().ok()));
    let (host, port) = address.ok_or("names a master that cannot be read")?;
    Ok(Map::whole(Address { host, port }))
}

/// `CLUSTER SLOTS`: `[[first, last, [host, port, …], replicas…], …]`. No host means the one that was asked.
fn slots(answer: &Value, asked: &Address) -> Result<Map, String> {
    let mut map = Map::default();
    for range in array(answer).ok_or("an unexpected answer to CLUSTER SLOTS")? {
        let Some([Value::Int(first), Value::Int(last), node, ..]) = array(range) else { continue };
        let Some([host, Value::Int(port), ..]) = array(node) else { continue };
        let Some(host) = host_of(text(host), asked) else { continue };
        let (Ok(first), Ok(last), Ok(port)) = (u16::try_from(*first), u16::try_from(*last), u16::try_from(*port))
        else {
            continue;
        };
        let address = Address { host, port };
        let known = map.primaries.iter().find(|known| ***known == address).cloned();
        let address = known.unwrap_or_else(|| {
            let address = Arc::new(address);
            map.primaries.push(address.clone());
            address
        });
        map.ranges.push((first, last, address));
    }
    map.primaries.sort_by_key(|address| address.to_string());
    if map.ranges.is_empty() { Err("no node of the Cluster has any slots".to_owned()) } else { Ok(map) }
}

/// `None`: the node does not know.
fn host_of(announced: Option<String>, asked: &Address) -> Option<String> {
    match announced.as_deref() {
        None | Some("") => Some(asked.host.clone()),
        Some("?") => None,
        Some(host) => Some(host.to_owned()),
    }
}

/// Where a redirection leads; no host means the one that redirects.
pub(super) fn redirection(error: &RedisError, from: &Address) -> Option<Arc<Address>> {
    let (to, _) = error.redirect_node()?;
    let Address { host, port } = Address::parse(to)?;
    Some(Arc::new(Address { host: host_of(Some(host), from)?, port }))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From the Cluster's specification, and as `CLUSTER KEYSLOT` says.
    #[test]
    fn slots_are_redis_s() {
        assert_eq!(crc16(b"123456789"), 0x31c3);
        assert_eq!([0, 1, 15].map(slot_of), [u16_of("00"), u16_of("01"), u16_of("0f")]);
    }

    fn u16_of(tag: &str) -> u16 {
        crc16(tag.as_bytes()) % SLOTS
    }

    fn bulk(text: &str) -> Value {
        Value::BulkString(text.as_bytes().to_vec())
    }

    fn node(host: Value, port: i64) -> Value {
        Value::Array(vec![host, Value::Int(port), bulk("id")])
    }

    fn at(host: &str, port: u16) -> Address {
        Address { host: host.to_owned(), port }
    }

    /// Nodes may announce hostnames, or nothing.
    #[test]
    fn who_has_which_slots() {
        let range = |first, last, node| Value::Array(vec![Value::Int(first), Value::Int(last), node]);
        let answer = Value::Array(vec![
            range(0, 99, node(bulk("b.example"), 7001)),
            range(100, 199, node(Value::Nil, 7002)),
            range(200, 299, node(bulk(""), 7002)),
            range(300, 399, node(bulk("?"), 7003)),
        ]);
        let map = slots(&answer, &at("a.example", 7000)).unwrap();
        let of = |slot| map.of(slot).map(|address| address.to_string());
        assert_eq!(of(99).as_deref(), Some("b.example:7001"));
        assert_eq!(of(100).as_deref(), Some("a.example:7002"));
        assert_eq!(of(299).as_deref(), Some("a.example:7002"));
        assert_eq!((of(300), of(16_383)), (None, None));
        assert_eq!(map.primaries.len(), 2);
        let moved = map.with(50, Arc::new(at("c.example", 1)));
        assert_eq!(moved.of(50).unwrap().port, 1);
        assert_eq!(moved.of(51).unwrap().port, 7001);
        assert_eq!(moved.with(50, Arc::new(at("d.example", 2))).ranges.len(), 4);
    }

    #[test]
    fn nobody_at_all_is_an_error() {
        assert!(slots(&Value::Array(Vec::new()), &at("a", 1)).is_err());
        assert!(slots(&Value::Nil, &at("a", 1)).is_err());
        assert!(master(&Value::Nil).is_err());
        assert_eq!(master(&Value::Array(vec![bulk("m"), bulk("6")])).unwrap(), Map::whole(at("m", 6)));
    }

    /// A failed server is asked about once, not by each who saw it fail.
    #[test]
    fn distrust_is_of_who_is_named_now() {
        let url = RedisUrl::parse("redis+cluster://seed").unwrap();
        let discovery = Discovery::new(url, Duration::from_secs(1));
        assert!(discovery.known.read().stale);
        discovery.learn(Map::whole(at("new", 1)));
        discovery.distrust(7, &at("old", 1));
        assert!(!discovery.known.read().stale);
        discovery.distrust(7, &at("new", 1));
        assert!(discovery.known.read().stale);
    }
}
