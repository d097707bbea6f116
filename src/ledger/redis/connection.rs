//! The way to Redis: to whichever server is primary for a shard.

use std::sync::Arc;
use std::time::Duration;

use prometheus::IntCounter;
use redis::aio::MultiplexedConnection;
use redis::{Cmd, ErrorKind, RedisError, ServerErrorKind, Value};

use super::discovery::{self, Discovery, slot_of};
use super::script::Script;
use crate::config::{Address, RedisUrl};

/// Redirections followed in one call: while a slot moves there is one, or two.
const REDIRECTIONS_MAX: usize = 4;
/// Servers that one link stays connected to.
const CONNECTIONS_MAX: usize = 64;

const NO_CLUSTER: &str = "the server belongs to a Cluster: ledger.url must be redis+cluster://HOST:PORT,…";

/// Makes links. All links of a connector share what they know of the servers.
#[derive(Debug, Clone)]
pub struct Connector {
    discovery: Arc<Discovery>,
}

/// The way to one shard: connections that are made when they are needed, and made anew when they broke.
#[derive(Debug)]
pub struct Link {
    discovery: Arc<Discovery>,
    slot: u16,
    connections: Vec<(Arc<Address>, MultiplexedConnection)>,
    /// Who answered last.
    answered: Option<Arc<Address>>,
    reconnects: IntCounter,
    /// A connection broke, and none was made since.
    broken: bool,
}

/// Why a call brought no answer. It may have been carried out all the same.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CallError {
    /// No connection, or it broke, or no answer came in time, or the server is no primary: it is replaced.
    #[error("{0}")]
    Broken(String),
    /// The server asks to try again.
    #[error("{0}")]
    Again(String),
    /// The server does not have the script (a restart, a failover, SCRIPT FLUSH).
    #[error("the script is not loaded")]
    NoScript,
    /// The server refuses.
    #[error("{0}")]
    Refused(String),
}

impl CallError {
    /// For a metric's label.
    pub fn kind(&self) -> &'static str {
        match self {
            CallError::Broken(_) => "broken",
            CallError::Again(_) => "again",
            CallError::NoScript => "no_script",
            CallError::Refused(_) => "refused",
        }
    }
}

/// What an error says.
enum Verdict {
    Failed(CallError),
    /// Nothing was done; another server has the slot, or (`asking`) those of its keys that have moved already.
    Elsewhere {
        to: Arc<Address>,
        asking: bool,
    },
}

impl Connector {
    /// `timeout` bounds each connect and each call.
    pub fn new(url: &str, timeout: Duration) -> Result<Connector, &'static str> {
        Ok(Connector::of(RedisUrl::parse(url)?, timeout))
    }

    /// As [`Connector::new`].
    pub fn of(url: RedisUrl, timeout: Duration) -> Connector {
        Connector { discovery: Arc::new(Discovery::new(url, timeout)) }
    }

    /// To the first shard.
    pub fn link(&self, reconnects: IntCounter) -> Link {
        let discovery = self.discovery.clone();
        let (connections, answered) = (Vec::new(), None);
        Link { discovery, slot: slot_of(0), connections, answered, reconnects, broken: false }
    }

    pub fn is_cluster(&self) -> bool {
        self.discovery.is_cluster()
    }

    /// All servers that shards live on, as far as is known.
    pub async fn primaries(&self) -> Result<Vec<Arc<Address>>, CallError> {
        self.discovery.primaries().await
    }

    /// Asks anew who is primary, once a second at most.
    pub async fn poll(&self) {
        self.discovery.poll().await;
    }
}

impl Link {
    /// From now on to this shard.
    pub fn turn_to(&mut self, shard: u32) {
        self.slot = slot_of(shard);
    }

    /// Sends a command once.
    pub async fn send(&mut self, command: &Cmd) -> Result<Value, CallError> {
        let mut to = self.discovery.primary(self.slot).await?;
        let mut asking = false;
        for _ in 0..REDIRECTIONS_MAX {
            match self.try_at(&to, command, asking).await {
                Ok(value) => return Ok(value),
                Err(Verdict::Failed(error)) => return Err(error),
                Err(Verdict::Elsewhere { to: other, asking: once }) => {
                    if !once {
                        self.discovery.moved(self.slot, other.clone());
                    }
                    (to, asking) = (other, once);
                }
            }
        }
        Err(CallError::Again("redirected too often".to_owned()))
    }

    /// Sends a command once, to that server.
    pub async fn send_to(&mut self, to: &Arc<Address>, command: &Cmd) -> Result<Value, CallError> {
        match self.try_at(to, command, false).await {
            Ok(value) => Ok(value),
            Err(Verdict::Failed(error)) => Err(error),
            Err(Verdict::Elsewhere { to, .. }) => Err(CallError::Again(format!("redirected to {to}"))),
        }
    }

    /// Runs a script once, having loaded it where the server does not know it (any more).
    pub async fn call(&mut self, script: &Script, command: &Cmd) -> Result<Value, CallError> {
        // A redirection may lead to a server that does not know it either.
        for _ in 0..2 {
            match self.send(command).await {
                Err(CallError::NoScript) => {}
                result => return result,
            }
            let mut load = Cmd::new();
            load.arg("SCRIPT").arg("LOAD").arg(&script.body);
            match self.answered.clone() {
                Some(server) => self.send_to(&server, &load).await?,
                None => self.send(&load).await?,
            };
        }
        self.send(command).await
    }

