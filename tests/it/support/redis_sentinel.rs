//! A Redis that Sentinels watch: a primary, a replica, three Sentinels.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::process::Process;
use super::{Pair, Redis, eventually_blocking, free_port, reaper};

const SENTINELS: usize = 3;
pub const MASTER: &str = "main";
/// How soon after a change all agree again.
const SETTLED: Duration = Duration::from_secs(60);

pub struct Sentinels {
    pub servers: [Redis; 2],
    sentinels: Vec<Sentinel>,
}

/// Sentinels, and servers behind them, that speak nothing but TLS and ask for passwords.
pub struct Guarded<'a> {
    pub certificate: &'a Pair,
    pub authority: &'a Path,
    /// Of the servers, and of the Sentinels.
    pub passwords: [&'a str; 2],
}

struct Sentinel {
    _process: Process,
    port: u16,
    /// How redis-cli gets in.
    access: Vec<String>,
    /// Last, so that the process is gone before its folder.
    _dir: tempfile::TempDir,
}

impl Sentinels {
    /// Waits until everybody knows everybody.
    pub fn start() -> Sentinels {
        let server = || Redis::with(&["--appendonly", "no", "--repl-diskless-sync-delay", "0"]);
        let servers = [server(), server()];
        servers[1].command(&["REPLICAOF", "127.0.0.1", &servers[0].port().to_string()]);
        let sentinels = (0..SENTINELS).map(|_| sentinel(servers[0].port(), "", &[])).collect();
        let watched = Sentinels { servers, sentinels };
        watched.wait_until_whole();
        watched
    }

    /// As [`Sentinels::start`], guarded.
    pub fn guarded(guarded: &Guarded<'_>) -> Sentinels {
        let Guarded { certificate, authority, passwords: [data, watch] } = guarded;
        let settings = ["--appendonly", "no", "--repl-diskless-sync-delay", "0", "--tls-replication", "yes"];
        let settings = [&settings[..], &["--masterauth", data]].concat();
        let server = || Redis::secure(certificate, authority, false, data, &settings);
        let servers = [server(), server()];
        servers[1].command(&["REPLICAOF", "127.0.0.1", &servers[0].port().to_string()]);
        let [ca, cert, key] =
            [authority, &*certificate.certificate, &certificate.key].map(|path| path.to_str().unwrap());
        let more = format!(
            "tls-replication yes\ntls-ca-cert-file {ca}\ntls-cert-file {cert}\ntls-key-file {key}\n\
             tls-auth-clients no\nrequirepass {watch}\nsentinel sentinel-pass {watch}\nsentinel auth-pass {MASTER} {data}\n"
        );
        let access = ["--tls", "--cacert", ca, "-a", watch, "--no-auth-warning"];
        let sentinels = (0..SENTINELS).map(|_| sentinel(servers[0].port(), &more, &access)).collect();
        let watched = Sentinels { servers, sentinels };
        watched.wait_until_whole();
        watched
    }

    /// For `ledger.url`; the first of the Sentinels is not there.
    pub fn url(&self) -> String {
        format!("redis+sentinel://{}/{MASTER}", self.hosts())
    }

    /// Where the Sentinels are; the first is not.
    pub fn hosts(&self) -> String {
        let hosts: Vec<String> = self.sentinels.iter().map(|sentinel| format!("127.0.0.1:{}", sentinel.port)).collect();
        format!("127.0.0.1:{},{}", free_port(), hosts.join(","))
    }

    /// The server that most Sentinels call the primary.
    pub fn primary(&self) -> usize {
        let named = |index: usize| {
            let port = self.servers[index].port().to_string();
            self.sentinels.iter().filter(|sentinel| sentinel.master().1 == port).count()
        };
        usize::from(named(1) > named(0))
    }

    /// All Sentinels name the same primary, which has a replica that follows it.
    pub fn wait_until_whole(&self) {
        eventually_blocking(SETTLED, "the Sentinels agree", || {
            let primary = self.primary();
            let port = self.servers[primary].port().to_string();
            let agree = self.sentinels.iter().all(|sentinel| {
                let about = sentinel.command(&["SENTINEL", "MASTER", MASTER]);
                let about: Vec<&str> = about.lines().collect();
                let field = |name| about.iter().position(|it| *it == name).and_then(|at| about.get(at + 1)).copied();
                sentinel.master().1 == port
                    && field("flags") == Some("master")
                    && field("num-other-sentinels") == Some("2")
                    && field("num-slaves") == Some("1")
            });
            let follows = self.servers[1 - primary].command(&["INFO", "replication"]);
            let leads = self.servers[primary].command(&["INFO", "replication"]);
            (agree && follows.contains("master_link_status:up") && leads.contains("connected_slaves:1")).then_some(())
        });
    }

    /// A planned fail-over: the primary becomes a replica, and lives.
    pub fn fail_over(&self) {
        eventually_blocking(SETTLED, "a Sentinel begins the fail-over", || {
            (self.sentinels[0].command(&["SENTINEL", "FAILOVER", MASTER]) == "OK").then_some(())
        });
    }
}

impl Sentinel {
    fn master(&self) -> (String, String) {
        let answer = self.command(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", MASTER]);
        let mut lines = answer.lines().map(ToOwned::to_owned);
        (lines.next().unwrap_or_default(), lines.next().unwrap_or_default())
    }

    fn command(&self, arguments: &[&str]) -> String {
        let output = Command::new("redis-cli")
            .args(["-h", "127.0.0.1", "-p", &self.port.to_string(), "--raw"])
            .args(&self.access)
            .args(arguments)
            .output()
            .expect("redis-cli runs");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }
}

fn sentinel(primary: u16, more: &str, access: &[&str]) -> Sentinel {
    let dir = tempfile::Builder::new().prefix("faregate-sentinel").tempdir().unwrap();
    reaper::remove(dir.path());
    let (port, file) = (free_port(), dir.path().join("sentinel.conf"));
    let ports = if more.is_empty() { format!("port {port}") } else { format!("port 0\ntls-port {port}") };
    let settings = format!(
        "bind 127.0.0.1\n{ports}\nsentinel monitor {MASTER} 127.0.0.1 {primary} 2\n\
         sentinel down-after-milliseconds {MASTER} 2000\nsentinel failover-timeout {MASTER} 6000\n{more}"
    );
    std::fs::write(&file, settings).unwrap();
    let mut command = Command::new(super::redis::server());
    command.arg(&file).arg("--sentinel").current_dir(dir.path());
    let access = access.iter().map(|&word| word.to_owned()).collect();
    Sentinel { _process: Process::spawn(command, "KILL"), port, access, _dir: dir }
}
