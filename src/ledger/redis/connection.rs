//! The way to Redis: the one place that knows what kind of server it is.

use std::time::Duration;

use prometheus::IntCounter;
use redis::aio::MultiplexedConnection;
use redis::io::tcp::TcpSettings;
use redis::{AsyncConnectionConfig, Client, Cmd, ErrorKind, IntoConnectionInfo, RedisError, ServerErrorKind, Value};

use super::script::Script;

/// Calls that may wait on one connection for their answers.
const PIPELINE_BUFFER: usize = 16;

/// Makes connections.
#[derive(Debug, Clone)]
pub struct Connector {
    client: Client,
    timeout: Duration,
}

/// A connection that is made when it is needed, and made anew when it broke.
#[derive(Debug)]
pub struct Link {
    connector: Connector,
    connection: Option<MultiplexedConnection>,
    reconnects: IntCounter,
    connected_before: bool,
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

impl Connector {
    /// `timeout` bounds each connect and each call.
    pub fn new(url: &str, timeout: Duration) -> Result<Connector, RedisError> {
        let info = url.into_connection_info()?;
        let redis = info.redis_settings().clone().set_skip_set_lib_name();
        let info = info.set_tcp_settings(TcpSettings::default().set_nodelay(true)).set_redis_settings(redis);
        Ok(Connector { client: Client::open(info)?, timeout })
    }

    pub fn link(&self, reconnects: IntCounter) -> Link {
        Link { connector: self.clone(), connection: None, reconnects, connected_before: false }
    }

    async fn connect(&self) -> Result<MultiplexedConnection, RedisError> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.timeout))
            .set_response_timeout(Some(self.timeout))
            .set_pipeline_buffer_size(PIPELINE_BUFFER);
        self.client.get_multiplexed_async_connection_with_config(&config).await
    }
}

impl Link {
    /// Sends a command once.
    pub async fn send(&mut self, command: &Cmd) -> Result<Value, CallError> {
        let connection = match &mut self.connection {
            Some(connection) => connection,
            None => {
                let connection = self.connector.connect().await.map_err(broken)?;
                if std::mem::replace(&mut self.connected_before, true) {
                    self.reconnects.inc();
                }
                self.connection.insert(connection)
            }
        };
        let result = connection.send_packed_command(command).await.and_then(Value::extract_error);
        result.map_err(|error| self.judge(&error))
    }

    /// Runs a script once, having loaded it where the server does not know it (any more).
    pub async fn call(&mut self, script: &Script, command: &Cmd) -> Result<Value, CallError> {
        match self.send(command).await {
            Err(CallError::NoScript) => {
                let mut load = Cmd::new();
                load.arg("SCRIPT").arg("LOAD").arg(&script.body);
                self.send(&load).await?;
                self.send(command).await
            }
            result => result,
        }
    }

    /// As [`Link::call`], for scripts that answer bytes.
    pub async fn call_bytes(&mut self, script: &Script, command: &Cmd) -> Result<Vec<u8>, CallError> {
        match self.call(script, command).await? {
            Value::BulkString(bytes) => Ok(bytes),
            other => Err(CallError::Refused(format!("an unexpected answer: {other:?}"))),
        }
    }

    fn judge(&mut self, error: &RedisError) -> CallError {
        let reason = error.to_string();
        match error.kind() {
            ErrorKind::Server(ServerErrorKind::NoScript) => CallError::NoScript,
            ErrorKind::Server(
                ServerErrorKind::TryAgain | ServerErrorKind::BusyLoading | ServerErrorKind::ClusterDown,
            ) => CallError::Again(reason),
            // A demoted primary stays read-only: only another connection can lead to its successor.
            ErrorKind::Server(
                ServerErrorKind::ReadOnly | ServerErrorKind::MasterDown | ServerErrorKind::Moved | ServerErrorKind::Ask,
            ) => {
                self.connection = None;
                CallError::Broken(reason)
            }
            ErrorKind::Extension if error.code() == Some("BUSY") => CallError::Again(reason),
            ErrorKind::Server(_) | ErrorKind::Extension => CallError::Refused(reason),
            _ => {
                self.connection = None;
                CallError::Broken(reason)
            }
        }
    }
}

#[expect(clippy::needless_pass_by_value, reason = "it is passed to map_err")]
fn broken(error: RedisError) -> CallError {
    CallError::Broken(error.to_string())
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