    /// As [`Link::call`], for scripts that answer bytes.
    pub async fn call_bytes(&mut self, script: &Script, command: &Cmd) -> Result<Vec<u8>, CallError> {
        match self.call(script, command).await? {
            Value::BulkString(bytes) => Ok(bytes),
            other => Err(CallError::Refused(format!("an unexpected answer: {other:?}"))),
        }
    }

    async fn try_at(&mut self, to: &Arc<Address>, command: &Cmd, asking: bool) -> Result<Value, Verdict> {
        let (connection, asked) = match self.connection(to).await {
            // The next command on this connection, and only that, may use keys that are still on their way here.
            Ok(connection) if asking => {
                let mut asking = Cmd::new();
                asking.arg("ASKING");
                let asked = discovery::send(connection, &asking).await;
                (connection, asked.map(drop))
            }
            Ok(connection) => (connection, Ok(())),
            Err(error) => {
                self.discovery.distrust(self.slot, to);
                return Err(Verdict::Failed(error));
            }
        };
        let result = match asked {
            Ok(()) => discovery::send(connection, command).await,
            Err(error) => Err(error),
        };
        self.answered = Some(to.clone());
        result.map_err(|error| self.judge(to, &error))
    }

    async fn connection(&mut self, to: &Arc<Address>) -> Result<&mut MultiplexedConnection, CallError> {
        if let Some(at) = self.connections.iter().position(|(address, _)| address == to) {
            return Ok(&mut self.connections[at].1);
        }
        let connection = self.discovery.connect(to).await?;
        if std::mem::take(&mut self.broken) {
            self.reconnects.inc();
        }
        self.connections.retain(|(address, _)| self.discovery.is_primary(address));
        if self.connections.len() >= CONNECTIONS_MAX {
            self.connections.remove(0);
        }
        self.connections.push((to.clone(), connection));
        let at = self.connections.len() - 1;
        Ok(&mut self.connections[at].1)
    }

    fn judge(&mut self, at: &Arc<Address>, error: &RedisError) -> Verdict {
        let reason = error.to_string();
        let failed = match error.kind() {
            ErrorKind::Server(ServerErrorKind::NoScript) => CallError::NoScript,
            ErrorKind::Server(ServerErrorKind::Moved | ServerErrorKind::Ask) => return self.redirected(at, error),
            // Keys of one call are on both sides of a moving slot.
            ErrorKind::Server(ServerErrorKind::TryAgain) => CallError::Again(reason),
            // It may have been cut off, or started again, and another taken over.
            ErrorKind::Server(ServerErrorKind::BusyLoading | ServerErrorKind::ClusterDown) => {
                self.discovery.distrust(self.slot, at);
                CallError::Again(reason)
            }
            ErrorKind::Extension if error.code() == Some("NOREPLICAS") => {
                self.discovery.distrust(self.slot, at);
                CallError::Again(reason)
            }
            // A demoted primary stays read-only: only another connection can lead to its successor.
            ErrorKind::Server(ServerErrorKind::ReadOnly | ServerErrorKind::MasterDown) => {
                self.lose(at);
                CallError::Broken(reason)
            }
            ErrorKind::Extension if error.code() == Some("BUSY") => CallError::Again(reason),
            ErrorKind::Server(_) | ErrorKind::Extension => CallError::Refused(reason),
            _ => {
                self.lose(at);
                CallError::Broken(reason)
            }
        };
        Verdict::Failed(failed)
    }

    fn redirected(&mut self, at: &Arc<Address>, error: &RedisError) -> Verdict {
        if !self.discovery.is_cluster() {
            return Verdict::Failed(CallError::Refused(NO_CLUSTER.to_owned()));
        }
        match discovery::redirection(error, at) {
            Some(to) => Verdict::Elsewhere { to, asking: error.kind() == ErrorKind::Server(ServerErrorKind::Ask) },
            None => {
                self.discovery.distrust(self.slot, at);
                Verdict::Failed(CallError::Again(error.to_string()))
            }
        }
    }

    fn lose(&mut self, at: &Arc<Address>) {
        self.connections.retain(|(address, _)| address != at);
        self.broken = true;
        self.discovery.distrust(self.slot, at);
    }
}

/// Grows from one failed attempt to the next.
#[derive(Debug, Default)]
pub struct Backoff(u32);

impl Backoff {
    const FIRST_MS: u64 = 5;
    const LONGEST_MS: u64 = 500;

    /// Whether it is time to tell people: at the second failure, and then every now and then.
    pub fn is_notable(&self) -> bool {
        self.0 == 1 || self.0 % 32 == 31
    }

    pub fn reset(&mut self) {
        self.0 = 0;
    }

    /// The first attempt again follows at once.
    pub fn pause(&mut self) -> Duration {
        let delay = match self.0 {
            0 => 0,
            failures => (Self::FIRST_MS << failures.min(16)).min(Self::LONGEST_MS),
        };
        self.0 = self.0.saturating_add(1);
        Duration::from_millis(delay)
    }
}
